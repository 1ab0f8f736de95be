"""Writers of a stage's metrics and samples: as JSON lines, and to loggers."""

import contextlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from statistics import fmean
from typing import Any

from etils import epath

from r1jax.errors import RunError
from r1jax.parallel.hosts import is_main_process
from r1jax.telemetry.files import append, write_atomically
from r1jax.telemetry.loggers import Logger
from r1jax.types import Sample

Groups = Sequence[Sequence[Sample]]  # the samples to each prompt


class RowWriter:
    """Appends rows of a step. On opening, it drops the rows that an interrupted run wrote from `first_step` on."""

    def __init__(self, path: epath.Path, first_step: int):
        self.path = path
        if not is_main_process():
            return
        kept = [row for row in read_metrics(path) if row["step"] < first_step]
        write_atomically(path, "".join(json.dumps(row) + "\n" for row in kept))

    def append(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        append(self.path, "".join(json.dumps({"step": step, **row}) + "\n" for row in rows))


class MetricsWriter(RowWriter):
    """Writes one row per step to metrics.jsonl, and to the loggers of the main process."""

    def __init__(self, directory: epath.Path, first_step: int, loggers: Sequence[Logger] = ()):
        super().__init__(directory / "metrics.jsonl", first_step)
        self.loggers = loggers

    def write(self, step: int, values: dict[str, float]) -> None:
        self.append(step, [values])
        for logger in self.loggers:
            logger.log(step, values)

    def __enter__(self) -> "MetricsWriter":
        return self

    def __exit__(self, kind: type | None, *exception: object) -> None:
        self.close(failed=kind is not None)

    def close(self, failed: bool = False) -> None:
        """After a failure, what loggers raise is dropped."""
        for logger in self.loggers:
            with contextlib.suppress(*[RunError] if failed else []):
                logger.close(failed)


class SamplesWriter(RowWriter):
    """Writes samples of a step to samples.jsonl, and to the loggers of `metrics`, before its row of that step."""

    def __init__(self, directory: epath.Path, first_step: int, metrics: MetricsWriter):
        super().__init__(directory / "samples.jsonl", first_step)
        self.metrics = metrics

    def write(self, step: int, drawn: Groups, trained: Groups) -> None:
        """Writes the samples of all groups that were `drawn`; `trained` are the groups of them that are trained on."""
        learnt = {id(sample) for group in trained for sample in group if sample.valid}
        rows = [sample_row(sample) | {"trained": id(sample) in learnt} for group in drawn for sample in group]
        self.append(step, rows)
        for logger in self.metrics.loggers:
            logger.log_samples(step, rows)


def sample_row(sample: Sample) -> dict[str, Any]:
    """A sample as a row of samples.jsonl, with its mean advantage over the tokens that the policy drew."""
    drawn = [a for a, is_drawn in zip(sample.advantages, sample.loss_mask, strict=False) if is_drawn]
    return (
        {
            "problem": asdict(sample.problem),
            "text": sample.text,
            "tokens": sample.response_tokens,
            "finished": sample.finished,
            "finish_reason": sample.finish_reason,
            "rewards": dict(sample.rewards),
            "reward": sample.reward,
            "valid": sample.valid,
        }
        | ({"advantage": fmean(map(float, drawn))} if drawn else {})
        | turns_row(sample)
    )


def turns_row(sample: Sample) -> dict[str, Any]:
    """The turns of an episode: what the policy said, what it read, and the environment's reward."""
    if len(sample.turns) < 2 and not any(turn.observation for turn in sample.turns):
        return {}
    return {
        "turns": [{name: getattr(turn, name) for name in ("text", "observation", "reward")} for turn in sample.turns]
    }


def read_metrics(path: epath.Path) -> list[dict[str, Any]]:
    """All rows of a file of metrics or samples, except one that a kill cut short; none when the file is missing."""
    rows = []
    for line in path.read_text().splitlines() if path.exists() else []:
        with contextlib.suppress(json.JSONDecodeError):
            rows.append(json.loads(line))
    return rows
