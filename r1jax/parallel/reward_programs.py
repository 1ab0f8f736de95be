"""The jitted programs of reward models, on the mesh and with the state of all others (`programs.py`)."""

import functools
from dataclasses import replace

import jax

from r1jax.config import ModelConfig, OptimizerConfig
from r1jax.model.spec import init_params, param_specs, router_bias_specs
from r1jax.objectives.optimizer import apply_updates, first_state, make_optimizer
from r1jax.objectives.reward_model import response_scores, reward_model_loss
from r1jax.parallel.layout import Layout
from r1jax.parallel.programs import on_platform, train_state_shardings
from r1jax.parallel.sharded_ops import make_sharded_ops
from r1jax.types import PreferenceBatch, TrainState, Weights


def scored_model(model: ModelConfig) -> ModelConfig:
    """The reward model of a policy's architecture.

    What only predicts tokens is dropped: it would be held, saved and decayed without ever being read.
    """
    return replace(model, scalar_head=True, num_nextn_predict_layers=0)


def trunk(weights: Weights, scored: ModelConfig) -> Weights:
    """What a reward model takes over of a policy."""
    names = [name for name in param_specs(scored) if name in weights.params]
    bias = {name: weights.router_bias[name] for name in router_bias_specs(scored)}
    return Weights({name: weights.params[name] for name in names}, bias)


@functools.cache
def make_start_reward_model(layout: Layout, model: ModelConfig, config: OptimizerConfig):
    """The trunk of a policy -> TrainState at step 0, with a scalar head. The trunk is donated."""
    optimizer = make_optimizer(config, model)

    def start_reward_model(trunk: Weights):
        params = init_params(jax.random.key(0), model) | trunk.params  # XLA drops what the trunk replaces
        return first_state(optimizer, config, model, trunk._replace(params=params))

    return jax.jit(start_reward_model, out_shardings=train_state_shardings(layout, model, config), donate_argnums=0)


@functools.cache
def make_reward_model_step(layout: Layout, model: ModelConfig, config: OptimizerConfig, kind: str):
    """(TrainState, PreferenceBatch, learning rate) -> (TrainState, metrics). The state is donated."""
    model = on_platform(layout, model)
    optimizer = make_optimizer(config, model)
    loss = functools.partial(reward_model_loss, config=model, kind=kind, ops=make_sharded_ops(layout, model))

    def reward_model_step(state: TrainState, batch: PreferenceBatch, rate):
        grads, (metrics, load) = jax.grad(loss, has_aux=True)(state.params, state.router_bias, batch)
        state, of_update = apply_updates(optimizer, config, model, state, grads, load, rate)
        return state, metrics | of_update

    shardings = train_state_shardings(layout, model, config)
    return jax.jit(reward_model_step, donate_argnums=0, out_shardings=(shardings, layout.replicated()))


@functools.cache
def make_reward_model_metrics(layout: Layout, model: ModelConfig, kind: str):
    """(params, router_bias, PreferenceBatch) -> metrics, of a held-out batch."""
    model = on_platform(layout, model)
    loss = functools.partial(reward_model_loss, config=model, kind=kind, ops=make_sharded_ops(layout, model))
    return jax.jit(lambda *arguments: loss(*arguments)[1][0], out_shardings=layout.replicated())


@functools.cache
def make_reward_scores(layout: Layout, model: ModelConfig):
    """(params, router_bias, tokens [B, T], lengths [B]) -> scores, float32 [B]; any number where a length is 0."""
    model = on_platform(layout, model)
    scores = functools.partial(response_scores, config=model, ops=make_sharded_ops(layout, model))
    return jax.jit(lambda *arguments: scores(*arguments)[0], out_shardings=layout.replicated())
