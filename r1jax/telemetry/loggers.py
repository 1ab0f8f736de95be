"""Loggers beside metrics.jsonl: TensorBoard, and the trackers of W&B, MLflow and Trackio, which are extras.

Each stage is a run of the tracker. Addresses, keys and offline modes are set by a tracker's own environment variables,
such as WANDB_MODE, MLFLOW_TRACKING_URI and TRACKIO_DIR.
"""

import importlib
import json
import os
import re
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from etils import epath

from r1jax.errors import RunError, UsageError
from r1jax.paths import in_bucket, read_json
from r1jax.telemetry.files import named, write_atomically

Rows = Sequence[Mapping[str, Any]]
COLUMNS = ("question", "text", "reward", "rewards", "trained", "tokens", "finish_reason")  # of a table of samples


class Logger(Protocol):
    """What a logger does with a stage's figures. `log_samples` gets rows of samples.jsonl before `log` of that step."""

    def log(self, step: int, values: Mapping[str, float]) -> None: ...
    def log_samples(self, step: int, rows: Rows) -> None: ...
    def close(self, failed: bool = False) -> None: ...


@dataclass(frozen=True)
class TrackedStage:
    """A stage as a tracker knows it: the project, its name there, an id that sessions share, and its config.json."""

    directory: epath.Path
    project: str
    id: str
    first_step: int

    @property
    def name(self) -> str:
        return f"{self.run_name}/{self.directory.name}"

    @property
    def run_name(self) -> str:
        """The name of the run's directory, whose stages trackers show as one group."""
        return self.directory.parent.name

    def config(self) -> dict[str, Any]:
        path = self.directory / "config.json"
        return read_json(path) if path.exists() else {}


class TensorBoard:
    """Scalars in the stage's directory `tensorboard/`; those of a resumed run replace the ones that it makes again.

    They are written here, not by tensorboardX's thread: it ends when the disk is full, and then `add_scalar` blocks.
    """

    def __init__(self, stage: TrackedStage):
        # Takes seconds: tensorboardX imports torch and Google's storage client where they are installed.
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog
        from tensorboardX.summary import scalar

        self.event, self.scalar, self.directory = Event, scalar, stage.directory / "tensorboard"
        with named(self.directory):
            self.directory.mkdir(exist_ok=True)
            self.writer = EventsWriter(str(self.directory / "events"))
            start = SessionLog(status=SessionLog.START)
            self.writer.write_event(Event(step=stage.first_step, wall_time=time.time(), session_log=start))

    def log(self, step: int, values: Mapping[str, float]) -> None:
        event = self.event(step=step, wall_time=time.time())
        for name, value in values.items():
            event.summary.MergeFrom(self.scalar(name, value))
        with named(self.directory):
            self.writer.write_event(event)
            self.writer.flush()

    def log_samples(self, step: int, rows: Rows) -> None:
        """None: they are in samples.jsonl."""

    def close(self, failed: bool = False) -> None:
        with named(self.directory):
            self.writer.close()


class WandB:
    """Weights & Biases; a run's stages are one group. A kill loses what its own process has not written yet."""

    def __init__(self, stage: TrackedStage):
        os.environ.setdefault("WANDB_X_TRANSACTION_LOG_FLUSH_INTERVAL", "0.5")  # seconds; 15 by default
        self.wandb = require("wandb")
        local = None if in_bucket(stage.directory) else str(stage.directory)
        self.run = self.wandb.init(
            project=stage.project,
            id=stage.id,
            name=stage.name,
            group=stage.run_name,
            config=stage.config(),
            resume="allow",
            dir=local,
        )

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self.run.log(dict(values), step=step, commit=True)

    def log_samples(self, step: int, rows: Rows) -> None:
        table = self.wandb.Table(columns=list(COLUMNS), data=[list(columns(row).values()) for row in rows])
        self.run.log({"samples": table}, step=step, commit=False)  # `log` commits the step

    def close(self, failed: bool = False) -> None:
        self.run.finish(exit_code=int(failed))


