"""Easy problems for a small published model: products, the largest of four numbers, bags of things, things left."""

import random
import re
import zlib
from collections.abc import Iterator

from r1jax.types import Problem

NAMES = "Anna Ben Carla David Emma Felix Grace Hugo".split()
THINGS = "apples balls books cards cups eggs keys nuts pens shells stamps stones".split()


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


def is_held_out(question: str) -> bool:
    """Whether a question is in the test split: one in sixteen, by its numbers, whatever their order and the words."""
    numbers = sorted(int(digits) for digits in re.findall("[0-9]+", question))
    return zlib.crc32(str(numbers).encode()) % 16 == 0


def problems(split: str, seed: int) -> Iterator[Problem]:
    """An endless stream of all kinds. Split 'test' has all the held-out questions, each once, and no others."""
    rng, asked = random.Random(f"arithmetic-{split}-{seed}"), set[str]()
    place = 0
    while True:
        question, answer = rng.choice(KINDS)(rng)
        if is_held_out(question) != (split == "test") or question in asked:
            continue
        if split == "test":  # or an evaluation would count the few products again and again
            asked.add(question)
        yield Problem(place, question, str(answer), "en", "arithmetic")
        place += 1
