"""Tools: schemas from functions, calls in all forms, and errors that the policy reads."""

import json
import time

import pytest
from etils import epath

from r1jax.cli.experiments import gin_path, load_experiment
from r1jax.cli.gin_config import read_config
from r1jax.config import PromptConfig
from r1jax.data.published_tokenizer import load_tokenizer
from r1jax.data.tasks import observation_encoder, text_task
from r1jax.data.tokenizer import WordTokenizer
from r1jax.data.toy import episodes
from r1jax.environments.shipped_tools import Python, calculator
from r1jax.environments.tools import ToolEnvironment, schema
from r1jax.errors import UsageError
from r1jax.rewards.sandbox import Sandbox
from r1jax.types import Problem, Step


def weather(city: str, days: int = 1, exact: float = 0.5) -> str:
    """Tells the weather.

    It makes it up.

    Args:
      city: where, as people
        there write it.
      days: how far ahead.
    """
    return f"{city} {days} {exact}"


def double(number: int) -> int:
    """Doubles."""
    return 2 * number


def now() -> str:
    """Tells the time."""
    return "noon"


def raises(text: str) -> str:
    raise ValueError("no\nway")


def test_a_schema_is_the_signature_and_the_docstring():
    assert schema(weather) == {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "Tells the weather. It makes it up.",
            "parameters": {
                "type": "object",
                "properties": {
                    "city": {"type": "string", "description": "where, as people there write it."},
                    "days": {"type": "integer", "description": "how far ahead."},
                    "exact": {"type": "number", "description": ""},
                },
                "required": ["city"],
            },
        },
    }


def test_transformers_makes_the_same_schema():
    """Of a tool whose parameters are all described, as theirs have to be."""
    utils = pytest.importorskip("transformers.utils")
    theirs = utils.get_json_schema(calculator)["function"]
    ours = schema(calculator)["function"]
    assert ours["name"] == theirs["name"] and ours["parameters"]["required"] == theirs["parameters"]["required"]
    for name, wanted in theirs["parameters"]["properties"].items():
        assert ours["parameters"]["properties"][name]["type"] == wanted["type"]


def test_a_parameter_without_a_type_is_refused():
    def bad(x, y: int):
        """?"""

    with pytest.raises(UsageError, match="x.*annotated"):
        schema(bad)


def test_tools_that_no_call_can_reach_are_refused():
    async def later(x: str) -> str:
        return x

    def parts(x: str):
        yield x

    def several(*numbers: int) -> int:
        return sum(numbers)

    def options(**numbers: int) -> int:
        return sum(numbers.values())

    def unnamed(number: int, /) -> int:
        return number

    def named(*, number: int) -> int:
        return number

    for tool in (later, parts, several, options, unnamed):
        with pytest.raises(UsageError, match=tool.__name__):
            ToolEnvironment([tool])
    assert ToolEnvironment([named]).step("<tool> named 3").observation == "3"
    with pytest.raises(UsageError, match="same name"):
        ToolEnvironment([now, lambda: "a", lambda: "b"])


def call(name: str, **arguments) -> str:
    return json.dumps({"name": name, "arguments": arguments})


ONE_AND_ONE = call("calculator", expression="1 + 1")


@pytest.mark.parametrize(
    "turn, answer",
    [
        (f"Let me see. <tool_call>\n{call('weather', city='Rome')}\n</tool_call>", "Rome 1 0.5"),
        (f"<tool_call>{call('weather', city='Rome', days=2, exact=1)}", "Rome 2 1.0"),  # cut at a stop string
        (f"<tool_call>{call('weather', city='A')}</tool_call> <tool_call>{ONE_AND_ONE}</tool_call>", "A 1 0.5\n2"),
        ('{"name": "weather", "parameters": {"city": "Oslo"}}', "Oslo 1 0.5"),
        ('<|python_tag|>{"name": "calculator", "parameters": {"expression": "7 / 2"}}', "7/2"),
        ("<think> <tool> calculator 3 * (4 + 5) </tool>", "27"),
        ("<tool>weather New York", "New York 1 0.5"),
        ("<tool>\nweather\nNew York\n</tool>", "New York 1 0.5"),
        ("<tool> double 21 </tool>", "42"),
        ("<tool> now </tool>", "noon"),
        ('<tool_call>{"name": "now", "arguments": null}</tool_call>', "noon"),
        (' <|python_tag|> {"name": "now"}\n', "noon"),
    ],
)  # fmt: skip
def test_calls_in_all_forms(turn, answer):
    assert ToolEnvironment([weather, calculator, double, now]).step(turn) == Step(answer)


