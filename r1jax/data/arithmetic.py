"""Easy problems for a small published model: products, the largest of four numbers, bags of things, things left."""

import random
import zlib
from collections.abc import Iterator

from r1jax.types import Problem

NAMES = "Anna Ben Carla David Emma Felix Grace Hugo".split()
THINGS = "apples balls books cards cups eggs keys nuts pens shells stamps stones".split()
HELD_OUT = 16  # one question in so many is in the test split


def product(rng: random.Random) -> tuple[str, int]:
    a, b = rng.randint(2, 9), rng.randint(2, 9)
    words = ("What is {} times {}?", "What is {} * {}?", "Multiply {} by {}.", "What is the product of {} and {}?")
    return rng.choice(words).format(a, b), a * b


def largest(rng: random.Random) -> tuple[str, int]:
    numbers = rng.sample(range(1, 100), 4)
    return "Which of the numbers {}, {}, {} and {} is the largest?".format(*numbers), max(numbers)


def bags(rng: random.Random) -> tuple[str, int]:
    a, b, things = rng.randint(2, 9), rng.randint(2, 9), rng.choice(THINGS)
    return f"There are {a} bags with {b} {things} in each bag. How many {things} are there in all?", a * b


def left(rng: random.Random) -> tuple[str, int]:
    a, name, things = rng.randint(5, 20), rng.choice(NAMES), rng.choice(THINGS)
    b = rng.randint(1, a - 1)
    return f"{name} has {a} {things} and gives away {b} of them. How many {things} are left?", a - b


KINDS = (product, largest, bags, left)


def problems(split: str, seed: int) -> Iterator[Problem]:
    """An endless stream of all kinds. Split 'test' has all the held-out questions and no others; none is repeated."""
    rng, seen = random.Random(f"arithmetic-{split}-{seed}"), set[str]()
    while True:
        question, answer = rng.choice(KINDS)(rng)
        is_held_out = zlib.crc32(question.encode()) % HELD_OUT == 0
        if is_held_out == (split == "test") and question not in seen:
            yield Problem(len(seen), question, str(answer), "en", "arithmetic")
            seen.add(question)
