"""Seconds of an update on one rollout, by the shape of its microbatches, side by side.

python benchmarks/packing.py

The demo's model and rollout: 256 samples, lengths as they are halfway through its training. Shapes take turns.
"""

import time
from dataclasses import replace
from statistics import median

import jax
import numpy as np

from r1jax.cli.experiments import gin_path, load_experiment
from r1jax.cli.gin_config import read_config
from r1jax.config import MeshConfig, RLConfig
from r1jax.parallel import programs
from r1jax.parallel.layout import make_layout
from r1jax.parallel.transfers import snapshot
from r1jax.sampling.draw import position_key
from r1jax.stages.rl import Trainer
from r1jax.types import Problem, RLState, Sample

# Tokens of a row, rows of a microbatch; the first is one sample a row, all at once.
SHAPES = ((None, None), (68, 64), (136, 96), (136, 32), (136, 8), (204, 16), (544, 8))
ROUNDS = 15


def draw(config: RLConfig) -> list[Sample]:
    """Samples of random tokens, with lengths like the demo's."""
    rng = np.random.default_rng(0)
    samples = []
    for _ in range(config.prompts_per_step * config.group_size):
        n, p = int(np.clip(rng.normal(24, 7), 4, 44)), int(rng.choice([17, 20, 23]))
        sample = Sample(
            Problem(0, "", "", "en"),
            tokens=rng.integers(0, 200, p + n).tolist(),
            loss_mask=[0] * p + [1] * n,
            logprobs=[0.0] * p + [-1.0] * n,
            advantages=np.full(p + n, rng.normal()),
        )
        samples.append(sample)
    return samples


def main() -> None:
    module = load_experiment("r1_zero")
    config = read_config(module.Config, [gin_path(file) for file in module.GIN_FILES], [])
    layout = make_layout(MeshConfig(data=1), devices=jax.local_devices()[:1])
    samples = draw(config.rl)
    weights = programs.make_init_weights(layout, config.model)(position_key(0))
    start = programs.make_start_training(layout, config.model, config.rl.optimizer)
    states = [RLState(start(snapshot(weights)), weights, np.int32(0)) for _ in SHAPES]
    trainers = [
        Trainer(layout, config.model, replace(config.rl, row_tokens=tokens, microbatch_rows=rows))
        for tokens, rows in SHAPES
    ]
    seconds: list[list[float]] = [[] for _ in SHAPES]
    efficiency = [0.0] * len(SHAPES)
    for _ in range(ROUNDS + 1):
        for i, trainer in enumerate(trainers):
            begin = time.perf_counter()
            packed, metrics = trainer.add_logprobs(states[i], [samples])
            states[i], _ = trainer.update(states[i], packed, 1, lambda: None)
            jax.block_until_ready(states[i])
            seconds[i].append(time.perf_counter() - begin)
            efficiency[i] = metrics["packing_efficiency"].value()
    print("| tokens of a row | rows of a microbatch | places that hold a token | seconds | against the first |")
    print("| --- | --- | --- | --- | --- |")
    for trainer, times, filled in zip(trainers, seconds, efficiency, strict=True):
        shape, share = trainer.shape, median(times[1:]) / median(seconds[0][1:])
        print(f"| {shape.tokens} | {shape.rows} | {filled:.2f} | {median(times[1:]):.2f} | {share:.2f} |")


if __name__ == "__main__":
    main()
