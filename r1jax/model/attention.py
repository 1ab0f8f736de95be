"""Multi-head Latent Attention (V2, arXiv 2405.04434, section 2.1): one set of weights, two ways to attend.

Training expands the latents to per-head keys and values. The sampler absorbs the up-projections into the query and the
output sides and attends over the latents themselves, X = C + R numbers for each token whatever the number of heads.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

from r1jax.config import ModelConfig
from r1jax.model.layers import rms_norm, rotate, yarn_mscale
from r1jax.model.ops import ONE_DEVICE, ShardedOps
from r1jax.model.softmax_attention import MASKED
from r1jax.types import Array, Params

# DeepSeek's models have it here whatever their rms_norm_eps is.
LATENT_NORM_EPS = 1e-6


def queries(
    p: Params, x_BTD: Array, positions_BT: Array, c: ModelConfig, ops: ShardedOps = ONE_DEVICE
) -> tuple[Array, Array]:
    """The parts without and with position: [B, T, H, N] and [B, T, H, R] (V2, equations 37 to 40)."""
    if c.q_lora_rank is None:
        q_BTHM = ops.heads(jnp.einsum("BTD,DHM->BTHM", ops.inner(x_BTD), p["q_DHM"]))
    else:
        c_q_BTQ = rms_norm(ops.inner(x_BTD) @ p["q_a_DQ"], p["q_norm_Q"], LATENT_NORM_EPS)
        q_BTHM = ops.heads(jnp.einsum("BTQ,QHM->BTHM", ops.inner(c_q_BTQ), p["q_b_QHM"]))
    q_nope_BTHN, q_rope_BTHR = jnp.split(q_BTHM, [c.qk_nope_head_dim], axis=-1)
    return q_nope_BTHN, rotate(q_rope_BTHR, positions_BT, c)


def latents(p: Params, x_BTD: Array, positions_BT: Array, c: ModelConfig) -> Array:
    """What the cache holds, [B, T, X]: the normed latent values (C), then the rotary key (R) that all heads share."""
    c_kv_BTC, k_rope_BTR = jnp.split(x_BTD @ p["kv_a_DX"], [p["kv_norm_C"].size], axis=-1)
    c_kv_BTC = rms_norm(c_kv_BTC, p["kv_norm_C"], LATENT_NORM_EPS)
    k_rope_BTR = rotate(k_rope_BTR[:, :, None], positions_BT, c)[:, :, 0]
    return jnp.concatenate([c_kv_BTC, k_rope_BTR], axis=-1)


def score_scale(c: ModelConfig) -> float:
    """1 / sqrt(head size), times YaRN's temperature for queries and for keys (V2, section 3.1.4)."""
    scale = c.qk_head_dim**-0.5
    if c.rope_scaling.factor == 1:
        return scale
    return scale * yarn_mscale(c.rope_scaling.factor, c.rope_scaling.mscale_all_dim) ** 2


def attend_expanded(
    p: Params, x_BTD: Array, positions_BT: Array, segment_ids_BT: Array, c: ModelConfig, ops: ShardedOps = ONE_DEVICE
) -> Array:
    """Attention of whole sequences over themselves, [B, T, D]."""
    q_BTHM = jnp.concatenate(queries(p, x_BTD, positions_BT, c, ops), axis=-1)
    # Of all tokens of the row; between devices that have parts of it latents travel, which are far less than keys.
    latents_BSX = ops.all_gather_sequence(latents(p, x_BTD, positions_BT, c))
    c_kv_BSC, k_rope_BSR = jnp.split(latents_BSX, [p["kv_norm_C"].size], axis=-1)
    kv_BSHW = ops.keys(jnp.einsum("...SC,CHW->...SHW", c_kv_BSC, p["kv_b_CHW"]))
    k_nope_BSHN, v_BSHU = jnp.split(kv_BSHW, [c.qk_nope_head_dim], axis=-1)
    k_rope_BSHR = jnp.broadcast_to(k_rope_BSR[..., None, :], (*k_nope_BSHN.shape[:-1], c.qk_rope_head_dim))
    k_BSHM = jnp.concatenate([k_nope_BSHN, k_rope_BSHR], axis=-1)
    out_BTHU = ops.attend(q_BTHM, k_BSHM, v_BSHU, segment_ids_BT, score_scale(c), c.attention)
    out_BTHU = checkpoint_name(out_BTHU, "attended")
    return jnp.einsum("BTHU,HUD->BTD", out_BTHU, p["out_HUD"])


def attend_absorbed(
    p: Params,
    x_BTD: Array,
    positions_BT: Array,
    contexts: Sequence[tuple[Array, Array]],
    c: ModelConfig,
    ops: ShardedOps = ONE_DEVICE,
) -> tuple[Array, Array]:
    """Attention of T new tokens over latents that are there already, and over each other. Latents stay latents.

    Args:
      contexts: pairs of latents [B, S, X] and a mask that broadcasts to [B, T, S]: what each new token may see. They
        are read where they are: neither joined nor expanded to heads.

    Returns:
      The output [B, T, D] and the new tokens' latents [B, T, X].
    """
    T = x_BTD.shape[1]
    q_nope_BTHN, q_rope_BTHR = queries(p, x_BTD, positions_BT, c, ops)
    new_BTX = latents(p, x_BTD, positions_BT, c)
    sources = [*contexts, (new_BTX, jnp.tril(jnp.ones((1, T, T), bool)))]

    k_b_CHN, v_b_CHU = jnp.split(p["kv_b_CHW"], [c.qk_nope_head_dim], axis=-1)
    q_latent_BTHC = jnp.einsum("BTHN,CHN->BTHC", q_nope_BTHN, k_b_CHN)  # the key up-projection, absorbed
    q_BTHX = ops.rows(ops.heads(jnp.concatenate([q_latent_BTHC, q_rope_BTHR], axis=-1)))

    def scores(latents_BSX, mask_BTS):
        scores_BTHS = jnp.einsum("BTHX,BSX->BTHS", q_BTHX, latents_BSX, preferred_element_type=jnp.float32)
        return jnp.where(mask_BTS[:, :, None], scores_BTHS * score_scale(c), MASKED)

    weights_BTHS = jax.nn.softmax(jnp.concatenate([scores(*source) for source in sources], axis=-1)).astype(x_BTD.dtype)
    ends = np.cumsum([latents_BSX.shape[1] for latents_BSX, _ in sources])
    parts = zip(jnp.split(weights_BTHS, ends[:-1], axis=-1), sources, strict=True)
    # The rotary part is averaged too, and dropped: to leave it out before would copy the whole cache.
    out_BTHX = jnp.zeros_like(q_BTHX)
    for w_BTHS, (latents_BSX, _) in parts:
        out_BTHX += jnp.einsum("BTHS,BSX->BTHX", w_BTHS, latents_BSX)
    out_BTHC = ops.heads(ops.rows(out_BTHX[..., : c.kv_lora_rank]))
    out_BTHU = jnp.einsum("BTHC,CHU->BTHU", out_BTHC, v_b_CHU)  # the value's, absorbed
    return jnp.einsum("BTHU,HUD->BTD", out_BTHU, p["out_HUD"]), new_BTX
