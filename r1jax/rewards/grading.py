"""From outputs to graded samples. Each process grades the groups that are its share, and learns the others' rewards."""

from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from itertools import chain, islice

from r1jax.parallel.hosts import gather_values, owns
from r1jax.rewards.rules import Reward, failure_counts, grade
from r1jax.rollout.engine import Output
from r1jax.types import Problem, Sample


def ungraded(problem: Problem, outputs: Sequence[Output]) -> list[Sample]:
    """A `Sample` of each output, without rewards."""
    return [Sample(problem, output.text, output.tokens, output.finished, rewards={}) for output in outputs]


def grade_outputs(
    problems: Sequence[Problem], outputs: Sequence[Sequence[Output]], rewards: Mapping[str, Reward]
) -> list[list[Sample]]:
    """One `Sample` for each output, grouped by problem."""
    groups = [ungraded(problem, group) for problem, group in zip(problems, outputs, strict=True)]
    mine = [place for place in range(len(groups)) if owns(place)]
    graded = iter(grade(beside(rewards), [sample for place in mine for sample in groups[place]]))
    return finish(rewards, groups, {place: list(islice(graded, len(groups[place]))) for place in mine})


def beside(rewards: Mapping[str, Reward]) -> dict[str, Reward]:
    """Those that may grade while the devices draw; the others need the devices, and all processes."""
    return {name: reward for name, reward in rewards.items() if reward.overlaps}


def finish(
    rewards: Mapping[str, Reward], groups: Sequence[Sequence[Sample]], mine: Mapping[int, Sequence[Sample]]
) -> list[list[Sample]]:
    """All groups with all rewards, of this process's share, graded by what runs `beside`, by place."""
    shares = gather_values("rewards", {place: [s.rewards for s in group] for place, group in mine.items()})
    early = {int(place): group for share in shares for place, group in share.items()}
    afterwards = {name: reward for name, reward in rewards.items() if not reward.overlaps}
    late = iter(grade(afterwards, [sample for group in groups for sample in group]))

    def both(sample: Sample, values: Mapping[str, float | None]) -> Sample:
        values = {**values, **next(late).rewards}
        return replace(sample, rewards={name: values[name] for name in rewards})  # in their own order

    return [[both(s, v) for s, v in zip(group, early[i], strict=True)] for i, group in enumerate(groups)]


def failures_since(before: Mapping[str, float], rewards: Mapping[str, Reward]) -> dict[str, float]:
    """What verifiers failed on, in all processes, since this one's `failure_counts` were `before`."""
    mine = {kind: n - before.get(kind, 0.0) for kind, n in failure_counts(rewards).items()}
    shares = gather_values("what verifiers failed on", mine)
    return {kind: sum(share.get(kind, 0.0) for share in shares) for kind in dict.fromkeys(chain(*shares))}


class Grading:
    """Grades groups in a thread, while others are still drawn; rewards that need the devices wait for `collect`."""

    def __init__(self, rewards: Mapping[str, Reward]):
        self.rewards, self.beside = rewards, beside(rewards)
        self.thread = ThreadPoolExecutor(1, "grading")
        self.groups: dict[int, list[Sample]] = {}
        self.mine: dict[int, Future[list[Sample]]] = {}

    def submit(self, problems: Sequence[Problem], place: int, outputs: Sequence[Output]) -> None:
        """Takes on the outputs for the problem at `place`."""
        self.groups[place] = ungraded(problems[place], outputs)
        if owns(place):
            self.mine[place] = self.thread.submit(grade, self.beside, self.groups[place])

    def collect(self) -> list[list[Sample]]:
        """All groups taken on since the last call, by place. Raises what a reward raised."""
        groups = [self.groups[place] for place in sorted(self.groups)]
        graded = finish(self.rewards, groups, {place: mine.result() for place, mine in self.mine.items()})
        self.groups, self.mine = {}, {}
        return graded

    def close(self) -> None:
        self.thread.shutdown(cancel_futures=True)

    def __enter__(self) -> "Grading":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
