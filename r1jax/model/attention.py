"""Attention over whole sequences (training) and over a cache (decoding), with the same weights.

Multi-head Latent Attention (MLA; V2, arXiv 2405.04434, section 2.1): training expands the latents to keys and values of
each head. Decoding absorbs the up-projections into queries and outputs and attends over the latents themselves, which
are X = C + R numbers per token for all heads together.

Grouped-query attention (GQA; arXiv 2305.13245), of models without `kv_lora_rank`, as in Qwen2.5, Qwen3 and Llama 3: the
cache holds X = Y * M numbers per token of rotated keys, and as many of values.
"""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp

from r1jax.config import ModelConfig
from r1jax.model.blocked_cache import attend_blocked, is_blocked
from r1jax.model.context_attention import attend_tokens, merge
from r1jax.model.layers import linear, rms_norm, rotate, yarn_mscale
from r1jax.model.ops import ONE_DEVICE, ShardedOps
from r1jax.types import Array, Params, Segments

LATENT_NORM_EPS = 1e-6  # in DeepSeek's models, whatever their rms_norm_eps is


def attend_sequence(
    p: Params, x_BTD: Array, positions_BT: Array, segments: Segments, c: ModelConfig, ops: ShardedOps = ONE_DEVICE
) -> Array:
    """Causal self-attention of whole sequences, within segments, [B, T, D]."""
    project = grouped_qkv if c.kv_lora_rank is None else expanded_qkv
    q_BTHM, k_BSYM, v_BSYU = project(p, x_BTD, positions_BT, c, ops)
    out_BTHU = ops.attend(q_BTHM, k_BSYM, v_BSYU, segments, score_scale(c), c.attention)
    return linear(out_BTHU, p["out_HMD" if c.kv_lora_rank is None else "out_HUD"], 2)


def attend_cached(
    p: Params,
    x_BTD: Array,
    positions_BT: Array,
    contexts: Sequence,
    layer: Array | int,
    c: ModelConfig,
    ops: ShardedOps = ONE_DEVICE,
) -> tuple[Array, Any]:
    """Attention of T new tokens over a cache and, causally, over each other.

    Args:
      contexts: pairs of a cache and a mask that broadcasts to [B, T, S]: what each new token may see of the cache's
        first S places. A cache is latents [L, B, _, X] with MLA, {"keys": …, "values": …} of that shape with GQA, or
        quantized. It is read in place, a chunk at a time: neither a layer nor the first S places are copied. A
        `BlockedCache` is the only context: the new tokens are written into it, and its mask shows them too.
      layer: the layer of the caches; a `BlockedCache` has one alone.

    Returns:
      The output [B, T, D], and the cache of the new tokens, or the `BlockedCache` with them in it.
    """
    attend = attend_grouped if c.kv_lora_rank is None else attend_absorbed
    return attend(p, x_BTD, positions_BT, contexts, layer, c, ops)


def score_scale(c: ModelConfig) -> float:
    """1 / sqrt(head size); with MLA, times YaRN's temperature for queries and for keys (V2, section 3.1.4)."""
    scale, yarn = c.qk_head_dim**-0.5, c.rope_scaling
    is_plain = c.kv_lora_rank is None or yarn.factor == 1
    return scale if is_plain else scale * yarn_mscale(yarn.factor, yarn.mscale_all_dim) ** 2


def attend_contexts(
    q_BTHX: Array, new: Any, contexts: Sequence, layer: Array | int, c: ModelConfig, ops: ShardedOps
) -> Array:
    """Softmax attention over all `contexts` and the `new` tokens' cache, [B, T, H, X]; all heads share keys and values.

    With MLA the latents are both keys and values.
    """
    T, scale = q_BTHX.shape[1], score_scale(c)
    found = attend_tokens(q_BTHX, new, jnp.tril(jnp.ones((1, T, T), bool)), scale)
    for cache, mask_BTS in contexts:
        found = merge(found, ops.attend_context(q_BTHX, cache, mask_BTS, layer, scale, c.attention))
    return (found.out_BTHX / found.sum_BTH1).astype(q_BTHX.dtype)


