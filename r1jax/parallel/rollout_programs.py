"""The jitted programs of rollouts: core functions with shardings and donation; see programs.py."""

import functools
from dataclasses import dataclass, replace
from typing import Any

import jax
from jax.sharding import NamedSharding, PartitionSpec

from r1jax.config import EngineConfig, ModelConfig
from r1jax.model.quantize import is_quantized, quantize_params
from r1jax.model.transformer import cast, stacks, unstack
from r1jax.parallel.layout import Layout
from r1jax.parallel.programs import abstract_weights, on_platform, weights_shardings
from r1jax.parallel.sharded_ops import make_sharded_ops
from r1jax.sampling.append import Appended, append
from r1jax.sampling.decode import Prefilled, Sampler, Slots, decode_round, empty_slots, insert, prefill
from r1jax.sampling.draw import Truncation
from r1jax.types import Params, Weights


@dataclass(frozen=True)
class RolloutSpec:
    """What rollout programs are compiled for; hashable.

    Attributes:
      layout: the rollouts' (`layout.rollout_layout`).
    """

    layout: Layout
    model: ModelConfig
    engine: EngineConfig
    truncation: Truncation = Truncation()

    def sampler(self, weights: Weights) -> Sampler:
        model = on_platform(self.layout, self.model)
        ops = make_sharded_ops(self.layout, model)
        return Sampler(weights, model, self.engine, self.truncation, ops)

    @property
    def copies_weights(self) -> bool:
        """Whether rollouts read other arrays than the trainer's."""
        is_cast = self.engine.weight_dtype != "model" or self.model.param_dtype != self.model.dtype
        return is_cast or self.engine.mesh is not None or self.unstacks

    @property
    def unstacks(self) -> bool:
        """Whether layers are unrolled: on one CPU device."""
        devices = self.layout.mesh.devices.ravel()
        return devices.size == 1 and devices[0].platform == "cpu"

    @property
    def writes_cache(self) -> bool:
        """Whether the steps of unrolled layers write into `BlockedCache`s."""
        return self.unstacks and self.engine.cache_dtype == "model"


def rollout_params(params: Params, model: ModelConfig, dtype: str, *, unstacks: bool = False) -> Params:
    """The trainer's parameters as rollouts read them: in the dtype of the activations, matrices perhaps in 8 bits."""
    params = cast(params if dtype == "model" else quantize_params(params, model, dtype), model)
    return params | ({name: unstack(params[name]) for name in stacks(params)} if unstacks else {})


@functools.cache
def rollout_shardings(spec: RolloutSpec) -> Weights:
    """Of `rollout_params` and the router's bias. A scale is whole along the axes that share it."""
    shardings = weights_shardings(spec.layout, spec.model)
    run = functools.partial(rollout_params, model=spec.model, dtype=spec.engine.weight_dtype, unstacks=spec.unstacks)
    abstract = jax.eval_shape(run, abstract_weights(spec.model).params)
    if spec.unstacks:
        return Weights(jax.tree.map(lambda _: spec.layout.replicated(), abstract), shardings.router_bias)

    def one(sharding, weight):
        if not is_quantized(weight):
            return sharding
        axes = [axis if size > 1 else None for axis, size in zip(sharding.spec, weight.scale.shape, strict=True)]
        return replace(weight, values=sharding, scale=NamedSharding(spec.layout.mesh, PartitionSpec(*axes)))

    return Weights(jax.tree.map(one, shardings.params, abstract), shardings.router_bias)


@functools.cache
def make_copy_weights(spec: RolloutSpec):
    """params of the trainer, whatever their shardings -> `rollout_params` with the rollouts' shardings."""
    run = functools.partial(rollout_params, model=spec.model, dtype=spec.engine.weight_dtype, unstacks=spec.unstacks)
    return jax.jit(run, out_shardings=rollout_shardings(spec).params)


def sync(spec: RolloutSpec, weights: Weights) -> Weights:
    """The trainer's weights as rollouts read them. Arrays that fit as they are, are not copied."""
    params, wanted = weights.params, spec.layout.params(spec.model)
    fits = jax.tree.map(lambda x, s: x.sharding.is_equivalent_to(s, x.ndim), params, wanted)
    if spec.copies_weights or not all(jax.tree.leaves(fits)):
        params = make_copy_weights(spec)(params)
    return Weights(params, jax.device_put(weights.router_bias, rollout_shardings(spec).router_bias))


def by_row(layout: Layout) -> NamedSharding:
    """Of latents, [layers, rows, …]."""
    return NamedSharding(layout.mesh, PartitionSpec(None, layout.rules.batch))


def slot_shardings(spec: RolloutSpec) -> Slots:
    """Slots are sharded over the batch axes; a cache is [layers, slots, …]."""
    cache = by_row(spec.layout)
    run = functools.partial(empty_slots, spec.model, spec.engine, spec.truncation, 1, 1, blocked=spec.writes_cache)
    abstract = jax.eval_shape(run)
    by_slot = jax.tree.map(lambda _: spec.layout.batch(), abstract)
    return replace(by_slot, cache=jax.tree.map(lambda _: cache, abstract.cache))


@functools.cache
def make_slots(spec: RolloutSpec, slots: int, width: int):
    """() -> Slots, all free."""
    shape = slots, width
    run = functools.partial(empty_slots, spec.model, spec.engine, spec.truncation, *shape, blocked=spec.writes_cache)
    return jax.jit(run, out_shardings=slot_shardings(spec))


@functools.cache
def make_prefill(spec: RolloutSpec):
    """(Weights, tokens [B, P], lengths [B], ids [B]) -> Prefilled, on every device but for its latents."""

    def prefill_prompts(weights: Weights, tokens_BP, length_B, id_B) -> Prefilled:
        return prefill(spec.sampler(weights), tokens_BP, length_B, id_B)

    everywhere: Any = spec.layout.replicated()
    latents: Any = by_row(spec.layout)
    return jax.jit(prefill_prompts, out_shardings=Prefilled(latents, *[everywhere] * 5))


@functools.cache
def make_insert(spec: RolloutSpec):
    """(Slots, Prefilled, rows [S], samples [S], key, DrawSettings) -> Slots. The slots are donated."""
    run = functools.partial(insert, truncation=spec.truncation)
    return jax.jit(run, out_shardings=slot_shardings(spec), donate_argnums=0)


@functools.cache
def make_append(spec: RolloutSpec, width: int):
    """(Weights, Slots, Appended, DrawSettings) -> (Slots, routes [A, C, L, K] or None). The slots are donated."""

    def run(weights: Weights, slots: Slots, new: Appended, settings):
        return append(spec.sampler(weights), slots, new, settings, width=width)

    return jax.jit(run, out_shardings=(slot_shardings(spec), spec.layout.replicated()), donate_argnums=1)


@functools.cache
def make_decode(spec: RolloutSpec, width: int):
    """(Weights, Slots, is_idle [S], limits [S], DrawSettings) -> (Slots, Emitted). The slots are donated."""

    def decode(weights: Weights, slots: Slots, is_idle_S, limit_S, settings):
        slots = replace(slots, done_S=slots.done_S | is_idle_S)
        return decode_round(spec.sampler(weights), slots, limit_S, settings, width=width)

    return jax.jit(decode, out_shardings=(slot_shardings(spec), spec.layout.replicated()), donate_argnums=1)
