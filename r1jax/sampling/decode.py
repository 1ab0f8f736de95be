"""Rollouts on the device: prompts into latents, latents into slots, and rounds of decoding over the slots.

A slot holds one response while it is decoded. All slots decode together. While they do, the cache is only read: XLA
would copy a cache that every step writes. New latents go to a short tail, which is merged into the cache once a round.
(On one CPU device layers are unrolled, and XLA does not copy: there steps write into `BlockedCache`s, and no tail
exists.)

A step runs T tokens of each slot: the token that was drawn last and, with speculation, the draft of the next one by the
multi-token-prediction module. A draft is drawn with the same noise as the model's own draw at that position, and is
accepted when the two draws are the same token: speculation changes no token, greedy or sampled.
"""

import functools
from dataclasses import replace
from typing import Any

import chex
import jax
import jax.numpy as jnp
from flax import struct

from r1jax.config import EngineConfig, ModelConfig
from r1jax.model.blocked_cache import BlockedCache, make_blocked_cache
from r1jax.model.ops import ONE_DEVICE, ShardedOps
from r1jax.model.quantize import quantize
from r1jax.model.transformer import MTPInputs, forward_cached, forward_mtp_cached, init_cache, logits, unstack
from r1jax.sampling.draw import Drawn, DrawSettings, Truncation, draw, sample_key
from r1jax.types import Array, Weights


@struct.dataclass
class Sampler:
    """What every program of a rollout reads; `weights` in the dtype of the activations, or quantized."""

    weights: Weights
    model: ModelConfig = struct.field(pytree_node=False)
    engine: EngineConfig = struct.field(pytree_node=False)
    truncation: Truncation = struct.field(pytree_node=False, default=Truncation())
    ops: ShardedOps = struct.field(pytree_node=False, default=ONE_DEVICE)


@struct.dataclass
class Prefilled:
    """Prompts that have been run; B rows, the first `length` of P positions of each are tokens."""

    latents: dict[str, Any]  # [L, B, P, X] for each stack
    hidden_BD: Array  # of the last token, after the final norm
    logits_BV: Array  # float32, of the first token of any response
    length_B: Array  # int32
    id_B: Array  # int32, the problem's id
    routes_BPLK: Any  # int16, the experts of each token with routing replay, else None


@struct.dataclass
class DraftInputs:
    """The T tokens that the last step ran, which the multi-token-prediction (MTP) module reads next."""

    hidden_STD: Array  # after the final norm
    next_ST: Array  # int32, the token behind each of them
    accepted_ST: Array  # bool: the token is part of the response; the first is, unless the slot is done


@struct.dataclass
class Slots:
    """S responses that are decoded. `drawn` is the pending token: neither emitted nor run."""

    # [L, S, W, X] for each stack, or the `BlockedCache`s of its layers; positions from `length` on are undefined
    cache: dict[str, Any]
    length_S: Array  # int32, tokens that were run
    key_S: Array  # the response's key
    drawn: Drawn
    count_S: Array  # int32, tokens emitted so far
    done_S: Array  # bool; True where the slot is free
    drafts: Any  # `DraftInputs` with speculation, else None


@struct.dataclass
class Emitted:
    """What a round emitted, N = T tokens times the steps of a round."""

    tokens_SN: Array  # int32
    logp_SN: Array  # float32, as drawn
    is_token_SN: Array  # bool; False at rejected drafts, and after the end
    done_S: Array  # bool: the last token of these is a stop token or reaches its limit
    steps: Array  # int32, model steps that the round took
    masks_SNI: Any  # int32, `Drawn.mask_SI` of each token, else None
    routes_SNLK: Any  # int16, the experts of each token with routing replay, else None


def tokens_per_step(engine: EngineConfig) -> int:
    """T: tokens of a slot that a step runs."""
    return 2 if engine.speculative else 1


def stored(latents, engine: EngineConfig):
    """Latents as the cache holds them."""
    dtype = engine.cache_dtype
    return jax.tree.map(lambda x: quantize(x, (-1,), dtype), latents) if dtype != "model" else latents


