"""Environments of other packages, as `r1jax.types.Environment`s. Each module needs the extra of its name.

A module has a class, for `Environments.make`, and `problems`, for a `Task`. The question of a problem is the first
observation of the package's environment; `Problem.answer` is JSON of what makes the same environment again.
"""

import itertools
import random
from collections.abc import Iterator
from importlib import import_module
from types import ModuleType

from r1jax.errors import UsageError
from r1jax.types import Problem


def load_package(module: str, extra: str) -> ModuleType:
    """The module of another package; raises UsageError that names the extra if the package is missing."""
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        raise UsageError(f"cannot import {module} ({error}): in a clone of r1jax, pip install '.[{extra}]'") from error


def draw_seeds(split: str, seed: int) -> Iterator[int]:
    """Endless seeds of environments. Those of split 'test' are odd and all others even, so no seed is in both."""
    rng = random.Random(f"environment-{split}-{seed}")
    return (2 * rng.getrandbits(30) + (split == "test") for _ in itertools.count())


def check_question(problem: Problem, observation: str) -> None:
    """Raises ValueError for an environment that does not begin as the policy was told."""
    if observation != problem.question:
        raise ValueError(
            f"the environment begins with {observation!r:.200}, expected its problem's question"
            f" {problem.question!r:.200}: it depends on more than what Problem.answer keeps"
        )
