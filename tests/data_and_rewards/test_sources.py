"""Files of problems, countdown, mixtures of both, and tasks with a published tokenizer."""

import itertools
import json
import subprocess
import sys
from collections import Counter
from dataclasses import asdict, replace
from fractions import Fraction
from pathlib import Path

import pytest
import tokenizers
from etils import epath

from r1jax.config import JsonlConfig, PromptConfig
from r1jax.data import countdown
from r1jax.data.feeds import Records, ensure_records, problem_batches, records
from r1jax.data.jsonl import after_hashes, last_box, read_problems
from r1jax.data.sources import Source
from r1jax.data.tasks import TASKS, r1_zero_prompt, text_task
from r1jax.data.toy.running_sum import TOKENIZER
from r1jax.errors import UsageError
from r1jax.rewards.countdown import countdown_reward
from r1jax.rewards.mathematics import MathVerifier
from r1jax.rewards.rules import Reward, accuracy_reward, by_source, parse_answer
from r1jax.runs.hugging_face import export_hf
from r1jax.runs.policy import load_policy
from r1jax.runs.run import Experiment, open_run
from r1jax.stages.evaluate import measure
from r1jax.stages.rl import rl
from r1jax.telemetry.metrics import read_metrics
from r1jax.telemetry.progress import Progress
from r1jax.types import Problem
from tests.shared.checkpoints import save_policy
from tests.shared.configs import change, evaluate_config
from tests.shared.deepseek_tokens import GSM8K, needs_data, write_tokenizer
from tests.shared.word_tokenizer import publish_words

EXAMPLES, SEED = 4000, 3

# ---- files


def write_lines(path: Path, *rows: object) -> str:
    path.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows))
    return str(path)


def test_a_file_in_the_form_of_math(tmp_path):
    solutions = [
        r"We get $\boxed{1}$, no, $\boxed{\frac{\sqrt{2}}{3}}$.",
        r"The set is \boxed{\{1, 2\}}, of {two}.",
        r"Hence $\fbox{x = \text{odd}}$",
        r"$\boxed 5$ is all.",
        r"\boxed{ \left( 0, \frac{1}{2} \right] }",
    ]
    rows = [{"problem": f"p{i}", "solution": s, "level": i} for i, s in enumerate(solutions)]
    path = write_lines(tmp_path / "math.jsonl", *rows)
    config = JsonlConfig(path, question="problem", answer="solution", answer_form="boxed")
    answers = [
        r"\frac{\sqrt{2}}{3}", r"\{1, 2\}", r"x = \text{odd}", "5", r"\left( 0, \frac{1}{2} \right]"
    ]  # fmt: skip
    assert read_problems(config, "math") == [Problem(i, f"p{i}", a, "en", "math") for i, a in enumerate(answers)]


def test_a_file_in_the_form_of_aime(tmp_path):
    path = write_lines(tmp_path / "aime.jsonl", {"Problem": "p", "Answer": 25}, "", {"Problem": "q", "Answer": "025"})
    found = read_problems(JsonlConfig(path, question="Problem", answer="Answer", language="es"), "aime")
    assert found == [Problem(0, "p", "25", "es", "aime"), Problem(1, "q", "025", "es", "aime")]


@pytest.mark.parametrize(
    "literal",
    [
        "0.00005",
        "5e-05",
        "1E3",
        "-0.0",
        "1.50",
        "100000000000000000000",
        "3.141592653589793238462643",
        "1e400",
        "-7",
        "0.1",
    ],
)
def test_numbers_stay_as_they_are_written(tmp_path, literal):
    path = write_lines(tmp_path / "x.jsonl", f'{{"question": 12.50, "answer": {literal}}}')
    (problem,) = read_problems(JsonlConfig(path), "x")
    assert (problem.question, problem.answer) == ("12.50", literal)


