"""The model's operations on a mesh: constraints on how arrays lie, and `shard_map` where a kernel runs on each part."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from r1jax.config import ModelConfig
from r1jax.model import ops
from r1jax.model.experts import experts_divided
from r1jax.model.ops import ShardedOps
from r1jax.model.quantize import is_quantized
from r1jax.model.softmax_attention import attend
from r1jax.model.spec import ParamSpec, is_spec, param_specs
from r1jax.parallel.layout import Layout
from r1jax.types import Array, Params


@functools.cache
def make_sharded_ops(layout: Layout, model: ModelConfig) -> ShardedOps:
    """What programs on this layout give the model. The same object for the same arguments."""
    if layout.mesh.size == 1:
        return ops.ONE_DEVICE
    rows, heads, tokens = layout.rules.batch, layout.rules.heads, layout.rules.tokens
    inner, parts = tuple(axis for axis in rows if axis not in heads), layout.devices(tokens)
    key_axes = (tokens, inner, (), heads) if parts > 1 else (inner, (), heads)

    def lie(*axes, last: tuple[str, ...] = ()) -> Callable[[Array], Array]:
        def constrain(x: Array) -> Array:
            before = axes[: x.ndim - 1]  # a step's logits have no tokens' dimension
            all_axes = (*before, *[()] * (x.ndim - len(before) - 1), last) if last else axes
            return jax.lax.with_sharding_constraint(x, NamedSharding(layout.mesh, PartitionSpec(*all_axes)))

        return constrain

    def all_gather_sequence(x_BS: Array) -> Array:
        # Given to each part by itself, so that what is made of it has a gradient for each: they are added up here.
        rest = [PartitionSpec.UNCONSTRAINED] * (x_BS.ndim - 2)
        x_BS = lie(inner, (), *rest)(x_BS)
        return lie(tokens, inner, (), *rest)(jnp.broadcast_to(x_BS, (parts, *x_BS.shape))) if parts > 1 else x_BS

    def on_parts(q_BTHM, k_BSYM, v_BSYU, segment_ids_BS, scale, implementation):
        def one(q_BTHM, k_BSYM, v_BSYU, segment_ids_BS):
            k_BSYM, v_BSYU = (x.reshape(x.shape[-4:]) for x in (k_BSYM, v_BSYU))  # of this part alone
            part = jax.lax.axis_index(tokens) if parts > 1 else 0
            return attend(q_BTHM, k_BSYM, v_BSYU, segment_ids_BS, scale, implementation, part)

        queries, keys = PartitionSpec(inner, tokens, heads), PartitionSpec(*key_axes)
        return jax.shard_map(
            one,
            mesh=layout.mesh,
            in_specs=(queries, keys, keys, PartitionSpec(inner)),
            out_specs=queries,
            check_vma=False,
        )(q_BTHM, k_BSYM, v_BSYU, segment_ids_BS)

    return ShardedOps(
        rows=lie(rows, tokens),
        inner=lie(inner, tokens),
        heads=lie(inner, tokens, heads),
        vocab=lie(inner, tokens, last=layout.rules.vocab),
        all_gather_sequence=all_gather_sequence,
        keys=lie(*key_axes),
        gather=functools.partial(gather, layout, param_specs(model)),
        attend=on_parts,
        experts=ops.experts if model.experts == "dense" else functools.partial(experts, layout),
        shards=layout.devices(rows + tokens),
        parts=parts,
    )


GATHERED = ("embed", "rank")  # what fsdp and context divide, and no layer needs in parts


def gather(layout: Layout, specs: Params, name: str, weights: Params) -> Params:
    """Weights of a layer (or a tensor outside the layers) as they are used: whole but for what "tensor" divides.

    Experts stay as they are: what is missing of them is gathered where they run.
    """

    def one(spec: ParamSpec, weight):
        logical = [axis for axis in spec.axes if axis != "layers"]
        places = [place for place, axis in enumerate(logical) if axis in GATHERED and layout.axes(axis)]
        if "experts" in logical or not places or is_quantized(weight):
            return weight
        axes, (place,) = [tuple(a for a in layout.axes(axis) if layout.mesh.shape[a] > 1) for axis in logical], places
        # Axis by axis: over all chips at once XLA makes a sum of it, which moves twice the bytes.
        steps = [[*axes[:place], axes[place][:n], *axes[place + 1 :]] for n in range(len(axes[place]), -1, -1)]
        return gather_in_steps(weight, tuple(NamedSharding(layout.mesh, PartitionSpec(*step)) for step in steps))

    return jax.tree.map(one, specs[name], weights, is_leaf=is_spec)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def gather_in_steps(weight: Array, steps: tuple[NamedSharding, ...]) -> Array:
    """From the first of `steps` to the last. The gradient is added up on the same way back, and whole nowhere."""
    return functools.reduce(jax.lax.with_sharding_constraint, steps, weight)


gather_in_steps.defvjp(
    lambda weight, steps: (gather_in_steps(weight, steps), None),
    lambda steps, _, g: (functools.reduce(jax.lax.with_sharding_constraint, steps[-2::-1] or steps, g),),
)


def experts(layout: Layout, p: Params, x_BTD: Array, ids_BTK: Array, gates_BTK: Array, c: ModelConfig) -> Array:
    """The routed experts of each token, [B, T, D], by expert parallelism."""
    rules, by_token = layout.rules, PartitionSpec(layout.rules.batch, layout.rules.tokens)

    def on_parts(gate_EDF, up_EDF, down_EFD, x_BTD, ids_BTK, gates_BTK):
        if layout.devices(rules.expert_embed) > 1:
            whole = functools.partial(jax.lax.all_gather, axis_name=rules.expert_embed, tiled=True)
            gate_EDF, up_EDF, down_EFD = whole(gate_EDF, axis=1), whole(up_EDF, axis=1), whole(down_EFD, axis=2)
        weights = {"gate_EDF": gate_EDF, "up_EDF": up_EDF, "down_EFD": down_EFD}
        x_TD, ids_TK, gates_TK = (a.reshape(-1, a.shape[-1]) for a in (x_BTD, ids_BTK, gates_BTK))
        out_TD = experts_divided(weights, x_TD, ids_TK, gates_TK, rules.experts, layout.mesh.axis_names)
        if layout.devices(rules.expert_mlp) > 1:
            out_TD = jax.lax.psum(out_TD, rules.expert_mlp)
        return out_TD.reshape(x_BTD.shape)

    into = PartitionSpec(rules.experts, rules.expert_embed, rules.expert_mlp)
    out = PartitionSpec(rules.experts, rules.expert_mlp, rules.expert_embed)
    return jax.shard_map(
        on_parts,
        mesh=layout.mesh,
        in_specs=(into, into, out, by_token, by_token, by_token),
        out_specs=by_token,
        check_vma=False,
    )(p["gate_EDF"], p["up_EDF"], p["down_EFD"], x_BTD, ids_BTK, gates_BTK)