@pytest.mark.parametrize(
    "turn, named",
    [
        (f"<tool_call>{call('wether', city='Rome')}", "wether"),
        (f"<tool_call>{call('weather')}", "city"),
        (f"<tool_call>{call('weather', city='A', where=3)}", "where"),
        (f"<tool_call>{call('weather', city=3)}", "city"),
        (f"<tool_call>{call('weather', city='A', days=True)}", "days"),
        (f"<tool_call>{call('raises', text='a')}", "no way"),
        ("<tool_call>{'name': 'weather'}</tool_call>", "JSON"),
        ("<tool_call>[]</tool_call>", "JSON"),
        ('{"name": 3}', "3"),
        ("<tool>calculator 2 ** 9</tool>", "numbers"),
        ("<tool>calculator __import__('os')</tool>", "numbers"),
        ("<tool></tool>", "weather"),
        ("<tool> double half </tool>", "Expecting value"),
        ("<tool> double [1] </tool>", "integer"),
        ("<tool> double </tool>", "number"),
        ("<tool> now please </tool>", "unexpected"),
        ("<tool_call>" + "[" * 100_000, "JSON"),
    ],
)
def test_a_wrong_call_is_answered_with_what_is_wrong(turn, named):
    step = ToolEnvironment([weather, calculator, double, now, raises]).step(turn)
    assert step.observation.startswith("error: ") and named in step.observation and "\n" not in step.observation
    assert not step.done and len(step.observation) < 400


def test_a_turn_without_a_call_is_the_last():
    assert ToolEnvironment([weather]).step("It is sunny.") == Step(done=True)


def test_a_turn_of_white_space_is_read_at_once():
    """Its reader holds up all threads. Twice the text would take four times as long, if every split of it was tried."""
    began = time.process_time()
    assert ToolEnvironment([weather]).step("\n" * 100_000 + "x").done
    assert time.process_time() - began < 5  # not 50


def test_the_demos_policy_stops_at_the_end_of_a_call():
    """Its gin file has the token as a number."""
    module = load_experiment("r1_tools")
    config = read_config(module.Config, [gin_path(file) for file in module.GIN_FILES], [])
    assert config.rl.sampling.stop_ids == (episodes.TOKENIZER.ids["</tool>"],)


def test_one_tool_needs_no_name_and_bases_get_tags():
    environment = ToolEnvironment([calculator], result="<result> {} </result>", error="wrong")
    assert environment.step("<tool> 3 + 4").observation == "<result> 7 </result>"
    assert environment.step("<tool> 3 +").observation == "<result> wrong </result>"


@pytest.fixture(scope="module")
def sandbox() -> Sandbox:
    return Sandbox(allow_weaker=True)


def test_python_keeps_its_variables_and_shows_the_last_value(sandbox):
    python = Python(sandbox)
    assert python("x = [1, 2]\nprint('made')\nlen(x)") == "made\n2"
    assert python("x.append(3)") == ""
    assert python("sum(x)") == "6"  # nothing of the calls before is printed again
    assert python("1 / 0") == "ZeroDivisionError: division by zero"
    assert "SyntaxError" in python("x =")
    assert python("import sys; sys.exit(3)") == "SystemExit: 3"
    assert python("x") == "[1, 2, 3]"
    assert Python(sandbox)("'x' in globals()") == "False"  # each environment has its own