def test_lines_end_at_newlines_only(tmp_path):
    text = '{"question": "a\u2028b", "answer": "1"}\r\n{"question": "c", "answer": 2}'
    (tmp_path / "x.jsonl").write_bytes(text.encode())
    assert [p.question for p in read_problems(JsonlConfig(str(tmp_path / "x.jsonl")), "x")] == ["a\u2028b", "c"]


ANSWERS = [  # form, text, answer
    (after_hashes, "so\n#### 1,234,567", "1234567"),
    (after_hashes, "#### 1 #### -2 ", "-2"),
    (after_hashes, "#### $1,50", "$1,50"),
    (after_hashes, "no hashes: 7", ""),
    (after_hashes, "####", ""),
    (last_box, r"\boxed{1} and \boxed{2", ""),
    (last_box, r"\boxed{\boxed{2}}", "2"),
    (last_box, r"\boxed {a\\{b}}", r"a\\{b}"),
    (last_box, r"\boxed{}", ""),
    (last_box, r"no box", ""),
    (last_box, "\\boxed{" * 10_000, ""),
]


@pytest.mark.parametrize(
    ("form", "text", "answer"), ANSWERS, ids=lambda value: getattr(value, "__name__", repr(value)[:30])
)
def test_forms_of_answers(form, text, answer):
    assert form(text) == answer


GOOD = {"question": "q", "answer": "#### 1"}
BAD_LINES = [  # line, the field or value that the error names
    ({"question": "q"}, "JsonlConfig.answer"),
    ({"Question": "q", "answer": "#### 1"}, "JsonlConfig.question"),
    ('{"question": "q", "answer": "####', "JSON"),
    ("[1, 2]", "[1, 2]"),
    ("[" * 100_000, "JSON"),
    ({"question": "q", "answer": "#### "}, "JsonlConfig.answer_form"),
    ({"question": "q", "answer": "seven"}, "JsonlConfig.answer_form"),
    ({"question": "  ", "answer": "#### 1"}, "JsonlConfig.question"),
    ({"question": None, "answer": "#### 1"}, "JsonlConfig.question"),
    ({"question": ["q"], "answer": "#### 1"}, "JsonlConfig.question"),
    ({"question": "q", "answer": True}, "JsonlConfig.answer"),
    ('{"question": "q", "answer": NaN}', "JsonlConfig.answer"),
    ('{"question": "q\\ud800", "answer": "#### 1"}', "surrogates"),
]


@pytest.mark.parametrize(("line", "named"), BAD_LINES, ids=lambda value: repr(value)[:40])
def test_a_bad_line_is_one_clear_error_and_nothing_is_written(tmp_path, line, named):
    config = JsonlConfig(write_lines(tmp_path / "x.jsonl", GOOD, GOOD, line, GOOD), answer_form="hashes")
    wanted = [Records("mix", "train", 3, (Source("countdown"), Source("x", file=config)))]
    with pytest.raises(UsageError) as error:
        ensure_records(wanted, 0, epath.Path(tmp_path / "data"))
    message = str(error.value)
    assert message.startswith(f"{config.path}, line 3: ")
    assert named in message
    assert len(message) < 500 and "\n" not in message
    assert not (tmp_path / "data").exists()


def test_empty_missing_and_unreadable_files(tmp_path):
    with pytest.raises(UsageError, match=r"JsonlConfig\.path"):
        read_problems(JsonlConfig(str(tmp_path / "no.jsonl")), "x")
    with pytest.raises(UsageError, match=r"JsonlConfig\.path"):
        read_problems(JsonlConfig(write_lines(tmp_path / "x.jsonl", "", "")), "x")
    (tmp_path / "latin.jsonl").write_bytes(b'{"question": "\xe9"}')
    with pytest.raises(UsageError, match=r"JsonlConfig\.path"):
        read_problems(JsonlConfig(str(tmp_path / "latin.jsonl")), "x")


