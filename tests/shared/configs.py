"""Configs of stages that draw, from flat numbers: each goes to the config that has a field of its name."""

import dataclasses
from typing import Any, TypeVar

from r1jax.config import (
    EngineConfig,
    EvaluateConfig,
    LossConfig,
    OptimizerConfig,
    PreferencesConfig,
    RejectionConfig,
    RLConfig,
    SamplingConfig,
)

T = TypeVar("T")


def take(cls: type[T], numbers: dict[str, Any]) -> T:
    """A config of the numbers that are fields of `cls`, which are removed."""
    names = {field.name for field in dataclasses.fields(cls)} & numbers.keys()  # type: ignore[arg-type]
    return cls(**{name: numbers.pop(name) for name in names})


def rl_config(**numbers: Any) -> RLConfig:
    """4 prompts of at most 10 tokens, 4 samples each of at most 12, one minibatch, unless `numbers` say otherwise."""
    numbers = dict(
        optimizer=OptimizerConfig(1e-3), steps=4, prompts_per_step=4, group_size=4, minibatches_per_rollout=1,
        num_prompts=8,
    ) | numbers  # fmt: skip
    if "sampling" not in numbers:
        numbers = {"max_prompt_tokens": 10, "max_new_tokens": 12} | numbers
    nested = {"sampling": SamplingConfig, "engine": EngineConfig, "loss": LossConfig}
    taken = {name: numbers.pop(name, None) or take(cls, numbers) for name, cls in nested.items()}
    return RLConfig(**taken, **numbers)


def change(config: T, **numbers: Any) -> T:
    """A stage's config with some numbers changed, wherever in it they are."""
    for name in ("sampling", "engine", "loss", "optimizer"):
        part = getattr(config, name, None)
        if part is not None and name not in numbers:
            fields = {field.name for field in dataclasses.fields(part)} & numbers.keys()
            config = dataclasses.replace(
                config, **{name: dataclasses.replace(part, **{f: numbers.pop(f) for f in fields})}
            )  # type: ignore[type-var]
    return dataclasses.replace(config, **numbers)  # type: ignore[type-var]


def _drawing(cls: type[T], numbers: dict[str, Any]) -> T:
    sampling, engine = take(SamplingConfig, numbers), take(EngineConfig, numbers)
    return cls(sampling=sampling, engine=engine, **numbers)


def evaluate_config(**numbers: Any) -> EvaluateConfig:
    return _drawing(EvaluateConfig, numbers)


def rejection_config(**numbers: Any) -> RejectionConfig:
    return _drawing(RejectionConfig, numbers)


def preferences_config(**numbers: Any) -> PreferencesConfig:
    return _drawing(PreferencesConfig, numbers)
