"""Reinforcement learning with GRPO on rewards (DeepSeekMath, arXiv 2402.03300; R1, section 2.2).

To change the loop, copy this file. To change the advantage or the loss alone, pass a function of your own to `rl`.
"""

import json
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from statistics import fmean
from typing import Any

import grain
import jax
import numpy as np
from etils import epath

from r1jax.checkpoint.store import CheckpointStore, make_metadata
from r1jax.config import ModelConfig, RLConfig
from r1jax.data.feeds import problem_batches
from r1jax.errors import Preempted, RunError
from r1jax.objectives.grpo import LossFunction, LossSpec, grpo_loss
from r1jax.objectives.metrics import Metrics, merge_metrics
from r1jax.objectives.optimizer import learning_rate, updated_model
from r1jax.parallel import programs
from r1jax.parallel.hosts import broadcast_from_main, stop_if_preempted
from r1jax.parallel.layout import Layout
from r1jax.parallel.memory import GIB, memory_in_use
from r1jax.parallel.transfers import on_device, on_host, snapshot
from r1jax.rewards.grading import Grading, has_signal, require_environments, require_verified, score_group
from r1jax.rewards.rules import Reward, learned_inputs
from r1jax.rollout.advantages import AdvantageFunction, broadcast_advantages, compute_advantages
from r1jax.rollout.async_rollout import AsyncRollout
from r1jax.rollout.engine import Counts, RolloutEngine
from r1jax.rollout.packing import batch_shape, make_minibatches, pack_microbatches, packing_metrics
from r1jax.runs.policy import load_policy
from r1jax.runs.run import Stage
from r1jax.runs.state import finite_values, policy_hash, require_change, restore_onto, say_if_lost, split_policy
from r1jax.runs.validation import Validation
from r1jax.telemetry.files import write_atomically
from r1jax.telemetry.flops import rl_step_flops, throughput
from r1jax.telemetry.metrics import MetricsWriter, SamplesWriter
from r1jax.telemetry.progress import Progress, Stopwatch
from r1jax.telemetry.statistics import spread, summarize
from r1jax.types import Batch, Gradients, RLState, Sample, Weights


def rl(
    stage: Stage,
    config: RLConfig,
    base: epath.Path,
    problems: epath.Path,
    rewards: Mapping[str, Reward],
    *,
    advantage: AdvantageFunction = broadcast_advantages,
    loss: LossFunction = grpo_loss,
) -> epath.Path:
    """Trains the policy in `base` on `problems`, a file of `Problem`s (data/feeds.py); returns the stage's directory.

    A fork passes its own functions, not lambdas, since the stage's config.json records their names:
    advantage(samples, rewards_G, valid_G, c) gives an array float32 [tokens] for each sample of a group
    (rollout/advantages.py); loss(logp_BT, batch, c, max_new_tokens) gives (Mean(total, weight), metrics)
    (`grpo_loss` in objectives/grpo.py).
    """
    run = stage.run
    open_stage(stage, config, {"base": base, "problems": problems}, rewards, (advantage, loss))
    if stage.result() is not None:
        return stage.directory
    prepare(stage, rewards)
    clock = Stopwatch()
    feed = problem_batches(problems, config.prompts_per_step, run.seed)
    trainer = Trainer(run.layout, stage.model, config, loss)
    saves = Checkpoints(stage, config, feed)
    state, done = saves.resume(trainer.start(base))
    with Grading(rewards) as grading, RLLog(stage, config, done, clock) as log:
        rollouts = Rollouts(stage, config, feed, grading)
        validation = Validation(stage, config, rewards, done)
        for step in validation.training_steps(done):
            log.begin(step)
            with saves.save_on_failure(step, state):
                # Rollout: a group of samples for each prompt. Meanwhile a thread grades complete groups by rules.
                with clock("rollout"):
                    rollout = rollouts.draw(step, state.train.weights)
                # Rewards: those that the thread has not finished, and those of reward models, which need the devices.
                with clock("rewards"):
                    rollout.compute_rewards(grading, config)

            # Advantages: of each token, from the rewards of its group. Invalid samples drop out here.
            samples = compute_advantages(rollout.groups, config.loss, config.sampling, advantage)
            minibatches = make_minibatches(samples, config, (run.seed, stage.number, step))

            with clock("update"):
                # Old and reference log-probabilities of what was drawn, by the trainer's own forward pass.
                packed, metrics = trainer.add_logprobs(state, minibatches)
                # Updates: one on each minibatch, in each epoch. With max_staleness 1 the next rollout decodes as well.
                state, updates = trainer.update(state, packed, step, rollouts.advance)
                state = trainer.refresh_reference(state, step)

            # Metrics, those of held-out problems among them, and checkpoint.
            with clock("validation"), saves.save_on_failure(step, None):
                held_out_figures = validation.measure(step, state.train.weights)
            log.write(step, rollout, metrics | updates, grading.failures() | held_out_figures)
            if saves.is_due(step):
                saves.save(step, state, metric=validation.figures.get(step))
    saves.store.close()
    stage.complete(validation.result(), output=policy_hash(run.layout, state))
    return stage.directory


