"""Where problems come from: generators of ours, by name, and files."""

import random
import re
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from r1jax.config import JsonlConfig, require_positive
from r1jax.data import countdown
from r1jax.data.jsonl import read_problems
from r1jax.data.toy import chat, running_sum
from r1jax.errors import UsageError
from r1jax.types import Problem

GENERATORS = {"running_sum": running_sum.problems, "countdown": countdown.problems, "chat": chat.problems}


@dataclass(frozen=True)
class Source:
    """Problems of one kind."""

    name: str  # what they carry as their `source`; without a file, one of GENERATORS
    rate: float = 1.0  # their share of a mixture, relative to the others'
    file: JsonlConfig | None = None

    def __post_init__(self) -> None:
        require_positive(self, "rate")
        if not re.fullmatch(r"\w+", self.name):
            raise UsageError(f"source '{self.name}': expected a name of letters, digits and _")

    def problems(self, split: str, seed: int) -> Iterator[Problem]:
        """A generator's endless stream, or a file's problems, each once, whatever the split: that is another file.

        Raises UsageError when there is no such generator, or the file can't be read.
        """
        if self.file is not None:
            found = read_problems(self.file, self.name)
            random.Random(f"{split}-{seed}").shuffle(found)  # what stands first in a file is often of one kind
            return iter(found)
        if self.name not in GENERATORS:
            there = ", ".join(sorted(GENERATORS))
            raise UsageError(f"source '{self.name}' has no file, and there is no generator of that name, only {there}")
        return GENERATORS[self.name](split, seed)


def fingerprint(sources: Sequence[Source]) -> int:
    """Of names, rates and what files hold, not where they lie. Raises UsageError when a source can't be read."""
    crc = 0
    for source in sources:
        found = source.problems("train", 0)
        held = [] if source.file is None else list(found)
        crc = zlib.crc32(repr((source.name, source.rate, held)).encode(), crc)
    return crc
