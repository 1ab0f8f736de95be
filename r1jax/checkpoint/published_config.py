"""Conversion between ModelConfig and the config.json of published models, as published or as transformers writes it.

The models are DeepSeek-V2 and V3, Qwen3-MoE, and the dense Qwen2.5 ("qwen2"), Qwen3, Llama, and Mistral, read as Llama.
"""

from dataclasses import MISSING, Field, asdict, fields
from typing import Any

from r1jax.config import EXPERTS, GROUPED, LATENT, ModelConfig, RopeScalingConfig
from r1jax.errors import UsageError

# Values of keys that are absent from config.json, or null in it.
ANY = {"n_group": 1, "topk_group": 1, "num_nextn_predict_layers": 0, "rope_theta": 10000.0}
DEFAULTS: dict[str, dict[str, Any]] = {
    "deepseek_v2": ANY | {"scoring_func": "softmax", "topk_method": "greedy", "norm_topk_prob": False},
    "deepseek_v3": ANY | {"scoring_func": "sigmoid", "topk_method": "noaux_tc", "norm_topk_prob": True},
    "qwen2": {"max_position_embeddings": 32768},
    "qwen3": {"max_position_embeddings": 32768, "head_dim": 128},
    "qwen3_moe": {"max_position_embeddings": 32768, "norm_topk_prob": False},
    "llama": {"max_position_embeddings": 2048},
}
# Fields that a family with grouped-query attention implies; no config.json has them.
IMPLIED: dict[str, dict[str, Any]] = {
    "qwen2": {"attention_bias": True, "qk_norm": False},
    "qwen3": {"attention_bias": False, "qk_norm": True},
    "llama": {"attention_bias": False, "qk_norm": False},
    "qwen3_moe": {
        "attention_bias": False, "qk_norm": True, "first_k_dense_replace": 0, "n_shared_experts": 0, "n_group": 1,
        "topk_group": 1, "routed_scaling_factor": 1.0, "scoring_func": "softmax", "topk_method": "greedy",
    },
}  # fmt: skip
DENSE = ("qwen2", "qwen3", "llama")
# Keys that change the computation, with the only value that is implemented.
LATENT_ONLY = {"hidden_act": "silu", "attention_bias": False, "moe_layer_freq": 1, "rope_interleave": True}
REQUIRED: dict[str, dict[str, Any]] = {
    "deepseek_v2": LATENT_ONLY,
    "deepseek_v3": LATENT_ONLY,
    "qwen2": {"hidden_act": "silu", "use_sliding_window": False},
    "qwen3": {"hidden_act": "silu", "use_sliding_window": False, "attention_bias": False},
    "qwen3_moe": {
        "hidden_act": "silu", "use_sliding_window": False, "attention_bias": False,
        "decoder_sparse_step": 1, "mlp_only_layers": [],  # all layers have experts
    },
    "llama": {"hidden_act": "silu", "attention_bias": False, "mlp_bias": False, "pretraining_tp": 1},
}  # fmt: skip
# Keys that a family has for our fields, the one that is published first; transformers 5 writes the other.
KEYS = {"qwen3_moe": {"n_routed_experts": ("num_experts", "num_local_experts")}}

FAMILIES = (
    "DeepSeek-V3 is sigmoid and noaux_tc; V2 is softmax, greedy or group_limited_greedy, without norm_topk_prob; both"
    " have shared experts"
)
# Fields that are not copied from config.json by name.
OURS = ("rope_scaling", "scalar_head", "tokenizer_size", "param_dtype", "dtype", "experts", "attention")
# The keys of config.json's kinds of rope_scaling; those of YaRN beside the first two have defaults.
YARN = ("factor", "original_max_position_embeddings", "beta_fast", "beta_slow", "mscale", "mscale_all_dim")
LLAMA3 = ("factor", "original_max_position_embeddings", "low_freq_factor", "high_freq_factor")
# Values of rope keys that change nothing: with any type, and with the type 'default'.
NEUTRAL = {"partial_rotary_factor": 1, "truncate": True}
NEUTRAL_DEFAULT = {"factor": 1, "attention_factor": 1}
# Mistral is Llama with other defaults, where the window is not shorter than the context.
MISTRAL = {"num_key_value_heads": 8, "max_position_embeddings": 131072, "sliding_window": 4096}
# Why models that look like those above are refused.
LACKING = {
    "qwen2_moe": "the gate of a shared expert",
    "gemma": "scaled embeddings, norms that multiply by 1 + weight, and GELU",
    "gemma2": "soft-capped logits, sliding windows, norms after attention and feed-forward, and all that gemma lacks",
    "gemma3": "sliding windows, norms after attention and feed-forward, and all that gemma lacks",
}

SCORED = "ForSequenceClassification"  # transformers' name for a reward model: one label, a linear head


