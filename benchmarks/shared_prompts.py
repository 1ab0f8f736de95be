"""Compares an update that runs a prompt once for its group with one that runs it once for each sample.

python benchmarks/shared_prompts.py

SmolLM2-135M's shape with random float32 weights; prompts of 150 tokens with 8 samples of 64 behind each. A microbatch
is a group in both. Each variant has a process of its own; its peak resident memory is given without its weights,
moments and reference.
"""

import json
import resource
import subprocess
import sys
import time

PROMPTS, GROUP, PROMPT, NEW, UPDATES = 2, 8, 150, 64, 3
SHAPE = (
    "ModelConfig.vocab_size=49152", "ModelConfig.hidden_size=576", "ModelConfig.num_hidden_layers=30",
    "ModelConfig.first_k_dense_replace=30", "ModelConfig.intermediate_size=1536", "ModelConfig.num_attention_heads=9",
    "ModelConfig.num_key_value_heads=3", "ModelConfig.max_position_embeddings=8192",
    "RopeScalingConfig.rope_type='yarn'", "RopeScalingConfig.factor=1.0", "ModelConfig.param_dtype='float32'",
    "ModelConfig.dtype='float32'",
)  # fmt: skip
ROLLOUT = (
    f"RLConfig.prompts_per_step={PROMPTS}", f"RLConfig.group_size={GROUP}", f"RLConfig.num_prompts={PROMPTS}",
    f"SamplingConfig.max_prompt_tokens={PROMPT}", f"SamplingConfig.max_new_tokens={NEW}", "RLConfig.row_tokens=None",
)  # fmt: skip
VARIANTS = {
    "a row for each sample": ("RLConfig.share_prompts=False", "RLConfig.microbatch_rows=8"),
    "a row for each prompt": ("RLConfig.share_prompts=True", "RLConfig.microbatch_rows=1"),
}


def measure(variant: str) -> None:
    """Prints seconds of each update, and the peak in GiB, as JSON."""
    import jax
    import numpy as np

    from r1jax.cli.devices import start_jax
    from r1jax.cli.experiments import gin_path, load_experiment
    from r1jax.cli.gin_config import read_config
    from r1jax.config import MeshConfig
    from r1jax.parallel import programs
    from r1jax.parallel.layout import make_layout
    from r1jax.parallel.transfers import snapshot
    from r1jax.sampling.draw import position_key
    from r1jax.stages.rl import Trainer
    from r1jax.types import Problem, RLState, Sample

    start_jax()
    files = [gin_path(file) for file in ("model/llama3_2_1b.gin", "algorithm/grpo.gin", "scale/cpu.gin")]
    bindings = [*SHAPE, *ROLLOUT, *VARIANTS[variant]]
    config = read_config(load_experiment("r1_zero").Config, files, bindings)
    layout = make_layout(MeshConfig(data=1), devices=jax.local_devices()[:1])
    weights = programs.make_init_weights(layout, config.model)(position_key(0))
    start = programs.make_start_training(layout, config.model, config.rl.optimizer)
    state = RLState(start(snapshot(weights)), weights, np.int32(0))
    trainer, rng, samples = Trainer(layout, config.model, config.rl), np.random.default_rng(0), []
    n = PROMPT + NEW
    for group in range(PROMPTS):
        prompt = rng.integers(0, config.model.vocab_size, PROMPT).tolist()
        for index in range(GROUP):
            response = rng.integers(0, config.model.vocab_size, NEW).tolist()
            mask, zeros = [0] * PROMPT + [1] * NEW, [0.0] * n
            advantages = np.full(n, rng.normal())
            samples.append(
                Sample(Problem(group, "", "", "en"), group, index, [*prompt, *response], mask, zeros, advantages)
            )
    jax.block_until_ready(state)
    held, seconds = sum(x.nbytes for x in jax.tree.leaves(state)), []
    for step in range(UPDATES):
        begin = time.perf_counter()
        packed, _ = trainer.add_logprobs(state, [samples])
        state, metrics = trainer.update(state, packed, step + 1, lambda: None)
        jax.block_until_ready(state)
        seconds.append(time.perf_counter() - begin)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 2**10
    loss = {name: metrics[name].value() for name in ("loss", "grad_norm")}
    print(json.dumps({"seconds": seconds[1:], "gib": (peak - held) / 2**30} | loss))


def main() -> None:
    results = {}
    for variant in VARIANTS:
        done = subprocess.run([sys.executable, __file__, variant], stdout=subprocess.PIPE, text=True, check=True)
        results[variant] = json.loads(done.stdout.splitlines()[-1])
    plain, shared = results.values()
    print("| rows | seconds of an update | peak memory, GiB | loss of the last update |")
    print("| --- | --- | --- | --- |")
    for variant, found in results.items():
        print(f"| {variant} | {min(found['seconds']):.1f} | {found['gib']:.2f} | {found['loss']:.6f} |")
    print(f"ratio update {min(plain['seconds']) / min(shared['seconds']):.2f}")
    print(f"ratio memory {plain['gib'] / shared['gib']:.2f}")


if __name__ == "__main__":
    measure(sys.argv[1]) if len(sys.argv) > 1 else main()
