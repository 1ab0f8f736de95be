"""Tokens that the policy did not draw, run behind those of some slots: what an environment answers to a turn.

The cache of a slot is kept between turns. Only the new tokens are run, a chunk of them at a time.
"""

import functools
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from r1jax.config import ModelConfig
from r1jax.model.blocked_cache import BLOCK, BlockedCache, by_head
from r1jax.model.transformer import MTPInputs, forward_cached, forward_mtp_cached, unstack
from r1jax.sampling.decode import Sampler, Slots, is_list, new_drafts, next_logits, stored
from r1jax.sampling.draw import DrawSettings, draw
from r1jax.types import Array

BEHIND = 2**30  # a place behind the end of every cache


@struct.dataclass
class Appended:
    """Tokens for A slots, C each."""

    tokens_AC: Array  # int32
    length_A: Array  # int32, how many of them are tokens; 0: none, and the row has no slot
    slot_A: Array  # int32
    start_A: Array  # int32, place of the first; what the slot has had from here on is dropped
    count_A: Array  # int32, tokens that the policy has drawn in the slot


def append(sampler: Sampler, slots: Slots, new: Appended, s: DrawSettings, *, width: int) -> tuple[Slots, Any]:
    """Runs the tokens, and draws what follows them. With speculation the slot's last token is run again before them.

    Args:
      width: places of the cache that any of the slots has filled; the rest is not read.

    Returns:
      The slots; and the experts of the tokens with routing replay, int16 [A, C, L, K], else None.
    """
    c, C, S = sampler.model, new.tokens_AC.shape[1], slots.count_S.shape[0]
    places_AC = new.start_A[:, None] + jnp.arange(C)
    before_A1W = (jnp.arange(width) < new.start_A[:, None])[:, None]
    contexts = [(read_rows(slots.cache, new.slot_A, width, c), before_A1W)]
    is_token_AC = jnp.arange(C) < new.length_A[:, None]
    run = functools.partial(forward_cached, config=c, ops=sampler.ops, is_token_BT=is_token_AC)
    hidden_ACD, latents, routes = run(sampler.weights, new.tokens_AC, places_AC, contexts)
    if sampler.engine.speculative:  # the last place is run again, with the token that is drawn here, by the next step
        inputs = MTPInputs(hidden_ACD, jnp.roll(new.tokens_AC, -1, axis=1), places_AC)
        latents |= forward_mtp_cached(sampler.weights, inputs, contexts, c, sampler.ops, is_token_AC)[1]
    row_A = jnp.where(new.length_A > 0, new.slot_A, S)  # behind the end, where nothing is written
    latents, places_AC = stored(latents, sampler.engine), jnp.where(is_token_AC, places_AC, BEHIND)
    cache = write_rows(slots.cache, latents, row_A, places_AC)
    last_A = jnp.maximum(new.length_A - 1, 0)
    last_AD = jnp.take_along_axis(hidden_ACD, last_A[:, None, None], axis=1)[:, 0]
    drawn = draw(next_logits(sampler, last_AD), slots.key_S[new.slot_A], new.count_A, s, sampler.truncation)

    def put(old, new):
        return jax.tree.map(lambda x, y: x.at[row_A].set(y, mode="drop"), old, new)

    slots = replace(
        slots,
        cache=cache,
        length_S=put(slots.length_S, new.start_A + new.length_A),
        drawn=put(slots.drawn, drawn),
        count_S=put(slots.count_S, new.count_A),
        done_S=put(slots.done_S, jnp.zeros_like(row_A, bool)),
        drafts=None if slots.drafts is None else put(slots.drafts, new_drafts(last_AD, drawn.token_S)),
    )
    return slots, jnp.asarray(routes, jnp.int16) if sampler.engine.routing_replay else None


def read_rows(cache: dict[str, Any], slot_A: Array, width: int, c: ModelConfig) -> dict[str, Any]:
    """The first `width` places of some slots, as `init_cache` has them: [L, A, width, X] for each stack."""

    def of_layer(layer: BlockedCache) -> Any:
        A = len(slot_A)
        values_ASX = layer.values_BYSX[slot_A].swapaxes(1, 2).reshape(A, layer.places, -1)[:, :width]
        if c.kv_lora_rank is not None:
            return values_ASX
        keys_ASX = jnp.einsum("AYcXt->ActYX", layer.keys_BYcXt[slot_A]).reshape(A, layer.places, -1)[:, :width]
        return {"keys": keys_ASX, "values": values_ASX}

    def of_stack(stack: Any) -> Any:
        if is_list(stack):
            return jax.tree.map(lambda *layers: jnp.stack(layers), *map(of_layer, stack))
        return jax.tree.map(lambda x: x[:, slot_A, :width], stack)

    return {name: of_stack(stack) for name, stack in cache.items()}


def write_rows(cache: dict[str, Any], new: dict[str, Any], row_A: Array, places_AC: Array) -> dict[str, Any]:
    """The cache with new tokens, [L, A, C, X] for each stack; a row or place behind its end is not written."""
    row_A1, block_AC, within_AC = row_A[:, None], places_AC // BLOCK, places_AC % BLOCK

    def of_layer(layer: BlockedCache, new: Any) -> BlockedCache:
        k_AYCX1, v_AYCX = by_head(new, layer.heads, block=1)
        k_ACYX, v_ACYX = k_AYCX1[..., 0].swapaxes(1, 2), v_AYCX.swapaxes(1, 2)
        return BlockedCache(
            layer.keys_BYcXt.at[row_A1, :, block_AC, :, within_AC].set(k_ACYX, mode="drop"),
            layer.values_BYSX.at[row_A1, :, places_AC].set(v_ACYX, mode="drop"),
        )

    def of_stack(stack: Any, new: Any) -> Any:
        if is_list(stack):
            return [of_layer(layer, its) for layer, its in zip(stack, unstack(new), strict=True)]
        return jax.tree.map(lambda x, y: x.at[:, row_A1, places_AC].set(y, mode="drop"), stack, new)

    return {name: of_stack(stack, new[name]) for name, stack in cache.items()}
