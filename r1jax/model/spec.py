"""The table of parameters: shapes, logical axes, initialization, and names in published checkpoints.

Initial values, shardings, restore targets, counts, the weight-decay mask and Hugging Face names all derive from it.
"""

import math
import zlib
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp

from r1jax.config import ModelConfig
from r1jax.types import Array, Params

STACKED = ("layers", "experts")  # axes along which published checkpoints have separate tensors


@dataclass(frozen=True)
class ParamSpec:
    """One tensor. `axes` names each dimension for the sharding rules (parallel/layout.py)."""

    shape: tuple[int, ...]
    axes: tuple[str, ...]
    fan_in: int  # of a matrix; 0: a norm's weight or a bias
    published: str  # name in published checkpoints; in a layer, what follows "model.layers.N."
    inputs: int = 0  # leading dimensions that are inputs, published transposed as [outputs, inputs]; 0: published as is
    zeros: bool = False  # initialized to 0; other norms to 1, matrices at random


def _norm(width: int, published: str) -> ParamSpec:
    return ParamSpec((width,), ("norm",), 0, published)


def _grouped_attention(c: ModelConfig) -> dict:
    D, M, heads = c.hidden_size, c.head_dim, ("heads", "head")
    specs = {}
    for name, H in (("q", c.num_attention_heads), ("k", c.num_key_value_heads), ("v", c.num_key_value_heads)):
        letter, published = "H" if name == "q" else "Y", f"self_attn.{name}_proj"
        specs[f"{name}_D{letter}M"] = ParamSpec((D, H, M), ("embed", *heads), D, f"{published}.weight", 1)
        if c.attention_bias:
            specs[f"{name}_bias_{letter}M"] = ParamSpec((H, M), heads, 0, f"{published}.bias", zeros=True)
    if c.qk_norm:
        specs |= {f"{name}_norm_M": _norm(M, f"self_attn.{name}_norm.weight") for name in ("q", "k")}
    H = c.num_attention_heads
    return specs | {"out_HMD": ParamSpec((H, M, D), (*heads, "embed"), H * M, "self_attn.o_proj.weight", 2)}


def _latent_attention(c: ModelConfig, C: int) -> dict:
    H, D, Q = c.num_attention_heads, c.hidden_size, c.q_lora_rank
    M, W, U = c.qk_nope_head_dim + c.qk_rope_head_dim, c.qk_nope_head_dim + c.v_head_dim, c.v_head_dim
    if Q is None:
        query = {"q_DHM": ParamSpec((D, H, M), ("embed", "heads", "head"), D, "self_attn.q_proj.weight", 1)}
    else:
        query = {
            "q_a_DQ": ParamSpec((D, Q), ("embed", "query"), D, "self_attn.q_a_proj.weight", 1),
            "q_norm_Q": _norm(Q, "self_attn.q_a_layernorm.weight"),
            "q_b_QHM": ParamSpec((Q, H, M), ("rank", "heads", "head"), Q, "self_attn.q_b_proj.weight", 1),
        }
    kv_a_width = C + c.qk_rope_head_dim
    return query | {
        "kv_a_DX": ParamSpec((D, kv_a_width), ("embed", "lora"), D, "self_attn.kv_a_proj_with_mqa.weight", 1),
        "kv_norm_C": _norm(C, "self_attn.kv_a_layernorm.weight"),
        "kv_b_CHW": ParamSpec((C, H, W), ("rank", "heads", "head"), C, "self_attn.kv_b_proj.weight", 1),
        "out_HUD": ParamSpec((H, U, D), ("heads", "head", "embed"), H * U, "self_attn.o_proj.weight", 2),
    }


def _feed_forward(D: int, F: int, published: str) -> dict:
    return {
        "gate_DF": ParamSpec((D, F), ("embed", "mlp"), D, f"{published}.gate_proj.weight", 1),
        "up_DF": ParamSpec((D, F), ("embed", "mlp"), D, f"{published}.up_proj.weight", 1),
        "down_FD": ParamSpec((F, D), ("mlp", "embed"), F, f"{published}.down_proj.weight", 1),
    }


def _experts(c: ModelConfig) -> dict:
    E, D, F = c.n_routed_experts, c.hidden_size, c.moe_intermediate_size
    into, out = ("experts", "expert_embed", "expert_mlp"), ("experts", "expert_mlp", "expert_embed")
    published = "mlp.experts.{expert}"
    routed = {
        "router_DE": ParamSpec((D, E), ("embed", "router"), D, "mlp.gate.weight", 1),
        "gate_EDF": ParamSpec((E, D, F), into, D, f"{published}.gate_proj.weight", 1),
        "up_EDF": ParamSpec((E, D, F), into, D, f"{published}.up_proj.weight", 1),
        "down_EFD": ParamSpec((E, F, D), out, F, f"{published}.down_proj.weight", 1),
    }
    if c.n_shared_experts == 0:
        return routed
    return routed | {"shared": _feed_forward(D, F * c.n_shared_experts, "mlp.shared_experts")}


