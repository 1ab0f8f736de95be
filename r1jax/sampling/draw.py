"""From logits to a token: temperature, truncation, and randomness that is a function of position."""

import jax
import jax.numpy as jnp
from flax import struct

from r1jax.types import Array


@struct.dataclass
class DrawSettings:
    """Scalars, traced: no change of them compiles anything."""

    temperature: Array  # float32; 0 is greedy
    top_k: Array  # int32; 0: off
    top_p: Array  # float32; 1: off
    min_p: Array  # float32; 0: off
    min_tokens: Array  # int32; no stop token before so many others
    stop_ids: Array  # int32 [any]; tokens that end an output; -1 is none


def sample_key(key: Array, prompt_id: Array, sample_index: Array) -> Array:
    """An output's key: a function of the prompt's id and the sample's index, whatever else is drawn beside it."""
    return jax.random.fold_in(jax.random.fold_in(key, prompt_id), sample_index)


def keep_likely(logp_SV: Array, s: DrawSettings) -> Array:
    """bool [S, V]: the tokens that top-k, top-p and min-p all leave, of normalised log-probabilities.

    top-p keeps the smallest set of the likeliest tokens whose probability reaches it (arXiv 1904.09751); min-p those at
    least that share as likely as the likeliest (arXiv 2407.01082). The likeliest token always stays.
    """
    V = logp_SV.shape[-1]
    order_SV = jnp.argsort(-logp_SV, axis=-1)
    p_SV = jnp.exp(jnp.take_along_axis(logp_SV, order_SV, axis=-1))
    before_SV = jnp.cumsum(p_SV, axis=-1) - p_SV
    kept_SV = (jnp.arange(V) < jnp.where(s.top_k > 0, s.top_k, V)) & (before_SV < s.top_p)
    kept_SV &= p_SV >= s.min_p * p_SV[:, :1]
    kept_SV = kept_SV.at[:, 0].set(True)
    return jnp.take_along_axis(kept_SV, jnp.argsort(order_SV, axis=-1), axis=-1)


def draw(
    logits_SV: Array, keys_S: Array, count_S: Array, s: DrawSettings, *, truncate: bool
) -> tuple[Array, Array, Array]:
    """A token for each row and its log-probabilities: under the policy at the temperature, and as it was drawn.

    `count_S` is how many tokens each output has already; its next one is drawn with `fold_in(key, count)`. Greedy
    draws have log-probabilities at temperature 1. `truncate` says whether top-k, top-p or min-p are on.
    """
    is_greedy = s.temperature == 0
    logp_SV = jax.nn.log_softmax(logits_SV.astype(jnp.float32) / jnp.where(is_greedy, 1.0, s.temperature))
    is_stop_V = (jnp.arange(logp_SV.shape[-1])[:, None] == s.stop_ids).any(axis=-1)
    allowed_SV = ~(is_stop_V & (count_S < s.min_tokens)[:, None])
    if truncate:
        allowed_SV &= keep_likely(jax.nn.log_softmax(jnp.where(allowed_SV, logp_SV, -jnp.inf)), s)
    drawn_SV = jax.nn.log_softmax(jnp.where(allowed_SV, logp_SV, -jnp.inf))
    noise_SV = jax.vmap(lambda k, n: jax.random.gumbel(jax.random.fold_in(k, n), logp_SV.shape[-1:]))(keys_S, count_S)
    token_S = jnp.argmax(jnp.where(is_greedy, drawn_SV, drawn_SV + noise_SV), axis=-1).astype(jnp.int32)

    def of_token(values_SV):
        return jnp.take_along_axis(values_SV, token_S[:, None], axis=-1)[:, 0]

    return token_S, of_token(logp_SV), of_token(drawn_SV)
