"""Times GRPO steps of r1jax for grpo_step.py: a job on stdin, the result on stdout's last line.

The steps of `stages/rl.py`, by the same engine, packing and trainer, without what surrounds a run (records, logs,
checkpoints), which the peers' steps have not either.
"""

import json
import sys
import time
from collections.abc import Iterator
from itertools import chain

import jax
from etils import epath

import r1jax
from r1jax.checkpoint.store import find_checkpoint, read_metadata
from r1jax.cli.devices import start_jax
from r1jax.config import EngineConfig, LossConfig, MeshConfig, OptimizerConfig, RLConfig, SamplingConfig
from r1jax.parallel.layout import make_layout
from r1jax.rollout.advantages import compute_advantages
from r1jax.rollout.engine import RolloutEngine
from r1jax.sampling.draw import position_key
from r1jax.stages.rl import Trainer
from r1jax.telemetry.progress import Stopwatch
from r1jax.types import Problem, RLState


def make_config(job: dict) -> RLConfig:
    return RLConfig(
        OptimizerConfig(learning_rate=1e-6),
        SamplingConfig(max(map(len, job["prompts"])), job["new_tokens"]),
        EngineConfig(slots=job["slots"], prefill_rows=len(job["prompts"])),
        LossConfig(aggregation="token_mean"),
        steps=1 + job["steps"],
        prompts_per_step=len(job["prompts"]),
        group_size=job["group_size"],
        minibatches_per_rollout=1,
        num_prompts=len(job["prompts"]),
        **job["rl"],
    )


def time_steps(trainer: Trainer, state: RLState, prompt_ids: list[list[int]]) -> Iterator[dict[str, float]]:
    """Seconds and phases of each step, and the tokens that it draws. Responses don't end before the limit."""
    config, clock = trainer.config, Stopwatch()
    engine = RolloutEngine(trainer.layout, trainer.model, None, config.engine, config.sampling, config.group_size)
    prompts = [(Problem(i, "", "", "en"), ids) for i, ids in enumerate(prompt_ids)]
    for step in range(1, config.steps + 1):
        clock.restart()
        start, cpu = time.perf_counter(), time.process_time()
        with clock("generation"):
            groups = engine.generate(state.train.weights, prompts, position_key(0, step), ignore_eos=True)
        for sample in chain(*groups):
            sample.reward = float(sum(sample.response_tokens) % 2)  # cheap, and different within most groups
        samples = compute_advantages(groups, config.loss, config.sampling)
        with clock("reference"):  # with the old policy's log-probabilities, where the trainer computes them
            packed, _ = jax.block_until_ready(trainer.add_logprobs(state, [samples]))
        with clock("update"):
            state, _ = jax.block_until_ready(trainer.update(state, packed, step, lambda: None))
        tokens = sum(sum(sample.loss_mask) for sample in samples)
        seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
        yield clock.seconds | {"seconds": seconds, "cpu": cpu, "tokens": tokens}


def main() -> None:
    start_jax()
    job = json.load(sys.stdin)
    checkpoint = epath.Path(job["checkpoint"])
    model, _ = read_metadata(*find_checkpoint(checkpoint))
    trainer = Trainer(make_layout(MeshConfig(data=1), devices=jax.local_devices()[:1]), model, make_config(job))
    steps = list(time_steps(trainer, trainer.start(checkpoint), job["prompts"]))
    print(json.dumps({"version": f"r1jax {r1jax.__version__}, jax {jax.__version__}", "steps": steps}))


if __name__ == "__main__":
    main()