class MLflow:
    """MLflow; the project is its experiment. Samples are artifacts, a table for each step that logs some."""

    def __init__(self, stage: TrackedStage):
        self.mlflow = require("mlflow")
        self.client = self.mlflow.MlflowClient()
        experiment = self.mlflow.set_experiment(stage.project).experiment_id
        found = self.client.search_runs([experiment], f"tags.r1jax_id = '{stage.id}'")
        if found:
            self.id = found[0].info.run_id
            self.client.update_run(self.id, "RUNNING")
        else:
            self.id = self.client.create_run(experiment, run_name=stage.name, tags={"r1jax_id": stage.id}).info.run_id
            self.client.log_dict(self.id, stage.config(), "config.json")

    def log(self, step: int, values: Mapping[str, float]) -> None:
        now, metric = int(time.time() * 1000), self.mlflow.entities.Metric
        self.client.log_batch(
            self.id, [metric(re.sub(r"[^\w. /-]", "_", name), value, now, step) for name, value in values.items()]
        )

    def log_samples(self, step: int, rows: Rows) -> None:
        table = {name: [columns(row)[name] for row in rows] for name in COLUMNS}
        self.client.log_table(self.id, table, f"samples/{step:06}.json")

    def close(self, failed: bool = False) -> None:
        self.client.set_terminated(self.id, "FAILED" if failed else "FINISHED")


class Trackio:
    """Trackio, which finds the run of an earlier session by its name: that has the id in it."""

    def __init__(self, stage: TrackedStage):
        self.trackio = require("trackio")
        self.run = self.trackio.init(
            project=stage.project,
            name=f"{stage.name}-{stage.id}",
            group=stage.run_name,
            config=stage.config(),
            resume="allow",
        )

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self.run.log(dict(values), step=step)

    def log_samples(self, step: int, rows: Rows) -> None:
        import pandas

        table = self.trackio.Table(dataframe=pandas.DataFrame([columns(row) for row in rows]))
        self.run.log({"samples": table}, step=step)

    def close(self, failed: bool = False) -> None:
        self.run.finish()


TRACKERS: dict[str, Callable[[TrackedStage], Logger]] = {"wandb": WandB, "mlflow": MLflow, "trackio": Trackio}


def columns(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of samples.jsonl as one of a table; of an evaluation, `trained` is None."""
    flat = {"trained": None, **row, "question": row["problem"]["question"], "rewards": json.dumps(row["rewards"])}
    return {name: flat[name] for name in COLUMNS}


class OncePerStep:
    """Gives a tracker, which can't take back what it has, each step once: a resumed run makes some steps again.

    `loggers.json` in the stage's directory holds the tracker's id of the stage and the last steps that it was given.
    """

    def __init__(self, tracker: str, directory: epath.Path, project: str, first_step: int):
        self.tracker, self.path = tracker, directory / "loggers.json"
        known = read_json(self.path) if self.path.exists() else {}
        self.state = known.get(tracker) or {"id": uuid.uuid4().hex[:8], "metrics": -1, "samples": -1}
        self.keep()
        with self.calling():
            self.logger = TRACKERS[tracker](TrackedStage(directory, project, self.state["id"], first_step))

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self.once("metrics", step, lambda: self.logger.log(step, values))

    def log_samples(self, step: int, rows: Rows) -> None:
        self.once("samples", step, lambda: self.logger.log_samples(step, rows))

    def once(self, what: str, step: int, call: Callable[[], None]) -> None:
        if step <= self.state[what]:
            return
        with self.calling():
            call()
        self.state[what] = step
        self.keep()

    def keep(self) -> None:
        known = read_json(self.path) if self.path.exists() else {}
        write_atomically(self.path, json.dumps(known | {self.tracker: self.state}))

    def close(self, failed: bool = False) -> None:
        with self.calling():
            self.logger.close(failed)

    @contextmanager
    def calling(self) -> Iterator[None]:
        try:
            yield
        except UsageError:
            raise
        except Exception as error:  # each tracker has errors of its own
            reason = " ".join(str(error).split())[:200]
            raise RunError(
                f"logger '{self.tracker}': {type(error).__name__}: {reason}. The same command resumes; without"
                f" '{self.tracker}' in RunConfig.loggers it goes on with the others"
            ) from error


def require(package: str) -> Any:
    """The package. Raises UsageError where it is not installed."""
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise UsageError(
            f"RunConfig.loggers has '{package}', which is not installed ({error}): pip install {package}"
        ) from error


def require_loggers(names: Sequence[str]) -> None:
    """Raises UsageError for a tracker that is not installed."""
    for name in set(names) & TRACKERS.keys():
        require(name)


def open_loggers(names: Sequence[str], project: str, directory: epath.Path, first_step: int) -> list[Logger]:
    """The loggers of a stage, on the main process. What a run from `first_step` on makes again is logged once."""
    return [
        TensorBoard(TrackedStage(directory, project, "", first_step))
        if name == "tensorboard"
        else OncePerStep(name, directory, project, first_step)
        for name in names
    ]
