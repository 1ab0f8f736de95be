"""What slow environments cost a rollout: a tenth of the samples wait half a second in each turn.

python benchmarks/environments.py

Episodes of up to four turns of a DeepSeek-style model of 26 million random weights. The last line is the ratio of
the seconds with slow environments to those without.
"""

import time

import jax
import numpy as np
from absl import logging

from r1jax.cli.experiments import gin_path, load_experiment
from r1jax.cli.gin_config import read_config
from r1jax.config import EngineConfig, MeshConfig, SamplingConfig
from r1jax.model.spec import init_params, init_router_bias
from r1jax.parallel.layout import make_layout
from r1jax.rollout.engine import RolloutEngine
from r1jax.types import Environments, Problem, Step, Weights

PROMPTS, SAMPLES, TURNS, SECONDS = 32, 8, 4, 0.5
MODEL = ["ModelConfig.vocab_size = 4096", "ModelConfig.num_hidden_layers = 4", "ModelConfig.dtype = 'float32'"]


class Waits:
    """Answers with 20 ids; the seconds that it takes are set for each sample by its seed."""

    def __init__(self, seconds: float):
        self.seconds = seconds

    def reset(self, problem: Problem, seed: int) -> None:
        self.delay, self.turn = self.seconds * (seed % 10 == 0), 0

    def step(self, turn: str) -> Step:
        self.turn += 1
        time.sleep(self.delay)
        return Step(range(20, 40), done=self.turn == TURNS)


def main() -> None:
    logging.set_verbosity(logging.ERROR)
    layout = make_layout(MeshConfig(data=1), devices=jax.local_devices()[:1])
    files = [gin_path(file) for file in ("model/small.gin", "algorithm/grpo.gin", "scale/cpu.gin")]
    model = read_config(load_experiment("r1_zero").Config, files, MODEL).model
    weights = Weights(init_params(jax.random.key(0), model), init_router_bias(model))
    rng = np.random.default_rng(0)
    prompts = [(Problem(i, "", "", "en"), rng.integers(20, model.vocab_size, 60).tolist()) for i in range(PROMPTS)]
    ends = tuple(range(0, model.vocab_size, 16))  # random weights draw one of them in sixteen tokens
    sampling = SamplingConfig(64, 256, stop_ids=ends, max_turns=TURNS, max_turn_tokens=64)
    seconds = {}
    print("| environments | seconds | model steps | tokens | turns | seconds of environments |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name, delay in (("warm-up", 0.0), ("fast", 0.0), ("a tenth slow", SECONDS)):
        environments = Environments(lambda delay=delay: Waits(delay), str.split)
        config = EngineConfig(slots=64)
        engine = RolloutEngine(layout, model, None, config, sampling, SAMPLES, environments=environments)
        start = time.perf_counter()
        groups = engine.generate(weights, prompts, jax.random.key(1))
        seconds[name] = time.perf_counter() - start
        turns = np.mean([len(sample.turns) for group in groups for sample in group])
        work = engine.metrics()["environment_seconds"]
        counts = f"{engine.counts.model_steps:,} | {engine.counts.tokens:,} | {turns:.2f}"
        print(f"| {name} | {seconds[name]:.1f} | {counts} | {work:.1f} |", flush=True)
    print(f"ratio slow_environments {seconds['a tenth slow'] / seconds['fast']:.2f}")


if __name__ == "__main__":
    main()
