"""The arithmetic that a small published model is trained on."""

import itertools
import re

from r1jax.data.arithmetic import problems

COUNT = 400


def solve(question: str) -> int:
    numbers = [int(digits) for digits in re.findall("[0-9]+", question)]
    if "largest" in question:
        return max(numbers)
    return numbers[0] - numbers[1] if "left" in question else numbers[0] * numbers[1]


def test_answers_are_right_and_no_question_is_held_out_and_trained_on():
    splits = {split: list(itertools.islice(problems(split, 0), COUNT)) for split in ("train", "test")}
    asked = {split: {problem.question for problem in drawn} for split, drawn in splits.items()}
    assert [len(questions) for questions in asked.values()] == [COUNT, COUNT]
    assert not asked["train"] & asked["test"]
    for drawn in splits.values():
        assert [problem.id for problem in drawn] == list(range(COUNT))
        assert all(problem.answer == str(solve(problem.question)) for problem in drawn)
    again, other = (list(itertools.islice(problems("train", seed), COUNT)) for seed in (0, 1))
    assert again == splits["train"] != other
