"""Causal softmax attention within segments: one interface, one implementation per platform.

Only "full" materializes the [T, S] scores; the memory of the others is linear in the sequence length.
"""

import functools
from collections.abc import Callable
from typing import Literal, NamedTuple

import chex
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from r1jax.types import Array, Segments

MASKED = -1e30  # finite: a query that sees no key, as padding of a last chunk, gives numbers and not NaN
CHUNK = 256  # queries per chunk
MAX_UNROLLED = 8  # more chunks run in a loop
ATTENDED = "attended"  # names what ModelConfig.remat = 'attention' keeps: what attention's backward pass reads
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
        chex.assert_equal(T, S)
        return attend_paths(q_BTHM, k_BSYM, v_BSYU, segments, scale, implementation)
    if implementation == "splash":
        if segments.ends_BT is not None:
            raise ValueError("splash attention needs Segments.paths_BsS for shared prompts, which it can't mask")
        return attend_splash(q_BTHM, k_BSYM, v_BSYU, segments, scale, part)
    attend_chunk = functools.partial(CHUNK_ATTENTION[implementation], scale=scale)
    size = T if implementation == "full" else CHUNK
    return attend_chunked(q_BTHM, k_BSYM, v_BSYU, segments, attend_chunk, size, part)


def attend_paths(q_BTHM, k_BTYM, v_BTYU, segments: Segments, scale: float, implementation: str) -> Array:
    """`attend` of samples that share prompts, each of them in a row of its own with a copy of the prompt."""
    paths_BsS: Array = segments.paths_BsS
    B, s, S = paths_BsS.shape
    T = q_BTHM.shape[1]

    def take(x, places):
        return jnp.take_along_axis(x, places[..., None, None], axis=1, mode="clip")

    def rows(x):
        return take(x, paths_BsS.reshape(B, -1)).reshape(B * s, S, *x.shape[2:])

    is_token_BsS = (paths_BsS < T).astype(jnp.int32)
    apart = Segments(is_token_BsS.reshape(B * s, S))
    out = attend(rows(q_BTHM), rows(k_BTYM), rows(v_BTYU), apart, scale, implementation)
    return take(out.reshape(B, s * S, *out.shape[2:]), segments.places_BT)


class Chunk(NamedTuple):
    """Queries from place `first` of the row on, and the S keys of the row."""

    first: Array | int
    q_ids_BT: Array  # the queries' segments; they don't matter where keys have ends
    keys: Segments  # the keys', [B, S]

    def mask(self, end: int | None) -> Array:
        """[B, T, S]: whether query t sees key s, of the first `end` keys."""
        ids_BS, ends_BS = self.keys.ids_BT[:, :end], self.keys.ends_BT
        t_T1 = self.first + jnp.arange(self.q_ids_BT.shape[1])[:, None]
        seen_BTS = self.q_ids_BT[:, :, None] == ids_BS[:, None] if ends_BS is None else t_T1 < ends_BS[:, None, :end]
        return seen_BTS & (jnp.arange(ids_BS.shape[1])[None] <= t_T1)[None]


def einsum_chunk(q_BTHM: Array, k_BSYM: Array, v_BSYU: Array, chunk: Chunk, scale: float, end: int | None) -> Array:
    """The definition, with scores and softmax in float32. Only the first `end` keys are read."""
    B, T, H, M = q_BTHM.shape
    k_BSYM, v_BSYU = k_BSYM[:, :end], v_BSYU[:, :end]
    q_BTYhM = q_BTHM.reshape(B, T, k_BSYM.shape[2], -1, M)
    scores_BYhTS = jnp.einsum("BTYhM,BSYM->BYhTS", q_BTYhM, k_BSYM, preferred_element_type=jnp.float32)
    weights_BYhTS = jax.nn.softmax(jnp.where(chunk.mask(end)[:, None, None], scores_BYhTS * scale, MASKED))
    out_BTYhU = jnp.einsum("BYhTS,BSYU->BTYhU", weights_BYhTS.astype(v_BSYU.dtype), v_BSYU)
    return checkpoint_name(out_BTYhU.reshape(B, T, H, -1), ATTENDED)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def flash_chunk(q_BTHM: Array, k_BSYM: Array, v_BSYU: Array, chunk: Chunk, scale: float, end: int | None) -> Array:
    """`einsum_chunk` whose gradient computes the scores again (FlashAttention-2, arXiv 2307.08691, algorithm 2).

    Heads come before tokens: on a CPU, XLA multiplies contiguous matrices faster.
    """
    return _flash_forward(q_BTHM, k_BSYM, v_BSYU, chunk, scale, end)[0]


