"""From outputs to graded samples."""

from collections.abc import Mapping, Sequence
from itertools import islice

from r1jax.rewards.rules import Reward, grade
from r1jax.rollout.engine import Output
from r1jax.types import Problem, Sample


def grade_outputs(
    problems: Sequence[Problem], outputs: Sequence[Sequence[Output]], rewards: Mapping[str, Reward]
) -> list[list[Sample]]:
    """One `Sample` for each output, grouped by problem."""
    samples = [
        Sample(problem, output.text, output.tokens, output.finished, rewards={})
        for problem, group in zip(problems, outputs, strict=True)
        for output in group
    ]
    graded = iter(grade(rewards, samples))
    return [list(islice(graded, len(group))) for group in outputs]