def open_stage(
    stage: Stage,
    config: RLConfig,
    inputs: Mapping[str, epath.Path],
    rewards: Mapping[str, Reward],
    functions: Sequence[Callable],
) -> None:
    """Writes or checks the stage's config, which names the functions that a fork brings."""
    settings: dict[str, Any] = {name: reward.settings for name, reward in rewards.items()}
    own = [name_of(f) for f in functions if f not in (broadcast_advantages, grpo_loss)]
    extra: dict[str, Any] = {"functions": own} if own else {}
    if stage.task.environments:
        extra["environment"] = name_of(stage.task.environments.make)
    inputs = {**inputs, **learned_inputs(rewards)}
    code = [*functions, *(reward.function for reward in rewards.values())]
    stage.open("rl", inputs, code=code, rl=config, model=stage.model, task=stage.task.name, rewards=settings, **extra)


def name_of(function: Any) -> str:
    """The name of a function or class; of a partial that of its function, of `InProcesses` that of its environment."""
    inner = getattr(function, "func", None) or getattr(function, "make", None)
    return name_of(inner) if inner else getattr(function, "__qualname__", type(function).__qualname__)


def prepare(stage: Stage, rewards: Mapping[str, Reward]) -> None:
    """Saves the tokenizer, and what rewards have to say at the start, such as how a sandbox isolates programs."""
    stage.task.save_tokenizer(stage.directory)
    notices = {name: reward.notice for name, reward in rewards.items() if reward.notice}
    write_atomically(stage.directory / "notices.json", json.dumps(notices, indent=1))
    for name, notice in notices.items():
        stage.run.progress.say(f"{stage.name}, {name}: {notice}")


@dataclass
class Rollout:
    """The samples of a step, by prompt.

    Attributes:
      drawn: all groups.
      groups: those that are trained on; set by `compute_rewards`.
      staleness: steps by which the policy that drew is older than the one that is trained: 0 or 1.
      metrics: the engine's, of this rollout.
      device_seconds: time in which the devices drew and scored it, but for what was hidden behind the update before.
    """

    drawn: list[list[Sample]]
    groups: Sequence[Sequence[Sample]] = ()
    staleness: int = 0
    metrics: Mapping[str, float] = field(default_factory=dict)
    device_seconds: float = 0.0

    def compute_rewards(self, grading: Grading, config: RLConfig) -> None:
        """Sets rewards, their sum and the validity of all samples, and chooses the groups to train on.

        With dynamic sampling these are the first `prompts_per_step` groups with a signal.
        """
        self.device_seconds += grading.collect()
        for samples in self.drawn:
            score_group(grading.rewards, samples, mask_truncated=config.loss.mask_truncated)
        require_verified(grading.rewards, self.drawn)
        require_environments(self.drawn)
        kept = [g for g in self.drawn if config.max_generation_batches == 1 or has_signal(g)]
        self.groups = kept[: config.prompts_per_step]


