"""What each stage asks of the devices, known from its config alone: its programs, on abstract arrays.

A stage is written here once more, as the programs that it runs in their order: made by the makers that the stage calls,
on batches that its own functions make of nothing, each taking what those before it give. No array is made.
`tests/pods_and_clouds/test_dry_run.py` holds programs and shapes against those of a run.

Not here are the small programs that JAX makes of single operations. Where
a stage has one program for several sizes, the largest stands for them: the longest prompts, the widest cache.
"""

import functools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np

from r1jax.config import ModelConfig, PretrainConfig, RewardModelConfig, RLConfig, SFTConfig, StageConfig
from r1jax.data.demonstrations import taught_batch
from r1jax.data.feeds import empty_rows, token_batch
from r1jax.data.preferences import judged_batch, pad_rows
from r1jax.data.tasks import TASKS
from r1jax.model.flops import Work
from r1jax.parallel import programs, reward_programs
from r1jax.parallel.layout import Layout
from r1jax.rollout.engine import RolloutEngine
from r1jax.rollout.packing import microbatches
from r1jax.runs import learned_reward
from r1jax.runs.policy import policy_target
from r1jax.runs.state import State, split
from r1jax.sampling.decode import places
from r1jax.stages.rl import Learner
from r1jax.types import Params, RLState


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
        """What it gives, abstract, laid out as it lays it out."""
        return self.traced.out_info

    def lower(self):
        """A `jax.stages.Lowered`."""
        return self.traced.lower()

    @property
    def key(self):
        """Equal for those that JAX would compile once."""
        leaves, tree = jax.tree.flatten(self.arguments)
        return self.jitted, tree, tuple(leaves)

    @property
    def argument_bytes(self) -> int:
        """On each device; what has no sharding is on all of them."""
        leaves = jax.tree.leaves(self.arguments)
        shapes = [x.sharding.shard_shape(x.shape) if x.sharding else x.shape for x in leaves]
        return sum(int(np.prod(shape)) * x.dtype.itemsize for shape, x in zip(shapes, leaves, strict=True))


def abstract(tree):
    """Host arrays, and arrays of `jax.eval_shape`, as arguments that nobody has laid out."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)


KEY = jax.eval_shape(lambda: programs.random_key(0))
TEMPERATURE = abstract(np.float32(1))


def stage_programs(layout: Layout, model: ModelConfig, config: StageConfig) -> Iterator[Program]:
    """In the order in which the stage first runs them; `model` is the experiment's."""
    if isinstance(config, PretrainConfig):
        return pretrain_programs(layout, model, config)
    if isinstance(config, SFTConfig):
        return sft_programs(layout, model, config)
    if isinstance(config, RewardModelConfig):
        return reward_model_programs(layout, model, config)
    if isinstance(config, RLConfig):
        return rl_programs(layout, model, config)
    engine = make_engine(layout, model, config, config.samples)
    return rollout_programs(engine, *abstract_policy(layout, model))


def abstract_policy(layout: Layout, model: ModelConfig) -> tuple[Params, dict]:
    """(params, router_bias) as a checkpoint is restored."""
    item = policy_target(model, layout)
    return item["params"], item["router_bias"]


def make_engine(layout: Layout, model: ModelConfig, config, group_size: int) -> RolloutEngine:
    lengths = (config.max_prompt_tokens, config.max_new_tokens)
    return RolloutEngine(layout, model, None, config.rollout, group_size, *lengths, checks_memory=False)


def pretrain_programs(layout: Layout, model: ModelConfig, config: PretrainConfig) -> Iterator[Program]:
    yield (init := Program("init_policy", programs.init_policy(layout, model), (KEY,)))
    start = Program("start_training", programs.start_training(layout, model, config.optimizer), init.result)
    yield start
    batch = layout.abstract_batch(token_batch(empty_rows(config.batch_size, config.sequence_length)))
    step = programs.pretrain_step(layout, model, config)
    yield Program("pretrain_step", step, (start.result, batch), over_rows(batch.tokens_BT, 3))
    yield checksums(layout, start.result)


def sft_programs(layout: Layout, model: ModelConfig, config: SFTConfig) -> Iterator[Program]:
    """The number of steps is the data's: here the learning rate falls as in one step an epoch, another constant."""
    start_training = programs.start_training(layout, model, config.optimizer)
    yield (start := Program("start_training", start_training, abstract_policy(layout, model)))
    batch = layout.abstract_batch(taught_batch(empty_rows(0, config.sequence_length, "is_taught"), config))
    step = programs.sft_step(layout, model, config, config.epochs)
    yield Program("sft_step", step, (start.result, batch), over_rows(batch.tokens.tokens_BT, 3))
    yield checksums(layout, start.result)