def test_invalid_sources():
    with pytest.raises(UsageError, match="'gsm8k'.*Source.file"):
        ensure_records([Records("mix", "train", 3, (Source("gsm8k"),))], 0, epath.Path("/nowhere"))
    with pytest.raises(ValueError, match="rate"):
        Source("countdown", rate=0)


# ---- countdown


def reachable(numbers: tuple[Fraction, ...]) -> set[Fraction]:
    """The values of all expressions that use each number once, with fractions and negative numbers."""
    if len(numbers) == 1:
        return {numbers[0]}
    found = set()
    for i, j in itertools.permutations(range(len(numbers)), 2):
        a, b = numbers[i], numbers[j]
        rest = tuple(n for k, n in enumerate(numbers) if k not in (i, j))
        for value in {a + b, a - b, a * b} | ({a / b} if b else set()):
            found |= reachable((*rest, value))
    return found


def puzzles(split: str, seed: int, count: int) -> list[dict]:
    return [json.loads(p.answer) for p in itertools.islice(countdown.problems(split, seed), count)]


def test_every_puzzle_has_a_solution():
    sizes = Counter()
    for puzzle in puzzles("train", 0, 60):
        assert puzzle["target"] in reachable(tuple(Fraction(n) for n in puzzle["numbers"]))
        assert 1 <= puzzle["target"] <= countdown.LARGEST_TARGET
        sizes[len(puzzle["numbers"])] += 1
    assert sizes.keys() == {3, 4}


def test_the_solver_knows_what_cannot_be_reached():
    assert Fraction(16) in reachable((Fraction(3), Fraction(5), Fraction(2)))
    assert Fraction(24) not in reachable((Fraction(1), Fraction(1), Fraction(1)))


def test_questions_state_the_puzzle_and_depend_on_the_seed_alone():
    first = list(itertools.islice(countdown.problems("train", 0), 50))
    for i, found in enumerate(first):
        puzzle = json.loads(found.answer)
        assert found.answer == f'{{"numbers": {puzzle["numbers"]}, "target": {puzzle["target"]}}}'
        assert f"numbers {puzzle['numbers']}, create an equation that equals {puzzle['target']}." in found.question
        assert (found.id, found.source, found.language) == (i, "countdown", "en")
    assert first == list(itertools.islice(countdown.problems("train", 0), 50))
    assert puzzles("train", 0, 50) != puzzles("train", 1, 50)


def test_no_held_out_puzzle_is_trained_on():
    train, test = (
        {(tuple(sorted(p["numbers"])), p["target"]) for seed in range(2) for p in puzzles(split, seed, 500)}
        for split in ("train", "test")
    )
    assert not train & test
    assert len(test) > 900


# ---- mixtures


TRAIN = JsonlConfig(str(GSM8K / "train.jsonl"), answer_form="hashes")
MATH = Records("math", "train", EXAMPLES, (Source("gsm8k", 0.75, TRAIN), Source("countdown", 0.25)))
needs_gsm8k = pytest.mark.skipif(not GSM8K.exists(), reason="GSM8K is not beside the project (../shared/data)")


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> dict[str, epath.Path]:
    """Mixtures on disk, by name: MATH, "both" of two small files, and "one" of the first of them."""
    folder = tmp_path_factory.mktemp("mixtures")
    sources = []
    for i in (0, 1):
        lines = [{"question": f"{i}.{j}", "answer": j} for j in range(5)]
        sources.append(Source("small", file=JsonlConfig(write_lines(folder / f"{i}.jsonl", *lines))))
    wanted = [Records("both", "train", 60, tuple(sources)), Records("one", "test", 10, (sources[0],))]
    wanted += [Records("whole", "train", None, (sources[0],))]
    wanted += [MATH] if GSM8K.exists() else []
    paths = ensure_records(wanted, SEED, epath.Path(folder))
    assert ensure_records(wanted, SEED, epath.Path(folder)) == paths  # a second call writes nothing
    assert not list(folder.glob("*.partial"))
    return {r.task: path for r, path in zip(wanted, paths, strict=True)}


