"""What the recipes of `r1_zero.py` and `r1.py` work on."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from etils import epath

from r1jax.config import RLConfig
from r1jax.data.tasks import Task
from r1jax.rewards.rules import Reward
from r1jax.runs.run import Run
from r1jax.types import Problem

Problems = Callable[[str, int], Iterator[Problem]]  # (split, seed) -> the problems of "train" or "test"


@dataclass(frozen=True)
class Inputs:
    """A base, problems and their rules. `_toy.py` has the demo's; `_files.py` an imported base and its user's files.

    Attributes:
      task: tokenizer, prompt, and the problems of validations.
      base: makes the base in a stage of the run, or names an imported one.
      problems: an ArrayRecord of those that RL trains on.
      held_out: those of evaluations.
      rules: the rewards of problems; its argument is the weight of language consistency.

    For R1 alone:
      watched: what evaluations measure beside the rules, with weight 0.
      general: demonstrations that are no reasoning, for the second SFT; None: there are none.
      preferences: by reward model ("helpful", "safe"), its data: from the base and the SFT policy, or written.
      scenarios: an ArrayRecord of problems and chat requests, for the last RL.
      requests: the sources of the requests among them.
    """

    task: Task
    base: Callable[[Run], epath.Path]
    problems: epath.Path
    held_out: list[Problem]
    rules: Callable[[float], dict[str, Reward]]
    watched: Mapping[str, Reward] = field(default_factory=dict)
    general: Callable[[Run], epath.Path] | None = None
    preferences: Callable[[Run, Mapping[str, epath.Path]], dict[str, dict[str, epath.Path]]] | None = None
    scenarios: epath.Path | None = None
    requests: tuple[str, ...] = ()


def split_held_out(problems: Sequence[Problem], config: Any) -> tuple[list[Problem], list[Problem]]:
    """Those of evaluations and, of the others, those of validations."""
    return list(problems[: config.evaluate.num_prompts]), list(problems[config.evaluate.num_prompts :])


def held_out_count(config: Any) -> int:
    """How many problems evaluations and validations ask; those of RL's stages are the same."""
    validations = (stage.validation for stage in vars(config).values() if isinstance(stage, RLConfig))
    return config.evaluate.num_prompts + max((v.num_prompts for v in validations if v.every), default=0)
