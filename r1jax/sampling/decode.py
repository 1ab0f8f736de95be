"""Rollouts on the device: prompts into latents, latents into slots, and rounds of decoding over the slots.

A slot holds one output in the making. All slots decode together; the cache is only read while they do. What is new goes
to a short tail that is merged into it once a round: a cache that is written at every step would be copied.

A step runs T places of each slot: the token that was drawn last and, with speculation, what the multi-token-prediction
module drafts to follow it. Drafts are drawn with the very noise that the model's own draw at that place uses: a draft
is right when the two draws are the same token, so that speculation changes no token at all, greedy or sampled.
"""

from dataclasses import replace
from typing import Any

import chex
import jax
import jax.numpy as jnp
from flax import struct

from r1jax.config import ModelConfig, RolloutConfig
from r1jax.model.ops import ONE_DEVICE, ShardedOps
from r1jax.model.quantize import quantize
from r1jax.model.transformer import empty_latents, forward_cached, forward_mtp_cached, logits
from r1jax.sampling.draw import DrawSettings, draw, sample_key
from r1jax.types import Array, Params


@struct.dataclass
class Prefilled:
    """Prompts that have been run; B rows, the first `length` of P places of each are tokens."""

    latents: dict[str, Any]  # [L, B, P, X] for each stack
    hidden_BD: Array  # of the last token, after the final norm
    logits_BV: Array  # float32, of the first token of any answer
    length_B: Array  # int32
    id_B: Array  # int32, the problem's id
    routes_BPLK: Any  # int16, the experts of each token, where they are asked for, else None


@struct.dataclass
class Pairs:
    """What the multi-token-prediction module has not seen yet: the T places that the last step ran."""

    hidden_STD: Array  # after the final norm
    next_ST: Array  # int32, the token behind each place
    accepted_ST: Array  # bool: the place is part of the output; the first is, or the slot is done


@struct.dataclass
class Slots:
    """S outputs in the making. `token` was drawn, but is neither emitted nor run."""

    cache: dict[str, Any]  # [L, S, W, X] for each stack; places from `length` on are meaningless
    length_S: Array  # int32, tokens that were run
    key_S: Array  # the output's key
    token_S: Array  # int32
    logp_S: Array  # float32, of `token` under the policy at the temperature
    drawn_logp_S: Array  # float32, of `token` as it was drawn
    count_S: Array  # int32, tokens emitted so far
    done_S: Array  # bool; true where the slot is free
    pairs: Any  # `Pairs` with speculation, else None


@struct.dataclass
class Emitted:
    """What a round gave, N = T places a step."""

    tokens_SN: Array  # int32
    logp_SN: Array  # float32
    drawn_logp_SN: Array  # float32
    is_token_SN: Array  # bool; the others are drafts that were wrong, and steps after the end
    done_S: Array  # bool: ended by a stop token or by the limit, with the last token of these
    steps: Array  # int32, model steps that the round took
    routes_SNLK: Any  # int16, the experts of each token, where they are asked for, else None


def places(r: RolloutConfig) -> int:
    """T: tokens of a slot that a step runs."""
    return 2 if r.speculative else 1


def stored(latents, r: RolloutConfig):
    """Latents as the cache holds them."""
    return jax.tree.map(lambda x: quantize(x, (-1,), r.cache), latents) if r.cache != "model" else latents


