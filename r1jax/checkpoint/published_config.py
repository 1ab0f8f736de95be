"""config.json of DeepSeek-V2 and V3 models, as published and as transformers writes it, to `ModelConfig` and back."""

from dataclasses import asdict, fields
from typing import Any

from r1jax.config import ModelConfig, RopeScalingConfig
from r1jax.errors import UsageError

# What may be left out of config.json, or is null in it.
ANY = {"n_group": 1, "topk_group": 1, "num_nextn_predict_layers": 0, "rope_theta": 10000.0}
DEFAULTS = {
    "deepseek_v2": ANY | {"scoring_func": "softmax", "topk_method": "greedy", "norm_topk_prob": False},
    "deepseek_v3": ANY | {"scoring_func": "sigmoid", "topk_method": "noaux_tc", "norm_topk_prob": True},
}
# Keys that change the computation, with the only value that this model has.
REQUIRED = {"hidden_act": "silu", "attention_bias": False, "moe_layer_freq": 1, "rope_interleave": True}
OURS = ("rope_scaling", "param_dtype", "dtype", "experts", "attention")  # not copied by name


def from_published(config: dict[str, Any], *, mtp: bool) -> ModelConfig:
    """Raises UsageError, with one line that names the key, for anything that this model can't be."""
    kind = config.get("model_type")
    if kind not in DEFAULTS:
        raise UsageError(f"config.json: model_type is '{kind}', expected one of {', '.join(DEFAULTS)}")
    for key, only in REQUIRED.items():
        if config.get(key, only) != only:
            raise UsageError(f"config.json: {key} is {config[key]!r}, expected {only!r}")
    rope = config.get("rope_parameters") or {}  # of transformers 5
    given: dict[str, Any] = DEFAULTS[kind] | {key: rope[key] for key in ("rope_theta",) if key in rope}
    given |= {key: value for key, value in config.items() if value is not None or key == "q_lora_rank"}
    if not mtp:
        given["num_nextn_predict_layers"] = 0
    if given["topk_method"] == "greedy":
        given |= {"n_group": 1, "topk_group": 1}  # published models without groups say 0, 1 or null
    names = [field.name for field in fields(ModelConfig) if field.name not in OURS]
    missing = [name for name in names if name not in given and not has_default(name)]
    if missing:
        raise UsageError(f"config.json: no '{missing[0]}'")
    try:
        return ModelConfig(
            **{name: given[name] for name in names if name in given},
            rope_scaling=rope_scaling(config.get("rope_scaling") or rope),
        )
    except (ValueError, TypeError) as error:
        raise UsageError(f"config.json: {error}") from error


def has_default(name: str) -> bool:
    return name in ("tie_word_embeddings", "max_position_embeddings", "rms_norm_eps", "initializer_range")


def rope_scaling(given: dict[str, Any]) -> RopeScalingConfig:
    kind = given.get("rope_type", given.get("type", "default"))
    if kind == "default":
        return RopeScalingConfig()
    if kind != "yarn":
        raise UsageError(f"config.json: rope_scaling type is '{kind}', expected 'yarn', or no rope_scaling")
    names = {field.name for field in fields(RopeScalingConfig)}
    missing = {"factor", "original_max_position_embeddings"} - given.keys()
    if missing:
        raise UsageError(f"config.json: rope_scaling has no '{min(missing)}'")
    return RopeScalingConfig(**{name: value for name, value in given.items() if name in names and value is not None})


def to_published(model: ModelConfig, *, bos_id: int | None, eos_id: int | None) -> dict[str, Any]:
    """Raises UsageError for a model that is neither of the published architectures."""
    kind = "deepseek_v3" if model.scoring_func == "sigmoid" else "deepseek_v2"
    is_v3 = kind == "deepseek_v3"
    if is_v3 != (model.topk_method == "noaux_tc") or (not is_v3 and model.norm_topk_prob):
        raise UsageError(
            f"a model with scoring_func '{model.scoring_func}', topk_method '{model.topk_method}' and norm_topk_prob"
            f" {model.norm_topk_prob} is neither DeepSeek-V2 (softmax, no norm_topk_prob) nor DeepSeek-V3 (sigmoid,"
            " noaux_tc): there is no published form of it"
        )
    architecture = "DeepseekV3ForCausalLM" if is_v3 else "DeepseekV2ForCausalLM"
    config: dict[str, Any] = {"architectures": [architecture], "model_type": kind}
    config |= {name: value for name, value in asdict(model).items() if name not in OURS}
    if model.initializer_range is None:
        del config["initializer_range"]
    config |= {"num_key_value_heads": model.num_attention_heads, "hidden_act": "silu", "attention_bias": False}
    config |= {"moe_layer_freq": 1, "bos_token_id": bos_id, "eos_token_id": eos_id, "torch_dtype": model.param_dtype}
    yarn = model.rope_scaling
    config["rope_scaling"] = None if yarn.factor == 1 else {"type": "yarn", **asdict(yarn)}
    return config
