"""Samples get their rewards. Each process grades its share of the groups, and receives the others' rewards."""

import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from itertools import chain

from r1jax.errors import RunError
from r1jax.parallel.hosts import gather_values, owns
from r1jax.rewards.rules import Reward, failure_counts, grade, totals, ungraded, unverified
from r1jax.types import ROUNDING, Sample

MOST_UNVERIFIED = 0.1  # of the samples of a step
MOST_FAILED = 0.5  # of the samples of a step, whose environments failed; a policy may cause some of them
ENVIRONMENT_FAILURES = ("timeout", "environment_error")

Groups = Sequence[Sequence[Sample]]  # the samples of each prompt


class Grading(AbstractContextManager):
    """Rule-based rewards are graded in a thread while other groups are drawn; others wait for `collect`."""

    def __init__(self, rewards: Mapping[str, Reward]):
        self.rewards = rewards
        self.overlapping = {name: reward for name, reward in rewards.items() if reward.overlaps}
        self.thread = ThreadPoolExecutor(1, "grading")
        self.groups: list[Sequence[Sample]] = []
        self.pending: list[Future[None]] = []
        self.failures_before = failure_counts(rewards)

    def submit(self, samples: Sequence[Sample]) -> None:
        """Takes on a group that is complete."""
        self.groups.append(samples)
        if owns(samples[0].group):
            self.pending.append(self.thread.submit(grade, self.overlapping, samples))

    def collect(self) -> float:
        """Finishes the rewards of all groups submitted since the last call. Raises what a reward raised.

        Returns the seconds of those that need the devices.
        """
        for future in self.pending:
            future.result()
        groups = sorted(self.groups, key=lambda samples: samples[0].group)
        exchange(groups)
        start = time.perf_counter()
        grade({name: reward for name, reward in self.rewards.items() if not reward.overlaps}, list(chain(*groups)))
        seconds = time.perf_counter() - start
        for sample in chain(*groups):
            sample.rewards = {name: sample.rewards[name] for name in self.rewards}  # in their own order
        self.groups, self.pending = [], []
        return seconds

    def failures(self) -> dict[str, float]:
        """How often verifiers failed, in all processes, since the last call."""
        before, self.failures_before = self.failures_before, failure_counts(self.rewards)
        mine = {kind: n - before.get(kind, 0.0) for kind, n in self.failures_before.items()}
        shares = gather_values("what verifiers failed on", mine)
        return {kind: sum(share.get(kind, 0.0) for share in shares) for kind in dict.fromkeys(chain(*shares))}

    def __exit__(self, *exception: object) -> None:
        self.thread.shutdown(cancel_futures=True)


def exchange(groups: Groups) -> None:
    """Gives each process the rewards that others computed."""
    mine = {i: [s.rewards for s in group] for i, group in enumerate(groups) if owns(group[0].group)}
    for share in gather_values("rewards", mine):
        for i, values in share.items():
            for sample, its in zip(groups[int(i)], values, strict=True):
                sample.rewards = its


def grade_groups(rewards: Mapping[str, Reward], groups: Groups) -> None:
    """All rewards of all groups, at once."""
    with Grading(rewards) as grading:
        for samples in groups:
            grading.submit(samples)
        grading.collect()


def score_group(rewards: Mapping[str, Reward], samples: Sequence[Sample], *, mask_truncated: bool) -> None:
    """Sets `Sample.reward` and `Sample.valid` of a graded group.

    Invalid are samples that a verifier failed on, neither right nor wrong, or that no reward with a weight applies to;
    and, with `mask_truncated`, those that the limit cut off.
    """
    for sample, fails, lacks in zip(samples, unverified(rewards, samples), ungraded(rewards, samples), strict=True):
        sample.valid = (sample.finished or not mask_truncated) and not (fails or lacks)
    for sample, total in zip(samples, totals(rewards, samples, [s.valid for s in samples]), strict=True):
        sample.reward = total


def require_verified(rewards: Mapping[str, Reward], groups: Groups) -> None:
    """Raises RunError when verifiers failed on more than `MOST_UNVERIFIED` of the samples: something is broken."""
    failed = list(chain(*(unverified(rewards, samples) for samples in groups)))
    if sum(failed) > MOST_UNVERIFIED * len(failed):
        counts = {kind: n for kind, n in failure_counts(rewards).items() if n}
        raise RunError(
            f"verifiers failed on {sum(failed)} of {len(failed)} samples, and on right answers too: {counts}."
            " Check that their processes can start, and that golds can be read"
        )


def require_environments(groups: Groups) -> None:
    """Raises RunError when most samples ended because their environment failed: something is broken."""
    samples = list(chain(*groups))
    failed = [sample for sample in samples if sample.finish_reason in ENVIRONMENT_FAILURES]
    if len(failed) > MOST_FAILED * len(samples):
        first = failed[0].turns[-1].observation
        raise RunError(f"environments failed in {len(failed)} of {len(samples)} samples; the first: {first}")


def has_signal(samples: Sequence[Sample]) -> bool:
    """Whether the valid samples of a scored group differ: in their outcome, or, without one, in their reward.

    A penalty is no signal: the outcome is the reward named "accuracy", unweighted.
    """
    valid = [s for s in samples if s.valid]
    values = [x for s in valid if (x := s.rewards.get("accuracy")) is not None] or [s.reward for s in valid]
    return len(values) > 1 and max(values) - min(values) > ROUNDING
