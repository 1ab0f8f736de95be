"""From outputs to graded samples."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from r1jax.rewards.rules import Reward, grade
from r1jax.rollout.engine import Output
from r1jax.types import Problem, Sample


def grade_outputs(
    problems: Sequence[Problem], outputs: Sequence[Sequence[Output]], rewards: Mapping[str, Reward]
) -> list[list[Sample]]:
    """One `Sample` for each output, grouped by problem."""
    samples = [
        [Sample(p, o.text, o.tokens, o.finished, rewards={}) for o in group]
        for p, group in zip(problems, outputs, strict=True)
    ]
    return [[replace(sample, rewards=grade(rewards, sample)) for sample in group] for group in samples]