def test_without_a_number_each_line_of_a_file_is_asked_once(made):
    found = [row["question"] for row in records(made["whole"], None)]
    assert sorted(found) == [f"0.{j}" for j in range(5)]


def test_without_a_number_generated_problems_are_refused():
    for sources in ((), (Source("countdown"),)):
        with pytest.raises(UsageError, match="RLConfig.num_prompts is not set"):
            Records("mix", "train", None, sources).counted()


@needs_gsm8k
def test_a_mixture_of_gsm8k_and_countdown(made):
    """Rates, sources and gold answers of the feed that RL reads, against the file itself."""
    drawn = [p for batch in itertools.islice(problem_batches(made["math"], 50, 0), EXAMPLES // 50) for p in batch]
    assert sorted(p.id for p in drawn) == list(range(EXAMPLES))
    counts = Counter(p.source for p in drawn)
    assert counts.keys() == {"gsm8k", "countdown"}
    deviation = (0.75 * 0.25 / EXAMPLES) ** 0.5
    assert counts["gsm8k"] / EXAMPLES == pytest.approx(0.75, abs=4 * deviation)
    rows = [json.loads(line) for line in Path(TRAIN.path).read_text().splitlines()]
    gold = {row["question"]: row["answer"].split("#### ")[1].replace(",", "") for row in rows}
    for p in drawn:
        if p.source == "gsm8k":
            assert p.answer == gold[p.question]
        else:
            assert json.loads(p.answer).keys() == {"numbers", "target"}
    assert len({p.question for p in drawn if p.source == "gsm8k"}) == counts["gsm8k"]  # each once an epoch
    expected = [p.answer for p in itertools.islice(countdown.problems("train", SEED), counts["countdown"])]
    assert [r["answer"] for r in records(made["math"], None) if r["source"] == "countdown"] == expected


def test_the_feed_of_a_mixture_resumes(made):
    feed = problem_batches(made["both"], 16, 0)
    for _ in range(5):
        next(feed)
    state = json.loads(json.dumps(feed.get_state()))
    expected = [next(feed) for _ in range(3)]
    again = problem_batches(made["both"], 16, 0)
    again.set_state(state)
    assert [next(again) for _ in range(3)] == expected


@needs_gsm8k
@pytest.mark.slow
def test_a_mixture_is_a_function_of_its_seed(made, tmp_path):
    requests = [asdict(MATH) | {"seed": seed, "path": str(tmp_path / f"seed{seed}")} for seed in (SEED, SEED + 1)]
    write = [sys.executable, "-m", "r1jax.data.seqio_tasks", json.dumps(requests)]
    subprocess.run(write, check=True, capture_output=True)
    same, other = (list(records(epath.Path(r["path"]), None)) for r in requests)
    assert same == list(records(made["math"], None))
    assert [r["source"] for r in same] != [r["source"] for r in other]
    assert [r["question"] for r in same] != [r["question"] for r in other]


def test_small_files_repeat_and_may_share_a_source(made):
    both, one = ([Problem(**record) for record in records(made[name], None)] for name in ("both", "one"))
    assert [p.id for p in both] == list(range(60))
    assert {(p.question, p.source) for p in both} == {(f"{i}.{j}", "small") for i in (0, 1) for j in range(5)}
    once = [f"0.{j}" for j in range(5)]
    assert sorted(p.question for p in one[:5]) == sorted(p.question for p in one[5:]) == once


def test_a_mixture_of_other_problems_has_another_name(tmp_path):
    config = JsonlConfig(write_lines(tmp_path / "x.jsonl", {"question": "a", "answer": "1 #### 2"}))
    moved = replace(config, path=write_lines(tmp_path / "y.jsonl", {"question": "a", "answer": "1 #### 2"}))
    changed = replace(config, path=write_lines(tmp_path / "z.jsonl", {"question": "a", "answer": "1 #### 3"}))
    source = Source("x", file=config)
    others = [Source("y", file=config), Source("x", 2.0, config), Source("x", file=changed)]
    others += [
        Source("x", file=replace(config, answer_form="hashes")),
        Source("x", file=replace(config, language="es")),
    ]
    names = [Records("mix", "train", 3, (s,)).file_name(0) for s in (source, *others)]
    assert len(set(names)) == len(names)
    assert Records("mix", "train", 3, (Source("x", file=moved),)).file_name(0) == names[0]


# ---- tasks in plain text


@pytest.fixture
def tokenizer_directory(tmp_path) -> epath.Path:
    return publish_words(epath.Path(tmp_path / "published"), "<bos>", "<eos>")


def test_r1_zeros_template_asks_for_the_rewarded_form():
    prompt = r1_zero_prompt("What is {x} + 1?")
    assert prompt.endswith("\nUser: What is {x} + 1?\nAssistant:")
    form = prompt[prompt.index("<think> the") : prompt.index(".\nUser")]
    assert parse_answer(form) == "the answer"


@needs_data
def test_gsm8k_in_deepseeks_tokens(tmp_path):
    write_tokenizer(tmp_path)
    test = replace(TRAIN, path=str(GSM8K / "test.jsonl"))
    task = text_task("gsm8k", epath.Path(tmp_path), Source("gsm8k", file=test).problems)
    problems = task.held_out(2000, 0)
    assert len(problems) == 1319  # the whole test set
    assert problems[:100] == task.held_out(100, 0) != task.held_out(100, 1)
    for p in problems:
        ids = task.tokenizer.encode(task.prompt(p.question))
        assert ids[0] == task.tokenizer.bos_id
        assert task.tokenizer.decode(ids[1:]) == r1_zero_prompt(p.question)
        assert len(ids) < 350


def test_a_text_task_needs_a_tokenizer_and_problems(tmp_path, tokenizer_directory):
    with pytest.raises(UsageError, match="tokenizer_directory"):
        text_task("x", epath.Path(tmp_path / "nothing"))
    with pytest.raises(UsageError, match="'x'.*Source.file"):
        text_task("x", tokenizer_directory).held_out(1, 0)
    assert text_task("countdown", tokenizer_directory).held_out(1, 0)[0].source == "countdown"
    with pytest.raises(UsageError, match="'<bos>'.*bos_token"):
        text_task("x", publish_words(epath.Path(tmp_path / "plain")))


def test_a_text_tasks_tokenizer_comes_with_its_checkpoints(tmp_path, tokenizer_directory, model, policy, one_device):
    task = text_task("gsm8k", tokenizer_directory)
    stage = epath.Path(tmp_path / "rl")
    save_policy(stage, model, policy, task.name)
    with pytest.raises(UsageError, match="tokenizer"):
        load_policy(stage, one_device).ask("compute 3")
    task.save_tokenizer(stage)
    loaded = load_policy(stage, one_device)
    asked = task.tokenizer.encode(task.prompt("compute 3"))
    assert asked[0] == TOKENIZER.bos_id
    assert loaded.ask("compute 3") == asked
    assert (
        loaded.converse([{"role": "user", "content": "compute 3"}]) == asked
    )  # the task's template, not the chat template
    assert loaded.task is not None and loaded.task.name == "gsm8k"
    export_hf(stage, epath.Path(tmp_path / "exported"), progress=Progress())
    assert (tmp_path / "exported" / "tokenizer.json").read_bytes() == (
        tokenizer_directory / "tokenizer.json"
    ).read_bytes()


CHAT = "{% for m in messages %}<{{ m.role }}> {{ m.content }} {% endfor %}<assistant>"
ASKED = {
    PromptConfig(): "<bos>" + r1_zero_prompt("compute 3"),
    PromptConfig("plain"): "<bos>compute 3",
    PromptConfig("plain", "now {question} {ok}?"): "<bos>now compute 3 {ok}?",
    PromptConfig("chat"): "<user> compute 3 <assistant>",
    PromptConfig("chat", "{question} now", "be brief"): "<system> be brief <user> compute 3 now <assistant>",
}


@pytest.mark.parametrize("template", ASKED, ids=lambda t: f"{t.template}-{t.question}")
def test_a_checkpoint_keeps_how_its_policy_is_asked(tmp_path, tokenizer_directory, model, policy, one_device, template):
    settings = json.loads((tokenizer_directory / "tokenizer_config.json").read_text())
    (tokenizer_directory / "tokenizer_config.json").write_text(json.dumps(settings | {"chat_template": CHAT}))
    task = text_task("gsm8k", tokenizer_directory, template=template)
    assert task.prompt("compute 3") == ASKED[template]
    stage = epath.Path(tmp_path / "rl")
    save_policy(stage, model, policy, task.name, template)
    task.save_tokenizer(stage)
    loaded = load_policy(stage, one_device)
    assert loaded.task is not None and loaded.task.template == template
    assert loaded.ask("compute 3") == task.tokenizer.encode(ASKED[template])
    turns = [{"role": "user", "content": "compute 3"}, {"role": "assistant", "content": "3"}]
    said = loaded.converse([*turns, {"role": "user", "content": "compute 3"}])
    assert loaded.keeps_turns == (template.template == "chat")
    assert len(said) > len(loaded.ask("compute 3")) if loaded.keeps_turns else said == loaded.ask("compute 3")


@pytest.mark.parametrize(
    "settings", [{"template": "alpaca"}, {"question": "compute"}, {"system": "x"}, {"answer": "first"}], ids=str
)
def test_a_prompt_that_cannot_be_is_refused(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        PromptConfig(**settings)


def test_a_tokenizer_without_a_chat_template_cannot_be_asked_in_one(tmp_path, tokenizer_directory):
    settings = json.loads((tokenizer_directory / "tokenizer_config.json").read_text())
    del settings["chat_template"]
    (tokenizer_directory / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(UsageError, match="chat_template"):
        text_task("x", tokenizer_directory, template=PromptConfig("chat"))


def test_what_was_trained_from_a_list_of_end_tokens_is_exported_with_it(tmp_path, tokenizer_directory, model, policy):
    configs = {
        "config.json": {"eos_token_id": [2, 9], "pad_token_id": 0},
        "generation_config.json": {"eos_token_id": 7},
    }
    for name, ids in configs.items():
        (tokenizer_directory / name).write_text(json.dumps(ids))
    task = text_task("gsm8k", tokenizer_directory)
    assert task.tokenizer.eos_ids == (TOKENIZER.eos_id, 7, 9)
    stage = save_policy(tmp_path / "rl", model, policy, task.name)
    task.save_tokenizer(stage)
    export_hf(stage, epath.Path(tmp_path / "exported"), progress=Progress())
    for name, ids in configs.items():
        assert json.loads((tmp_path / "exported" / name).read_text()).items() >= ids.items()


def test_a_text_task_begins_as_tokenizer_json_says(tokenizer_directory):
    """Llama 3's tokenizer_config.json doesn't say that a text begins with the begin token."""
    config = json.loads((tokenizer_directory / "tokenizer_config.json").read_text())
    del config["add_bos_token"]
    (tokenizer_directory / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = tokenizers.Tokenizer.from_file(str(tokenizer_directory / "tokenizer.json"))
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", TOKENIZER.bos_id)]
    )
    tokenizer.save(str(tokenizer_directory / "tokenizer.json"))
    task = text_task("gsm8k", tokenizer_directory)
    ids = task.tokenizer.encode(task.prompt("compute 3"))
    assert ids == task.tokenizer.codec.tokenizer.encode(r1_zero_prompt("compute 3")).ids
    assert ids.count(TOKENIZER.bos_id) == 1


def test_a_registered_task_is_loaded_by_name(tmp_path, model, policy, one_device):
    save_policy(epath.Path(tmp_path), model, policy, "running_sum")
    TASKS["running_sum"].save_tokenizer(epath.Path(tmp_path))
    assert not (tmp_path / "tokenizer").exists()
    assert load_policy(epath.Path(tmp_path), one_device).task is TASKS["running_sum"]


def test_a_file_is_evaluated_on(tmp_path, tokenizer_directory, model, policy, one_device):
    path = write_lines(tmp_path / "x.jsonl", *({"problem": f"compute {i} #a + 1", "answer": i + 1} for i in range(9)))
    source = Source("math", file=JsonlConfig(path, question="problem"))
    task = text_task("math", tokenizer_directory, source.problems)
    save_policy(epath.Path(tmp_path / "rl"), model, policy, task.name)
    task.save_tokenizer(epath.Path(tmp_path / "rl"))
    loaded = load_policy(epath.Path(tmp_path / "rl"), one_device)
    config = evaluate_config(
        slots=32, num_prompts=6, samples_per_prompt=2, max_prompt_tokens=100, max_new_tokens=8, k=2
    )
    accuracy, problems = {"accuracy": Reward(accuracy_reward, 1.0)}, task.held_out(config.num_prompts, 0)
    figures, groups = measure(loaded, config, task, accuracy, problems, 0, Progress(quiet=True).start("", 0, 1))
    assert [[s.problem, s.problem] for s, _ in groups] == [[p, p] for p in problems]
    assert {s.problem.source for group in groups for s in group} == {"math"}
    assert 0 <= figures["pass@1"] <= 1


@pytest.mark.slow
def test_rl_rewards_each_source_of_a_mixture_by_its_own_function(
    tmp_path, tokenizer_directory, experiment_config, model, policy, one_device
):
    """A mixture of a file and a generator, with a published tokenizer and math-verify during the rollout."""
    path = write_lines(tmp_path / "x.jsonl", *({"problem": f"compute {i} #a + 1", "answer": i + 1} for i in range(9)))
    sources = (Source("math", 1.0, JsonlConfig(path, question="problem")), Source("countdown", 1.0))
    task = text_task("mixed", tokenizer_directory)
    opened = open_run(str(tmp_path / "run"), Experiment("mixed"), experiment_config, one_device, Progress())
    run = replace(opened, model=model, task=task)
    [problems] = ensure_records([Records("mixed", "train", 32, sources)], 0, run.workdir / "data")
    save_policy(run.workdir / "base", model, policy, task.name)
    config = change(
        experiment_config.rl, steps=2, prompts_per_step=4, group_size=4, num_prompts=32, max_prompt_tokens=150,
        max_new_tokens=8, row_tokens=None, microbatch_rows=None, log_samples_every=1,
    )  # fmt: skip
    with MathVerifier(processes=1) as verifier:
        rewards = {
            "accuracy": by_source({"math": verifier, "countdown": countdown_reward}, 1.0),
            "long": Reward(lambda sample: len(set(sample.response_tokens)) / 8, 1.0, sources=("math",)),
        }
        stage = rl(run.stage("rl"), config, run.workdir / "base", problems, rewards)
    rows, samples = (read_metrics(stage / name) for name in ("metrics.jsonl", "samples.jsonl"))
    assert all(row["accuracy"] == 0 and row["groups_all_wrong"] == 1 and row["long"] > 0 for row in rows)
    assert all(row["samples_trained"] == 16 for row in rows)  # no verifier failed
    assert {s["problem"]["source"] for s in samples} == {"math", "countdown"}
    assert all((s["rewards"]["long"] is None) == (s["problem"]["source"] == "countdown") for s in samples)
    assert all(s["rewards"]["accuracy"] is not None for s in samples)
    assert load_policy(stage, one_device).task.prompt("x") == task.prompt("x")
