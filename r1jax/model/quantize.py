"""Eight-bit weights and latents, which rollouts may read to move less memory. Training never sees them."""

import jax
import jax.numpy as jnp
from flax import struct

from r1jax.config import ModelConfig
from r1jax.model.spec import STACKED, ParamSpec, is_spec, param_specs
from r1jax.types import Array, Params

DTYPES = {"int8": jnp.int8, "fp8": jnp.float8_e4m3fn}
LARGEST = {"int8": 127.0, "fp8": 448.0}


@struct.dataclass
class Quantized:
    """Stands for `values * scale`."""

    values: Array  # int8 or float8_e4m3fn
    scale: Array  # float32; of size 1 along the axes that share a scale


def is_quantized(x) -> bool:
    return isinstance(x, Quantized)


def quantize(x: Array, axes: tuple[int, ...], kind: str) -> Quantized:
    """The largest number along `axes` becomes the largest that `kind` ("int8" or "fp8") has."""
    x = x.astype(jnp.float32)
    largest = jnp.abs(x).max(axis=axes, keepdims=True)
    scale = jnp.where(largest == 0, 1, largest / LARGEST[kind])
    values = x / scale
    return Quantized((jnp.round(values) if kind == "int8" else values).astype(DTYPES[kind]), scale)


def dequantize(tree, dtype):
    """The same tree with plain arrays of `dtype` where it has `Quantized` ones."""

    def plain(x):
        return (x.values.astype(jnp.float32) * x.scale).astype(dtype) if is_quantized(x) else x

    return jax.tree.map(plain, tree, is_leaf=is_quantized)


def quantize_params(params: Params, c: ModelConfig, kind: str) -> Params:
    """Every matrix of the layers, with a scale for each output; norms, routers, embedding and head stay as they are."""

    def one(spec: ParamSpec, w: Array):
        if spec.inputs == 0 or "layers" not in spec.axes or "router" in spec.axes:
            return w
        first = sum(axis in STACKED for axis in spec.axes)
        return quantize(w, tuple(range(first, first + spec.inputs)), kind)

    return jax.tree.map(one, param_specs(c), params, is_leaf=is_spec)
