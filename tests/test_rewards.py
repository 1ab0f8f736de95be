"""One table for each reward, the hostile rows included."""

import random

import pytest

from r1jax.data.running_sum import LANGUAGES
from r1jax.rewards import rules
from r1jax.rewards.mathematics import MathVerifier
from r1jax.rollout.engine import Output
from r1jax.stages.grading import grade_outputs
from r1jax.telemetry.statistics import summarize
from r1jax.types import Problem, Sample

PROBLEM = Problem(0, "compute 3 #a - 1", "2", "en")


def sample(response: str) -> Sample:
    return Sample(PROBLEM, response, [1], True, {})


GOOD = "<think> start 3 #a minus 1 gives 2 </think> <answer> 2 </answer>"

TABLE = [  # response, format, accuracy
    (GOOD, 1, 1),
    ("<think> </think> <answer> 2 </answer>", 1, 1),
    ("<think>no spaces</think><answer>2</answer>", 1, 1),
    ("<think> x </think> <answer> +02 </answer>", 1, 1),
    ("<think> x </think> <answer> 3 </answer>", 1, 0),
    ("<think> x </think> <answer> 2 or 3 </answer>", 1, 0),
    ("<think> x </think> <answer> 2 2 </answer>", 1, 0),
    ("<think> x </think> <answer> 12 </answer>", 1, 0),
    ("<think> x </think> <answer> two </answer>", 1, 0),
    ("<think> x </think> <answer> 1+1 </answer>", 1, 0),
    ("<think> x </think> <answer> __import__('os') </answer>", 1, 0),
    ("<think> x </think> <answer> " + "9" * 5000 + " </answer>", 1, 0),
    ("<think> x </think> <answer> ٢ </answer>", 1, 0),  # a digit two that is not ASCII
    ("<think> x </think> <answer> </answer>", 0, 0),
    ("", 0, 0),
    ("2", 0, 0),
    ("so the answer is 2 .", 0, 0),
    ("<answer> 2 </answer>", 0, 0),
    ("<answer> 2 </answer> <think> x </think>", 0, 0),
    ("<think> x <answer> 2 </answer>", 0, 0),
    ("<think> x </think> <answer> 2", 0, 0),
    ("<think> x </think> 2 <answer> 2 </answer>", 0, 0),
    (GOOD + " so 2", 0, 0),
    ("well " + GOOD, 0, 0),
    (GOOD + " " + GOOD, 0, 0),
    ("<think> <think> x </think> <answer> 2 </answer>", 0, 0),
    ("<think> x </think> <answer> 3 </answer> <answer> 2 </answer>", 0, 0),
    ("<think> <answer> 2 </answer> </think> <answer> 3 </answer>", 0, 0),
    ("<THINK> x </THINK> <ANSWER> 2 </ANSWER>", 0, 0),
]


@pytest.mark.parametrize(("response", "form", "accuracy"), TABLE)
def test_format_and_accuracy(response, form, accuracy):
    assert rules.format_reward(sample(response)) == form
    assert rules.accuracy_reward(sample(response)) == accuracy


@pytest.mark.parametrize(
    ("response", "consistency", "mixed"),
    [
        (GOOD, 1.0, 0),
        ("<think> empieza 3 #a menos 1 da 2 </think> <answer> 2 </answer>", 0.0, 0),
        ("<think> start 3 #a menos 1 da 2 </think> <answer> 2 </answer>", 1 / 3, 1),
        ("<think> 3 2 </think> <answer> 2 </answer>", 0.0, 0),
        ("", 0.0, 0),
        ("start menos", 0.5, 1),  # without tags, all of the response counts as thinking
        ("<think> start </think> <answer> menos </answer>", 1.0, 0),  # the answer does not
    ],
)
def test_languages(response, consistency, mixed):
    assert rules.language_consistency_reward(LANGUAGES)(sample(response)) == pytest.approx(consistency)
    assert rules.language_mix_reward(LANGUAGES)(sample(response)) == mixed


def test_the_languages_share_no_word():
    assert not LANGUAGES["en"] & LANGUAGES["es"]


def test_rewards_are_bounded_and_never_raise_on_noise():
    rng = random.Random(0)
    pieces = ["<think>", "</think>", "<answer>", "</answer>", "2", " ", "\n", "start", "da", "\\", "(", "\x00", "𝟚"]
    functions = [rules.format_reward, rules.accuracy_reward, rules.language_consistency_reward(LANGUAGES)]
    for _ in range(3000):
        text = "".join(rng.choices(pieces, k=rng.randint(0, 12)))
        values = [f(sample(text)) for f in functions]
        assert all(0 <= v <= 1 for v in values), text
        assert values[1] <= values[0], f"right without the form: {text!r}"


def test_total_weighs_and_watching_costs_nothing():
    rewards = {
        "accuracy": rules.Reward(rules.accuracy_reward, 1.0),
        "format": rules.Reward(rules.format_reward, 0.2),
        "watched": rules.Reward(lambda sample: 5.0, 0.0),
    }
    good, bad = rules.grade(rewards, [sample(GOOD), sample("2")])
    assert rules.total(rewards, good.rewards) == pytest.approx(1.2)
    assert rules.total(rewards, bad.rewards) == 0


def test_what_does_not_apply_adds_nothing_and_is_in_no_mean():
    rewards = {"accuracy": rules.Reward(rules.accuracy_reward, 1.0), "other": rules.Reward(lambda sample: None, 3.0)}
    graded = rules.grade(rewards, [sample(GOOD), sample("2")])
    assert graded[0].rewards == {"accuracy": 1.0, "other": None}
    assert [rules.total(rewards, s.rewards) for s in graded] == [1.0, 0.0]
    assert summarize([graded]) == {"accuracy": 0.5, "response_tokens": 1, "finished": 1}


def test_a_grader_sees_all_samples_of_a_step_at_once():
    """math-verify's processes work side by side; its reward is used as any other."""
    problems = [Problem(i, "q", gold, "en") for i, gold in enumerate([r"\frac{1}{2}", "x + 1"])]
    texts = [[r"\boxed{0.5}", r"\boxed{2}"], [r"<answer> 1 + x </answer>", "no answer"]]
    outputs = [[Output(i, g, text=text, tokens=[1]) for g, text in enumerate(group)] for i, group in enumerate(texts)]
    with MathVerifier(processes=2) as verifier:
        groups = grade_outputs(problems, outputs, {"accuracy": rules.Reward(verifier, 1.0)})
        assert (verifier.workers.timeouts, verifier.workers.crashes) == (0, 0)
    assert [[s.rewards["accuracy"] for s in group] for group in groups] == [[1, 0], [1, 0]]
