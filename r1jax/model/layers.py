"""The small parts that every block shares."""

import jax
import jax.numpy as jnp

from r1jax.types import Array, Params


def rms_norm(x_D: Array, weight_D: Array, eps: float) -> Array:
    """x / rms(x) * weight over the last axis, computed in float32 (arXiv 1910.07467)."""
    x32 = x_D.astype(jnp.float32)
    x32 = x32 * jax.lax.rsqrt(jnp.mean(x32 * x32, axis=-1, keepdims=True) + eps)
    return (x32 * weight_D).astype(x_D.dtype)


def rotate(x_BTHR: Array, positions_BT: Array, theta: float) -> Array:
    """Rotary position embedding (arXiv 2104.09864) on neighbouring pairs (0, 1), (2, 3), … as DeepSeek has it."""
    R = x_BTHR.shape[-1]
    frequency_R = theta ** (-jnp.arange(0, R, 2, dtype=jnp.float32) / R)
    angle_BT1R = positions_BT[..., None, None].astype(jnp.float32) * frequency_R
    cos, sin = jnp.cos(angle_BT1R), jnp.sin(angle_BT1R)
    even, odd = x_BTHR[..., 0::2].astype(jnp.float32), x_BTHR[..., 1::2].astype(jnp.float32)
    rotated = jnp.stack([even * cos - odd * sin, even * sin + odd * cos], axis=-1)
    return rotated.reshape(x_BTHR.shape).astype(x_BTHR.dtype)


def feed_forward(p: Params, x_TD: Array) -> Array:
    """SwiGLU (arXiv 2002.05202): down(silu(gate(x)) * up(x))."""
    return (jax.nn.silu(x_TD @ p["gate_DF"]) * (x_TD @ p["up_DF"])) @ p["down_FD"]
