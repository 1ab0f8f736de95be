"""Log-probabilities of given tokens, in the distribution that they were drawn from."""

import functools

import jax
import jax.numpy as jnp

from r1jax.config import ModelConfig
from r1jax.model.ops import ONE_DEVICE, ShardedOps
from r1jax.model.transformer import Hidden, forward, head_name, logits, shift_targets
from r1jax.types import Array, Batch, Params, Weights

MAX_LOGITS = 2**26  # that a device holds at once, 256 MiB in float32: [B, T, V] is never larger


def token_logprobs(
    logits_BTV: Array, tokens_BT: Array, temperature: Array | float = 1.0, masks_BTI: Array | None = None
) -> tuple[Array, Array]:
    """log p(token) and the entropy of p in nats, both float32 [B, T], of the distribution at `temperature` > 0.

    With `masks_BTI` p is normalised over these ids alone (-1 is none), as the sampler drew: DeepSeek-V3.2's "keep
    sampling mask" (arXiv 2512.02556, section 3.1). Where a token has no ids, the result is finite and undefined.
    """
    # XLA turns a division into this product in some programs and not in others, and the two round differently.
    logits_BTV = logits_BTV.astype(jnp.float32) * (1 / temperature)
    if masks_BTI is None:
        return softmax_logprobs(logits_BTV, tokens_BT)
    is_kept_BTI = (masks_BTI >= 0).at[..., 0].set(True)
    kept_BTI = jnp.take_along_axis(logits_BTV, jnp.maximum(masks_BTI, 0), axis=-1)
    normaliser_BT1 = jax.nn.logsumexp(kept_BTI, axis=-1, where=is_kept_BTI, keepdims=True)
    logp_BTI = jnp.where(is_kept_BTI, kept_BTI - normaliser_BT1, 0.0)
    entropy_BT = -jnp.where(is_kept_BTI, jnp.exp(logp_BTI) * logp_BTI, 0.0).sum(axis=-1)
    return (jnp.take_along_axis(logits_BTV, tokens_BT[..., None], axis=-1) - normaliser_BT1)[..., 0], entropy_BT


@jax.custom_vjp
def softmax_logprobs(logits_BTV: Array, tokens_BT: Array) -> tuple[Array, Array]:
    """log p(token) and the entropy of p = softmax(logits), in few passes over the logits."""
    return _softmax_forward(logits_BTV, tokens_BT)[0]


def _softmax_forward(logits_BTV: Array, tokens_BT: Array):
    shifted_BTV = logits_BTV - logits_BTV.max(axis=-1, keepdims=True)
    exp_BTV, zero = jnp.exp(shifted_BTV), jnp.zeros((), logits_BTV.dtype)

    # One reduction: two would compute the exponentials twice.
    def add(a, b):
        return a[0] + b[0], a[1] + b[1]

    parts = exp_BTV, exp_BTV * shifted_BTV
    sums = jax.lax.reduce(parts, (zero, zero), add, (logits_BTV.ndim - 1,))
    # A program that drops the entropy has to sum by the same kernel: the first ratio is exactly 1.
    sum_BT, weighted_BT = jax.lax.optimization_barrier(sums)
    log_sum_BT = jnp.log(sum_BT)
    logp_BT = jnp.take_along_axis(shifted_BTV, tokens_BT[..., None], axis=-1)[..., 0] - log_sum_BT
    entropy_BT = log_sum_BT - weighted_BT / sum_BT
    return (logp_BT, entropy_BT), (shifted_BTV - log_sum_BT[..., None], tokens_BT, entropy_BT)


def _softmax_backward(residuals: tuple, g: tuple[Array, Array]):
    (logp_BTV, tokens_BT, entropy_BT), (g_logp_BT1, g_entropy_BT1) = residuals, (x[..., None] for x in g)
    is_token_BTV = tokens_BT[..., None] == jnp.arange(logp_BTV.shape[-1])[None, None]
    spread_BTV = g_logp_BT1 + g_entropy_BT1 * (logp_BTV + entropy_BT[..., None])
    return jnp.where(is_token_BTV, g_logp_BT1, 0) - jnp.exp(logp_BTV) * spread_BTV, None


softmax_logprobs.defvjp(_softmax_forward, _softmax_backward)


