"""Training, decoding and GRPO steps of three models on this machine's accelerator, as shares of what it can do.

python benchmarks/accelerator.py          # at most ten minutes; needs no network
python benchmarks/accelerator.py --tiny   # tries the script itself, on a CPU too: tiny models, no limit of time

Each measurement is a process of its own: what fails, by running out of memory say, costs one row. Random weights in
bfloat16. `transformers` and torch stand beside r1jax where they are installed and see the accelerator.
"""

import argparse
import ast
import functools
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from r1jax.config import LATENT, ModelConfig  # noqa: E402
from r1jax.parallel.chips import GPUS  # noqa: E402

TOTAL_SECONDS, MOST_SECONDS = 570, 120  # of everything, and of one measurement
MEASURE_SECONDS = 6  # how long a measurement is repeated after its warm-up


@dataclass(frozen=True)
class Sizes:
    """Rows of a training step and their tokens; slots, group size and lengths of rollouts."""

    rows: int
    tokens: int
    remat: str
    slots: int
    group_size: int
    prompt_tokens: int
    new_tokens: int


DENSE = ModelConfig(
    vocab_size=49152, hidden_size=576, num_hidden_layers=30, first_k_dense_replace=30, intermediate_size=1536,
    num_attention_heads=9, kv_lora_rank=None, num_nextn_predict_layers=0, num_key_value_heads=3, head_dim=64,
    tie_word_embeddings=True, rope_theta=100000.0, initializer_range=0.02, param_dtype="bfloat16", dtype="bfloat16",
)  # fmt: skip
QWEN = replace(
    DENSE, vocab_size=151936, hidden_size=2048, num_hidden_layers=36, first_k_dense_replace=36, intermediate_size=11008,
    num_attention_heads=16, num_key_value_heads=2, head_dim=128, attention_bias=True, rope_theta=1000000.0,
)  # fmt: skip
SIZES = {
    "small": Sizes(32, 2048, "none", 256, 16, 256, 256),
    "smollm2": Sizes(16, 2048, "none", 256, 16, 256, 256),
    "3b": Sizes(8, 2048, "full", 128, 8, 256, 256),
}
TINY = Sizes(2, 64, "none", 8, 4, 16, 8)


def read_small() -> ModelConfig:
    """gin_configs/model/small.gin without its module for drafts, read without gin, which the machine may lack."""
    text = (ROOT / "gin_configs" / "model" / "small.gin").read_text()
    bound = dict(re.findall(r"^ModelConfig\.(\w+) = ([^#\n]+)", text, re.MULTILINE))
    model = ModelConfig(**{name: ast.literal_eval(value.strip()) for name, value in bound.items()})
    return replace(model, num_nextn_predict_layers=0, param_dtype="bfloat16")


def make_model(name: str, tiny: bool) -> ModelConfig:
    model = {"small": read_small, "smollm2": lambda: DENSE, "3b": lambda: QWEN}[name]()
    if not tiny:
        return replace(model, remat=SIZES[name].remat)
    small = dict(vocab_size=512, hidden_size=64, num_hidden_layers=2, intermediate_size=128, num_attention_heads=4)
    if model.kv_lora_rank is None:
        return replace(model, **small, first_k_dense_replace=2, num_key_value_heads=2, head_dim=16)
    return replace(model, **small, moe_intermediate_size=32, **dict.fromkeys(LATENT, 16))


def seconds_of(run: Callable[[], Any]) -> float:
    """The median time of some runs, after one that compiles."""
    run()
    times: list[float] = []
    while len(times) < 2 or sum(times) < MEASURE_SECONDS:
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return median(times)


def weight_bytes(model: ModelConfig) -> int:
    """What a step of decoding reads of the weights: in a large batch each expert has a token."""
    from r1jax.model.spec import count_params

    embedding = 0 if model.tie_word_embeddings else model.vocab_size * model.hidden_size
    return 2 * (sum(count_params(model).values()) - embedding)


def decoding(model: ModelConfig, sizes: Sizes, seconds: float) -> dict[str, Any]:
    """Tokens a second of a whole rollout, prefill included, and the bytes a second that its decoding has to read."""
    if model.kv_lora_rank is None:
        numbers = 2 * model.num_key_value_heads * model.head_dim
    else:
        numbers = model.kv_lora_rank + model.qk_rope_head_dim
    context = sizes.prompt_tokens + sizes.new_tokens / 2
    cache = 2 * sizes.slots * context * model.num_hidden_layers * numbers
    read = sizes.new_tokens * (weight_bytes(model) + cache)
    return {"seconds": seconds, "tokens": sizes.slots * sizes.new_tokens / seconds, "bytes": read / seconds}


def training(model: ModelConfig, sizes: Sizes, seconds: float) -> dict[str, Any]:
    """Tokens a second, and the model's FLOP/s, without what is recomputed."""
    from r1jax.telemetry.flops import Work, model_flops

    tokens = sizes.rows * sizes.tokens
    flops = model_flops(model, Work(tokens, (sizes.tokens + 1) / 2, 3))
    return {"seconds": seconds, "tokens": tokens / seconds, "flops": flops / seconds}


