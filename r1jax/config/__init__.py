"""Every number of a run, as frozen dataclasses. gin files bind their fields (`r1jax/cli/gin_config.py`).

A field without a default must be bound: sizes and schedules are choices that no library should make in silence.
"""

from r1jax.config.checks import expected_type, fits, require_choice, require_positive, require_types
from r1jax.config.data import (
    DemonstrationsConfig,
    ExamplesConfig,
    FinishedRunConfig,
    GeneratedConfig,
    JsonlConfig,
    PreferenceFileConfig,
    PromptConfig,
    ReasoningGymConfig,
    RewardConfig,
)
from r1jax.config.model import EXPERTS, GROUPED, LATENT, BaseConfig, ModelConfig, RopeScalingConfig
from r1jax.config.rl import LossConfig, RLConfig, ValidationConfig
from r1jax.config.rollout import EngineConfig, SamplingConfig
from r1jax.config.rollout_stages import EvaluateConfig, PreferencesConfig, RejectionConfig
from r1jax.config.run import CheckpointConfig, MeshConfig, RunConfig
from r1jax.config.training import OptimizerConfig, PretrainConfig, RewardModelConfig, SFTConfig

RolloutStageConfig = RLConfig | EvaluateConfig | RejectionConfig | PreferencesConfig
StageConfig = PretrainConfig | SFTConfig | RewardModelConfig | RolloutStageConfig  # of a stage that needs the devices
