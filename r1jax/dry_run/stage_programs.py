"""The programs that each stage runs, in order, with abstract arguments: known from its config, without any array.

Each program comes from the maker that the stage calls, and takes the results of earlier ones and the stage's own empty
batches. Where a stage compiles a program for several sizes (prompts, caches), the largest stands for all. JAX's small
programs of single operations are left out. `tests/pods_and_clouds/test_dry_run.py` compares all this with a run's.
"""

import functools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np

from r1jax.config import (
    ModelConfig,
    PreferencesConfig,
    PretrainConfig,
    RewardModelConfig,
    RLConfig,
    RolloutStageConfig,
    SFTConfig,
    StageConfig,
)
from r1jax.data.demonstrations import sft_batch
from r1jax.data.feeds import empty_rows, token_batch
from r1jax.data.preferences import pad_rows, preference_batch
from r1jax.data.tasks import TASKS
from r1jax.objectives.grpo import LossSpec
from r1jax.objectives.language_model import LossTerms
from r1jax.objectives.optimizer import updated_model
from r1jax.parallel import programs, reward_programs, rollout_programs, transfers
from r1jax.parallel.layout import Layout
from r1jax.rollout.engine import RolloutEngine
from r1jax.rollout.packing import batch_shape, pack_microbatches
from r1jax.runs import learned_reward
from r1jax.runs.policy import placed_weights
from r1jax.runs.state import State, split_policy
from r1jax.sampling.append import Appended
from r1jax.sampling.decode import tokens_per_step
from r1jax.sampling.draw import position_key
from r1jax.telemetry.flops import Work
from r1jax.types import Environments, RLState, Weights


@dataclass(frozen=True)
class Program:
    """A jitted program and its abstract arguments. Those without a sharding come from the host as they are."""

    name: str
    jitted: Any
    arguments: tuple
    work: Work | None = None  # None: it runs no model

    @functools.cached_property
    def traced(self):
        return self.jitted.trace(*self.arguments)

    @property
    def result(self) -> Any:
        """Its abstract results, with their shardings."""
        return self.traced.out_info

    @property
    def key(self):
        """Equal for programs that JAX would compile once."""
        leaves, tree = jax.tree.flatten(self.arguments)
        return self.jitted, tree, tuple(leaves)

    @property
    def argument_bytes(self) -> int:
        """On each device; what has no sharding is on all of them."""
        leaves = jax.tree.leaves(self.arguments)
        shapes = [x.sharding.shard_shape(x.shape) if x.sharding else x.shape for x in leaves]
        return sum(int(np.prod(shape)) * x.dtype.itemsize for shape, x in zip(shapes, leaves, strict=True))


def abstract(tree):
    """The shapes and dtypes of arrays, as arguments without a sharding."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)


KEY = jax.eval_shape(lambda: position_key(0))
SCALAR = abstract(np.float32(1))  # a temperature or a learning rate


def stage_programs(
    layout: Layout, model: ModelConfig, config: StageConfig, environments: Environments | None = None
) -> Iterator[Program]:
    """In the order in which the stage first runs them; `model` and `environments` are the experiment's."""
    if isinstance(config, PretrainConfig):
        return pretrain_programs(layout, model, config)
    if isinstance(config, SFTConfig):
        return sft_programs(layout, model, config)
    if isinstance(config, RewardModelConfig):
        return reward_model_programs(layout, model, config)
    if isinstance(config, RLConfig):
        return rl_programs(layout, model, config, environments)
    return rollout_stage_programs(make_engine(layout, model, config, environments), placed_weights(layout, model))


def make_engine(
    layout: Layout, model: ModelConfig, config: RolloutStageConfig, environments: Environments | None
) -> RolloutEngine:
    is_rl = isinstance(config, RLConfig)
    group_size = config.group_size if isinstance(config, RLConfig) else config.samples_per_prompt
    return RolloutEngine(
        layout,
        model,
        None,
        config.engine,
        config.sampling,
        group_size,
        keeps_sampling_masks=is_rl,
        checks_memory=False,
        environments=None if isinstance(config, PreferencesConfig) else environments,  # preferences have one turn
    )


