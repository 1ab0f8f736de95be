"""AdamW as V3 trains with it (section 4.2), from optax; the learning rate is an argument of the compiled programs."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import optax

from r1jax.config import ModelConfig, OptimizerConfig
from r1jax.model.moe import update_router_bias
from r1jax.model.spec import param_specs, uses_router_bias
from r1jax.objectives.language_model import busiest_expert
from r1jax.objectives.metrics import Max, Metrics
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


def make_optimizer(
    config: OptimizerConfig, model: ModelConfig, *, detached_mtp: bool = False
) -> optax.GradientTransformation:
    """Clip by global norm, Adam, decoupled weight decay on matrices only; `apply_updates` applies the learning rate.

    `detached_mtp`: the modules learn without the model, and must not change how its gradient is clipped.
    """
    decayed = jax.tree.map(lambda spec: spec.fan_in > 0, param_specs(model))
    dtype = config.moment_dtype or model.param_dtype  # gradients may be in float32
    adam = optax.scale_by_adam(b1=config.b1, b2=config.b2, mu_dtype=dtype)
    if config.moment_dtype:  # optax has a dtype for the first moment only; the second keeps the one that it starts with
        start = adam.init
        adam = adam._replace(init=lambda params: start(optax.tree.cast(params, config.moment_dtype)))
    clip = clip_apart if detached_mtp else optax.clip_by_global_norm
    return optax.chain(clip(config.clip_norm), adam, optax.add_decayed_weights(config.weight_decay, mask=decayed))


def first_state(optimizer: optax.GradientTransformation, config: OptimizerConfig, weights: Weights) -> TrainState:
    """A TrainState at step 0, of a policy or a reward model."""
    params, bias = weights
    bias = jax.tree.map(jnp.zeros_like, bias) if config.router_bias == "off" else bias
    return TrainState(jnp.int32(0), params, optimizer.init(params), bias)


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
    metrics: Metrics = {
        "grad_norm": Max(optax.global_norm(grads)),
        "update_norm": Max(optax.global_norm(updates)),
        "learning_rate": Max(jnp.float32(rate)),
    }
    metrics |= busiest_expert({name: load_LE for name, load_LE in load.items() if name != "mtp"})
    return TrainState(state.step + 1, optax.apply_updates(state.params, updates), opt_state, bias), metrics


def policy_gradients(sums: Params, weight: Array, mtp_weight: Array) -> Params:
    """Gradients of the mean from sums: the modules' are divided by the number of their own targets."""

    def mean(path, total):
        return total / jnp.maximum(mtp_weight if path[0].key == "mtp" else weight, 1)

    return jax.tree_util.tree_map_with_path(mean, sums)
