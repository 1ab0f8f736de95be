"""Statistics of graded samples, in pure Python."""

import math
from collections import Counter
from collections.abc import Sequence
from itertools import chain
from statistics import NormalDist, fmean, pstdev, variance

from r1jax.types import Sample


def pass_at_k(correct: int, samples: int, k: int) -> float:
    """Probability that one or more of k out of `samples` are correct: 1 - C(n - c, k) / C(n, k) (arXiv 2107.03374)."""
    return 1.0 - math.comb(samples - correct, k) / math.comb(samples, k)


def response_length(sample: Sample) -> int:
    """The number of tokens that the policy drew."""
    return sum(sample.loss_mask)


def summarize(groups: Sequence[Sequence[Sample]]) -> dict[str, float]:
    """Means over all samples: each reward where it applies, response tokens, and the share that finished."""
    samples = list(chain(*groups))
    return {name: fmean(values) for name, values in reward_values(samples).items() if values} | {
        "response_tokens": fmean(map(response_length, samples)),
        "finished": fmean(s.finished for s in samples),
    }


def spread(groups: Sequence[Sequence[Sample]]) -> dict[str, float]:
    """Deviations and quantiles of each reward and of their sum, lengths by outcome, and groups without signal."""
    samples = list(chain(*groups))
    totals = [s.reward for s in samples]
    figures = {"reward": fmean(totals)}
    for name, values in (reward_values(samples) | {"reward": totals}).items():
        if values:
            figures |= {f"{name}_std": pstdev(values)} | quantiles(name, values, (10, 50, 90))
    figures |= tokens_by_outcome(samples)
    if truncated := [response_length(s) for s in samples if not s.finished]:
        figures["tokens_truncated"] = fmean(truncated)
    accuracies = [[v for s in group if (v := s.rewards.get("accuracy")) is not None] for group in groups]
    if means := [fmean(values) for values in accuracies if values]:
        figures |= {"groups_all_right": fmean(x == 1 for x in means), "groups_all_wrong": fmean(x == 0 for x in means)}
    return figures


def outcomes(groups: Sequence[Sequence[Sample]], answers: Sequence[Sequence[str | None]], k: int) -> dict[str, float]:
    """pass@1, 2, 4, … and k with their confidence intervals, and cons@n, for n samples of each problem."""
    n = len(groups[0])
    figures: dict[str, float] = {}
    for size in sorted({2**i for i in range(n.bit_length())} | {k}):
        values = [solved([group], size) for group in groups]
        low, high = confidence_interval(values, n // size)
        figures |= {f"pass@{size}": fmean(values), f"pass@{size}_low": low, f"pass@{size}_high": high}
    return figures | {f"cons@{n}": consensus(groups, answers)}


def lengths(groups: Sequence[Sequence[Sample]]) -> dict[str, float]:
    """Response tokens of all, of correct and of wrong samples, and the share that the limit cut off."""
    samples = list(chain(*groups))
    tokens = [float(response_length(s)) for s in samples]
    figures = {"response_tokens": fmean(tokens)} | quantiles("response_tokens", tokens, (50, 95))
    return figures | tokens_by_outcome(samples) | {"truncated": 1 - fmean(s.finished for s in samples)}


def solved(groups: Sequence[Sequence[Sample]], k: int) -> float:
    """pass@k, averaged over problems."""
    return fmean(pass_at_k(sum(s.rewards["accuracy"] == 1.0 for s in group), len(group), k) for group in groups)


def consensus(groups: Sequence[Sequence[Sample]], answers: Sequence[Sequence[str | None]]) -> float:
    """cons@k: the share of problems whose most frequent answer is correct; samples without an answer don't vote.

    `answers` holds each sample's extracted answer. Of equally frequent answers, the one sampled first wins.
    """
    right = 0
    for group, given in zip(groups, answers, strict=True):
        votes = Counter(answer for answer in given if answer)
        if votes:
            winner = votes.most_common(1)[0][0]
            right += group[list(given).index(winner)].rewards["accuracy"] == 1.0
    return right / len(groups)


def confidence_interval(values: Sequence[float], samples: int) -> tuple[float, float]:
    """95 % Wilson score interval of the mean of `values`, one for each problem, in [0, 1].

    Each value is a mean over `samples` independent answers, which is worth at least one right or wrong answer and at
    most `samples` of them. The effective number of answers is that of a binomial mean with the variance of this one:
    n for values of 0 and 1, n × `samples` where all problems are equally hard. Unlike a bootstrap interval, that of n
    equal values has a width: n problems, all solved, do not show that all problems would be.

    References: Wilson 1927 (the interval); Korn and Graubard 1998 (the effective sample size).
    """
    n, mean = len(values), fmean(values)
    spread = variance(values) if n > 1 else 0.0
    effective = n * mean * (1 - mean) / spread if spread else n
    effective = min(max(effective, n), n * samples)
    z = NormalDist().inv_cdf(0.975)
    shrunk = 1 / (1 + z * z / effective)
    centre = (mean + z * z / (2 * effective)) * shrunk
    half = z * math.sqrt(mean * (1 - mean) / effective + (z / (2 * effective)) ** 2) * shrunk
    return max(0.0, centre - half), min(1.0, centre + half)


def reward_values(samples: Sequence[Sample]) -> dict[str, list[float]]:
    """The values of each reward where it applies."""
    return {name: [v for s in samples if (v := s.rewards[name]) is not None] for name in samples[0].rewards}


def tokens_by_outcome(samples: Sequence[Sample]) -> dict[str, float]:
    """Mean tokens of correct and of wrong samples, by the reward named "accuracy"."""
    tokens = {
        name: [response_length(s) for s in samples if s.rewards.get("accuracy") == value]
        for name, value in (("correct", 1), ("wrong", 0))
    }
    return {f"tokens_{name}": fmean(values) for name, values in tokens.items() if values}


def quantiles(name: str, values: Sequence[float], percents: Sequence[int]) -> dict[str, float]:
    ordered = sorted(values)
    return {f"{name}_p{percent}": ordered[percent * (len(ordered) - 1) // 100] for percent in percents}