def pretrain_programs(layout: Layout, model: ModelConfig, config: PretrainConfig) -> Iterator[Program]:
    init_weights = programs.make_init_weights(layout, updated_model(config.optimizer, model))
    yield (init := Program("init_weights", init_weights, (KEY,)))
    batch = token_batch(empty_rows(config.batch_size, config.sequence_length))
    yield from language_model_programs(layout, model, config, init.result, "pretrain_step", batch)


def sft_programs(layout: Layout, model: ModelConfig, config: SFTConfig) -> Iterator[Program]:
    batch = sft_batch(empty_rows(0, config.sequence_length, "loss_mask"), config)
    weights = placed_weights(layout, updated_model(config.optimizer, model))
    return language_model_programs(layout, model, config, weights, "sft_step", batch)


def language_model_programs(
    layout: Layout, model: ModelConfig, config: PretrainConfig | SFTConfig, weights: Weights, name: str, batch
) -> Iterator[Program]:
    start_training = programs.make_start_training(layout, model, config.optimizer)
    yield (start := Program("start_training", start_training, (weights,)))
    batch = layout.abstract_batch(batch)
    step = programs.make_language_model_step(layout, model, config.optimizer, LossTerms.of(config))
    yield Program(name, step, (start.result, batch, SCALAR), over_rows(batch.tokens_BT, 3))
    yield checksums(layout, start.result)


def reward_model_programs(layout: Layout, model: ModelConfig, config: RewardModelConfig) -> Iterator[Program]:
    """With the scores that RL asks of the model (`LearnedReward`)."""
    scored, size, T = reward_programs.scored_model(model), layout.round_up(config.batch_size), config.max_tokens
    trunk = reward_programs.trunk(placed_weights(layout, updated_model(config.optimizer, model)), scored)
    start_reward_model = reward_programs.make_start_reward_model(layout, scored, config.optimizer)
    yield (start := Program("start_reward_model", start_reward_model, (trunk,)))
    task = next(iter(TASKS.values()))  # any: there is nothing to encode
    batch = layout.abstract_batch(preference_batch(task, config.kind, [], size, T))
    step = reward_programs.make_reward_model_step(layout, scored, config.optimizer, config.kind)
    yield Program("reward_model_step", step, (start.result, batch, SCALAR), over_rows(batch.tokens_BT, 3))
    metrics = reward_programs.make_reward_model_metrics(layout, scored, config.kind)
    yield Program("reward_model_metrics", metrics, (*start.result.weights, batch), over_rows(batch.tokens_BT, 1))
    yield checksums(layout, start.result)
    rows = layout.abstract_batch(pad_rows([], layout.round_up(learned_reward.ROWS), T))
    scores = reward_programs.make_reward_scores(layout, scored)
    yield Program("reward_scores", scores, (*placed_weights(layout, scored), *rows), over_rows(rows[0], 1))


