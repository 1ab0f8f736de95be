"""Reinforcement learning with GRPO and rule-based rewards. To change the loop, copy this file."""

import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import pairwise

import jax
import numpy as np
from etils import epath

from r1jax.checkpoint.store import CheckpointStore, about
from r1jax.config import ModelConfig, RLConfig
from r1jax.data.feeds import problem_batches
from r1jax.data.tasks import Task
from r1jax.errors import RunError
from r1jax.objectives.metrics import Metrics, merge_metrics
from r1jax.parallel import programs
from r1jax.rewards.rules import Reward, total
from r1jax.rollout.engine import Counts, RolloutEngine, trainer_arrays
from r1jax.stages.grading import grade_outputs
from r1jax.stages.policy import load_policy
from r1jax.stages.run import Run
from r1jax.stages.state import finite_values, restore_onto, split
from r1jax.telemetry.metrics import MetricsWriter
from r1jax.telemetry.statistics import summarize
from r1jax.types import RLState


def rl(
    run: Run,
    name: str,
    config: RLConfig,
    model: ModelConfig,
    base: epath.Path,
    task: Task,
    problems: epath.Path,
    rewards: Mapping[str, Reward],
) -> epath.Path:
    """Trains the policy in `base` on `problems` (an ArrayRecord); returns the stage's directory."""
    weights = {reward: r.weight for reward, r in rewards.items()}
    stage = run.stage(
        name, "rl", rl=config, model=model, base=run.relative(base), problems=run.relative(problems), rewards=weights
    )
    if stage.result() is not None:
        return stage.directory

    lengths = (config.max_prompt_tokens, config.max_new_tokens)
    engine = RolloutEngine(run.layout, model, task.tokenizer, config.rollout, config.group_size, *lengths)
    prepare = programs.prepare_batch(run.layout, model, config)
    update = programs.grpo_step(run.layout, model, config)
    feed = problem_batches(problems, config.questions, run.seed)
    state = start(run, config, model, base)
    store = CheckpointStore(stage.checkpoints)
    first = store.latest_step() or 0
    if first:
        state, position = restore_onto(store, first, state)
        feed.set_state(position)

    metrics_writer = MetricsWriter(stage.directory, first + 1)
    temperature = np.float32(config.temperature)
    with run.progress.start(name, first, config.steps) as progress:
        for step in range(first + 1, config.steps + 1):
            clock, position = [time.perf_counter()], feed.get_state()
            questions = next(feed)
            asked = [(p.id, task.tokenizer.encode(task.prompt(p.question))) for p in questions]
            policy, engine.counts = (state.train.params, state.train.router_bias), Counts()
            try:
                outputs = engine.generate(*policy, asked, stage.key(step), config.temperature)
            except RunError as error:
                if step - 1 > (store.latest_step() or 0):
                    store.save(step - 1, *split(state), position, about(model, task.name))
                store.close()
                raise RunError(f"{name}, rollout of step {step}: {error}. The state before it is saved") from error
            prompts, rollout = run.layout.put_batch(trainer_arrays(asked, outputs, *lengths))
            clock.append(time.perf_counter())

            samples = grade_outputs(questions, outputs, rewards)
            rewards_BG = np.asarray([[total(rewards, s.rewards) for s in group] for group in samples], np.float32)
            clock.append(time.perf_counter())

            batch = prepare(state, prompts, rollout, rewards_BG, temperature)
            metrics: Metrics = programs.sampler_gap(batch, rollout)
            for indices in minibatches(config, (run.seed, stage.number, step)):
                train, update_metrics = update(state.train, batch, indices, temperature)
                state = replace(state, train=train)
                metrics = merge_metrics(metrics, update_metrics)
            state = refresh_reference(state, config, step)
            values = finite_values(metrics, name, step)
            clock.append(time.perf_counter())

            values |= summarize(samples) | {"reward": float(rewards_BG.mean())} | engine.figures()
            values |= seconds(clock, engine.counts.tokens)
            metrics_writer.write(step, values)
            progress.step(step, {shown: values[shown] for shown in SHOWN if shown in values})
            if step % config.save_every == 0 or step == config.steps:
                store.save(step, *split(state), feed.get_state(), about(model, task.name))
    store.close()
    metrics_writer.close()
    stage.complete({"steps": config.steps})
    return stage.directory


SHOWN = ("reward", "accuracy", "response_tokens", "tokens_per_second")


def start(run: Run, config: RLConfig, model: ModelConfig, base: epath.Path) -> RLState:
    """A fresh optimizer on the base policy, which is also the first reference."""
    policy = load_policy(base, run.layout, model)
    reference, reference_router_bias = programs.snapshot((policy.params, policy.router_bias))
    train = programs.start_training(run.layout, model, config.optimizer)(policy.params, policy.router_bias)
    reference_step = jax.device_put(np.int32(0), run.layout.replicated())
    return RLState(train, reference, reference_router_bias, reference_step)


def minibatches(config: RLConfig, position: tuple[int, ...]) -> Iterator[np.ndarray]:
    """Row indices of each update: the rollout's outputs, shuffled and dealt out once."""
    outputs = config.questions * config.group_size
    order = np.random.default_rng(position).permutation(outputs).astype(np.int32)
    yield from order.reshape(config.minibatches, -1)


def refresh_reference(state: RLState, config: RLConfig, step: int) -> RLState:
    """Every `reference_refresh_updates` updates the reference becomes the latest policy (R1 supplement)."""
    updates, every = step * config.minibatches, config.reference_refresh_updates
    if updates // every == (updates - config.minibatches) // every:
        return state
    params, bias, updates_done = programs.snapshot((state.train.params, state.train.router_bias, state.train.step))
    return replace(state, reference=params, reference_router_bias=bias, reference_step=updates_done)


def seconds(clock: list[float], tokens: int) -> dict[str, float]:
    """Seconds of each phase, and generated tokens for each second of the whole step."""
    names = ("seconds_rollout", "seconds_rewards", "seconds_update")
    phases = {name: end - begin for name, (begin, end) in zip(names, pairwise(clock), strict=True)}
    return phases | {"tokens_per_second": tokens / (clock[-1] - clock[0])}
