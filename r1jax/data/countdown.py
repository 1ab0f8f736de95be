"""Countdown: reach a target with the given numbers, each used once. Many equations solve one puzzle.

The target is the value of a random expression over the numbers, whose intermediate results are all positive integers.
Every puzzle therefore has a solution without fractions; other solutions may use them.
"""

import itertools
import json
import random
import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass

from r1jax.types import Problem

SIZES = (3, 4)  # numbers in a puzzle
LARGEST_NUMBER = 99
LARGEST_TARGET = 100
QUESTION = (
    "Using the numbers {numbers}, create an equation that equals {target}. You can use basic arithmetic operations"
    " (+, -, *, /) and parentheses, and each number must be used exactly once. Answer with the side of the equation"
    " that has the numbers, for example (1 + 2) / 3."
)


@dataclass(frozen=True)
class Puzzle:
    numbers: list[int]
    target: int

    def is_held_out(self) -> bool:
        """Whether the puzzle is in the test split: one in sixteen, by hash, whatever the order of its numbers."""
        return zlib.crc32(str((sorted(self.numbers), self.target)).encode()) % 16 == 0


def draw_target(rng: random.Random, numbers: list[int]) -> int:
    """The value of a random expression that uses each number once."""
    remaining = list(numbers)
    while len(remaining) > 1:
        a, b = (remaining.pop(rng.randrange(len(remaining))) for _ in range(2))
        results = [a + b, a * b]
        if a > b:
            results.append(a - b)
        if a % b == 0:
            results.append(a // b)
        remaining.append(rng.choice(results))
    return remaining[0]


def draw_puzzle(rng: random.Random, *, held_out: bool) -> Puzzle:
    while True:
        numbers = [rng.randint(1, LARGEST_NUMBER) for _ in range(rng.choice(SIZES))]
        drawn = Puzzle(numbers, draw_target(rng, numbers))
        if drawn.target <= LARGEST_TARGET and drawn.is_held_out() == held_out:
            return drawn


def problems(split: str, seed: int) -> Iterator[Problem]:
    """An endless stream of puzzles, the answer as JSON. Split 'test' has all the held-out puzzles and no others."""
    rng = random.Random(f"countdown-{split}-{seed}")
    for index in itertools.count():
        drawn = asdict(draw_puzzle(rng, held_out=split == "test"))
        yield Problem(index, QUESTION.format(**drawn), json.dumps(drawn), "en", "countdown")
