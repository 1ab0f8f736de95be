"""What the model asks of the devices that it runs on: nothing of one, `parallel/sharded_ops.py` has those of a mesh.

Arrays stay whole to the functional core; how they are divided, and which kernels run on the parts, is here.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from r1jax.config import ModelConfig
from r1jax.model.experts import experts_dense, experts_grouped
from r1jax.model.softmax_attention import attend
from r1jax.types import Array, Params


def experts(p: Params, x_BTD: Array, ids_BTK: Array, gates_BTK: Array, c: ModelConfig) -> Array:
    """The routed experts of each token, [B, T, D]."""
    K, D = ids_BTK.shape[-1], x_BTD.shape[-1]
    run = experts_dense if c.experts == "dense" else experts_grouped
    return run(p, x_BTD.reshape(-1, D), ids_BTK.reshape(-1, K), gates_BTK.reshape(-1, K)).reshape(x_BTD.shape)


def as_it_is(x: Any) -> Any:
    return x


@dataclass(frozen=True)
class ShardedOps:
    """An activation [B, T, …] lies in one of three ways.

    `rows`: divided over all devices that have tokens of their own, between blocks, and where each token is worked on by
    itself. `inner`: over those that don't divide matrices besides, while it is multiplied. `heads`, `vocab`: so, and
    its heads or words over the others.

    Where several devices have parts of a row, each attends from its own tokens to all S of the row:
    `all_gather_sequence` gives those to each part, as [parts, B, S, …], and leaves [B, S, …] where rows are whole; `keys`
    divides their heads.
    """

    rows: Callable[[Array], Array] = as_it_is
    inner: Callable[[Array], Array] = as_it_is
    heads: Callable[[Array], Array] = as_it_is  # [B, T, H, …]
    vocab: Callable[[Array], Array] = as_it_is  # [B, …, V]
    all_gather_sequence: Callable[[Array], Array] = as_it_is
    keys: Callable[[Array], Array] = as_it_is  # [B, S, H, …], or with parts before
    gather: Callable[[str, Params], Params] = lambda name, p: p  # weights of a layer of a stack, as they are used
    attend: Callable[..., Array] = attend  # softmax_attention.attend
    experts: Callable[..., Array] = experts
    shards: int = 1  # devices over which tokens are divided
    parts: int = 1  # of a row


ONE_DEVICE = ShardedOps()
