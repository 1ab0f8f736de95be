"""What rollouts and training hold on each device, known from shapes alone, before anything is made."""

import math
import os
import resource
from typing import Any

import jax

from r1jax.config import (
    ModelConfig,
    OptimizerConfig,
    PretrainConfig,
    RewardModelConfig,
    RLConfig,
    RolloutConfig,
    SFTConfig,
    StageConfig,
)
from r1jax.errors import UsageError
from r1jax.parallel import programs
from r1jax.parallel.chips import chip_of
from r1jax.parallel.layout import Layout, rollout_layout
from r1jax.parallel.reward_programs import scored_model
from r1jax.sampling.decode import empty_slots, places

GIB = 2**30


def bytes_per_device(abstract: Any, shardings: Any) -> int:
    """Of a tree of abstract arrays, laid out as the tree of shardings says."""

    def one(x, sharding) -> int:
        return math.prod(sharding.shard_shape(x.shape)) * x.dtype.itemsize

    return sum(jax.tree.leaves(jax.tree.map(one, abstract, shardings)))


def weights_memory(layout: Layout, model: ModelConfig) -> int:
    """Of a policy, or a reward model."""
    return bytes_per_device(programs.abstract_policy(model)[0], layout.params(model))


def training_memory(layout: Layout, model: ModelConfig, config: OptimizerConfig) -> dict[str, int]:
    """The state of a stage that learns from records, and a step's gradients."""
    state = jax.eval_shape(programs.start_training(layout, model, config), *programs.abstract_policy(model))
    moments = bytes_per_device(state.opt_state, programs.train_state_shardings(layout, model, config).opt_state)
    weights = weights_memory(layout, model)
    return {"weights": weights, "optimizer": moments, "gradients": weights}


def rl_memory(layout: Layout, model: ModelConfig, config: RLConfig) -> dict[str, int]:
    """The state of an RL stage, and its gradients; learned rewards are the experiment's, and are not counted."""
    held = training_memory(layout, model, config.optimizer)
    sums = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, "float32"), programs.abstract_policy(model)[0])
    trees = 2 if config.accumulates else 1  # of two microbatches, to be added
    one = bytes_per_device(sums, layout.params(model))
    held |= {"gradients": trees * one, "reference": held["weights"]}
    if "reference" in config.offload:  # it is back when there are no gradients yet, which are larger
        del held["reference"]
    if "optimizer" in config.offload:  # it is back when gradients are added up
        held["moments, back"] = max(0, held.pop("optimizer") - (trees - 1) * one)
    return held | ({"policy that draws ahead": held["weights"]} if config.staleness else {})