class Rollouts:
    """Draws rollouts; with max_staleness 1 the next one is under way while a rollout is trained on."""

    def __init__(self, stage: Stage, config: RLConfig, feed: grain.DatasetIterator, grading: Grading):
        self.stage, self.config, self.feed, self.grading = stage, config, feed, grading
        self.engine = RolloutEngine(
            stage.run.layout,
            stage.model,
            stage.task.tokenizer,
            config.engine,
            config.sampling,
            config.group_size,
            keeps_sampling_masks=True,
            environments=stage.task.environments,
        )
        self.next: AsyncRollout[Rollout] | None = None

    def draw(self, step: int, weights: Weights) -> Rollout:
        """The rollout of `step`; by `weights`, unless it was begun with those before."""
        under_way, self.next = self.next, None
        seconds_before = self.engine.device_seconds
        rollout = (under_way or AsyncRollout(self.draw_groups(step, weights))).finish(stop_if_preempted)
        rollout.staleness = int(under_way is not None)
        # Taken now: the engine counts anew for the rollout that is drawn during the update.
        rollout.metrics = self.engine.metrics()
        rollout.device_seconds += self.engine.device_seconds - seconds_before
        # A checkpoint holds no rollout that is under way. None is begun before a save: the step after it draws with the
        # policy that was saved, whether the run was killed between them or not.
        if self.config.max_staleness and not is_due(step, self.config):
            self.next = AsyncRollout(self.draw_groups(step + 1, snapshot(weights)))
        return rollout

    def advance(self) -> None:
        """Gives the devices a round of the rollout that is under way."""
        if self.next:
            self.next.advance()

    def draw_groups(self, step: int, weights: Weights) -> Generator[None, None, Rollout]:
        """Draws batches of groups until enough groups have a signal (DAPO, section 3.2: dynamic sampling)."""
        config, task, rollout = self.config, self.stage.task, Rollout([])
        self.engine.counts = Counts()
        for _ in range(config.max_generation_batches):
            drawn = {samples[0].problem.id for samples in rollout.drawn}  # the feed may have begun a new epoch
            fresh = [p for p in next(self.feed) if p.id not in drawn]
            asked = [(p, task.tokenizer.encode(task.prompt(p.question))) for p in fresh]
            key = self.stage.key(step)  # problem ids make it another one for each prompt
            rollout.drawn += yield from self.engine.rounds(weights, asked, key, done=self.grading.submit)
            if config.max_generation_batches > 1:
                rollout.compute_rewards(self.grading, config)
                if len(rollout.groups) == config.prompts_per_step:
                    break
        return rollout


