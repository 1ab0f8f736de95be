"""The plain layout of a rollout, which packing equals: one sample a row, its prompt padded on the left."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from r1jax.config import EngineConfig, ModelConfig, RLConfig, SamplingConfig
from r1jax.model.transformer import forward
from r1jax.objectives.grpo import LossSpec
from r1jax.objectives.logprobs import hidden_logprobs
from r1jax.objectives.metrics import Metrics, merge_metrics
from r1jax.parallel import programs
from r1jax.parallel.layout import Layout
from r1jax.parallel.transfers import snapshot
from r1jax.rollout.advantages import compute_advantages
from r1jax.rollout.engine import RolloutEngine
from r1jax.rollout.packing import batch_shape, pack_microbatches
from r1jax.types import (
    Array,
    Batch,
    Environments,
    Gradients,
    Params,
    Problem,
    RLState,
    Sample,
    TokenBatch,
    TrainState,
    Weights,
)


@struct.dataclass
class Prompts:
    """Left-padded prompts: the last prompt token of every row stands in the last column."""

    tokens_BP: Array  # int32
    length_B: Array  # int32
    id_B: Array  # int32, the problem's id


@struct.dataclass
class Generation:
    """What the sampler drew. Positions at and after length are undefined and must be masked."""

    tokens_BGN: Array  # int32
    logp_BGN: Array  # float32, as drawn
    length_BG: Array  # int32, the end token included
    finished_BG: Array  # bool
    routes_BGTLK: Array | None = None  # int16, T = P + N: the experts of each token; -1: the router chooses
    masks_BGNK: Array | None = None  # int32: ids of the tokens that could be drawn; -1: none


def problem(i: int) -> Problem:
    """A problem of which only the id matters."""
    return Problem(int(i), "", "", "en")


def generate(
    layout: Layout, model: ModelConfig, policy, prompts: Sequence[tuple[int, list[int]]], *, tokenizer: Any = None,
    group: int = 1, seed: int = 0, keeps_sampling_masks: bool = False, **numbers: Any,
) -> list[list[Sample]]:  # fmt: skip
    """Samples for (id, ids) prompts; `numbers` are of SamplingConfig and EngineConfig."""
    engine = make_engine(
        layout, model, tokenizer=tokenizer, group=group, keeps_sampling_masks=keeps_sampling_masks, **numbers
    )
    asked = [(problem(i), ids) for i, ids in prompts]
    return engine.generate(Weights(*policy), asked, jax.random.key(seed))


def make_engine(
    layout: Layout,
    model: ModelConfig,
    *,
    tokenizer: Any = None,
    group: int = 1,
    keeps_sampling_masks: bool = False,
    environments: Environments | None = None,
    **numbers,
) -> RolloutEngine:
    from tests.shared.configs import take

    sampling, engine = take(SamplingConfig, numbers), take(EngineConfig, numbers)
    assert not numbers, numbers
    return RolloutEngine(
        layout, model, tokenizer, engine, sampling, group, keeps_sampling_masks, environments=environments
    )


def trainer_arrays(
    prompts: Sequence[tuple[int, list[int]]], groups: list[list[Sample]], P: int, N: int
) -> tuple[Prompts, Generation]:
    """Prompts, padded on the left to P tokens, and responses, padded on the right to N."""
    B, G = len(prompts), len(groups[0])
    tokens_BP = np.zeros((B, P), np.int32)
    for row, (_, ids) in zip(tokens_BP, prompts, strict=True):
        row[P - len(ids) :] = ids
    length_B = np.asarray([len(ids) for _, ids in prompts], np.int32)
    tokens_BGN, logp_BGN = np.zeros((B, G, N), np.int32), np.zeros((B, G, N), np.float32)
    for b, group in enumerate(groups):
        for g, sample in enumerate(group):
            n = len(sample.response_tokens)
            tokens_BGN[b, g, :n] = sample.response_tokens
            logp_BGN[b, g, :n] = sample.response_logprobs
    length_BG = np.asarray([[len(s.response_tokens) for s in group] for group in groups], np.int32)
    finished_BG = np.asarray([[s.finished for s in group] for group in groups])
    routes_BGTLK = join_routes(prompts, groups, P, N) if groups[0][0].routes is not None else None
    masks_BGNK = None
    if groups[0][0].sampling_masks is not None:
        masks_BGNK = np.full((B, G, N, groups[0][0].sampling_masks.shape[1]), -1, np.int32)
        for b, group in enumerate(groups):
            for g, sample in enumerate(group):
                masks_BGNK[b, g, : length_BG[b, g]] = sample.sampling_masks[sample.prompt_length :]
    generation = Generation(tokens_BGN, logp_BGN, length_BG, finished_BG, routes_BGTLK, masks_BGNK)
    return Prompts(tokens_BP, length_B, np.asarray([i for i, _ in prompts], np.int32)), generation


def join_routes(prompts: Sequence[tuple[int, list[int]]], groups: list[list[Sample]], P: int, N: int) -> np.ndarray:
    """The experts of each token, [B, G, P + N, L, K], where `join` has the token; -1 at the padding."""
    B, G, shape = len(prompts), len(groups[0]), groups[0][0].routes.shape[1:]
    routes_BGTLK = np.full((B, G, P + N, *shape), -1, np.int16)
    for b, ((_, ids), group) in enumerate(zip(prompts, groups, strict=True)):
        for g, sample in enumerate(group):
            routes_BGTLK[b, g, P - len(ids) : P - len(ids) + len(sample.routes)] = sample.routes
    return routes_BGTLK


def prompt_batch(prompts: Prompts) -> TokenBatch:
    """Positions from 0 at each prompt's first token; the padding to its left is segment 0."""
    P = prompts.tokens_BP.shape[1]
    offset_BP = jnp.arange(P) - (P - prompts.length_B[:, None])
    is_token_BP = (offset_BP >= 0).astype(jnp.int32)
    return TokenBatch(tokens_BT=prompts.tokens_BP, positions_BT=offset_BP * is_token_BP, segment_ids_BT=is_token_BP)