def copied(kind: str) -> list[Field]:
    """The fields that are copied from config.json by name."""
    others = (*OURS, *((*LATENT, "num_nextn_predict_layers", *IMPLIED[kind]) if kind in IMPLIED else GROUPED))
    if kind in DENSE:
        others += (*EXPERTS, "first_k_dense_replace", "scoring_func", "topk_method")
    return [field for field in fields(ModelConfig) if field.name not in others]


def from_published(config: dict[str, Any], *, mtp: bool) -> ModelConfig:
    """The ModelConfig of a published config.json; without `mtp`, one without multi-token-prediction modules.

    Raises UsageError, naming the key, for a model that is not implemented.
    """
    if config.get("model_type") == "mistral":
        config = as_llama(config)
    kind = config.get("model_type")
    if not isinstance(kind, str) or kind not in DEFAULTS:
        raise UsageError(
            f"config.json: model_type is {kind!r}, expected {', '.join(DEFAULTS)} or mistral{lacking(kind)}"
        )
    for key, only in REQUIRED[kind].items():
        if config.get(key, only) != only:
            raise UsageError(f"config.json: {key} is {config[key]!r}, expected {only!r}")
    layers = config.get("layer_types") or []
    if kind in IMPLIED and not (isinstance(layers, list) and all(layer == "full_attention" for layer in layers)):
        raise UsageError(f"config.json: layer_types is {layers!r}, expected 'full_attention' for each layer")
    new, old = (section(config, key) for key in ("rope_parameters", "rope_scaling"))  # transformers 5; as published
    rope = {key: config[key] for key in NEUTRAL if key in config} | new | old
    given: dict[str, Any] = DEFAULTS[kind] | {key: rope[key] for key in ("rope_theta",) if key in rope}
    given |= {key: value for key, value in config.items() if value is not None or key == "q_lora_rank"}
    renamed = KEYS.get(kind, {})
    given |= {name: given[key] for name, keys in renamed.items() for key in reversed(keys) if key in given}
    if kind in IMPLIED:
        given = with_heads(given)
    else:
        if not mtp:
            given["num_nextn_predict_layers"] = 0
        if given["topk_method"] == "greedy":
            given |= {"n_group": 1, "topk_group": 1}  # published models without groups say 0, 1 or null
    needed = {*LATENT, *EXPERTS, "num_key_value_heads", "head_dim"}
    needed |= {field.name for field in fields(ModelConfig) if field.default is MISSING}
    missing = [field.name for field in copied(kind) if field.name not in given and field.name in needed]
    if missing:
        raise UsageError(f"config.json: '{published_key(kind, missing[0])}' is missing")
    try:
        values = {field.name: given[field.name] for field in copied(kind) if field.name in given}
        if kind in IMPLIED:
            dense = {"first_k_dense_replace": values["num_hidden_layers"]} if kind in DENSE else {}
            values |= dense | IMPLIED[kind] | {"kv_lora_rank": None, "num_nextn_predict_layers": 0}
        is_scored = any(name.endswith(SCORED) for name in config.get("architectures") or ())
        model = ModelConfig(**values, rope_scaling=rope_scaling(rope), scalar_head=is_scored)
    except ValueError as error:
        raise UsageError(f"config.json: {error}") from error
    if family(model) != kind:
        raise UsageError(f"config.json: {kind} with {routing(model)}: {FAMILIES}")
    return model


def as_llama(config: dict[str, Any]) -> dict[str, Any]:
    """A Mistral's config.json as Llama's. Raises UsageError when its sliding window is shorter than the context."""
    config = config | {key: value for key, value in MISTRAL.items() if key not in config}
    window, context = config["sliding_window"], config["max_position_embeddings"]
    if window is not None and not (isinstance(window, int) and isinstance(context, int) and window >= context):
        raise UsageError(
            f"config.json: sliding_window is {window!r}, expected null, or the max_position_embeddings ({context!r}) or"
            " more: sliding windows are not implemented"
        )
    return config | {"model_type": "llama"}


def lacking(kind: object) -> str:
    name = str(kind).removesuffix("_text")
    return f": r1jax lacks {LACKING[name]}" if name in LACKING else ""


def published_key(kind: str, name: str) -> str:
    """The key of one of our fields in config.json."""
    return KEYS.get(kind, {}).get(name, (name,))[0]


def routing(c: ModelConfig) -> str:
    return (
        f"scoring_func '{c.scoring_func}', topk_method '{c.topk_method}', norm_topk_prob {c.norm_topk_prob} and"
        f" n_shared_experts {c.n_shared_experts}"
    )


def with_heads(given: dict[str, Any]) -> dict[str, Any]:
    """`given` with the defaults of older models: no grouped queries, and head_dim = hidden_size / heads."""
    width, heads = given.get("hidden_size"), given.get("num_attention_heads")
    head_dim = width // heads if isinstance(width, int) and isinstance(heads, int) and heads > 0 else 0
    return {"num_key_value_heads": heads, "head_dim": head_dim} | given  # ModelConfig refuses a head_dim of 0


