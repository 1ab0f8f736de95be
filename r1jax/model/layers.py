"""Parts that all blocks share: norm, rotary embedding, linear layer, SwiGLU."""

import functools
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
    return (x32 * jnp.broadcast_to(weight_D, x32.shape)).astype(x_D.dtype)


def yarn_mscale(factor: float, mscale: float) -> float:
    """YaRN's attention temperature (arXiv 2309.00071, equation 22), with its slope scaled by `mscale`."""
    return 0.1 * mscale * math.log(factor) + 1.0


def rope_frequencies(c: ModelConfig) -> np.ndarray:
    """Radians per position of each of the R / 2 pairs, float32."""
    R, scaling = c.rotary_dim, c.rope_scaling
    frequency_r = c.rope_theta ** (-np.arange(0, R, 2) / R)
    if scaling.factor == 1:
        return frequency_r.astype(np.float32)
    slowed_r = llama3_slowed(frequency_r, scaling) if scaling.rope_type == "llama3" else yarn_slowed(R, c)
    return (frequency_r * (1 - slowed_r) + frequency_r / scaling.factor * slowed_r).astype(np.float32)


def yarn_slowed(R: int, c: ModelConfig) -> np.ndarray:
    """How far each pair is slowed by `factor`, 0 to 1 (YaRN, arXiv 2309.00071, section 3.2).

    1 for pairs that turn fewer than `beta_slow` times over the original length, 0 for more than `beta_fast` times,
    linear in the pair's index in between.
    """
    yarn = c.rope_scaling

    def pair_that_turns(times: float) -> float:
        wavelengths = yarn.original_max_position_embeddings / (times * 2 * math.pi)
        return R * math.log(wavelengths) / (2 * math.log(c.rope_theta))

    low = max(math.floor(pair_that_turns(yarn.beta_fast)), 0)
    high = min(math.ceil(pair_that_turns(yarn.beta_slow)), R - 1)
    return np.clip((np.arange(R // 2) - low) / max(high - low, 0.001), 0, 1)


def llama3_slowed(frequency_r: np.ndarray, llama: RopeScalingConfig) -> np.ndarray:
    """`yarn_slowed` of Llama 3.1 (`apply_scaling` of its reference code), which is linear in the turns.

    1 for pairs that turn fewer than `low_freq_factor` times, 0 for more than `high_freq_factor` times.
    """
    turns_r = llama.original_max_position_embeddings * frequency_r / (2 * math.pi)
    kept_r = (turns_r - llama.low_freq_factor) / (llama.high_freq_factor - llama.low_freq_factor)
    return np.clip(1 - kept_r, 0, 1)


def rope_amplitude(yarn: RopeScalingConfig) -> float:
    """YaRN's factor on rotated queries and keys: with the default mscales, as in Qwen, the paper's temperature.

    With equal mscales, as in DeepSeek's models, it is 1; the scores are scaled instead (attention.py).
    """
    if yarn.factor == 1 or yarn.rope_type == "llama3":
        return 1.0
    return yarn_mscale(yarn.factor, yarn.mscale) / yarn_mscale(yarn.factor, yarn.mscale_all_dim)


def rotate(x_BTHR: Array, positions_BT: Array, c: ModelConfig) -> Array:
    """Rotary position embedding (arXiv 2104.09864), [B, T, H, R].

    MLA pairs neighbours, (0, 1), (2, 3), …; GQA pairs i with i + R / 2. Permuted weights give the one from the other.
    """
    angle_BT1R = positions_BT[..., None, None].astype(jnp.float32) * rope_frequencies(c)[None, None, None]
    amplitude = rope_amplitude(c.rope_scaling)
    cos, sin = jnp.cos(angle_BT1R) * amplitude, jnp.sin(angle_BT1R) * amplitude
    x32, is_gqa = x_BTHR.astype(jnp.float32), c.kv_lora_rank is None
    first, second = jnp.split(x32, 2, axis=-1) if is_gqa else (x32[..., 0::2], x32[..., 1::2])
    turned = [first * cos - second * sin, first * sin + second * cos]
    x32 = jnp.concatenate(turned, axis=-1) if is_gqa else jnp.stack(turned, axis=-1).reshape(x_BTHR.shape)
    return x32.astype(x_BTHR.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def linear(x: Array, w: Array, inputs: int = 1) -> Array:
    """x w, summed over the last `inputs` axes of x, which are the first of w.

    The gradient of w is written as x^T g, [inputs, outputs]. JAX derives (g^T x)^T, for which XLA's CPU compiler
    transposes what g is computed from.
    """
    return jnp.tensordot(x, w, inputs)


def _linear_backward(inputs: int, residuals: tuple, g: Array) -> tuple[Array, Array]:
    x, w = residuals
    tokens, outputs = tuple(range(x.ndim - inputs)), w.ndim - inputs
    g_x = jax.lax.dot_general(g, w, ((range(g.ndim - outputs, g.ndim), range(inputs, w.ndim)), ((), ())))
    return g_x, jax.lax.dot_general(x, g, ((tokens, tokens), ((), ())))


linear.defvjp(lambda x, w, inputs: (linear(x, w, inputs), (x, w)), _linear_backward)


@functools.partial(jax.checkpoint, prevent_cse=False)  # the backward pass keeps the arguments, not what silu computes
def swiglu(gate: Array, up: Array) -> Array:
    return jax.nn.silu(gate) * up


def feed_forward(p: Params, x_TD: Array) -> Array:
    """SwiGLU (arXiv 2002.05202): down(silu(gate(x)) * up(x))."""
    return linear(swiglu(linear(x_TD, p["gate_DF"]), linear(x_TD, p["up_DF"])), p["down_FD"])
