"""Runs what environments answer, a chunk of tokens at a time, behind the tokens whose cache the slots keep."""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from r1jax.model.transformer import MTPInputs, forward_cached, forward_mtp_cached
from r1jax.sampling.decode import Sampler, Slots, is_list, new_drafts, next_logits, stored, written_contexts
from r1jax.sampling.draw import DrawSettings, draw
from r1jax.types import Array


@struct.dataclass
class Appended:
    """Tokens for A slots, C each. A row of length 0 is ignored: it has no slot."""

    tokens_AC: Array  # int32
    length_A: Array  # int32, how many of them are tokens
    slot_A: Array  # int32
    start_A: Array  # int32, position of the first; what the slot has had from here on is dropped
    count_A: Array  # int32, tokens that the policy has drawn in the slot


def append(sampler: Sampler, slots: Slots, new: Appended, s: DrawSettings, *, width: int) -> tuple[Slots, Any]:
    """Runs the tokens, and draws what follows them. With speculation the slot's last tokens are run again before them.

    Args:
      width: positions of the cache that any of the slots has filled, with the new tokens; the rest is not read.

    Returns:
      The slots; and the experts of the tokens with routing replay, int16 [A, C, L, K], else None.
    """
    C, S = new.tokens_AC.shape[1], slots.count_S.shape[0]
    positions_AC = new.start_A[:, None] + jnp.arange(C)
    written = {name: [x.first(width) for x in stack] for name, stack in slots.cache.items() if is_list(stack)}
    if written:
        contexts = written_contexts(jax.tree.map(lambda x: x[new.slot_A], written), positions_AC)
    else:
        rows = jax.tree.map(lambda x: x[:, new.slot_A, :width], slots.cache)
        contexts = [(rows, (jnp.arange(width) < new.start_A[:, None])[:, None])]
    is_token_AC = jnp.arange(C) < new.length_A[:, None]
    others = (contexts, sampler.model, sampler.ops, is_token_AC)
    hidden_ACD, latents, routes = forward_cached(sampler.weights, new.tokens_AC, positions_AC, *others)
    if sampler.engine.speculative:  # the next step runs the last token again, with the token that is drawn here
        inputs = MTPInputs(hidden_ACD, jnp.roll(new.tokens_AC, -1, axis=1), positions_AC)
        latents |= forward_mtp_cached(sampler.weights, inputs, *others)[1]
    row_A = jnp.where(new.length_A > 0, new.slot_A, S)  # behind the last slot, where nothing is written
    latents = stored(latents, sampler.engine)
    if written:  # the rows' `BlockedCache`s, with the tokens
        cache = jax.tree.map(lambda x, y: x.at[row_A, :, : y.shape[2]].set(y, mode="drop"), slots.cache, latents)
    else:
        row_A1 = row_A[:, None]
        cache = jax.tree.map(lambda x, y: x.at[:, row_A1, positions_AC].set(y, mode="drop"), slots.cache, latents)
    last_A = jnp.maximum(new.length_A - 1, 0)
    last_AD = jnp.take_along_axis(hidden_ACD, last_A[:, None, None], axis=1)[:, 0]
    key_A = slots.key_S[new.slot_A]
    drawn = draw(next_logits(sampler, last_AD), key_A, new.count_A, s, sampler.truncation)
    begun = Slots(
        cache={},
        length_S=new.start_A + new.length_A,
        key_S=key_A,
        drawn=drawn,
        count_S=new.count_A,
        done_S=jnp.zeros_like(row_A, bool),
        drafts=None if slots.drafts is None else new_drafts(last_AD, drawn.token_S),
    )
    slots = jax.tree.map(lambda x, y: x.at[row_A].set(y, mode="drop"), replace(slots, cache={}), begun)
    return replace(slots, cache=cache), jnp.asarray(routes, jnp.int16) if sampler.engine.routing_replay else None
