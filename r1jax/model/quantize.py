"""8-bit weights and caches for rollouts, which read less memory. Training never uses them."""

import jax
import jax.numpy as jnp
from flax import struct

from r1jax.config import ModelConfig
from r1jax.model.spec import STACKED, ParamSpec, param_specs
from r1jax.types import Array, Params

DTYPES = {"int8": jnp.int8, "fp8": jnp.float8_e4m3fn}
LARGEST = {"int8": 127.0, "fp8": 448.0}


@struct.dataclass
class Quantized:
    """The array `values * scale`."""

    values: Array  # int8 or float8_e4m3fn
    scale: Array  # float32; of size 1 along the axes that share a scale


def is_quantized(x) -> bool:
    return isinstance(x, Quantized)


def quantize(x: Array, axes: tuple[int, ...], kind: str) -> Quantized:
    """Scales the largest magnitude along `axes` to the largest of `kind`, "int8" or "fp8"."""
    x = x.astype(jnp.float32)
    largest = jnp.abs(x).max(axis=axes, keepdims=True)
    scale = jnp.where(largest == 0, 1, largest / LARGEST[kind])
    values = x / scale
    return Quantized((jnp.round(values) if kind == "int8" else values).astype(DTYPES[kind]), scale)


def dequantize(tree, dtype):
    """The tree with each `Quantized` replaced by an array of `dtype`."""

    def plain(x):
        return (x.values.astype(jnp.float32) * x.scale).astype(dtype) if is_quantized(x) else x

    return jax.tree.map(plain, tree, is_leaf=is_quantized)


def quantize_params(params: Params, c: ModelConfig, kind: str) -> Params:
    """Quantizes all matrices of the layers, one scale per output; norms, routers, embedding and head are kept."""

    def one(spec: ParamSpec, w: Array):
        if spec.inputs == 0 or "layers" not in spec.axes or "router" in spec.axes:
            return w
        first = sum(axis in STACKED for axis in spec.axes)
        return quantize(w, tuple(range(first, first + spec.inputs)), kind)

    return jax.tree.map(one, param_specs(c), params)
