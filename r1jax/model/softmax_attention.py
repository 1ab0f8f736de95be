"""Causal softmax attention within segments: one interface, one implementation per platform.

Only "full" materializes the [T, S] scores; the memory of the others is linear in the sequence length.
"""

import functools
from typing import Literal

import chex
import jax
import jax.numpy as jnp

from r1jax.types import Array, Segments

MASKED = -1e30  # finite, so that fully masked rows (padding) give numbers and not NaN
CHUNK = 256  # queries per chunk
BLOCK = 512  # largest block of the TPU kernel


def choose_attention(platform: str, dtype: str, head_size: int, capability: float) -> str:
    """The implementation that "auto" stands for on a `platform` ("cpu", "gpu", "tpu") in `dtype`.

    cuDNN's kernels have no float32, and heads of more than 128 only from compute capability 9 (Hopper) on.
    """
    if platform == "tpu":
        return "splash"
    if platform == "gpu" and dtype == "bfloat16" and head_size % 8 == 0:
        return "cudnn" if head_size <= (256 if capability >= 9 else 128) else "chunked"
    return "chunked"


def attend(
    q_BTHM: Array,
    k_BSYM: Array,
    v_BSYU: Array,
    segments: Segments,
    scale: float,
    implementation: str,
    part: Array | int = 0,
) -> Array:
    """softmax(scale * q k) v over the tokens that a query sees (`Segments`, [B, S]), [B, T, H, U].

    Queries are the `part`-th T of the S tokens, where T divides S. Y divides H: each head of keys and values serves
    H / Y consecutive heads of queries. `implementation` is a value of `ModelConfig.attention`; "auto" is "chunked",
    which runs on every platform.
    """
    B, T, H, M = q_BTHM.shape
    S, Y = k_BSYM.shape[1:3]
    chex.assert_shape([k_BSYM, v_BSYU, segments.ids_BT], [(B, S, Y, M), (B, S, Y, None), (B, S)])
    chex.assert_is_divisible(H, Y)
    chex.assert_is_divisible(S, T)
    if segments.paths_BsS is not None:
        return attend_paths(q_BTHM, k_BSYM, v_BSYU, segments, scale, implementation)
    if implementation == "splash":
        return attend_splash(q_BTHM, k_BSYM, v_BSYU, segments, scale, part)
    attend_chunk = functools.partial(fused_chunk if implementation == "cudnn" else einsum_chunk, scale=scale)
    size = T if implementation == "full" else CHUNK
    return attend_chunked(q_BTHM, k_BSYM, v_BSYU, segments, attend_chunk, size, part)


def attend_paths(q_BTHM, k_BTYM, v_BTYU, segments: Segments, scale: float, implementation: str) -> Array:
    """`attend` of samples that share prompts, each of them in a row of its own with a copy of the prompt."""
    paths_BsS: Array = segments.paths_BsS
    B, s, S = paths_BsS.shape
    T = q_BTHM.shape[1]

    def take(x_BTH, places_BG):
        return jnp.take_along_axis(x_BTH, places_BG[..., None, None], axis=1)

    def rows(x_BTH):
        return take(x_BTH, jnp.minimum(paths_BsS, T - 1).reshape(B, -1)).reshape(B * s, S, *x_BTH.shape[2:])

    is_token_BsS = (paths_BsS < T).astype(jnp.int32)
    apart = Segments(is_token_BsS.reshape(B * s, S))
    out = attend(rows(q_BTHM), rows(k_BTYM), rows(v_BTYU), apart, scale, implementation)
    return take(out.reshape(B, s * S, *out.shape[2:]), segments.places_BT)


def causal_mask(q_segments_BT: Array, segments: Segments, first: Array | int) -> Array:
    """[B, T, S]: whether query `first` + t sees key s. The queries' segments don't matter where keys have ends."""
    ids_BS, ends_BS, T = segments.ids_BT, segments.ends_BT, q_segments_BT.shape[1]
    t_T1 = first + jnp.arange(T)[:, None]
    seen_BTS = q_segments_BT[:, :, None] == ids_BS[:, None] if ends_BS is None else t_T1 < ends_BS[:, None]
    return seen_BTS & (jnp.arange(ids_BS.shape[1]) <= t_T1)


