"""config.json of the published models that this one can be, as published and as transformers writes it, and back.

DeepSeek-V2 and V3, and the dense Qwen2.5 ("qwen2"), Qwen3 and Llama.
"""

from dataclasses import MISSING, Field, asdict, fields
from typing import Any

from r1jax.config import EXPERTS, GROUPED, LATENT, ModelConfig, RopeScalingConfig
from r1jax.errors import UsageError

# What may be left out of config.json, or is null in it.
ANY = {"n_group": 1, "topk_group": 1, "num_nextn_predict_layers": 0, "rope_theta": 10000.0}
DEFAULTS: dict[str, dict[str, Any]] = {
    "deepseek_v2": ANY | {"scoring_func": "softmax", "topk_method": "greedy", "norm_topk_prob": False},
    "deepseek_v3": ANY | {"scoring_func": "sigmoid", "topk_method": "noaux_tc", "norm_topk_prob": True},
    "qwen2": {"max_position_embeddings": 32768},
    "qwen3": {"max_position_embeddings": 32768, "head_dim": 128},
    "llama": {"max_position_embeddings": 2048},
}
# What makes a dense model one of its family, and is in no config.json.
DENSE = {
    "qwen2": {"attention_bias": True, "qk_norm": False},
    "qwen3": {"attention_bias": False, "qk_norm": True},
    "llama": {"attention_bias": False, "qk_norm": False},
}
# Keys that change the computation, with the only value that this model has.
LATENT_ONLY = {"hidden_act": "silu", "attention_bias": False, "moe_layer_freq": 1, "rope_interleave": True}
REQUIRED: dict[str, dict[str, Any]] = {
    "deepseek_v2": LATENT_ONLY,
    "deepseek_v3": LATENT_ONLY,
    "qwen2": {"hidden_act": "silu", "use_sliding_window": False},
    "qwen3": {"hidden_act": "silu", "use_sliding_window": False, "attention_bias": False},
    "llama": {"hidden_act": "silu", "attention_bias": False, "mlp_bias": False, "pretraining_tp": 1},
}
ARCHITECTURES = {
    "deepseek_v2": "DeepseekV2",
    "deepseek_v3": "DeepseekV3",
    "qwen2": "Qwen2",
    "qwen3": "Qwen3",
    "llama": "Llama",
}
FAMILIES = "DeepSeek-V3 is sigmoid and noaux_tc; V2 is softmax, greedy or group_limited_greedy, without norm_topk_prob"
# Not copied by name.
OURS = ("rope_scaling", "scalar_head", "tokenizer_size", "param_dtype", "dtype", "experts", "attention")
# Nor are these for dense models: DENSE says them, or that all layers are dense.
NOT_DENSE = (*LATENT, *EXPERTS, "first_k_dense_replace", "num_nextn_predict_layers", "scoring_func", "topk_method")
# What config.json calls the kinds of rope_scaling, and their keys; those of YaRN beside the first two have defaults.
YARN = ("factor", "original_max_position_embeddings", "beta_fast", "beta_slow", "mscale", "mscale_all_dim")
LLAMA3 = ("factor", "original_max_position_embeddings", "low_freq_factor", "high_freq_factor")

SCORED = "ForSequenceClassification"  # what transformers calls a reward model: one label, a linear head


def copied(kind: str) -> list[Field]:
    """The fields that config.json has by name."""
    others = (*OURS, *((*NOT_DENSE, "attention_bias", "qk_norm") if kind in DENSE else GROUPED))
    return [field for field in fields(ModelConfig) if field.name not in others]


def from_published(config: dict[str, Any], *, mtp: bool) -> ModelConfig:
    """Raises UsageError, with one line that names the key, for anything that this model can't be."""
    kind = config.get("model_type")
    if not isinstance(kind, str) or kind not in DEFAULTS:
        raise UsageError(f"config.json: model_type is {kind!r}, expected one of {', '.join(DEFAULTS)}")
    for key, only in REQUIRED[kind].items():
        if config.get(key, only) != only:
            raise UsageError(f"config.json: {key} is {config[key]!r}, expected {only!r}")
    if kind in DENSE:
        require_full_attention(config)
    new, old = (section(config, key) for key in ("rope_parameters", "rope_scaling"))  # of transformers 5; as published
    given: dict[str, Any] = DEFAULTS[kind] | {key: new[key] for key in ("rope_theta",) if key in new}
    given |= {key: value for key, value in config.items() if value is not None or key == "q_lora_rank"}
    if kind in DENSE:
        given = with_heads(given)
    elif not mtp:
        given["num_nextn_predict_layers"] = 0
    if kind not in DENSE and given["topk_method"] == "greedy":
        given |= {"n_group": 1, "topk_group": 1}  # published models without groups say 0, 1 or null
    needed = {*LATENT, *EXPERTS, "num_key_value_heads", "head_dim"}
    needed |= {field.name for field in fields(ModelConfig) if field.default is MISSING}
    missing = [field.name for field in copied(kind) if field.name not in given and field.name in needed]
    if missing:
        raise UsageError(f"config.json: no '{missing[0]}'")
    try:
        values = {field.name: given[field.name] for field in copied(kind) if field.name in given}
        if kind in DENSE:
            values |= DENSE[kind] | {"kv_lora_rank": None, "num_nextn_predict_layers": 0}
            values["first_k_dense_replace"] = values["num_hidden_layers"]
        is_scored = any(name.endswith(SCORED) for name in config.get("architectures") or ())
        model = ModelConfig(**values, rope_scaling=rope_scaling(old or new), scalar_head=is_scored)
    except ValueError as error:
        raise UsageError(f"config.json: {error}") from error
    if family(model) != kind:
        raise UsageError(
            f"config.json: {kind} with scoring_func '{model.scoring_func}', topk_method '{model.topk_method}' and"
            f" norm_topk_prob {model.norm_topk_prob}: {FAMILIES}"
        )
    return model


