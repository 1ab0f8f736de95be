"""Samples into rows, so that training costs what their tokens do (R1, supplement: best-fit packing)."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from r1jax.config import ModelConfig, RLConfig
from r1jax.objectives.metrics import Mean
from r1jax.types import Batch, Sample


@dataclass(frozen=True)
class BatchShape:
    """The shape of every microbatch of a stage, so that one compiled program runs them all.

    Attributes:
      rows: rows of a microbatch.
      tokens: tokens of a row.
      samples: samples that a row can hold.
      routes: (layers with experts, experts of a token), with routing replay.
      mask_ids: ids of a sampling mask; 0: there are none.
    """

    rows: int
    tokens: int
    samples: int
    routes: tuple[int, int] | None = None
    mask_ids: int = 0


def batch_shape(config: RLConfig, model: ModelConfig, multiple: int = 1) -> BatchShape:
    """Of the microbatches of an RL stage; rows are rounded up to a `multiple` that the devices divide."""
    longest = config.sampling.max_tokens
    samples = -(-config.prompts_per_step * config.group_size // config.minibatches_per_rollout)
    T, samples_per_row = longest, 1
    if config.row_tokens is not None:
        T = max(config.row_tokens, longest)
        samples_per_row = 8 * T // longest  # 8 short ones in the place of a longest
    rows = config.microbatch_rows or -(-samples * longest // T)
    mask_ids = config.sampling.sampling_mask_ids if config.sampling.needs_mask else 0
    layers = model.num_hidden_layers - model.first_k_dense_replace
    routes = (layers, model.num_experts_per_tok) if config.engine.routing_replay else None
    return BatchShape(-(-rows // multiple) * multiple, T, samples_per_row, routes, mask_ids)


def pack_microbatches(samples: Sequence[Sample], shape: BatchShape) -> list[Batch]:
    """All samples, in as few microbatches as best fit needs; one empty one where there are no samples."""
    rows = [
        [samples[i] for i in row] for row in best_fit([len(s.tokens) for s in samples], shape.tokens, shape.samples)
    ]
    return [fill_rows(rows[i : i + shape.rows], shape) for i in range(0, max(len(rows), 1), shape.rows)]


def best_fit(sizes: Sequence[int], capacity: int, max_items: int) -> list[list[int]]:
    """Which items share a row: the largest first, each into the fullest row that still has room for it.

    No row holds more than `capacity` in all, or more than `max_items` items.
    """
    rows: list[list[int]] = []
    left = np.zeros(len(sizes), np.int64)  # of each row
    for item in sorted(range(len(sizes)), key=lambda i: -sizes[i]):
        fitting = np.flatnonzero(left[: len(rows)] >= sizes[item])
        row = int(fitting[np.argmin(left[fitting])]) if len(fitting) else len(rows)
        if row == len(rows):
            rows.append([])
            left[row] = capacity
        rows[row].append(item)
        left[row] = left[row] - sizes[item] if len(rows[row]) < max_items else 0
    return rows


def fill_rows(rows: Sequence[Sequence[Sample]], shape: BatchShape) -> Batch:
    """The rows as arrays; what no sample takes is padding."""
    B, T = shape.rows, shape.tokens
    batch = Batch(
        tokens_BT=np.zeros((B, T), np.int32),
        positions_BT=np.zeros((B, T), np.int32),
        segment_ids_BT=np.zeros((B, T), np.int32),
        loss_mask_BT=np.zeros((B, T), bool),
        logprobs_sampler_BT=np.zeros((B, T), np.float32),
        advantages_BT=np.zeros((B, T), np.float32),
        routes_BTLK=None if shape.routes is None else np.full((B, T, *shape.routes), -1, np.int16),
        sampling_masks_BTI=np.full((B, T, shape.mask_ids), -1, np.int32) if shape.mask_ids else None,
        max_segments=shape.samples,
    )
    for b, samples in enumerate(rows):
        begin = 0
        for j, sample in enumerate(samples):
            place = (b, slice(begin, begin + len(sample.tokens)))
            batch.tokens_BT[place] = sample.tokens
            batch.positions_BT[place] = np.arange(len(sample.tokens))
            batch.segment_ids_BT[place] = j + 1
            batch.loss_mask_BT[place] = sample.loss_mask
            batch.logprobs_sampler_BT[place] = sample.logprobs
            batch.advantages_BT[place] = sample.advantages
            if batch.routes_BTLK is not None:
                batch.routes_BTLK[b, begin : begin + len(sample.routes)] = sample.routes
            if batch.sampling_masks_BTI is not None:
                batch.sampling_masks_BTI[place] = sample.sampling_masks
            begin += len(sample.tokens)
    return batch


def packing_efficiency(batch: Batch) -> Mean:
    """The share of the rows' places that hold a token."""
    is_token_BT = batch.segment_ids_BT > 0
    return Mean(is_token_BT.sum(), is_token_BT.size)


def make_minibatches(samples: Sequence[Sample], count: int, seed: Sequence[int]) -> list[list[Sample]]:
    """Shuffles the samples and splits them evenly; `seed` is any number of integers."""
    order = np.random.default_rng(seed).permutation(len(samples))
    return [[samples[i] for i in part] for part in np.array_split(order, count)]
