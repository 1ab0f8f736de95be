"""Rollouts on the device: prompts into latents, latents into slots, and rounds of decoding over the slots.

A slot holds one output in the making. All slots decode a token at a time; the cache is only read while they do. What is
new goes to a short tail that is merged into it once a round: a cache that is written at every step would be copied.
"""

from dataclasses import replace

import chex
import jax
import jax.numpy as jnp
from flax import struct

from r1jax.config import ModelConfig
from r1jax.model.transformer import cast, empty_latents, extend, logits
from r1jax.sampling.draw import DrawSettings, draw, sample_key
from r1jax.types import Array, Params


@struct.dataclass
class Prefilled:
    """Prompts that have been run; B rows, the first `length` of P places of each are tokens."""

    latents: dict[str, Array]  # [L, B, P, X] for each stack
    logits_BV: Array  # float32, of the first token of any answer
    length_B: Array  # int32
    id_B: Array  # int32, the problem's id


@struct.dataclass
class Slots:
    """S outputs in the making. `token` was drawn, but is neither emitted nor run."""

    cache: dict[str, Array]  # [L, S, W, X] for each stack; places from `length` on are meaningless
    length_S: Array  # int32, tokens in the cache
    key_S: Array  # the output's key
    token_S: Array  # int32
    logp_S: Array  # float32, of `token` under the policy at the temperature
    drawn_logp_S: Array  # float32, of `token` as it was drawn
    count_S: Array  # int32, tokens emitted so far
    done_S: Array  # bool; true where the slot is free


@struct.dataclass
class Emitted:
    """What a round gave; token n of slot s is there where n < count."""

    tokens_SN: Array  # int32
    logp_SN: Array  # float32
    drawn_logp_SN: Array  # float32
    count_S: Array  # int32
    done_S: Array  # bool: ended by a stop token or by the limit, with the last token of these
    steps: Array  # int32, model steps that the round took


