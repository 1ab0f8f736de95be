"""r1jax: the DeepSeek-R1 recipe in JAX.

`load` a policy, look at its `logits`, draw `sample`s, score `logprobs`, compute the loss and gradient of `grpo`, or
`train` on own prompts with an own reward; docs/library.md has an example of each. The names are imported when they are
first read, so that `import r1jax` does not import JAX.
"""

import importlib
from typing import Any

__version__ = "0.1.0"

PUBLIC = {
    "r1jax.library": ("grpo", "load", "logits", "logprobs", "make_sample", "sample", "train"),
    "r1jax.config": (
        "EngineConfig", "LossConfig", "MeshConfig", "ModelConfig", "OptimizerConfig", "PromptConfig", "RLConfig",
        "SamplingConfig",
    ),
    "r1jax.errors": ("RunError", "UsageError"),
    "r1jax.rewards.rules": ("Reward",),
    "r1jax.runs.policy": ("Policy",),
    "r1jax.types": ("Problem", "Sample"),
}  # fmt: skip
MODULE_OF = {name: module for module, names in PUBLIC.items() for name in names}
__all__ = [*MODULE_OF]  # noqa: PLE0604


def __getattr__(name: str) -> Any:
    """Imports a public name (PEP 562)."""
    if name not in MODULE_OF:
        raise AttributeError(f"module 'r1jax' has no attribute '{name}'")
    value = globals()[name] = getattr(importlib.import_module(MODULE_OF[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *MODULE_OF])
