"""A run of under a minute, through the command line, in a process of its own."""

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from tests.conftest import ROOT, xla_flags

OPTIMISED = {"XLA_FLAGS": ""}  # the environment of a user's run
# Who runs r1jax has no torch, which parity tests need; tensorboardX imports it where it is, for seconds.
WITHOUT_TORCH = ROOT / "tests" / "shared" / "without_torch"

SMALL = {
    "PretrainConfig.steps": 4,
    "PretrainConfig.batch_size": 4,
    "PretrainConfig.documents": 200,
    "PretrainConfig.save_every": 2,
    "PretrainConfig.log_every": 1,
    "RLConfig.steps": 4,
    "RLConfig.prompts_per_step": 4,
    "RLConfig.group_size": 4,
    "RLConfig.minibatches_per_rollout": 2,
    "RLConfig.save_every": 2,
    "RLConfig.num_prompts": 16,
    "SamplingConfig.max_new_tokens": 12,
    "RLConfig.reference_refresh_updates": 3,
    "EvaluateConfig.num_prompts": 16,
    "EvaluateConfig.samples_per_prompt": 8,
    "EngineConfig.slots": 24,
    "evaluate/SamplingConfig.max_new_tokens": 12,
}

# A base of four steps solves nothing, so that accuracy alone gives no gradient: this reward differs within groups.
FORK = '''"""A fork outside the project that rewards variety."""

from experiments import r1_zero
from experiments.r1_zero import GIN_FILES, Config
from r1jax.rewards.rules import Reward


def run(run, config):
    length = Reward(lambda sample: len(set(sample.text.split())) / 10, 1.0)
    r1_zero.run(run, config, {"variety": length})
'''

# Sends its own process a signal in the third step of a stage, once the second checkpoint is on disk.
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
    given: str = "",
):
    """Runs the command line; returns the finished process with its output. `given` is its stdin."""
    code = ["-c", KILL.format(stage=kill_in, signal=signal)] if kill_in else ["-m", "r1jax"]
    environment = os.environ | {
        "XLA_FLAGS": xla_flags(devices),
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(WITHOUT_TORCH), *filter(None, [os.environ.get("PYTHONPATH")])]),
        "COLUMNS": "200",
        **(variables or {}),
    }
    command = [sys.executable, *code, *arguments]
    return subprocess.run(command, cwd=cwd, env=environment, input=given, capture_output=True, text=True, check=False)
