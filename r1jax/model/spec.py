"""The one table of parameters: shapes, logical axes and initialisation.

Initial values, shardings, the checkpoint's restore target, counts and the weight-decay mask all derive from it.
"""

import math
import zlib
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from r1jax.config import ModelConfig
from r1jax.types import Array, Params


@dataclass(frozen=True)
class ParamSpec:
    """One tensor. `axes` names each dimension for the sharding rules (parallel/layout.py)."""

    shape: tuple[int, ...]
    axes: tuple[str, ...]
    fan_in: int  # numbers that each output sums over; 0 marks a norm's weight, which starts at 1

    def stacked(self, layers: int) -> "ParamSpec":
        return ParamSpec((layers, *self.shape), ("layers", *self.axes), self.fan_in)


def is_spec(x) -> bool:
    return isinstance(x, ParamSpec)


def _norm(width: int) -> ParamSpec:
    return ParamSpec((width,), ("norm",), fan_in=0)


def _attention(c: ModelConfig) -> dict:
    H, D, C = c.num_attention_heads, c.hidden_size, c.kv_lora_rank
    qk_dim = c.qk_nope_head_dim + c.qk_rope_head_dim
    if c.q_lora_rank is None:
        query = {"q_DHM": ParamSpec((D, H, qk_dim), ("embed", "heads", "head"), D)}
    else:
        query = {
            "q_a_DQ": ParamSpec((D, c.q_lora_rank), ("embed", "lora"), D),
            "q_norm_Q": _norm(c.q_lora_rank),
            "q_b_QHM": ParamSpec((c.q_lora_rank, H, qk_dim), ("lora", "heads", "head"), c.q_lora_rank),
        }
    return query | {
        "kv_a_DX": ParamSpec((D, C + c.qk_rope_head_dim), ("embed", "lora"), D),
        "kv_norm_C": _norm(C),
        "k_b_CHN": ParamSpec((C, H, c.qk_nope_head_dim), ("lora", "heads", "head"), C),
        "v_b_CHU": ParamSpec((C, H, c.v_head_dim), ("lora", "heads", "head"), C),
        "out_HUD": ParamSpec((H, c.v_head_dim, D), ("heads", "head", "embed"), H * c.v_head_dim),
    }


def _feed_forward(D: int, F: int) -> dict:
    return {
        "gate_DF": ParamSpec((D, F), ("embed", "mlp"), D),
        "up_DF": ParamSpec((D, F), ("embed", "mlp"), D),
        "down_FD": ParamSpec((F, D), ("mlp", "embed"), F),
    }


def _experts(c: ModelConfig) -> dict:
    E, D, F = c.n_routed_experts, c.hidden_size, c.moe_intermediate_size
    return {
        "router_DE": ParamSpec((D, E), ("embed", "router"), D),
        "gate_EDF": ParamSpec((E, D, F), ("experts", "embed", "mlp"), D),
        "up_EDF": ParamSpec((E, D, F), ("experts", "embed", "mlp"), D),
        "down_EFD": ParamSpec((E, F, D), ("experts", "mlp", "embed"), F),
        "shared": _feed_forward(D, F * c.n_shared_experts),
    }


def _block(c: ModelConfig, feed_forward: dict) -> dict:
    return {
        "attention_norm_D": _norm(c.hidden_size),
        "attention": _attention(c),
        "feed_forward_norm_D": _norm(c.hidden_size),
        "feed_forward": feed_forward,
    }


def _stack(block: dict, layers: int) -> dict:
    return jax.tree.map(lambda s: s.stacked(layers), block, is_leaf=is_spec)


def param_specs(c: ModelConfig) -> dict:
    """The tree of `ParamSpec`s. Layers of one kind are stacked on a leading axis, so that they can be scanned."""
    D, V = c.hidden_size, c.vocab_size
    moe_layers = c.num_hidden_layers - c.first_k_dense_replace
    specs = {
        "embed_VD": ParamSpec((V, D), ("vocab", "embed"), 1),
        "dense": _stack(_block(c, _feed_forward(D, c.intermediate_size)), c.first_k_dense_replace),
        "moe": _stack(_block(c, _experts(c)), moe_layers),
        "norm_D": _norm(D),
        "head_DV": ParamSpec((D, V), ("embed", "vocab"), D),
    }
    if c.num_nextn_predict_layers:
        module = {
            "hidden_norm_D": _norm(D),
            "embed_norm_D": _norm(D),
            "project_2DD": ParamSpec((2 * D, D), ("concat", "embed"), 2 * D),
            "block": _block(c, _experts(c)),
            "norm_D": _norm(D),
        }
        specs["mtp"] = _stack(module, c.num_nextn_predict_layers)
    return specs


def init_params(key: Array, config: ModelConfig) -> Params:
    """float32 params; each tensor's key is a function of its path, so adding a tensor changes no other."""
    fixed_std = config.initializer_range

    def init(path, spec: ParamSpec) -> Array:
        if spec.fan_in == 0:
            return jnp.ones(spec.shape, jnp.float32)
        tensor_key = jax.random.fold_in(key, zlib.crc32(jax.tree_util.keystr(path).encode()))
        std = spec.fan_in**-0.5 if fixed_std is None else fixed_std
        return std * jax.random.normal(tensor_key, spec.shape, jnp.float32)

    return jax.tree_util.tree_map_with_path(init, param_specs(config), is_leaf=is_spec)


def init_router_bias(config: ModelConfig) -> dict[str, Array]:
    """Zero routing biases, [layers, E] for each stack with experts."""
    layers = {"moe": config.num_hidden_layers - config.first_k_dense_replace, "mtp": config.num_nextn_predict_layers}
    return {name: jnp.zeros((n, config.n_routed_experts), jnp.float32) for name, n in layers.items() if n}


def count_params(config: ModelConfig) -> dict[str, int]:
    """Number of parameters under each top-level name of the tree."""
    specs = param_specs(config)
    return {
        name: sum(math.prod(s.shape) for s in jax.tree.leaves(tree, is_leaf=is_spec)) for name, tree in specs.items()
    }