# ---- multi-head latent attention


def queries(
    p: Params, x_BTD: Array, positions_BT: Array, c: ModelConfig, ops: ShardedOps = ONE_DEVICE
) -> tuple[Array, Array]:
    """The parts without and with position: [B, T, H, N] and [B, T, H, R] (V2, equations 37 to 40)."""
    if c.q_lora_rank is None:
        q_BTHM = ops.attention_heads(linear(ops.matmul_input(x_BTD), p["q_DHM"]))
    else:
        c_q_BTQ = rms_norm(linear(ops.matmul_input(x_BTD), p["q_a_DQ"]), p["q_norm_Q"], LATENT_NORM_EPS)
        q_BTHM = ops.attention_heads(linear(ops.matmul_input(c_q_BTQ), p["q_b_QHM"]))
    q_nope_BTHN, q_rope_BTHR = jnp.split(q_BTHM, [c.qk_nope_head_dim], axis=-1)
    return q_nope_BTHN, rotate(q_rope_BTHR, positions_BT, c)


def latents(p: Params, x_BTD: Array, positions_BT: Array, c: ModelConfig, ops: ShardedOps = ONE_DEVICE) -> Array:
    """A token's cache, [B, T, X]: the normed latent (C), then the rotary key (R) that all heads share."""
    latents_BTX = ops.residual(ops.latents(linear(ops.matmul_input(x_BTD), p["kv_a_DX"])))
    c_kv_BTC, k_rope_BTR = jnp.split(latents_BTX, [p["kv_norm_C"].size], axis=-1)
    c_kv_BTC = rms_norm(c_kv_BTC, p["kv_norm_C"], LATENT_NORM_EPS)
    k_rope_BTR = rotate(k_rope_BTR[:, :, None], positions_BT, c)[:, :, 0]
    return jnp.concatenate([c_kv_BTC, k_rope_BTR], axis=-1)


def expanded_qkv(p: Params, x_BTD: Array, positions_BT: Array, c: ModelConfig, ops: ShardedOps) -> tuple:
    """Queries [B, T, H, M], keys [B, S, H, M] and values [B, S, H, U] of each head."""
    q_BTHM = jnp.concatenate(queries(p, x_BTD, positions_BT, c, ops), axis=-1)
    # With context parallelism the latents are all-gathered, which are much smaller than keys and values.
    latents_BSX = ops.all_gather_sequence(latents(p, x_BTD, positions_BT, c))
    c_kv_BSC, k_rope_BSR = jnp.split(latents_BSX, [p["kv_norm_C"].size], axis=-1)
    kv_BSHW = ops.kv_heads(linear(c_kv_BSC, p["kv_b_CHW"]))
    k_nope_BSHN, v_BSHU = jnp.split(kv_BSHW, [c.qk_nope_head_dim], axis=-1)
    k_rope_BSHR = jnp.broadcast_to(k_rope_BSR[..., None, :], (*k_nope_BSHN.shape[:-1], c.qk_rope_head_dim))
    return q_BTHM, jnp.concatenate([k_nope_BSHN, k_rope_BSHR], axis=-1), v_BSHU


def attend_absorbed(
    p: Params, x_BTD: Array, positions_BT: Array, contexts: Sequence, layer, c: ModelConfig, ops: ShardedOps
) -> tuple[Array, Any]:
    """`attend_cached` with MLA: q (W c) = (q W) c, so that keys and values are never computed."""
    q_nope_BTHN, q_rope_BTHR = queries(p, x_BTD, positions_BT, c, ops)
    new_BTX = latents(p, x_BTD, positions_BT, c, ops)
    k_b_CHN, v_b_CHU = jnp.split(p["kv_b_CHW"], [c.qk_nope_head_dim], axis=-1)
    q_latent_BTHC = jnp.einsum("BTHN,CHN->BTHC", q_nope_BTHN, k_b_CHN)  # absorbs the keys' up-projection
    q_BTHX = ops.residual(ops.attention_heads(jnp.concatenate([q_latent_BTHC, q_rope_BTHR], axis=-1)))
    if is_blocked(contexts):
        out_BTHX, cache = attend_blocked(q_BTHX, new_BTX, positions_BT, contexts[0], score_scale(c))
    else:
        out_BTHX, cache = attend_contexts(q_BTHX, new_BTX, contexts, layer, c, ops), new_BTX
    # The rotary part is averaged and dropped: slicing it off the cache instead would copy the cache.
    out_BTHC = ops.attention_heads(ops.residual(out_BTHX[..., : c.kv_lora_rank]))
    out_BTHU = jnp.einsum("BTHC,CHU->BTHU", out_BTHC, v_b_CHU)  # the absorbed up-projection of the values
    return linear(out_BTHU, p["out_HUD"], 2), cache


