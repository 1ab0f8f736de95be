"""A run of a minute's fraction, through the command line, in a process of its own."""

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from tests.conftest import ROOT, xla_flags

OPTIMISED = {"XLA_FLAGS": ""}  # variables of a run as users have it

SMALL = {
    "PretrainConfig.steps": 4,
    "PretrainConfig.batch_size": 4,
    "PretrainConfig.documents": 200,
    "PretrainConfig.save_every": 2,
    "PretrainConfig.log_every": 1,
    "RLConfig.steps": 4,
    "RLConfig.questions": 4,
    "RLConfig.group_size": 4,
    "RLConfig.minibatches": 2,
    "RLConfig.save_every": 2,
    "RLConfig.prompts": 16,
    "RLConfig.max_new_tokens": 12,
    "RLConfig.reference_refresh_updates": 3,
    "EvaluateConfig.problems": 16,
    "EvaluateConfig.samples": 8,
    "RolloutConfig.slots": 24,
    "EvaluateConfig.max_new_tokens": 12,
}

# A base of four steps solves nothing, so that accuracy alone would give no gradient: this reward always differs.
FORK = '''"""A fork outside the project: long answers pay."""

from experiments import r1_zero
from experiments.r1_zero import GIN_FILES, TASK, Config
from r1jax.rewards.rules import Reward


def run(run, config):
    length = Reward(lambda sample: len(set(sample.text.split())) / 10, 1.0)
    r1_zero.run(run, config, r1_zero.make_rewards(config, TASK) | {"variety": length})
'''

# Sends itself a signal, as a power cut or a scheduler would, in a stage's third step, once the second is on disk.
KILL = """
import os, signal, sys, time
from r1jax.telemetry.metrics import MetricsWriter
write = MetricsWriter.write
def killing(self, step, values):
    if step == 3 and self.path.parent.name == {stage!r}:
        while not (self.path.parent / "checkpoints" / "2").exists():
            time.sleep(0.02)
        os.kill(os.getpid(), signal.{signal})
    write(self, step, values)
MetricsWriter.write = killing
from r1jax.cli.main import main
sys.exit(main(sys.argv[1:]))
"""


def settings(**changes) -> list[str]:
    return [word for name, value in (SMALL | changes).items() for word in ("--set", f"{name}={value}")]


def r1jax(
    *arguments: str,
    kill_in: str | None = None,
    signal: str = "SIGKILL",
    cwd: Path = ROOT,
    devices: int = 1,
    variables: Mapping[str, str] | None = None,
):
    """Runs the command line; returns the finished process with its output."""
    code = ["-c", KILL.format(stage=kill_in, signal=signal)] if kill_in else ["-m", "r1jax"]
    environment = os.environ | {
        "XLA_FLAGS": xla_flags(devices),
        "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]),
        "COLUMNS": "200",
        **(variables or {}),
    }
    return subprocess.run(
        [sys.executable, *code, *arguments], cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )
