"""Every reward on noise: finite or None, without exceptions, in bounded time."""

import ast
import json
import math
import time
import timeit
from collections.abc import Callable
from importlib.util import find_spec

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from r1jax.data.gym_draws import answer_text, draw
from r1jax.data.toy.running_sum import LANGUAGES
from r1jax.rewards import rules
from r1jax.rewards.code import CodeReward, extract_program
from r1jax.rewards.countdown import countdown_reward, read_expression
from r1jax.rewards.mathematics import MathVerifier, extract_answer, last_number_reward
from r1jax.rewards.reasoning_gym import ReasoningGymVerifier
from r1jax.rewards.sandbox import Limits, Sandbox
from r1jax.rewards.unicode_scripts import script_consistency_reward
from r1jax.types import Problem, Sample
from tests.conftest import ROOT
from tests.shared.samples import make_sample

EXAMPLES = 10_000
SECONDS = 1.0  # of thread time for one text, far more than any needs

PLAIN: dict[str, Callable[[Sample], float | None]] = {
    "format_reward": rules.format_reward,
    "accuracy_reward": rules.accuracy_reward,
    "language_consistency_reward": rules.language_consistency_reward(LANGUAGES),
    "language_mix_reward": rules.language_mix_reward(LANGUAGES),
    "length_penalty": rules.length_penalty(10, 100),
    "repetition_penalty": rules.repetition_penalty(3),
    "script_consistency_reward": script_consistency_reward(),
    "countdown_reward": countdown_reward,
    "last_number_reward": last_number_reward,
    "environment_reward": rules.environment_reward,
}
READERS = {"read_answer": rules.read_answer, "read_expression": read_expression}  # for majority votes
VERIFIERS = {"MathVerifier", "CodeReward", "ReasoningGymVerifier"}  # tested below, since they start processes
ANSWERS = dict.fromkeys(PLAIN, "16") | {"countdown_reward": json.dumps({"numbers": [3, 5, 2], "target": 16})}
GOLDS = ["42", r"\frac{1}{2}", r"\sqrt{2}", "[1, 2)", r"\{1, 2\}", "x + 1", "B", "50%"]
TESTS = json.dumps({"inputs": ["41\n"], "outputs": ["42\n"]})

PIECES = [
    "<think>", "</think>", "<answer>", "</answer>", "<think> x </think> <answer>", r"\boxed{", r"\fbox", "}", "{",
    "####", "```python\n", "\n```\n", "```", "`", "print(42)", "42", "16", "3", "5", "2", "1/2", "3.5", "9**9**9**9",
    "0", "(", ")", "[", "]", "+", "-", "*", "/", "//", "**", "^", "^{", "!", "=", ".", ",", " ", "\n", "\t", "\\", "$",
    "%", "&", "_", "#", "~", "'", '"', "|", "<", ">", r"\frac", r"\frac{1}{2}", r"\sqrt", r"\text{", r"\left", r"\pm",
    r"\infty", r"\cup", r"\begin{pmatrix}", "or", "x", "cm", "A or B or C", "__import__('os')", "lambda: 0", "start",
    "empieza", "因为", "アー", "더하면", "да", "а", "e\u0301", "\x00", "\u200b", "\u202e", "\ud800", "\U000e0001", "𝟚",
    "٢", "½", "²", "ß", "ı", "√", "－", "１", "🙂", "\ufdfa", "\u0344",
]  # fmt: skip
NOISE = st.one_of(
    st.text(max_size=40),
    st.lists(st.sampled_from(PIECES), max_size=16).map("".join),
    st.lists(st.one_of(st.sampled_from(PIECES), st.text(max_size=4)), max_size=12).map("".join),
    st.tuples(st.sampled_from(PIECES), st.integers(1, 300)).map(lambda pair: pair[0] * pair[1]),
    st.text(alphabet="352+-*/() ", max_size=24),
)
TEXTS = st.one_of(
    NOISE,
    NOISE.map(lambda noise: f"<think> x </think> <answer> {noise} </answer>"),
    NOISE.map(lambda noise: f"<think> {noise} </think> <answer> 16 </answer>"),
    NOISE.map(lambda noise: rf"\boxed{{{noise}}}"),
)

often = settings(
    max_examples=EXAMPLES, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)


def sample(text: str, answer: str) -> Sample:
    return make_sample(Problem(0, "q", answer, "en"), text, text.encode("utf-8", "surrogatepass"))


def timed(function: Callable, argument):
    """What it returns within SECONDS. `timeit` keeps Python from collecting other tests' garbage meanwhile."""
    values: list = []
    assert timeit.timeit(lambda: values.append(function(argument)), number=1, timer=time.thread_time) < SECONDS
    return values[0]


def check(name: str, text: str) -> None:
    value = timed(PLAIN[name], sample(text, ANSWERS[name]))
    assert value is None or math.isfinite(value), name
    assert value is None or (-1 <= value <= 0 if name.endswith("penalty") else 0 <= value <= 1), name