def prefill(sampler: Sampler, tokens_BP: Array, length_B: Array, id_B: Array) -> Prefilled:
    """Runs right-padded prompts, a chunk at a time, over the latents of the chunks before."""
    (B, P), c = tokens_BP.shape, sampler.model
    chex.assert_shape((length_B, id_B), (B,))
    chunk = min(sampler.engine.prefill_chunk, P)
    padded = -(-P // chunk) * chunk
    tokens_BP = jnp.pad(tokens_BP, ((0, 0), (0, padded + 1 - P)))

    def run(state, start):
        latents, last_BD = state
        tokens_BT = jax.lax.dynamic_slice_in_dim(tokens_BP, start, chunk, axis=1)
        positions_BT = jnp.broadcast_to(start + jnp.arange(chunk), (B, chunk))
        before = (jnp.arange(padded) < start)[None, None]
        contexts = [(latents, before)] if padded > chunk else []
        is_token_BT = positions_BT < length_B[:, None]
        run = functools.partial(forward_cached, config=c, ops=sampler.ops, is_token_BT=is_token_BT)
        hidden_BTD, new, routes = run(sampler.weights, tokens_BT, positions_BT, contexts)
        if sampler.engine.speculative:
            next_BT = jax.lax.dynamic_slice_in_dim(tokens_BP, start + 1, chunk, axis=1)
            inputs = MTPInputs(hidden_BTD, next_BT, positions_BT)
            new |= forward_mtp_cached(sampler.weights, inputs, contexts, c, sampler.ops, is_token_BT)[1]
        latents = jax.tree.map(lambda old, x: jax.lax.dynamic_update_slice_in_dim(old, x, start, axis=2), latents, new)
        at_B = jnp.clip(length_B - 1 - start, 0, chunk - 1)
        is_here_B1 = ((length_B - 1) // chunk == start // chunk)[:, None]
        here_BD = jnp.take_along_axis(hidden_BTD, at_B[:, None, None], axis=1)[:, 0]
        last_BD = jnp.where(is_here_B1, here_BD, last_BD)
        replayed = jnp.asarray(routes, jnp.int16) if sampler.engine.routing_replay else None
        return (latents, last_BD), replayed

    empty = init_cache(c, B, padded, mtp=sampler.engine.speculative)
    starts = jnp.arange(0, padded, chunk)
    (latents, last_BD), routes = jax.lax.scan(run, (empty, jnp.zeros((B, c.hidden_size), c.dtype)), starts)
    if sampler.engine.routing_replay:
        routes = jnp.moveaxis(routes, 0, 1).reshape(B, padded, *routes.shape[3:])[:, :P]
    latents = stored(jax.tree.map(lambda x: x[:, :, :P], latents), sampler.engine)
    return Prefilled(latents, last_BD, next_logits(sampler, last_BD), length_B, id_B, routes)


def empty_slots(
    c: ModelConfig, engine: EngineConfig, truncation: Truncation, slots: int, width: int, *, blocked: bool = False
) -> Slots:
    """Free slots, for responses of `width` tokens with their prompts; `blocked`: with `BlockedCache`s."""
    zeros, floats = jnp.zeros(slots, jnp.int32), jnp.zeros(slots, jnp.float32)
    keys = jax.random.split(jax.random.key(0), slots)
    cache = stored(init_cache(c, slots, width, mtp=engine.speculative), engine)
    if blocked:
        Y = 1 if c.kv_lora_rank else c.num_key_value_heads
        cache = {name: [make_blocked_cache(layer, Y) for layer in unstack(stack)] for name, stack in cache.items()}
    masks = jnp.zeros((slots, truncation.mask_ids), jnp.int32) if truncation.mask_ids else None
    drafts = new_drafts(jnp.zeros((slots, c.hidden_size), c.dtype), zeros) if engine.speculative else None
    return Slots(cache, zeros, keys, Drawn(zeros, floats, masks), zeros, jnp.ones(slots, bool), drafts)


def new_drafts(hidden_SD: Array, next_S: Array) -> DraftInputs:
    """One token that was run, and one that was not."""
    return DraftInputs(
        jnp.stack([hidden_SD, hidden_SD], axis=1),
        jnp.stack([next_S, next_S], axis=1),
        jnp.broadcast_to(jnp.array([True, False]), (*next_S.shape, 2)),
    )


def choose(is_new_S: Array, new, old):
    """Leaves [S, …] of `new` where `is_new_S`, else of `old`."""
    return jax.tree.map(lambda x, y: jnp.where(jnp.expand_dims(is_new_S, range(1, x.ndim)), x, y), new, old)


def insert_blocked(stack: list[BlockedCache], prompts: Any, row_S: Array) -> list[BlockedCache]:
    """The caches of a stack's layers with prompt `row_S`, of [L, B, P, X], at the beginning of each slot."""
    blocked = [make_blocked_cache(prompt, old.heads) for prompt, old in zip(unstack(prompts), stack, strict=True)]
    order_S = jnp.argsort(row_S < 0, stable=True)

    def one(i, stack):
        def copy(old, new):
            row = jax.lax.dynamic_slice_in_dim(new, row_S[order_S[i]], 1)
            return jax.lax.dynamic_update_slice(old, row, (order_S[i], *[0] * (old.ndim - 1)))

        return jax.tree.map(copy, stack, blocked)

    return jax.lax.fori_loop(0, (row_S >= 0).sum(), one, stack)


def insert(
    slots: Slots, prompts: Prefilled, row_S: Array, sample_S: Array, key: Array, s: DrawSettings, truncation: Truncation
) -> Slots:
    """Begins response `sample_S` to prompt `row_S` in each slot; row -1 leaves the slot as it is."""
    is_new_S, from_S = row_S >= 0, jnp.maximum(row_S, 0)
    key_S = jax.vmap(lambda i, n: sample_key(key, i, n))(prompts.id_B[from_S], sample_S)
    zero_S = jnp.zeros_like(row_S)
    drawn = draw(prompts.logits_BV[from_S], key_S, zero_S, s, truncation)

    def copy(cache_LSWX, prompt_LBPX):
        P = prompt_LBPX.shape[2]

        def one(layer, cache_LSWX):  # layer by layer: what travels between devices is one layer of the prompts
            chosen = jnp.where(is_new_S[:, None, None], prompt_LBPX[layer][from_S], cache_LSWX[layer][:, :P])
            return cache_LSWX.at[layer, :, :P].set(chosen)

        return jax.lax.fori_loop(0, len(cache_LSWX), one, cache_LSWX)

    begun = Slots(
        cache={},
        length_S=prompts.length_B[from_S],
        key_S=key_S,
        drawn=drawn,
        count_S=zero_S,
        done_S=jnp.zeros_like(slots.done_S),
        drafts=None if slots.drafts is None else new_drafts(prompts.hidden_BD[from_S], drawn.token_S),
    )
    cache = {}
    for name, stack in slots.cache.items():
        latents = prompts.latents[name]
        cache[name] = insert_blocked(stack, latents, row_S) if is_list(stack) else jax.tree.map(copy, stack, latents)
    return replace(choose(is_new_S, begun, replace(slots, cache={})), cache=cache)


@struct.dataclass
class Round:
    """The state that a round's loop carries. A cache that is only read is not part of it: it is read where it is."""

    step: Array  # int32
    slots: Slots  # without their cache, but for the read part of `BlockedCache`s
    tail: dict[str, Any]  # [L, S, N, X] for each stack; none with `BlockedCache`s
    drafted_SN: Array  # bool: which tokens of the MTP module's tail are part of the response
    out: Emitted


def decode_round(
    sampler: Sampler, slots: Slots, limit_S: Array, s: DrawSettings, *, width: int
) -> tuple[Slots, Emitted]:
    """At most `steps_per_round` steps of every slot that is not done; ends early when all are.

    Args:
      limit_S: int32, most tokens that each response may have drawn.
      width: positions of the cache that any slot has filled; the rest is not read.
    """
    T = tokens_per_step(sampler.engine)
    state = empty_round(sampler, slots, width)
    # The MTP module has run all tokens but those that the last step accepted.
    drafted_S = slots.length_S - (slots.drafts.accepted_ST.sum(axis=1) if slots.drafts else 0)
    seen_S1W, drafted_S1W = ((jnp.arange(width)[None] < n_S[:, None])[:, None] for n_S in (slots.length_S, drafted_S))

    def step(state: Round) -> Round:
        """Runs the pending token of each slot, and a draft of the next; emits what is accepted, draws what follows."""
        tokens_ST = state.slots.drawn.token_S[:, None]
        if sampler.engine.speculative:
            draft_S, state = propose(sampler, state, (slots.cache, drafted_S1W), s)
            tokens_ST = jnp.stack([state.slots.drawn.token_S, draft_S], axis=1)
        positions_ST = state.slots.length_S[:, None] + jnp.arange(T)[None]
        contexts = [(slots.cache, seen_S1W), (state.tail, state.out.is_token_SN[:, None])]
        contexts = contexts if state.tail else written_contexts(state.slots.cache, positions_ST)
        is_token_ST = jnp.broadcast_to(~state.slots.done_S[:, None], tokens_ST.shape)
        run = functools.partial(forward_cached, config=sampler.model, ops=sampler.ops, is_token_BT=is_token_ST)
        hidden_STD, new, routes_STLK = run(sampler.weights, tokens_ST, positions_ST, contexts)
        state = keep(state, new, state.step * T)
        if state.out.routes_SNLK is not None:
            at = (0, state.step * T, 0, 0)
            routes = jax.lax.dynamic_update_slice(state.out.routes_SNLK, jnp.asarray(routes_STLK, jnp.int16), at)
            state = replace(state, out=replace(state.out, routes_SNLK=routes))
        next_ST, accepted_ST = [], []
        for t in range(T):
            accepted_S = ~state.slots.done_S & (tokens_ST[:, t] == state.slots.drawn.token_S)
            state = emit(state, state.step * T + t, accepted_S, limit_S, s)
            logits_SV = next_logits(sampler, hidden_STD[:, t])
            drawn = draw(logits_SV, state.slots.key_S, state.slots.count_S, s, sampler.truncation)
            drawn = choose(accepted_S, drawn, state.slots.drawn)
            state = replace(state, slots=replace(state.slots, drawn=drawn))
            next_ST.append(drawn.token_S)
            accepted_ST.append(accepted_S)
        drafts = DraftInputs(hidden_STD, jnp.stack(next_ST, 1), jnp.stack(accepted_ST, 1)) if T > 1 else None
        return replace(state, step=state.step + 1, slots=replace(state.slots, drafts=drafts))

    def goes_on(state: Round) -> Array:
        return (state.step < sampler.engine.steps_per_round) & ~jnp.all(state.slots.done_S)

    state = jax.lax.while_loop(goes_on, step, state)
    merged = merge_round(sampler, slots, state, drafted_S)
    return replace(state.slots, cache=merged), replace(state.out, done_S=state.slots.done_S, steps=state.step)


def empty_round(sampler: Sampler, slots: Slots, width: int) -> Round:
    c, mask_ids = sampler.model, sampler.truncation.mask_ids
    S, N = slots.count_S.shape[0], sampler.engine.steps_per_round * tokens_per_step(sampler.engine)
    L, K = c.num_hidden_layers - c.first_k_dense_replace, c.num_experts_per_tok
    tokens_SN, none_SN = jnp.zeros((S, N), jnp.int32), jnp.zeros((S, N), bool)
    routes = jnp.zeros((S, N, L, K), jnp.int16) if sampler.engine.routing_replay else None
    masks = jnp.zeros((S, N, mask_ids), jnp.int32) if mask_ids else None
    out = Emitted(tokens_SN, tokens_SN.astype(jnp.float32), none_SN, slots.done_S, jnp.int32(0), masks, routes)
    written = {name: [x.first(width + N) for x in stack] for name, stack in slots.cache.items() if is_list(stack)}
    tail = {} if written else init_cache(c, S, N, mtp=sampler.engine.speculative)
    return Round(jnp.int32(0), replace(slots, cache=written), tail, none_SN, out)


def is_list(stack: Any) -> bool:
    """Whether it is the `BlockedCache`s of a stack's layers."""
    return isinstance(stack, list)


def written_contexts(cache: dict[str, Any], positions_ST: Array) -> list[tuple[dict[str, Any], Array]]:
    """Of tokens that are written into `BlockedCache`s: all positions up to their own."""
    (first, *_), *_ = cache.values()
    return [(cache, jnp.arange(first.positions)[None, None] <= positions_ST[..., None])]


def keep(state: Round, new: dict[str, Any], at: Array) -> Round:
    """With new latents, accepted or not: masks tell which count. In the tail they go to the positions from `at` on."""
    if not state.tail:
        return replace(state, slots=replace(state.slots, cache=state.slots.cache | new))
    old = {name: state.tail[name] for name in new}
    tail = jax.tree.map(lambda x, y: jax.lax.dynamic_update_slice_in_dim(x, y, at, axis=2), old, new)
    return replace(state, tail=state.tail | tail)


def propose(sampler: Sampler, state: Round, cache: tuple[dict, Array], s: DrawSettings) -> tuple[Array, Round]:
    """Runs the MTP module on the last step's tokens; its draft of the next token, [S].

    `cache` is the latents and the mask of those tokens that the module has run.
    """
    slots, drafts, at = state.slots, state.slots.drafts, state.step * tokens_per_step(sampler.engine)
    accepted_S1 = drafts.accepted_ST.sum(axis=1, keepdims=True)
    positions_ST = slots.length_S[:, None] - accepted_S1 + jnp.arange(tokens_per_step(sampler.engine))
    contexts = [cache, (state.tail, state.drafted_SN[:, None])]
    contexts = contexts if state.tail else written_contexts(state.slots.cache, positions_ST)
    inputs = MTPInputs(drafts.hidden_STD, drafts.next_ST, positions_ST)
    is_token_ST = jnp.broadcast_to(~slots.done_S[:, None], positions_ST.shape)
    hidden_STD, new = forward_mtp_cached(sampler.weights, inputs, contexts, sampler.model, sampler.ops, is_token_ST)
    last_SD = jnp.take_along_axis(hidden_STD, jnp.maximum(accepted_S1 - 1, 0)[..., None], axis=1)[:, 0]
    draft_S = draw(next_logits(sampler, last_SD), slots.key_S, slots.count_S + 1, s, sampler.truncation).token_S
    drafted_SN = jax.lax.dynamic_update_slice(state.drafted_SN, drafts.accepted_ST, (0, at))
    return draft_S, replace(keep(state, new, at), drafted_SN=drafted_SN)


def emit(state: Round, n: Array, accepted_S: Array, limit_S: Array, s: DrawSettings) -> Round:
    """Emits the pending token of each slot as the round's token `n`, where it was run; it may be the last."""
    slots, out, drawn = state.slots, state.out, state.slots.drawn
    out = replace(
        out,
        tokens_SN=out.tokens_SN.at[:, n].set(drawn.token_S),
        logp_SN=out.logp_SN.at[:, n].set(drawn.logp_S),
        is_token_SN=out.is_token_SN.at[:, n].set(accepted_S),
        masks_SNI=None if out.masks_SNI is None else out.masks_SNI.at[:, n].set(drawn.mask_SI),
    )
    count_S = slots.count_S + accepted_S
    is_last_S = (drawn.token_S[:, None] == s.stop_ids[None]).any(axis=-1) | (count_S >= limit_S)
    done_S = slots.done_S | (accepted_S & is_last_S)
    slots = replace(slots, count_S=count_S, length_S=slots.length_S + accepted_S, done_S=done_S)
    return replace(state, slots=slots, out=out)


def next_logits(sampler: Sampler, hidden_BD: Array) -> Array:
    """float32 [B, V], each row whole on one device, which draws from it."""
    hidden_BD = sampler.ops.matmul_input(hidden_BD)
    return sampler.ops.residual(
        sampler.ops.logits(logits(sampler.weights.params, hidden_BD, sampler.model.tokenizer_size))
    )


def merge_round(sampler: Sampler, slots: Slots, state: Round, drafted_S: Array) -> dict[str, Any]:
    """The slots' cache after a round, with what its steps added."""
    merged, tail = {}, stored(state.tail, sampler.engine)
    for name in tail:
        at_S, is_token_SN = (drafted_S, state.drafted_SN) if name == "mtp" else (slots.length_S, state.out.is_token_SN)
        merged[name] = merge(slots.cache[name], tail[name], at_S, is_token_SN)
    for name, written in state.slots.cache.items():
        merged[name] = jax.tree.map(lambda x, y: x.at[:, :, : y.shape[2]].set(y), slots.cache[name], written)
    return merged


def merge(cache, tail, at_S: Array, is_token_SN: Array):
    """Appends each slot's accepted tokens to its cache, which has room for one round more than any response."""
    order_SN = jnp.argsort(~is_token_SN, axis=1, stable=True)
    # Mapped over leading dimensions only: any other order makes XLA transpose the whole cache, and hold it twice.
    write_SWX = jax.vmap(lambda old, new, at: jax.lax.dynamic_update_slice_in_dim(old, new, at, axis=0))
    write_LSWX = jax.vmap(write_SWX, (0, 0, None))

    def one(cache_LSWX, tail_LSNX):
        return write_LSWX(cache_LSWX, jnp.take_along_axis(tail_LSNX, order_SN[None, :, :, None], axis=2), at_S)

    return jax.tree.map(one, cache, tail)
