"""config.json of DeepSeek-V2 and V3 models, as published and as transformers writes it, to `ModelConfig` and back."""

from dataclasses import MISSING, asdict, fields
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
FAMILIES = "DeepSeek-V3 is sigmoid and noaux_tc; V2 is softmax, greedy or group_limited_greedy, without norm_topk_prob"
OURS = ("rope_scaling", "scalar_head", "param_dtype", "dtype", "experts", "attention")  # not copied by name

SCORED = "ForSequenceClassification"  # what transformers calls a reward model: one label, a linear head


def from_published(config: dict[str, Any], *, mtp: bool) -> ModelConfig:
    """Raises UsageError, with one line that names the key, for anything that this model can't be."""
    kind = config.get("model_type")
    if kind not in list(DEFAULTS):
        raise UsageError(f"config.json: model_type is {kind!r}, expected one of {', '.join(DEFAULTS)}")
    for key, only in REQUIRED.items():
        if config.get(key, only) != only:
            raise UsageError(f"config.json: {key} is {config[key]!r}, expected {only!r}")
    new, old = (section(config, key) for key in ("rope_parameters", "rope_scaling"))  # of transformers 5; as published
    given: dict[str, Any] = DEFAULTS[kind] | {key: new[key] for key in ("rope_theta",) if key in new}
    given |= {key: value for key, value in config.items() if value is not None or key == "q_lora_rank"}
    if not mtp:
        given["num_nextn_predict_layers"] = 0
    if given["topk_method"] == "greedy":
        given |= {"n_group": 1, "topk_group": 1}  # published models without groups say 0, 1 or null
    ours = [field for field in fields(ModelConfig) if field.name not in OURS]
    missing = [field.name for field in ours if field.name not in given and field.default is MISSING]
    if missing:
        raise UsageError(f"config.json: no '{missing[0]}'")
    try:
        values = {field.name: given[field.name] for field in ours if field.name in given}
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
    if kinds != {"yarn"}:
        found = " and ".join(sorted(repr(kind) for kind in kinds))
        raise UsageError(f"config.json: rope_scaling type is {found} with {sorted(scaling)}, expected 'yarn', or none")
    missing = {"factor", "original_max_position_embeddings"} - scaling.keys()
    unknown = scaling.keys() - {field.name for field in fields(RopeScalingConfig)}
    if missing or unknown:
        wrong = f"no '{min(missing)}'" if missing else f"'{min(unknown)}', which this model doesn't know"
        raise UsageError(f"config.json: rope_scaling has {wrong}")
    return RopeScalingConfig(**{name: value for name, value in scaling.items() if value is not None})


def family(model: ModelConfig) -> str | None:
    """The published architecture that this model is; None: neither."""
    if model.scoring_func == "sigmoid" and model.topk_method == "noaux_tc":
        return "deepseek_v3"
    is_v2 = model.scoring_func == "softmax" and model.topk_method != "noaux_tc" and not model.norm_topk_prob
    return "deepseek_v2" if is_v2 else None


def to_published(model: ModelConfig, *, bos_id: int | None, eos_id: int | None) -> dict[str, Any]:
    """Raises UsageError for a model that is neither of the published architectures."""
    kind = family(model)
    if kind is None:
        raise UsageError(
            f"a model with scoring_func '{model.scoring_func}', topk_method '{model.topk_method}' and norm_topk_prob"
            f" {model.norm_topk_prob} has no published form: {FAMILIES}"
        )
    name = {"deepseek_v3": "DeepseekV3", "deepseek_v2": "DeepseekV2"}[kind]
    architecture = name + (SCORED if model.scalar_head else "ForCausalLM")
    config: dict[str, Any] = {"architectures": [architecture], "model_type": kind}
    if model.scalar_head:
        config["id2label"] = {"0": "score"}
    config |= {name: value for name, value in asdict(model).items() if name not in OURS}
    if model.initializer_range is None:
        del config["initializer_range"]
    config |= {"num_key_value_heads": model.num_attention_heads, "hidden_act": "silu", "attention_bias": False}
    config |= {"moe_layer_freq": 1, "bos_token_id": bos_id, "eos_token_id": eos_id, "torch_dtype": model.param_dtype}
    yarn = model.rope_scaling
    config["rope_scaling"] = None if yarn.factor == 1 else {"type": "yarn", **asdict(yarn)}
    return config