def prefill(
    params: Params, router_bias: dict, tokens_BP: Array, length_B: Array, id_B: Array, c: ModelConfig, *, chunk: int
) -> Prefilled:
    """Runs right-padded prompts, `chunk` tokens at a time, over the latents of the chunks before."""
    B, P = tokens_BP.shape
    chex.assert_shape((length_B, id_B), (B,))
    params = cast(params, c)
    chunk = min(chunk, P)
    padded = -(-P // chunk) * chunk
    tokens_BP = jnp.pad(tokens_BP, ((0, 0), (0, padded - P)))

    def run(state, start):
        latents, last_BD = state
        tokens_BT = jax.lax.dynamic_slice_in_dim(tokens_BP, start, chunk, axis=1)
        positions_BT = jnp.broadcast_to(start + jnp.arange(chunk), (B, chunk))
        before = (jnp.arange(padded) < start)[None, None]
        contexts = [(latents, before)] if padded > chunk else []
        hidden_BTD, new = extend(params, router_bias, tokens_BT, positions_BT, contexts, c)
        latents = jax.tree.map(lambda old, x: jax.lax.dynamic_update_slice_in_dim(old, x, start, axis=2), latents, new)
        at_B = jnp.clip(length_B - 1 - start, 0, chunk - 1)
        is_here_B1 = ((length_B - 1) // chunk == start // chunk)[:, None]
        here_BD = jnp.take_along_axis(hidden_BTD, at_B[:, None, None], axis=1)[:, 0]
        return (latents, jnp.where(is_here_B1, here_BD, last_BD)), None

    state = (empty_latents(c, B, padded), jnp.zeros((B, c.hidden_size), c.dtype))
    (latents, last_BD), _ = jax.lax.scan(run, state, jnp.arange(0, padded, chunk))
    return Prefilled(jax.tree.map(lambda x: x[:, :, :P], latents), logits(params, last_BD), length_B, id_B)


def empty_slots(c: ModelConfig, slots: int, width: int) -> Slots:
    """Free slots, for outputs of `width` tokens with their prompts."""
    zeros, floats = jnp.zeros(slots, jnp.int32), jnp.zeros(slots, jnp.float32)
    keys = jax.random.split(jax.random.key(0), slots)
    cache = empty_latents(c, slots, width)
    return Slots(cache, zeros, keys, zeros, floats, floats, zeros, jnp.ones(slots, bool))


def insert(
    slots: Slots, prompts: Prefilled, row_S: Array, sample_S: Array, key: Array, s: DrawSettings, *, truncate: bool
) -> Slots:
    """Begins output `sample_S` of prompt `row_S` in each slot; row -1 leaves the slot as it is."""
    is_new_S, from_S = row_S >= 0, jnp.maximum(row_S, 0)
    key_S = jax.vmap(lambda i, n: sample_key(key, i, n))(prompts.id_B[from_S], sample_S)
    zero_S = jnp.zeros_like(row_S)
    token_S, logp_S, drawn_logp_S = draw(prompts.logits_BV[from_S], key_S, zero_S, s, truncate=truncate)

    def copy(cache_LSWX, prompt_LBPX):
        P = prompt_LBPX.shape[2]
        chosen = jnp.where(is_new_S[:, None, None], prompt_LBPX[:, from_S], cache_LSWX[:, :, :P])
        return cache_LSWX.at[:, :, :P].set(chosen)

    begun = Slots(
        jax.tree.map(copy, slots.cache, prompts.latents),
        prompts.length_B[from_S],
        key_S,
        token_S,
        logp_S,
        drawn_logp_S,
        zero_S,
        jnp.zeros_like(slots.done_S),
    )
    kept = replace(slots, cache=begun.cache)
    return jax.tree.map(lambda new, old: new if new.ndim > 1 else jnp.where(is_new_S, new, old), begun, kept)


def decode_round(
    params: Params,
    router_bias: dict,
    slots: Slots,
    limit: Array,
    s: DrawSettings,
    c: ModelConfig,
    *,
    steps: int,
    width: int,
    truncate: bool,
) -> tuple[Slots, Emitted]:
    """At most `steps` tokens for every slot that is not done; ends early when all are.

    Args:
      limit: int32, most tokens of an output.
      width: places of the cache that any slot has filled; the rest is not looked at.
    """
    S = slots.token_S.shape[0]
    params = cast(params, c)
    cache = jax.tree.map(lambda x: x[:, :, :width], slots.cache)
    in_cache_S1W = (jnp.arange(width) < slots.length_S[:, None])[:, None]

    def emit(i, state):
        """The pending token of each slot goes out; it may be the last."""
        slots, out = state
        live_S = ~slots.done_S
        out = replace(
            out,
            tokens_SN=out.tokens_SN.at[:, i].set(slots.token_S),
            logp_SN=out.logp_SN.at[:, i].set(slots.logp_S),
            drawn_logp_SN=out.drawn_logp_SN.at[:, i].set(slots.drawn_logp_S),
            count_S=out.count_S + live_S,
        )
        count_S = slots.count_S + live_S
        is_stop_S = (slots.token_S[:, None] == s.stop_ids).any(axis=-1)
        return replace(slots, count_S=count_S, done_S=slots.done_S | is_stop_S | (count_S >= limit)), out

    def step(state):
        """Emits a token of each slot, runs it, and draws the next."""
        i, slots, tail, out = state
        slots, out = emit(i, (slots, out))
        positions_S1 = (slots.length_S + i)[:, None]
        in_tail_11N = (jnp.arange(steps) < i)[None, None]
        contexts = [(cache, in_cache_S1W), (tail, in_tail_11N)]
        hidden_S1D, new = extend(params, router_bias, slots.token_S[:, None], positions_S1, contexts, c)
        tail = jax.tree.map(lambda t, n: jax.lax.dynamic_update_slice_in_dim(t, n, i, axis=2), tail, new)
        drawn = draw(logits(params, hidden_S1D[:, 0]), slots.key_S, slots.count_S, s, truncate=truncate)
        token_S, logp_S, drawn_logp_S = drawn
        slots = replace(slots, token_S=token_S, logp_S=logp_S, drawn_logp_S=drawn_logp_S)
        return i + 1, slots, tail, out

    def merge(cache_LSWX, tail_LSNX):
        """Each slot's tail behind what it has; the cache has room for one round more than any output."""
        put = jax.vmap(lambda c, t, at: jax.lax.dynamic_update_slice_in_dim(c, t, at, axis=1), (1, 1, 0), 1)
        return put(cache_LSWX, tail_LSNX, slots.length_S)

    floats = jnp.zeros((S, steps), jnp.float32)
    empty = Emitted(
        jnp.zeros((S, steps), jnp.int32), floats, floats, jnp.zeros(S, jnp.int32), slots.done_S, jnp.int32(0)
    )
    light = replace(slots, cache={})  # the loop carries no cache: it is read where it is
    state = (jnp.int32(0), light, empty_latents(c, S, steps), empty)
    taken, light, tail, out = jax.lax.while_loop(lambda x: (x[0] < steps) & ~jnp.all(x[1].done_S), step, state)
    merged = replace(light, cache=jax.tree.map(merge, slots.cache, tail), length_S=slots.length_S + taken)
    return merged, replace(out, done_S=light.done_S, steps=taken)