def require_full_attention(config: dict[str, Any]) -> None:
    """Raises UsageError where transformers' list of each layer's attention has another one than ours."""
    layers = config.get("layer_types") or []
    if not isinstance(layers, list) or any(layer != "full_attention" for layer in layers):
        raise UsageError(f"config.json: layer_types is {layers!r}, expected 'full_attention' for each layer")


def with_heads(given: dict[str, Any]) -> dict[str, Any]:
    """What older dense models leave out: as many heads of keys as of queries, and heads that share the width."""
    width, heads = given.get("hidden_size"), given.get("num_attention_heads")
    head_dim = 0  # ModelConfig says what is wrong
    if isinstance(width, int) and isinstance(heads, int) and heads > 0:
        head_dim = width // heads
    return {"num_key_value_heads": heads, "head_dim": head_dim} | given


def section(config: dict[str, Any], key: str) -> dict[str, Any]:
    value = config.get(key) or {}
    if not isinstance(value, dict):
        raise UsageError(f"config.json: {key} is {value!r}, expected an object or null")
    return value


def rope_scaling(given: dict[str, Any]) -> RopeScalingConfig:
    kinds = {given[key] for key in ("rope_type", "type") if key in given} or {"default"}
    scaling = {key: value for key, value in given.items() if key not in ("rope_type", "type", "rope_theta")}
    if kinds == {"default"} and not scaling:
        return RopeScalingConfig()
    if kinds not in ({"yarn"}, {"llama3"}):
        found = " and ".join(sorted(repr(kind) for kind in kinds))
        raise UsageError(
            f"config.json: rope_scaling type is {found} with {sorted(scaling)}, expected 'yarn', 'llama3', or none"
        )
    (kind,) = kinds
    known, needed = (YARN, YARN[:2]) if kind == "yarn" else (LLAMA3, LLAMA3)
    missing, unknown = set(needed) - scaling.keys(), scaling.keys() - set(known)
    if missing or unknown:
        wrong = f"no '{min(missing)}'" if missing else f"'{min(unknown)}', which this model doesn't know"
        raise UsageError(f"config.json: rope_scaling has {wrong}")
    return RopeScalingConfig(**{name: value for name, value in scaling.items() if value is not None}, rope_type=kind)


def family(model: ModelConfig) -> str | None:
    """The published architecture that this model is; None: none."""
    if model.kv_lora_rank is None:
        parts = {name: getattr(model, name) for name in ("attention_bias", "qk_norm")}
        return next((kind for kind, its in DENSE.items() if its == parts), None)
    if model.scoring_func == "sigmoid" and model.topk_method == "noaux_tc":
        return "deepseek_v3"
    is_v2 = model.scoring_func == "softmax" and model.topk_method != "noaux_tc" and not model.norm_topk_prob
    return "deepseek_v2" if is_v2 else None


def to_published(model: ModelConfig, *, bos_id: int | None, eos_id: int | None) -> dict[str, Any]:
    """Raises UsageError for a model that is none of the published architectures."""
    kind = family(model)
    if kind is None and model.kv_lora_rank is None:
        raise UsageError(
            "a model with both attention_bias and qk_norm has no published form: Qwen2.5 and Qwen3 have one"
        )
    if kind is None:
        raise UsageError(
            f"a model with scoring_func '{model.scoring_func}', topk_method '{model.topk_method}' and norm_topk_prob"
            f" {model.norm_topk_prob} has no published form: {FAMILIES}"
        )
    architecture = ARCHITECTURES[kind] + (SCORED if model.scalar_head else "ForCausalLM")
    config: dict[str, Any] = {"architectures": [architecture], "model_type": kind}
    if model.scalar_head:
        config["id2label"] = {"0": "score"}
    config |= REQUIRED[kind] | {field.name: getattr(model, field.name) for field in copied(kind)}
    if model.initializer_range is None:
        del config["initializer_range"]
    if kind not in DENSE:
        config["num_key_value_heads"] = model.num_attention_heads
    config |= {"bos_token_id": bos_id, "eos_token_id": eos_id, "torch_dtype": model.param_dtype}
    scaling = model.rope_scaling
    key, names = ("rope_type", LLAMA3) if scaling.rope_type == "llama3" else ("type", YARN)  # as each is published
    parts = {name: value for name, value in asdict(scaling).items() if name in names}
    config["rope_scaling"] = None if scaling.factor == 1 else {key: scaling.rope_type, **parts}
    return config