class Trainer:
    """The compiled programs of RL on this stage's shapes."""

    def __init__(self, layout: Layout, model: ModelConfig, config: RLConfig, loss: LossFunction = grpo_loss):
        self.layout, self.model, self.config = layout, model, config
        self.temperature = np.float32(config.sampling.temperature)
        self.shape = batch_shape(config, programs.on_platform(layout, model), layout.round_up(1))
        spec = LossSpec(config.loss, config.sampling.max_new_tokens, config.optimizer.mtp, loss)
        self.logprobs_program = programs.make_add_logprobs(layout, model, spec, old=config.needs_old_logprobs)
        self.gradients_program = programs.make_rl_gradients(layout, model, spec)
        self.update_program = programs.make_rl_update(layout, model, config.optimizer)

    def start(self, base: epath.Path) -> RLState:
        """A fresh optimizer on the base policy, which is also the first reference."""
        model = updated_model(self.config.optimizer, self.model)
        return self.start_from(load_policy(base, self.layout, model).weights)

    def start_from(self, weights: Weights) -> RLState:
        """`start` on weights in the dtypes of `updated_model`; their buffers are donated."""
        train = programs.make_start_training(self.layout, self.model, self.config.optimizer)(weights)
        reference = snapshot(train.weights) if self.config.has_reference else None
        return RLState(train, reference, jax.device_put(np.int32(0), self.layout.replicated()))

    def add_logprobs(
        self, state: RLState, minibatches: Sequence[Sequence[Sample]]
    ) -> tuple[list[list[Batch]], Metrics]:
        """Packs each minibatch that is not empty into microbatches, with the log-probabilities that the loss reads.

        With one update per rollout the old policy is the one that is updated: no pass is run for its log-probabilities,
        `rl_loss` takes its own as constants.
        """
        metrics: Metrics = packing_metrics([], [])
        packed: list[list[Batch]] = []
        reference = on_device(state.reference)
        needs_pass = self.config.needs_old_logprobs or self.config.has_reference
        for samples in filter(len, minibatches):
            packed.append([])
            batches = pack_microbatches(samples, self.shape)
            metrics = merge_metrics(metrics, packing_metrics(samples, batches))
            for batch in map(self.layout.put_batch, batches):
                if needs_pass:
                    batch, gap = self.logprobs_program(state.train.weights, reference, batch, self.temperature)
                    metrics = merge_metrics(metrics, gap)
                packed[-1].append(batch)
        return packed, metrics

    def update(
        self, state: RLState, packed: Sequence[Sequence[Batch]], step: int, after_microbatch: Callable[[], None]
    ) -> tuple[RLState, Metrics]:
        """One update on each minibatch, in each epoch; `after_microbatch` is called after each microbatch."""
        config, metrics = self.config, dict[str, Any]()
        # Schedules count planned updates, so that a minibatch without samples does not shift them.
        updates_before = (step - 1) * config.updates_per_rollout
        for i, minibatch in enumerate(list(packed) * config.epochs_per_rollout):
            total = self.gradients(state.train.weights, minibatch, after_microbatch)
            rate = learning_rate(config.optimizer, updates_before + i, config.steps * config.updates_per_rollout)
            train = replace(state.train, opt_state=on_device(state.train.opt_state))
            train, update_metrics = self.update_program(train, total, np.float32(rate))
            if updates_before + i == 0:
                require_change(update_metrics, config.optimizer, self.model)
            state, metrics = replace(state, train=train), merge_metrics(metrics, update_metrics)
            state = offload(state, config)
            del train, total  # or the sum of gradients, and what was offloaded, would stay on the devices
        return state, jax.block_until_ready(metrics)  # the log reads them next; waiting is part of the update's time

    def gradients(
        self, weights: Weights, minibatch: Sequence[Batch], after_microbatch: Callable[[], None] = lambda: None
    ) -> Gradients:
        """The gradient of the loss summed over a minibatch, microbatch by microbatch."""
        total: Gradients | None = None
        for batch in minibatch:
            gradients = self.gradients_program(weights, batch, self.temperature)
            total = gradients if total is None else programs.add_gradients(total, gradients)
            del gradients  # the devices hold two trees of them at most
            after_microbatch()
        assert total is not None  # `pack_microbatches` makes one at least
        return total

    def refresh_reference(self, state: RLState, step: int) -> RLState:
        """Every `reference_refresh_updates` updates the reference becomes the latest policy (R1 supplement)."""
        per_step, every = self.config.updates_per_rollout, self.config.reference_refresh_updates
        passes_multiple = step * per_step // every > (step - 1) * per_step // every
        if not (self.config.has_reference and passes_multiple):
            return state
        weights, updates_done = snapshot((state.train.weights, state.train.step))
        return offload(replace(state, reference=weights, reference_update=updates_done), self.config)


def offload(state: RLState, config: RLConfig) -> RLState:
    """Moves the parts of the state that `RLConfig.offload` lists to the hosts' memory."""
    if "reference" in config.offload:
        state = replace(state, reference=on_host(state.reference))
    if "optimizer" in config.offload:
        state = replace(state, train=replace(state.train, opt_state=on_host(state.train.opt_state)))
    return state


def is_due(step: int, config: RLConfig) -> bool:
    return step % config.save_every == 0 or step == config.steps


class Checkpoints:
    """Saves and restores the state with the position in the prompts."""

    def __init__(self, stage: Stage, config: RLConfig, feed: grain.DatasetIterator):
        self.stage, self.config, self.feed = stage, config, feed
        self.store = CheckpointStore(stage.checkpoints, kept=config.checkpoints)

    def resume(self, state: RLState) -> tuple[RLState, int]:
        """The latest checkpoint, or `state`; and the number of steps that are done."""
        done = broadcast_from_main(f"{self.stage.name}: its latest checkpoint", self.store.latest_step) or 0
        say_if_lost(self.stage, done, self.config.save_every)
        if done:
            state, position = restore_onto(self.store, done, state)
            self.feed.set_state(position)
        return offload(state, self.config), done

    def is_due(self, step: int) -> bool:
        return is_due(step, self.config)

    def save(self, step: int, state: RLState, position: Any = None, metric: float | None = None) -> None:
        """Saves the state after `step`, with the feed's `position`, by default the present one, and its validation."""
        task = self.stage.task
        metadata = make_metadata(self.stage.model, task.name, task.template)
        self.store.save(step, *split_policy(state), position or self.feed.get_state(), metadata, metric)
        self.stage.run.saved()

    @contextmanager
    def save_on_failure(self, step: int, state: RLState | None) -> Iterator[None]:
        """Saves `state`, which is that before `step`, on an error or a request to stop; names the step in the error.

        `state` is None in a validation: the one before the step is gone, and the step is not complete.
        """
        name, position = self.stage.name, self.feed.get_state()
        try:
            yield
        except (RunError, Preempted) as error:
            agreed = isinstance(error, Preempted) or jax.process_count() == 1  # all processes save, or none
            is_newer = step - 1 > (self.store.latest_step() or 0)
            if state is not None and is_newer and agreed and not self.config.max_staleness:
                self.save(step - 1, state, position)
            resumes = (self.store.latest_step() or 0) + 1
            self.store.close()
            if isinstance(error, Preempted):
                raise Preempted(f"{name} is saved at step {resumes - 1}") from error
            raise RunError(f"{name}, step {step}: {error}. Started again, it resumes with step {resumes}") from error


