"""Reinforcement learning with GRPO and rule-based rewards. To change the loop, copy this file."""

import functools
import json
from collections.abc import Generator, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from statistics import fmean

import jax
import numpy as np
from etils import epath

from r1jax.checkpoint.store import CheckpointStore, about
from r1jax.config import ModelConfig, RLConfig
from r1jax.data.feeds import problem_batches
from r1jax.data.tasks import Task
from r1jax.errors import Preempted, RunError
from r1jax.objectives.metrics import Metrics, merge_metrics
from r1jax.parallel import programs
from r1jax.parallel.hosts import broadcast_from_main, stop_if_preempted
from r1jax.parallel.layout import Layout
from r1jax.parallel.memory import GIB, memory_in_use
from r1jax.rewards.grading import Grading, failures_since
from r1jax.rewards.rules import Reward, failure_counts, learned_inputs, totals, unverified
from r1jax.rollout.engine import Counts, Output, Pending, RolloutEngine
from r1jax.rollout.packing import Taught, filled, microbatches, row_shape
from r1jax.runs.policy import load_policy
from r1jax.runs.run import Run, Stage
from r1jax.runs.state import finite_values, policy_hash, restore_onto, split
from r1jax.telemetry.files import write_whole
from r1jax.telemetry.metrics import MetricsWriter, RowWriter
from r1jax.telemetry.progress import Stopwatch
from r1jax.telemetry.statistics import has_signal, spread, summarize
from r1jax.types import GRPOBatch, Params, Problem, RLState, Sample


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
    terms = {reward: r.terms_of for reward, r in rewards.items()}
    inputs = {"base": base, "problems": problems} | learned_inputs(rewards)
    stage = run.stage(name, "rl", inputs, rl=config, model=model, task=task.name, rewards=terms)
    if stage.result() is not None:
        return stage.directory

    task.save_tokenizer(stage.directory)
    announce(run, stage, rewards)
    lengths = (config.max_prompt_tokens, config.max_new_tokens)
    engine = RolloutEngine(run.layout, model, task.tokenizer, config.rollout, config.group_size, *lengths)
    learner = Learner(run.layout, model, config, engine.routes_shape)
    feed = problem_batches(problems, config.questions, run.seed)
    state = start(run, config, model, base)
    store = CheckpointStore(stage.checkpoints)
    first = broadcast_from_main(f"{name}: its latest checkpoint", store.latest_step) or 0
    if first:
        state, position = restore_onto(store, first, state)
        feed.set_state(position)
    state = offloaded(state, config)

    metrics_writer = MetricsWriter(stage.directory, first + 1)
    sample_log = RowWriter(stage.directory / "samples.jsonl", first + 1)
    clock, ahead = Stopwatch(), None
    with run.progress.start(name, first, config.steps) as progress, Grading(rewards) as grading:

        def draw(step: int, params: Params, router_bias: dict) -> Pending[Drawn]:
            key = stage.key(step)
            return Pending(draw_groups(engine, params, router_bias, feed, task, grading, config, key, clock))

        for step in range(first + 1, config.steps + 1):
            clock.restart()
            position, is_stale, failed = feed.get_state(), ahead is not None, failure_counts(rewards)
            try:
                with clock("rollout"):
                    busy = engine.device_seconds
                    drawn = (ahead or draw(step, state.train.params, state.train.router_bias)).finish(stop_if_preempted)
                    busy = engine.device_seconds - busy
            except (RunError, Preempted) as error:
                agreed = isinstance(error, Preempted) or jax.process_count() == 1  # all save, or none
                if agreed and not config.staleness and step - 1 > (store.latest_step() or 0):
                    store.save(step - 1, *split(state), position, about(model, task.name))
                goes_on = (store.latest_step() or 0) + 1
                store.close()
                if isinstance(error, Preempted):
                    raise Preempted(f"{name} is saved at step {goes_on - 1}") from error
                raise RunError(
                    f"{name}, rollout of step {step}: {error}. Started again, it goes on with step {goes_on}"
                ) from error
            values = engine.figures() | {"stale": float(is_stale)}
            # Nothing is pending in what is saved: the step after it draws with the policy that was saved.
            saves = step % config.save_every == 0 or step == config.steps
            ahead = None
            if config.staleness and not saves:
                ahead = draw(step + 1, *programs.snapshot((state.train.params, state.train.router_bias)))

            with clock("update"):
                advantage_BG = weigh(drawn.chosen, config)
                minibatches = deal(drawn.chosen, advantage_BG, config, (run.seed, stage.number, step))
                state, metrics, values["filled"] = learner.learn(state, minibatches, ahead)
                state = offloaded(refresh_reference(state, config, step), config)
                values |= finite_values(metrics, name, step)

            values |= figures(drawn) | times(values["rollout_tokens"], busy, clock)
            values |= failures_since(failed, rewards)
            values["memory_gib"] = memory_in_use(run.layout) / GIB
            metrics_writer.write(step, values)
            if step % config.log_samples_every == 0:
                sample_log.append(step, sample_rows(drawn.chosen, advantage_BG))
            progress.step(step, {shown: values[shown] for shown in SHOWN if shown in values})
            if saves:
                store.save(step, *split(state), feed.get_state(), about(model, task.name))
    store.close()
    metrics_writer.close()
    stage.complete({"steps": config.steps}, output=policy_hash(run.layout, state))
    return stage.directory