def random_ids(model: ModelConfig, rows: int, tokens: int):
    import numpy as np

    return np.random.default_rng(0).integers(1, model.vocab_size, (rows, tokens)).astype(np.int32)


def train_r1jax(model: ModelConfig, sizes: Sizes) -> dict[str, Any]:
    import jax
    import numpy as np

    from r1jax.config import MeshConfig, OptimizerConfig
    from r1jax.objectives.language_model import LossTerms
    from r1jax.parallel import programs
    from r1jax.parallel.layout import make_layout
    from r1jax.types import TokenBatch

    layout = make_layout(MeshConfig(data=1), devices=jax.devices()[:1])
    optimizer = OptimizerConfig(1e-5, mtp="off", master_weights=False)  # as torch's, which updates bfloat16 weights
    weights = programs.make_init_weights(layout, model)(jax.random.key(0))
    state = programs.make_start_training(layout, model, optimizer)(weights)
    step = programs.make_language_model_step(layout, model, optimizer, LossTerms("off", 0.0, 0.0))
    ids = random_ids(model, sizes.rows, sizes.tokens)
    batch = layout.put_batch(TokenBatch(ids, np.arange(sizes.tokens) + 0 * ids, np.ones_like(ids)))

    def run():
        nonlocal state
        state, _ = jax.block_until_ready(step(state, batch, np.float32(1e-5)))

    return training(model, sizes, seconds_of(run))


def decode_r1jax(model: ModelConfig, sizes: Sizes) -> dict[str, Any]:
    import jax

    from r1jax.config import EngineConfig, MeshConfig, SamplingConfig
    from r1jax.parallel import programs
    from r1jax.parallel.layout import make_layout
    from r1jax.rollout.engine import RolloutEngine
    from r1jax.types import Problem

    layout, prompts = make_layout(MeshConfig(data=1), devices=jax.devices()[:1]), sizes.slots // sizes.group_size
    sampling, engine = SamplingConfig(sizes.prompt_tokens, sizes.new_tokens), EngineConfig(sizes.slots)
    rollouts = RolloutEngine(layout, model, None, engine, sampling, sizes.group_size)
    weights = programs.make_init_weights(layout, model)(jax.random.key(0))
    ids = random_ids(model, prompts, sizes.prompt_tokens).tolist()
    asked = [(Problem(i, "", "", "en"), one) for i, one in enumerate(ids)]
    return decoding(model, sizes, seconds_of(lambda: rollouts.generate(weights, asked, jax.random.key(1))))