class RLLog:
    """Metrics, samples and progress of each step."""

    SHOWN = ("reward", "accuracy", "response_tokens", "tokens_per_second")
    PATIENCE = 5  # steps without an advantage after which there is a warning

    def __init__(self, stage: Stage, config: RLConfig, done: int, clock: Stopwatch):
        self.stage, self.config, self.clock = stage, config, clock
        self.metrics = MetricsWriter(stage.directory, done + 1, stage.loggers(done + 1))
        self.samples = SamplesWriter(stage.directory, done + 1, self.metrics)
        self.progress: Progress = stage.run.progress.start(stage.name, done, config.steps)
        self.profiler = stage.profiler()
        self.steps_without_advantages = 0

    def __enter__(self) -> "RLLog":
        return self

    def begin(self, step: int) -> None:
        """Starts the clock, and the profiler where the step is one to trace."""
        self.profiler.begin(step)
        self.clock.restart()

    def __exit__(self, *exception: Any) -> None:
        self.progress.__exit__(*exception)
        self.profiler.close()
        self.metrics.close(failed=exception[0] is not None)

    def write(self, step: int, rollout: Rollout, metrics: Metrics, others: Mapping[str, float]) -> None:
        """Everything that is known of a step. Raises RunError when a metric is not finite."""
        values = {**rollout.metrics, "staleness": float(rollout.staleness)}
        values |= finite_values(metrics, self.stage.name, step)
        values |= summarize(rollout.drawn) | spread(rollout.drawn)
        values["groups_with_signal"] = fmean(has_signal(group) for group in rollout.drawn)
        values["samples_trained"] = float(sum(s.valid for group in rollout.groups for s in group))
        # The share of the step in which the devices did not decode, score, update or validate.
        busy = rollout.device_seconds + self.clock.seconds["update"] + self.clock.seconds["validation"]
        values |= self.clock.figures() | {"device_idle": max(0.0, 1 - busy / self.clock.total)}
        layout = self.stage.run.layout
        flops = rl_step_flops(self.stage.model, self.config, rollout.drawn, rollout.groups)
        values |= throughput(layout, values["rollout_tokens"], flops, self.clock.total)
        values["seconds_left"] = self.progress.seconds_left(step)
        values |= {**others, "memory_gib": memory_in_use(layout) / GIB}
        if step % self.config.log_samples_every == 0:
            self.samples.write(step, rollout.drawn, trained=rollout.groups)
        self.metrics.write(step, values)
        self.warn(rollout.groups)
        self.progress.step(step, {name: values[name] for name in self.SHOWN if name in values})

    def warn(self, groups: Sequence[Sequence[Sample]]) -> None:
        """Says when no sample has had an advantage for some steps."""
        has_advantages = any(np.any(sample.advantages) for group in groups for sample in group if sample.valid)
        self.steps_without_advantages = 0 if has_advantages else self.steps_without_advantages + 1
        if self.steps_without_advantages == self.PATIENCE:
            self.progress.say(
                f"{self.stage.name}: nothing was learnt in {self.PATIENCE} steps: all samples of each prompt earn the"
                " same. Look at samples.jsonl: is a reward always 0, are responses cut off, are problems too hard?"
            )
