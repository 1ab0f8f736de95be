"""Teacher-forced log-probabilities of what was sampled: the trainer's view of a rollout."""

import jax.numpy as jnp

from r1jax.config import ModelConfig
from r1jax.model.ops import ONE_DEVICE, ShardedOps
from r1jax.model.transformer import Hidden, forward, shift_targets
from r1jax.objectives.logprobs import hidden_logprobs
from r1jax.types import Array, PackedOutputs, Params


def by_output(values_BT: Array, packed: PackedOutputs, longest: int) -> Array:
    """Of each output's tokens, [B * J, N] with N = `longest`; what stands behind its end is meaningless."""
    B, T = values_BT.shape
    place_BJN = jnp.minimum(packed.start_BJ[..., None] + jnp.arange(longest), T - 1)
    return jnp.take_along_axis(values_BT, place_BJN.reshape(B, -1), axis=1).reshape(-1, longest)


def output_mask(packed: PackedOutputs, longest: int) -> Array:
    """float32 [B * J, N]: 1 on each output's tokens, by length and not by token id (a padding id may be drawn)."""
    return (jnp.arange(longest) < packed.length_BJ.reshape(-1, 1)).astype(jnp.float32)


def score(
    params: Params,
    router_bias: dict,
    packed: PackedOutputs,
    longest: int,
    temperature: Array | float,
    c: ModelConfig,
    routes_BTLK: Array | None = None,
    ops: ShardedOps = ONE_DEVICE,
) -> tuple[Array, Array, Hidden]:
    """log p and entropy of each output's tokens, float32 [B * J, N], and the hidden states that they come from."""
    hidden = forward(params, router_bias, packed.tokens, c, routes_BTLK, ops)
    next_BT, _ = shift_targets(packed.tokens, 1)
    size = c.tokenizer_size
    predicted = hidden_logprobs(params, hidden.hidden_BTD, next_BT, temperature, tokenizer_size=size, ops=ops)
    logp_BN, entropy_BN = (by_output(jnp.roll(x_BT, 1, axis=1), packed, longest) for x_BT in predicted)
    return logp_BN, entropy_BN, hidden
