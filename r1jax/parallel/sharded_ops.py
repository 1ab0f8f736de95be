"""The model's operations on a mesh: sharding constraints, and `shard_map` where a kernel runs on each shard."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from r1jax.config import ModelConfig
from r1jax.model import ops
from r1jax.model.context_attention import attend_context
from r1jax.model.experts import LayerOf
from r1jax.model.ops import ShardedOps
from r1jax.model.quantize import is_quantized
from r1jax.model.softmax_attention import attend
from r1jax.model.spec import ParamSpec, param_specs
from r1jax.parallel.expert_parallel import moe_expert_parallel
from r1jax.parallel.layout import Layout
from r1jax.types import Array, Params


@functools.cache
def make_sharded_ops(layout: Layout, model: ModelConfig) -> ShardedOps:
    """The `ShardedOps` of programs on this layout; cached, so that jitted functions can be compared by it."""
    if layout.mesh.size == 1:
        return ops.ONE_DEVICE
    rows, heads, tokens = layout.rules.batch, layout.rules.heads, layout.rules.tokens
    inner, parts = tuple(axis for axis in rows if axis not in heads), layout.devices(tokens)
    key_axes = (tokens, inner, (), heads) if parts > 1 else (inner, (), heads)

    def constrain(*axes, last: tuple[str, ...] = ()) -> Callable[[Array], Array]:
        def apply(x: Array) -> Array:
            before = axes[: x.ndim - 1]  # [B, V] logits of a decoding step have no token dimension
            all_axes = (*before, *[()] * (x.ndim - len(before) - 1), last) if last else axes
            return jax.lax.with_sharding_constraint(x, NamedSharding(layout.mesh, PartitionSpec(*all_axes)))

        return apply

    def all_gather_sequence(x_BS: Array) -> Array:
        # One copy per sequence shard: what each computes from its copy has its own gradient, and they are summed here.
        rest = [PartitionSpec.UNCONSTRAINED] * (x_BS.ndim - 2)
        x_BS = constrain(inner, (), *rest)(x_BS)
        return constrain(tokens, inner, (), *rest)(jnp.broadcast_to(x_BS, (parts, *x_BS.shape))) if parts > 1 else x_BS

    def on_shards(q_BTHM, k_BSYM, v_BSYU, segments, scale, implementation):
        def one(q_BTHM, k_BSYM, v_BSYU, segments):
            k_BSYM, v_BSYU = (x.reshape(x.shape[-4:]) for x in (k_BSYM, v_BSYU))  # this shard's copy
            part = jax.lax.axis_index(tokens) if parts > 1 else 0
            return attend(q_BTHM, k_BSYM, v_BSYU, segments, scale, implementation, part)

        queries, keys = PartitionSpec(inner, tokens, heads), PartitionSpec(*key_axes)
        return jax.shard_map(
            one,
            mesh=layout.mesh,
            in_specs=(queries, keys, keys, PartitionSpec(inner)),
            out_specs=queries,
            check_vma=False,
        )(q_BTHM, k_BSYM, v_BSYU, segments)

    return ShardedOps(
        residual=constrain(rows, tokens),
        matmul_input=constrain(inner, tokens),
        attention_heads=constrain(inner, tokens, heads),
        latents=constrain(inner, tokens, last=layout.rules.lora),
        logits=constrain(inner, tokens, last=layout.rules.vocab),
        all_gather_sequence=all_gather_sequence,
        kv_heads=constrain(*key_axes),
        gather_weights=functools.partial(gather_weights, layout, param_specs(model)),
        attend=on_shards,
        attend_context=functools.partial(context_on_shards, layout),
        experts=ops.routed_experts if model.experts == "dense" else functools.partial(experts, layout),
        token_shards=layout.devices(rows + tokens),
        sequence_shards=parts,
    )


def context_on_shards(layout: Layout, q_BTHX, cache, mask_BTS, layer, scale: float, implementation: str):
    """`attend_context`: each device has whole rows of the cache."""
    by_row = PartitionSpec(layout.rules.batch)
    mask_BTS = jnp.broadcast_to(mask_BTS, (len(q_BTHX), *mask_BTS.shape[1:]))
    return jax.shard_map(
        functools.partial(attend_context, scale=scale, implementation=implementation),
        mesh=layout.mesh,
        in_specs=(by_row, PartitionSpec(None, layout.rules.batch), by_row, PartitionSpec()),
        out_specs=by_row,
        check_vma=False,
    )(q_BTHX, cache, mask_BTS, layer)


GATHERED = ("embed", "rank")  # logical axes that are all-gathered before use


def gather_weights(layout: Layout, specs: Params, name: str, weights: Params) -> Params:
    """All-gathers the weights of a layer (or a tensor outside the layers) over all mesh axes but tensor.

    Experts are gathered where they run (`experts`), quantized weights never.
    """

    def one(spec: ParamSpec, weight):
        logical = [axis for axis in spec.axes if axis != "layers"]
        places = [place for place, axis in enumerate(logical) if axis in GATHERED and layout.axes(axis)]
        if "experts" in logical or not places or is_quantized(weight):
            return weight
        axes, (place,) = [tuple(a for a in layout.axes(axis) if layout.mesh.shape[a] > 1) for axis in logical], places
        # One mesh axis at a time: for all at once XLA emits an all-reduce, with twice the bytes.
        steps = [[*axes[:place], axes[place][:n], *axes[place + 1 :]] for n in range(len(axes[place]), -1, -1)]
        return gather_in_steps(weight, tuple(NamedSharding(layout.mesh, PartitionSpec(*step)) for step in steps))

    return jax.tree.map(one, specs[name], weights)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def gather_in_steps(weight: Array, steps: tuple[NamedSharding, ...]) -> Array:
    """Reshards from the first of `steps` to the last. The gradient is reduce-scattered in reverse, and never whole."""
    return functools.reduce(jax.lax.with_sharding_constraint, steps, weight)


gather_in_steps.defvjp(
    lambda weight, steps: (gather_in_steps(weight, steps), None),
    lambda steps, _, g: (functools.reduce(jax.lax.with_sharding_constraint, steps[-2::-1] or steps, g),),
)


def experts(layout: Layout, p: Params, x_BTD: Array, ids_BTK: Array, gates_BTK: Array, c: ModelConfig) -> Array:
    """`routed_experts` by expert parallelism, [B, T, D]."""
    rules, by_token = layout.rules, PartitionSpec(layout.rules.batch, layout.rules.tokens)
    is_gathered = layout.devices(rules.expert_embed) > 1
    names = ("gate_EDF", "up_EDF", "down_EFD")
    weights = [p[name].slice() if is_gathered and isinstance(p[name], LayerOf) else p[name] for name in names]

    def on_shards(weights, x_BTD, ids_BTK, gates_BTK):
        if is_gathered:
            whole = functools.partial(jax.lax.all_gather, axis_name=rules.expert_embed, tiled=True)
            weights = [whole(w, axis=axis) for w, axis in zip(weights, (1, 1, 2), strict=True)]
        x_TD, ids_TK, gates_TK = (a.reshape(-1, a.shape[-1]) for a in (x_BTD, ids_BTK, gates_BTK))
        p = dict(zip(names, weights, strict=True))
        out_TD = moe_expert_parallel(p, x_TD, ids_TK, gates_TK, rules.experts, layout.mesh.axis_names)
        if layout.devices(rules.expert_mlp) > 1:
            out_TD = jax.lax.psum(out_TD, rules.expert_mlp)
        return out_TD.reshape(x_BTD.shape)

    into = PartitionSpec(rules.experts, rules.expert_embed, rules.expert_mlp)
    out = PartitionSpec(rules.experts, rules.expert_mlp, rules.expert_embed)
    specs = [
        LayerOf(PartitionSpec(None, *spec), PartitionSpec()) if isinstance(w, LayerOf) else spec
        for w, spec in zip(weights, (into, into, out), strict=True)
    ]
    return jax.shard_map(
        on_shards,
        mesh=layout.mesh,
        in_specs=(specs, by_token, by_token, by_token),
        out_specs=by_token,
        check_vma=False,
    )(weights, x_BTD, ids_BTK, gates_BTK)
