"""Problems of reasoning-gym (arXiv 2505.24760): a hundred generators, each with a verifier of its own."""

import json
import os
import sys
from collections.abc import Iterator
from importlib.metadata import version
from subprocess import DEVNULL, PIPE, Popen
from tempfile import TemporaryDirectory
from typing import Any

from r1jax.config import ReasoningGymConfig
from r1jax.data.gym_draws import make_dataset
from r1jax.errors import RunError, UsageError
from r1jax.types import Problem


def problems(config: ReasoningGymConfig, source: str, split: str, seed: int) -> Iterator[Problem]:
    """The stream of `gym_draws.draw`; `Problem.answer` is what `rewards/reasoning_gym.py` reads.

    The problem at a place depends on the config, the split and the seed only. Raises UsageError for a config that the
    library refuses, at once, and while drawing when it has no question of the split.
    """
    make_dataset(config.dataset, config.settings, 0)
    return stream(config, source, split, seed)


def stream(config: ReasoningGymConfig, source: str, split: str, seed: int) -> Iterator[Problem]:
    request = json.dumps([config.dataset, config.settings, split, seed])
    path = os.pathsep.join(os.path.abspath(part) for part in sys.path)
    environment = os.environ | {"PYTHONHASHSEED": "0", "PYTHONPATH": path}
    command = [sys.executable, "-m", "r1jax.data.gym_draws", request]
    with (
        TemporaryDirectory() as folder,
        Popen(command, stdin=DEVNULL, stdout=PIPE, stderr=DEVNULL, env=environment, cwd=folder, text=True) as process,
    ):
        try:
            assert process.stdout is not None
            for place, line in enumerate(process.stdout):
                row = json.loads(line)
                if isinstance(row, dict):
                    raise UsageError(row["error"])
                question, answer = row
                yield Problem(place, question, answer, "en", source)
            status = process.wait()
        finally:
            process.kill()
    if status:
        raise RunError(f"the process that draws problems of {config} ended with exit status {status}")


def contents(config: ReasoningGymConfig) -> list[Any]:
    """What decides the problems, the library's version included."""
    return [config.dataset, sorted(config.settings.items()), version("reasoning-gym")]
