"""Seconds of an update on one rollout, by the shape of its microbatches, side by side.

python benchmarks/packing.py

The demo's model and rollout: 256 outputs, lengths as they are halfway through its training. Shapes take turns.
"""

import time
from dataclasses import replace
from statistics import median

import jax
import numpy as np

from r1jax.cli.gin_config import read_config
from r1jax.cli.main import gin_path, load_experiment
from r1jax.config import MeshConfig
from r1jax.parallel import programs
from r1jax.parallel.layout import make_layout
from r1jax.rollout.engine import Output
from r1jax.rollout.packing import Taught
from r1jax.stages.rl import Learner
from r1jax.types import RLState

# Tokens of a row, rows of a microbatch; the first is one output a row, all at once.
SHAPES = ((None, None), (68, 64), (136, 96), (136, 32), (136, 8), (204, 16), (544, 8))
ROUNDS = 15


def draw(config) -> list[Taught]:
    """Outputs of random tokens, with lengths like the demo's."""
    rng = np.random.default_rng(0)
    taught = []
    for _ in range(config.questions * config.group_size):
        output = Output(0, 0, tokens=rng.integers(0, 200, int(np.clip(rng.normal(24, 7), 4, 44))).tolist())
        output.logprobs = [-1.0] * len(output.tokens)
        prompt = rng.integers(0, 200, int(rng.choice([17, 20, 23]))).tolist()
        taught.append(Taught(prompt, output, float(rng.normal())))
    return taught


def main() -> None:
    module = load_experiment("r1_zero")
    config = read_config(module.Config, [gin_path(file) for file in module.GIN_FILES], [])
    layout = make_layout(MeshConfig(data=1), devices=jax.local_devices()[:1])
    outputs = draw(config.rl)
    policy = programs.init_policy(layout, config.model)(programs.random_key(0))
    train = programs.start_training(layout, config.model, config.rl.optimizer)(*programs.snapshot(policy))
    states = [RLState(programs.snapshot(train), *policy, np.int32(0)) for _ in SHAPES]
    learners = [
        Learner(layout, config.model, replace(config.rl, row_tokens=tokens, microbatch_rows=rows), None)
        for tokens, rows in SHAPES
    ]
    seconds: list[list[float]] = [[] for _ in SHAPES]
    for _ in range(ROUNDS + 1):
        for i, learner in enumerate(learners):
            start = time.perf_counter()
            states[i], _, filled = learner.learn(states[i], [outputs])
            jax.block_until_ready(states[i])
            seconds[i].append(time.perf_counter() - start)
            learner.filled = filled
    print("| tokens of a row | rows of a microbatch | places that hold a token | seconds | against the first |")
    print("| --- | --- | --- | --- | --- |")
    for learner, times in zip(learners, seconds, strict=True):
        rows, tokens, _ = learner.shape
        share = median(times[1:]) / median(seconds[0][1:])
        print(f"| {tokens} | {rows} | {learner.filled:.2f} | {median(times[1:]):.2f} | {share:.2f} |")


if __name__ == "__main__":
    main()