def _block(c: ModelConfig, feed_forward: dict) -> dict:
    return {
        "attention_norm_D": _norm(c.hidden_size, "input_layernorm.weight"),
        "attention": _grouped_attention(c) if c.kv_lora_rank is None else _latent_attention(c, c.kv_lora_rank),
        "feed_forward_norm_D": _norm(c.hidden_size, "post_attention_layernorm.weight"),
        "feed_forward": feed_forward,
    }


def _stack(block: dict, layers: int) -> dict:
    return jax.tree.map(lambda s: replace(s, shape=(layers, *s.shape), axes=("layers", *s.axes)), block)


def stack_layers(c: ModelConfig) -> dict[str, range]:
    """The layers of each stack of this model; MTP modules are numbered after the last layer."""
    L, dense, modules = c.num_hidden_layers, c.first_k_dense_replace, c.num_nextn_predict_layers
    layers = {"dense": range(dense), "moe": range(dense, L), "mtp": range(L, L + modules)}
    return {name: numbers for name, numbers in layers.items() if numbers}


def param_specs(c: ModelConfig) -> dict:
    """The tree of `ParamSpec`s. Layers of one kind are stacked along a leading axis, for `jax.lax.scan`."""
    D, V = c.hidden_size, c.vocab_size
    blocks = {
        "dense": _block(c, _feed_forward(D, c.intermediate_size, "mlp")),
        "moe": _block(c, _experts(c)),
        "mtp": {
            "hidden_norm_D": _norm(D, "hnorm.weight"),
            "embed_norm_D": _norm(D, "enorm.weight"),
            "project_2DD": ParamSpec((2 * D, D), ("concat", "embed"), 2 * D, "eh_proj.weight", 1),
            "block": _block(c, _experts(c)),
            "norm_D": _norm(D, "shared_head.norm.weight"),
        },
    }
    specs = {
        "embed_VD": ParamSpec((V, D), ("vocab", "embed"), 1, "model.embed_tokens.weight"),
        "norm_D": _norm(D, "model.norm.weight"),
        **{name: _stack(blocks[name], len(layers)) for name, layers in stack_layers(c).items()},
    }
    if c.scalar_head:
        # At zero the untrained reward model prefers nothing: its loss starts at ln 2.
        specs["score_D1"] = ParamSpec((D, 1), ("embed", "score"), D, "score.weight", 1, zeros=True)
    elif not c.tie_word_embeddings:
        specs["head_DV"] = ParamSpec((D, V), ("embed", "vocab"), D, "lm_head.weight", 1)
    return specs


def router_bias_specs(c: ModelConfig) -> dict[str, ParamSpec]:
    """Router biases, float32 [layers, E] for each stack with experts: state without a gradient."""
    E, published = c.n_routed_experts, "mlp.gate.e_score_correction_bias"
    return {
        name: ParamSpec((len(layers), E), ("layers", "router"), E, published)
        for name, layers in stack_layers(c).items()
        if name != "dense"
    }


def init_params(key: Array, config: ModelConfig) -> Params:
    """Params in `param_dtype`. Each tensor's key depends on its path only: a new tensor does not change the others."""

    def init(path, spec: ParamSpec) -> Array:
        if spec.zeros or spec.fan_in == 0:
            return jnp.full(spec.shape, 0 if spec.zeros else 1, config.param_dtype)
        tensor_key = jax.random.fold_in(key, zlib.crc32(jax.tree_util.keystr(path).encode()))
        std = spec.fan_in**-0.5 if config.initializer_range is None else config.initializer_range
        return (std * jax.random.normal(tensor_key, spec.shape, jnp.float32)).astype(config.param_dtype)

    return jax.tree.map_with_path(init, param_specs(config))


def init_router_bias(config: ModelConfig) -> dict[str, Array]:
    """Router biases of zero, see `router_bias_specs`."""
    return {name: jnp.zeros(spec.shape, jnp.float32) for name, spec in router_bias_specs(config).items()}


def count_params(config: ModelConfig) -> dict[str, int]:
    """Parameters of a published checkpoint, router biases included, for each top-level name of the tree."""
    biases = router_bias_specs(config) if uses_router_bias(config) else {}
    trees = param_specs(config) | {f"router_bias.{name}": spec for name, spec in biases.items()}
    return {name: sum(math.prod(s.shape) for s in jax.tree.leaves(tree)) for name, tree in trees.items()}


def uses_router_bias(c: ModelConfig) -> bool:
    """Whether experts are chosen by biased affinities (V3); otherwise biases stay zero and are not published."""
    return c.topk_method == "noaux_tc"


def count_active_params(config: ModelConfig) -> int:
    """Parameters used to predict one next token: only the chosen experts of each layer, and no MTP module."""

    def active(spec: ParamSpec) -> int:
        chosen = config.num_experts_per_tok / config.n_routed_experts if "experts" in spec.axes else 1
        return round(math.prod(spec.shape) * chosen)

    main = {name: tree for name, tree in param_specs(config).items() if name != "mtp"}
    return sum(active(spec) for spec in jax.tree.leaves(main))
