"""Sources of problems: this project's generators, by name, those of reasoning-gym, and files."""

import itertools
import random
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from r1jax.config import JsonlConfig, ReasoningGymConfig, require_positive
from r1jax.data import arithmetic, countdown, reasoning_gym, toy
from r1jax.data.jsonl import read_problems
from r1jax.errors import UsageError
from r1jax.types import Problem

GENERATORS = {"arithmetic": arithmetic.problems, "countdown": countdown.problems, **toy.PROBLEMS}


@dataclass(frozen=True)
class Source:
    """A stream of problems from one generator or file."""

    name: str  # the problems' `source`; without a file or a gym, one of GENERATORS
    rate: float = 1.0  # its share of a mixture, relative to the other sources' rates
    file: JsonlConfig | None = None
    gym: ReasoningGymConfig | None = None

    def __post_init__(self) -> None:
        require_positive(self, "rate")
        if not re.fullmatch(r"\w+", self.name):
            raise UsageError(f"Source.name is '{self.name}', expected letters, digits and _")
        if self.file is not None and self.gym is not None:
            raise UsageError(f"source '{self.name}' has a file and a gym, expected one of them: leave the other out")

    def problems(self, split: str, seed: int) -> Iterator[Problem]:
        """A generator's endless stream for `split`, or all problems of the file, whatever the split, shuffled.

        Raises UsageError for an unknown generator or setting, and when the file can't be read.
        """
        if self.file is not None:
            problems = read_problems(self.file, self.name)
            random.Random(f"{split}-{seed}").shuffle(problems)  # files are often sorted by kind
            return iter(problems)
        if self.gym is not None:
            return reasoning_gym.problems(self.gym, self.name, split, seed)
        if self.name not in GENERATORS:
            known = ", ".join(sorted(GENERATORS))
            raise UsageError(f"source '{self.name}': expected one of {known}, or set Source.file or Source.gym")
        return GENERATORS[self.name](split, seed)


def alternate(sources: Sequence[Source]) -> Callable[[str, int], Iterator[Problem]]:
    """The problems of all sources in turn, as a `Task` has them; a file that is exhausted drops out."""

    def problems(split: str, seed: int) -> Iterator[Problem]:
        rounds = itertools.zip_longest(*(source.problems(split, seed) for source in sources))
        drawn = (problem for problem in itertools.chain.from_iterable(rounds) if problem is not None)
        return (replace(problem, id=place) for place, problem in enumerate(drawn))

    return problems


def fingerprint(sources: Sequence[Source]) -> int:
    """A hash of names, rates, settings, and contents of files, not of their paths.

    Raises UsageError for an invalid source.
    """
    crc = 0
    for source in sources:
        problems = source.problems("train", 0)
        contents = [] if source.file is None else list(problems)
        if source.gym is not None:
            contents = reasoning_gym.contents(source.gym)
        crc = zlib.crc32(repr((source.name, source.rate, contents)).encode(), crc)
    return crc
