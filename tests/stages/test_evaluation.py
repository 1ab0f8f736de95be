"""Evaluation by the papers' protocol: figures by hand, answers as verifiers read them, `eval` on each kind of task."""

import dataclasses
import itertools
import json
from importlib.util import find_spec
from statistics import fmean

import pytest
from etils import epath

from r1jax.cli.experiments import gin_path, load_experiment
from r1jax.cli.gin_config import read_config
from r1jax.cli.main import main
from r1jax.config import JsonlConfig
from r1jax.data.sources import Source
from r1jax.data.tasks import text_task
from r1jax.errors import UsageError
from r1jax.report.evaluation import markdown, plot, show, svg_text, table, write_evaluation
from r1jax.rewards.countdown import countdown_reward
from r1jax.rewards.mathematics import MathVerifier, decide, extract_answer, read
from r1jax.rewards.rules import Reward, accuracy_reward, by_source, format_reward
from r1jax.runs.policy import load_policy
from r1jax.stages.evaluate import measure
from r1jax.telemetry.progress import Progress
from r1jax.telemetry.statistics import confidence_interval, consensus, lengths, outcomes
from r1jax.types import Problem, Sample
from tests.shared.checkpoints import export, import_, make_checkpoint, save_policy
from tests.shared.configs import change, evaluate_config
from tests.shared.samples import make_sample
from tests.shared.word_tokenizer import publish_words

QUESTIONS = [("Natalia sold 48 clips and then half as many .", "48 / 2 = 24 \n#### 72"), ("compute 3 + 4 ?", "#### 7")]


def sample(text: str = "", accuracy: float | None = None, tokens: int = 1, finished: bool = True, source: str = ""):
    problem = Problem(0, "q", "1", "en", source)
    return make_sample(problem, text, [5] * tokens, finished=finished, accuracy=accuracy)


def group(*accuracies: float | None) -> list[Sample]:
    return [sample(accuracy=a, tokens=i + 1) for i, a in enumerate(accuracies)]


# ---- figures


