"""Causal softmax attention within segments: one interface, one implementation per platform.

Only "full" materializes the [T, S] scores; the memory of the others is linear in the sequence length.
"""

import functools
from collections.abc import Callable
from typing import Literal, NamedTuple

import chex
import jax
import jax.numpy as jnp

from r1jax.types import Array, Segments

MASKED = -1e30  # finite, so that fully masked rows (padding) give numbers and not NaN
CHUNK = 256  # queries per chunk
UNROLLED = 8  # chunks at most that are no loop
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
    attend_chunk, size = CHUNKS[implementation], T if implementation == "full" else CHUNK
    return attend_chunked(q_BTHM, k_BSYM, v_BSYU, segments, scale, attend_chunk, size, part)


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


class Chunk(NamedTuple):
    """Queries `first` to `first` + T, which attend to S keys."""

    first: Array | int
    q_ids_BT: Array  # the queries' segments; they don't matter where keys have ends
    keys: Segments  # the keys', [B, S]

    @property
    def mask_BTS(self) -> Array:
        """Whether query t sees key s."""
        ids_BS, ends_BS = self.keys.ids_BT, self.keys.ends_BT
        t_T1 = self.first + jnp.arange(self.q_ids_BT.shape[1])[:, None]
        seen_BTS = self.q_ids_BT[:, :, None] == ids_BS[:, None] if ends_BS is None else t_T1 < ends_BS[:, None]
        return seen_BTS & (jnp.arange(ids_BS.shape[1]) <= t_T1)


