"""Reinforcement learning with GRPO and rule-based rewards. To change the loop, copy this file."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from statistics import fmean

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
from r1jax.rewards.rules import Reward, totals
from r1jax.rollout.engine import Counts, Output, RolloutEngine, trainer_arrays
from r1jax.stages.grading import grade_outputs
from r1jax.stages.policy import load_policy
from r1jax.stages.run import Run
from r1jax.stages.state import finite_values, restore_onto, split
from r1jax.telemetry.metrics import MetricsWriter, RowWriter
from r1jax.telemetry.progress import Stopwatch
from r1jax.telemetry.statistics import has_signal, spread, summarize
from r1jax.types import Problem, RLState, Sample, TrainState


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
    sample_log = RowWriter(stage.directory / "samples.jsonl", first + 1)
    temperature = np.float32(config.temperature)
    with run.progress.start(name, first, config.steps) as progress:
        for step in range(first + 1, config.steps + 1):
            clock, position, engine.counts = Stopwatch(), feed.get_state(), Counts()
            try:
                groups = draw_groups(engine, state.train, feed, task, rewards, config, stage.key(step), clock)
            except RunError as error:
                if step - 1 > (store.latest_step() or 0):
                    store.save(step - 1, *split(state), position, about(model, task.name))
                store.close()
                raise RunError(f"{name}, rollout of step {step}: {error}. The state before it is saved") from error

            with clock("update"):
                arrays = trainer_arrays([g.asked for g in groups], [g.outputs for g in groups], *lengths)
                prompts, rollout = run.layout.put_batch(arrays)
                totals_BG = np.asarray([g.totals for g in groups], np.float32)
                is_kept_B = np.asarray([g.is_kept for g in groups])
                batch = prepare(state, prompts, rollout, totals_BG, is_kept_B, temperature)
                metrics: Metrics = programs.sampler_gap(batch)
                for indices in minibatches(config, (run.seed, stage.number, step)):
                    train, update_metrics = update(state.train, batch, indices, temperature)
                    state = replace(state, train=train)
                    metrics = merge_metrics(metrics, update_metrics)
                state = refresh_reference(state, config, step)
                values = finite_values(metrics, name, step)

            values |= figures(groups, engine, clock)
            metrics_writer.write(step, values)
            if step % config.log_samples_every == 0:
                sample_log.append(step, sample_rows(groups, jax.device_get(batch.advantage_B)))
            progress.step(step, {shown: values[shown] for shown in SHOWN if shown in values})
            if step % config.save_every == 0 or step == config.steps:
                store.save(step, *split(state), feed.get_state(), about(model, task.name))
    store.close()
    metrics_writer.close()
    stage.complete({"steps": config.steps})
    return stage.directory


SHOWN = ("reward", "accuracy", "response_tokens", "tokens_per_second")


@dataclass(frozen=True)
class Group:
    """A question, its outputs, and what they are worth."""

    asked: tuple[int, list[int]]  # the problem's id, and its prompt
    outputs: list[Output]
    samples: list[Sample]
    totals: list[float]  # weighted sums of the rewards
    teaches: bool  # its rewards differ, so that there are advantages
    is_kept: bool  # it teaches, or nothing is dropped


def draw_groups(
    engine: RolloutEngine,
    train: TrainState,
    feed: Iterator[list[Problem]],
    task: Task,
    rewards: Mapping[str, Reward],
    config: RLConfig,
    key: jax.Array,
    clock: Stopwatch,
) -> list[Group]:
    """A step's rollout, graded. With several sampling rounds, groups without signal give way to other questions'."""
    kept: list[Group] = []
    spare: list[Group] = []
    for _ in range(config.sampling_rounds):
        questions = next(feed)
        asked = [(p.id, task.tokenizer.encode(task.prompt(p.question))) for p in questions]
        with clock("rollout"):
            outputs = engine.generate(train.params, train.router_bias, asked, key, config.temperature)
        with clock("rewards"):
            graded = grade_outputs(questions, outputs, rewards)
            for question, group, samples in zip(asked, outputs, graded, strict=True):
                sums = totals(rewards, samples)
                counted = [t for t, s in zip(sums, samples, strict=True) if s.finished or config.truncated == "keep"]
                teaches = has_signal(counted)
                is_kept = teaches or config.sampling_rounds == 1
                (kept if is_kept else spare).append(Group(question, group, samples, sums, teaches, is_kept))
        if len(kept) >= config.questions:
            break
    return (kept + spare)[: config.questions]


def figures(groups: list[Group], engine: RolloutEngine, clock: Stopwatch) -> dict[str, float]:
    """What the host knows of a step: rewards, lengths, rollouts, time."""
    samples, totals = [g.samples for g in groups], [g.totals for g in groups]
    return (
        summarize(samples)
        | spread(samples, totals)
        | engine.figures()
        | clock.figures()
        | {
            "groups_with_signal": fmean(g.teaches for g in groups),
            "tokens_per_second": engine.counts.tokens / clock.total,
        }
    )


def sample_rows(groups: list[Group], advantage_B: np.ndarray) -> list[dict]:
    """What the sample log has of a step: every output with its rewards and advantage."""
    samples = [sample for group in groups for sample in group.samples]
    return [asdict(s) | {"advantage": float(a)} for s, a in zip(samples, advantage_B, strict=True)]


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
