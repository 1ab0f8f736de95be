"""A run of several processes on this machine, each with fake devices of its own, through the command line."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.conftest import ROOT, xla_flags
from tests.shared.small_run import SMALL

# A base that knows nothing gets no reward for being right: these two differ between any outputs, and `accuracy` lets
# rejection sampling keep some. Each process notes what it grades.
FORK = '''"""Every kind of work that processes share: records, training, rollouts, grading, parts."""

import os
from dataclasses import dataclass
from pathlib import Path

from experiments.r1_zero import TASK
from experiments.r1_zero import Config as Parent
from r1jax.config import RejectionConfig
from r1jax.data.feeds import Records, ensure_records
from r1jax.rewards.rules import Reward
from r1jax.stages.evaluate import evaluate
from r1jax.stages.pretrain import pretrain
from r1jax.stages.rejection import rejection
from r1jax.stages.rl import rl

GIN_FILES = ("model/tiny_dense.gin", "scale/cpu.gin", "algorithm/grpo.gin")


@dataclass(frozen=True)
class Config(Parent):
    rejection: RejectionConfig


def even(sample):
    with (Path(os.environ["GRADED"]) / str(os.getpid())).open("a") as file:
        file.write(f"{sample.problem.id} {sample.tokens}\\n")
    return float(len(set(sample.tokens)) % 2 == 0)


def run(run, config):
    wanted = [
        Records(TASK.corpus, "train", config.pretrain.documents),
        Records(TASK.prompts, "train", config.rl.prompts),
    ]
    corpus, problems = ensure_records(wanted, run.seed, run.workdir / "data")
    rewards = {
        "accuracy": Reward(even, 1.0),
        "variety": Reward(lambda sample: len(set(sample.tokens)) / 10, 1.0),
    }
    base = pretrain(run, "pretrain", config.pretrain, config.model, TASK, corpus)
    policy = rl(run, "rl", config.rl, config.model, base, TASK, problems, rewards)
    rejection(run, "rejection", config.rejection, policy, TASK, problems, rewards)
    evaluate(run, "evaluate", config.evaluate, policy, TASK, rewards)
'''

NUMBERS = SMALL | {
    "PretrainConfig.batch_size": 8,
    "RLConfig.log_samples_every": 1,
    "EvaluateConfig.samples": 2,
    "EvaluateConfig.k": 2,
    "RejectionConfig.prompts": 8,
    "RejectionConfig.part": 4,
    "RejectionConfig.samples": 8,
    "RejectionConfig.max_prompt_tokens": 24,
    "RejectionConfig.max_new_tokens": 12,
    "RejectionConfig.language": 0.0,
    "rejection/RolloutConfig.stop_ids": tuple(range(10, 60)),  # or next to nothing would end
    "RLConfig.offload": ("reference", "optimizer"),
    "MeshConfig.data": 2,
    "MeshConfig.fsdp": 4,
}

# The stages that the fork above has not: written and judged data, SFT, reward models and RL with one, a step behind.
TAUGHT = '''"""Stages that learn from demonstrations and from judgements."""

from dataclasses import dataclass

from experiments.r1_zero import TASK
from experiments.r1_zero import Config as Parent
from r1jax.config import ExamplesConfig, PreferencesConfig, RewardModelConfig, SFTConfig
from r1jax.data.feeds import Records, ensure_records
from r1jax.rewards.rules import Reward
from r1jax.stages.evaluate import evaluate
from r1jax.stages.preferences import judged
from r1jax.runs.learned_reward import LearnedReward
from r1jax.stages.pretrain import pretrain
from r1jax.stages.reward_model import reward_model
from r1jax.stages.rl import rl
from r1jax.stages.sft import sft

GIN_FILES = ("model/tiny_dense.gin", "scale/cpu.gin", "algorithm/grpo.gin")


@dataclass(frozen=True)
class Config(Parent):
    general: ExamplesConfig
    sft: SFTConfig
    pairs: PreferencesConfig
    helpful: RewardModelConfig
    marked: PreferencesConfig
    safe: RewardModelConfig


def different(problem, response):
    return float(len(set(response)))


def even(problem, response):
    return len(set(response)) % 2 - 0.5


def run(run, config):
    wanted = [
        Records("r1_corpus", "train", config.pretrain.documents),
        Records("chat_problems", "train", config.rl.prompts),
        Records("chat_demonstrations", "train", config.general.examples),
    ]
    corpus, requests, demonstrations = ensure_records(wanted, run.seed, run.workdir / "data")
    base = pretrain(run, "pretrain", config.pretrain, config.model, TASK, corpus)
    tuned = sft(run, "sft", config.sft, config.model, base, TASK, {"general": demonstrations})
    policies = {"base": base, "sft": tuned}
    pairs = judged(run, "pairs", config.pairs, "pairwise", policies, TASK, requests, different)
    helpful = reward_model(run, "helpful", config.helpful, config.model, tuned, TASK, {"pairs": pairs})
    marked = judged(run, "marked", config.marked, "pointwise", policies, TASK, requests, even)
    safe = reward_model(run, "safe", config.safe, config.model, tuned, TASK, {"marked": marked})
    learned = {
        name: Reward(LearnedReward(run.layout, model, TASK, max_tokens=config.rl.longest + 1), 1.0)
        for name, model in (("helpful", helpful), ("safe", safe))
    }
    rewards = learned | {"accuracy": Reward(lambda sample: float(len(sample.tokens) % 2), 1.0)}
    policy = rl(run, "rl", config.rl, config.model, tuned, TASK, requests, rewards)
    evaluate(run, "evaluate", config.evaluate, policy, TASK, rewards)
'''

TAUGHT_NUMBERS = {
    "SFTConfig.batch_size": 8,
    "SFTConfig.sequence_length": 80,
    "SFTConfig.log_every": 1,
    "SFTConfig.epochs": 1,
    "sft/OptimizerConfig.learning_rate": 1e-3,
    "general/ExamplesConfig.examples": 32,
    "PreferencesConfig.prompts": 16,
    "PreferencesConfig.samples": 8,
    "pairs/PreferencesConfig.pairs": 2,
    "PreferencesConfig.max_prompt_tokens": 24,
    "PreferencesConfig.max_new_tokens": 12,
    "RewardModelConfig.max_tokens": 64,
    "RewardModelConfig.batch_size": 8,
    "helpful/RewardModelConfig.kind": "'pairwise'",
    "helpful/OptimizerConfig.learning_rate": 1e-3,
    "safe/RewardModelConfig.kind": "'pointwise'",
    "safe/OptimizerConfig.learning_rate": 1e-3,
    "RewardModelConfig.epochs": 1,
    "RewardModelConfig.log_every": 1,
    "RewardModelConfig.held_out": 0.2,
    "RolloutConfig.stop_ids": tuple(range(10, 60)),  # or next to nothing would end
    "RolloutConfig.mesh": "@rollout/MeshConfig()",
    "rollout/MeshConfig.data": 4,
    "rollout/MeshConfig.fsdp": 1,
    "rollout/MeshConfig.tensor": 2,
    "RLConfig.staleness": 1,
    "RLConfig.importance": "'token'",
}

# Sends its own process a signal in the third step of a stage, once the second is on disk; SIGTERM has time to be heard.
SIGNAL = """
import os, sys, time
from r1jax.telemetry.metrics import MetricsWriter
write = MetricsWriter.write
def killing(self, step, values):
    if step == 3 and self.path.parent.name == {stage!r}:
        while not (self.path.parent / "checkpoints" / "2").exists():
            time.sleep(0.02)
        os.kill(os.getpid(), {number})
        time.sleep(5)
    write(self, step, values)
