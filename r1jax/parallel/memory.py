"""The memory that rollouts and training need on each device, computed from shapes before anything is allocated."""

import functools
import math
import os
from typing import Any

import jax

from r1jax.config import (
    EngineConfig,
    ModelConfig,
    OptimizerConfig,
    PretrainConfig,
    RewardModelConfig,
    RLConfig,
    RolloutStageConfig,
    SamplingConfig,
    SFTConfig,
    StageConfig,
)
from r1jax.errors import UsageError
from r1jax.model.context_attention import CHUNK
from r1jax.objectives.optimizer import updated_model
from r1jax.parallel import programs, rollout_programs
from r1jax.parallel.chips import chip_of
from r1jax.parallel.layout import Layout, rollout_layout
from r1jax.parallel.reward_programs import scored_model
from r1jax.sampling.decode import empty_slots, tokens_per_step
from r1jax.sampling.draw import Truncation

GIB = 2**30


def bytes_per_device(abstract: Any, shardings: Any) -> int:
    """The bytes of a tree of abstract arrays on each device, sharded by the tree `shardings`."""
    sizes = jax.tree.map(lambda x, s: math.prod(s.shard_shape(x.shape)) * x.dtype.itemsize, abstract, shardings)
    return sum(jax.tree.leaves(sizes))


def weights_memory(layout: Layout, model: ModelConfig) -> int:
    """The bytes of the params of a policy or reward model on each device."""
    return bytes_per_device(programs.abstract_weights(model).params, layout.params(model))


def training_memory(layout: Layout, model: ModelConfig, config: OptimizerConfig) -> dict[str, int]:
    """The state of a training stage without rollouts, and one step's gradients."""
    weights = programs.abstract_weights(updated_model(config, model))
    state = jax.eval_shape(programs.make_start_training(layout, model, config), weights)
    optimizer = bytes_per_device(state.opt_state, programs.train_state_shardings(layout, model, config).opt_state)
    stored = weights_memory(layout, model)
    return {"weights": stored, "optimizer": optimizer, "gradients": stored}


def rl_memory(layout: Layout, model: ModelConfig, config: RLConfig) -> dict[str, int]:
    """The state of an RL stage, and its gradients. Learned rewards aren't counted, since the experiment makes them."""
    held = training_memory(layout, model, config.optimizer)
    sums = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, "float32"), programs.abstract_weights(model).params)
    trees = 2 if config.accumulates else 1  # a microbatch's gradients are added to the sum of those before
    one = bytes_per_device(sums, layout.params(model))
    held["gradients"] = trees * one
    # An offloaded reference isn't counted: it returns before gradients, which are larger, are allocated.
    if config.has_reference and "reference" not in config.offload:
        held["reference"] = held["weights"]
    if "optimizer" in config.offload:  # it returns after the gradients are summed
        held["optimizer, back"] = max(0, held.pop("optimizer") - (trees - 1) * one)
    return held | ({"policy that draws ahead": held["weights"]} if config.max_staleness else {})