def completion_mask(generation: Generation) -> Array:
    """float32 [B, G, N]: 1 on each output's tokens, by length and not by token id (a padding id may be drawn)."""
    N = generation.tokens_BGN.shape[-1]
    return (jnp.arange(N) < generation.length_BG[..., None]).astype(jnp.float32)


def join(prompts: Prompts, generation: Generation) -> TokenBatch:
    """Prompt and completion of each output in one row, [B * G, P + N]."""
    B, G, N = generation.tokens_BGN.shape
    left = prompt_batch(prompts)
    mask_BGN = completion_mask(generation).astype(jnp.int32)
    positions_BGN = jnp.broadcast_to(prompts.length_B[:, None, None] + jnp.arange(N), (B, G, N))

    def rows(left_BP, right_BGN):
        left_BGP = jnp.broadcast_to(left_BP[:, None], (B, G, left_BP.shape[1]))
        return jnp.concatenate([left_BGP, right_BGN], axis=-1).reshape(B * G, -1)

    return TokenBatch(
        tokens_BT=rows(left.tokens_BT, generation.tokens_BGN * mask_BGN),
        positions_BT=rows(left.positions_BT, positions_BGN * mask_BGN),
        segment_ids_BT=rows(left.segment_ids_BT, mask_BGN),
    )


def score(
    params: Params,
    router_bias: dict,
    batch: TokenBatch,
    new_tokens: int,
    temperature: Array | float,
    c: ModelConfig,
    routes_BTLK: Array | None = None,
    masks_BNK: Array | None = None,
) -> tuple[Array, Array, dict[str, Array]]:
    """log p and entropy of the last `new_tokens` tokens of each row, float32 [B, N], and the expert loads."""
    hidden = forward(params, router_bias, batch, c, routes_BTLK)
    predicting_BND = hidden.hidden_BTD[:, -new_tokens - 1 : -1]
    tokens_BN = batch.tokens_BT[:, -new_tokens:]
    logp_BN, entropy_BN = hidden_logprobs(
        params, predicting_BND, tokens_BN, temperature, masks_BNK, tokenizer_size=c.tokenizer_size
    )
    return logp_BN, entropy_BN, hidden.load


def taught(prompts: Prompts, generation: Generation, advantage_BG) -> list[Sample]:
    """The same as samples, with advantages, as packing takes them."""
    samples = as_samples(prompts, generation)
    for group, advantage_G in zip(samples, advantage_BG, strict=True):
        for sample, advantage in zip(group, advantage_G, strict=True):
            sample.advantages = np.full(len(sample.tokens), advantage, np.float32)
    return [sample for group in samples for sample in group]


