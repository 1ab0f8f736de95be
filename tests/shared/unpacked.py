"""The plain layout of a rollout, which packing equals: one output a row, its prompt padded on the left."""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from flax import struct

from r1jax.config import ModelConfig, RLConfig
from r1jax.model.transformer import forward
from r1jax.objectives.logprobs import hidden_logprobs
from r1jax.objectives.metrics import Metrics, merge_metrics
from r1jax.parallel import programs
from r1jax.parallel.layout import Layout
from r1jax.rollout.engine import Output
from r1jax.rollout.packing import Taught, microbatches, row_shape
from r1jax.types import Array, Gradients, GRPOBatch, Params, RLState, TokenBatch, TrainState


@struct.dataclass
class Prompts:
    """Left-padded prompts: the last prompt token of every row stands in the last column."""

    tokens_BP: Array  # int32
    length_B: Array  # int32
    id_B: Array  # int32, the problem's id


@struct.dataclass
class Generation:
    """What the sampler drew. Positions at and after length are meaningless and must be masked."""

    tokens_BGN: Array  # int32
    logp_BGN: Array  # float32, at the sampling temperature
    length_BG: Array  # int32, the end token included
    finished_BG: Array  # bool
    routes_BGTLK: Array | None = None  # int16, T = P + N: the experts of each token; -1: the router chooses


def trainer_arrays(
    prompts: Sequence[tuple[int, list[int]]], outputs: list[list[Output]], P: int, N: int
) -> tuple[Prompts, Generation]:
    """Prompts, padded on the left to P tokens, and outputs, padded on the right to N, as the trainer takes them."""
    B, G = len(prompts), len(outputs[0])
    tokens_BP = np.zeros((B, P), np.int32)
    for row, (_, ids) in zip(tokens_BP, prompts, strict=True):
        row[P - len(ids) :] = ids
    length_B = np.asarray([len(ids) for _, ids in prompts], np.int32)
    tokens_BGN, logp_BGN = np.zeros((B, G, N), np.int32), np.zeros((B, G, N), np.float32)
    for b, group in enumerate(outputs):
        for g, output in enumerate(group):
            tokens_BGN[b, g, : len(output.tokens)] = output.tokens
            logp_BGN[b, g, : len(output.tokens)] = output.logprobs
    length_BG = np.asarray([[len(o.tokens) for o in group] for group in outputs], np.int32)
    finished_BG = np.asarray([[o.finished for o in group] for group in outputs])
    routes_BGTLK = join_routes(prompts, outputs, P, N) if outputs[0][0].routes else None
    generation = Generation(tokens_BGN, logp_BGN, length_BG, finished_BG, routes_BGTLK)
    return Prompts(tokens_BP, length_B, np.asarray([i for i, _ in prompts], np.int32)), generation


def join_routes(prompts: Sequence[tuple[int, list[int]]], outputs: list[list[Output]], P: int, N: int) -> np.ndarray:
    """The experts of each token, [B, G, P + N, L, K], where `join` has the token; -1 at the padding."""
    B, G, shape = len(prompts), len(outputs[0]), outputs[0][0].routes[0].shape[1:]
    routes_BGTLK = np.full((B, G, P + N, *shape), -1, np.int16)
    for b, ((_, ids), group) in enumerate(zip(prompts, outputs, strict=True)):
        for g, output in enumerate(group):
            tokens = len(ids) + len(output.tokens)  # what follows a stop string has routes, but is cut off
            routes_BGTLK[b, g, P - len(ids) : P + len(output.tokens)] = np.concatenate(output.routes)[:tokens]
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
) -> tuple[Array, Array, dict[str, Array]]:
    """log p and entropy of the last `new_tokens` tokens of each row, float32 [B, N], and the expert loads."""
    hidden = forward(params, router_bias, batch, c, routes_BTLK)
    predicting_BND = hidden.hidden_BTD[:, -new_tokens - 1 : -1]
    tokens_BN = batch.tokens_BT[:, -new_tokens:]
    logp_BN, entropy_BN = hidden_logprobs(
        params, predicting_BND, tokens_BN, temperature, tokenizer_size=c.tokenizer_size
    )
    return logp_BN, entropy_BN, hidden.load


def taught(prompts: Prompts, generation: Generation, advantage_BG) -> list[Taught]:
    """The same outputs as packing takes them."""
    outputs = []
    for b, (row, length) in enumerate(zip(prompts.tokens_BP, prompts.length_B, strict=True)):
        ids = row[len(row) - length :].tolist()
        for g in range(generation.tokens_BGN.shape[1]):
            n = int(generation.length_BG[b, g])
            output = Output(b, g, tokens=generation.tokens_BGN[b, g, :n].tolist())
            output.logprobs = generation.logp_BGN[b, g, :n].tolist()
            if generation.routes_BGTLK is not None:
                P = len(row)
                output.routes = [generation.routes_BGTLK[b, g, P - length : P + n]]
            outputs.append(Taught(ids, output, float(advantage_BG[b, g])))
    return outputs


def weighed(config: RLConfig, generation: Generation, rewards_BG, counts_BG=None) -> np.ndarray:
    """Advantages [B, G], all outputs counting unless `counts_BG` says otherwise."""
    counts_BG = np.ones(rewards_BG.shape) if counts_BG is None else counts_BG
    arrays = (rewards_BG, generation.length_BG, counts_BG)
    return np.asarray(programs.advantages(config)(*(np.asarray(x, np.float32) for x in arrays)))


def fresh_state(layout: Layout, model: ModelConfig, policy, config: RLConfig, reference=None) -> RLState:
    """Of the policy, which is also the reference unless another one is given."""
    train = programs.start_training(layout, model, config.optimizer)(*programs.snapshot(policy))
    return RLState(train, *programs.snapshot(reference or policy), np.int32(0))


def prepared(
    layout: Layout, model: ModelConfig, config: RLConfig, state: RLState, outputs: Sequence[Taught], routes=None
) -> tuple[list[GRPOBatch], Metrics]:
    """All microbatches of the outputs, and the metrics that come with them."""
    rows, *others = row_shape(config)
    prepare, metrics = programs.prepare_batch(layout, model, config), {}
    batches = []
    for part in microbatches(outputs, (layout.round_up(rows), *others), routes):
        batch, gap = prepare(state, layout.put_batch(part), np.float32(config.temperature))
        batches.append(batch)
        metrics = merge_metrics(metrics, gap)
    return batches, metrics


def gradients(
    layout: Layout, model: ModelConfig, config: RLConfig, train: TrainState, batches: Sequence[GRPOBatch]
) -> Gradients:
    """Of all microbatches together."""
    total = None
    for batch in batches:
        compute = programs.grpo_gradients(layout, model, config)
        part = compute(train.params, train.router_bias, batch, np.float32(config.temperature))
        total = part if total is None else programs.add_gradients(total, part)
    return total


def one_update(
    layout: Layout, model: ModelConfig, config: RLConfig, state: RLState, outputs: Sequence[Taught], routes=None
) -> tuple[TrainState, Metrics]:
    """An update on all outputs; the state's training part is used up."""
    batches, gap = prepared(layout, model, config, state, outputs, routes)
    total = gradients(layout, model, config, state.train, batches)
    train, metrics = programs.grpo_update(layout, model, config)(state.train, total)
    return train, gap | metrics