def prefill_rows(layout: Layout, config: EngineConfig, P: int) -> int:
    """Prompts of P tokens in one prefill: fewer if they take several chunks, for about the same work."""
    return layout.round_up(max(1, config.prefill_rows // -(-P // config.prefill_chunk)))


def rollout_memory(
    spec: rollout_programs.RolloutSpec, sampling: SamplingConfig, *, appends: bool = False
) -> dict[str, int]:
    """What rollouts allocate in addition to the trainer's weights; `appends` what environments answer to the slots."""
    layout, model, engine, P = spec.layout, spec.model, spec.engine, sampling.max_prompt_tokens
    slots, T, heads = layout.round_up(engine.slots), tokens_per_step(engine), model.num_attention_heads
    shards = layout.round_up(1)
    width, here = sampling.max_tokens + engine.steps_per_round * T, slots // shards
    params = programs.abstract_weights(model).params
    run = functools.partial(rollout_programs.rollout_params, dtype=engine.weight_dtype, unstacks=spec.unstacks)
    copy = jax.eval_shape(lambda p: run(p, model), params)
    copy_bytes = bytes_per_device(copy, rollout_programs.rollout_shardings(spec).params)
    make = functools.partial(empty_slots, model, engine, spec.truncation)
    abstract = jax.eval_shape(lambda: make(slots, width, blocked=spec.writes_cache))
    # Prompts of one chunk have the most rows in a prefill; the longest prompts attend to the most tokens.
    chunk = min(engine.prefill_chunk, P)
    runs = [(prefill_rows(layout, engine, length), length) for length in (chunk, P)]
    rows, length = max(runs, key=math.prod)
    prompts = jax.eval_shape(lambda: make(rows, length)).cache
    seen = min(width, CHUNK)  # at once
    prefilled = max(rows // shards * chunk for rows, _ in runs) * max(chunk, seen)
    A = layout.round_up(engine.append_rows) if appends else 0
    rows = max(here * T, A // shards * engine.append_chunk)
    scored = max(rows * (width if spec.writes_cache else seen), prefilled)
    masks = 4 * slots * engine.steps_per_round * T * spec.truncation.mask_ids  # a round's output, replicated
    cache = bytes_per_device(abstract.cache, rollout_programs.slot_shardings(spec).cache)
    return {
        "copy of the weights": copy_bytes if spec.copies_weights else 0,
        "cache": cache,
        "prompts": bytes_per_device(prompts, jax.tree.map(lambda _: rollout_programs.by_row(layout), prompts)),
        # In float32: of a chunk of the context, before and after the softmax; with noise and log-probabilities.
        "attention scores": 2 * 4 * heads * scored,
        "logits": 3 * 4 * model.vocab_size * max(here * T, runs[0][0] // shards),
    } | {name: size for name, size in {"sampling masks": masks, "appended rows": cache * A // slots}.items() if size}


def truncation(config: RolloutStageConfig) -> Truncation:
    """How a stage truncates the sampling distribution. RL keeps the ids that remain, for the trainer."""
    keeps = isinstance(config, RLConfig) and config.sampling.needs_mask
    return Truncation(config.sampling.truncates or keeps, config.sampling.sampling_mask_ids if keeps else 0)


def stage_memory(layout: Layout, model: ModelConfig, config: StageConfig) -> dict[str, int]:
    """The bytes of each part of a stage's memory on each device; not all parts exist `at_once`.

    Not counted: intermediates of training steps (activations, logits), batches, RL's learned rewards, and what
    environments need, which the experiment's task has: the engine counts it.
    """
    if isinstance(config, PretrainConfig | SFTConfig | RewardModelConfig):
        is_scored = isinstance(config, RewardModelConfig)
        return training_memory(layout, scored_model(model) if is_scored else model, config.optimizer)
    held = {"weights": weights_memory(layout, model)}
    if isinstance(config, RLConfig):
        held = rl_memory(layout, model, config)
    spec = rollout_programs.RolloutSpec(rollout_layout(layout, config.engine), model, config.engine, truncation(config))
    return held | rollout_memory(spec, config.sampling)


def at_once(held: dict[str, int]) -> dict[str, int]:
    """The parts of `stage_memory` that are allocated at the peak.

    Rollouts end before gradients are computed, unless the rollout is asynchronous.
    """
    if held.get("policy that draws ahead"):
        return held
    updates = {part: size for part, size in held.items() if part not in ROLLOUTS}
    rollouts = {part: size for part, size in held.items() if part not in ("gradients", "optimizer, back")}
    return max(updates, rollouts, key=lambda parts: sum(parts.values()))


ROLLOUTS = ("copy of the weights", "cache", "prompts", "attention scores", "logits", "sampling masks")
IN_TRAINING = ("weights", "optimizer", "reference", "policy that draws ahead")
IN_ROLLOUTS = (*IN_TRAINING, "copy of the weights", "cache", "prompts")
# The parts that are a program's arguments or results; for programs that aren't listed, the weights.
TAKES = {
    # reward_scores runs in an RL stage, and the row of that stage has the stage's memory.
    **dict.fromkeys(("init_weights", "start_training", "start_reward_model", "reward_scores"), IN_TRAINING),
    **dict.fromkeys(("pretrain_step", "sft_step", "reward_model_step", "rl_update"), ("weights", "optimizer")),
    "add_logprobs": ("weights", "reference"),
    "add_gradients": (),
    "copy_weights": ("weights", "copy of the weights", "cache", "prompts"),
    "snapshot": ("weights", "reference", "policy that draws ahead"),
    "make_slots": ("cache", "prompts"),
    "prefill": ("prompts",),
    "insert": ("cache", "prompts"),
    "decode": ("cache",),
    "append": ("cache",),
}


def resident_memory(held: dict[str, int], program: str, *, accumulates: bool) -> dict[str, int]:
    """The parts of a stage's memory `held` that stay on each device while a program runs, without the program's own.

    `accumulates`: gradients are summed over microbatches, so that rl_gradients runs beside the sum so far.
    """
    in_rollout = program in ("copy_weights", "make_slots", "prefill", "insert", "decode", "append")
    # An asynchronous rollout continues during training.
    parts = IN_ROLLOUTS if in_rollout or held.get("policy that draws ahead") else IN_TRAINING
    takes = set(TAKES.get(program, ("weights",)))
    if program in ("prefill", "decode", "append"):
        reads = ("copy of the weights", "policy that draws ahead", "weights")
        takes.add(next(part for part in reads if held.get(part)))
    resident = {part: held[part] for part in parts if part not in takes and held.get(part)}
    return resident | ({"gradients": held["gradients"] // 2} if accumulates and program == "rl_gradients" else {})


def device_memory(layout: Layout) -> int:
    """The bytes of each device of the mesh, also of TPUs that are only described; CPU devices share the machine's."""
    if chip := chip_of(layout.mesh.devices.ravel()[0]):
        return chip.hbm
    device = layout.mesh.local_devices[0]
    if device.platform != "cpu":
        return device.memory_stats()["bytes_limit"]
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // device.client.local_device_count()


def memory_in_use(layout: Layout) -> int:
    """The peak bytes of a device of the mesh so far; with CPU devices, those of this process (0 on Windows)."""
    statistics = layout.mesh.local_devices[0].memory_stats()
    if statistics and "peak_bytes_in_use" in statistics:
        return statistics["peak_bytes_in_use"]
    try:
        import resource
    except ImportError:  # Windows
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def require_memory(layout: Layout, needs: dict[str, int]) -> None:
    """Raises UsageError when the parts `needs` sum to more bytes than a device has."""
    needed, available = sum(needs.values()) / GIB, device_memory(layout) / GIB
    if needed > available:
        parts = ", ".join(f"{name} {size / GIB:.2f}" for name, size in needs.items() if size >= 0.005 * GIB)
        raise UsageError(f"each device needs {needed:.2f} GiB and has {available:.2f}: {parts}. {KNOBS}")


KNOBS = (
    "Lower EngineConfig.slots, SamplingConfig.max_new_tokens or EngineConfig.prefill_rows, or shard over more devices"
    " with MeshConfig"
)