def section(config: dict[str, Any], key: str) -> dict[str, Any]:
    value = config.get(key) or {}
    if not isinstance(value, dict):
        raise UsageError(f"config.json: {key} is {value!r}, expected an object or null")
    return value


def rope_scaling(given: dict[str, Any]) -> RopeScalingConfig:
    """The rope_scaling or rope_parameters of config.json, without keys and values that change nothing."""
    kinds = {str(given[key]) for key in ("rope_type", "type") if given.get(key) is not None} or {"default"}
    scaling = {key: value for key, value in given.items() if value is not None and value != NEUTRAL.get(key)}
    for key in ("rope_type", "type", "rope_theta"):
        scaling.pop(key, None)
    if kinds == {"default"}:
        scaling = {key: value for key, value in scaling.items() if value != NEUTRAL_DEFAULT.get(key)}
        if scaling.keys() <= {"original_max_position_embeddings"}:  # read by no default
            return RopeScalingConfig()
    if kinds not in ({"yarn"}, {"llama3"}):
        found = f"type is {' and '.join(sorted(map(repr, kinds)))} with {scaling}"
        raise UsageError(f"config.json: rope_scaling {found}, expected 'yarn', 'llama3', or none")
    (kind,) = kinds
    known, needed = (YARN, YARN[:2]) if kind == "yarn" else (LLAMA3, LLAMA3)
    missing, unknown = set(needed) - scaling.keys(), scaling.keys() - set(known)
    if missing:
        raise UsageError(f"config.json: rope_scaling of type {kind} lacks '{min(missing)}'")
    if unknown:
        key = min(unknown)
        raise UsageError(f"config.json: rope_scaling has '{key}' {scaling[key]!r}, expected only {', '.join(known)}")
    return RopeScalingConfig(**scaling, rope_type=kind)


def family(model: ModelConfig) -> str | None:
    """The `model_type` of a model's published form, or None when it has none."""
    if model.kv_lora_rank is None:
        is_dense = model.first_k_dense_replace == model.num_hidden_layers
        kinds = [kind for kind in IMPLIED if (kind in DENSE) == is_dense]
        return next((kind for kind in kinds if not differences(model, kind)), None)
    if model.n_routed_experts and not model.n_shared_experts:
        return None
    if model.scoring_func == "sigmoid" and model.topk_method == "noaux_tc":
        return "deepseek_v3"
    is_v2 = model.scoring_func == "softmax" and model.topk_method != "noaux_tc" and not model.norm_topk_prob
    return "deepseek_v2" if is_v2 else None


def differences(model: ModelConfig, kind: str) -> list[str]:
    """Where a model with grouped-query attention is not of the family `kind`."""
    fields = [(name, getattr(model, name), expected) for name, expected in IMPLIED[kind].items()]
    return [f"{name} is {value!r}, expected {expected!r}" for name, value, expected in fields if value != expected]


def to_published(model: ModelConfig, *, bos_id: int | None, eos_id: int | None) -> dict[str, Any]:
    """The config.json of a model. Raises UsageError when the model has no published form."""
    kind = family(model)
    if kind is None and model.kv_lora_rank is None:
        if model.first_k_dense_replace < model.num_hidden_layers:
            found = differences(model, "qwen3_moe")[0]
            raise UsageError(f"this model with grouped-query attention and experts has no published form: {found}")
        raise UsageError("a model with both attention_bias and qk_norm has no published form: set one of them to False")
    if kind is None:
        raise UsageError(f"a model with {routing(model)} has no published form: {FAMILIES}")
    # "deepseek_v3" -> "DeepseekV3ForCausalLM"
    architecture = kind.title().replace("_", "") + (SCORED if model.scalar_head else "ForCausalLM")
    config: dict[str, Any] = {"architectures": [architecture], "model_type": kind}
    if model.scalar_head:
        config["id2label"] = {"0": "score"}
    config |= REQUIRED[kind]
    config |= {published_key(kind, field.name): getattr(model, field.name) for field in copied(kind)}
    if model.initializer_range is None:
        del config["initializer_range"]
    if kind not in IMPLIED:
        config["num_key_value_heads"] = model.num_attention_heads
    config |= {"bos_token_id": bos_id, "eos_token_id": eos_id, "torch_dtype": model.param_dtype}
    scaling = model.rope_scaling
    key, names = ("rope_type", LLAMA3) if scaling.rope_type == "llama3" else ("type", YARN)  # as each is published
    parts = {name: value for name, value in asdict(scaling).items() if name in names}
    config["rope_scaling"] = None if scaling.factor == 1 else {key: scaling.rope_type, **parts}
    return config
