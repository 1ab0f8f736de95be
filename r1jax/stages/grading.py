"""From outputs to graded samples."""

from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from itertools import islice

from r1jax.rewards.rules import Reward, grade
from r1jax.rollout.engine import Output
from r1jax.types import Problem, Sample


def ungraded(problem: Problem, outputs: Sequence[Output]) -> list[Sample]:
    """A `Sample` of each output, without rewards."""
    return [Sample(problem, output.text, output.tokens, output.finished, rewards={}) for output in outputs]


def grade_outputs(
    problems: Sequence[Problem], outputs: Sequence[Sequence[Output]], rewards: Mapping[str, Reward]
) -> list[list[Sample]]:
    """One `Sample` for each output, grouped by problem."""
    samples = [s for problem, group in zip(problems, outputs, strict=True) for s in ungraded(problem, group)]
    graded = iter(grade(rewards, samples))
    return [list(islice(graded, len(group))) for group in outputs]


class Grading:
    """Grades groups in a thread, while others are still drawn; rewards that need the devices wait for `collect`."""

    def __init__(self, rewards: Mapping[str, Reward]):
        self.rewards = rewards
        self.beside = {name: reward for name, reward in rewards.items() if reward.overlaps}
        self.afterwards = {name: reward for name, reward in rewards.items() if not reward.overlaps}
        self.thread = ThreadPoolExecutor(1, "grading")
        self.waiting: dict[int, Future[list[Sample]]] = {}

    def submit(self, problems: Sequence[Problem], place: int, outputs: Sequence[Output]) -> None:
        """Takes on the outputs for the problem at `place`."""
        self.waiting[place] = self.thread.submit(grade, self.beside, ungraded(problems[place], outputs))

    def collect(self) -> list[list[Sample]]:
        """All groups taken on since the last call, by place. Raises what a reward raised."""
        groups = [self.waiting[place].result() for place in sorted(self.waiting)]
        self.waiting = {}
        late = iter(grade(self.afterwards, [sample for group in groups for sample in group]))
        return [[self.both(sample, next(late)) for sample in group] for group in groups]

    def both(self, early: Sample, late: Sample) -> Sample:
        """The sample with all its rewards, in their own order."""
        values = {**early.rewards, **late.rewards}
        return replace(early, rewards={name: values[name] for name in self.rewards})

    def close(self) -> None:
        self.thread.shutdown(cancel_futures=True)

    def __enter__(self) -> "Grading":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
