"""Each tracker has a killed and resumed run's metrics and samples in its own files, once each."""

import json
import sqlite3
import struct
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from etils import epath

from r1jax.errors import UsageError
from r1jax.telemetry import loggers
from r1jax.telemetry.loggers import COLUMNS, columns, open_loggers
from r1jax.telemetry.metrics import sample_row
from r1jax.types import Problem, Sample
from tests.shared.small_run import r1jax, settings

BLOCK, FULL, LAST = 32768, 1, 4  # of a LevelDB log


class Fake:
    """A tracker that keeps what it was given, over sessions too."""

    given: Counter = Counter()

    def __init__(self, run):
        self.id = run.id

    def log(self, step, values):
        self.given[self.id, "metrics", step] += 1

    def log_samples(self, step, rows):
        self.given[self.id, "samples", step] += 1

    def close(self, failed):
        pass


def test_a_resumed_stage_gives_each_step_once(tmp_path, monkeypatch):
    monkeypatch.setattr(loggers, "TRACKERS", {"fake": Fake})
    directory = epath.Path(tmp_path)
    for first, last in ((1, 3), (1, 2), (3, 5)):  # killed after step 3, then after step 2, then at the end
        [logger] = open_loggers(("fake",), "project", directory, first)
        for step in range(first, last + 1):
            logger.log_samples(step, [])
            logger.log(step, {"loss": 1.0})
        logger.close()
    [identity] = {identity for identity, _, _ in Fake.given}
    wanted = {(identity, what, step): 1 for what in ("metrics", "samples") for step in range(1, 6)}
    assert Fake.given == wanted


def test_samples_of_rl_and_of_evaluations_have_the_same_columns():
    """A sample of an evaluation is neither in an update nor left out of one."""
    row = sample_row(Sample(Problem(0, "1 + 1", "2", ""), reward=1.0, rewards={"accuracy": 1.0}, text="2"))
    tables = [columns(row | {"trained": True}), columns(row)]
    assert [list(table) for table in tables] == [list(COLUMNS)] * 2
    assert [table["trained"] for table in tables] == [True, None]


def test_a_tracker_that_is_not_installed_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "wandb", None)
    with pytest.raises(UsageError, match="wandb"):
        open_loggers(("wandb",), "project", epath.Path(tmp_path), 1)


def read_log(path: Path) -> Iterator[bytes]:
    """The records of a LevelDB log, which W&B's files are behind seven bytes of their own."""
    data, at, record = path.read_bytes(), 7, b""
    while at + 7 <= len(data):
        if BLOCK - at % BLOCK < 7:  # padding, where no header fits
            at += BLOCK - at % BLOCK
            continue
        length, kind = struct.unpack_from("<HB", data, at + 4)  # behind a checksum
        record += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (FULL, LAST):
            yield record
            record = b""


def in_wandb(home: Path, run: Path) -> dict[str, Counter]:
    """The steps of metrics and samples in W&B's offline files, by stage."""
    from wandb.proto import wandb_internal_pb2

    found: dict[str, Counter] = {}
    for file in sorted(run.rglob("*.wandb")):
        steps = found.setdefault(file.parents[2].name, Counter())
        for data in read_log(file):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(data)
            if record.WhichOneof("record_type") != "history":
                continue
            row = {item.key or item.nested_key[0]: json.loads(item.value_json) for item in record.history.item}
            for what, key in (("metrics", "learning_rate"), ("samples", "samples")):
                steps[what, row["_step"]] += key in row
    return found


def in_mlflow(home: Path, run: Path) -> dict[str, Counter]:
    import mlflow

    client = mlflow.MlflowClient(f"sqlite:///{home}/mlflow.db")
    [experiment] = client.search_experiments(filter_string="name = 'trial'")
    found = {}
    for one in client.search_runs([experiment.experiment_id]):
        steps = Counter(("metrics", m.step) for m in client.get_metric_history(one.info.run_id, "learning_rate"))
        for artifact in client.list_artifacts(one.info.run_id, "samples"):
            steps["samples", int(Path(artifact.path).stem)] += 1
        found[one.info.run_name.partition("/")[2]] = steps
    return found


def in_trackio(home: Path, run: Path) -> dict[str, Counter]:
    found: dict[str, Counter] = {}
    for file in (home / "trackio").glob("trial*.db"):
        with sqlite3.connect(file) as database:
            rows = database.execute("select run_name, step, metrics from metrics").fetchall()
        for name, step, text in rows:
            stage = name.partition("/")[2].rpartition("-")[0]
            values = json.loads(text)
            for what, key in (("metrics", "learning_rate"), ("samples", "samples")):
                found.setdefault(stage, Counter())[what, step] += key in values
    return found


@pytest.mark.slow
@pytest.mark.parametrize("tracker, read", [("wandb", in_wandb), ("mlflow", in_mlflow), ("trackio", in_trackio)])
def test_a_killed_run_is_in_the_tracker_once(tmp_path, monkeypatch, tracker, read):
    pytest.importorskip(tracker)
    variables = {
        "WANDB_MODE": "offline",
        "WANDB_SILENT": "true",
        "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db",
        "_MLFLOW_SERVER_ARTIFACT_ROOT": str(tmp_path / "artifacts"),
        "TRACKIO_DIR": str(tmp_path / "trackio"),
    }
    options = settings(**{"RLConfig.log_samples_every": 2})
    options += ["--set", f"RunConfig.loggers=('{tracker}',)", "--set", "RunConfig.project=trial"]
    run = tmp_path / "run"
    command = ("run", "r1_zero", "--workdir", str(run), *options)
    assert r1jax(*command, kill_in="rl", variables=variables, cwd=tmp_path).returncode == -9
    done = r1jax(*command, variables=variables, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    wanted = Counter({("metrics", step): 1 for step in range(1, 5)} | {("samples", 2): 1, ("samples", 4): 1})
    assert +read(tmp_path, run)["rl"] == wanted