def announce(run: Run, stage: Stage, rewards: Mapping[str, Reward]) -> None:
    """Prints and keeps what rewards have to say at the start, such as how far programs are locked in."""
    notices = {name: reward.notice for name, reward in rewards.items() if reward.notice}
    write_whole(stage.directory / "notices.json", json.dumps(notices, indent=1))
    for name, notice in notices.items():
        run.progress.say(f"{stage.name}, {name}: {notice}")


SHOWN = ("reward", "accuracy", "response_tokens", "tokens_per_second")


@dataclass(frozen=True)
class Group:
    """A question, its outputs, and what they are worth."""

    prompt: list[int]
    outputs: list[Output]
    samples: list[Sample]
    totals: list[float]  # weighted sums of the rewards
    counts: list[bool]  # whether an output is trained on, and part of the group's mean
    teaches: bool  # not all of those that count are as right as the others


@dataclass(frozen=True)
class Drawn:
    """A step's rollout."""

    chosen: list[Group]  # to train on, as many as a step has questions
    all: list[Group]  # with those that gave way


def draw_groups(
    engine: RolloutEngine,
    params: Params,
    router_bias: dict,
    feed: Iterator[list[Problem]],
    task: Task,
    grading: Grading,
    config: RLConfig,
    key: jax.Array,
    clock: Stopwatch,
) -> Generator[None, None, Drawn]:
    """A step's rollout, graded. With several sampling rounds, groups without signal give way to other questions'."""
    engine.counts = Counts()
    kept: list[Group] = []
    spare: list[Group] = []
    for _ in range(config.sampling_rounds):
        questions = next(feed)
        prompts = [task.tokenizer.encode(task.prompt(p.question)) for p in questions]
        outputs = yield from engine.rounds(
            params,
            router_bias,
            [(p.id, prompt) for p, prompt in zip(questions, prompts, strict=True)],
            key,
            config.temperature,
            done=functools.partial(grading.submit, questions),
        )
        with clock("rewards"):  # what is left of them
            graded = grading.collect()
        for prompt, group, samples in zip(prompts, outputs, graded, strict=True):
            judged = judge(prompt, group, samples, grading.rewards, config)
            (kept if judged.teaches or config.sampling_rounds == 1 else spare).append(judged)
        if len(kept) >= config.questions:
            break
    dropped = [replace(group, counts=[False] * len(group.counts)) for group in spare]
    return Drawn((kept + dropped)[: config.questions], kept + spare)


def judge(
    prompt: list[int], outputs: list[Output], samples: list[Sample], rewards: Mapping[str, Reward], config: RLConfig
) -> Group:
    """A graded group. Outputs that a verifier failed on don't count: neither right nor wrong, they pay nothing."""
    failed = unverified(rewards, samples)
    counts = [(s.finished or config.truncated == "keep") and not f for s, f in zip(samples, failed, strict=True)]
    worth = totals(rewards, samples, counts)
    outcomes = [s.rewards.get("accuracy") for s in samples]
    raw = [x for x, c in zip(outcomes, counts, strict=True) if x is not None and c]  # no penalty makes a lesson
    teaches = has_signal(raw or [t for t, c in zip(worth, counts, strict=True) if c])
    return Group(prompt, outputs, samples, worth, counts, teaches)


def weigh(groups: list[Group], config: RLConfig) -> np.ndarray:
    """Each output's advantage, [B, G]; 0 where it does not count."""
    rewards_BG = np.asarray([g.totals for g in groups], np.float32)
    length_BG = np.asarray([[len(o.tokens) for o in g.outputs] for g in groups], np.float32)
    counts_BG = np.asarray([g.counts for g in groups], np.float32)
    return np.asarray(programs.advantages(config)(rewards_BG, length_BG, counts_BG))


def deal(
    groups: list[Group], advantage_BG: np.ndarray, config: RLConfig, position: tuple[int, ...]
) -> list[list[Taught]]:
    """The rollout's outputs, shuffled and dealt out to the updates; without those that don't count."""
    outputs = [
        Taught(group.prompt, output, float(advantage))
        for group, advantage_G in zip(groups, advantage_BG, strict=True)
        for output, advantage, counts in zip(group.outputs, advantage_G, group.counts, strict=True)
        if counts
    ]
    order = np.random.default_rng(position).permutation(len(outputs))
    return [[outputs[i] for i in hand] for hand in np.array_split(order, config.minibatches)]