def _by_heads(x_BTHM: Array, Y: int) -> Array:
    """[B, Y, h, T, M]."""
    B, T, _, M = x_BTHM.shape
    return jnp.transpose(x_BTHM.reshape(B, T, Y, -1, M), (0, 2, 3, 1, 4))


def _by_tokens(x_BYhTM: Array) -> Array:
    """[B, T, H, M]."""
    return jnp.transpose(x_BYhTM, (0, 3, 1, 2, 4)).reshape(x_BYhTM.shape[0], x_BYhTM.shape[3], -1, x_BYhTM.shape[4])


def _flash_scores(q_BYhTM: Array, k_BYSM: Array, mask_BTS: Array, scale: float) -> Array:
    scores_BYhTS = jnp.einsum("BYhTM,BYSM->BYhTS", q_BYhTM, k_BYSM, preferred_element_type=jnp.float32)
    return jnp.where(mask_BTS[:, None, None], scores_BYhTS * scale, MASKED)


def _flash_forward(q_BTHM: Array, k_BSYM: Array, v_BSYU: Array, chunk: Chunk, scale: float, end: int | None) -> tuple:
    q_BYhTM, k_BYSM, v_BYSU = (
        _by_heads(q_BTHM, k_BSYM.shape[2]), k_BSYM[:, :end].swapaxes(1, 2), v_BSYU[:, :end].swapaxes(1, 2)
    )  # fmt: skip
    scores_BYhTS = _flash_scores(q_BYhTM, k_BYSM, chunk.mask(end), scale)
    max_BYhT1 = scores_BYhTS.max(axis=-1, keepdims=True)
    exp_BYhTS = jnp.exp(scores_BYhTS - max_BYhT1)
    sum_BYhT1 = exp_BYhTS.sum(axis=-1, keepdims=True)
    weighted = jnp.einsum(
        "BYhTS,BYSU->BYhTU", exp_BYhTS.astype(v_BSYU.dtype), v_BYSU, preferred_element_type=jnp.float32
    )
    # logsumexp is computed again, with the scores: kept, it would change XLA's kernels, and the first ratio from 1.
    out_BTHU = checkpoint_name(_by_tokens((weighted / sum_BYhT1).astype(v_BSYU.dtype)), ATTENDED)
    return out_BTHU, (q_BTHM, k_BSYM, v_BSYU, chunk, out_BTHU, max_BYhT1 + jnp.log(sum_BYhT1))


def _flash_backward(scale: float, end: int | None, residuals: tuple, g_BTHU: Array) -> tuple:
    q_BTHM, k_BSYM, v_BSYU, chunk, out_BTHU, logsumexp_BYhT1 = residuals
    dtype, (_, S, Y, _) = q_BTHM.dtype, k_BSYM.shape
    q_BYhTM, g_BYhTU, out_BYhTU = (_by_heads(x, Y) for x in (q_BTHM, g_BTHU, out_BTHU))
    k_BYSM, v_BYSU = (x[:, :end].swapaxes(1, 2) for x in (k_BSYM, v_BSYU))
    mean_BYhT1 = (g_BYhTU.astype(jnp.float32) * out_BYhTU).sum(axis=-1, keepdims=True)
    weights_BYhTS = jnp.exp(_flash_scores(q_BYhTM, k_BYSM, chunk.mask(end), scale) - logsumexp_BYhT1)
    g_weights_BYhTS = jnp.einsum("BYhTU,BYSU->BYhTS", g_BYhTU, v_BYSU, preferred_element_type=jnp.float32)
    g_scores_BYhTS = (weights_BYhTS * (g_weights_BYhTS - mean_BYhT1) * scale).astype(dtype)
    g_q_BYhTM = jnp.einsum("BYhTS,BYSM->BYhTM", g_scores_BYhTS, k_BYSM)
    g_k_BYSM = jnp.einsum("BYhTS,BYhTM->BYSM", g_scores_BYhTS, q_BYhTM)
    g_v_BYSU = jnp.einsum("BYhTS,BYhTU->BYSU", weights_BYhTS.astype(dtype), g_BYhTU)
    unread = ((0, 0), (0, S - k_BYSM.shape[2]), (0, 0), (0, 0))
    return _by_tokens(g_q_BYhTM), *(jnp.pad(x.swapaxes(1, 2), unread) for x in (g_k_BYSM, g_v_BYSU)), None