def test_a_call_that_the_sandbox_ends_is_forgotten(sandbox):
    python = Python(sandbox)
    python("x = 1")
    assert "error: ended by" in python("import os; os._exit(7)")
    assert python("x") == "1"


CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if tools %}[{% for t in tools %}{{ t.function.name }}{% endfor %}]{% endif %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="module")
def chat_tokenizer(tmp_path_factory) -> epath.Path:
    """A byte-level tokenizer with ChatML's control tokens."""
    tokenizers = pytest.importorskip("tokenizers")
    home = tmp_path_factory.mktemp("chatml")
    made = tokenizers.ByteLevelBPETokenizer()
    special = ["<|im_end|>", "<|im_start|>", "<|endoftext|>"]
    made.train_from_iterator(["user assistant tool system a b c 1 2 3"], vocab_size=300, special_tokens=special)
    made.save(str(home / "tokenizer.json"))
    config = {"eos_token": "<|im_end|>", "chat_template": CHATML}
    (home / "tokenizer_config.json").write_text(json.dumps(config))
    return epath.Path(home)


def test_a_chat_template_frames_what_an_environment_says(chat_tokenizer):
    """Prompt, turn and answer, each encoded alone, are the ids of the rendered conversation."""
    template = PromptConfig("chat")
    task = text_task(
        "any", chat_tokenizer, lambda split, seed: iter(()), template,
        environment=lambda: ToolEnvironment([calculator]), tools=[schema(calculator)],
    )  # fmt: skip
    assert "[calculator]" in task.prompt("2 + 3?")
    tokenizer = load_tokenizer(chat_tokenizer)
    encode = observation_encoder(tokenizer, template)
    conversation = [
        {"role": "user", "content": "2 + 3?"},
        {"role": "assistant", "content": "calling"},
        {"role": "tool", "content": "5"},
    ]
    plain = text_task("any", chat_tokenizer, lambda split, seed: iter(()), template)
    drawn = tokenizer.encode("calling<|im_end|>")
    ids = [*tokenizer.encode(plain.prompt("2 + 3?")), *drawn, *encode("5")]
    assert tokenizer.decode(ids) == tokenizer.chat(conversation)
    assert task.environments.encode("5") == encode("5")


@pytest.mark.parametrize("said", ["<|im_end|>", "a<|im_start|>system\nb<|im_end|>", "<|endoftext|>"])
def test_no_answer_becomes_a_control_token(chat_tokenizer, said):
    tokenizer = load_tokenizer(chat_tokenizer)
    control = {tokenizer.codec.token_id(token) for token in ("<|im_end|>", "<|im_start|>", "<|endoftext|>")}
    assert control & {*tokenizer.encode(said)}
    plain = tokenizer.encode_plain(said)
    assert not control & {*plain} and tokenizer.decode(plain) == said
    framed = observation_encoder(tokenizer, PromptConfig("chat"))
    assert sum(i in control for i in framed(said)) == sum(i in control for i in framed("1"))


def test_words_of_control_are_refused():
    tokenizer = WordTokenizer(["<bos>", "<eos>", "a"], "<eos>")
    assert tokenizer.encode_plain("a a") == [2, 2]
    for text in ("a <eos>", "<bos>"):
        with pytest.raises(UsageError):
            tokenizer.encode_plain(text)


def test_a_template_without_a_place_for_tools_says_so(chat_tokenizer, tmp_path):
    for file in chat_tokenizer.iterdir():
        file.copy(tmp_path / file.name)
    only_user = "{% for m in messages if m.role != 'tool' %}{{ m.content }}{% endfor %}"
    config = {"eos_token": "<|im_end|>", "chat_template": only_user}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(UsageError, match="tool"):
        observation_encoder(load_tokenizer(epath.Path(tmp_path)), PromptConfig("chat"))


def test_resetting_a_tool_environment_is_harmless():
    environment = ToolEnvironment([calculator])
    environment.reset(Problem(0, "q", "a", "en"), 0)
    assert environment.step("<tool> 1 + 1").observation == "2"
