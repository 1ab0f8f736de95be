"""Routed experts on one device; parallel/expert_parallel.py has them sharded. No token is ever dropped.

`p` holds the three matrices of each of E experts; ids [T, K] and gate values [T, K] come from the router (moe.py).
Padding has the id E, which is no expert's.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import struct

from r1jax.model.layers import linear, swiglu
from r1jax.model.quantize import is_quantized
from r1jax.types import Array, Params

CPU_TILE = 32  # rows that a CPU multiplies with one expert's matrix at once


@struct.dataclass
class LayerOf:
    """One layer of stacked weights. A kernel reads it in place, where a slice of the stack would be a copy."""

    stack_LEIO: Array
    layer: Array

    @property
    def shape(self) -> tuple[int, ...]:
        return self.stack_LEIO.shape[1:]

    def slice(self) -> Array:
        return jax.lax.dynamic_index_in_dim(self.stack_LEIO, self.layer, keepdims=False)


def expert_layers(p: Params, layer: Array) -> Params:
    """The expert matrices among stacked weights `p`, as `LayerOf`; none of a layer that is dense or in 8 bits."""
    names = ("gate_EDF", "up_EDF", "down_EFD")
    return {name: LayerOf(p[name], layer) for name in names if name in p and not is_quantized(p[name])}


def moe_dense(p: Params, x_TD: Array, ids_TK: Array, gates_TK: Array) -> Array:
    """Every expert on every token, weighted: the test oracle, and the fastest form where most experts are chosen."""
    E = p["gate_EDF"].shape[0]
    weights_TE = (jax.nn.one_hot(ids_TK, E, dtype=x_TD.dtype) * gates_TK.astype(x_TD.dtype)[..., None]).sum(axis=1)
    gate_TEF, up_TEF = (linear(x_TD, p[name].swapaxes(0, 1)) for name in ("gate_EDF", "up_EDF"))
    return linear(swiglu(gate_TEF, up_TEF) * weights_TE[..., None], p["down_EFD"], 2)


def count(ids: Array, n: int) -> Array:
    """How often each id in [0, n) occurs, int32 [n]; other ids are ignored."""
    return (ids.reshape(-1, 1) == jnp.arange(n)).sum(axis=0, dtype=jnp.int32)


def grouped_swiglu(p: Params, rows_GD: Array, gates_G1: Array, group_sizes_E: Array) -> Array:
    """SwiGLU over rows sorted by expert, times their gate values; rows after the last group are undefined.

    Gate values are applied before the last matmul: after it, their gradient would recompute that matmul.
    """
    matmul = layer_matmul if isinstance(p["gate_EDF"], LayerOf) else grouped_matmul
    hidden_GF = jax.nn.silu(matmul(rows_GD, p["gate_EDF"], group_sizes_E))
    hidden_GF = hidden_GF * matmul(rows_GD, p["up_EDF"], group_sizes_E) * gates_G1.astype(rows_GD.dtype)
    return matmul(hidden_GF, p["down_EFD"], group_sizes_E)


def layer_matmul(rows_GI: Array, weights: LayerOf, group_sizes_E: Array) -> Array:
    """`multiply_groups` with one layer of stacked weights; without a gradient."""

    def sliced(rows_GI, weights, group_sizes_E):
        return multiply_groups(rows_GI, weights.slice(), group_sizes_E)

    return jax.lax.platform_dependent(rows_GI, weights, group_sizes_E, tpu=matmul_in_place, default=sliced)


def matmul_in_place(rows_GI: Array, weights: LayerOf, group_sizes_E: Array) -> Array:
    """A TPU's kernel skips groups without rows: it gets the experts of all layers, of which only one has rows."""
    L, E, *matrix = weights.stack_LEIO.shape
    sizes_LE = jnp.zeros((L, E), group_sizes_E.dtype).at[weights.layer].set(group_sizes_E)
    with jax.named_scope(f"{E}_of_{L * E}_groups"):  # tells dry_run/hlo.py how much of the stack is read
        return jax.lax.ragged_dot(rows_GI, weights.stack_LEIO.reshape(L * E, *matrix), sizes_LE.reshape(-1))


@jax.custom_vjp
def grouped_matmul(rows_GI: Array, weights_EIO: Array, group_sizes_E: Array) -> Array:
    """`multiply_groups` with a gradient of ours: XLA's for the weights multiplies all rows for each group on TPU."""
    return multiply_groups(rows_GI, weights_EIO, group_sizes_E)


def multiply_groups(rows_GI: Array, weights_EIO: Array, group_sizes_E: Array) -> Array:
    """Rows sorted by expert times their expert's matrix, [G, O]; without a gradient.

    It is `jax.lax.ragged_dot`, but for CPUs: there XLA multiplies all rows with each expert's matrix.
    """
    inputs = rows_GI, weights_EIO, group_sizes_E
    return jax.lax.platform_dependent(*inputs, cpu=multiply_tiles, default=jax.lax.ragged_dot)


def multiply_tiles(rows_GI: Array, weights_EIO: Array, group_sizes_E: Array) -> Array:
    """`jax.lax.ragged_dot` as a loop over tiles, each with rows of one group; rows after the last group give 0."""
    G = rows_GI.shape[0]
    size = min(G, CPU_TILE)
    tiles, find_tile = cut_tiles(group_sizes_E, G, size)

    def multiply(i, out_GO):
        e, first, in_group_J1 = find_tile(i)
        matrix_IO = jax.lax.dynamic_index_in_dim(weights_EIO, e, keepdims=False)
        new_JO = jax.lax.dynamic_slice_in_dim(rows_GI, first, size) @ matrix_IO
        old_JO = jax.lax.dynamic_slice_in_dim(out_GO, first, size)
        return jax.lax.dynamic_update_slice_in_dim(out_GO, jnp.where(in_group_J1, new_JO, old_JO), first, axis=0)

    return jax.lax.fori_loop(0, tiles, multiply, jnp.zeros((G, weights_EIO.shape[2]), rows_GI.dtype))


