"""Log-probabilities of given tokens."""

import jax
import jax.numpy as jnp

from r1jax.types import Array


def token_logprobs(logits_BTV: Array, tokens_BT: Array, temperature: Array | float = 1.0) -> tuple[Array, Array]:
    """log p(token) and the entropy of p in nats, both float32 [B, T], of the distribution at `temperature` > 0.

    It is the distribution that the sampler draws from, so that ratios start at 1 at any temperature.
    """
    logp_BTV = jax.nn.log_softmax(logits_BTV.astype(jnp.float32) / temperature)
    logp_BT = jnp.take_along_axis(logp_BTV, tokens_BT[..., None], axis=-1)[..., 0]
    return logp_BT, -(jnp.exp(logp_BTV) * logp_BTV).sum(axis=-1)
