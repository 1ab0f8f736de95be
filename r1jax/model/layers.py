"""The small parts that every block shares."""

import math

import jax
import jax.numpy as jnp
import numpy as np

from r1jax.config import ModelConfig, RopeScalingConfig
from r1jax.types import Array, Params


def rms_norm(x_D: Array, weight_D: Array, eps: float) -> Array:
    """x / rms(x) * weight over the last axis, computed in float32 (arXiv 1910.07467)."""
    x32 = x_D.astype(jnp.float32)
    x32 = x32 * jax.lax.rsqrt(jnp.mean(x32 * x32, axis=-1, keepdims=True) + eps)
    return (x32 * weight_D).astype(x_D.dtype)


def yarn_mscale(factor: float, mscale: float) -> float:
    """YaRN's temperature of attention (arXiv 2309.00071, equation 22), its slope scaled by `mscale`."""
    return 0.1 * mscale * math.log(factor) + 1.0


def rope_frequencies(c: ModelConfig) -> np.ndarray:
    """Radians for each position of the R / 2 pairs, float32.

    With YaRN (arXiv 2309.00071, section 3.2) pairs that turn less than `beta_slow` times over the original length are
    slowed by `factor`, those that turn more than `beta_fast` times are kept, and the ones between are blended.
    """
    R, yarn = c.qk_rope_head_dim, c.rope_scaling
    frequency_r = c.rope_theta ** (-np.arange(0, R, 2) / R)
    if yarn.factor == 1:
        return frequency_r.astype(np.float32)

    def pair_that_turns(times: float) -> float:
        wavelengths = yarn.original_max_position_embeddings / (times * 2 * math.pi)
        return R * math.log(wavelengths) / (2 * math.log(c.rope_theta))

    low = max(math.floor(pair_that_turns(yarn.beta_fast)), 0)
    high = min(math.ceil(pair_that_turns(yarn.beta_slow)), R - 1)
    slowed_r = np.clip((np.arange(R // 2) - low) / max(high - low, 0.001), 0, 1)
    return (frequency_r * (1 - slowed_r) + frequency_r / yarn.factor * slowed_r).astype(np.float32)


def rope_amplitude(yarn: RopeScalingConfig) -> float:
    """What DeepSeek multiplies the rotated parts of queries and keys by: 1 where both mscales are the same."""
    if yarn.factor == 1:
        return 1.0
    return yarn_mscale(yarn.factor, yarn.mscale) / yarn_mscale(yarn.factor, yarn.mscale_all_dim)


def rotate(x_BTHR: Array, positions_BT: Array, c: ModelConfig) -> Array:
    """Rotary position embedding (arXiv 2104.09864) on neighbouring pairs (0, 1), (2, 3), … as DeepSeek has it."""
    angle_BT1R = positions_BT[..., None, None].astype(jnp.float32) * rope_frequencies(c)
    amplitude = rope_amplitude(c.rope_scaling)
    cos, sin = jnp.cos(angle_BT1R) * amplitude, jnp.sin(angle_BT1R) * amplitude
    even, odd = x_BTHR[..., 0::2].astype(jnp.float32), x_BTHR[..., 1::2].astype(jnp.float32)
    rotated = jnp.stack([even * cos - odd * sin, even * sin + odd * cos], axis=-1)
    return rotated.reshape(x_BTHR.shape).astype(x_BTHR.dtype)


def feed_forward(p: Params, x_TD: Array) -> Array:
    """SwiGLU (arXiv 2002.05202): down(silu(gate(x)) * up(x))."""
    return (jax.nn.silu(x_TD @ p["gate_DF"]) * (x_TD @ p["up_DF"])) @ p["down_FD"]
