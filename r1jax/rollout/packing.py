"""Outputs into rows, so that training costs what the tokens do that are there (R1 supplement: best-fit packing)."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from r1jax.config import RLConfig
from r1jax.rollout.engine import Output
from r1jax.types import PackedOutputs, TokenBatch


@dataclass(frozen=True)
class Taught:
    """An output that is trained on."""

    prompt: list[int]
    output: Output
    advantage: float

    @property
    def size(self) -> int:
        return len(self.prompt) + len(self.output.tokens)


def row_shape(config: RLConfig) -> tuple[int, int, int]:
    """Rows of a microbatch, tokens of a row, and outputs that a row can hold."""
    outputs = -(-config.questions * config.group_size // config.minibatches)
    if config.row_tokens is None:
        return config.microbatch_rows or outputs, config.longest, 1
    T = max(config.row_tokens, config.longest)
    rows = config.microbatch_rows or -(-outputs * config.longest // T)
    return rows, T, 8 * T // config.longest  # 8 short ones in the place of a longest


def microbatches(
    outputs: Sequence[Taught], shape: tuple[int, int, int], routes: tuple[int, int] | None = None
) -> list[PackedOutputs]:
    """All outputs, in as few microbatches as best fit needs; one, if only an empty one, where there are none.

    `shape` is (rows, tokens of a row, outputs that a row can hold); `routes` (layers with experts, experts of a token),
    where the outputs' routes are replayed.
    """
    rows, T, J = shape
    by_row = [[outputs[i] for i in row] for row in best_fit([o.size for o in outputs], T, J)]
    return [fill(by_row[i : i + rows], shape, routes) for i in range(0, max(len(by_row), 1), rows)]


def best_fit(sizes: Sequence[int], room: int, most: int) -> list[list[int]]:
    """Which items share a row: the largest first, each into the fullest row that still has room for it.

    No row holds more than `room` altogether, or more than `most` items.
    """
    rows: list[list[int]] = []
    left = np.zeros(len(sizes), np.int64)  # of each row; rows that are not begun have none
    for item in sorted(range(len(sizes)), key=lambda i: -sizes[i]):
        fitting = np.flatnonzero(left[: len(rows)] >= sizes[item])
        row = int(fitting[left[fitting].argmin()]) if len(fitting) else len(rows)
        if row == len(rows):
            rows.append([])
            left[row] = room
        rows[row].append(item)
        left[row] = left[row] - sizes[item] if len(rows[row]) < most else 0
    return rows


def fill(
    by_row: Sequence[Sequence[Taught]], shape: tuple[int, int, int], routes: tuple[int, int] | None
) -> PackedOutputs:
    """The rows as arrays; rows and places that are not taken hold nothing that counts."""
    rows, T, J = shape
    tokens_BT, positions_BT, segment_ids_BT = (np.zeros((rows, T), np.int32) for _ in range(3))
    is_new_BT, logp_sampler_BT = np.zeros((rows, T), bool), np.zeros((rows, T), np.float32)
    start_BJ, length_BJ = np.ones((rows, J), np.int32), np.zeros((rows, J), np.int32)
    advantage_BJ = np.zeros((rows, J), np.float32)
    routes_BTLK = None if routes is None else np.full((rows, T, *routes), -1, np.int16)
    for b, outputs in enumerate(by_row):
        begin = 0
        for j, taught in enumerate(outputs):
            output = taught.output
            start, end = begin + len(taught.prompt), begin + taught.size
            tokens_BT[b, begin:end] = taught.prompt + output.tokens
            positions_BT[b, begin:end] = np.arange(taught.size)
            segment_ids_BT[b, begin:end] = j + 1
            is_new_BT[b, start:end] = True
            logp_sampler_BT[b, start:end] = output.logprobs
            start_BJ[b, j], length_BJ[b, j], advantage_BJ[b, j] = start, len(output.tokens), taught.advantage
            if routes_BTLK is not None:
                # What follows a stop string has routes, but is cut off.
                routes_BTLK[b, begin:end] = np.concatenate(output.routes)[: taught.size]
            begin = end
    tokens = TokenBatch(tokens_BT, positions_BT, segment_ids_BT)
    return PackedOutputs(tokens, is_new_BT, logp_sampler_BT, start_BJ, length_BJ, advantage_BJ, routes_BTLK)


def filled(batches: Sequence[PackedOutputs]) -> float:
    """The share of the rows' places that hold a token."""
    return float(np.mean([batch.tokens.segment_ids_BT > 0 for batch in batches]))
