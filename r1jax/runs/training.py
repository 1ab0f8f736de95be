"""The loop of the stages that train on records: resume, update, log, save."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from grain import DatasetIterator

from r1jax.checkpoint.store import CheckpointStore, make_metadata
from r1jax.config import PretrainConfig, RewardModelConfig, SFTConfig
from r1jax.errors import Preempted
from r1jax.objectives.language_model import LossTerms
from r1jax.objectives.optimizer import learning_rate
from r1jax.parallel import hosts, programs
from r1jax.parallel.memory import GIB, memory_in_use
from r1jax.runs.run import Stage
from r1jax.runs.state import finite_values, policy_hash, require_change, restore_onto, say_if_lost, split_policy
from r1jax.telemetry.flops import sequence_flops, throughput
from r1jax.telemetry.metrics import MetricsWriter
from r1jax.types import TrainState, Weights


@dataclass(frozen=True)
class Training:
    """What a stage brings to `train`.

    Attributes:
      steps: updates in all.
      feed: batches of records; its position is saved with the state.
      make_batch: from what the feed gives to host arrays.
      program: (TrainState, batch, learning rate) -> (TrainState, metrics).
      metadata: of the checkpoint.
      shown: metrics on the terminal.
      derive: adds metrics to those of a step.
      first_full_update: the first in which all weights have a gradient; it has to change them (`require_change`).
    """

    steps: int
    feed: DatasetIterator
    make_batch: Callable[[Any], Any]
    program: Callable[[TrainState, Any, np.float32], tuple[TrainState, Any]]
    metadata: dict
    shown: tuple[str, ...] = ("loss",)
    derive: Callable[[dict[str, float]], dict[str, float]] = dict
    first_full_update: int = 1


def train_language_model(
    stage: Stage, config: PretrainConfig | SFTConfig, weights: Weights, steps: int, feed: DatasetIterator, make_batch
) -> str:
    """Trains the stage's model from `weights` on next tokens; returns the hash of the resulting policy.

    `steps`, `feed` and `make_batch` are those of Training.
    """
    layout, model, task = stage.run.layout, stage.model, stage.task
    task.save_tokenizer(stage.directory)
    step = programs.make_language_model_step(layout, model, config.optimizer, LossTerms.of(config))
    training = Training(steps, feed, make_batch, step, make_metadata(model, task.name, task.template))
    state = programs.make_start_training(layout, model, config.optimizer)(weights)
    return policy_hash(layout, train(stage, config, state, training))


def train(
    stage: Stage, config: PretrainConfig | SFTConfig | RewardModelConfig, state: TrainState, training: Training
) -> TrainState:
    """The state after all steps, from `state` or from the stage's latest checkpoint."""
    store = CheckpointStore(stage.checkpoints, kept=config.checkpoints)
    steps, feed = training.steps, training.feed
    first = hosts.broadcast_from_main(f"{stage.name}: its latest checkpoint", store.latest_step) or 0
    say_if_lost(stage, first, config.save_every)
    if first:
        state, position = restore_onto(store, first, state)
        feed.set_state(position)
    profiler, pace = stage.profiler(), Pace(stage)
    metrics_writer = MetricsWriter(stage.directory, first + 1, stage.loggers(first + 1))
    with stage.run.progress.start(stage.name, first, steps) as progress, metrics_writer:
        for step in range(first + 1, steps + 1):
            profiler.begin(step, state)
            batch = stage.run.layout.put_batch(pace.count(training.make_batch(next(feed))))
            rate = np.float32(learning_rate(config.optimizer, step - 1, steps))
            state, metrics = training.program(state, batch, rate)
            if step == training.first_full_update:
                require_change(metrics, config.optimizer, stage.model)
            stops = hosts.preempted()
            saves = step % config.save_every == 0 or step == steps or stops
            if step % config.log_every == 0 or saves:  # a state is saved only when its metrics are finite
                values = training.derive(finite_values(metrics, stage.name, step))
                metrics_writer.write(step, values | pace.figures() | {"seconds_left": progress.seconds_left(step)})
                progress.step(step, {name: values[name] for name in training.shown})
            if saves:
                store.save(step, *split_policy(state), feed.get_state(), training.metadata)
                stage.run.saved()
            if stops:
                store.close()
                raise Preempted(f"{stage.name} is saved at step {step}")
    store.close()
    profiler.close()
    return state


class Pace:
    """Tokens a second between two rows of the log. Padding is not counted."""

    def __init__(self, stage: Stage):
        self.stage, self.began, self.tokens, self.flops, self.steps = stage, time.perf_counter(), 0, 0.0, 0

    def count(self, batch: Any) -> Any:
        """The same batch, of host arrays; one without segments, of a reward model, has no tokens to count."""
        segments_BT = getattr(batch, "segment_ids_BT", None)
        if segments_BT is not None:
            lengths = [n for row in segments_BT for n in np.unique(row[row > 0], return_counts=True)[1]]
            self.tokens += sum(lengths)
            self.flops += sequence_flops(self.stage.model, lengths, 3)
        self.steps += 1
        return batch

    def figures(self) -> dict[str, float]:
        """Since the last call, when the steps are done."""
        now = time.perf_counter()
        seconds, layout = now - self.began, self.stage.run.layout
        values = throughput(layout, self.tokens, self.flops, seconds) if self.tokens else {}
        values |= {"seconds_per_step": seconds / self.steps, "memory_gib": memory_in_use(layout) / GIB}
        self.began, self.tokens, self.flops, self.steps = now, 0, 0.0, 0
        return values