def prefill_rows(layout: Layout, config: RolloutConfig, P: int) -> int:
    """Prompts of P tokens that are run at once: fewer of those that take several chunks, for about the same work."""
    chunks = -(-P // config.prefill_chunk)
    return layout.round_up(max(1, config.prefill_rows // chunks))


def rollout_memory(layout: Layout, model: ModelConfig, config: RolloutConfig, P: int, N: int) -> dict[str, int]:
    """What rollouts hold beside the trainer's weights, with prompts of at most P tokens and outputs of at most N."""
    layout = rollout_layout(layout, config)
    slots, T, heads = layout.round_up(config.slots), places(config), model.num_attention_heads
    shards = layout.round_up(1)
    width, here = P + N + config.steps_per_round * T, slots // shards
    params, _ = programs.abstract_policy(model)
    weights = jax.eval_shape(lambda p: programs.rollout_weights(p, model, config.weights), params)
    is_copy = programs.copies_weights(model, config.weights) or config.mesh is not None
    copy = bytes_per_device(weights, programs.rollout_shardings(layout, model, config.weights)[0])
    cache = jax.eval_shape(lambda: empty_slots(model, config, slots, width)).cache
    # Prompts of one chunk are run in the most rows; the longest ones look at the most.
    chunk = min(config.prefill_chunk, P)
    runs = [(prefill_rows(layout, config, length), length) for length in (chunk, P)]
    rows, length = max(runs, key=math.prod)
    prompts = jax.eval_shape(lambda: empty_slots(model, config, rows, length)).cache
    scored = max(here * T * (width + T), *(rows // shards * chunk * (length + chunk) for rows, length in runs))
    return {
        "copy of the weights": copy if is_copy else 0,
        "cache": bytes_per_device(cache, programs.slot_shardings(layout, model, config).cache),
        "prompts": bytes_per_device(prompts, jax.tree.map(lambda _: programs.by_row(layout), prompts)),
        # In float32: before and after the softmax; with noise and log-probabilities.
        "attention scores": 2 * 4 * heads * scored,
        "logits": 3 * 4 * model.vocab_size * max(here * T, runs[0][0] // shards),
    }


def stage_memory(layout: Layout, model: ModelConfig, config: StageConfig) -> dict[str, int]:
    """What a stage holds on each device, not all of it `at_once`.

    Not counted: what training steps compute (activations, logits), batches, and learned rewards that RL asks.
    """
    if isinstance(config, PretrainConfig | SFTConfig):
        return training_memory(layout, model, config.optimizer)
    if isinstance(config, RewardModelConfig):
        return training_memory(layout, scored_model(model), config.optimizer)
    held = {"weights": weights_memory(layout, model)}
    if isinstance(config, RLConfig):
        held = rl_memory(layout, model, config)
    return held | rollout_memory(layout, model, config.rollout, config.max_prompt_tokens, config.max_new_tokens)


def at_once(held: dict[str, int]) -> dict[str, int]:
    """Of the parts of `stage_memory`, those that are there together, when they are the most.

    Rollouts are over before gradients are made, unless a policy draws ahead.
    """
    if held.get("policy that draws ahead"):
        return held
    updates = {part: size for part, size in held.items() if part not in ROLLOUTS}
    rollouts = {part: size for part, size in held.items() if part not in ("gradients", "moments, back")}
    return max(updates, rollouts, key=lambda parts: sum(parts.values()))


ROLLOUTS = ("copy of the weights", "cache", "prompts", "attention scores", "logits")
IN_TRAINING = ("weights", "optimizer", "reference", "policy that draws ahead")
IN_ROLLOUTS = (*IN_TRAINING, "copy of the weights", "cache", "prompts")
# What each program has of these among its own arguments, or makes. Others have the weights.
TAKES = {
    "init_policy": IN_TRAINING,
    "start_training": IN_TRAINING,
    "start_reward_model": IN_TRAINING,
    "pretrain_step": ("weights", "optimizer"),
    "sft_step": ("weights", "optimizer"),
    "reward_model_step": ("weights", "optimizer"),
    "reward_scores": IN_TRAINING,  # asked of the stage that RL trains, whose memory is said there
    "prepare_batch": ("weights", "reference"),
    "grpo_update": ("weights", "optimizer"),
    "add_gradients": (),
    "advantages": (),
    "copy_weights": ("weights", "copy of the weights", "cache", "prompts"),
    "snapshot": ("weights", "reference", "policy that draws ahead"),
    "make_slots": ("cache", "prompts"),
    "prefill": ("prompts",),
    "insert": ("cache", "prompts"),
    "decode": ("cache",),
}


def held_beside(held: dict[str, int], program: str, *, accumulates: bool) -> dict[str, int]:
    """What a stage has on each device beside a program's own, while that runs.

    `held` is `stage_memory`'s; `accumulates`: its gradients are two trees, the sum of those before among them.
    """
    parts = IN_ROLLOUTS if program in ("copy_weights", "make_slots", "prefill", "insert", "decode") else IN_TRAINING
    takes = set(TAKES.get(program, ("weights",)))
    if program in ("prefill", "decode"):
        reads = ("copy of the weights", "policy that draws ahead", "weights")
        takes.add(next(part for part in reads if held.get(part)))
    if held.get("policy that draws ahead"):  # its rollout goes on while training does
        parts = IN_ROLLOUTS
    beside = {part: held[part] for part in parts if part not in takes and held.get(part)}
    return beside | ({"gradients": held["gradients"] // 2} if accumulates and program == "grpo_gradients" else {})


def device_memory(layout: Layout) -> int:
    """Bytes of each device of the mesh; CPU devices share the machine's, and TPUs need not be there."""
    if chip := chip_of(layout.mesh.devices.ravel()[0]):
        return chip.hbm
    device = layout.mesh.local_devices[0]
    if device.platform != "cpu":
        return device.memory_stats()["bytes_limit"]
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // device.client.local_device_count()


def memory_in_use(layout: Layout) -> int:
    """The most bytes that a device of the mesh has held so far; of CPU devices, this process."""
    statistics = layout.mesh.local_devices[0].memory_stats()
    if statistics and "peak_bytes_in_use" in statistics:
        return statistics["peak_bytes_in_use"]
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def require_memory(layout: Layout, needs: dict[str, int]) -> None:
    """Raises UsageError when `needs` are more than a device has."""
    needed, there = sum(needs.values()), device_memory(layout)
    if needed > there:
        parts = ", ".join(f"{name} {size / GIB:.2f}" for name, size in needs.items() if size >= 0.005 * GIB)
        raise UsageError(
            f"{needed / GIB:.2f} GiB are needed on each device, which has {there / GIB:.2f}: {parts}. {KNOBS}"
        )


KNOBS = (
    "Set RolloutConfig.slots, max_new_tokens or RolloutConfig.prefill_rows lower; MeshConfig divides all over more"
    " devices"
)
