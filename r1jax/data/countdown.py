"""Countdown: reach a target with given numbers, each used once. Many equations are right, so a program has to check.

A target is what a random expression over the numbers comes to. Every step of that expression is a positive integer:
there is always a solution without fractions, though others may have them.
"""

import json
import random
import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass

from r1jax.types import Problem

SIZES = (3, 4)  # how many numbers there are
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
        """A sixteenth of all puzzles, by hash; the order of the numbers makes no other puzzle."""
        return zlib.crc32(str((sorted(self.numbers), self.target)).encode()) % 16 == 0


def combine(rng: random.Random, numbers: list[int]) -> int:
    """What a random expression over all the numbers comes to."""
    left = list(numbers)
    while len(left) > 1:
        a, b = (left.pop(rng.randrange(len(left))) for _ in range(2))
        results = [a + b, a * b]
        if a > b:
            results.append(a - b)
        if a % b == 0:
            results.append(a // b)
        left.append(rng.choice(results))
    return left[0]


def draw_puzzle(rng: random.Random, *, held_out: bool) -> Puzzle:
    while True:
        numbers = [rng.randint(1, LARGEST_NUMBER) for _ in range(rng.choice(SIZES))]
        drawn = Puzzle(numbers, combine(rng, numbers))
        if drawn.target <= LARGEST_TARGET and drawn.is_held_out() == held_out:
            return drawn


def problems(split: str, seed: int) -> Iterator[Problem]:
    """An endless stream of puzzles, the answer as JSON. 'test' draws held-out ones only, 'train' none of them."""
    rng = random.Random(f"countdown-{split}-{seed}")
    index = 0
    while True:
        drawn = asdict(draw_puzzle(rng, held_out=split == "test"))
        yield Problem(index, QUESTION.format(**drawn), json.dumps(drawn), "en", "countdown")
        index += 1
