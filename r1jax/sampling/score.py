"""Teacher-forced log-probabilities of what was sampled: the trainer's view of a rollout."""

import jax.numpy as jnp

from r1jax.config import ModelConfig
from r1jax.model.transformer import forward
from r1jax.objectives.logprobs import hidden_logprobs
from r1jax.types import Array, Generation, Params, Prompts, TokenBatch


def prompt_batch(prompts: Prompts) -> TokenBatch:
    """Positions from 0 at each prompt's first token; the padding to its left is segment 0."""
    P = prompts.tokens_BP.shape[1]
    offset_BP = jnp.arange(P) - (P - prompts.length_B[:, None])
    is_token_BP = (offset_BP >= 0).astype(jnp.int32)
    return TokenBatch(tokens_BT=prompts.tokens_BP, positions_BT=offset_BP * is_token_BP, segments_BT=is_token_BP)


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
        segments_BT=rows(left.segments_BT, mask_BGN),
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
    logp_BN, entropy_BN = hidden_logprobs(params, predicting_BND, batch.tokens_BT[:, -new_tokens:], temperature)
    return logp_BN, entropy_BN, hidden.load
