"""Samples into rows, so that training costs what their tokens do (R1, supplement: best-fit packing)."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from r1jax.config import ModelConfig, RLConfig
from r1jax.objectives.metrics import Mean, Metrics
from r1jax.types import Batch, Sample

Item = list[Sample]  # what stands together in a row: a sample, or several behind the prompt that they share


@dataclass(frozen=True)
class BatchShape:
    """The shape of every microbatch of a stage, so that one compiled program runs them all.

    Attributes:
      rows: rows of a microbatch.
      tokens: tokens of a row.
      samples: samples that a row can hold.
      trained: trained tokens that a row can hold.
      routes: (layers with experts, experts of a token), with routing replay.
      mask_ids: ids of a sampling mask; 0: there are none.
      own_prompt: how many of a shared prompt's last tokens are repeated in front of each sample: one, from which its
        first token is predicted, and one more for each multi-token-prediction module. 0: no prompt is shared.
      path: most tokens of a sample with its prompt, where attention takes place in `Segments.paths_BsS`; else 0.
    """

    rows: int
    tokens: int
    samples: int
    trained: int
    routes: tuple[int, int] | None = None
    mask_ids: int = 0
    own_prompt: int = 0
    path: int = 0

    @property
    def room(self) -> np.ndarray:
        """The capacity of a row: tokens, samples, trained tokens."""
        return np.array([self.tokens, self.samples, self.trained])


def batch_shape(config: RLConfig, model: ModelConfig, multiple: int = 1) -> BatchShape:
    """Of the microbatches of an RL stage; rows are rounded up to a `multiple` that the devices divide.

    `model.attention` is that of the devices' platform (`programs.on_platform`).
    """
    sampling, G = config.sampling, config.group_size
    samples = -(-config.prompts_per_step * G // config.minibatches_per_rollout)
    own_prompt = 1 + model.num_nextn_predict_layers if config.share_prompts else 0
    together = G if config.share_prompts else 1
    shared = max(sampling.max_prompt_tokens - own_prompt, 0) if config.share_prompts else 0
    longest = shared + together * (sampling.max_tokens - shared)  # of what is placed together
    has_paths = config.share_prompts and model.attention == "splash"
    T, samples_per_row = longest, together
    if config.row_tokens is not None:
        T = max(config.row_tokens, sampling.max_tokens)
        # Room for eight times as many samples as of the longest, unless each of them has a path of its own.
        samples_per_row = (1 if has_paths else 8) * T * together // longest
    # Enough trained tokens for a row that is full of the longest prompts and responses.
    trained = -(-T * together * sampling.max_new_tokens // longest)
    rows = config.microbatch_rows or -(-samples * longest // (together * T))
    mask_ids = sampling.sampling_mask_ids if sampling.needs_mask else 0
    layers = model.num_hidden_layers - model.first_k_dense_replace
    routes = (layers, model.num_experts_per_tok) if config.engine.routing_replay else None
    rows = -(-rows // multiple) * multiple
    trained = min(max(trained, sampling.max_new_tokens), T)
    path = sampling.max_tokens if has_paths else 0
    return BatchShape(rows, T, samples_per_row, trained, routes, mask_ids, own_prompt, path)


def pack_microbatches(samples: Sequence[Sample], shape: BatchShape) -> list[Batch]:
    """All samples, in as few microbatches as best fit needs; one empty one where there are no samples."""
    items, sizes = make_items(samples, shape)
    rows = [[items[i] for i in row] for row in best_fit(sizes, shape.room)]
    return [fill_rows(rows[i : i + shape.rows], shape) for i in range(0, max(len(rows), 1), shape.rows)]


def make_items(samples: Sequence[Sample], shape: BatchShape) -> tuple[list[Item], list[np.ndarray]]:
    """Each sample for itself, or with others to the same prompt, as many as a row has room for; and their sizes."""
    parts: dict[Any, list[tuple[Item, np.ndarray]]] = defaultdict(list)
    for i, sample in enumerate(samples):
        same = parts[tuple(sample.tokens[: sample.prompt_length]) if shape.own_prompt else i]
        size = np.array([len(sample.tokens), 1, sum(sample.loss_mask)])
        joined = size - [shared_length(sample, shape), 0, 0]
        if same and (same[-1][1] + joined <= shape.room).all():
            same[-1][0].append(sample)
            same[-1][1][:] += joined
        else:
            same.append(([sample], size))
    found = [part for same in parts.values() for part in same]
    return [item for item, _ in found], [size for _, size in found]


def shared_length(sample: Sample, shape: BatchShape) -> int:
    """Tokens of a prompt that samples share."""
    return max(sample.prompt_length - shape.own_prompt, 0)


def best_fit(sizes: Sequence[np.ndarray], room: np.ndarray) -> list[list[int]]:
    """Which items share a row: the largest first, each into the fullest row that still has room for it.

    A size has a number for each number of `room`, of which no row takes more; the first says how large an item is.
    """
    rows: list[list[int]] = []
    left = np.zeros((len(sizes), len(room)), np.int64)  # of each row
    for item in sorted(range(len(sizes)), key=lambda i: -sizes[i][0]):
        fitting = np.flatnonzero((left[: len(rows)] >= sizes[item]).all(axis=1))
        row = int(fitting[np.argmin(left[fitting, 0])]) if len(fitting) else len(rows)
        if row == len(rows):
            rows.append([])
            left[row] = room
        rows[row].append(item)
        left[row] -= sizes[item]
    return rows


def fill_rows(rows: Sequence[Sequence[Item]], shape: BatchShape) -> Batch:
    """The rows as arrays; what no sample takes is padding."""
    B, T = shape.rows, shape.tokens
    trained_BR = np.full((B, shape.trained), T, np.int32)
    batch = Batch(
        tokens_BT=np.zeros((B, T), np.int32),
        positions_BT=np.zeros((B, T), np.int32),
        segment_ids_BT=np.zeros((B, T), np.int32),
        loss_mask_BT=np.zeros((B, T), bool),
        logprobs_sampler_BT=np.zeros((B, T), np.float32),
        advantages_BT=np.zeros((B, T), np.float32),
        trained_BR=trained_BR,
        ends_BT=np.tile(np.arange(1, T + 1, dtype=np.int32), (B, 1)) if shape.own_prompt else None,
        paths_BsS=np.full((B, shape.samples, shape.path), T, np.int32) if shape.path else None,
        places_BT=np.zeros((B, T), np.int32) if shape.path else None,
        routes_BTLK=None if shape.routes is None else np.full((B, T, *shape.routes), -1, np.int16),
        sampling_masks_BTI=np.full((B, T, shape.mask_ids), -1, np.int32) if shape.mask_ids else None,
        max_segments=shape.samples,
    )
    for b, items in enumerate(rows):
        begin, samples = 0, 0
        for j, item in enumerate(items):
            shared = shared_length(item[0], shape) if len(item) > 1 else 0
            prompt = np.arange(begin, begin + shared)
            if shared:
                end = begin + shared + sum(len(s.tokens) - shared for s in item)
                write(batch, (b, begin), item[0], slice(0, shared), shape.samples + 1 + j, end)
                begin += shared
            for sample in item:
                samples += 1
                end = begin + len(sample.tokens) - shared
                write(batch, (b, begin), sample, slice(shared, len(sample.tokens)), samples, end)
                if batch.paths_BsS is not None and batch.places_BT is not None:
                    path = np.concatenate([prompt, np.arange(begin, end)])
                    batch.paths_BsS[b, samples - 1, : len(path)] = path
                    batch.places_BT[b, path] = (samples - 1) * shape.path + np.arange(len(path))
                begin = end
        trained = np.flatnonzero(batch.loss_mask_BT[b])
        trained_BR[b, : len(trained)] = trained
    return batch


def write(batch: Batch, at: tuple[int, int], sample: Sample, part: slice, segment: int, end: int) -> None:
    """Tokens `part` of the sample, from place `at` (row, token) on; they are seen up to place `end`."""
    b, begin = at
    place = (b, slice(begin, begin + part.stop - part.start))
    batch.tokens_BT[place] = sample.tokens[part]
    batch.positions_BT[place] = np.arange(part.start, part.stop)
    batch.segment_ids_BT[place] = segment
    batch.loss_mask_BT[place] = sample.loss_mask[part]
    batch.logprobs_sampler_BT[place] = sample.logprobs[part]
    batch.advantages_BT[place] = sample.advantages[part]
    if batch.ends_BT is not None:
        batch.ends_BT[place] = end
    if batch.routes_BTLK is not None:
        routes = sample.routes[part]
        batch.routes_BTLK[b, begin : begin + len(routes)] = routes
    if batch.sampling_masks_BTI is not None:
        batch.sampling_masks_BTI[place] = sample.sampling_masks[part]


def packing_metrics(samples: Sequence[Sample], batches: Sequence[Batch]) -> Metrics:
    """The share of the rows' places that hold a token, and that of the samples' tokens which sharing prompts saved."""
    tokens = sum(len(s.tokens) for s in samples)
    packed, places = (sum(f(b.segment_ids_BT) for b in batches) for f in (np.count_nonzero, np.size))
    return {"packing_efficiency": Mean(packed, places), "shared_tokens": Mean(tokens - packed, tokens)}


def make_minibatches(samples: Sequence[Sample], config: RLConfig, seed: Sequence[int]) -> list[list[Sample]]:
    """Shuffles the samples and splits them evenly, or whole groups where these share their prompts.

    `seed` is any number of integers.
    """
    units: list[list[Sample]] = [[s] for s in samples]
    if config.share_prompts:
        groups: dict[int, list[Sample]] = defaultdict(list)
        for s in samples:
            groups[s.problem.id].append(s)
        units = list(groups.values())
    order = np.random.default_rng(seed).permutation(len(units))
    parts = np.array_split(order, config.minibatches_per_rollout)
    return [[s for i in part for s in units[i]] for part in parts]
