"""Conversion between a stage's training state and its checkpoint, in which the policy is an item of its own."""

import math
from dataclasses import replace
from typing import Any

import jax

from r1jax.checkpoint.store import CheckpointStore, policy_item
from r1jax.config import ModelConfig, OptimizerConfig
from r1jax.errors import RunError, UsageError
from r1jax.objectives.metrics import Metrics
from r1jax.objectives.optimizer import updated_model
from r1jax.parallel.layout import Layout
from r1jax.parallel.transfers import make_checksums
from r1jax.runs.run import Stage, sha256
from r1jax.telemetry.metrics import read_metrics
from r1jax.types import RLState, TrainState

State = TrainState | RLState
LEAST_CHANGE = 0.01  # of all weights: an update of 3e-6 changes 0.6% of bfloat16 weights, and nearly all of float32's


def split_policy(state: State) -> tuple[dict, State]:
    """(the policy's checkpoint item, the rest of the state)."""
    train = state.train if isinstance(state, RLState) else state
    rest = replace(train, params=None, router_bias={})
    policy = policy_item(train.params, train.router_bias)
    return policy, replace(state, train=rest) if isinstance(state, RLState) else rest


def policy_hash(layout: Layout, state: State) -> str:
    """A hash of the policy's bits, equal on every mesh."""
    policy, _ = split_policy(state)
    sums = jax.device_get(make_checksums(layout)(policy))
    named = [f"{jax.tree_util.keystr(path)} {x}" for path, x in jax.tree_util.tree_leaves_with_path(sums)]
    return sha256("\n".join(named).encode())


def restore_onto(store: CheckpointStore, step: int, state: State) -> tuple[Any, dict]:
    """The saved state, with the shapes and shardings of `state`, and the feed's position.

    Deletes the arrays of `state` first, because a device may have no room for two states.
    """
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)
    for x in jax.tree.leaves(state):
        x.delete()
    policy, rest, position = store.restore(step, *split_policy(abstract))
    if isinstance(rest, RLState):
        return replace(rest, train=replace(rest.train, **policy)), position
    return replace(rest, **policy), position


def say_if_lost(stage: Stage, step: int, save_every: int) -> None:
    """Says when the latest checkpoint, of `step`, is older than it should be: one was removed, or its save cut off."""
    logged = max((row["step"] for row in read_metrics(stage.directory / "metrics.jsonl")), default=0)
    if logged > (due := step + save_every):
        stage.run.progress.say(
            f"{stage.name}: there is no checkpoint of step {due:g}: it was removed, or its save was cut off. Steps from"
            f" {step + 1} on are done again"
        )


def finite_values(metrics: Metrics, stage: str, step: int) -> dict[str, float]:
    """Metrics as host floats. Raises RunError when one is not finite, so that no such state is saved."""
    values = {name: metric.value() for name, metric in jax.device_get(metrics).items()}
    broken = [name for name, value in values.items() if not math.isfinite(value)]
    if broken:
        raise RunError(
            f"{stage}: {', '.join(broken)} not finite at step {step}. The last checkpoint is unaffected: lower"
            " OptimizerConfig.learning_rate, or inspect the batch"
        )
    return values


def require_change(metrics: Metrics, config: OptimizerConfig, model: ModelConfig) -> None:
    """Raises UsageError when an update rounded to nothing for nearly all weights, because they have no masters."""
    if updated_model(config, model).param_dtype == "float32":
        return
    names = ("changed_weights", "learning_rate", "grad_norm")
    changed, rate, grad_norm = (jax.device_get(metrics[name]).value() for name in names)
    if grad_norm > 0 and changed < LEAST_CHANGE:
        raise UsageError(
            f"the first update, at learning rate {rate:.3g}, changed {changed:.3%} of the {model.param_dtype} weights,"
            f" expected at least {LEAST_CHANGE:.0%}: for the others it rounds to nothing. Set"
            " OptimizerConfig.master_weights = True, or ModelConfig.param_dtype (BaseConfig.param_dtype) = 'float32'"
        )