def einsum_chunk(q_BTHM: Array, k_BSYM: Array, v_BSYU: Array, mask_BTS: Array, scale: float) -> Array:
    """The definition, with scores and softmax in float32.

    The z = T * H / Y queries that share a head of keys are rows of one matmul, so that only the mask is repeated.
    """
    B, T, H, M = q_BTHM.shape
    Y, U = v_BSYU.shape[2:]
    q_BzYM = q_BTHM.reshape(B, T, Y, H // Y, M).swapaxes(2, 3).reshape(B, -1, Y, M)
    mask_BzS = jnp.repeat(mask_BTS, H // Y, axis=1)
    scores_BYzS = jnp.einsum("BzYM,BSYM->BYzS", q_BzYM, k_BSYM, preferred_element_type=jnp.float32)
    weights_BYzS = jax.nn.softmax(jnp.where(mask_BzS[:, None], scores_BYzS * scale, MASKED))
    out_BzYU = jnp.einsum("BYzS,BSYU->BzYU", weights_BYzS.astype(v_BSYU.dtype), v_BSYU)
    return out_BzYU.reshape(B, T, H // Y, Y, U).swapaxes(2, 3).reshape(B, T, H, U)


def fused_chunk(q_BTHM, k_BSYM, v_BSYU, mask_BTS, scale: float, *, kernel: Literal["cudnn", "xla"] = "cudnn") -> Array:
    """JAX's fused kernels, with zero padding to one head size for all and, for cuDNN, even numbers of tokens.

    cuDNN raises an error for head sizes that it does not support: set ModelConfig.attention = 'chunked'.
    """
    T, U, size = q_BTHM.shape[1], v_BSYU.shape[-1], max(q_BTHM.shape[-1], v_BSYU.shape[-1])

    def pad(x):
        return jnp.pad(x, ((0, 0), (0, x.shape[1] % 2), (0, 0), (0, size - x.shape[-1])))

    mask_BTS = jnp.pad(mask_BTS, ((0, 0), (0, T % 2), (0, k_BSYM.shape[1] % 2)))
    q, k, v = pad(q_BTHM), pad(k_BSYM), pad(v_BSYU)
    out = jax.nn.dot_product_attention(q, k, v, mask=mask_BTS[:, None], scale=scale, implementation=kernel)
    return out[:, :T, :, :U]


def attend_chunked(q_BTHM, k_BSYM, v_BSYU, segments: Segments, attend_chunk, size: int = CHUNK, part=0) -> Array:
    """`attend_chunk` of `size` queries at a time over all keys; the backward pass recomputes each chunk's scores."""
    B, T, H, M = q_BTHM.shape
    first = part * T
    q_segments_BT = jax.lax.dynamic_slice_in_dim(segments.ids_BT, first, T, axis=1)
    if size >= T:
        return attend_chunk(q_BTHM, k_BSYM, v_BSYU, causal_mask(q_segments_BT, segments, first))
    pad = -T % size
    q_BTHM = jnp.pad(q_BTHM, ((0, 0), (0, pad), (0, 0), (0, 0)))
    q_segments_BT = jnp.pad(q_segments_BT, ((0, 0), (0, pad)))

    @jax.checkpoint
    def one(chunk):
        i, q_BtHM, q_segments_Bt = chunk
        return attend_chunk(q_BtHM, k_BSYM, v_BSYU, causal_mask(q_segments_Bt, segments, first + i * size))

    q_cBtHM = jnp.moveaxis(q_BTHM.reshape(B, -1, size, H, M), 1, 0)
    q_segments_cBt = jnp.moveaxis(q_segments_BT.reshape(B, -1, size), 1, 0)
    out_cBtHU = jax.lax.map(one, (jnp.arange(len(q_cBtHM)), q_cBtHM, q_segments_cBt))
    return jnp.moveaxis(out_cBtHU, 0, 1).reshape(B, T + pad, H, -1)[:, :T]


def attend_splash(q_BTHM, k_BSYM, v_BSYU, segments: Segments, scale: float, part=0, *, interpret=False) -> Array:
    """JAX's Pallas kernel for TPU, each part padded to whole blocks; `interpret` runs it anywhere, slowly."""
    # Imported here: Pallas is slow to import and of no use to other platforms.
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    (T, H), parts = q_BTHM.shape[1:3], k_BSYM.shape[1] // q_BTHM.shape[1]
    block = min(BLOCK, -(-T // 128) * 128)
    length = -(-T // block) * block

    def pad(x):
        x = x.reshape(x.shape[0], -1, T, *x.shape[2:])
        x = jnp.pad(x, ((0, 0), (0, 0), (0, length - T), *[(0, 0)] * (x.ndim - 3)))
        return x.reshape(x.shape[0], -1, *x.shape[3:])

    q_BTHM, k_BSYM, v_BSYU, segment_ids_BS = (pad(x) for x in (q_BTHM, k_BSYM, v_BSYU, segments.ids_BT))
    segment_ids_BT = jax.lax.dynamic_slice_in_dim(segment_ids_BS, part * length, length, axis=1)
    mask = masks.MultiHeadMask([masks.CausalMask((parts * length, parts * length)) for _ in range(H)])
    sizes = splash.BlockSizes(*[block] * 8)
    kernel = splash.make_splash_mha(mask, block_sizes=sizes, head_shards=1, q_seq_shards=parts, interpret=interpret)

    def of_part(x):  # of the kernel's block metadata, [heads, query blocks, …], and of its query positions
        axis = min(x.ndim - 1, 1)
        size = x.shape[axis] // parts
        return jax.lax.dynamic_slice_in_dim(x, part * size, size, axis)

    q_BHTM, k_BYSM, v_BYSU = (jnp.swapaxes(x, 1, 2) for x in (q_BTHM * scale, k_BSYM, v_BSYU))
    ids = splash.SegmentIds(segment_ids_BT, segment_ids_BS)
    out_BHTU = jax.vmap(jax.tree.map(of_part, kernel))(q_BHTM, k_BYSM, v_BYSU, ids)
    return jnp.swapaxes(out_BHTU, 1, 2)[:, :T].astype(v_BSYU.dtype)
