"""A workdir in a bucket: gcsfs and TensorStore as they are, Google's side an imitation (tests/shared/fake_gcs.py)."""

import json
import os

import pytest
from etils import epath

from r1jax.cli.main import main
from r1jax.data.feeds import local_copy, record_files, records, write_array_record
from r1jax.paths import absolute
from r1jax.telemetry.files import append, write_atomically
from tests.shared.fake_gcs import fake_gcs
from tests.shared.small_run import r1jax, settings

os.environ["GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT"] = "false"  # read when gcsfs is imported


@pytest.fixture(scope="module")
def server():
    """Here and in other processes gs:// means it; gcsfs remembers for a whole process where that is."""
    with fake_gcs() as (held, variables), pytest.MonkeyPatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, value)
        yield held


@pytest.fixture
def bucket(server, monkeypatch, tmp_path):
    """What it holds, by name: nothing yet."""
    monkeypatch.setenv("HOME", str(tmp_path))  # where records are copied to
    server.objects.clear()
    return server


def test_files_grow_and_are_replaced(bucket):
    path = absolute("gs://bucket/run/metrics.jsonl")
    assert str(path) == "gs://bucket/run/metrics.jsonl"
    write_atomically(path, "1\n")
    append(path, "2\n")
    append(path, "3\n")
    assert path.read_text() == "1\n2\n3\n"
    write_atomically(path, "4\n")
    assert path.read_text() == "4\n"
    assert list(bucket.objects) == ["run/metrics.jsonl"]


def test_records_are_copied_once_for_what_they_hold(bucket):
    path = epath.Path("gs://bucket/data/sums.array_record")
    write_array_record(path, [{"x": 1}, {"x": 2}])
    assert list(bucket.objects) == ["data/sums.array_record"]
    assert list(records(path, None)) == [{"x": 1}, {"x": 2}]
    first = local_copy(path)
    assert record_files(path) == [first]
    write_array_record(path, [{"x": 3}, {"x": 4}, {"x": 5}])
    assert local_copy(path) != first
    assert list(records(path, None)) == [{"x": 3}, {"x": 4}, {"x": 5}]


@pytest.mark.slow
def test_a_run_in_a_bucket_is_killed_and_ends_in_the_bits_of_one_on_disk(bucket, finished, fork, capsys):
    arguments = ("run", str(fork), "--workdir", "gs://bucket/runs/one", *settings())
    assert r1jax(*arguments, kill_in="rl").returncode == -9
    again = r1jax(*arguments)
    assert again.returncode == 0, again.stderr
    for stage in ("pretrain", "evaluate_base", "rl", "evaluate_r1_zero"):
        there = json.loads(bucket.objects[f"runs/one/{stage}/complete.json"][0])
        assert there == json.loads((finished / stage / "complete.json").read_text()), stage
    for name in ("metrics.jsonl", "samples.jsonl", "config.json", "tensorboard/events"):
        assert any(key.startswith(f"runs/one/rl/{name}") for key in bucket.objects), name
    assert bucket.objects["runs/one/rl/metrics.jsonl"][0].count(b"\n") == 4
    assert not any(".partial" in key or key.endswith(".new") for key in bucket.objects)
    assert main(["report", "gs://bucket/runs/one"]) == 0
    assert "report: gs://bucket/runs/one/report.html" in capsys.readouterr().out
    assert (
        r1jax("generate", "gs://bucket/runs/one/rl", "--prompt", "compute 3 #a - 1", "--max_tokens", "44").returncode
        == 0
    )