def reward_model_programs(layout: Layout, model: ModelConfig, config: RewardModelConfig) -> Iterator[Program]:
    """And the scores that RL asks of the model (`LearnedReward`). Of the number of steps, see `sft_programs`."""
    scored, size, T = reward_programs.scored_model(model), layout.round_up(config.batch_size), config.max_tokens
    trunk = reward_programs.trunk(*abstract_policy(layout, model), scored)
    start_reward_model = reward_programs.start_reward_model(layout, scored, config.optimizer)
    yield (start := Program("start_reward_model", start_reward_model, trunk))
    task = next(iter(TASKS.values()))  # any: there is nothing to encode
    batch = layout.abstract_batch(judged_batch(task, config.kind, [], size, T))
    step = reward_programs.reward_model_step(layout, scored, config, config.epochs)
    yield Program("reward_model_step", step, (start.result, batch), over_rows(batch.tokens_BT, 3))
    state = start.result
    metrics = reward_programs.reward_model_metrics(layout, scored, config.kind)
    arguments = (state.params, state.router_bias, batch)
    yield Program("reward_model_metrics", metrics, arguments, over_rows(batch.tokens_BT, 1))
    yield checksums(layout, state)
    rows = layout.abstract_batch(pad_rows([], layout.round_up(learned_reward.ROWS), T))
    scores = reward_programs.reward_scores(layout, scored)
    yield Program("reward_scores", scores, (*abstract_policy(layout, scored), *rows), over_rows(rows[0], 1))


def rl_programs(layout: Layout, model: ModelConfig, config: RLConfig) -> Iterator[Program]:
    start_training = programs.start_training(layout, model, config.optimizer)
    yield (start := Program("start_training", start_training, abstract_policy(layout, model)))
    train = start.result
    policy = (train.params, train.router_bias)
    yield Program("snapshot", programs.snapshot, (policy,))  # of the reference, and of who draws ahead
    state = RLState(train, *policy, jax.ShapeDtypeStruct((), np.int32, sharding=layout.replicated()))

    engine = make_engine(layout, model, config, config.group_size)
    yield from rollout_programs(engine, *policy)
    rewards_BG = jax.ShapeDtypeStruct((config.questions, config.group_size), np.float32)
    yield Program("advantages", programs.advantages(config), (rewards_BG, rewards_BG, rewards_BG))

    learner = Learner(layout, model, config, engine.routes_shape)
    (packed,) = microbatches([], learner.shape, learner.routes)
    arguments, passes = (state, layout.abstract_batch(packed), TEMPERATURE), 2 if config.kl_coef else 1
    yield (prepare := Program("prepare_batch", learner.prepare, arguments, over_rows(packed.tokens.tokens_BT, passes)))
    batch, _ = prepare.result
    given = (*policy, batch, TEMPERATURE)
    yield (part := Program("grpo_gradients", learner.gradients, given, over_rows(packed.tokens.tokens_BT, 3)))
    if config.accumulates:
        yield Program("add_gradients", programs.add_gradients, (part.result, part.result))
    yield Program("grpo_update", learner.update, (train, part.result))
    if config.refreshes_reference:
        yield Program("snapshot", programs.snapshot, ((*policy, train.step),))
    yield checksums(layout, state)


def rollout_programs(engine: RolloutEngine, params: Params, router_bias: dict) -> Iterator[Program]:
    """`RolloutEngine.max_programs` counts all sizes of them; (params, router_bias) are the trainer's."""
    layout, model, config, P = engine.layout, engine.model, engine.config, engine.max_prompt_tokens
    if programs.copies_weights(model, config.weights) or config.mesh is not None:
        yield (copy := Program("copy_weights", programs.copy_weights(layout, model, config.weights), (params,)))
        params = copy.result
    shardings = programs.rollout_shardings(layout, model, config.weights)
    policy = jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), (params, router_bias), shardings
    )
    make_slots = programs.make_slots(layout, model, config, engine.slots, engine.width)
    yield (slots := Program("make_slots", make_slots, ()))
    prompts = layout.abstract_batch(engine.empty_prompts(P))
    work = replace(over_rows(prompts[0], 1), absorbed=True)
    yield (prefilled := Program("prefill", programs.make_prefill(layout, model, config), (*policy, *prompts), work))
    settings, places_S = abstract(engine.settings(1.0, False)), jax.ShapeDtypeStruct((engine.slots,), np.int32)
    arguments = (slots.result, prefilled.result, places_S, places_S, KEY, settings)
    yield (begun := Program("insert", programs.make_insert(layout, model, config), arguments))
    is_free_S, limit = jax.ShapeDtypeStruct((engine.slots,), bool), jax.ShapeDtypeStruct((), np.int32)
    decoder = programs.make_decode(layout, model, config, engine.width)
    work = Work(engine.slots * places(config) * config.steps_per_round, engine.width, 1, absorbed=True)
    yield Program("decode", decoder, (*policy, begun.result, is_free_S, limit, settings), work)


def over_rows(tokens, passes: int) -> Work:
    """Of tokens [..., T], in rows that are full: each looks at half of its row."""
    return Work(int(np.prod(tokens.shape)), tokens.shape[-1] / 2, passes)


def checksums(layout: Layout, state: State) -> Program:
    """Of the policy that a stage ends with."""
    return Program("checksums", programs.checksums(layout), (split(state)[0],))
