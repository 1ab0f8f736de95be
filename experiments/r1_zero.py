"""R1-Zero: pure RL with GRPO on a base model, rewarded by rules alone (DeepSeek-R1, arXiv 2501.12948, section 2.2).

python -m r1jax run r1_zero --workdir runs/r1_zero    # or: make demo

Takes about 3 minutes on 2 CPU cores. Expected, seed 0: sampled accuracy from 0.09 (base) to 0.94, format rate from 0.19
to 0.96.
"""

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property

from experiments import _files, _toy
from experiments._inputs import Inputs, Problems
from experiments._toy import TASK
from r1jax.config import (
    BaseConfig,
    EvaluateConfig,
    GeneratedConfig,
    JsonlConfig,
    MeshConfig,
    ModelConfig,
    PretrainConfig,
    PromptConfig,
    RewardConfig,
    RLConfig,
    RunConfig,
)
from r1jax.errors import UsageError
from r1jax.rewards.rules import Reward
from r1jax.runs.policy import base_model, base_task
from r1jax.runs.run import Run
from r1jax.runs.validation import require_validation
from r1jax.stages.evaluate import evaluate
from r1jax.stages.rl import rl

__all__ = ["GIN_FILES", "REPORT_NOTE", "TASK", "Config", "TaskConfig", "run", "run_task"]

GIN_FILES = ("model/tiny.gin", "algorithm/grpo.gin", "scale/cpu.gin", "scale/token_mean.gin")
REPORT_NOTE = (
    "The base was pretrained on worked sums, right and wrong ones, and now and then on the tags. RL rewards accuracy"
    " and format, and shows it no solutions. Compare the base's pass@8 with its pass@1: RL can reinforce what the base"
    " does now and then."
)


@dataclass(frozen=True)
class Config:
    """Every number of the experiment. The name of a field is its scope in gin.

    The base is pretrained on the demo's corpus, or, where `base` is set, imported: then problems come from files or
    from generators, or both, and `prompt` says how they are asked. A `base` that a stage of the demo made, in another
    run, takes the place of pretraining.
    """

    run: RunConfig
    mesh: MeshConfig
    architecture: ModelConfig | None  # of the pretrained base; an imported one says it itself
    pretrain: PretrainConfig | None
    base: BaseConfig | None
    train: JsonlConfig | None
    held_out: JsonlConfig | None
    generated: GeneratedConfig | None
    prompt: PromptConfig
    rl: RLConfig
    rewards: RewardConfig
    evaluate: EvaluateConfig

    def __post_init__(self) -> None:
        """Raises UsageError where data are not set, or not read."""
        files, generators = ("train", "held_out"), ("generated",)
        if self.is_demo:
            self.require(("pretrain", "architecture") if self.base is None else (), files + generators)
        else:
            has_files = self.generated is None or any(getattr(self, file) for file in files)
            self.require(files if has_files else generators, ("pretrain",))

    @cached_property
    def is_demo(self) -> bool:
        """Whether the problems are the demo's. Raises UsageError when nothing else is set, and there is no base."""
        if self.base is None or any((self.train, self.held_out, self.generated)):
            return self.base is None
        return base_task(self.base) == TASK.name

    @cached_property
    def model(self) -> ModelConfig:
        """Raises UsageError when there is no base, unless a dry run's gin files say what it is."""
        if self.base is not None:
            return base_model(self.base, self.architecture)
        assert self.architecture is not None
        return self.architecture

    def require(self, needed: tuple[str, ...], unread: tuple[str, ...]) -> None:
        """Raises UsageError for a field of `needed` that is None, and for one of `unread` that isn't."""
        why = "BaseConfig.path is not set" if self.base is None else f"BaseConfig.path is '{self.base.path}'"
        for field in (*needed, *unread):
            if (getattr(self, field) is None) == (field in needed):
                change = "add" if field in needed else "leave out"
                raise UsageError(f"{why}: {change} the gin bindings of Config.{field}")


@dataclass(frozen=True)
class TaskConfig:
    """The numbers of a fork that brings its own problems and rewards (`run_task`).

    Attributes:
      base: an imported checkpoint, or a stage of a finished run that began with one.
      prompt: how its problems are asked, "chat" by the checkpoint's own template.
      run, mesh, rl, evaluate: see their classes.
    """

    run: RunConfig
    mesh: MeshConfig
    base: BaseConfig
    prompt: PromptConfig
    rl: RLConfig
    evaluate: EvaluateConfig

    @cached_property
    def model(self) -> ModelConfig:
        """Raises UsageError when there is no base."""
        return base_model(self.base)


def make_inputs(run: Run, config: Config, stack: ExitStack) -> Inputs:
    """The processes of verifiers end with `stack`."""
    if config.is_demo:
        return _toy.zero_inputs(run, config)
    return _files.zero_inputs(run, config, stack)


def run(run: Run, config: Config, extra: Mapping[str, Reward] | None = None, **functions: Callable) -> None:
    """A fork adds rewards with `extra`; `functions` are its own `advantage` and `loss` (stages/rl.py)."""
    with ExitStack() as stack:
        inputs = make_inputs(run, config, stack)
        run_stages(run, config, inputs, inputs.rules(0.0) | dict(extra or {}), **functions)


def run_task(
    run: Run, config: TaskConfig, problems: Problems, rewards: Mapping[str, Reward], **functions: Callable
) -> None:
    """R1-Zero on the task of a fork, whose problems and rewards are its own.

    `problems(split, seed)` yields the `Problem`s of "train" or "test", which should have none in common, with different
    ids; there may be no end of them. A reward named "accuracy" is what evaluations go by. `functions` are as in `run`.
    Raises UsageError for anything but problems, and for a prompt that is too long.
    """
    run_stages(run, config, _files.task_inputs(run, config, problems, rewards), rewards, **functions)


def run_stages(
    run: Run, config: Config | TaskConfig, inputs: Inputs, rewards: Mapping[str, Reward], **functions: Callable
) -> None:
    """The base is evaluated, trained and evaluated again."""
    run = run.with_task(inputs.task)
    require_validation("rl", config.rl, rewards, len(inputs.task.validation))
    base = inputs.base(run)
    evaluate(run.stage("evaluate_base"), config.evaluate, base, rewards, inputs.held_out)
    r1_zero = rl(run.stage("rl"), config.rl, base, inputs.problems, rewards, **functions)
    evaluate(run.stage("evaluate_r1_zero"), config.evaluate, r1_zero, rewards, inputs.held_out)