def rl_programs(
    layout: Layout, model: ModelConfig, config: RLConfig, environments: Environments | None
) -> Iterator[Program]:
    start_training = programs.make_start_training(layout, model, config.optimizer)
    weights = placed_weights(layout, updated_model(config.optimizer, model))
    yield (start := Program("start_training", start_training, (weights,)))
    train = start.result
    reference = train.weights if config.has_reference else None
    if config.has_reference or config.max_staleness:
        # The reference, and the policy that draws ahead.
        yield Program("snapshot", transfers.snapshot, (train.weights,))
    yield from rollout_stage_programs(make_engine(layout, model, config, environments), train.weights)

    (packed,) = pack_microbatches([], batch_shape(config, programs.on_platform(layout, model), layout.round_up(1)))
    objective = LossSpec(config.loss, config.sampling.max_new_tokens, config.optimizer.mtp)
    batch, passes = layout.abstract_batch(packed), config.needs_old_logprobs + config.has_reference
    work = over_rows(packed.tokens_BT, 3)
    if config.share_prompts:  # a token sees its sample and the prompt, not the row's other samples
        work = replace(work, context=config.sampling.max_tokens / 2)
    if passes:
        add_logprobs = programs.make_add_logprobs(layout, model, objective, old=config.needs_old_logprobs)
        arguments = (train.weights, reference, batch, SCALAR)
        yield (logprobs := Program("add_logprobs", add_logprobs, arguments, replace(work, passes=passes)))
        batch, _ = logprobs.result
    gradients = programs.make_rl_gradients(layout, model, objective)
    yield (part := Program("rl_gradients", gradients, (train.weights, batch, SCALAR), work))
    if config.accumulates:
        yield Program("add_gradients", programs.add_gradients, (part.result, part.result))
    yield Program("rl_update", programs.make_rl_update(layout, model, config.optimizer), (train, part.result, SCALAR))
    if config.refreshes_reference:
        yield Program("snapshot", transfers.snapshot, ((train.weights, train.step),))
    step = jax.ShapeDtypeStruct((), np.int32, sharding=layout.replicated())
    yield checksums(layout, RLState(train, reference, step))


def rollout_stage_programs(engine: RolloutEngine, weights: Weights) -> Iterator[Program]:
    """`RolloutEngine.max_programs` counts all sizes of them; `weights` are the trainer's."""
    spec, sampling = engine.spec, engine.sampling
    params = weights.params
    if spec.copies_weights:
        yield (copy := Program("copy_weights", rollout_programs.make_copy_weights(spec), (params,)))
        params = copy.result
    policy = jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
        weights._replace(params=params),
        rollout_programs.rollout_shardings(spec),
    )
    yield (slots := Program("make_slots", rollout_programs.make_slots(spec, engine.slots, engine.width), ()))
    prompts = spec.layout.abstract_batch(engine.empty_prompts(sampling.max_prompt_tokens))
    work = replace(over_rows(prompts[0], 1), absorbed=True)
    yield (prefilled := Program("prefill", rollout_programs.make_prefill(spec), (policy, *prompts), work))
    settings, numbers_S = abstract(engine.draw_settings()), jax.ShapeDtypeStruct((engine.slots,), np.int32)
    arguments = (slots.result, prefilled.result, numbers_S, numbers_S, KEY, settings)
    yield (begun := Program("insert", rollout_programs.make_insert(spec), arguments))
    is_idle_S = jax.ShapeDtypeStruct((engine.slots,), bool)
    decode = rollout_programs.make_decode(spec, engine.width)
    tokens = engine.slots * tokens_per_step(spec.engine) * spec.engine.steps_per_round
    work = Work(tokens, engine.width, 1, absorbed=True)
    yield Program("decode", decode, (policy, begun.result, is_idle_S, numbers_S, settings), work)
    if engine.environments:
        A, C = engine.append_rows, spec.engine.append_chunk
        tokens_AC, numbers_A = (jax.ShapeDtypeStruct(shape, np.int32) for shape in ((A, C), (A,)))
        new = Appended(tokens_AC=tokens_AC, length_A=numbers_A, slot_A=numbers_A, start_A=numbers_A, count_A=numbers_A)
        append = rollout_programs.make_append(spec, engine.width)
        yield Program("append", append, (policy, begun.result, new, settings), replace(work, tokens=A * C))


def over_rows(tokens, passes: int) -> Work:
    """Of tokens [..., T], in rows that are full: each looks at half of its row."""
    return Work(int(np.prod(tokens.shape)), tokens.shape[-1] / 2, passes)


def checksums(layout: Layout, state: State) -> Program:
    """Of the policy that a stage ends with."""
    return Program("checksums", transfers.make_checksums(layout), (split_policy(state)[0],))
