"""What all stages of a run share."""

from dataclasses import dataclass

from r1jax.config.checks import require_types


@dataclass(frozen=True)
class RunConfig:
    """What all stages share.

    Attributes:
      seed: every random number is a function of it and of a position (stage, step, prompt, sample).
    """

    seed: int = 0


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
