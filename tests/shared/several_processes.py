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

# An untrained base is never right. These two rewards differ between outputs, so that RL has a signal and rejection
# sampling keeps some. Each process records what it grades.
FORK = '''"""All kinds of work that processes share: records, training, rollouts, grading, environments, parts."""

import os
from dataclasses import dataclass, replace
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
from r1jax.types import Environments, Step

GIN_FILES = ("model/tiny_dense.gin", "algorithm/grpo.gin", "scale/cpu.gin", "scale/token_mean.gin")


@dataclass(frozen=True)
class Config(Parent):
    rejection: RejectionConfig


class Answers:
    """Says two words, once."""

    def reset(self, problem, seed):
        self.word, self.was_asked = 20 + seed % 50, False

    def step(self, turn):
        done, self.was_asked = self.was_asked, True
        return Step([self.word, self.word + 1], done=done)


def even(sample):
    with (Path(os.environ["GRADED"]) / str(os.getpid())).open("a") as file:
        file.write(f"{sample.problem.id} {sample.tokens}\\n")
    return float(len(set(sample.response_tokens)) % 2 == 0)


def run(run, config):
    run = run.with_task(replace(TASK, validation=TASK.held_out(4, run.seed)))
    wanted = [
        Records(TASK.corpus, "train", config.pretrain.documents),
        Records(TASK.prompts, "train", config.rl.num_prompts),
    ]
    corpus, problems = ensure_records(wanted, run.seed, run.workdir / "data")
    rewards = {
        "accuracy": Reward(even, 1.0),
        "variety": Reward(lambda sample: len(set(sample.response_tokens)) / 10, 1.0),
    }
    base = pretrain(run.stage("pretrain"), config.pretrain, corpus)
    policy = rl(run.stage("rl"), config.rl, base, problems, rewards)
    answered = replace(TASK, environments=Environments(Answers, TASK.tokenizer.encode_plain))
    rejection(run.with_task(answered).stage("rejection"), config.rejection, policy, problems, rewards)
    evaluate(run.stage("evaluate"), config.evaluate, policy, rewards)
'''

NUMBERS = SMALL | {
    "PretrainConfig.batch_size": 8,
    "RLConfig.log_samples_every": 1,
    "ValidationConfig.every": 2,
    "ValidationConfig.num_prompts": 4,
    "ValidationConfig.samples_per_prompt": 2,
    "CheckpointConfig.keep_best": 1,
    "EvaluateConfig.samples_per_prompt": 2,
    "EvaluateConfig.k": 2,
    "RejectionConfig.num_prompts": 8,
    "RejectionConfig.shard_prompts": 4,
    "RejectionConfig.samples_per_prompt": 8,
    "SamplingConfig.max_prompt_tokens": 24,
    "SamplingConfig.max_new_tokens": 12,
    "RejectionConfig.language": 0.0,
    "rejection/SamplingConfig.stop_ids": tuple(range(10, 60)),  # otherwise hardly any output would end
    "RLConfig.offload": ("reference", "optimizer"),
    "MeshConfig.data": 2,
    "MeshConfig.fsdp": 4,
}