def cut_tiles(group_sizes_E: Array, G: int, size: int) -> tuple[Array, Callable[[Array], tuple[Array, Array, Array]]]:
    """Cuts each group of G sorted rows into tiles of `size` rows, of which the last may be partial.

    Returns:
      The number of tiles, at most G / size + E; and a function of a tile's number: its expert, its first row, and which
      of the `size` rows from there on are its own, bool [size, 1]. Near the end of all rows the first is moved back, so
      that the slice fits: it then begins with rows of earlier tiles.
    """
    row_ends_E = jnp.cumsum(group_sizes_E)
    tiles_E = -(-group_sizes_E // size)
    tile_ends_E = jnp.cumsum(tiles_E)

    def find_tile(i: Array) -> tuple[Array, Array, Array]:
        e = jnp.searchsorted(tile_ends_E, i, side="right")
        begin = row_ends_E[e] - group_sizes_E[e] + (i - tile_ends_E[e] + tiles_E[e]) * size
        first = jnp.minimum(begin, G - size)  # keeps the slice within bounds
        row_J1 = first + jnp.arange(size)[:, None]
        return e, first, (row_J1 >= begin) & (row_J1 < row_ends_E[e])

    return tile_ends_E[-1], find_tile


def weights_gradient(rows_GI: Array, g_GO: Array, group_sizes_E: Array) -> Array:
    """rows^T g of each group, [E, I, O] in float32 or wider: a loop over tiles; surplus iterations do nothing."""
    G, E = rows_GI.shape[0], group_sizes_E.size
    size = min(G, 1024, max(128, G // (4 * E) // 128 * 128))  # about a quarter of an average group
    tiles, find_tile = cut_tiles(group_sizes_E, G, size)
    dtype = jnp.promote_types(rows_GI.dtype, jnp.float32)

    def add(i, sums_EIO):
        e, first, in_group_J1 = find_tile(i)
        slices = (jax.lax.dynamic_slice_in_dim(x, first, size) for x in (rows_GI, g_GO))
        rows_JI, g_JO = (jnp.where(in_group_J1, x, 0) for x in slices)  # rows after the last group may be NaN
        return sums_EIO.at[e].add(jnp.einsum("JI,JO->IO", rows_JI, g_JO, preferred_element_type=dtype))

    def add_if_used(i, sums_EIO):
        return jax.lax.cond(i < tiles, functools.partial(add, i), lambda sums_EIO: sums_EIO, sums_EIO)

    zeros_EIO = jnp.zeros((E, rows_GI.shape[1], g_GO.shape[1]), dtype)
    return jax.lax.fori_loop(0, G // size + E, add_if_used, zeros_EIO)


def _grouped_matmul_backward(residuals, g_GO):
    rows_GI, weights_EIO, group_sizes_E = residuals
    g_rows_GI = multiply_groups(g_GO, weights_EIO.swapaxes(1, 2), group_sizes_E)
    g_weights_EIO = weights_gradient(rows_GI, g_GO, group_sizes_E)
    return g_rows_GI.astype(rows_GI.dtype), g_weights_EIO.astype(weights_EIO.dtype), None


grouped_matmul.defvjp(lambda *inputs: (grouped_matmul(*inputs), inputs), _grouped_matmul_backward)


def moe_grouped(p: Params, x_TD: Array, ids_TK: Array, gates_TK: Array) -> Array:
    """Each token on its chosen experts only: sort by expert, three ragged matmuls, unsort."""
    (T, K), E = ids_TK.shape, p["gate_EDF"].shape[0]
    order_G = jnp.argsort(ids_TK.reshape(-1), stable=True)
    row_TK = jnp.where(ids_TK < E, jnp.argsort(order_G).reshape(T, K), -1)
    token_G = jnp.where(ids_TK.reshape(-1)[order_G] < E, order_G // K, -1)
    rows_GD = dispatch(x_TD, token_G, row_TK)
    gates_G1 = gates_TK.reshape(-1, 1)[order_G]
    out_GD = grouped_swiglu(p, rows_GD, gates_G1, count(ids_TK, E))
    return combine(out_GD, token_G, row_TK)


# Tokens to rows and back. Each is the transpose of the other and a gather: JAX's own transpose would be a scatter.


@jax.custom_vjp
def dispatch(x_TD: Array, token_G: Array, row_TK: Array) -> Array:
    """Rows [G, D]: row g is token token_G[g], or 0 where that is -1. D may be several dimensions.

    row_TK, the rows of each token, is read by the gradient; -1 where the token has fewer than K.
    """
    rows_GD = x_TD[jnp.maximum(token_G, 0)]
    return jnp.where(jnp.expand_dims(token_G, range(1, rows_GD.ndim)) >= 0, rows_GD, 0)


@jax.custom_vjp
def combine(rows_GD: Array, token_G: Array, row_TK: Array) -> Array:
    """[T, D]: the sum of each token's rows."""
    rows_TKD = rows_GD[jnp.maximum(row_TK, 0)]
    return jnp.where(jnp.expand_dims(row_TK, range(2, rows_TKD.ndim)) >= 0, rows_TKD, 0).sum(axis=1)


dispatch.defvjp(lambda *args: (dispatch(*args), args[1:]), lambda indices, g: (combine(g, *indices), None, None))
combine.defvjp(lambda *args: (combine(*args), args[1:]), lambda indices, g: (dispatch(g, *indices), None, None))