MetricsWriter.write = killing
from r1jax.cli.main import main
sys.exit(main(sys.argv[1:]))
"""


@dataclass(frozen=True)
class Ended:
    """What a process left behind."""

    status: int
    text: str
    seconds: float  # after the first one of the run that ended

    @property
    def said(self) -> str:
        """The last line of its own."""
        return ([""] + [line for line in self.text.splitlines() if line.startswith("r1jax: ")])[-1]


def start(
    process: int,
    processes: int,
    port: int,
    arguments: Sequence[str],
    out: Path,
    signals: tuple[int, str, int] | None,
    variables: Mapping[str, str],
) -> subprocess.Popen:
    """One process of a run; `signals` are a process, the stage in which it sends itself a signal, and the signal."""
    hurt = signals is not None and signals[0] == process
    code = ["-c", SIGNAL.format(stage=signals[1], number=int(signals[2]))] if signals and hurt else ["-m", "r1jax"]
    together = ["--coordinator", f"127.0.0.1:{port}", "--processes", str(processes), "--process_id", str(process)]
    (out / "graded").mkdir(exist_ok=True)
    environment = os.environ | {
        "XLA_FLAGS": xla_flags(8 // processes),
        "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]),
        # XLA's threads, one for each device: once they all waited in collectives that others of them had yet to reach.
        "NPROC": "32",
        "COLUMNS": "200",
        "GRADED": str(out / "graded"),
        **variables,
    }
    with (out / f"{process}.txt").open("w") as file:
        return subprocess.Popen(
            [sys.executable, *code, *arguments, *(together if processes > 1 else [])],
            cwd=ROOT,
            env=environment,
            stdout=file,
            stderr=subprocess.STDOUT,
        )


def run_together(
    processes: int,
    arguments: Sequence[str],
    out: Path,
    *,
    signals: tuple[int, str, int] | None = None,
    variables: Mapping[str, str] | None = None,
    seconds: float = 900,
) -> list[Ended]:
    """Runs the command line in `processes` processes of 8 devices in all, until the last one has ended."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    running = [start(i, processes, port, arguments, out, signals, variables or {}) for i in range(processes)]
    began, ends = time.monotonic(), dict[int, float]()
    try:
        while len(ends) < processes:
            ends |= {i: time.monotonic() for i, p in enumerate(running) if i not in ends and p.poll() is not None}
            assert time.monotonic() - began < seconds, [
                (out / f"{i}.txt").read_text()[-2000:] for i in range(processes)
            ]
            time.sleep(0.1)
    finally:
        for process in running:
            process.kill()
    first = min(ends.values())
    return [
        Ended(process.returncode, (out / f"{i}.txt").read_text(), ends[i] - first) for i, process in enumerate(running)
    ]


def settings(**changes) -> list[str]:
    return [word for name, value in (NUMBERS | changes).items() for word in ("--set", f"{name}={value}")]
