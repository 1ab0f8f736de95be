"""Rewards by the verifiers of reasoning-gym (arXiv 2505.24760), for problems of `data/reasoning_gym.py`.

`problem.answer` is what a verifier needs besides the question, as a Python literal:

    {"dataset": "chain_sum", "settings": {"max_terms": 3}, "answer": "7", "metadata": {…}}
"""

import ast
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from importlib.util import find_spec

from r1jax.errors import UsageError
from r1jax.rewards.rules import parse_answer
from r1jax.rewards.workers import Workers
from r1jax.types import Problem, Sample

MAX_LENGTH = 10_000  # characters of an answer; the largest are grids
FIELDS = {"dataset", "settings", "answer", "metadata"}


class ReasoningGymVerifier(AbstractContextManager):
    """Scores answers in a pool of processes, with `seconds` for each; leaving its context ends them.

    `extract` finds the answer in a response, None without one. Raises UsageError without the library.
    """

    def __init__(self, processes: int = 2, seconds: float = 10.0, extract: Callable[[str], str | None] = parse_answer):
        if find_spec("reasoning_gym") is None:
            raise UsageError("ReasoningGymVerifier needs reasoning-gym: pip install reasoning-gym")
        self.workers = Workers("r1jax.rewards.gym_scores:score", processes, seconds)
        self.extract = extract

    def answer(self, sample: Sample) -> str | None:
        """The text that is scored; None when there is none, or it is longer than MAX_LENGTH."""
        answer = self.extract(sample.text)
        return answer if answer and len(answer) <= MAX_LENGTH else None

    def grade(self, samples: Sequence[Sample]) -> list[float | None]:
        """The verifier's score in [0, 1]; 0 without an answer and for one that makes it fail; None if it always does.

        Raises UsageError for a problem that is not of reasoning-gym.
        """
        for problem in {id(sample.problem): sample.problem for sample in samples}.values():
            check(problem)
        answers = [(s.problem.question, s.problem.answer, self.answer(s)) for s in samples]
        distinct = list(dict.fromkeys(item for item in answers if item[2] is not None))  # a group's samples often agree
        good = [(question, about, ast.literal_eval(about)["answer"]) for question, about, _ in distinct]
        scores = dict(zip(distinct, self.workers.verdicts(distinct, good), strict=True))
        return [0.0 if item[2] is None else scores[item] for item in answers]

    @property
    def failures(self) -> Counter[str]:
        """Answers whose verifier exceeded its time or crashed."""
        return Counter(timeouts=self.workers.timeouts, crashes=self.workers.crashes)

    def __exit__(self, *exception: object) -> None:
        self.workers.close()


def check(problem: Problem) -> None:
    """Raises UsageError when `problem.answer` is not of reasoning-gym."""
    try:
        if ast.literal_eval(problem.answer).keys() == FIELDS:
            return
    except (ValueError, SyntaxError, AttributeError, MemoryError, RecursionError):
        pass
    raise UsageError(
        f"problem {problem.id}: Problem.answer is {problem.answer[:100]!r}, expected that of a source with a gym: set"
        " Reward.sources"
    )
