"""A cache for decoding on a CPU, and attention over it.

The product of a few rows with a matrix of 64 columns runs at the speed of memory there. With a matrix of more columns,
as the keys of a whole sequence are, it takes twice as long, and with a transposed one three times.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from r1jax.model.softmax_attention import MASKED
from r1jax.types import Array

BLOCK = 64  # tokens of a block of keys


@struct.dataclass
class BlockedCache:
    """One layer's cache, which tokens are written into at their positions. What is behind a row's tokens is undefined.

    X is the size of a head. With MLA, Y = 1, and latents are stored twice, as keys and as values.
    """

    keys_BYcXt: Array  # c blocks of t = BLOCK tokens
    values_BYSX: Array

    @property
    def positions(self) -> int:
        return self.values_BYSX.shape[2]

    @property
    def heads(self) -> int:
        return self.values_BYSX.shape[1]

    def first(self, tokens: int) -> "BlockedCache":
        """The first blocks, which have these tokens."""
        blocks = -(-tokens // BLOCK)
        return BlockedCache(self.keys_BYcXt[:, :, :blocks], self.values_BYSX[:, :, : blocks * BLOCK])

    def write(self, new: Any, positions_BT: Array) -> "BlockedCache":
        """Returns the cache with T new tokens of each row written at their positions; those behind its end are not."""
        k_BYTX1, v_BYTX = by_head(new, self.heads, block=1)
        k_BTYX, v_BTYX = k_BYTX1[..., 0].swapaxes(1, 2), v_BYTX.swapaxes(1, 2)
        row_B1 = jnp.arange(len(positions_BT))[:, None]
        return BlockedCache(
            self.keys_BYcXt.at[row_B1, :, positions_BT // BLOCK, :, positions_BT % BLOCK].set(k_BTYX, mode="drop"),
            self.values_BYSX.at[row_B1, :, positions_BT].set(v_BTYX, mode="drop"),
        )


def by_head(cache: Any, Y: int, block: int = BLOCK) -> tuple[Array, Array]:
    """Keys [B, Y, S / block, X, block] and values [B, Y, S, X] of each head of a cache of S tokens."""
    k_BSX, v_BSX = (cache["keys"], cache["values"]) if isinstance(cache, dict) else (cache, cache)
    B, S, _ = k_BSX.shape
    keys_BYcXt = jnp.einsum("BctYX->BYcXt", k_BSX.reshape(B, S // block, block, Y, -1))
    return keys_BYcXt, v_BSX.reshape(B, S, Y, -1).swapaxes(1, 2)


def make_blocked_cache(cache: Any, Y: int) -> BlockedCache:
    """A copy of a layer's cache, padded to whole blocks."""
    padding = (0, -jax.tree.leaves(cache)[0].shape[1] % BLOCK)
    return BlockedCache(*by_head(jax.tree.map(lambda x: jnp.pad(x, ((0, 0), padding, (0, 0))), cache), Y))


def is_blocked(contexts: Sequence) -> bool:
    return len(contexts) == 1 and isinstance(contexts[0][0], BlockedCache)


def attend_blocked(
    q_BTHX: Array, new: Any, positions_BT: Array, context: tuple[BlockedCache, Array], scale: float
) -> tuple[Array, BlockedCache]:
    """Writes new tokens into a cache, and attends to what the mask shows of it: [B, T, H, X], and the cache.

    The z = T * H / Y queries that share a head of keys are rows of one matmul.
    """
    (B, T, H, X), mask_BTS = q_BTHX.shape, context[1]
    cache = context[0].write(new, positions_BT)
    Y, blocks = cache.keys_BYcXt.shape[1:3]
    q_BYzX = q_BTHX.reshape(B, T, Y, H // Y, X).swapaxes(1, 2).reshape(B, Y, -1, X)
    q_BYczX = jnp.broadcast_to(q_BYzX[:, :, None], (B, Y, blocks, *q_BYzX.shape[2:]))
    scores_BYczt = jnp.einsum("BYczX,BYcXt->BYczt", q_BYczX, cache.keys_BYcXt, preferred_element_type=jnp.float32)
    scores_BYzS = scores_BYczt.swapaxes(2, 3).reshape(*q_BYzX.shape[:3], -1) * scale
    mask_BzS = jnp.repeat(mask_BTS, H // Y, axis=1)
    weights_BYzS = jax.nn.softmax(jnp.where(mask_BzS[:, None], scores_BYzS, MASKED)).astype(q_BTHX.dtype)
    out_BYzX = jnp.einsum("BYzS,BYSX->BYzX", weights_BYzS, cache.values_BYSX)
    return out_BYzX.reshape(B, Y, T, H // Y, X).swapaxes(1, 2).reshape(q_BTHX.shape), cache
