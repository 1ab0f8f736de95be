"""Generated tokens per second over slots, context and the length of the queue.

python benchmarks/rollout_costs.py

The model of benchmarks/rollout.py. Decoding alone is timed: rounds in which every slot is full, after a warm-up.
"""

import time

import jax
import numpy as np
from rollout import MODEL, prompt

from r1jax.config import EngineConfig, MeshConfig, SamplingConfig
from r1jax.model.spec import init_params, init_router_bias
from r1jax.parallel.layout import make_layout
from r1jax.rollout.engine import RolloutEngine
from r1jax.sampling.draw import position_key
from r1jax.types import Weights

NEW = 32  # tokens of each response


class TimedEngine(RolloutEngine):
    seconds = 0.0

    def decode(self, *arguments):
        start = time.perf_counter()
        emitted = jax.block_until_ready(super().decode(*arguments))
        self.seconds += time.perf_counter() - start
        return emitted


def decode_speed(layout, weights, slots: int, context: int) -> float:
    """Tokens a second of `slots` samples of one prompt, which ends `NEW` tokens before the context does."""
    engine = TimedEngine(layout, MODEL, None, EngineConfig(slots=slots), SamplingConfig(context - NEW, NEW), slots)
    ids = np.random.default_rng(0).integers(0, MODEL.vocab_size, context - NEW).tolist()
    for seed in (0, 1):
        engine.seconds, engine.counts.tokens = 0.0, 0
        engine.generate(weights, [prompt(0, ids)], position_key(seed))
    return engine.counts.tokens / engine.seconds


def queue_speed(layout, weights, prompts: int) -> tuple[float, float]:
    """Tokens a second of everything, and milliseconds of host work for each sample."""
    engine = TimedEngine(layout, MODEL, None, EngineConfig(slots=32), SamplingConfig(64, NEW), 2)
    rng = np.random.default_rng(0)
    asked = [prompt(i, rng.integers(0, MODEL.vocab_size, 64).tolist()) for i in range(prompts)]
    for some in (asked[:32], asked):
        engine.seconds, engine.counts.tokens = 0.0, 0
        start = time.perf_counter()
        engine.generate(weights, some, position_key(0))
        seconds = time.perf_counter() - start
    return engine.counts.tokens / seconds, 1000 * (seconds - engine.seconds) / (2 * prompts)


def main() -> None:
    layout = make_layout(MeshConfig(data=1), devices=jax.local_devices()[:1])
    weights = Weights(init_params(jax.random.key(0), MODEL), init_router_bias(MODEL))
    contexts = (256, 1024, 4096)
    print("| slots |", " | ".join(f"context {c:,}" for c in contexts), "|")
    print("| --- |", " | ".join("---" for _ in contexts), "|")
    for slots in (8, 32, 128, 512):
        print(f"| {slots} |", end="", flush=True)
        for context in contexts:
            print(f" {decode_speed(layout, weights, slots, context):,.0f} |", end="", flush=True)
        print()
    print("\n| queued prompts | tokens a second | prefill and host, ms for each sample |\n| --- | --- | --- |")
    for prompts in (32, 128, 512, 1024):
        speed, host = queue_speed(layout, weights, prompts)
        print(f"| {prompts:,} | {speed:,.0f} | {host:.1f} |", flush=True)


if __name__ == "__main__":
    main()