def prefill(
    params: Params,
    router_bias: dict,
    tokens_BP: Array,
    length_B: Array,
    id_B: Array,
    c: ModelConfig,
    r: RolloutConfig,
    ops: ShardedOps = ONE_DEVICE,
) -> Prefilled:
    """Runs right-padded prompts, a chunk at a time, over the latents of the chunks before.

    `params` here and below are in the dtype of the activations or quantized (`programs.rollout_weights`).
    """
    B, P = tokens_BP.shape
    chex.assert_shape((length_B, id_B), (B,))
    chunk = min(r.prefill_chunk, P)
    padded = -(-P // chunk) * chunk
    tokens_BP = jnp.pad(tokens_BP, ((0, 0), (0, padded + 1 - P)))

    def run(state, start):
        latents, last_BD = state
        tokens_BT = jax.lax.dynamic_slice_in_dim(tokens_BP, start, chunk, axis=1)
        positions_BT = jnp.broadcast_to(start + jnp.arange(chunk), (B, chunk))
        before = (jnp.arange(padded) < start)[None, None]
        contexts = [(latents, before)] if padded > chunk else []
        hidden_BTD, new, routes = forward_cached(params, router_bias, tokens_BT, positions_BT, contexts, c, ops)
        if r.speculative:
            next_BT = jax.lax.dynamic_slice_in_dim(tokens_BP, start + 1, chunk, axis=1)
            new |= forward_mtp_cached(params, router_bias, hidden_BTD, next_BT, positions_BT, contexts, c, ops)[1]
        latents = jax.tree.map(lambda old, x: jax.lax.dynamic_update_slice_in_dim(old, x, start, axis=2), latents, new)
        at_B = jnp.clip(length_B - 1 - start, 0, chunk - 1)
        is_here_B1 = ((length_B - 1) // chunk == start // chunk)[:, None]
        here_BD = jnp.take_along_axis(hidden_BTD, at_B[:, None, None], axis=1)[:, 0]
        last_BD = jnp.where(is_here_B1, here_BD, last_BD)
        return (latents, last_BD), routes.astype(jnp.int16) if routes is not None and r.routing_replay else None

    empty = empty_latents(c, B, padded, mtp=r.speculative)
    starts = jnp.arange(0, padded, chunk)
    (latents, last_BD), routes = jax.lax.scan(run, (empty, jnp.zeros((B, c.hidden_size), c.dtype)), starts)
    if r.routing_replay:
        routes = jnp.moveaxis(routes, 0, 1).reshape(B, padded, *routes.shape[3:])[:, :P]
    latents = stored(jax.tree.map(lambda x: x[:, :, :P], latents), r)
    return Prefilled(latents, last_BD, next_logits(params, last_BD, c, ops), length_B, id_B, routes)


def empty_slots(c: ModelConfig, r: RolloutConfig, slots: int, width: int) -> Slots:
    """Free slots, for outputs of `width` tokens with their prompts."""
    zeros, floats, true = jnp.zeros(slots, jnp.int32), jnp.zeros(slots, jnp.float32), jnp.ones(slots, bool)
    keys = jax.random.split(jax.random.key(0), slots)
    cache = stored(empty_latents(c, slots, width, mtp=r.speculative), r)
    pairs = new_pairs(jnp.zeros((slots, c.hidden_size), c.dtype), zeros) if r.speculative else None
    return Slots(cache, zeros, keys, zeros, floats, floats, zeros, true, pairs)


def new_pairs(hidden_SD: Array, next_S: Array) -> Pairs:
    """One place that was run, and one that was not."""
    return Pairs(
        jnp.stack([hidden_SD, hidden_SD], axis=1),
        jnp.stack([next_S, next_S], axis=1),
        jnp.broadcast_to(jnp.array([True, False]), (*next_S.shape, 2)),
    )


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

        def one(layer, cache_LSWX):  # at a time: only its prompts travel between devices, in no more memory than that
            chosen = jnp.where(is_new_S[:, None, None], prompt_LBPX[layer][from_S], cache_LSWX[layer][:, :P])
            return cache_LSWX.at[layer, :, :P].set(chosen)

        return jax.lax.fori_loop(0, len(cache_LSWX), one, cache_LSWX)

    def choose(new, old):
        return jnp.where(jnp.expand_dims(is_new_S, range(1, new.ndim)), new, old)

    begun = Slots(
        cache={},
        length_S=prompts.length_B[from_S],
        key_S=key_S,
        token_S=token_S,
        logp_S=logp_S,
        drawn_logp_S=drawn_logp_S,
        count_S=zero_S,
        done_S=jnp.zeros_like(slots.done_S),
        pairs=None if slots.pairs is None else new_pairs(prompts.hidden_BD[from_S], token_S),
    )
    cache = jax.tree.map(copy, slots.cache, prompts.latents)
    return replace(jax.tree.map(choose, begun, replace(slots, cache={})), cache=cache)


@struct.dataclass
class Round:
    """A round under way: what its loop carries. The cache is not among it: it is read where it is."""

    step: Array  # int32
    slots: Slots  # without their cache
    tail: dict[str, Any]  # [L, S, N, X] for each stack
    paired_SN: Array  # bool: where the tail of the multi-token-prediction module is true
    out: Emitted


def decode_round(
    params: Params,
    router_bias: dict,
    slots: Slots,
    limit: Array,
    s: DrawSettings,
    c: ModelConfig,
    r: RolloutConfig,
    ops: ShardedOps = ONE_DEVICE,
    *,
    width: int,
) -> tuple[Slots, Emitted]:
    """At most `steps_per_round` steps of every slot that is not done; ends early when all are.

    Args:
      limit: int32, most tokens of an output.
      width: places of the cache that any slot has filled; the rest is not looked at.
    """
    T = places(r)
    # The multi-token-prediction module has run all but the pairs that the last step gave.
    paired_S = slots.length_S - (slots.pairs.accepted_ST.sum(axis=1) if slots.pairs else 0)
    cache = jax.tree.map(lambda x: x[:, :, :width], slots.cache)
    seen_S1W, paired_S1W = ((jnp.arange(width) < n_S[:, None])[:, None] for n_S in (slots.length_S, paired_S))

    def step(state: Round) -> Round:
        """Runs the pending token of each slot, and a draft of the next; emits what is true, and draws what follows."""
        tokens_ST = state.slots.token_S[:, None]
        if r.speculative:
            draft_S, state = propose(params, router_bias, state, cache, paired_S1W, s, c, r, ops)
            tokens_ST = jnp.stack([state.slots.token_S, draft_S], axis=1)
        positions_ST = state.slots.length_S[:, None] + jnp.arange(T)
        contexts = [(cache, seen_S1W), (state.tail, state.out.is_token_SN[:, None])]
        hidden_STD, new, routes_STLK = forward_cached(params, router_bias, tokens_ST, positions_ST, contexts, c, ops)
        state = replace(state, tail=state.tail | append(state.tail, new, state.step * T))
        if r.routing_replay and routes_STLK is not None:
            at = (0, state.step * T, 0, 0)
            routes = jax.lax.dynamic_update_slice(state.out.routes_SNLK, routes_STLK.astype(jnp.int16), at)
            state = replace(state, out=replace(state.out, routes_SNLK=routes))
        next_ST, accepted_ST = [], []
        for t in range(T):
            accepted_S = ~state.slots.done_S & (tokens_ST[:, t] == state.slots.token_S)
            state = emit(state, state.step * T + t, accepted_S, limit, s)
            state = replace(state, slots=draw_next(params, state.slots, hidden_STD[:, t], accepted_S, s, c, r, ops))
            next_ST.append(state.slots.token_S)
            accepted_ST.append(accepted_S)
        pairs = Pairs(hidden_STD, jnp.stack(next_ST, 1), jnp.stack(accepted_ST, 1)) if r.speculative else None
        return replace(state, step=state.step + 1, slots=replace(state.slots, pairs=pairs))

    state = jax.lax.while_loop(
        lambda state: (state.step < r.steps_per_round) & ~jnp.all(state.slots.done_S), step, empty_round(slots, c, r)
    )
    tail = stored(state.tail, r)
    merged = {
        name: merge(slots.cache[name], tail[name], paired_S, state.paired_SN)
        if name == "mtp"
        else merge(slots.cache[name], tail[name], slots.length_S, state.out.is_token_SN)
        for name in tail
    }
    return replace(state.slots, cache=merged), replace(state.out, done_S=state.slots.done_S, steps=state.step)


def empty_round(slots: Slots, c: ModelConfig, r: RolloutConfig) -> Round:
    S, N = slots.token_S.shape[0], r.steps_per_round * places(r)
    floats_SN, none_SN = jnp.zeros((S, N), jnp.float32), jnp.zeros((S, N), bool)
    routes = None
    if r.routing_replay:
        L, K = c.num_hidden_layers - c.first_k_dense_replace, c.num_experts_per_tok
        routes = jnp.zeros((S, N, L, K), jnp.int16)
    tokens_SN = jnp.zeros((S, N), jnp.int32)
    out = Emitted(tokens_SN, floats_SN, floats_SN, none_SN, slots.done_S, jnp.int32(0), routes)
    return Round(jnp.int32(0), replace(slots, cache={}), empty_latents(c, S, N, mtp=r.speculative), none_SN, out)


def append(tail: dict[str, Any], new: dict[str, Any], at: Array) -> dict[str, Any]:
    """New latents at a place of the tail; that they are true is told apart."""

    def write(old, x):
        return jax.lax.dynamic_update_slice_in_dim(old, x, at, axis=2)

    return {name: jax.tree.map(write, tail[name], x) for name, x in new.items()}


def propose(
    params: Params,
    router_bias: dict,
    state: Round,
    cache: dict,
    paired_S1W: Array,
    s: DrawSettings,
    c: ModelConfig,
    r: RolloutConfig,
    ops: ShardedOps,
) -> tuple[Array, Round]:
    """Runs the multi-token-prediction module on the last step's pairs; what it draws behind the pending token, [S]."""
    slots, pairs, at = state.slots, state.slots.pairs, state.step * places(r)
    true_S1 = pairs.accepted_ST.sum(axis=1, keepdims=True)
    positions_ST = slots.length_S[:, None] - true_S1 + jnp.arange(places(r))
    contexts = [(cache, paired_S1W), (state.tail, state.paired_SN[:, None])]
    hidden_STD, new = forward_mtp_cached(
        params, router_bias, pairs.hidden_STD, pairs.next_ST, positions_ST, contexts, c, ops
    )
    last_SD = jnp.take_along_axis(hidden_STD, jnp.maximum(true_S1 - 1, 0)[..., None], axis=1)[:, 0]
    drafted_SV = next_logits(params, last_SD, c, ops)
    draft_S, _, _ = draw(drafted_SV, slots.key_S, slots.count_S + 1, s, truncate=r.truncates)
    paired_SN = jax.lax.dynamic_update_slice(state.paired_SN, pairs.accepted_ST, (0, at))
    return draft_S, replace(state, tail=state.tail | append(state.tail, new, at), paired_SN=paired_SN)


def emit(state: Round, place: Array, accepted_S: Array, limit: Array, s: DrawSettings) -> Round:
    """The pending token of each slot goes out, where it is what was run; it may be the last."""
    slots, out = state.slots, state.out
    out = replace(
        out,
        tokens_SN=out.tokens_SN.at[:, place].set(slots.token_S),
        logp_SN=out.logp_SN.at[:, place].set(slots.logp_S),
        drawn_logp_SN=out.drawn_logp_SN.at[:, place].set(slots.drawn_logp_S),
        is_token_SN=out.is_token_SN.at[:, place].set(accepted_S),
    )
    count_S = slots.count_S + accepted_S
    is_last_S = (slots.token_S[:, None] == s.stop_ids).any(axis=-1) | (count_S >= limit)
    done_S = slots.done_S | (accepted_S & is_last_S)
    slots = replace(slots, count_S=count_S, length_S=slots.length_S + accepted_S, done_S=done_S)
    return replace(state, slots=slots, out=out)


def draw_next(
    params: Params,
    slots: Slots,
    hidden_SD: Array,
    accepted_S: Array,
    s: DrawSettings,
    c: ModelConfig,
    r: RolloutConfig,
    ops: ShardedOps,
) -> Slots:
    """The token behind what was just emitted becomes the pending one."""
    drawn = draw(next_logits(params, hidden_SD, c, ops), slots.key_S, slots.count_S, s, truncate=r.truncates)
    pending = (slots.token_S, slots.logp_S, slots.drawn_logp_S)
    token_S, logp_S, drawn_logp_S = (jnp.where(accepted_S, new, old) for new, old in zip(drawn, pending, strict=True))
    return replace(slots, token_S=token_S, logp_S=logp_S, drawn_logp_S=drawn_logp_S)


def next_logits(params: Params, hidden_BD: Array, c: ModelConfig, ops: ShardedOps) -> Array:
    """float32 [B, V], each row whole on one device, which draws from it."""
    return ops.rows(ops.vocab(logits(params, ops.inner(hidden_BD), c.tokenizer_size)))


def merge(cache, tail, at_S: Array, accepted_SN: Array):
    """Each slot's true places behind what it has; the cache has room for one round more than any output."""
    order_SN = jnp.argsort(~accepted_SN, axis=1, stable=True)
    # Mapped over leading dimensions only: any other order makes XLA transpose the whole cache, and hold it twice.
    write_SWX = jax.vmap(lambda old, new, at: jax.lax.dynamic_update_slice_in_dim(old, new, at, axis=0))
    write_LSWX = jax.vmap(write_SWX, (0, 0, None))

    def one(cache_LSWX, tail_LSNX):
        return write_LSWX(cache_LSWX, jnp.take_along_axis(tail_LSNX, order_SN[None, :, :, None], axis=2), at_S)

    return jax.tree.map(one, cache, tail)