@often
@given(text=TEXTS)
@pytest.mark.slow
def test_plain_rewards(text):
    for name in PLAIN:
        check(name, text)
    for read in READERS.values():
        assert read(sample(text, "16")) != ""
    for extract in (extract_program, extract_answer):
        extracted = extract(text)
        assert extracted is None or extracted


@pytest.mark.parametrize("name", PLAIN)
def test_plain_rewards_on_long_texts(name):
    """No repeated piece makes a reward slow."""
    for piece in PIECES:
        for text in (piece * 10_000, f"<think> x </think> <answer> {piece * 10_000} </answer>"):
            check(name, text)


def test_extraction_from_long_texts():
    for piece in PIECES:
        for text in (piece * 10_000, f"<think> x </think> <answer> {piece * 10_000} </answer>"):
            timed(extract_program, text), timed(extract_answer, text)


def draw_texts(number: int) -> list[str]:
    """Texts for verifiers, which grade many at once."""
    texts: list[str] = []
    settings(often, max_examples=number)(given(text=TEXTS)(lambda text: texts.append(text)))()
    assert len(texts) >= number
    return texts


NUMBERS = [1000, pytest.param(EXAMPLES, marks=pytest.mark.slow)]


@pytest.mark.parametrize("number", NUMBERS)
def test_mathematics(number):
    """Each comparison ends by itself, or is killed and counted."""
    texts = draw_texts(number)
    with MathVerifier(processes=2, seconds=20.0) as verifier:
        for first in range(0, number, 250):
            samples = [sample(text, GOLDS[i % len(GOLDS)]) for i, text in enumerate(texts[first : first + 250])]
            assert set(verifier.grade(samples)) <= {0.0, 1.0, None}
            assert "" not in map(verifier.answer, samples)
        assert verifier.failures.total() <= number / 1000
        assert verifier.grade([sample(texts[0], "42")])[0] in (0.0, 1.0)


@pytest.mark.skipif(not find_spec("reasoning_gym"), reason="needs reasoning-gym: requirements-gym.txt")
@pytest.mark.parametrize("number", NUMBERS)
def test_reasoning_gym(number):
    """Verifiers that evaluate the answer, that read it as numbers, or that raise for most texts."""
    texts = draw_texts(number)
    names = ("spiral_matrix", "polynomial_multiplication", "chain_sum", "prime_factorization")
    problems = [
        Problem(0, entry["question"], answer_text(name, {}, entry), "en")
        for name in names
        for entry in [next(draw(name, {}, "train", 0))]
    ]
    samples = [make_sample(problems[i % len(names)], text) for i, text in enumerate(texts)]
    with ReasoningGymVerifier(processes=2, seconds=20.0, extract=lambda text: text) as verifier:
        scores = verifier.grade(samples)
        assert all(score is None or 0 <= score <= 1 for score in scores)
        assert verifier.failures.total() <= number / 100


@pytest.mark.parametrize("number", NUMBERS)
def test_code(number):
    """Extracts a program from every text, and runs one in ten of them, or all with 10,000 texts."""
    limits = Limits(cpu_seconds=1, wall_seconds=2.0, memory_bytes=256 << 20, output_bytes=1 << 16, threads=8)
    reward = CodeReward(Sandbox(limits, allow_weaker=True), workers=2)
    texts = draw_texts(number)
    runnable = [text for text in texts if extract_program(text) is not None]
    idle = [text for text in texts if extract_program(text) is None]
    assert reward.grade([sample(text, TESTS) for text in idle]) == [0.0] * len(idle)
    chosen = runnable if number == EXAMPLES else runnable[::10]
    assert set(reward.grade([sample(text, TESTS) for text in chosen])) <= {0.0, 1.0}
    assert reward.failures.total() == 0 and len(chosen) > 20, reward.last_failure


def is_reward(node: ast.stmt) -> bool:
    """Whether the node is a public function of a sample, a maker of such functions, or a class with `grade`."""
    if isinstance(node, ast.ClassDef):
        return any(isinstance(part, ast.FunctionDef) and part.name == "grade" for part in node.body)
    if not isinstance(node, ast.FunctionDef) or node.name.startswith("_"):
        return False
    takes = [ast.unparse(a.annotation) for a in node.args.args if a.annotation]
    gives = ast.unparse(node.returns) if node.returns else ""
    return takes == ["Sample"] or gives.startswith(("RewardFunction", "Callable[[Sample]"))


def test_every_reward_is_fuzzed():
    files = sorted(ROOT.glob("r1jax/rewards/*.py"))
    found = {node.name for file in files for node in ast.parse(file.read_text()).body if is_reward(node)}
    assert found - {"Reward", "Grader", "BySource"} == PLAIN.keys() | READERS.keys() | VERIFIERS  # which hold rewards
