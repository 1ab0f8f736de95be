"""What of a stage's config may change between sessions, and what that does.

Fields of speed and memory may. With a larger `RLConfig.steps` a stage of RL goes on, though it may have been complete.
"""

from collections.abc import Mapping
from typing import Any

from r1jax.config import RLConfig
from r1jax.objectives.optimizer import learning_rate

# Fields that change only the speed and memory of a step: rollouts give the same tokens, and updates differ by rounding
# at most. A stage that ran out of memory may be resumed with other values.
MUTABLE_ENGINE_FIELDS = (
    "slots", "steps_per_round", "prefill_rows", "prefill_chunk", "append_rows", "append_chunk", "environment_threads",
    "environment_timeout", "speculative", "mesh",
)  # fmt: skip
MUTABLE_UPDATE_FIELDS = ("row_tokens", "microbatch_rows", "offload")
MUTABLE_MODEL_FIELDS = ("remat",)
MUTABLE_STAGE_FIELDS = ("checkpoints",)


def drop_mutable_fields(stage_config: dict) -> dict:
    """A stage's `config.json` without the fields that may change between sessions and without its inputs' paths."""

    def drop(value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        value = {name: v for name, v in value.items() if name not in MUTABLE_MODEL_FIELDS + MUTABLE_STAGE_FIELDS}
        if "engine" not in value:
            return value
        engine = {name: v for name, v in value["engine"].items() if name not in MUTABLE_ENGINE_FIELDS}
        return {name: v for name, v in value.items() if name not in MUTABLE_UPDATE_FIELDS} | {"engine": engine}

    inputs = {name: {"content": entry["content"]} for name, entry in stage_config.get("inputs", {}).items()}
    return {key: drop(value) for key, value in stage_config.items()} | {"inputs": inputs}


def differences(found: Any, wanted: Any, path: str = "") -> list[str]:
    """Where two JSON values differ, as `name: FOUND there, WANTED now`."""
    if isinstance(found, dict) and isinstance(wanted, dict):
        keys = sorted(found.keys() | wanted.keys())
        return [d for key in keys for d in differences(found.get(key), wanted.get(key), f"{path}.{key}".lstrip("."))]
    return [] if found == wanted else [f"{path}: {found} there, {wanted} now"]


def extended_from(made_with: Mapping[str, Any], wanted: Mapping[str, Any]) -> int | None:
    """The recorded steps of RL if there are fewer than wanted, else None."""
    then, now = (record.get("rl", {}).get("steps") for record in (made_with, wanted))
    return then if then and now and then < now else None


def with_steps(record: Mapping[str, Any], steps: int) -> dict[str, Any]:
    return {**record, "rl": record["rl"] | {"steps": steps}}


def effect_of_more_steps(config: RLConfig, then: int) -> str:
    """What a longer schedule does to the learning rate, and what else differs from a run of all steps."""
    updates, optimizer = config.updates_per_rollout, config.optimizer
    last = learning_rate(optimizer, then * updates - 1, then * updates)
    planned = learning_rate(optimizer, then * updates - 1, config.steps * updates)
    effect = f"the learning rate goes on at {learning_rate(optimizer, then * updates, config.steps * updates):.3g}"
    if last != planned:
        effect = (
            f"the learning rate's schedule is stretched: at step {then} it is {planned:.3g} instead of {last:.3g},"
            f" and a run of {config.steps} steps from the start would differ"
        )
    return effect + (f"; step {then + 1} is drawn by the latest policy" if config.max_staleness else "")