# ---- grouped-query attention


def project(p: Params, x_BTD: Array, positions_BT: Array, c: ModelConfig, name: str) -> Array:
    """Heads of "q_DHM", "k_DYM" or "v_DYM": [B, T, H or Y, M]; queries and keys are rotated, in Qwen3 normed before."""
    heads = linear(x_BTD, p[name])
    if (bias := name.replace("_D", "_bias_")) in p:
        heads = heads + p[bias]
    if name == "v_DYM":
        return heads
    if c.qk_norm:
        heads = rms_norm(heads, p[f"{name[0]}_norm_M"], c.rms_norm_eps)
    return rotate(heads, positions_BT, c)


def grouped_qkv(p: Params, x_BTD: Array, positions_BT: Array, c: ModelConfig, ops: ShardedOps) -> tuple:
    """Queries [B, T, H, M], keys [B, S, Y, M] and values [B, S, Y, M]."""
    x_BTD = ops.matmul_input(x_BTD)
    q_BTHM = ops.attention_heads(project(p, x_BTD, positions_BT, c, "q_DHM"))
    kv_BTYM = [project(p, x_BTD, positions_BT, c, name) for name in ("k_DYM", "v_DYM")]
    return q_BTHM, *(ops.kv_heads(ops.all_gather_sequence(x_BTYM)) for x_BTYM in kv_BTYM)


def attend_grouped(
    p: Params, x_BTD: Array, positions_BT: Array, contexts: Sequence, layer, c: ModelConfig, ops: ShardedOps
) -> tuple[Array, Any]:
    """`attend_cached` with GQA. Each query is placed in its group's M of the X numbers, zeros elsewhere.

    That is Y times the FLOPs, but keys and values are read in place. Split into heads they would be transposed, which
    copies the cache: decoding over 1,024 tokens took 2.2 times as long on a CPU, and 15 times the memory. A
    `BlockedCache` is split into heads when it is written.
    """
    B, T, _ = x_BTD.shape
    H, Y, M = c.num_attention_heads, c.num_key_value_heads, c.head_dim
    x_BTD = ops.matmul_input(x_BTD)
    k_BTYM, v_BTYM, q_BTHM = (
        ops.residual(ops.attention_heads(project(p, x_BTD, positions_BT, c, name)))
        for name in ("k_DYM", "v_DYM", "q_DHM")
    )
    new: Any = {"keys": k_BTYM.reshape(B, T, Y * M), "values": v_BTYM.reshape(B, T, Y * M)}
    if is_blocked(contexts):
        out_BTHM, new = attend_blocked(q_BTHM, new, positions_BT, contexts[0], score_scale(c))
    else:
        group_HY = jnp.repeat(jnp.eye(Y, dtype=x_BTD.dtype), H // Y, axis=0)
        q_BTHX = jnp.einsum("BTHM,HY->BTHYM", q_BTHM, group_HY).reshape(B, T, H, Y * M)
        out_BTHX = attend_contexts(q_BTHX, new, contexts, layer, c, ops)
        out_BTHM = jnp.einsum("BTHYM,HY->BTHM", out_BTHX.reshape(B, T, H, Y, M), group_HY)
    return linear(ops.attention_heads(out_BTHM), p["out_HMD"], 2), new
