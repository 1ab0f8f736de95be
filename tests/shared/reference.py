"""Tiny published checkpoints with random weights, made by transformers: what the model is held against."""

import dataclasses
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from r1jax.config import EngineConfig, SamplingConfig
from r1jax.model.transformer import forward, logits
from r1jax.rollout.engine import RolloutEngine
from r1jax.runs.hugging_face import import_hf
from r1jax.runs.policy import Policy, load_policy
from r1jax.telemetry.progress import Progress
from r1jax.types import TokenBatch
from tests.shared.plain_rollouts import problem

torch = pytest.importorskip("torch", reason="parity with transformers needs torch")
transformers = pytest.importorskip("transformers", reason="parity needs transformers")
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()

LOGITS = 1e-4  # of the logits' standard deviation: float32 sums in two orders

SMALLEST = dict(
    vocab_size=97,
    hidden_size=48,
    intermediate_size=56,
    moe_intermediate_size=24,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=4,
    n_shared_experts=1,
    n_routed_experts=8,
    num_experts_per_tok=3,
    n_group=4,
    topk_group=2,
    routed_scaling_factor=2.5,
    q_lora_rank=24,
    kv_lora_rank=16,
    qk_rope_head_dim=8,
    qk_nope_head_dim=12,
    v_head_dim=10,
    first_k_dense_replace=1,
    num_nextn_predict_layers=0,
    initializer_range=0.2,  # large enough that every part matters, and no two logits are close
    max_position_embeddings=512,
)


def draw(seed: int) -> dict:
    """A configuration: even seeds are V3's, odd ones V2's."""
    rng = np.random.default_rng(seed)

    def pick(*options):
        return options[rng.integers(len(options))]

    heads, layers = pick(1, 2, 3, 6), pick(2, 3, 4)
    config = SMALLEST | dict(
        num_attention_heads=heads,
        num_key_value_heads=heads,
        num_hidden_layers=layers,
        first_k_dense_replace=int(rng.integers(0, layers)),
        q_lora_rank=pick(None, 20, 32),
        kv_lora_rank=pick(12, 18, 32),
        qk_rope_head_dim=pick(4, 8, 16),
        qk_nope_head_dim=pick(8, 14),
        v_head_dim=pick(8, 13),
        n_shared_experts=pick(1, 2),
        tie_word_embeddings=pick(False, True),
        rms_norm_eps=pick(1e-6, 1e-5),
        routed_scaling_factor=pick(1.0, 2.446),
        num_experts_per_tok=pick(1, 2, 4),
    )
    config |= pick(dict(n_group=1, topk_group=1), dict(n_group=4, topk_group=2), dict(n_group=2, topk_group=1))
    config["n_routed_experts"] = pick(8, 12)
    config["rope_parameters"] = {"rope_theta": pick(100.0, 10000.0), "rope_type": "default"}
    if pick(True, True, False):  # so short an original length that YaRN matters within the test's positions
        config["rope_parameters"] |= {"rope_type": "yarn", "factor": pick(4.0, 40.0), "beta_fast": pick(32, 4)}
        config["rope_parameters"] |= {"original_max_position_embeddings": 32, "beta_slow": 1}
        config["rope_parameters"] |= dict(
            zip(("mscale", "mscale_all_dim"), pick((1.0, 1.0), (0.707, 0.5)), strict=True)
        )
    if seed % 2:
        method = "greedy" if config["n_group"] == 1 else "group_limited_greedy"
        return config | {"model_type": "deepseek_v2", "topk_method": method, "norm_topk_prob": False}
    return config | {"model_type": "deepseek_v3", "norm_topk_prob": pick(True, False)}


DENSE = ("qwen2", "qwen3", "llama")


def draw_dense(seed: int) -> dict:
    """A configuration with grouped-query attention: of each family in turn."""
    rng = np.random.default_rng(seed)

    def pick(*options):
        return options[rng.integers(len(options))]

    kind = DENSE[seed % 3]
    heads, key_heads = pick((1, 1), (2, 1), (4, 2), (4, 4), (6, 2), (6, 3), (8, 1))
    layers = pick(2, 3, 4)
    config = dict(
        model_type=kind,
        vocab_size=97,
        hidden_size=heads * pick(6, 8, 12),
        intermediate_size=pick(40, 56),
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=key_heads,
        tie_word_embeddings=pick(False, True),
        rms_norm_eps=pick(1e-6, 1e-5),
        initializer_range=0.2,
        max_position_embeddings=512,
        rope_parameters={"rope_theta": pick(100.0, 10000.0, 1e6), "rope_type": "default"},
    )
    if kind == "qwen3" or pick(False, True):
        config["head_dim"] = pick(4, 10, 16)  # otherwise than the width over the heads
    # So short an original length that scaling matters within the test's positions.
    scaling = {"factor": pick(4.0, 8.0), "original_max_position_embeddings": pick(32, 64)}
    if pick(True, True, False):
        kinds = {
            "yarn": {"rope_type": "yarn", "beta_fast": pick(32, 4), "beta_slow": 1},
            "llama3": {"rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": pick(2.0, 4.0)},
        }
        config["rope_parameters"] |= scaling | kinds["llama3" if kind == "llama" else "yarn"]
    return config