# The stages that the fork above lacks: SFT, preference data, reward models, and RL with them, one step off-policy.
TAUGHT = '''"""Stages that learn from demonstrations and from preference data."""

from dataclasses import dataclass

from experiments.r1_zero import TASK
from experiments.r1_zero import Config as Parent
from r1jax.config import ExamplesConfig, PreferencesConfig, RewardModelConfig, SFTConfig
from r1jax.data.feeds import Records, ensure_records
from r1jax.rewards.rules import Reward
from r1jax.stages.evaluate import evaluate
from r1jax.stages.preferences import preferences
from r1jax.runs.learned_reward import LearnedReward
from r1jax.stages.pretrain import pretrain
from r1jax.stages.reward_model import reward_model
from r1jax.stages.rl import rl
from r1jax.stages.sft import sft

GIN_FILES = ("model/tiny_dense.gin", "algorithm/grpo.gin", "scale/cpu.gin", "scale/token_mean.gin")


@dataclass(frozen=True)
class Config(Parent):
    general: ExamplesConfig
    sft: SFTConfig
    preference_pairs: PreferencesConfig
    helpful: RewardModelConfig
    ratings: PreferencesConfig
    safe: RewardModelConfig


def different(problem, response):
    return float(len(set(response)))


def even(problem, response):
    return len(set(response)) % 2 - 0.5


def run(run, config):
    run = run.with_task(TASK)
    wanted = [
        Records("r1_corpus", "train", config.pretrain.documents),
        Records("chat_problems", "train", config.rl.num_prompts),
        Records("chat_demonstrations", "train", config.general.examples),
    ]
    corpus, requests, demonstrations = ensure_records(wanted, run.seed, run.workdir / "data")
    base = pretrain(run.stage("pretrain"), config.pretrain, corpus)
    tuned = sft(run.stage("sft"), config.sft, base, {"general": demonstrations})
    policies = {"base": base, "sft": tuned}
    stage = run.stage("preference_pairs")
    pairs = preferences(stage, config.preference_pairs, "pairwise", policies, requests, different)
    helpful = reward_model(run.stage("helpful"), config.helpful, tuned, {"preference_pairs": pairs})
    ratings = preferences(run.stage("ratings"), config.ratings, "pointwise", policies, requests, even)
    safe = reward_model(run.stage("safe"), config.safe, tuned, {"ratings": ratings})
    learned = {
        name: Reward(LearnedReward(run.layout, model, TASK, max_tokens=config.rl.sampling.max_tokens + 1), 1.0)
        for name, model in (("helpful", helpful), ("safe", safe))
    }
    rewards = learned | {"accuracy": Reward(lambda sample: float(len(sample.response_tokens) % 2), 1.0)}
    policy = rl(run.stage("rl"), config.rl, tuned, requests, rewards)
    evaluate(run.stage("evaluate"), config.evaluate, policy, rewards)
'''

TAUGHT_NUMBERS = {
    "SFTConfig.batch_size": 8,
    "SFTConfig.sequence_length": 80,
    "SFTConfig.log_every": 1,
    "SFTConfig.epochs": 1,
    "sft/OptimizerConfig.learning_rate": 1e-3,
    "general/ExamplesConfig.examples": 32,
    "PreferencesConfig.num_prompts": 16,
    "PreferencesConfig.samples_per_prompt": 8,
    "preference_pairs/PreferencesConfig.pairs_per_prompt": 2,
    "SamplingConfig.max_prompt_tokens": 24,
    "SamplingConfig.max_new_tokens": 12,
    "RewardModelConfig.max_tokens": 64,
    "RewardModelConfig.batch_size": 8,
    "helpful/RewardModelConfig.kind": "'pairwise'",
    "helpful/OptimizerConfig.learning_rate": 1e-3,
    "safe/RewardModelConfig.kind": "'pointwise'",
    "safe/OptimizerConfig.learning_rate": 1e-3,
    "RewardModelConfig.epochs": 1,
    "RewardModelConfig.log_every": 1,
    "RewardModelConfig.held_out": 0.2,
    "SamplingConfig.stop_ids": tuple(range(10, 60)),  # otherwise hardly any output would end
    "EngineConfig.mesh": "@rollout/MeshConfig()",
    "rollout/MeshConfig.data": 4,
    "rollout/MeshConfig.fsdp": 1,
    "rollout/MeshConfig.tensor": 2,
    "RLConfig.max_staleness": 1,
    "LossConfig.importance": "'token'",
}

# Sends its own process a signal in the third step of a stage, once the second checkpoint is on disk, and waits.
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
    """A process that has ended."""

    status: int
    text: str
    seconds: float  # from the end of the run's first process to end

    @property
    def said(self) -> str:
        """The last line that r1jax itself printed."""
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
    """Starts one process of a run; `signals` is (process, the stage in which it sends itself a signal, the signal)."""
    hurt = signals is not None and signals[0] == process
    code = ["-c", SIGNAL.format(stage=signals[1], number=int(signals[2]))] if signals and hurt else ["-m", "r1jax"]
    together = ["--coordinator", f"127.0.0.1:{port}", "--processes", str(processes), "--process_id", str(process)]
    (out / "graded").mkdir(exist_ok=True)
    environment = os.environ | {
        "XLA_FLAGS": xla_flags(8 // processes),
        "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]),
        # XLA threads: with one for each device, all can wait in collectives that others have yet to reach.
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