def grpo_r1jax(model: ModelConfig, sizes: Sizes) -> dict[str, Any]:
    """Steps of as many samples as there are slots, with KL against a reference."""
    import jax
    import numpy as np
    from grpo_step_r1jax import make_config

    from r1jax.cli.bench import time_steps
    from r1jax.config import MeshConfig
    from r1jax.parallel import programs
    from r1jax.parallel.layout import make_layout
    from r1jax.parallel.transfers import snapshot
    from r1jax.stages.rl import Trainer
    from r1jax.types import RLState

    ids = random_ids(model, sizes.slots // sizes.group_size, sizes.prompt_tokens).tolist()
    job = dict(prompts=ids, group_size=sizes.group_size, new_tokens=sizes.new_tokens, slots=sizes.slots, steps=3)
    config = make_config(job | {"rl": {"share_prompts": True}})
    trainer = Trainer(make_layout(MeshConfig(data=1), devices=jax.devices()[:1]), model, config)
    weights = programs.make_init_weights(trainer.layout, model)(jax.random.key(0))
    train = programs.make_start_training(trainer.layout, model, config.optimizer)(snapshot(weights))
    steps = list(time_steps(trainer, RLState(train, weights, np.int32(0)), ids))[1:]
    phases = {name: median(step[name] for step in steps) for name in ("generation", "reference", "update")}
    seconds = median(step["seconds"] for step in steps)
    note = ", ".join(f"{name} {value:.2f} s" for name, value in phases.items())
    return {"seconds": seconds, "tokens": steps[0]["tokens"] / seconds, "note": note}


@functools.cache
def torch_model(model: ModelConfig):
    """transformers' model of the same shape, on the accelerator. It takes the model's family from the config."""
    import torch
    import transformers

    from r1jax.checkpoint.published_config import to_published

    device = "cuda" if torch.cuda.is_available() else "cpu"
    config = to_published(model, bos_id=None, eos_id=None)
    config = transformers.AutoConfig.for_model(config.pop("model_type"), **config)
    with torch.device(device):
        made = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    return made, device


def train_torch(model: ModelConfig, sizes: Sizes) -> dict[str, Any]:
    import torch

    made, device = torch_model(model)
    made.train()
    if sizes.remat != "none":
        made.gradient_checkpointing_enable()
    optimizer = torch.optim.AdamW(made.parameters(), lr=1e-5, fused=device == "cuda")
    ids = torch.tensor(random_ids(model, sizes.rows, sizes.tokens), dtype=torch.long, device=device)

    def run():
        made(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if device == "cuda":
            torch.cuda.synchronize()

    return training(model, sizes, seconds_of(run))


def decode_torch(model: ModelConfig, sizes: Sizes) -> dict[str, Any]:
    import torch

    made, device = torch_model(model)
    made.eval()
    ids = random_ids(model, sizes.slots // sizes.group_size, sizes.prompt_tokens).repeat(sizes.group_size, axis=0)
    prompts = torch.tensor(ids, dtype=torch.long, device=device)
    limits = dict(min_new_tokens=sizes.new_tokens, max_new_tokens=sizes.new_tokens, do_sample=True, top_k=0)

    def run():
        made.generate(prompts, attention_mask=torch.ones_like(prompts), pad_token_id=0, **limits).cpu()

    with torch.inference_mode():
        return decoding(model, sizes, seconds_of(run))


MEASUREMENTS = {
    ("train", "r1jax"): train_r1jax,
    ("decode", "r1jax"): decode_r1jax,
    ("grpo", "r1jax"): grpo_r1jax,
    ("train", "torch"): train_torch,
    ("decode", "torch"): decode_torch,
}


def measure(what: str, framework: str, name: str, tiny: bool) -> None:
    """Prints a measurement as JSON. Runs in a process of its own."""
    model, sizes = make_model(name, tiny), TINY if tiny else SIZES[name]
    result = MEASUREMENTS[what, framework](model, sizes)
    if framework == "r1jax":
        import jax

        device = jax.devices()[0]
        statistics = device.memory_stats() or {}
        result |= {"device": device.device_kind, "peak": statistics.get("peak_bytes_in_use")}
        result["version"] = f"jax {jax.__version__}"
    else:
        import torch

        cuda = torch.cuda.is_available()
        result |= {"device": torch.cuda.get_device_name() if cuda else "cpu"}
        result |= {"peak": torch.cuda.max_memory_allocated() if cuda else None, "version": f"torch {torch.__version__}"}
    print(json.dumps(result))


def run_measurement(arguments: list[str], seconds: float | None, cache: str) -> dict[str, Any]:
    """The result of `measure` in another process, which may take some seconds, or its failure as a note."""
    # JAX takes three quarters of the memory by default. Programs that two measurements share are compiled once.
    environment = {"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.92", "JAX_COMPILATION_CACHE_DIR": cache, "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, __file__, "--measure", *arguments]
    try:
        done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, timeout=seconds)
    except subprocess.TimeoutExpired:
        return {"note": f"stopped after {seconds:.0f} s"}
    if done.returncode:
        return {"note": f"failed: {(done.stderr.strip().splitlines() or ['?'])[-1][:120]}".replace("|", "/")}
    return json.loads(done.stdout.splitlines()[-1])


def row(labels: list[str], result: dict[str, Any]) -> str:
    limits = next((limit for name, limit in GPUS.items() if name in result.get("device", "")), (None, None))

    def show(name: str, form: str, scale: float | None = 1) -> str:
        return format(result[name] / scale, form) if result.get(name) and scale else ""

    numbers = [
        show("seconds", ".3f"),
        show("tokens", ",.0f"),
        show("flops", ".1%", limits[0]),
        show("bytes", ".1%", limits[1]),
        show("peak", ".1f", 2**30),
    ]
    return "| " + " | ".join([*labels, *numbers, result.get("version", ""), result.get("note", "")]) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--tiny", action="store_true", help="tiny models, to try the script")
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        return measure(*args.measure, args.tiny)
    begin, results = time.monotonic(), {}
    print(
        "| step | framework | model | seconds | tokens/s | of peak FLOP/s | of bandwidth | peak GiB | version | note |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as cache:
        for labels in [[*key, name] for key in MEASUREMENTS for name in SIZES]:
            left = TOTAL_SECONDS - (time.monotonic() - begin)
            arguments = [*labels, *(["--tiny"] if args.tiny else [])]
            result = (
                run_measurement(arguments, min(left, MOST_SECONDS), cache) if left > 20 else {"note": "no time left"}
            )
            results[tuple(labels)] = result
            print(row(labels, result), flush=True)
    device = next((result["device"] for result in results.values() if "device" in result), "no device")
    limits = next((limit for name, limit in GPUS.items() if name in device), None)
    peaks = f"{limits[0] / 1e12:.0f} TFLOP/s in bfloat16, {limits[1] / 1e12:.2f} TB/s" if limits else "limits unknown"
    print(f"\n{device}: {peaks}. Python {sys.version.split()[0]}, {time.monotonic() - begin:.0f} s in all.")
    return None


if __name__ == "__main__":
    main()
