"""A short R1 that is hurt at random moments, and started again each time, ends in the bits of one left alone."""

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from r1jax.cli.main import main
from tests.conftest import ROOT, xla_flags
from tests.shared.deepseek_tokens import needs_data, publish
from tests.shared.small_r1 import NUMBERS, bind, taught, write_files

pytestmark = [pytest.mark.slow, needs_data]

COUNT = 100
SECONDS = (4.0, 25.0)  # between a start and its fault; the first seconds are imports
OFTEN = {f"{name}.save_every": 1 for name in ("SFTConfig", "RewardModelConfig", "RLConfig")}
KINDS = ("SIGKILL", "SIGTERM", "full disk", "truncated checkpoint", "killed verifier")


@pytest.fixture
def disk(tmp_path) -> Iterator[Path]:
    """A file system of 1 GB, so that it can be filled; the run takes a third of it."""
    path = tmp_path / "disk"
    path.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1g", "tmpfs", str(path)], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting a small file system needs root")
    yield path
    subprocess.run(["umount", "-l", str(path)], check=True)


class Runs:
    """Starts the same command again and again; what it prints goes to files."""

    def __init__(self, base, home: Path):
        values = NUMBERS | OFTEN | write_files(home) | {"BaseConfig.path": repr(str(base)), "RLConfig.steps": 2}
        self.arguments = ["run", "r1", "--gin", "algorithm/r1.gin", *bind(values)]
        self.home = home

    def start(self, workdir: Path) -> subprocess.Popen:
        environment = os.environ | {"XLA_FLAGS": xla_flags(1), "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-m", "r1jax", *self.arguments, "--workdir", str(workdir)]
        with (self.home / "out.txt").open("w") as out, (self.home / "err.txt").open("w") as err:
            return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=out, stderr=err)

    def errors(self) -> list[str]:
        return (self.home / "err.txt").read_text().splitlines()


def fill(disk: Path) -> None:
    """Takes all space that is left."""
    with contextlib.suppress(OSError), (disk / "filler").open("wb", buffering=0) as file:
        while True:
            file.write(bytes(1 << 16))


def newest_checkpoint(workdir: Path) -> Path | None:
    """Of the stage that is under way."""
    steps = [
        step
        for step in workdir.glob("*/checkpoints/*")
        if step.name.isdigit() and not (step.parent.parent / "complete.json").exists()
    ]
    return max(steps, key=lambda step: (step.stat().st_mtime_ns, int(step.name)), default=None)


def hurt(kind: str, process: subprocess.Popen, disk: Path, rng: random.Random) -> str:
    """Does what `kind` says to a run that is under way; returns what became of it, in a word for the table."""
    if kind in ("SIGKILL", "SIGTERM"):
        process.send_signal(signal.Signals[kind])
    elif kind == "full disk":
        fill(disk)
    elif kind == "killed verifier":
        children = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True).stdout.split()
        if not children:
            return "no verifier yet"
        os.kill(int(rng.choice(children)), signal.SIGKILL)
    else:
        process.kill()
        process.wait()
        newest = newest_checkpoint(disk / "run")
        if newest is None:
            return "no checkpoint yet"
        files = sorted(path for path in newest.rglob("*") if path.is_file() and path.stat().st_size)
        hurt_file = rng.choice(files)
        os.truncate(hurt_file, hurt_file.stat().st_size // 2)
    return "done"


def results(workdir: Path) -> dict[str, dict]:
    """What each stage is marked with: content hashes, and figures of evaluations."""
    return {path.parent.name: json.loads(path.read_text()) for path in sorted(workdir.glob("*/complete.json"))}


def test_a_hundred_faults_leave_the_same_bits(tmp_path, disk, model, one_device, experiment_config):
    assert main(["import-hf", str(publish(tmp_path, model)), str(tmp_path / "base")]) == 0
    runs = Runs(taught(tmp_path, one_device, experiment_config), tmp_path)
    assert runs.start(tmp_path / "whole").wait() == 0, runs.errors()
    whole = results(tmp_path / "whole")

    rng, table, ended = random.Random(0), Counter(), 0
    while (faults := sum(n for (_, outcome), n in table.items() if outcome == "done")) < COUNT or not ended:
        process, kind = runs.start(disk / "run"), rng.choice(KINDS)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(rng.uniform(*SECONDS) if faults < COUNT else None)
        if process.poll() is None:
            outcome = hurt(kind, process, disk, rng)
            table[kind, outcome] += 1
            if kind == "killed verifier":  # the run goes on by itself
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(rng.uniform(*SECONDS))
                if process.poll() is None:
                    process.kill()
        status = process.wait(300)
        (disk / "filler").unlink(missing_ok=True)
        lines = runs.errors()
        assert status in (0, 1, 75, -signal.SIGKILL, -signal.SIGTERM), lines
        assert len(lines) <= 1, lines
        if status == 1 and kind != "full disk":  # the checkpoint that was truncated by the fault before
            assert "checkpoints" in lines[0] and "can't be read" in lines[0], lines
            shutil.rmtree(newest_checkpoint(disk / "run"))
        if status == 0:
            ended += 1
            assert results(disk / "run") == whole
            shutil.rmtree(disk / "run")
    print("\n".join(f"{kind}, {outcome}: {n}" for (kind, outcome), n in sorted(table.items())), f"\n{ended} ends")
    assert ended