flash_chunk.defvjp(_flash_forward, _flash_backward)


def fused_chunk(
    q_BTHM: Array,
    k_BSYM: Array,
    v_BSYU: Array,
    chunk: Chunk,
    scale: float,
    end: int | None,
    *,
    kernel: Literal["cudnn", "xla"] = "cudnn",
) -> Array:
    """JAX's fused kernels, with zero padding to one head size for all and, for cuDNN, even numbers of tokens.

    cuDNN raises an error for head sizes that it does not support: set ModelConfig.attention = 'chunked'.
    """
    T, U, size = q_BTHM.shape[1], v_BSYU.shape[-1], max(q_BTHM.shape[-1], v_BSYU.shape[-1])

    def pad(x):
        return jnp.pad(x, ((0, 0), (0, x.shape[1] % 2), (0, 0), (0, size - x.shape[-1])))

    q, k, v = pad(q_BTHM), pad(k_BSYM[:, :end]), pad(v_BSYU[:, :end])
    mask_BTS = chunk.mask(end)
    mask_BTS = jnp.pad(mask_BTS, ((0, 0), (0, T % 2), (0, mask_BTS.shape[2] % 2)))
    out = jax.nn.dot_product_attention(q, k, v, mask=mask_BTS[:, None], scale=scale, implementation=kernel)
    return out[:, :T, :, :U]


def cudnn_chunk(q_BTHM: Array, k_BSYM: Array, v_BSYU: Array, chunk: Chunk, scale: float, end: int | None) -> Array:
    """`fused_chunk` whose mask is not kept for the backward pass."""
    attend_chunk = jax.checkpoint(functools.partial(fused_chunk, scale=scale, end=end))
    return checkpoint_name(attend_chunk(q_BTHM, k_BSYM, v_BSYU, chunk), ATTENDED)


CHUNK_ATTENTION: dict[str, Callable[..., Array]] = {
    "full": einsum_chunk,
    "auto": flash_chunk,
    "chunked": flash_chunk,
    "cudnn": cudnn_chunk,
}


def attend_chunked(
    q_BTHM: Array, k_BSYM: Array, v_BSYU: Array, segments: Segments, attend_chunk, size=CHUNK, part=0
) -> Array:
    """Runs `attend_chunk`, of CHUNK_ATTENTION and with its scale, on `size` queries at a time.

    Up to MAX_UNROLLED chunks are unrolled, each over the keys up to its last query; more chunks, and those of rows that
    are divided over devices (`part`), run in a loop, each over all keys.
    """
    B, T, H, M = q_BTHM.shape
    q_ids_BT = jax.lax.dynamic_slice_in_dim(segments.ids_BT, part * T, T, axis=1)

    def one(first, q_BtHM, q_ids_Bt, end=None):
        return attend_chunk(q_BtHM, k_BSYM, v_BSYU, Chunk(first, q_ids_Bt, segments), end=end)

    if size >= T:
        return one(part * T, q_BTHM, q_ids_BT)
    if MAX_UNROLLED * size >= T and k_BSYM.shape[1] == T:
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
    kernel = splash.make_splash_mha(
        mask,
        block_sizes=sizes,
        head_shards=1,
        q_seq_shards=parts,
        interpret=interpret,
        residual_checkpoint_name=ATTENDED,
    )

    def of_part(x):  # of the kernel's block metadata, [heads, query blocks, …], and of its query positions
        axis = min(x.ndim - 1, 1)
        size = x.shape[axis] // parts
        return jax.lax.dynamic_slice_in_dim(x, part * size, size, axis)

    q_BHTM, k_BYSM, v_BYSU = (jnp.swapaxes(x, 1, 2) for x in (q_BTHM * scale, k_BSYM, v_BSYU))
    ids = splash.SegmentIds(segment_ids_BT, segment_ids_BS)
    out_BHTU = jax.vmap(jax.tree.map(of_part, kernel))(q_BHTM, k_BYSM, v_BYSU, ids)
    return jnp.swapaxes(out_BHTU, 1, 2)[:, :T].astype(v_BSYU.dtype)