def draw_grouped_moe(seed: int) -> dict:
    """A configuration of Qwen3-MoE: grouped-query attention, and experts in all layers."""
    rng = np.random.default_rng(seed)

    def pick(*options):
        return options[rng.integers(len(options))]

    heads, key_heads = pick((2, 1), (4, 2), (4, 4), (6, 2))
    config = dict(
        model_type="qwen3_moe",
        vocab_size=97,
        hidden_size=heads * pick(8, 12),
        intermediate_size=56,
        moe_intermediate_size=pick(20, 24),
        num_hidden_layers=pick(2, 3),
        num_attention_heads=heads,
        num_key_value_heads=key_heads,
        head_dim=pick(4, 10, 16),
        num_experts=pick(8, 12),
        num_experts_per_tok=pick(1, 2, 4) if seed % 2 else pick(2, 4),  # of one expert the renormalised gate is 1
        norm_topk_prob=seed % 2 == 0,
        decoder_sparse_step=1,
        mlp_only_layers=[],
        tie_word_embeddings=pick(False, True),
        rms_norm_eps=pick(1e-6, 1e-5),
        initializer_range=0.2,
        max_position_embeddings=512,
        rope_parameters={"rope_theta": pick(100.0, 10000.0, 1e6), "rope_type": "default"},
    )
    if pick(False, True):
        yarn = {"rope_type": "yarn", "factor": 4.0, "beta_fast": pick(32, 4), "beta_slow": 1}
        config["rope_parameters"] |= yarn | {"original_max_position_embeddings": 32}
    return config


def transformers_class(kind: str, task: str = "ForCausalLM"):
    """(config class, model class) of a model_type."""
    name = kind.title().replace("_", "")  # "deepseek_v3" -> "DeepseekV3"
    return getattr(transformers, f"{name}Config"), getattr(transformers, f"{name}{task}")


def make_reference(config: dict, seed: int = 0):
    """A transformers model in float32, its routing biases uneven."""
    make_config, make_model = transformers_class(config["model_type"])
    torch.manual_seed(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        reference = make_model(make_config(**{k: v for k, v in config.items() if k != "model_type"})).eval()
    for name, buffer in reference.named_buffers():
        if name.endswith("e_score_correction_bias"):
            buffer.copy_(0.1 * torch.randn_like(buffer))
    for name, weight in reference.named_parameters():
        if "norm" in name:  # ones would hide a norm that is left out
            weight.data.copy_(1 + 0.2 * torch.randn_like(weight))
        if name.endswith(".bias"):  # and so would zeros
            weight.data.copy_(0.5 * torch.randn_like(weight))
    return reference


def imported(source: Path, dest: Path, layout, *, mtp: bool = True, **changes) -> Policy:
    """The checkpoint that `import-hf` makes of `source`, loaded."""
    if not dest.exists():
        import_hf(epath.Path(source), epath.Path(dest), mtp=mtp, progress=Progress())
    policy = load_policy(epath.Path(dest), layout)
    return dataclasses.replace(policy, model=dataclasses.replace(policy.model, **changes))


def token_batch(tokens) -> TokenBatch:
    tokens = jnp.asarray(np.asarray(tokens), jnp.int32)
    return TokenBatch(tokens, jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape), jnp.ones_like(tokens))


def our_logits(policy, tokens) -> np.ndarray:
    run = jax.jit(lambda p, b, x: logits(p, forward(p, b, x, policy.model).hidden_BTD))
    return np.asarray(run(*policy.weights, token_batch(tokens)))


def assert_same_logits(ours: np.ndarray, theirs: np.ndarray) -> None:
    assert np.abs(ours - theirs).max() <= LOGITS * theirs.std()


def greedy_responses(layout, policy, prompts: list[list[int]], new: int, **engine) -> list[list[int]]:
    """Ids of the response to each prompt."""
    sampling = SamplingConfig(max(map(len, prompts)), new, temperature=0.0)
    engine = RolloutEngine(layout, policy.model, None, EngineConfig(**engine), sampling, 1)
    asked = [(problem(i), ids) for i, ids in enumerate(prompts)]
    return [group[0].response_tokens for group in engine.generate(policy.weights, asked, jax.random.key(0))]


def random_tokens(rows: int, length: int, vocabulary: int = 97) -> np.ndarray:
    return np.random.default_rng(0).integers(0, vocabulary, (rows, length))
