"""The jitted programs of training: core functions with shardings and donation.

Makers are cached on their settings, which are hashable: stages with the same settings share one compiled program. What
changes during a run (learning rate, temperature) is an argument.
"""

import functools
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import optax

from r1jax.config import ModelConfig, OptimizerConfig
from r1jax.model.softmax_attention import choose_attention
from r1jax.model.spec import init_params, init_router_bias
from r1jax.model.transformer import sequence_logits
from r1jax.objectives.grpo import LossSpec, rl_loss, with_old_logprobs
from r1jax.objectives.language_model import LossTerms, language_model_loss
from r1jax.objectives.logprobs import sample_logprobs
from r1jax.objectives.metrics import Max, Metrics, merge_metrics
from r1jax.objectives.optimizer import apply_updates, first_state, make_optimizer, policy_gradients
from r1jax.parallel.layout import Layout
from r1jax.parallel.sharded_ops import make_sharded_ops
from r1jax.types import Batch, Gradients, TokenBatch, TrainState, Weights


def on_platform(layout: Layout, model: ModelConfig) -> ModelConfig:
    """The model with its "auto" attention chosen for the devices that it will run on."""
    if model.attention != "auto":
        return model
    devices = layout.mesh.devices.ravel()
    capability = float(devices[0].compute_capability) if devices[0].platform == "gpu" else 0.0
    choice = choose_attention(devices[0].platform, model.dtype, model.qk_head_dim, capability)
    return replace(model, attention=choice)


@functools.cache
def abstract_weights(model: ModelConfig) -> Weights:
    """Shapes and dtypes."""
    return jax.eval_shape(lambda: Weights(init_params(jax.random.key(0), model), init_router_bias(model)))


def weights_shardings(layout: Layout, model: ModelConfig) -> Weights:
    bias = jax.tree.map(lambda _: layout.replicated(), abstract_weights(model).router_bias)
    return Weights(layout.params(model), bias)


def train_state_shardings(layout: Layout, model: ModelConfig, config: OptimizerConfig) -> TrainState:
    """Adam's moments and masters have the shardings of their parameters; everything small is on every device."""
    optimizer, weights = make_optimizer(config, model), weights_shardings(layout, model)
    opt_state = optax.tree_utils.tree_map_params(
        optimizer,
        lambda _, sharding: sharding,
        jax.eval_shape(optimizer.init, abstract_weights(model).params),
        weights.params,
        transform_non_params=lambda _: layout.replicated(),
    )
    return TrainState(layout.replicated(), weights.params, opt_state, weights.router_bias)


@functools.cache
def make_init_weights(layout: Layout, model: ModelConfig):
    """key -> Weights, made on the devices where they will be."""

    def init_weights(key):
        return Weights(init_params(key, model), init_router_bias(model))

    return jax.jit(init_weights, out_shardings=weights_shardings(layout, model))


@functools.cache
def make_start_training(layout: Layout, model: ModelConfig, config: OptimizerConfig):
    """Weights -> TrainState at step 0. The weights, of `updated_model`, are donated."""
    start = functools.partial(first_state, make_optimizer(config, model), config, model)
    return jax.jit(start, out_shardings=train_state_shardings(layout, model, config), donate_argnums=0)


@functools.cache
def make_language_model_step(layout: Layout, model: ModelConfig, config: OptimizerConfig, terms: LossTerms):
    """(TrainState, TokenBatch or SFTBatch, learning rate) -> (TrainState, metrics). The state is donated."""
    model = on_platform(layout, model)
    ops, optimizer = make_sharded_ops(layout, model), make_optimizer(config, model)

    def language_model_step(state: TrainState, batch: TokenBatch, rate):
        loss = functools.partial(language_model_loss, terms=terms, model=model, ops=ops)
        grads, (metrics, load) = jax.grad(loss, has_aux=True)(state.params, state.router_bias, batch)
        state, of_update = apply_updates(optimizer, config, model, state, grads, load, rate)
        return state, metrics | of_update

    shardings = train_state_shardings(layout, model, config)
    return jax.jit(language_model_step, donate_argnums=0, out_shardings=(shardings, layout.replicated()))


@functools.cache
def make_logits(layout: Layout, model: ModelConfig):
    """(Weights, TokenBatch) -> logits of the next tokens, float32 [B, T, V]."""
    model = on_platform(layout, model)
    return jax.jit(functools.partial(sequence_logits, config=model, ops=make_sharded_ops(layout, model)))


@functools.cache
def make_add_logprobs(layout: Layout, model: ModelConfig, spec: LossSpec, *, old: bool = True):
    """(Weights, reference Weights or None, Batch, temperature) -> (Batch, metrics). The batch is donated.

    Adds the log-probabilities of the policy (with `old`) and of the reference, both by the trainer's own forward pass:
    the first ratio is exactly 1 whatever the sampler's rounding.
    """
    model = on_platform(layout, model)
    ops = make_sharded_ops(layout, model)

    def add_logprobs(weights: Weights, reference: Weights | None, batch: Batch, temperature):
        metrics: Metrics = {}
        if reference is not None:
            ref_BT, _, _ = sample_logprobs(reference, batch, temperature, model, ops, replays_routes=False)
            batch = replace(batch, logprobs_ref_BT=ref_BT)
        if old:
            old_BT, _, _ = sample_logprobs(weights, batch, temperature, model, ops)
            batch, metrics = with_old_logprobs(batch, old_BT, spec.config)
        return batch, metrics

    return jax.jit(add_logprobs, donate_argnums=2, out_shardings=(layout.batch(), layout.replicated()))


@functools.cache
def make_rl_gradients(layout: Layout, model: ModelConfig, spec: LossSpec):
    """(Weights, Batch, temperature) -> Gradients of the microbatch."""
    model = on_platform(layout, model)
    loss = functools.partial(rl_loss, spec=spec, model=model, ops=make_sharded_ops(layout, model))

    def rl_gradients(weights: Weights, batch: Batch, temperature):
        sums, aux = jax.grad(loss, has_aux=True)(*weights, batch, temperature)
        return Gradients(jax.tree.map(lambda x: x.astype(jnp.float32), sums), *aux)

    everywhere: Any = layout.replicated()
    shardings = Gradients(layout.params(model), everywhere, everywhere, everywhere, everywhere)
    return jax.jit(rl_gradients, out_shardings=shardings)


@functools.partial(jax.jit, donate_argnums=0)
def add_gradients(a: Gradients, b: Gradients) -> Gradients:
    """Those of two microbatches together. The first is donated."""
    added = jax.tree.map(jnp.add, replace(a, metrics={}), replace(b, metrics={}))
    return replace(added, metrics=merge_metrics(a.metrics, b.metrics))


@functools.cache
def make_rl_update(layout: Layout, model: ModelConfig, config: OptimizerConfig):
    """(TrainState, Gradients of a minibatch, learning rate) -> (TrainState, metrics). The state is donated."""
    optimizer = make_optimizer(config, model, detached_mtp=True)

    def rl_update(state: TrainState, gradients: Gradients, rate):
        # In float32, whatever weights and moments are stored in.
        grads = policy_gradients(gradients.sums, gradients.weight, gradients.mtp_weight)
        state, metrics = apply_updates(optimizer, config, model, state, grads, gradients.load, rate)
        policy = {name: x for name, x in grads.items() if name != "mtp"}  # what is clipped together
        return state, gradients.metrics | metrics | {"grad_norm": Max(optax.global_norm(policy))}

    shardings = train_state_shardings(layout, model, config)
    return jax.jit(rl_update, donate_argnums=0, out_shardings=(shardings, layout.replicated()))
