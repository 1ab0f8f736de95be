"""The operations of the model that depend on devices: identities on one device, parallel/sharded_ops.py on a mesh.

The functional core sees whole arrays. How they are sharded, and which kernels run on the shards, is decided here.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from r1jax.config import ModelConfig
from r1jax.model.context_attention import attend_context
from r1jax.model.experts import moe_dense, moe_grouped
from r1jax.model.softmax_attention import attend
from r1jax.types import Array, Params


def routed_experts(p: Params, x_BTD: Array, ids_BTK: Array, gates_BTK: Array, c: ModelConfig) -> Array:
    """The weighted sum of each token's chosen experts, [B, T, D], by `ModelConfig.experts`."""
    K, D = ids_BTK.shape[-1], x_BTD.shape[-1]
    run = moe_dense if c.experts == "dense" else moe_grouped
    return run(p, x_BTD.reshape(-1, D), ids_BTK.reshape(-1, K), gates_BTK.reshape(-1, K)).reshape(x_BTD.shape)


def identity(x: Any) -> Any:
    return x


@dataclass(frozen=True)
class ShardedOps:
    """Sharding constraints on activations, collectives, and the functions that run on each device's shards.

    Activations have three shardings. `residual`: the residual stream, its tokens over all data axes. `matmul_input`:
    tokens only over the axes that don't shard weight matrices. `attention_heads`, `kv_heads`, `latents`, `logits`:
    tokens as in `matmul_input`, and heads, latents or vocabulary over the axes that shard them in the weights.
    """

    residual: Callable[[Array], Array] = identity  # [B, T, …]
    matmul_input: Callable[[Array], Array] = identity  # [B, T, …]
    attention_heads: Callable[[Array], Array] = identity  # [B, T, H, …]
    latents: Callable[[Array], Array] = identity  # [B, T, X]
    logits: Callable[[Array], Array] = identity  # [B, …, V]
    # With context parallelism every shard of T tokens gets a copy of all S: [B, S, …] -> [sequence_shards, B, S, …].
    all_gather_sequence: Callable[[Array], Array] = identity
    kv_heads: Callable[[Array], Array] = identity  # [B, S, Y, …], or what all_gather_sequence makes of it
    gather_weights: Callable[[str, Params], Params] = lambda name, p: p  # all-gathers the named layer's weights
    attend: Callable[..., Array] = attend  # softmax_attention.attend
    attend_context: Callable[..., Any] = attend_context  # context_attention.attend_context
    experts: Callable[..., Array] = routed_experts
    token_shards: int = 1  # devices that tokens are sharded over, by sequences and within them
    sequence_shards: int = 1  # devices that the tokens of a sequence are sharded over


ONE_DEVICE = ShardedOps()
