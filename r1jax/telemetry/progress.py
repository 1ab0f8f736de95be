"""Progress of a run: a live bar on a terminal, plain lines otherwise; and a stopwatch for the phases of a step."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import rich.console
import rich.progress


class Progress:
    """Shared by a run's stages: `with progress.start(…)` around a stage's loop, `progress.step(…)` in it."""

    PLAIN_SECONDS = 10.0  # between plain lines

    def __init__(self, console: rich.console.Console | None = None, *, quiet: bool = False):
        self.console = console or rich.console.Console(highlight=False, quiet=quiet)
        self.bar: rich.progress.Progress | None = None

    def say(self, text: str) -> None:
        """Prints a line above the bar."""
        self.console.print(text, markup=False, soft_wrap=True)

    def start(self, stage: str, first_step: int, steps: int) -> "Progress":
        """Begins a stage whose first `first_step` steps are done."""
        self.stage, self.steps = stage, steps
        self.started, self.first_step, self.last_line = time.monotonic(), first_step, -float("inf")
        if 0 < first_step < steps:
            self.say(f"{stage}: resuming at step {first_step + 1} of {steps}")
        if self.console.is_terminal:
            self.bar = rich.progress.Progress(
                rich.progress.TextColumn("[bold]{task.description}"),
                rich.progress.MofNCompleteColumn(),
                rich.progress.BarColumn(bar_width=20),
                rich.progress.TextColumn("{task.fields[metrics]}"),
                rich.progress.TimeRemainingColumn(compact=True),
                console=self.console,
            )
            self.task = self.bar.add_task(stage, total=steps, completed=first_step, metrics="")
            self.bar.start()
        return self

    def step(self, done: int, metrics: dict[str, float]) -> None:
        """Shows that `done` steps are complete, with `metrics` in their order."""
        texts = [f"{name} {value:,.0f}" if value >= 100 else f"{name} {value:.3g}" for name, value in metrics.items()]
        text = " ".join(texts)
        if self.bar:
            self.bar.update(self.task, completed=done, metrics=text)
        elif time.monotonic() - self.last_line >= self.PLAIN_SECONDS or done == self.steps:
            self.last_line = time.monotonic()
            self.say(f"{self.stage} {done}/{self.steps} {text} left {self.seconds_left(done):.0f}s")

    def seconds_left(self, done: int) -> float:
        """Of the stage, at this session's pace, when `done` steps are complete."""
        return (self.steps - done) * (time.monotonic() - self.started) / max(done - self.first_step, 1)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *exception: object) -> None:
        if self.bar:
            self.bar.stop()
            self.bar = None


class Stopwatch:
    """Sums the seconds of each phase of a step: `with stopwatch("rollout"): …`, any number of times."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def restart(self) -> None:
        self.seconds = {}

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        """Times a phase; the seconds of a nested phase aren't added to the outer one."""
        start, counted = time.perf_counter(), self.total
        yield
        own = time.perf_counter() - start - (self.total - counted)
        self.seconds[phase] = self.seconds.get(phase, 0.0) + own

    @property
    def total(self) -> float:
        return sum(self.seconds.values())

    def figures(self) -> dict[str, float]:
        return {f"seconds_{phase}": seconds for phase, seconds in self.seconds.items()}
