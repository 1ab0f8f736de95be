"""From logits to a token: temperature, truncation, and randomness that is a function of position."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import struct

from r1jax.types import Array


@struct.dataclass
class DrawSettings:
    """Scalars, traced: changing them compiles nothing."""

    temperature: Array  # float32; 0 is greedy
    top_k: Array  # int32; 0: off
    top_p: Array  # float32; 1: off
    min_p: Array  # float32; 0: off
    min_tokens: Array  # int32; no stop token before this many other tokens
    stop_ids: Array  # int32 [any]; tokens that end a response; -1 is none


@dataclass(frozen=True)
class Truncation:
    """How top-k, top-p and min-p are computed; static.

    Attributes:
      on: whether one of them may be in use.
      mask_ids: at most this many tokens are kept, and their ids returned; 0: no bound, and no ids.
    """

    on: bool = False
    mask_ids: int = 0


@struct.dataclass
class Drawn:
    """A token for each of S rows."""

    token_S: Array  # int32
    logp_S: Array  # float32, in the distribution that it was drawn from
    mask_SI: Array | None = None  # int32, ids of the tokens that could be drawn, -1 behind them


def position_key(seed: int, *position: int) -> Array:
    """A key that is a function of position: fold_in(seed, stage, step, ...)."""
    key = jax.random.key(seed)
    for p in position:
        key = jax.random.fold_in(key, p)
    return key


def sample_key(key: Array, prompt_id: Array, sample_index: Array) -> Array:
    """A response's key: a function of the prompt's id and the sample's index, whatever is drawn beside it."""
    return jax.random.fold_in(jax.random.fold_in(key, prompt_id), sample_index)


def keep_likely(logp_SV: Array, s: DrawSettings, bound: int) -> tuple[Array, Array]:
    """The tokens that top-k, top-p and min-p all keep, of normalised log-probabilities; the likeliest always stays.

    top-p keeps the smallest set of the likeliest tokens whose probability reaches it (arXiv 1904.09751); min-p those at
    least that share as likely as the likeliest (arXiv 2407.01082).

    Args:
      bound: most tokens that are kept; 0: any number.

    Returns:
      bool [S, V], and the kept ids, likeliest first, -1 behind them: int32 [S, bound or V].
    """
    V = logp_SV.shape[-1]
    order_SI = jax.lax.top_k(logp_SV, min(bound, V))[1] if bound else jnp.argsort(-logp_SV, axis=-1)
    p_SI = jnp.exp(jnp.take_along_axis(logp_SV, order_SI, axis=-1))
    before_SI = jnp.cumsum(p_SI, axis=-1) - p_SI
    kept_SI = (jnp.arange(order_SI.shape[-1]) < jnp.where(s.top_k > 0, s.top_k, V)) & (before_SI < s.top_p)
    kept_SI &= (p_SI >= s.min_p * p_SI[:, :1]) & (p_SI > 0)
    kept_SI = kept_SI.at[:, 0].set(True)
    kept_SV = jax.vmap(lambda order_I, kept_I: jnp.zeros(V, bool).at[order_I].set(kept_I))(order_SI, kept_SI)
    ids_SI = jnp.where(kept_SI, order_SI, -1).astype(jnp.int32)
    return kept_SV, jnp.pad(ids_SI, ((0, 0), (0, max(bound - V, 0))), constant_values=-1)


def first_argmax(x_SV: Array) -> Array:
    """`jnp.argmax` of each row in two passes, int32 [S]; the last index where a row has NaNs.

    XLA would compute the noise of a row inside the loop of `jnp.argmax`, which is not vectorized on a CPU.
    """
    V = x_SV.shape[-1]
    is_max_SV = x_SV == x_SV.max(axis=-1, keepdims=True)
    return jnp.where(is_max_SV, jnp.arange(V, dtype=jnp.int32), V - 1).min(axis=-1)


def plain_argmax(x_SV: Array) -> Array:
    """Its reduction is fused with the noise on a TPU, which then stores none."""
    return jnp.argmax(x_SV, axis=-1).astype(jnp.int32)


@jax.named_scope("draw")
def draw(logits_SV: Array, keys_S: Array, count_S: Array, s: DrawSettings, truncation: Truncation) -> Drawn:
    """A token for each row, with its log-probability in the truncated distribution at the temperature.

    `count_S` is how many tokens each response has already; its next one is drawn with `fold_in(key, count)`. Greedy
    draws have log-probabilities at temperature 1.
    """
    is_greedy = s.temperature == 0
    logp_SV = jax.nn.log_softmax(logits_SV.astype(jnp.float32) * (1 / jnp.where(is_greedy, 1.0, s.temperature)))
    is_stop_V = (jnp.arange(logp_SV.shape[-1])[:, None] == s.stop_ids[None]).any(axis=-1)
    allowed_SV, mask_SI = ~(is_stop_V[None] & (count_S < s.min_tokens)[:, None]), None
    if truncation.on:
        normalised_SV = jax.nn.log_softmax(jnp.where(allowed_SV, logp_SV, -jnp.inf))
        kept_SV, mask_SI = keep_likely(normalised_SV, s, truncation.mask_ids)
        allowed_SV &= kept_SV
    left_SV = jnp.where(allowed_SV, logp_SV, -jnp.inf)
    noise_SV = jax.vmap(lambda k, n: jax.random.gumbel(jax.random.fold_in(k, n), logp_SV.shape[-1:]))(keys_S, count_S)
    noisy_SV = jnp.where(is_greedy, left_SV, left_SV + noise_SV)
    token_S = jax.lax.platform_dependent(noisy_SV, cpu=first_argmax, default=plain_argmax)
    # Exactly 0 where all tokens are left: log-probabilities normalised a second time would be rounded a second time.
    log_mass_S = jnp.where(allowed_SV.all(axis=-1), 0.0, jax.nn.logsumexp(left_SV, axis=-1))
    logp_S = jnp.take_along_axis(logp_SV, token_S[:, None], axis=-1)[:, 0] - log_mass_S
    return Drawn(token_S, logp_S, mask_SI if truncation.mask_ids else None)
