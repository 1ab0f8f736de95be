"""What all stages of a run share."""

from dataclasses import dataclass

from r1jax.config.checks import require_types


@dataclass(frozen=True)
class RunConfig:
    """What all stages share."""

    seed: int = 0  # every random number is a function of it and of a position (stage, step, prompt, sample)


@dataclass(frozen=True)
class MeshConfig:
    """Devices on each mesh axis; -1 takes all that are left."""

    data: int = -1
    fsdp: int = 1
    expert: int = 1
    context: int = 1  # divides the tokens of a row; rollouts have whole rows
    tensor: int = 1

    def __post_init__(self) -> None:
        require_types(self)
