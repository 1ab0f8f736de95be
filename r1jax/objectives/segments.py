"""Reductions over the samples of packed rows. A sample is a segment; a row holds S of them at most."""

import jax.numpy as jnp

from r1jax.types import Array, Batch


def _members(batch: Batch) -> Array:
    """bool [B, S, T]: the tokens of each segment. XLA fuses it into the sums, and never holds it."""
    return batch.segment_ids_BT[:, None] == jnp.arange(1, batch.max_segments + 1)[:, None]


def segment_sum(values_BT: Array, batch: Batch) -> Array:
    """[B, S]: the sum over each sample's trained tokens; in a fixed order, so that a run repeats to the bit."""
    is_trained_BST = _members(batch) & batch.loss_mask_BT[:, None]
    return jnp.where(is_trained_BST, values_BT[:, None], 0).sum(axis=-1)


def segment_length(batch: Batch) -> Array:
    """float32 [B, S]: the trained tokens of each sample; 0 where there is none."""
    return segment_sum(jnp.ones(batch.loss_mask_BT.shape, jnp.float32), batch)


def segment_broadcast(values_BS: Array, batch: Batch) -> Array:
    """[B, T]: each token gets its sample's value; padding gets 0."""
    return jnp.where(_members(batch), values_BS[..., None], 0).sum(axis=1)
