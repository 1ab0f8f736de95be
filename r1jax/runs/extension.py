"""More steps for a stage of RL: with a larger `RLConfig.steps` it goes on, though it may have been complete."""

from collections.abc import Mapping
from typing import Any

from r1jax.config import RLConfig
from r1jax.objectives.optimizer import learning_rate


def extended_from(made_with: Mapping[str, Any], wanted: Mapping[str, Any]) -> int | None:
    """The steps of the stage's `config.json` where these are fewer than `wanted`, whatever else differs, else None."""
    then, now = (record.get("rl", {}).get("steps") for record in (made_with, wanted))
    return then if then and now and then < now else None


def with_steps(record: Mapping[str, Any], steps: int) -> dict[str, Any]:
    return {**record, "rl": record["rl"] | {"steps": steps}}


def effect_on_learning_rate(config: RLConfig, then: int) -> str:
    """What a longer schedule does to the learning rate of the next step."""
    updates, optimizer = config.updates_per_rollout, config.optimizer
    last = learning_rate(optimizer, then * updates - 1, then * updates)
    planned = learning_rate(optimizer, then * updates - 1, config.steps * updates)
    following = learning_rate(optimizer, then * updates, config.steps * updates)
    if last == planned:
        return f"the learning rate goes on at {following:.3g}"
    return (
        f"the learning rate's schedule is stretched: planned for {then} steps it was {last:.3g} in step {then},"
        f" and goes on at {following:.3g}; a run of {config.steps} steps from the start would differ"
    )
