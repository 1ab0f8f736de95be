"""The model's operations on a mesh: sharding constraints, and `shard_map` where a kernel runs on each shard."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from r1jax.config import ModelConfig
from r1jax.model import ops
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
        logits=constrain(inner, tokens, last=layout.rules.vocab),
        all_gather_sequence=all_gather_sequence,
        kv_heads=constrain(*key_axes),
        gather_weights=functools.partial(gather_weights, layout, param_specs(model)),
        attend=on_shards,
        experts=ops.routed_experts if model.experts == "dense" else functools.partial(experts, layout),
        token_shards=layout.devices(rows + tokens),
        sequence_shards=parts,
    )


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

    def on_shards(gate_EDF, up_EDF, down_EFD, x_BTD, ids_BTK, gates_BTK):
        if layout.devices(rules.expert_embed) > 1:
            whole = functools.partial(jax.lax.all_gather, axis_name=rules.expert_embed, tiled=True)
            gate_EDF, up_EDF, down_EFD = whole(gate_EDF, axis=1), whole(up_EDF, axis=1), whole(down_EFD, axis=2)
        weights = {"gate_EDF": gate_EDF, "up_EDF": up_EDF, "down_EFD": down_EFD}
        x_TD, ids_TK, gates_TK = (a.reshape(-1, a.shape[-1]) for a in (x_BTD, ids_BTK, gates_BTK))
        out_TD = moe_expert_parallel(weights, x_TD, ids_TK, gates_TK, rules.experts, layout.mesh.axis_names)
        if layout.devices(rules.expert_mlp) > 1:
            out_TD = jax.lax.psum(out_TD, rules.expert_mlp)
        return out_TD.reshape(x_BTD.shape)

    into = PartitionSpec(rules.experts, rules.expert_embed, rules.expert_mlp)
    out = PartitionSpec(rules.experts, rules.expert_mlp, rules.expert_embed)
    return jax.shard_map(
        on_shards,
        mesh=layout.mesh,
        in_specs=(into, into, out, by_token, by_token, by_token),
        out_specs=by_token,
        check_vma=False,
    )(p["gate_EDF"], p["up_EDF"], p["down_EFD"], x_BTD, ids_BTK, gates_BTK)