def test_every_pass_at_k_by_hand():
    groups = [group(1, 0, 0, 0), group(1, 1, 1, 1)]
    figures = outcomes(groups, [["1", "2", "2", "3"], ["1"] * 4], 3)
    by_hand = {1: (0.25, 1), 2: (0.5, 1), 3: (0.75, 1), 4: (1, 1)}  # k: of each problem
    for k, values in by_hand.items():
        assert figures[f"pass@{k}"] == fmean(values)
        assert (figures[f"pass@{k}_low"], figures[f"pass@{k}_high"]) == confidence_interval(values, 4 // k)
    assert figures["cons@4"] == 0.5
    assert len(figures) == 3 * 4 + 1


def test_lengths_by_hand():
    samples = [sample(accuracy=a, tokens=n, finished=f) for a, n, f in (
        (1, 2, True), (1, 4, True), (0, 10, False), (None, 100, False), (0, 0, True)
    )]  # fmt: skip
    assert lengths([samples[:2], samples[2:]]) == {
        "response_tokens": 23.2, "response_tokens_p50": 4, "response_tokens_p95": 10,
        "tokens_correct": 3, "tokens_wrong": 5, "truncated": pytest.approx(0.4),
    }  # fmt: skip
    assert "tokens_correct" not in lengths([group(0)])


def test_no_answer_and_no_verdict_are_not_right():
    groups = [group(None, None), group(0, 0)]
    figures = outcomes(groups, [[None, None], ["", None]], 1)
    assert figures["pass@1"] == figures["pass@2"] == figures["cons@2"] == 0


# ---- answers

MATHEMATICS = [  # response, answer
    (r"so \boxed{0.50}", "1/2"),
    (r"\boxed{\frac{1}{2}}", "1/2"),
    ("<think> x </think> <answer> 1/2 </answer>", "1/2"),
    ("#### 1,234", "1234"),
    ("#### $1234.00", "$1234"),
    (r"\boxed{+07}", "7"),
    (r"\boxed{5 cm}", "5 cm"),
    (r"\boxed{x = 5}", "x = 5"),
    (r"\boxed{50\%}", "50 %"),
    (r"\boxed{\dfrac{x}{ 2 }}", r"\frac{x}{2}"),
    (r"\boxed{\frac{x}{2}}", r"\frac{x}{2}"),
    (r"\boxed{3 + 4}", r"3+4"),
    ("", None),
    ("42", None),
    (r"\boxed{}", None),
    (r"\boxed{1} or \boxed{2", None),
    ("<answer> 1 </answer> <answer> 2 </answer>", None),
    ("<think> #### 5", None),
    (r"\boxed{" + "1" * 2000 + "}", None),
]  # fmt: skip


@pytest.mark.parametrize(("response", "answer"), MATHEMATICS, ids=lambda text: repr(text)[:40])
def test_answers_in_mathematics(response, answer):
    with MathVerifier() as verifier:
        assert Reward(verifier, 1.0).answer(sample(response)) == answer


def test_equal_answers_get_equal_verdicts():
    """Or else a majority's verdict would depend on who of it is asked."""
    with MathVerifier() as verifier:
        by_answer = {}
        for response, answer in MATHEMATICS:
            assert verifier.answer(sample(response)) == answer
            if answer is not None:
                by_answer.setdefault(answer, []).append(read(extract_answer(response)))
    assert max(map(len, by_answer.values())) == 3
    for answers in by_answer.values():
        for gold in ("1/2", "0.5", "1234", "7", "5", "5 cm", "x=5", "50%", r"\frac{x}{2}", "x"):
            assert len({decide(answer, read(gold)) for answer in answers}) == 1


COUNTDOWN = [
    ("<think> x </think> <answer> 2 * (3 + 5) </answer>", "16 of [2, 3, 5]"),
    ("<think> x </think> <answer> (5+3)*2 </answer>", "16 of [2, 3, 5]"),
    ("<think> x </think> <answer> 16 </answer>", "16 of [16]"),
    ("<think> x </think> <answer> 5 / 3 </answer>", "5/3 of [3, 5]"),
    ("<think> x </think> <answer> sixteen </answer>", "sixteen"),
    ("<think> x </think> <answer> </answer>", None),
    (r"\boxed{2 * (3 + 5)}", None),
]


def test_answers_of_countdown_and_of_several_sources():
    rewards = by_source({"countdown": countdown_reward, "sums": accuracy_reward}, 1.0)
    for text, answer in COUNTDOWN:
        assert Reward(countdown_reward, 1.0).answer(sample(text)) == answer
        assert rewards.answer(sample(text, source="countdown")) == answer
    assert rewards.answer(sample("<think> x </think> <answer> +07 </answer>", source="sums")) == "7"
    assert rewards.answer(sample(COUNTDOWN[0][0], source="chat")) is None
    assert Reward(accuracy_reward, 1.0).answer(sample("<think> x </think> <answer> </answer>")) is None


def test_equal_answers_of_other_spelling_are_one_vote():
    texts = [r"\boxed{3}", r"\boxed{0.5}", r"\boxed{1/2}", r"\boxed{\frac12}", r"\boxed{3}"]
    with MathVerifier() as verifier:
        answers = [[verifier.answer(sample(text)) for text in texts]]
    assert consensus([group(0, 1, 1, 1, 0)], answers) == 1
    assert consensus([group(0, 1, 1, 1, 0)], [texts]) == 0  # as texts, 3 is in the majority


# ---- what is shown

FIGURES = {
    "greedy_accuracy": 0.5, "pass@1": 0.25, "pass@1_low": 0.1, "pass@1_high": 0.4, "response_tokens": 12.34,
    "a/pass@1": 0.5, "a/pass@1_low": 0.3, "a/pass@1_high": 0.7, "b/pass@1": 0.0, "b/pass@1_low": 0.0,
    "b/pass@1_high": 0.0, "accuracy_timeouts": 2.0,
}  # fmt: skip


def test_the_table_has_a_column_for_each_source():
    assert table(FIGURES) == [
        ["figure", "all", "a", "b"],
        ["greedy_accuracy", "0.500", "–", "–"],
        ["pass@1", "0.250 [0.100, 0.400]", "0.500 [0.300, 0.700]", "0.000 [0.000, 0.000]"],
        ["response_tokens", "12.3", "–", "–"],
        ["accuracy_timeouts", "2.000", "–", "–"],
    ]
    assert table({"pass@1": 1.0}) == [["figure", "value"], ["pass@1", "1.000"]]
    text = markdown("x on y", {"samples": 8, "temperature": 0.6}, FIGURES)
    assert text.startswith("# x on y\n\nsamples 8, temperature 0.6\n\n| figure ")
    assert len({len(line) for line in text.splitlines() if line.startswith("|")}) == 1
    assert show("chat_low", {"chat_low": 0.5}) == "0.500"


@pytest.mark.parametrize(
    "groups",
    [
        [group(1, 0), group(None, 1)],
        [[sample(accuracy=0.0, tokens=0)]],  # an empty output
        [[sample(tokens=7, finished=False)] * 3],  # nothing judged, all cut off
        [[sample(accuracy=1.0, tokens=32768, finished=False)]],
    ],
)
def test_any_outputs_can_be_drawn_and_the_same_ones_alike(groups, tmp_path):
    answers = [[str(s.rewards["accuracy"]) for s in g] for g in groups]
    figures = outcomes(groups, answers, 1) | lengths(groups)
    first, second = (svg_text(plot("t", figures, groups, 7)) for _ in range(2))
    assert first == second and first.startswith("<svg")
    assert svg_text(plot("t", lengths(groups), groups, 7)).startswith("<svg")  # without an outcome
    config = evaluate_config(slots=8, num_prompts=2, samples_per_prompt=1, max_prompt_tokens=2, max_new_tokens=7, k=1)
    write_evaluation(epath.Path(tmp_path), "t", config, figures, groups)
    assert json.loads((tmp_path / "evaluation.json").read_text())["figures"] == figures


# ---- a model


@pytest.fixture(scope="module")
def imported(tmp_path_factory, model):
    """A tiny imported model; its tokenizer knows the demo's words, and any other as <pad>."""
    home = tmp_path_factory.mktemp("imported")
    make_checkpoint(home / "ours", dataclasses.replace(model, experts="grouped"))
    export(home / "ours", home / "hf")
    for file in publish_words(epath.Path(home / "words"), "<bos>", "<eos>").iterdir():
        file.copy(epath.Path(home / "hf") / file.name)
    import_(home / "hf", home / "base")
    rows = [json.dumps({"question": q, "answer": a}) for q, a in QUESTIONS]
    (home / "gsm8k.jsonl").write_text("\n".join(rows) + "\n")
    return home


def test_figures_by_source_add_up(imported, one_device):
    """Verdicts by what was drawn, so that neither source is all right or all wrong."""
    policy = load_policy(epath.Path(imported / "base"), one_device)
    file = Source("gsm8k", file=JsonlConfig(str(imported / "gsm8k.jsonl"), answer_form="hashes"))
    task = text_task("mixed", epath.Path(imported / "base" / "tokenizer"), Source("countdown").problems)
    mixed = itertools.chain(file.problems("test", 0), task.held_out(5, 0))
    problems = [dataclasses.replace(p, id=place) for place, p in enumerate(mixed)]
    verdicts = {
        "gsm8k": lambda s: float(s.response_tokens[0] % 2),
        "countdown": lambda s: float(s.response_tokens[0] % 3 == 0),
    }
    rewards = {"accuracy": by_source(verdicts, 1.0), "format": Reward(format_reward, 0.0)}
    config = evaluate_config(
        slots=16, num_prompts=7, samples_per_prompt=4, max_prompt_tokens=200, max_new_tokens=6, k=4,
        temperature=0.6, top_p=0.95,
    )  # fmt: skip
    figures, groups = measure(policy, config, task, rewards, problems, 0, Progress(quiet=True).start("", 0, 1))
    assert [g[0].problem for g in groups] == problems
    of = {s: [g for g in groups if g[0].problem.source == s] for s in verdicts}
    assert [len(of[s]) for s in verdicts] == [2, 5]
    for source, some in of.items():
        right = [sum(verdicts[source](s) for s in g) for g in some]
        assert figures[f"{source}/pass@1"] == pytest.approx(fmean(right) / 4)
        assert figures[f"{source}/pass@4"] == fmean(r > 0 for r in right)
        assert figures[f"{source}/response_tokens"] == fmean(len(s.response_tokens) for g in some for s in g)
    for name in ("pass@1", "pass@2", "pass@4", "greedy_accuracy", "response_tokens", "truncated", "cons@4"):
        by_hand = (2 * figures[f"gsm8k/{name}"] + 5 * figures[f"countdown/{name}"]) / 7
        assert figures[name] == pytest.approx(by_hand), name
    assert 0 < figures["pass@1"] < 1
    alone, _ = measure(policy, config, task, rewards, problems[:2], 0, Progress(quiet=True).start("", 0, 1))
    assert not any("/" in name for name in alone)
    assert alone["pass@1"] == figures["gsm8k/pass@1"]  # whatever is asked beside it


def test_problems_without_an_outcome_have_the_other_figures(imported, one_device):
    policy = load_policy(epath.Path(imported / "base"), one_device)
    task = text_task("countdown", epath.Path(imported / "base" / "tokenizer"))
    rewards = {"accuracy": Reward(accuracy_reward, 1.0, ("sums",)), "format": Reward(format_reward, 0.0)}
    config = evaluate_config(slots=8, num_prompts=2, samples_per_prompt=2, max_prompt_tokens=200, max_new_tokens=2, k=2)
    figures, _ = measure(policy, config, task, rewards, task.held_out(2, 0), 0, Progress(quiet=True).start("", 0, 1))
    assert figures["format"] == 0 and not any("pass@" in name for name in figures)


def evaluate(capsys, *arguments: str) -> tuple[int, str, str]:
    try:
        status = main(["eval", *arguments])
    except SystemExit as end:  # argparse
        status = int(end.code or 0)
    out, err = capsys.readouterr()
    return status, out, err


GYM = pytest.param(
    "reasoning_gym:chain_sum",
    marks=pytest.mark.skipif(not find_spec("reasoning_gym"), reason="needs reasoning-gym: requirements-gym.txt"),
)


@pytest.mark.parametrize("task", ["countdown", "gsm8k", GYM])
def test_eval_of_an_import(task, imported, tmp_path, capsys):
    """By the protocol, twice; hostile: a random model, whose outputs have no answer, most of them cut off."""
    base, file = str(imported / "base"), ["--file", str(imported / "gsm8k.jsonl")] if task == "gsm8k" else []
    arguments = [base, "--task", task, *file, "--problems", "3", "--samples", "4", "--max_tokens", "5"]
    (status, out, err), again = (evaluate(capsys, *arguments, "--out", str(tmp_path / n)) for n in "ab")
    assert (status, again[1]) == (0, out), err
    figures = json.loads(out.splitlines()[-1])
    assert (figures["checkpoint"], figures["task"]) == (base, task)
    assert figures["pass@1"] == figures["pass@2"] == figures["pass@4"] == figures["cons@4"] == figures["format"] == 0
    problems = 2 if task == "gsm8k" else 3  # all that the file has
    assert figures["pass@1_low"] == 0 and figures["pass@1_high"] == pytest.approx(3.841459 / (problems + 3.841459))
    assert 0 < figures["truncated"] <= 1 and 0 < figures["response_tokens"] <= 5
    assert "pass@8" not in figures and "│ pass@4 " in out
    names = ["evaluation.json", "evaluation.md", "evaluation.svg", "samples.jsonl"]
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == names
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    protocol = json.loads((tmp_path / "a" / "evaluation.json").read_text())["protocol"]
    assert (protocol["temperature"], protocol["top_p"], protocol["samples"]) == (0.6, 0.95, 4)
    assert protocol["problems"] == problems
    questions = {json.loads(line)["problem"]["question"] for line in (tmp_path / "a/samples.jsonl").open()}
    assert task != "gsm8k" or questions == {q for q, _ in QUESTIONS}


def test_what_does_not_fit_is_one_line(imported, model, policy, one_device, tmp_path, capsys):
    base, words, file = str(imported / "base"), str(tmp_path / "words"), str(imported / "gsm8k.jsonl")
    save_policy(epath.Path(words), model, policy, "running_sum")
    (tmp_path / "bad.jsonl").write_text('{"problem": "p"}\n')
    make_checkpoint(tmp_path / "bare", load_policy(epath.Path(base), one_device).model)
    for arguments, named in (
        ([base, "--task", "gsm8k"], "--file"),
        ([base, "--task", "gsm8k", "--file", "nowhere.jsonl"], "nowhere.jsonl"),
        ([base, "--task", "math", "--file", file], "'problem'"),
        ([base, "--task", "gsm8k", "--file", str(tmp_path / "bad.jsonl")], "bad.jsonl, line 1"),
        ([base, "--task", "countdown", "--file", file], "--file"),
        ([base, "--task", "chess"], "--task is 'chess'"),
        ([base, "--task", "reasoning_gym:chess"], "reasoning-gym"),
        ([base, "--task", "reasoning_gym:gcd", "--file", file], "--file"),
        ([base, "--task", "running_sum"], "--task running_sum"),
        ([words, "--task", "countdown"], "--task countdown"),
        ([str(tmp_path / "bare"), "--task", "countdown"], "tokenizer"),
        ([base, "--task", "countdown", "--k", "9", "--samples", "4"], "--k"),
        ([base, "--task", "countdown", "--out", file], "--out"),
        ([base, "--task", "countdown", "--max_tokens", "999999"], "max_position_embeddings"),
    ):
        status, _, err = evaluate(capsys, *arguments)
        lines = [line for line in err.splitlines() if line.startswith("r1jax: ")]
        assert (status, len(lines)) == (2, 1), (arguments, err)
        assert named in err, (arguments, err)


def test_top_p_of_an_evaluation_is_its_own():
    """The protocol's, in the scope of the evaluation: RL draws from the whole distribution."""
    files = ("model/deepseek_v2_lite.gin", "algorithm/r1.gin", "scale/r1_zero_16b.gin")
    config = read_config(load_experiment("r1_zero").Config, [gin_path(file) for file in files], [])
    assert (config.evaluate.sampling.temperature, config.evaluate.sampling.top_p) == (0.6, 0.95)
    assert (config.rl.sampling.temperature, config.rl.sampling.top_p) == (1.0, 1.0)
    with pytest.raises(ValueError, match="top_p"):
        change(config.evaluate, top_p=0.0)


def test_a_tokenizer_of_words_says_which_text_it_cannot_encode(tmp_path):
    from r1jax.data.published_tokenizer import load_tokenizer
    from r1jax.data.toy.running_sum import TOKENIZER

    TOKENIZER.save(epath.Path(tmp_path))
    with pytest.raises(UsageError, match="'what is love'"):
        load_tokenizer(epath.Path(tmp_path)).encode("what is love")
