"""Log-probabilities of given tokens."""

import jax
import jax.numpy as jnp

from r1jax.model.ops import ONE_DEVICE, Ops
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
    ops: Ops = ONE_DEVICE,
) -> tuple[Array, Array]:
    """`token_logprobs` of the model's head on hidden states, some tokens at a time, computed again for gradients."""

    name = head_name(params)
    params = {name: ops.gather(name, params[name])}  # as stored: its gradient is added up over chunks in that dtype

    def one(chunk):
        hidden_BtD, tokens_Bt = chunk
        return token_logprobs(ops.vocab(logits(params, hidden_BtD, tokenizer_size)), tokens_Bt, temperature)

    B, T, D = hidden_BTD.shape
    size = max(AT_ONCE * ops.shards // (B * max(params[name].shape)), 1)
    if size >= T:
        return one((ops.inner(hidden_BTD), tokens_BT))
    pad = -T % size
    hidden_BctD = jnp.pad(ops.inner(hidden_BTD), ((0, 0), (0, pad), (0, 0))).reshape(B, -1, size, D)
    tokens_Bct = jnp.pad(tokens_BT, ((0, 0), (0, pad))).reshape(B, -1, size)
    chunks = jax.lax.map(jax.checkpoint(one), (jnp.moveaxis(hidden_BctD, 1, 0), jnp.moveaxis(tokens_Bct, 1, 0)))
    logp_BT, entropy_BT = (jnp.moveaxis(x_cBt, 0, 1).reshape(B, T + pad)[:, :T] for x_cBt in chunks)
    return logp_BT, entropy_BT
