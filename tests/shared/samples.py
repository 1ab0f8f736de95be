"""Samples for tests of rewards, filters and statistics."""

from collections.abc import Mapping, Sequence

from r1jax.rewards import rules
from r1jax.types import Problem, Sample


def make_sample(
    problem: Problem,
    text: str = "",
    tokens: Sequence[int] = (),
    *,
    finished: bool = True,
    rewards: Mapping[str, float | None] | None = None,
    **named: float | None,
) -> Sample:
    """A response of these tokens, without its prompt; its rewards as a mapping, or by name."""
    reason = "stop" if finished else "length"
    mask = [1] * len(tokens)
    return Sample(
        problem,
        tokens=list(tokens),
        loss_mask=mask,
        text=text,
        finish_reason=reason,
        rewards={**(rewards or {}), **named},
    )


def grade(rewards: Mapping[str, rules.Reward], samples: list[Sample]) -> list[Sample]:
    """The samples, graded in place."""
    rules.grade(rewards, samples)
    return samples
