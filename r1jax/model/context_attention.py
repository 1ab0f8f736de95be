"""Attention of a few new tokens over one layer of a cache, which is read in place and once, whatever the platform.

No scores of a whole context are stored: a chunk of it is read at a time, with a running maximum and sum (arXiv
2112.05682). A `Partial` is what these chunks add up to, so that contexts can be attended to one by one and merged.
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from r1jax.model.quantize import dequantize, is_quantized
from r1jax.model.softmax_attention import MASKED
from r1jax.types import Array

CHUNK = 1024  # tokens of a cache that are read at once
# Of the kernel, whose blocks must fit into a chip's fast memory several times:
KERNEL_BYTES = 5 * 2**18  # of a chunk of keys and values
KERNEL_QUERIES = 512  # that share a chunk; more read the cache again


class Partial(NamedTuple):
    """Softmax attention before its division by the sum, over some of the keys; float32."""

    max_BTH1: Array  # the largest score
    sum_BTH1: Array  # of exp(score - max)
    out_BTHX: Array


def merge(a: Partial, b: Partial) -> Partial:
    """Over the keys of both."""
    larger_BTH1 = jnp.maximum(a.max_BTH1, b.max_BTH1)
    of_a, of_b = jnp.exp(a.max_BTH1 - larger_BTH1), jnp.exp(b.max_BTH1 - larger_BTH1)
    return Partial(larger_BTH1, a.sum_BTH1 * of_a + b.sum_BTH1 * of_b, a.out_BTHX * of_a + b.out_BTHX * of_b)


def attend_tokens(q_BTHX: Array, cache: Any, mask_BTS: Array, scale: float) -> Partial:
    """Over tokens [B, S, X], all of them at once. Where none is seen, the sum and output are arbitrary: `merge` drops
    them, since the largest score is `MASKED`."""
    k_BSX, v_BSX = keys_and_values(cache)
    scores_BTHS = jnp.einsum("BTHX,BSX->BTHS", q_BTHX, k_BSX, preferred_element_type=jnp.float32)
    scores_BTHS = jnp.where(mask_BTS[:, :, None], scores_BTHS * scale, MASKED)
    max_BTH1 = scores_BTHS.max(axis=-1, keepdims=True)
    weights_BTHS = jnp.exp(scores_BTHS - max_BTH1)
    out_BTHX = jnp.einsum("BTHS,BSX->BTHX", weights_BTHS.astype(v_BSX.dtype), v_BSX, preferred_element_type=jnp.float32)
    return Partial(max_BTH1, weights_BTHS.sum(axis=-1, keepdims=True), out_BTHX)


def keys_and_values(cache: Any) -> tuple:
    """With MLA the latents are both."""
    return (cache["keys"], cache["values"]) if isinstance(cache, dict) else (cache, cache)


def read(cache: Any, layer: Array | int, start: Array | int, size: int, dtype: Any) -> Any:
    """`size` places of one layer of a cache from `start` on, [B, size, X], dequantized."""

    def one(x_LBSX):
        _, B, _, X = x_LBSX.shape
        return jax.lax.dynamic_slice(x_LBSX, (layer, 0, start, 0), (1, B, size, X))[0]

    return dequantize(jax.tree.map(one, cache), dtype)


def attend_context(
    q_BTHX: Array, cache: Any, mask_BTS: Array, layer: Array | int, scale: float, implementation: str
) -> Partial:
    """Over the first S places of one layer of a cache [L, B, _, X], which may be quantized.

    Where `implementation` is "splash", which says that this is a TPU, a kernel attends to a context that is long.
    """

    def attend_places(start: Array | int, size: int) -> Partial:
        mask_BTs = jax.lax.dynamic_slice_in_dim(mask_BTS, start, size, axis=2)
        return attend_tokens(q_BTHX, read(cache, layer, start, size, q_BTHX.dtype), mask_BTs, scale)

    chunks, rest = divmod(mask_BTS.shape[-1], CHUNK)
    if implementation == "splash" and chunks and mask_BTS.shape[1] == 1:
        return attend_chunks(q_BTHX, cache, mask_BTS, layer, scale)

    def add_chunk(i, part):
        return merge(part, attend_places(i * CHUNK, CHUNK))

    parts = [jax.lax.fori_loop(1, chunks, add_chunk, attend_places(0, CHUNK))] if chunks else []
    return functools.reduce(merge, [*parts, attend_places(chunks * CHUNK, rest)] if rest else parts)


# ---- the kernel for TPU


def attend_chunks(
    q_BTHX: Array, cache: Any, mask_B1S: Array, layer: Array | int, scale: float, *, interpret: bool = False
) -> Partial:
    """`attend_context` as a Pallas kernel; `interpret` runs it anywhere, slowly.

    The z = T * H queries of a sequence share its scores, which never leave the chip's fast memory. Of a quantized cache
    the values are read, and scores and weights are multiplied by the scale of their place.
    """
    # Imported here: Pallas is slow to import and of no use to other platforms.
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import tpu as pltpu

    (B, T, H, X), S = q_BTHX.shape, mask_B1S.shape[-1]
    Z, cached = T * H, list({id(x): x for x in keys_and_values(cache)}.values())
    arrays = [x.values if is_quantized(x) else x for x in cached]
    scales = [x.scale.swapaxes(2, 3) for x in cached if is_quantized(x)]  # [L, B, 1, S]
    z = Z if Z <= KERNEL_QUERIES else math.gcd(Z, KERNEL_QUERIES)
    size = min(CHUNK, max(128, KERNEL_BYTES // (X * sum(x.dtype.itemsize for x in arrays)) // 128 * 128))
    # A TPU pads an array's minor dimension to a multiple of 128. XLA stores it with the least padding: latents with
    # their tokens minor, keys and values of heads with X minor. The kernel reads either as it is stored.
    is_wide = X % 128 != 0
    arrays = [x.swapaxes(2, 3) for x in arrays] if is_wide else arrays
    place = (lambda b, q, i, layer: (layer[0], b, 0, i)) if is_wide else (lambda b, q, i, layer: (layer[0], b, i, 0))
    of_cache = pl.BlockSpec((1, 1, X, size) if is_wide else (1, 1, size, X), place)
    of_queries, of_each = (pl.BlockSpec((1, z, n), lambda b, q, i, layer: (b, q, 0)) for n in (X, 1))
    of_mask = pl.BlockSpec((1, 1, size), lambda b, q, i, layer: (b, 0, i))
    of_scale = pl.BlockSpec((1, 1, 1, size), lambda b, q, i, layer: (layer[0], b, 0, i))
    place_bytes = 4 * (1 + len(scales)) + X * len(arrays) * arrays[0].dtype.itemsize
    shapes = [jax.ShapeDtypeStruct((B, Z, n), jnp.float32) for n in (1, 1, X)]
    found = pl.pallas_call(
        functools.partial(attend_chunk, scale=scale, is_wide=is_wide, S=S),
        out_shape=shapes,
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=(B, Z // z, pl.cdiv(S, size)),
            in_specs=[of_queries, of_mask, *[of_cache] * len(arrays), *[of_scale] * len(scales)],
            out_specs=[of_each, of_each, of_queries],
        ),
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "parallel", "arbitrary")),
        cost_estimate=pl.CostEstimate(
            flops=4 * B * Z * S * X,
            transcendentals=B * Z * S,
            bytes_accessed=B * (Z // z) * S * place_bytes + B * Z * (X * 6 + 1024),
        ),
        interpret=interpret,
    )(
        jnp.reshape(layer, 1),
        q_BTHX.reshape(B, Z, X),
        jnp.broadcast_to(mask_B1S, (B, 1, S)).astype(jnp.int32),
        *arrays,
        *scales,
    )
    return Partial(*(x.reshape(B, T, H, -1) for x in found))


def attend_chunk(layer, q_ref, mask_ref, *others, scale: float, is_wide: bool, S: int) -> None:
    """Adds a chunk to the `Partial` of z queries. `others` are keys and values, or what is both, their scales if they
    are quantized, and the results."""
    from jax.experimental import pallas as pl

    *cached, max_ref, sum_ref, out_ref = others
    count = len(cached) // 2 if cached[0].dtype.itemsize == 1 else len(cached)
    arrays, scales = ([ref[0, 0] for ref in refs] for refs in (cached[:count], cached[count:]))
    arrays = [x.astype(q_ref.dtype) for x in arrays] if scales else arrays
    k, v = arrays[0], arrays[-1]  # [X, S] if wide, else [S, X]

    @pl.when(pl.program_id(2) == 0)
    def _():
        max_ref[...] = jnp.full_like(max_ref, MASKED)
        sum_ref[...], out_ref[...] = jnp.zeros_like(sum_ref), jnp.zeros_like(out_ref)

    def dot(a, b, axis):
        return jax.lax.dot_general(a, b, (((1,), (axis,)), ((), ())), preferred_element_type=jnp.float32)

    size = mask_ref.shape[-1]
    places_left = S - pl.program_id(2) * size
    is_place_1S = jax.lax.broadcasted_iota(jnp.int32, (1, size), 1) < places_left
    if S % size:  # what is beyond the array is undefined, perhaps NaN
        v = jnp.where(jax.lax.broadcasted_iota(jnp.int32, v.shape, int(is_wide)) < places_left, v, 0)
    scores_zS = dot(q_ref[0], k, 1 - is_wide) * (scale * scales[0] if scales else scale)
    scores_zS = jnp.where((mask_ref[0] != 0) & is_place_1S, scores_zS, MASKED)
    larger_z1 = jnp.maximum(max_ref[0], scores_zS.max(axis=-1, keepdims=True))
    weights_zS, decay_z1 = jnp.exp(scores_zS - larger_z1), jnp.exp(max_ref[0] - larger_z1)
    sum_ref[0] = sum_ref[0] * decay_z1 + weights_zS.sum(axis=-1, keepdims=True)
    scaled_zS = weights_zS * jnp.where(is_place_1S, scales[-1], 0) if scales else weights_zS
    out_ref[0] = out_ref[0] * decay_z1 + dot(scaled_zS.astype(v.dtype), v, int(is_wide))
    max_ref[0] = larger_z1
