"""A stage's metrics and samples, as JSON lines; metrics for TensorBoard too."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import tensorboardX
from etils import epath

from r1jax.parallel.hosts import is_main_process
from r1jax.telemetry.files import append, write_whole


class RowWriter:
    """Appends rows of a step. Opened at `first_step`, it drops what an interrupted run wrote at or after it."""

    def __init__(self, path: epath.Path, first_step: int):
        self.path = path
        if not is_main_process():
            return
        kept = [row for row in read_metrics(path) if row["step"] < first_step]
        write_whole(path, "".join(json.dumps(row) + "\n" for row in kept))

    def append(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        append(self.path, "".join(json.dumps({"step": step, **row}) + "\n" for row in rows))


class MetricsWriter(RowWriter):
    """One row a step, also for TensorBoard."""

    def __init__(self, directory: epath.Path, first_step: int):
        super().__init__(directory / "metrics.jsonl", first_step)
        self.tensorboard = tensorboardX.SummaryWriter(
            str(directory / "tensorboard"), purge_step=first_step, write_to_disk=is_main_process()
        )

    def write(self, step: int, values: dict[str, float]) -> None:
        self.append(step, [values])
        for name, value in values.items():
            self.tensorboard.add_scalar(name, value, step)

    def close(self) -> None:
        self.tensorboard.close()


def read_metrics(path: epath.Path) -> list[dict[str, float]]:
    """All whole rows of a metrics file; a row that a kill cut short is left out."""
    rows = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return rows
