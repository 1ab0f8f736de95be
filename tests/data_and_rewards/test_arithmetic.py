"""The arithmetic that a small published model is trained on."""

import itertools
import re

from r1jax.data.arithmetic import problems

COUNT = 400


def numbers(question: str) -> tuple[int, ...]:
    return tuple(sorted(int(digits) for digits in re.findall("[0-9]+", question)))


def solve(question: str) -> int:
    given = [int(digits) for digits in re.findall("[0-9]+", question)]
    if "largest" in question:
        return max(given)
    return given[0] - given[1] if "left" in question else given[0] * given[1]


def test_answers_are_right_and_no_numbers_are_held_out_and_trained_on():
    splits = {split: list(itertools.islice(problems(split, 0), COUNT)) for split in ("train", "test")}
    assert len({problem.question for problem in splits["test"]}) == COUNT
    train, test = ({numbers(problem.question) for problem in drawn} for drawn in splits.values())
    assert not train & test  # in other words or another order they would be the same problem
    for drawn in splits.values():
        assert [problem.id for problem in drawn] == list(range(COUNT))
        assert all(problem.answer == str(solve(problem.question)) for problem in drawn)
    again, other = (list(itertools.islice(problems("train", seed), COUNT)) for seed in (0, 1))
    assert again == splits["train"] != other
