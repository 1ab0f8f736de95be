"""The loop of the stages that learn from records: resume, step, log, save."""

from collections.abc import Callable
from typing import Any

import grain

from r1jax.checkpoint.store import CheckpointStore
from r1jax.config import PretrainConfig, RewardModelConfig, SFTConfig
from r1jax.errors import Preempted
from r1jax.parallel import hosts
from r1jax.runs.run import Run, Stage
from r1jax.runs.state import finite_values, restore_onto, split
from r1jax.telemetry.metrics import MetricsWriter
from r1jax.types import TrainState


def train(
    run: Run,
    stage: Stage,
    config: PretrainConfig | SFTConfig | RewardModelConfig,
    steps: int,
    state: TrainState,
    feed: grain.DatasetIterator,
    make_batch: Callable[[Any], Any],
    step_program: Callable[[TrainState, Any], tuple[TrainState, Any]],
    about: dict,
    *,
    shown: tuple[str, ...] = ("loss",),
    derive: Callable[[dict[str, float]], dict[str, float]] = dict,
) -> TrainState:
    """The state after `steps`, from `state` or from the stage's latest checkpoint.

    `make_batch` makes a batch of what the feed gives, `derive` adds to the metrics, `shown` are those on the terminal.
    """
    store = CheckpointStore(stage.checkpoints)
    first = hosts.broadcast_from_main(f"{stage.name}: its latest checkpoint", store.latest_step) or 0
    if first:
        state, position = restore_onto(store, first, state)
        feed.set_state(position)
    metrics_writer = MetricsWriter(stage.directory, first + 1)
    with run.progress.start(stage.name, first, steps) as progress:
        for step in range(first + 1, steps + 1):
            state, metrics = step_program(state, run.layout.put_batch(make_batch(next(feed))))
            stops = hosts.preempted()
            saves = step % config.save_every == 0 or step == steps or stops
            if step % config.log_every == 0 or saves:  # nothing is saved that was not looked at
                values = derive(finite_values(metrics, stage.name, step))
                metrics_writer.write(step, values)
                progress.step(step, {name: values[name] for name in shown})
            if saves:
                store.save(step, *split(state), feed.get_state(), about)
            if stops:
                store.close()
                raise Preempted(f"{stage.name} is saved at step {step}")
    store.close()
    metrics_writer.close()
    return state
