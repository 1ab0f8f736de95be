"""AdamW as V3 trains with it (section 4.2), from optax; the learning rate is an argument of the compiled programs."""

import math
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from r1jax.config import ModelConfig, OptimizerConfig
from r1jax.model.moe import update_router_bias
from r1jax.model.spec import param_specs, uses_router_bias
from r1jax.objectives.language_model import busiest_expert
from r1jax.objectives.metrics import Max, Mean, Metrics
from r1jax.types import Array, Params, TrainState, Weights


def learning_rate(config: OptimizerConfig, step: int, total_steps: int) -> float:
    """Of update `step`, from 0: linear warm-up that starts above 0, then a cosine to final_fraction."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    progress = min((step - config.warmup_steps) / max(total_steps - config.warmup_steps, 1), 1)
    cosine = (1 + math.cos(math.pi * progress)) / 2
    return config.learning_rate * (cosine + (1 - cosine) * config.final_fraction)


def clip_apart(max_norm: float) -> optax.GradientTransformation:
    """Clips the global norm of the model and, separately, that of its multi-token-prediction modules."""
    clip = optax.clip_by_global_norm(max_norm)

    def update(grads, state, params=None):
        modules = {name: grads[name] for name in grads if name == "mtp"}
        model = {name: grads[name] for name in grads if name != "mtp"}
        return clip.update(model, state)[0] | clip.update(modules, state)[0], state

    return optax.GradientTransformation(clip.init, update)


class MasterState(NamedTuple):
    """Float32 masters of weights that are stored in fewer bits, and the state of the optimizer that updates them."""

    masters: Params
    inner: optax.OptState


def with_masters(optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
    """The optimizer on float32 masters, which its state holds; `apply_updates` adds the updates to them."""

    def init(params):
        masters = optax.tree.cast(params, jnp.float32)
        return MasterState(masters, optimizer.init(masters))

    def update(grads, state, params=None):
        updates, inner = optimizer.update(optax.tree.cast(grads, jnp.float32), state.inner, state.masters)
        return updates, state._replace(inner=inner)

    return optax.GradientTransformation(init, update)


def updated_model(config: OptimizerConfig, model: ModelConfig) -> ModelConfig:
    """The model with weights in the dtype that updates are applied in: a stage that trains loads them in it."""
    return replace(model, param_dtype="float32") if config.master_weights else model


def make_optimizer(
    config: OptimizerConfig, model: ModelConfig, *, detached_mtp: bool = False
) -> optax.GradientTransformation:
    """Clip by global norm, Adam, decoupled weight decay on matrices only; `apply_updates` applies the learning rate.

    `detached_mtp`: the modules learn without the model, and must not change how its gradient is clipped.
    """
    decayed = jax.tree.map(lambda spec: spec.fan_in > 0, param_specs(model))
    updated = updated_model(config, model)
    dtype = config.moment_dtype or updated.param_dtype  # gradients may be in float32
    adam = optax.scale_by_adam(b1=config.b1, b2=config.b2, mu_dtype=dtype)
    if config.moment_dtype:  # optax has a dtype for the first moment only; the second keeps the one that it starts with
        start = adam.init
        adam = adam._replace(init=lambda params: start(optax.tree.cast(params, config.moment_dtype)))
    clip = clip_apart if detached_mtp else optax.clip_by_global_norm
    optimizer = optax.chain(clip(config.clip_norm), adam, optax.add_decayed_weights(config.weight_decay, mask=decayed))
    return optimizer if updated == model else with_masters(optimizer)


def first_state(
    optimizer: optax.GradientTransformation, config: OptimizerConfig, model: ModelConfig, weights: Weights
) -> TrainState:
    """A TrainState at step 0, of a policy or a reward model, from weights of `updated_model`."""
    params, bias = weights
    bias = jax.tree.map(jnp.zeros_like, bias) if config.router_bias == "off" else bias
    return TrainState(jnp.int32(0), optax.tree.cast(params, model.param_dtype), optimizer.init(params), bias)


def apply_updates(
    optimizer: optax.GradientTransformation,
    config: OptimizerConfig,
    model: ModelConfig,
    state: TrainState,
    grads: Params,
    load: dict[str, Array],
    rate: Any,
) -> tuple[TrainState, Metrics]:
    """One update at learning rate `rate`: the next state, and the metrics of the update."""
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    updates = jax.tree.map(lambda u: jnp.asarray(-rate, u.dtype) * u, updates)
    if config.mtp != "train" and "mtp" in updates:
        updates = updates | {"mtp": jax.tree.map(jnp.zeros_like, updates["mtp"])}  # no weight decay either
    bias = state.router_bias
    if uses_router_bias(model) and config.router_bias == "train":
        # Stacks that this step did not run have no load, and keep their bias.
        bias = bias | {name: update_router_bias(bias[name], load[name], config.router_bias_speed) for name in load}
    if isinstance(opt_state, MasterState):
        before, after = opt_state.masters, optax.apply_updates(opt_state.masters, updates)
        params, opt_state = optax.tree.cast(after, model.param_dtype), opt_state._replace(masters=after)
    else:
        before, params = state.params, optax.apply_updates(state.params, updates)
        after = params
    metrics: Metrics = {
        "grad_norm": Max(optax.global_norm(grads)),
        "update_norm": Max(optax.global_norm(jax.tree.map(lambda a, b: as_stored(b) - as_stored(a), before, after))),
        "changed_weights": changed_weights(state.params, params),
        "learning_rate": Max(jnp.float32(rate)),
    }
    metrics |= busiest_expert({name: load_LE for name, load_LE in load.items() if name != "mtp"})
    return TrainState(state.step + 1, params, opt_state, bias), metrics


def as_stored(x: Array) -> Array:
    """In float32, but rounded to its own dtype, which XLA may leave out of a fused computation."""
    dtype = jnp.finfo(x.dtype)
    return jax.lax.reduce_precision(x.astype(jnp.float32), dtype.nexp, dtype.nmant)


def changed_weights(before: Params, after: Params) -> Mean:
    """The fraction of weights that are stored as other numbers than before an update."""

    def count(a, b):
        # Exact for a matrix, whose count int32 can hold. A float32 sum of ones alone would stop growing at 2^24.
        matrix = tuple(range(max(a.ndim - 2, 0), a.ndim))
        return (as_stored(a) != as_stored(b)).sum(axis=matrix, dtype=jnp.int32).astype(jnp.float32).sum()

    counts = jax.tree.leaves(jax.tree.map(count, before, after))
    return Mean(sum(counts), jnp.float32(sum(x.size for x in jax.tree.leaves(before))))


def policy_gradients(sums: Params, weight: Array, mtp_weight: Array) -> Params:
    """Gradients of the mean from sums: the modules' are divided by the number of their own targets."""

    def mean(path, total):
        return total / jnp.maximum(mtp_weight if path[0].key == "mtp" else weight, 1)

    return jax.tree_util.tree_map_with_path(mean, sums)
