"""Outputs as arrays [outputs, N], packed: one a row, and several a row; a loss must be the same on both."""

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np

from r1jax.cli.experiments import load_experiment
from r1jax.cli.gin_config import read_config
from r1jax.config import LossConfig
from r1jax.types import Batch
from tests.conftest import ROOT

LONGEST = 44  # max_new_tokens of scale/cpu.gin
PROMPT = 2  # tokens before each output
LAYOUTS = ("one a row", "packed")


def preset(name: str, *scales: str) -> LossConfig:
    """The loss of gin_configs/algorithm/`name`, changed by files of gin_configs/scale."""
    files = ("model/tiny.gin", f"algorithm/{name}.gin", "scale/cpu.gin", *(f"scale/{scale}.gin" for scale in scales))
    paths = [str(ROOT / "gin_configs" / file) for file in files]
    return read_config(load_experiment("r1_zero").Config, paths, []).rl.loss


@dataclass(frozen=True)
class Packed:
    """A batch, and where in it the outputs' tokens are."""

    batch: Batch
    row_ON: np.ndarray
    column_ON: np.ndarray  # behind the row where an output has no such token

    def place(self, values_ON) -> Any:
        """[outputs, N] as [B, T], differentiable; elsewhere NaN, which nobody may read."""
        empty_BT = jnp.full(self.batch.tokens_BT.shape, jnp.nan, jnp.asarray(values_ON).dtype)
        return empty_BT.at[self.row_ON, self.column_ON].set(values_ON, mode="drop")

    def take(self, values_BT) -> np.ndarray:
        """The inverse: [outputs, N], 0 where an output has no such token."""
        wide_BT = np.pad(np.asarray(values_BT), ((0, 0), (0, 1)))
        return wide_BT[self.row_ON, self.column_ON]


def rows_of(layout: str, outputs: int) -> list[list[int]]:
    """Which outputs share a row: neither in order, nor as many in each."""
    if layout == "one a row":
        return [[i] for i in range(outputs)]
    order = np.random.default_rng(5).permutation(outputs).tolist()
    sizes = [max(outputs - outputs // 2 - 1, 1), 1]
    return [row for row in (order[: sizes[0]], order[sizes[0] : sizes[0] + 1], order[sizes[0] + 1 :]) if row]


def pack(layout: str, mask_ON, advantage_O, *, old=0.0, ref=None, sampler=None) -> Packed:
    """The trained tokens of `mask_ON` behind prompts; log-probabilities [outputs, N] or a number."""
    mask_ON = np.asarray(mask_ON) > 0
    rows = rows_of(layout, len(mask_ON))
    lengths = mask_ON.sum(axis=1)
    T = max(sum(PROMPT + lengths[i] for i in row) for row in rows) + 1  # padding at every row's end
    B, zeros = len(rows), np.zeros((len(rows), T), np.int32)
    tokens_BT, positions_BT, segment_ids_BT, loss_mask_BT = zeros, zeros.copy(), zeros.copy(), zeros.astype(bool)
    row_ON, column_ON = np.zeros(mask_ON.shape, int), np.full(mask_ON.shape, T)
    for b, row in enumerate(rows):
        begin = 0
        for segment, i in enumerate(row, 1):
            n = PROMPT + lengths[i]
            positions_BT[b, begin : begin + n], segment_ids_BT[b, begin : begin + n] = np.arange(n), segment
            loss_mask_BT[b, begin + PROMPT : begin + n] = True
            row_ON[i], column_ON[i, mask_ON[i]] = b, begin + PROMPT + np.arange(lengths[i])
            begin += n
    slots = max(map(len, rows)) + (layout == "packed")  # a segment that no row has
    empty = np.full((B, T), np.nan)
    batch = Batch(tokens_BT, positions_BT, segment_ids_BT, loss_mask_BT, empty, empty, max_segments=slots)
    packed = Packed(batch, row_ON, column_ON)

    def place(values):
        return np.asarray(packed.place(np.broadcast_to(np.asarray(values, float), mask_ON.shape)))

    arrays = dict(
        logprobs_sampler_BT=place(old if sampler is None else sampler),
        advantages_BT=place(np.asarray(advantage_O, float)[:, None]),
        logprobs_old_BT=place(old),
        logprobs_ref_BT=None if ref is None else place(ref),
    )
    return Packed(batch.replace(**arrays), row_ON, column_ON)  # type: ignore[attr-defined]
