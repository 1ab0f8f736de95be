"""Rollouts on the device: one prefill for each prompt, then a loop over the latent cache with early exit."""

import chex
import jax
import jax.numpy as jnp

from r1jax.config import ModelConfig
from r1jax.model.transformer import cast, decode_step, forward, logits
from r1jax.types import Array, Generation, Params, Prompts, TokenBatch


def prompt_batch(prompts: Prompts) -> TokenBatch:
    """Positions from 0 at each prompt's first token; the padding to its left is segment 0."""
    P = prompts.tokens_BP.shape[1]
    offset_BP = jnp.arange(P) - (P - prompts.length_B[:, None])
    is_token_BP = (offset_BP >= 0).astype(jnp.int32)
    return TokenBatch(tokens_BT=prompts.tokens_BP, positions_BT=offset_BP * is_token_BP, segments_BT=is_token_BP)


def sample_keys(key: Array, prompt_id_B: Array, group_size: int) -> Array:
    """One key for each output, [B, G]: a function of the prompt's id and the sample's index, of nothing else."""

    def one(prompt_id, sample_index):
        return jax.random.fold_in(jax.random.fold_in(key, prompt_id), sample_index)

    return jax.vmap(lambda i: jax.vmap(lambda g: one(i, g))(jnp.arange(group_size)))(prompt_id_B)


def draw(logits_BGV: Array, keys_BG: Array, index: Array, temperature: Array) -> tuple[Array, Array]:
    """A token for each output and its log-probability at `temperature`; 0 is greedy, with log-probabilities at 1."""
    is_greedy = temperature == 0
    scaled_BGV = logits_BGV / jnp.where(is_greedy, 1.0, temperature)
    keys_BG = jax.vmap(jax.vmap(lambda k: jax.random.fold_in(k, index)))(keys_BG)
    noise_BGV = jax.vmap(jax.vmap(lambda k: jax.random.gumbel(k, logits_BGV.shape[-1:])))(keys_BG)
    token_BG = jnp.argmax(scaled_BGV + jnp.where(is_greedy, 0.0, noise_BGV), axis=-1)
    logp_BGV = jax.nn.log_softmax(scaled_BGV)
    return token_BG, jnp.take_along_axis(logp_BGV, token_BG[..., None], axis=-1)[..., 0]


def generate(
    params: Params,
    router_bias: dict,
    prompts: Prompts,
    key: Array,
    temperature: Array,
    eos_id: Array,
    config: ModelConfig,
    *,
    group_size: int,
    max_new_tokens: int,
) -> Generation:
    """Draws `group_size` outputs for each prompt.

    Args:
      prompts: B left-padded prompts of at most P tokens; each is run once, whatever the group size.
      key: the key of this step; outputs draw from keys derived by prompt id, sample index and token index.
      temperature: float32 scalar, traced; 0 is greedy.
      eos_id: int32 scalar that ends an output; -1 for none.

    Returns:
      `Generation` of [B, G, N] with N = max_new_tokens. The loop ends when all outputs have.
    """
    B, P = prompts.tokens_BP.shape
    G, N = group_size, max_new_tokens
    chex.assert_shape(prompts.length_B, (B,))
    batch = prompt_batch(prompts)
    prefill = forward(params, router_bias, batch, config, keep_latents=True)
    first_logits_BV = logits(params, prefill.hidden_BTD[:, -1])
    params = cast(params, config)
    keys_BG = sample_keys(key, prompts.id_B, G)

    def emit(state, logits_BGV):
        """Draws token `index` and appends it to the outputs that have not ended."""
        index, _, tokens_BGN, logp_BGN, length_BG, finished_BG, tail = state
        token_BG, logp_BG = draw(logits_BGV, keys_BG, index, temperature)
        length_BG = length_BG + ~finished_BG
        finished_BG = finished_BG | (token_BG == eos_id)
        tokens_BGN = jax.lax.dynamic_update_index_in_dim(tokens_BGN, token_BG, index, axis=2)
        logp_BGN = jax.lax.dynamic_update_index_in_dim(logp_BGN, logp_BG, index, axis=2)
        return index + 1, token_BG, tokens_BGN, logp_BGN, length_BG, finished_BG, tail

    def step(state):
        """Runs the token that was drawn last, and draws the next."""
        index, token_BG, *_, tail = state
        positions_BG = jnp.broadcast_to((prompts.length_B + index - 1)[:, None], (B, G))
        hidden_BGD, tail = decode_step(
            params,
            router_bias,
            token_BG,
            positions_BG,
            prefill.latents,
            batch.segments_BT > 0,
            tail,
            index - 1,
            config,
        )
        return emit((*state[:-1], tail), logits(params, hidden_BGD))

    def empty_tail(latents_LBPX):
        L, _, _, X = latents_LBPX.shape
        return jnp.zeros((L, B, G, N, X), latents_LBPX.dtype)

    state = (
        jnp.int32(0),
        jnp.zeros((B, G), jnp.int32),
        jnp.zeros((B, G, N), jnp.int32),
        jnp.zeros((B, G, N), jnp.float32),
        jnp.zeros((B, G), jnp.int32),
        jnp.zeros((B, G), bool),
        jax.tree.map(empty_tail, prefill.latents),
    )
    state = emit(state, jnp.broadcast_to(first_logits_BV[:, None], (B, G, first_logits_BV.shape[-1])))
    state = jax.lax.while_loop(lambda s: (s[0] < N) & ~jnp.all(s[5]), step, state)
    _, _, tokens_BGN, logp_BGN, length_BG, finished_BG, _ = state
    return Generation(tokens_BGN, logp_BGN, length_BG, finished_BG)
