"""Maps published tensors to parts of our arrays, derived from the table of parameters in model/spec.py."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import jax
import numpy as np

from r1jax.config import ModelConfig
from r1jax.errors import UsageError
from r1jax.model.spec import STACKED, ParamSpec, param_specs, router_bias_specs, stack_layers, uses_router_bias


@dataclass(frozen=True)
class PublishedTensor:
    """One tensor of a published checkpoint: the part at `index` of the array `array`."""

    name: str  # "model.layers.3.self_attn.q_a_proj.weight"
    array: str  # "params.moe.attention.q_a_DQ"
    index: tuple[int, ...]  # into the leading dimensions that stack layers and experts
    spec: ParamSpec

    @property
    def our_shape(self) -> tuple[int, ...]:
        return self.spec.shape[len(self.index) :]

    @property
    def shape(self) -> tuple[int, ...]:
        """The published shape: matrices are [outputs, inputs], biases and the weights of norms are vectors."""
        ours, inputs = self.our_shape, self.spec.inputs
        if self.spec.fan_in == 0:
            return (math.prod(ours),)
        return (math.prod(ours[inputs:]), math.prod(ours[:inputs])) if inputs else ours

    def to_published(self, ours: np.ndarray) -> np.ndarray:
        if self.spec.inputs:
            return np.ascontiguousarray(ours.reshape(self.shape[::-1]).T)
        return ours.reshape(self.shape)

    def to_ours(self, published: np.ndarray) -> np.ndarray:
        published = published.T if self.spec.inputs else published
        return np.ascontiguousarray(published.reshape(self.our_shape))


def policy_specs(model: ModelConfig) -> dict:
    """The specs of a checkpoint's `policy` item."""
    return {"params": param_specs(model), "router_bias": router_bias_specs(model)}


def array_specs(model: ModelConfig) -> dict[str, ParamSpec]:
    """The same specs by array name, as Orbax names arrays on disk."""
    leaves = jax.tree.leaves_with_path(policy_specs(model))
    return {".".join(key.key for key in path): spec for path, spec in leaves}


def published_tensors(model: ModelConfig) -> Iterator[PublishedTensor]:
    """All tensors of a published checkpoint of this model, array by array."""
    for array, spec in array_specs(model).items():
        if array.startswith("router_bias.") and not uses_router_bias(model):
            continue
        layers = stack_layers(model).get(array.split(".")[1], range(0))
        stacked = [size for size, axis in zip(spec.shape, spec.axes, strict=True) if axis in STACKED]
        for n in range(math.prod(stacked)):
            index = tuple(int(i) for i in np.unravel_index(n, stacked))
            prefix = f"model.layers.{layers[index[0]]}." if index else ""
            name = prefix + spec.published.format(expert=index[-1] if index else None)
            yield PublishedTensor(name, array, index, spec)


def copies(model: ModelConfig) -> dict[str, str]:
    """Tensors that published checkpoints may hold twice: name of the copy -> name of the original that it equals."""
    embed, head = "model.embed_tokens.weight", "lm_head.weight"
    found = {head: embed} if model.tie_word_embeddings else {}
    for layer in stack_layers(model).get("mtp", ()):
        found[f"model.layers.{layer}.embed_tokens.weight"] = embed
        found[f"model.layers.{layer}.shared_head.head.weight"] = found.get(head, head)
    return found


def check_tensors(model: ModelConfig, found: dict[str, tuple[int, ...]], source: str, *, ignore_mtp: bool) -> None:
    """Raises UsageError for the first tensor that is missing, of another shape, or not part of the model."""
    wanted = {}
    for tensor in published_tensors(model):  # a wrong config may ask for millions: stop at the first missing one
        if tensor.name not in found:
            hint = "; --no-mtp leaves the multi-token-prediction module out" if ".mtp." in tensor.array else ""
            raise UsageError(f"{source} has no tensor {tensor.name} {tensor.shape}, which config.json asks for{hint}")
        wanted[tensor.name] = tensor.shape
    shared = {copy: wanted[original] for copy, original in copies(model).items()}
    for name, shape in found.items():
        expected = wanted.get(name, shared.get(name))
        if expected is None and not is_ignored(name, model, ignore_mtp):
            raise UsageError(f"{source} has a tensor {name} {shape}, which is not part of the model of its config.json")
        if expected is not None and shape != expected:
            raise UsageError(f"{source}: {name} is of shape {shape}, expected {expected} by config.json")


def is_ignored(name: str, model: ModelConfig, ignore_mtp: bool) -> bool:
    """Whether a tensor is a buffer of old checkpoints or, with `ignore_mtp`, part of an MTP module."""
    layer = name.split(".")[2] if name.startswith("model.layers.") else ""
    is_mtp = layer.isdigit() and int(layer) >= model.num_hidden_layers
    return name.endswith(".rotary_emb.inv_freq") or (ignore_mtp and is_mtp)
