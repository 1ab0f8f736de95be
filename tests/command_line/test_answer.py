"""Answers and conversations in the terminal: what is shown, when, and how."""

import io
import json

import pytest
import tokenizers
from etils import epath
from rich.console import Console

from r1jax.cli.main import main
from r1jax.cli.responder import AnswerStream, Responder
from r1jax.config import EngineConfig, SamplingConfig
from r1jax.data.published_tokenizer import load_tokenizer
from r1jax.rollout.engine import RolloutEngine
from r1jax.runs.policy import Policy
from r1jax.types import Weights
from tests.shared.command_line import command
from tests.shared.small_run import r1jax

DIM, PLAIN = "\x1b[2m", "\x1b[0m"


def terminal() -> Console:
    return Console(file=io.StringIO(), force_terminal=True, width=20, color_system="standard")


def shown(stream: AnswerStream, *texts: str) -> list[str]:
    """What each text that the answer had added to the screen; the last is its end."""
    pieces, seen = [], 0
    for i, text in enumerate(texts):
        stream.end(text) if i == len(texts) - 1 else stream(text)
        written = stream.console.file.getvalue()
        pieces.append(written[seen:])
        seen = len(written)
    return pieces


def test_thinking_is_dimmed_as_it_comes():
    pieces = shown(
        AnswerStream(terminal()), "<thi", "<think> one", "<think> one </think> 2", "<think> one </think> 2 3"
    )
    assert pieces == ["", f"{DIM}<think> one{PLAIN}", f"{DIM} </think>{PLAIN} 2", " 3\n"]


def test_an_answer_without_thinking_is_plain():
    assert shown(AnswerStream(terminal()), "", "<", "< 3 and", "< 3 and more") == ["", "", "< 3 and", " more\n"]


def test_a_prompt_that_begins_the_thinking():
    pieces = shown(AnswerStream(terminal(), thinking=True), "hm", "hm</think>yes")
    assert pieces == [f"{DIM}hm{PLAIN}", f"{DIM}</think>{PLAIN}yes\n"]


def test_what_may_be_cut_off_and_half_a_character_are_held_back():
    pieces = shown(AnswerStream(terminal(), hold=3), "abcdeUs", "abcdeUse\ufffd", "abcde")
    assert pieces == ["abcd", "e", "\n"]
    pieces = shown(AnswerStream(terminal(), hold=5), "<think> on", "<think> one </think> 2")
    assert pieces == ["", f"{DIM}<think> one </think>{PLAIN} 2\n"]


def test_long_answers_are_not_broken_into_lines():
    (piece,) = shown(AnswerStream(Console(file=io.StringIO(), width=20)), "word " * 20)
    assert piece == "word " * 20 + "\n"


TEMPLATE = "{% for m in messages %}{{ m.role[0] }} {{ m.content }} {% endfor %}a"


@pytest.fixture
def talker(tmp_path, model, policy, one_device) -> Policy:
    """A policy with a published tokenizer of 208 words, and a chat template."""
    words = {word: i for i, word in enumerate(["<eos>", "u", "a", *(f"w{i}" for i in range(205))])}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="w0"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    config = {"eos_token": "<eos>", "chat_template": TEMPLATE}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    return Policy(model, load_tokenizer(epath.Path(tmp_path)), None, Weights(*policy), one_device)


def talk(layout, policy, *questions: str, context=64, max_tokens=8) -> str:
    console = Console(file=io.StringIO(), width=200)
    config = EngineConfig(slots=1, prefill_rows=1, steps_per_round=3)
    sampling = SamplingConfig(context - max_tokens, max_tokens, temperature=0.0)
    engine = RolloutEngine(layout, policy.model, policy.tokenizer, config, sampling, 1)
    Responder(engine, policy, console, seed=0).chat(questions)
    return console.file.getvalue()


def test_a_conversation_remembers_until_it_is_cleared(one_device, talker, monkeypatch):
    asked = []
    converse = Policy.converse
    monkeypatch.setattr(Policy, "converse", lambda self, messages: asked.append(messages) or converse(self, messages))
    first, second, again = talk(one_device, talker, "w5 w6", "", "w7", "/clear", "w5 w6").splitlines()
    assert [len(messages) for messages in asked] == [1, 3, 1]
    assert asked[1][1] == {"role": "assistant", "content": first}
    assert first == again != second
    assert len(first.split()) == 8


def test_a_conversation_that_grows_too_long_says_so_and_continues(one_device, talker):
    shown = talk(one_device, talker, "w5 w6", "w7", "/clear", "w5 w6", context=20, max_tokens=8).splitlines()
    assert "max_prompt_tokens" in shown[1]
    assert "/clear" in shown[1]
    assert shown[0] == shown[2]


def test_without_a_template_each_question_stands_alone(talker):
    talker.tokenizer.template = None
    messages = [{"role": "user", "content": "w9"}, {"role": "assistant", "content": "w1"}]
    assert talker.converse([*messages, {"role": "user", "content": "w5"}]) == [8]


def test_chat_answers_line_by_line(finished, capsys):
    given = "compute 3 #a - 1\nwhat is love\ncompute 3 #a - 1\n"
    done = r1jax("chat", str(finished / "rl"), "--temperature", "0", "--max_tokens", "6", given=given)
    assert done.returncode == 0, done.stderr
    first, second, third = done.stdout.splitlines()
    assert first == third
    assert "'what'" in second
    generate = ["generate", str(finished / "rl"), "--prompt", "compute 3 #a - 1", "--max_tokens", "6"]
    for words in (generate, [*generate, "--speculative"]):
        assert main(words) == 0
        assert capsys.readouterr().out.splitlines() == [first]


def test_chat_refuses_what_it_cannot_do(finished, capsys, tmp_path, monkeypatch):
    status, _, err = command(capsys, "chat", str(finished / "rl"), "--max_tokens", "5000")
    assert (status, "--max_tokens" in err) == (2, True)
    load = "r1jax.runs.policy.load_policy"
    policy = Policy(None, None, None, None, None)
    monkeypatch.setattr(load, lambda path, layout: policy)
    status, _, err = command(capsys, "chat", str(tmp_path))
    assert (status, "tokenizer" in err) == (2, True)
