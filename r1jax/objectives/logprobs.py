"""Log-probabilities of given tokens."""

import jax
import jax.numpy as jnp

from r1jax.model.ops import ONE_DEVICE, ShardedOps
from r1jax.model.transformer import head_name, logits
from r1jax.types import Array, Params

AT_ONCE = 2**26  # logits that exist at once on a device, 256 MiB in float32: [B, T, V] is never larger


def token_logprobs(logits_BTV: Array, tokens_BT: Array, temperature: Array | float = 1.0) -> tuple[Array, Array]:
    """log p(token) and the entropy of p in nats, both float32 [B, T], of the distribution at `temperature` > 0.

    It is the distribution that the sampler draws from, so that ratios start at 1 at any temperature.
    """
    logp_BTV = jax.nn.log_softmax(logits_BTV.astype(jnp.float32) / temperature)
    logp_BT = jnp.take_along_axis(logp_BTV, tokens_BT[..., None], axis=-1)[..., 0]
    return logp_BT, -(jnp.exp(logp_BTV) * logp_BTV).sum(axis=-1)


def hidden_logprobs(
    params: Params,
    hidden_BTD: Array,
    tokens_BT: Array,
    temperature: Array | float = 1.0,
    *,
    tokenizer_size: int | None = None,
    ops: ShardedOps = ONE_DEVICE,
) -> tuple[Array, Array]:
    """`token_logprobs` of the model's head on hidden states, some tokens at a time, computed again for gradients.

    Some of each part of a row, where devices have parts: all of them work on every chunk.
    """
    name = head_name(params)
    params = {name: ops.gather(name, params[name])}  # as stored: its gradient is added up over chunks in that dtype

    def one(chunk):
        hidden_BptD, tokens_Bpt = chunk
        return token_logprobs(ops.vocab(logits(params, hidden_BptD, tokenizer_size)), tokens_Bpt, temperature)

    (B, T), parts = tokens_BT.shape, ops.parts
    size = max(AT_ONCE * ops.shards // (B * parts * max(params[name].shape)), 1)  # of each part
    if size * parts >= T:
        return one((ops.inner(hidden_BTD), tokens_BT))
    pad = -(T // parts) % size

    def in_chunks(x_BT):
        x_Bpt = x_BT.reshape(B, parts, T // parts, *x_BT.shape[2:])
        x_Bpt = jnp.pad(x_Bpt, ((0, 0), (0, 0), (0, pad), *[(0, 0)] * (x_BT.ndim - 2)))
        return jnp.moveaxis(x_Bpt.reshape(B, parts, -1, size, *x_BT.shape[2:]), 2, 0)

    chunks = jax.lax.map(jax.checkpoint(one), (in_chunks(ops.inner(hidden_BTD)), in_chunks(tokens_BT)))
    whole_Bpt = (jnp.moveaxis(x_cBpt, 0, 2).reshape(B, parts, -1)[:, :, : T // parts] for x_cBpt in chunks)
    logp_BT, entropy_BT = (x_Bpt.reshape(B, T) for x_Bpt in whole_Bpt)
    return logp_BT, entropy_BT