def einsum_chunk(q_BTHM: Array, k_BSYM: Array, v_BSYU: Array, chunk: Chunk, scale: float) -> Array:
    """The definition, with scores and softmax in float32."""
    B, T, H, M = q_BTHM.shape
    q_BTYhM = q_BTHM.reshape(B, T, k_BSYM.shape[2], -1, M)
    scores_BYhTS = jnp.einsum("BTYhM,BSYM->BYhTS", q_BTYhM, k_BSYM, preferred_element_type=jnp.float32)
    weights_BYhTS = jax.nn.softmax(jnp.where(chunk.mask_BTS[:, None, None], scores_BYhTS * scale, MASKED))
    return jnp.einsum("BYhTS,BSYU->BTYhU", weights_BYhTS.astype(v_BSYU.dtype), v_BSYU).reshape(B, T, H, -1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def flash_chunk(q_BTHM: Array, k_BSYM: Array, v_BSYU: Array, chunk: Chunk, scale: float) -> Array:
    """`einsum_chunk` whose gradient computes the scores again (FlashAttention-2, arXiv 2307.08691, algorithm 2).

    Heads come before tokens: on a CPU, XLA multiplies contiguous matrices faster.
    """
    return _flash_forward(q_BTHM, k_BSYM, v_BSYU, chunk, scale)[0]


def _by_heads(q_BTHM: Array, k_BSYM: Array, v_BSYU: Array) -> tuple[Array, Array, Array]:
    """[B, Y, h, T, M], [B, Y, S, M] and [B, Y, S, U]."""
    (B, T, _, M), Y = q_BTHM.shape, k_BSYM.shape[2]
    q_BYhTM = jnp.transpose(q_BTHM.reshape(B, T, Y, -1, M), (0, 2, 3, 1, 4))
    return q_BYhTM, k_BSYM.swapaxes(1, 2), v_BSYU.swapaxes(1, 2)


def _by_tokens(x_BYhTM: Array) -> Array:
    """[B, T, H, M]."""
    return jnp.transpose(x_BYhTM, (0, 3, 1, 2, 4)).reshape(x_BYhTM.shape[0], x_BYhTM.shape[3], -1, x_BYhTM.shape[4])


def _flash_scores(q_BYhTM: Array, k_BYSM: Array, chunk: Chunk, scale: float) -> Array:
    scores_BYhTS = jnp.einsum("BYhTM,BYSM->BYhTS", q_BYhTM, k_BYSM, preferred_element_type=jnp.float32)
    return jnp.where(chunk.mask_BTS[:, None, None], scores_BYhTS * scale, MASKED)


def _flash_forward(q_BTHM: Array, k_BSYM: Array, v_BSYU: Array, chunk: Chunk, scale: float) -> tuple[Array, tuple]:
    q_BYhTM, k_BYSM, v_BYSU = _by_heads(q_BTHM, k_BSYM, v_BSYU)
    scores_BYhTS = _flash_scores(q_BYhTM, k_BYSM, chunk, scale)
    max_BYhT1 = scores_BYhTS.max(axis=-1, keepdims=True)
    exp_BYhTS = jnp.exp(scores_BYhTS - max_BYhT1)
    sum_BYhT1 = exp_BYhTS.sum(axis=-1, keepdims=True)
    out_BYhTU = jnp.einsum("BYhTS,BYSU->BYhTU", exp_BYhTS.astype(v_BSYU.dtype), v_BYSU) / sum_BYhT1
    out_BTHU = _by_tokens(out_BYhTU.astype(v_BSYU.dtype))
    return out_BTHU, (q_BTHM, k_BSYM, v_BSYU, chunk, out_BTHU, max_BYhT1 + jnp.log(sum_BYhT1))


def _flash_backward(scale: float, residuals: tuple, g_BTHU: Array) -> tuple:
    q_BTHM, k_BSYM, v_BSYU, chunk, out_BTHU, logsumexp_BYhT1 = residuals
    q_BYhTM, k_BYSM, v_BYSU = _by_heads(q_BTHM, k_BSYM, v_BSYU)
    g_BYhTU, out_BYhTU = (_by_heads(x, k_BSYM, v_BSYU)[0] for x in (g_BTHU, out_BTHU))
    mean_BYhT1 = (g_BYhTU * out_BYhTU).astype(jnp.float32).sum(axis=-1, keepdims=True)
    weights_BYhTS = jnp.exp(_flash_scores(q_BYhTM, k_BYSM, chunk, scale) - logsumexp_BYhT1)
    g_weights_BYhTS = jnp.einsum("BYhTU,BYSU->BYhTS", g_BYhTU, v_BYSU, preferred_element_type=jnp.float32)
    g_scores_BYhTS = (weights_BYhTS * (g_weights_BYhTS - mean_BYhT1) * scale).astype(q_BTHM.dtype)
    g_q_BYhTM = jnp.einsum("BYhTS,BYSM->BYhTM", g_scores_BYhTS, k_BYSM)
    g_k_BSYM = jnp.einsum("BYhTS,BYhTM->BYSM", g_scores_BYhTS, q_BYhTM).swapaxes(1, 2)
    g_v_BSYU = jnp.einsum("BYhTS,BYhTU->BYSU", weights_BYhTS.astype(g_BTHU.dtype), g_BYhTU).swapaxes(1, 2)
    return _by_tokens(g_q_BYhTM), g_k_BSYM, g_v_BSYU, None


flash_chunk.defvjp(_flash_forward, _flash_backward)


def fused_chunk(q_BTHM, k_BSYM, v_BSYU, chunk: Chunk, scale: float, *, kernel: Literal["cudnn", "xla"] = "cudnn"):
    """JAX's fused kernels, with zero padding to one head size for all and, for cuDNN, even numbers of tokens.

    cuDNN raises an error for head sizes that it does not support: set ModelConfig.attention = 'chunked'.
    """
    T, U, size = q_BTHM.shape[1], v_BSYU.shape[-1], max(q_BTHM.shape[-1], v_BSYU.shape[-1])

    def pad(x):
        return jnp.pad(x, ((0, 0), (0, x.shape[1] % 2), (0, 0), (0, size - x.shape[-1])))

    mask_BTS = jnp.pad(chunk.mask_BTS, ((0, 0), (0, T % 2), (0, k_BSYM.shape[1] % 2)))
    q, k, v = pad(q_BTHM), pad(k_BSYM), pad(v_BSYU)
    out = jax.nn.dot_product_attention(q, k, v, mask=mask_BTS[:, None], scale=scale, implementation=kernel)
    return out[:, :T, :, :U]


CHUNKS: dict[str, Callable[..., Array]] = {
    "full": einsum_chunk,
    "auto": flash_chunk,
    "chunked": flash_chunk,
    "cudnn": jax.checkpoint(fused_chunk, static_argnums=4),  # its mask is not kept for the backward pass
}


def attend_chunked(
    q_BTHM: Array, k_BSYM: Array, v_BSYU: Array, segments: Segments, scale: float, attend_chunk, size: int = CHUNK, part=0
) -> Array:
    """`attend_chunk` of `size` queries at a time. A few chunks skip the keys behind them; many are a loop over all."""
    B, T, H, M = q_BTHM.shape
    q_ids_BT = jax.lax.dynamic_slice_in_dim(segments.ids_BT, part * T, T, axis=1)

    def one(first, q_BtHM, q_ids_Bt, end=None):
        keys = Segments(*(None if x is None else x[:, :end] for x in segments[:2]))
        return attend_chunk(q_BtHM, k_BSYM[:, :end], v_BSYU[:, :end], Chunk(first, q_ids_Bt, keys), scale)

    if size >= T:
        return one(part * T, q_BTHM, q_ids_BT)
    if T <= UNROLLED * size and T == k_BSYM.shape[1]:
        ranges = [(i, min(i + size, T)) for i in range(0, T, size)]
        return jnp.concatenate([one(i, q_BTHM[:, i:end], q_ids_BT[:, i:end], end) for i, end in ranges], axis=1)
    pad = -T % size
    q_cBtHM = jnp.moveaxis(jnp.pad(q_BTHM, ((0, 0), (0, pad), (0, 0), (0, 0))).reshape(B, -1, size, H, M), 1, 0)
    q_ids_cBt = jnp.moveaxis(jnp.pad(q_ids_BT, ((0, 0), (0, pad))).reshape(B, -1, size), 1, 0)
    first_c = part * T + size * jnp.arange(len(q_cBtHM))
    out_cBtHU = jax.lax.map(lambda chunk: one(*chunk), (first_c, q_cBtHM, q_ids_cBt))
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