def hidden_logprobs(
    params: Params,
    hidden_BTD: Array,
    tokens_BT: Array,
    temperature: Array | float = 1.0,
    masks_BTI: Array | None = None,
    *,
    tokenizer_size: int | None = None,
    ops: ShardedOps = ONE_DEVICE,
) -> tuple[Array, Array]:
    """`token_logprobs` of the model's head on hidden states, in chunks of tokens that gradients compute again.

    Where devices have parts of a row, a chunk has tokens of each part, so that all devices work on every chunk.
    """
    name = head_name(params)
    # As stored: the head's gradient is added up over chunks in that dtype.
    params = {name: ops.gather_weights(name, params[name])}

    # Logits are not kept for gradients. Kept, they would also change XLA's kernels, and so the last bits of the
    # log-probabilities: the forward pass has to be that of the program without gradients, so that the first ratio is 1.
    @jax.checkpoint
    def one(chunk):
        hidden_BptD, tokens_Bpt, masks_BptI = chunk
        logits_BptV = ops.logits(logits(params, hidden_BptD, tokenizer_size))
        return token_logprobs(logits_BptV, tokens_Bpt, temperature, masks_BptI)

    (B, T), parts = tokens_BT.shape, ops.sequence_shards
    size = max(MAX_LOGITS * ops.token_shards // (B * parts * max(params[name].shape)), 1)  # of each part
    inputs = (ops.matmul_input(hidden_BTD), tokens_BT, masks_BTI)
    if size * parts >= T:
        return one(inputs)
    pad = -(T // parts) % size

    def in_chunks(x_BT):
        x_Bpt = x_BT.reshape(B, parts, T // parts, *x_BT.shape[2:])
        x_Bpt = jnp.pad(x_Bpt, ((0, 0), (0, 0), (0, pad), *[(0, 0)] * (x_BT.ndim - 2)))
        return jnp.moveaxis(x_Bpt.reshape(B, parts, -1, size, *x_BT.shape[2:]), 2, 0)

    chunks = jax.lax.map(one, jax.tree.map(in_chunks, inputs))
    whole_Bpt = (jnp.moveaxis(x_cBpt, 0, 2).reshape(B, parts, -1)[:, :, : T // parts] for x_cBpt in chunks)
    logp_BT, entropy_BT = (x_Bpt.reshape(B, T) for x_Bpt in whole_Bpt)
    return logp_BT, entropy_BT


def at_trained(trained_BR: Array, offset: int, x_BT: Array) -> Array:
    """[B, R, …] of [B, T, …]: what stands `offset` places before each trained token; undefined behind the last."""
    places_BR = jnp.clip(trained_BR - offset, 0, x_BT.shape[1] - 1)
    return jnp.take_along_axis(x_BT, jnp.expand_dims(places_BR, range(2, x_BT.ndim)), axis=1)


def sample_logprobs(
    weights: Weights,
    batch: Batch,
    temperature: Array | float,
    model: ModelConfig,
    ops: ShardedOps = ONE_DEVICE,
    *,
    replays_routes: bool = True,
) -> tuple[Array, Array, Hidden]:
    """log p and entropy of each token given those before it, float32 [B, T], and the hidden states behind them.

    This is the trainer's view of a rollout: undefined where `batch.loss_mask_BT` is False. `replays_routes` sends
    tokens to the experts that the rollout chose, where the batch has them.
    """
    hidden = forward(*weights, batch, model, batch.routes_BTLK if replays_routes else None, ops)
    score = functools.partial(hidden_logprobs, weights.params, tokenizer_size=model.tokenizer_size, ops=ops)
    masks_BTI = batch.sampling_masks_BTI
    trained_BR = batch.trained_BR
    if trained_BR is None or ops.sequence_shards > 1:  # gathered, tokens would leave the devices that have them
        masks_BTI = None if masks_BTI is None else jnp.roll(masks_BTI, -1, axis=1)
        predicted = score(hidden.hidden_BTD, shift_targets(batch, 1)[0], temperature, masks_BTI)
        logp_BT, entropy_BT = (jnp.roll(x_BT, 1, axis=1) for x_BT in predicted)
        return logp_BT, entropy_BT, hidden
    hidden_BRD, tokens_BR = at_trained(trained_BR, 1, hidden.hidden_BTD), at_trained(trained_BR, 0, batch.tokens_BT)
    masks_BRI = None if masks_BTI is None else at_trained(trained_BR, 0, masks_BTI)
    rank_BT = jnp.maximum(jnp.cumsum(batch.loss_mask_BT, axis=1) - 1, 0)  # of each trained token among those of its row
    scored = score(hidden_BRD, tokens_BR, temperature, masks_BRI)
    logp_BT, entropy_BT = (jnp.take_along_axis(x_BR, rank_BT, axis=1) for x_BR in scored)
    return logp_BT, entropy_BT, hidden
