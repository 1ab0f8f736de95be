"""The jitted programs of reward models, on the mesh and with the state of all others (`programs.py`)."""

import functools
from dataclasses import replace

import jax

from r1jax.config import ModelConfig, OptimizerConfig, RewardModelConfig
from r1jax.model.spec import init_params, param_specs, router_bias_specs
from r1jax.objectives.metrics import Max
from r1jax.objectives.optimizer import learning_rate, make_optimizer
from r1jax.objectives.reward_model import response_scores, reward_model_loss
from r1jax.parallel.layout import Layout
from r1jax.parallel.programs import apply_updates, first_state, on_platform, train_state_shardings
from r1jax.parallel.sharded_ops import make_sharded_ops
from r1jax.types import PreferenceBatch, TrainState


def scored_model(model: ModelConfig) -> ModelConfig:
    """The reward model of a policy's architecture.

    What only predicts tokens is dropped: it would be held, saved and decayed without ever being read.
    """
    return replace(model, scalar_head=True, num_nextn_predict_layers=0)


def trunk(params, router_bias, scored: ModelConfig):
    """What a reward model takes over of a policy's (params, router_bias)."""
    names = [name for name in param_specs(scored) if name in params]
    return {name: params[name] for name in names}, {name: router_bias[name] for name in router_bias_specs(scored)}


@functools.cache
def start_reward_model(layout: Layout, model: ModelConfig, config: OptimizerConfig):
    """(trunk of a policy, router_bias) -> TrainState at step 0, with a scalar head. The arguments are donated."""
    optimizer = make_optimizer(config, model, 1)

    def start(trunk, router_bias):
        params = init_params(jax.random.key(0), model) | trunk  # XLA drops what the trunk replaces
        return first_state(optimizer, config, params, router_bias)

    return jax.jit(start, out_shardings=train_state_shardings(layout, model, config), donate_argnums=(0, 1))


@functools.cache
def reward_model_step(layout: Layout, model: ModelConfig, config: RewardModelConfig, steps: int):
    """(TrainState, PreferenceBatch) -> (TrainState, metrics). The state is donated."""
    model = on_platform(layout, model)
    optimizer = make_optimizer(config.optimizer, model, steps)
    schedule = learning_rate(config.optimizer, steps)

    def step(state: TrainState, batch: PreferenceBatch):
        loss = functools.partial(reward_model_loss, config=model, kind=config.kind, ops=make_sharded_ops(layout, model))
        grads, (metrics, load) = jax.grad(loss, has_aux=True)(state.params, state.router_bias, batch)
        state, norms = apply_updates(optimizer, model, config.optimizer, state, grads, load)
        return state, metrics | norms | {"learning_rate": Max(schedule(state.step - 1))}

    shardings = train_state_shardings(layout, model, config.optimizer)
    return jax.jit(step, donate_argnums=0, out_shardings=(shardings, layout.replicated()))


@functools.cache
def reward_model_metrics(layout: Layout, model: ModelConfig, kind: str):
    """(params, router_bias, PreferenceBatch) -> metrics, of a batch that is not learnt from."""
    model = on_platform(layout, model)
    loss = functools.partial(reward_model_loss, config=model, kind=kind, ops=make_sharded_ops(layout, model))
    return jax.jit(lambda *arguments: loss(*arguments)[1][0], out_shardings=layout.replicated())


@functools.cache
def reward_scores(layout: Layout, model: ModelConfig):
    """(params, router_bias, tokens [B, T], lengths [B]) -> scores, float32 [B]; any number where a length is 0."""
    model = on_platform(layout, model)
    scores = functools.partial(response_scores, config=model, ops=make_sharded_ops(layout, model))
    return jax.jit(lambda *arguments: scores(*arguments)[0], out_shardings=layout.replicated())
