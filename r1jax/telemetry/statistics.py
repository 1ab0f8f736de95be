"""Figures over graded samples. Pure Python on lists of `Sample`."""

import math
import random
from collections import Counter
from collections.abc import Sequence
from statistics import fmean

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