class Learner:
    """Updates of the policy on a rollout."""

    def __init__(self, layout: Layout, model: ModelConfig, config: RLConfig, routes: tuple[int, int] | None):
        rows, T, J = row_shape(config)
        self.layout, self.config, self.routes = layout, config, routes
        self.shape = layout.round_up(rows), T, J
        self.prepare = programs.prepare_batch(layout, model, config)
        self.gradients = programs.grpo_gradients(layout, model, config)
        self.update = programs.grpo_update(layout, model, config)

    def learn(
        self, state: RLState, minibatches: list[list[Taught]], ahead: Pending | None = None
    ) -> tuple[RLState, Metrics, float]:
        """One update on each minibatch that is not empty, in each inner epoch.

        `ahead` goes on by a round with each microbatch.

        Returns the next state, metrics, and the share of the rows' places that hold a token.
        """
        temperature = np.float32(self.config.temperature)
        metrics: Metrics = {}
        packed = [microbatches(outputs, self.shape, self.routes) for outputs in minibatches if outputs]
        batches: list[list[GRPOBatch]] = [[] for _ in packed]
        with_reference = replace(state, reference=programs.on_device(state.reference))
        for minibatch, parts in zip(batches, packed, strict=True):
            for part in parts:
                batch, gap = self.prepare(with_reference, self.layout.put_batch(part), temperature)
                minibatch.append(batch)
                metrics = merge_metrics(metrics, gap)
        del with_reference
        for minibatch in batches * self.config.inner_epochs:
            total = None
            for batch in minibatch:
                gradients = self.gradients(state.train.params, state.train.router_bias, batch, temperature)
                total = gradients if total is None else programs.add_gradients(total, gradients)
                del gradients  # two trees of them at once are enough
                if ahead:
                    ahead.advance()
            train = replace(state.train, opt_state=programs.on_device(state.train.opt_state))
            train, update_metrics = self.update(train, total)
            state, metrics = replace(state, train=train), merge_metrics(metrics, update_metrics)
            state = offloaded(state, self.config)
            del train, total  # or what was offloaded would stay, and the sum of gradients
        return state, metrics, fmean([filled(parts) for parts in packed] or [0.0])


def figures(drawn: Drawn) -> dict[str, float]:
    """What the host knows of a step: rewards and lengths of all that was drawn, and how much of it teaches."""
    samples = [g.samples for g in drawn.all]
    return (
        summarize(samples)
        | spread(samples, [g.totals for g in drawn.all])
        | {
            "groups_with_signal": fmean(g.teaches for g in drawn.all),
            "outputs_trained": float(sum(sum(g.counts) for g in drawn.chosen)),
        }
    )


def times(tokens: float, busy: float, clock: Stopwatch) -> dict[str, float]:
    """Seconds by phase, and the share of them in which the devices, `busy` in rollouts, had nothing to do."""
    idle = 1 - (busy + clock.seconds["update"]) / clock.total
    return clock.figures() | {"tokens_per_second": tokens / clock.total, "device_idle": max(0.0, idle)}


def sample_rows(groups: list[Group], advantage_BG: np.ndarray) -> list[dict]:
    """What the sample log has of a step: every output with its rewards and advantage."""
    samples = [sample for group in groups for sample in group.samples]
    return [asdict(s) | {"advantage": float(a)} for s, a in zip(samples, advantage_BG.ravel(), strict=True)]


def start(run: Run, config: RLConfig, model: ModelConfig, base: epath.Path) -> RLState:
    """A fresh optimizer on the base policy, which is also the first reference."""
    policy = load_policy(base, run.layout, model)
    train = programs.start_training(run.layout, model, config.optimizer)(policy.params, policy.router_bias)
    reference, reference_router_bias = programs.snapshot((train.params, train.router_bias))
    reference_step = jax.device_put(np.int32(0), run.layout.replicated())
    return RLState(train, reference, reference_router_bias, reference_step)


def offloaded(state: RLState, config: RLConfig) -> RLState:
    """The same, with what `RLConfig.offload` names in the hosts' memory."""
    if "reference" in config.offload:
        state = replace(state, reference=programs.on_host(state.reference))
    if "optimizer" in config.offload:
        state = replace(state, train=replace(state.train, opt_state=programs.on_host(state.train.opt_state)))
    return state


def refresh_reference(state: RLState, config: RLConfig, step: int) -> RLState:
    """Every `reference_refresh_updates` updates the reference becomes the latest policy (R1 supplement)."""
    updates, every = step * config.updates, config.reference_refresh_updates
    if updates // every == (updates - config.updates) // every:
        return state
    params, bias, updates_done = programs.snapshot((state.train.params, state.train.router_bias, state.train.step))
    return replace(state, reference=params, reference_router_bias=bias, reference_step=updates_done)
