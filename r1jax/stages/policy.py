"""A policy from a checkpoint, onto this run's devices."""

from dataclasses import dataclass

import jax
from etils import epath

from r1jax.checkpoint import store as checkpoint
from r1jax.config import ModelConfig
from r1jax.errors import RunError
from r1jax.model.spec import init_params, init_router_bias
from r1jax.parallel.layout import Layout
from r1jax.types import Params


@dataclass(frozen=True)
class Policy:
    model: ModelConfig
    task: str
    params: Params
    router_bias: dict


def load_policy(path: epath.Path, layout: Layout) -> Policy:
    """Raises UsageError when there is no checkpoint at `path`, RunError when it can't be read."""
    store, step = checkpoint.find(path)
    about = store.about(step)
    try:
        model = ModelConfig(**about["model"])
    except TypeError as error:
        raise RunError(
            f"{path} was written by another version of r1jax: its model config does not fit: {error}"
        ) from error
    item = store.restore_policy(step, policy_target(model, layout))
    return Policy(model, about["task"], item["params"], item["router_bias"])


def policy_target(model: ModelConfig, layout: Layout) -> dict:
    """The abstract params and router bias that a restore fills."""
    params = jax.eval_shape(lambda: init_params(jax.random.key(0), model))
    bias = jax.eval_shape(lambda: init_router_bias(model))
    shardings = checkpoint.policy_item(layout.params(model), jax.tree.map(lambda _: layout.replicated(), bias))
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
        checkpoint.policy_item(params, bias),
        shardings,
    )