def as_samples(prompts: Prompts, generation: Generation) -> list[list[Sample]]:
    """The samples of each prompt."""
    groups: list[list[Sample]] = []
    P = prompts.tokens_BP.shape[1]
    for b, (row, length, i) in enumerate(zip(prompts.tokens_BP, prompts.length_B, prompts.id_B, strict=True)):
        ids = row[P - length :].tolist()
        groups.append([])
        for g in range(generation.tokens_BGN.shape[1]):
            n = int(generation.length_BG[b, g])
            routes, masks = generation.routes_BGTLK, generation.masks_BGNK
            sample = Sample(
                problem(i),
                b,
                g,
                tokens=ids + generation.tokens_BGN[b, g, :n].tolist(),
                loss_mask=[0] * len(ids) + [1] * n,
                logprobs=[0.0] * len(ids) + generation.logp_BGN[b, g, :n].tolist(),
                finish_reason="stop" if generation.finished_BG[b, g] else "length",
                routes=None if routes is None else routes[b, g, P - length : P + n],
                sampling_masks=None
                if masks is None
                else np.pad(masks[b, g, :n], ((length, 0), (0, 0)), constant_values=-1),
            )
            groups[-1].append(sample)
    return groups


def weighed(config: RLConfig, generation: Generation, rewards_BG, valid_BG=None) -> np.ndarray:
    """Advantages [B, G], all samples valid unless `valid_BG` says otherwise."""
    B, G, N = generation.tokens_BGN.shape
    prompts = Prompts(np.ones((B, 1), np.int32), np.ones(B, np.int32), np.arange(B))
    groups = as_samples(prompts, generation)
    valid_BG = np.ones(rewards_BG.shape, bool) if valid_BG is None else valid_BG
    for group, rewards_G, valid_G in zip(groups, rewards_BG, valid_BG, strict=True):
        for sample, reward, valid in zip(group, rewards_G, valid_G, strict=True):
            sample.reward, sample.valid = float(reward), bool(valid)
    compute_advantages(groups, config.loss, config.sampling)
    return np.asarray([[sample.advantages[-1] for sample in group] for group in groups], np.float32)


def fresh_state(layout: Layout, model: ModelConfig, policy, config: RLConfig, reference=None) -> RLState:
    """Of the policy, which is also the reference unless another one is given."""
    train = programs.make_start_training(layout, model, config.optimizer)(snapshot(Weights(*policy)))
    has_reference = config.has_reference
    return RLState(train, snapshot(Weights(*(reference or policy))) if has_reference else None, np.int32(0))


def objective(config: RLConfig) -> LossSpec:
    return LossSpec(config.loss, config.sampling.max_new_tokens, config.optimizer.mtp)


def prepared(
    layout: Layout, model: ModelConfig, config: RLConfig, state: RLState, samples: Sequence[Sample]
) -> tuple[list[Batch], Metrics]:
    """All microbatches of the samples, and the metrics that come with them."""
    add_logprobs, metrics = programs.make_add_logprobs(layout, model, objective(config)), {}
    batches = []
    for part in pack_microbatches(samples, batch_shape(config, model, layout.round_up(1))):
        temperature = np.float32(config.sampling.temperature)
        batch, gap = add_logprobs(state.train.weights, state.reference, layout.put_batch(part), temperature)
        batches.append(batch)
        metrics = merge_metrics(metrics, gap)
    return batches, metrics


def gradients(
    layout: Layout, model: ModelConfig, config: RLConfig, train: TrainState, batches: Sequence[Batch]
) -> Gradients:
    """Of all microbatches together."""
    total = None
    for batch in batches:
        compute = programs.make_rl_gradients(layout, model, objective(config))
        part = compute(train.weights, batch, np.float32(config.sampling.temperature))
        total = part if total is None else programs.add_gradients(total, part)
    return total


def one_update(
    layout: Layout, model: ModelConfig, config: RLConfig, state: RLState, samples: Sequence[Sample]
) -> tuple[TrainState, Metrics]:
    """An update on all samples; the state's training part is used up."""
    batches, gap = prepared(layout, model, config, state, samples)
    total = gradients(layout, model, config, state.train, batches)
    rate = np.float32(config.optimizer.learning_rate)
    train, metrics = programs.make_rl_update(layout, model, config.optimizer)(state.train, total, rate)
    return train, gap | metrics
