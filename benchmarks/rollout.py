"""Generated tokens per second: the rollout engine, the same engine without refilling, and transformers.generate.

python benchmarks/rollout.py        # transformers and torch are needed for its column only

All three draw 8 samples for each of 16 prompts from the same weights, after a warm-up, in one run. Answer lengths are
heavy-tailed: most answers are short, and some reach the limit.
"""

import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from etils import epath

from r1jax.checkpoint.store import CheckpointStore, make_metadata, policy_item
from r1jax.config import EngineConfig, MeshConfig, ModelConfig, SamplingConfig
from r1jax.model.spec import init_params, init_router_bias
from r1jax.parallel.layout import Layout, make_layout
from r1jax.rollout.engine import Prompt, RolloutEngine
from r1jax.runs.hugging_face import export_hf
from r1jax.sampling.draw import position_key
from r1jax.telemetry.progress import Progress
from r1jax.types import Problem, Weights

PROMPTS, SAMPLES, PROMPT, NEW = 16, 8, 64, 256
SLOTS = 32

# A DeepSeek-V3 shape of 16 million parameters.
MODEL = ModelConfig(
    vocab_size=4096, hidden_size=256, num_hidden_layers=6, first_k_dense_replace=1, intermediate_size=1024,
    moe_intermediate_size=192, n_routed_experts=16, n_shared_experts=1, num_experts_per_tok=4, n_group=1, topk_group=1,
    norm_topk_prob=True, routed_scaling_factor=2.5, num_attention_heads=8, q_lora_rank=128, kv_lora_rank=128,
    qk_nope_head_dim=32, qk_rope_head_dim=16, v_head_dim=32, num_nextn_predict_layers=0, initializer_range=0.02,
    experts="grouped",
)  # fmt: skip


# One token in 60 ends an answer: the mean is under 60 tokens, the longest of 128 answers reaches the limit.
STOP_IDS = tuple(range(MODEL.vocab_size // 60))


def prompt(i: int, ids: list[int]) -> Prompt:
    return Problem(i, "", "", "en"), ids


def ours(layout: Layout, weights: Weights, prompts: list[Prompt], slots: int, at_once: int) -> tuple[float, int, float]:
    """Tokens a second, tokens, and the share of slots' steps that gave one, `at_once` prompts at a time, warmed up."""
    config = EngineConfig(slots=slots, steps_per_round=16, prefill_rows=at_once)
    sampling = SamplingConfig(PROMPT, NEW, stop_ids=STOP_IDS)
    engine = RolloutEngine(layout, MODEL, None, config, sampling, SAMPLES)
    for seed in (0, 1):
        start, tokens, steps = time.perf_counter(), engine.counts.tokens, engine.counts.model_steps
        for first in range(0, len(prompts), at_once):
            engine.generate(weights, prompts[first : first + at_once], position_key(seed))
        seconds = time.perf_counter() - start
    tokens, steps = engine.counts.tokens - tokens, engine.counts.model_steps - steps
    return tokens / seconds, tokens, tokens / (steps * slots)


def exported(model: ModelConfig, weights: Weights) -> Any:
    """The model in transformers, by way of an export."""
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as home:
        store = CheckpointStore(epath.Path(home) / "checkpoints")
        store.save(1, policy_item(*weights), {"step": np.int32(1)}, {}, make_metadata(model, None))
        store.close()
        export_hf(epath.Path(home), epath.Path(home) / "hf", progress=Progress())
        return transformers.AutoModelForCausalLM.from_pretrained(Path(home) / "hf", dtype=torch.float32).eval()


def theirs(weights: Weights, prompts: list[Prompt]) -> tuple[float, int]:
    """The same of transformers.generate: one batch of all samples, with its cache."""
    import torch

    model = exported(MODEL, weights)
    ids = torch.tensor([tokens for _, tokens in prompts])
    for seed, new in ((0, 8), (1, NEW)):
        torch.manual_seed(seed)
        start = time.perf_counter()
        out = model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=True, temperature=1.0, top_k=0, max_new_tokens=new,
            num_return_sequences=SAMPLES, eos_token_id=list(STOP_IDS), pad_token_id=0,
        )  # fmt: skip
        seconds = time.perf_counter() - start
    is_stop = torch.isin(out[:, PROMPT:], torch.tensor(STOP_IDS))
    ended = is_stop.int().argmax(dim=1) + 1
    lengths = torch.where(is_stop.any(dim=1), ended, torch.tensor(out.shape[1] - PROMPT))
    return int(lengths.sum()) / seconds, int(lengths.sum())


def main() -> None:
    layout = make_layout(MeshConfig(data=1), devices=jax.local_devices()[:1])
    weights = Weights(init_params(jax.random.key(0), MODEL), init_router_bias(MODEL))
    rng = np.random.default_rng(0)
    prompts = [prompt(i, rng.integers(100, MODEL.vocab_size, PROMPT).tolist()) for i in range(PROMPTS)]
    print(f"{PROMPTS} prompts of {PROMPT} tokens x {SAMPLES} samples of at most {NEW}\n")
    print("| what | slots | tokens | tokens a second | slots in use |")
    print("| --- | --- | --- | --- | --- |")
    for slots in (32, 64, 128):
        speed, tokens, used = ours(layout, weights, prompts, slots, len(prompts))
        print(f"| engine | {slots} | {tokens:,} | {speed:,.0f} | {used:.2f} |", flush=True)
        speed, tokens, used = ours(layout, weights, prompts, slots, slots // SAMPLES)
        print(f"| static batches | {slots} | {tokens:,} | {speed:,.0f} | {used:.2f} |", flush=True)
    speed, tokens = theirs(weights, prompts)
    print(f"| transformers.generate | {PROMPTS * SAMPLES} | {tokens:,} | {speed:,.0f} | |", flush=True)


if __name__ == "__main__":
    main()
