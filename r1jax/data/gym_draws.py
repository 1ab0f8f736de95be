"""Draws problems of reasoning-gym, which this file alone of `data` imports, in a process of their own.

Some generators iterate over sets of text, whose order depends on Python's hash seed; others draw from global random
numbers, print, or write files. So `reasoning_gym.py` starts this module with a fixed hash seed in a temporary
directory, and reads a line a problem.
"""

import ast
import dataclasses
import itertools
import json
import os
import random
import sys
import zlib
from collections.abc import Iterator
from difflib import get_close_matches
from typing import Any

import numpy as np

from r1jax.errors import UsageError

CHUNK = 500  # problems that are drawn with one seed
HELD_OUT = 16  # one question in so many is in the test split
OURS = {"seed", "size"}  # settings that the run has


def make_dataset(name: str, settings: dict[str, Any], seed: int) -> Any:
    """A dataset of reasoning-gym. Raises UsageError for an unknown name or setting, or a value that it refuses."""
    try:
        from reasoning_gym.factory import DATASETS, create_dataset
    except ImportError as error:
        raise UsageError(f"dataset '{name}' needs reasoning-gym: pip install reasoning-gym ({error})") from error
    if name not in DATASETS:
        raise UsageError(f"reasoning-gym has no dataset '{name}': expected {nearest(name, sorted(DATASETS))}")
    fields = [field.name for field in dataclasses.fields(DATASETS[name][1]) if field.name not in OURS]
    for setting in settings:
        if setting not in fields:
            raise UsageError(
                f"reasoning-gym's '{name}' has no setting '{setting}': expected {nearest(setting, fields)}"
            )
    try:
        return create_dataset(name, **settings, seed=seed, size=CHUNK)
    except Exception as error:  # mostly failed assertions, but each config has its own way
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UsageError(f"reasoning-gym's '{name}' refuses the settings {settings}: {reason}") from error


def nearest(name: str, known: list[str]) -> str:
    """The known names that are most like `name`, or all."""
    return " or ".join(get_close_matches(name, known)) or f"one of {', '.join(known)}"


def is_held_out(question: str) -> bool:
    return zlib.crc32(question.encode()) % HELD_OUT == 0


def draw(name: str, settings: dict[str, Any], split: str, seed: int) -> Iterator[dict[str, Any]]:
    """A stream of entries: 'train' is endless, 'test' has each held-out question once and ends when no more turn up.

    Raises UsageError when the settings allow no question of the split, or hardly any question.
    """
    asked: set[str] = set()
    for chunk in itertools.count():
        # The library draws place i with seed + i: neighbouring seeds would share their problems.
        dataset = make_dataset(name, settings, zlib.crc32(f"{name}-{split}-{seed}-{chunk}".encode()) >> 1)
        found = False
        for entry in entries(dataset, name, settings):
            question = entry["question"]
            if is_held_out(question) == (split == "test") and question not in asked:
                found = True
                if split == "test":  # a repeated problem would count twice in an evaluation
                    asked.add(question)
                yield entry
        if not found and asked:
            return
        if not found:
            raise UsageError(f"reasoning-gym's '{name}' with {settings} has too few questions for split '{split}'")


def entries(dataset: Any, name: str, settings: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The entries of a dataset without those that can't be drawn: some generators give up after a number of trials."""
    failures = 0
    for place in range(CHUNK):
        try:
            yield dataset[place]
        except Exception as error:
            failures += 1
            if failures > CHUNK // 10:
                raise UsageError(f"reasoning-gym's '{name}' with {settings} can't draw questions: {error!r}") from error


def answer_text(name: str, settings: dict[str, Any], entry: dict[str, Any]) -> str:
    """What the verifier needs, as a Python literal: JSON would turn tuples, which verifiers compare, into lists."""
    needed = {"dataset": name, "settings": settings, "answer": entry["answer"], "metadata": entry["metadata"]}
    answer = repr(plain(needed))
    ast.literal_eval(answer)  # raises ValueError here, and not in the middle of a run
    return answer


def plain(value: Any) -> Any:
    """The value with Python's own numbers and text in place of NumPy's, and other objects (fractions) as text."""
    if isinstance(value, dict):
        return {plain(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set):
        return type(value)(map(plain, value))
    value = value.item() if hasattr(value, "item") else value
    return value if value is None or isinstance(value, str | int | float) else str(value)


def main(name: str, settings: dict[str, Any], split: str, seed: int) -> None:
    """Writes [question, answer] of each problem, until nobody reads on, or the error that ends them."""
    lines = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what generators print must not reach the lines
    random.seed(seed)
    np.random.seed(seed)
    try:
        for entry in draw(name, settings, split, seed):
            lines.write(json.dumps([entry["question"], answer_text(name, settings, entry)]) + "\n")
    except BrokenPipeError:
        os._exit(0)  # without flushing the pipe
    except Exception as error:
        reason = str(error) if isinstance(error, UsageError) else f"reasoning-gym's '{name}' with {settings}: {error!r}"
        lines.write(json.dumps({"error": reason}) + "\n")


if __name__ == "__main__":
    main(*json.loads(sys.argv[1]))
