"""Figures over graded samples. Pure Python on lists of `Sample`."""

import math
import random
from collections import Counter
from collections.abc import Sequence
from statistics import fmean, pstdev

from r1jax.types import Sample


def pass_at_k(correct: int, samples: int, k: int) -> float:
    """Chance that at least one of k out of `samples` is correct: 1 - C(n - c, k) / C(n, k) (arXiv 2107.03374)."""
    return 1.0 - math.comb(samples - correct, k) / math.comb(samples, k)


def summarize(groups: Sequence[Sequence[Sample]]) -> dict[str, float]:
    """Means over all samples: each reward where it applies, response tokens, and the share that ended by itself."""
    samples = [sample for group in groups for sample in group]
    values = {name: [v for s in samples if (v := s.rewards[name]) is not None] for name in samples[0].rewards}
    return {name: fmean(applicable) for name, applicable in values.items() if applicable} | {
        "response_tokens": fmean(len(s.tokens) for s in samples),
        "finished": fmean(s.finished for s in samples),
    }


def spread(groups: Sequence[Sequence[Sample]], totals: Sequence[Sequence[float]]) -> dict[str, float]:
    """What means hide: deviations and quantiles of each reward, lengths by outcome, groups without signal."""
    samples = [sample for group in groups for sample in group]
    rewards = {name: [v for s in samples if (v := s.rewards[name]) is not None] for name in samples[0].rewards}
    flat = [value for group in totals for value in group]
    figures = {"reward": fmean(flat)}
    for name, values in (rewards | {"reward": flat}).items():
        if values:
            ordered = sorted(values)
            figures[f"{name}_std"] = pstdev(values)
            figures |= {f"{name}_p{p}": ordered[p * (len(values) - 1) // 100] for p in (10, 50, 90)}
    # The reward named "accuracy" is the outcome: it says which outputs are right.
    outcomes = {
        "correct": [len(s.tokens) for s in samples if s.rewards.get("accuracy") == 1],
        "wrong": [len(s.tokens) for s in samples if s.rewards.get("accuracy") == 0],
        "truncated": [len(s.tokens) for s in samples if not s.finished],
    }
    figures |= {f"tokens_{outcome}": fmean(lengths) for outcome, lengths in outcomes.items() if lengths}
    judged = [[v for s in group if (v := s.rewards.get("accuracy")) is not None] for group in groups]
    right = [fmean(values) for values in judged if values]
    if right:
        figures |= {"groups_all_right": fmean(x == 1 for x in right), "groups_all_wrong": fmean(x == 0 for x in right)}
    return figures


def outcomes(groups: Sequence[Sequence[Sample]], answers: Sequence[Sequence[str | None]], k: int) -> dict[str, float]:
    """pass@1, 2, 4, … and k with their intervals, and cons@n, of n samples for each problem."""
    n = len(groups[0])
    figures: dict[str, float] = {}
    for size in sorted({2**i for i in range(n.bit_length())} | {k}):
        values = [solved([group], size) for group in groups]
        low, high = confidence_interval(values)
        figures |= {f"pass@{size}": fmean(values), f"pass@{size}_low": low, f"pass@{size}_high": high}
    return figures | {f"cons@{n}": consensus(groups, answers)}


def lengths(groups: Sequence[Sequence[Sample]]) -> dict[str, float]:
    """Response tokens of all, of right and of wrong samples, and the share that the limit cut off."""
    samples = [sample for group in groups for sample in group]
    ordered = sorted(len(s.tokens) for s in samples)
    figures = {"response_tokens": fmean(ordered)}
    figures |= {f"response_tokens_p{p}": float(ordered[p * (len(ordered) - 1) // 100]) for p in (50, 95)}
    for name, verdict in (("correct", 1), ("wrong", 0)):
        if counts := [len(s.tokens) for s in samples if s.rewards.get("accuracy") == verdict]:
            figures[f"tokens_{name}"] = fmean(counts)
    return figures | {"truncated": 1 - fmean(s.finished for s in samples)}


def has_signal(totals: Sequence[float]) -> bool:
    """Whether a group's rewards differ, by more than the rounding of their sums."""
    return len(totals) > 1 and max(totals) - min(totals) > 1e-6


def solved(groups: Sequence[Sequence[Sample]], k: int) -> float:
    """pass@k, the mean over problems."""
    return fmean(pass_at_k(sum(s.rewards["accuracy"] == 1.0 for s in group), len(group), k) for group in groups)


def consensus(groups: Sequence[Sequence[Sample]], answers: Sequence[Sequence[str | None]]) -> float:
    """cons@k: the share of problems whose most frequent answer is correct; no answer never wins.

    `answers` holds each sample's extracted answer. Of two answers as frequent, the one drawn first counts.
    """
    right = 0
    for group, given in zip(groups, answers, strict=True):
        votes = Counter(answer for answer in given if answer)
        if votes:
            winner = votes.most_common(1)[0][0]
            right += group[list(given).index(winner)].rewards["accuracy"] == 1.0
    return right / len(groups)


def confidence_interval(values: Sequence[float], resamples: int = 1000) -> tuple[float, float]:
    """95 % bootstrap interval of the mean over problems; the same values give the same interval."""
    rng = random.Random(0)
    means = sorted(fmean(rng.choices(values, k=len(values))) for _ in range(resamples))
    return means[int(0.025 * resamples)], means[int(0.975 * resamples) - 1]
