"""Times GRPO steps of r1jax for grpo_step.py: a job on stdin, the result on stdout's last line.

Without what surrounds a run (records, logs, checkpoints), which the peers' steps have not either.
"""

import json
import sys

import jax
from etils import epath

import r1jax
from r1jax.checkpoint.store import find_checkpoint, read_metadata
from r1jax.cli.bench import time_steps
from r1jax.cli.devices import start_jax
from r1jax.config import EngineConfig, LossConfig, MeshConfig, OptimizerConfig, RLConfig, SamplingConfig
from r1jax.parallel.layout import make_layout
from r1jax.stages.rl import Trainer


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


def main() -> None:
    start_jax()
    job = json.load(sys.stdin)
    checkpoint = epath.Path(job["checkpoint"])
    model, _ = read_metadata(*find_checkpoint(checkpoint))
    trainer = Trainer(make_layout(MeshConfig(data=1), devices=jax.local_devices()[:1]), model, make_config(job))
    steps = [
        {name: value for name, value in step.items() if name != "groups"}
        for step in time_steps(trainer, trainer.start(checkpoint), job["prompts"])
    ]
    print(json.dumps({"version": f"r1jax {r1jax.__version__}, jax {jax.__version__}", "steps": steps}))


if __name__ == "__main__":
    main()
