"""A stage's metrics, as JSON lines and for TensorBoard."""

import json

import tensorboardX
from etils import epath

from r1jax.telemetry.files import write_whole


class MetricsWriter:
    """Appends one row a step. Opened at `first_step`, it drops what an interrupted run wrote at or after it."""

    def __init__(self, directory: epath.Path, first_step: int):
        self.path = directory / "metrics.jsonl"
        kept = [row for row in read_metrics(self.path) if row["step"] < first_step]
        write_whole(self.path, "".join(json.dumps(row) + "\n" for row in kept))
        self.tensorboard = tensorboardX.SummaryWriter(str(directory / "tensorboard"), purge_step=first_step)

    def write(self, step: int, values: dict[str, float]) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")
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
