"""What a run checks before it starts: that its stages fit the mesh, the model and the devices' memory."""

import math
from typing import Any

from r1jax.config import (
    ModelConfig,
    PretrainConfig,
    RewardModelConfig,
    RLConfig,
    RolloutStageConfig,
    SFTConfig,
    StageConfig,
)
from r1jax.errors import UsageError
from r1jax.parallel.layout import Layout
from r1jax.parallel.memory import at_once, require_memory, stage_memory
from r1jax.parallel.programs import on_platform
from r1jax.rollout.engine import require_possible


def check_stages(layout: Layout, config: Any, *, memory: bool = True) -> None:
    """Raises UsageError when a stage of an experiment does not fit the mesh, the model or the devices' memory."""
    for name, stage in stages(config).items():
        try:
            check_sizes(layout, config.model, stage)
            shares = isinstance(stage, RLConfig) and stage.share_prompts and layout.devices(layout.rules.tokens) > 1
            if shares and on_platform(layout, config.model).attention == "splash":
                raise UsageError(
                    "RLConfig.share_prompts is True and MeshConfig.context above 1: the attention of samples that share"
                    " a prompt takes place in rows of their own, which are not divided. Set RLConfig.share_prompts ="
                    " False, MeshConfig.context = 1, or ModelConfig.attention = 'chunked'"
                )
            if isinstance(stage, RolloutStageConfig):
                require_possible(config.model, stage.engine, stage.sampling)
            if memory:
                require_memory(layout, at_once(stage_memory(layout, config.model, stage)))
        except UsageError as error:
            raise UsageError(f"{name}: {error}") from error


def stages(config: Any) -> dict[str, StageConfig]:
    """The configs of an experiment's stages that use the devices, by field name."""
    return {name: stage for name, stage in vars(config).items() if isinstance(stage, StageConfig)}


def row_length(config: Any) -> tuple[str, int] | None:
    """The field of a stage's config that says how long its rows are, and their length."""
    if isinstance(config, PretrainConfig | SFTConfig):
        return f"{type(config).__name__}.sequence_length", config.sequence_length
    if isinstance(config, RewardModelConfig):
        return "RewardModelConfig.max_tokens", config.max_tokens
    if isinstance(config, RLConfig):
        return "RLConfig.row_tokens", max(config.row_tokens or 0, config.sampling.max_tokens)
    return None


def check_sizes(layout: Layout, model: ModelConfig | None, *configs: Any) -> None:
    """Raises UsageError for a batch or row that does not divide over the mesh, or a sequence too long for the model."""
    for config in configs:
        if isinstance(config, PretrainConfig | SFTConfig):
            layout.require_batch(f"{type(config).__name__}.batch_size", config.batch_size)
        if row := row_length(config):
            layout.require_row(*row)
            most = model.max_position_embeddings if model else math.inf
            if row[1] > most and not isinstance(config, RLConfig):  # a row of RL holds several samples
                raise UsageError(f"{row[0]} is {row[1]}, expected at most ModelConfig.max_position_embeddings ({most})")
