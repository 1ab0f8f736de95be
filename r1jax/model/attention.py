"""Multi-head Latent Attention (V2, arXiv 2405.04434, section 2.1): one set of weights, two ways to attend.

Training and prefill expand the latents to per-head keys and values. Decoding absorbs the up-projections into the query
and output sides and attends over the latents themselves, X = C + R numbers for each token whatever the number of heads.
"""

import jax
import jax.numpy as jnp

from r1jax.config import ModelConfig
from r1jax.model.layers import rms_norm, rotate, yarn_mscale
from r1jax.model.softmax_attention import MASKED, attend
from r1jax.types import Array, Params

# DeepSeek's models have it here whatever their rms_norm_eps is.
LATENT_NORM_EPS = 1e-6


def queries(p: Params, x_BTD: Array, positions_BT: Array, c: ModelConfig) -> tuple[Array, Array]:
    """The parts without and with position: [B, T, H, N] and [B, T, H, R] (V2, equations 37 to 40)."""
    if c.q_lora_rank is None:
        q_BTHM = jnp.einsum("BTD,DHM->BTHM", x_BTD, p["q_DHM"])
    else:
        c_q_BTQ = rms_norm(x_BTD @ p["q_a_DQ"], p["q_norm_Q"], LATENT_NORM_EPS)
        q_BTHM = jnp.einsum("BTQ,QHM->BTHM", c_q_BTQ, p["q_b_QHM"])
    q_nope_BTHN, q_rope_BTHR = jnp.split(q_BTHM, [c.qk_nope_head_dim], axis=-1)
    return q_nope_BTHN, rotate(q_rope_BTHR, positions_BT, c)


def latents(p: Params, x_BTD: Array, positions_BT: Array, c: ModelConfig) -> Array:
    """What the cache holds, [B, T, X]: the normed latent values (C), then the rotary key (R) that all heads share."""
    c_kv_BTC, k_rope_BTR = jnp.split(x_BTD @ p["kv_a_DX"], [c.kv_lora_rank], axis=-1)
    c_kv_BTC = rms_norm(c_kv_BTC, p["kv_norm_C"], LATENT_NORM_EPS)
    k_rope_BTR = rotate(k_rope_BTR[:, :, None], positions_BT, c)[:, :, 0]
    return jnp.concatenate([c_kv_BTC, k_rope_BTR], axis=-1)


def score_scale(c: ModelConfig) -> float:
    """1 / sqrt(head size), times YaRN's temperature for queries and for keys (V2, section 3.1.4)."""
    scale = (c.qk_nope_head_dim + c.qk_rope_head_dim) ** -0.5
    if c.rope_scaling.factor == 1:
        return scale
    return scale * yarn_mscale(c.rope_scaling.factor, c.rope_scaling.mscale_all_dim) ** 2


def attend_expanded(
    p: Params, x_BTD: Array, positions_BT: Array, segments_BT: Array, c: ModelConfig
) -> tuple[Array, Array]:
    """Attention of whole sequences over themselves. Returns the output [B, T, D] and the latents [B, T, X]."""
    q_BTHM = jnp.concatenate(queries(p, x_BTD, positions_BT, c), axis=-1)
    latents_BTX = latents(p, x_BTD, positions_BT, c)
    c_kv_BTC, k_rope_BTR = jnp.split(latents_BTX, [c.kv_lora_rank], axis=-1)
    kv_BTHW = jnp.einsum("BTC,CHW->BTHW", c_kv_BTC, p["kv_b_CHW"])
    k_nope_BTHN, v_BTHU = jnp.split(kv_BTHW, [c.qk_nope_head_dim], axis=-1)
    k_rope_BTHR = jnp.broadcast_to(k_rope_BTR[:, :, None], (*k_nope_BTHN.shape[:3], c.qk_rope_head_dim))
    k_BTHM = jnp.concatenate([k_nope_BTHN, k_rope_BTHR], axis=-1)
    out_BTHU = attend(q_BTHM, k_BTHM, v_BTHU, segments_BT, score_scale(c), c.attention)
    return jnp.einsum("BTHU,HUD->BTD", out_BTHU, p["out_HUD"]), latents_BTX


def attend_absorbed(
    p: Params,
    x_BGD: Array,
    positions_BG: Array,
    prompt_BPX: Array,
    prompt_mask_BP: Array,
    tail_BGNX: Array,
    index: Array,
    c: ModelConfig,
) -> tuple[Array, Array]:
    """Attention of one new token of each of G outputs, over the latents of their shared prompt and of their own tail.

    The new token's latent is written to the tail at `index`; what lies behind it is masked. The prompt's latents are
    read where they are: neither copied for each output nor expanded to heads. Returns the output [B, G, D] and the new
    token's latent [B, G, X].
    """
    q_nope_BGHN, q_rope_BGHR = queries(p, x_BGD, positions_BG, c)
    new_BGX = latents(p, x_BGD, positions_BG, c)
    tail_BGNX = jax.lax.dynamic_update_slice_in_dim(tail_BGNX, new_BGX[:, :, None], index, axis=2)

    k_b_CHN, v_b_CHU = jnp.split(p["kv_b_CHW"], [c.qk_nope_head_dim], axis=-1)
    q_latent_BGHC = jnp.einsum("BGHN,CHN->BGHC", q_nope_BGHN, k_b_CHN)  # the key up-projection, absorbed
    q_BGHX = jnp.concatenate([q_latent_BGHC, q_rope_BGHR], axis=-1)
    prompt_scores = jnp.einsum("BGHX,BPX->BGHP", q_BGHX, prompt_BPX).astype(jnp.float32)
    tail_scores = jnp.einsum("BGHX,BGNX->BGHN", q_BGHX, tail_BGNX).astype(jnp.float32)
    tail_mask_N = jnp.arange(tail_BGNX.shape[2]) <= index
    scores_BGHS = jnp.concatenate(
        [
            jnp.where(prompt_mask_BP[:, None, None], prompt_scores, MASKED),
            jnp.where(tail_mask_N, tail_scores, MASKED),
        ],
        axis=-1,
    )
    weights_BGHS = jax.nn.softmax(scores_BGHS * score_scale(c)).astype(x_BGD.dtype)
    prompt_weights, tail_weights = jnp.split(weights_BGHS, [prompt_BPX.shape[1]], axis=-1)
    C = c.kv_lora_rank
    out_BGHC = jnp.einsum("BGHP,BPC->BGHC", prompt_weights, prompt_BPX[..., :C])
    out_BGHC += jnp.einsum("BGHN,BGNC->BGHC", tail_weights, tail_BGNX[..., :C])
    out_BGHU = jnp.einsum("BGHC,CHU->BGHU", out_BGHC, v_b_CHU)  # the value up-projection, absorbed
    return jnp.einsum("BGHU,HUD->BGD", out_BGHU, p["out_HUD"]), new_BGX
