"""What all stages of a run share."""

from dataclasses import dataclass

from r1jax.config.checks import require_positive, require_types

LOGGERS = ("tensorboard", "wandb", "mlflow", "trackio")


@dataclass(frozen=True)
class RunConfig:
    """What all stages share.

    Attributes:
      seed: every random number is a function of it and of a position (stage, step, prompt, sample).
      loggers: which get metrics and samples beside metrics.jsonl and samples.jsonl: some of "tensorboard", "wandb",
        "mlflow", "trackio".
      project: the name under which wandb and trackio file the run; mlflow's experiment.
    """

    seed: int = 0
    loggers: tuple[str, ...] = ("tensorboard",)
    project: str = "r1jax"

    def __post_init__(self) -> None:
        require_types(self)
        if unknown := set(self.loggers) - set(LOGGERS):
            raise ValueError(f"loggers has '{min(unknown)}', expected some of {', '.join(LOGGERS)}")


@dataclass(frozen=True)
class CheckpointConfig:
    """Which checkpoints of a stage are kept.

    Attributes:
      keep: the latest.
      keep_every: also those of steps that are multiples of it; None: no others.
      keep_best: in RL also this many of the best by ValidationConfig.metric.
    """

    keep: int = 2
    keep_every: int | None = None
    keep_best: int = 0

    def __post_init__(self) -> None:
        require_types(self)
        require_positive(self, "keep")
        if self.keep_every is not None:
            require_positive(self, "keep_every")
        if self.keep_best < 0:
            raise ValueError(f"keep_best is {self.keep_best}, expected 0 or more")


@dataclass(frozen=True)
class MeshConfig:
    """Devices on each mesh axis; -1 takes all that are left.

    Attributes:
      data: copies of the weights, each with rows of its own.
      fsdp: shards weights and rows.
      expert: shards experts, and rows.
      context: shards the tokens of a row; rollouts have whole rows.
      tensor: shards attention heads and widths.
    """

    data: int = -1
    fsdp: int = 1
    expert: int = 1
    context: int = 1
    tensor: int = 1

    def __post_init__(self) -> None:
        require_types(self)
