"""Next-token and multi-token prediction losses on packed rows."""

import jax.numpy as jnp

from r1jax.config import ModelConfig
from r1jax.model.transformer import forward, forward_mtp, logits
from r1jax.objectives.logprobs import token_logprobs
from r1jax.objectives.metrics import Max, Mean, Metrics
from r1jax.types import Array, Params, TokenBatch


def later_tokens(batch: TokenBatch, offset: int) -> tuple[Array, Array]:
    """The token `offset` places later, [B, T], and a float32 mask: 1 where it lies in the same segment."""
    targets_BT = jnp.roll(batch.tokens_BT, -offset, axis=1)
    same_BT = (jnp.roll(batch.segments_BT, -offset, axis=1) == batch.segments_BT) & (batch.segments_BT > 0)
    in_row_T = jnp.arange(batch.tokens_BT.shape[1]) < batch.tokens_BT.shape[1] - offset
    return targets_BT, (same_BT & in_row_T).astype(jnp.float32)


def cross_entropy(params: Params, hidden_BTD: Array, batch: TokenBatch, offset: int) -> Mean:
    """Sum of -log p(token i + offset) over the places that have one, and their number."""
    targets_BT, mask_BT = later_tokens(batch, offset)
    logp_BT, _ = token_logprobs(logits(params, hidden_BTD), targets_BT)
    return Mean(-(logp_BT * mask_BT).sum(), mask_BT.sum())


def language_model_loss(
    params: Params, router_bias: dict, batch: TokenBatch, config: ModelConfig, mtp_weight: float, balance_weight: float
) -> tuple[Array, tuple[Metrics, dict[str, Array]]]:
    """Mean next-token loss + mtp_weight * mean over modules of their loss (V3, equation 25) + balance loss.

    Returns the scalar loss, and (metrics, expert loads by stack).
    """
    hidden = forward(params, router_bias, batch, config)
    main = cross_entropy(params, hidden.hidden_BTD, batch, 1)
    loss = main.total / main.weight + balance_weight * hidden.balance
    metrics: Metrics = {"loss": main, "balance": Mean(hidden.balance, jnp.ones(()))}
    load = hidden.load
    if config.num_nextn_predict_layers:
        outputs, mtp_load_KE = forward_mtp(params, router_bias, hidden, batch, config)
        modules = [cross_entropy(params, out_BTD, batch, k + 2) for k, out_BTD in enumerate(outputs)]
        loss += mtp_weight * sum(m.total / m.weight for m in modules) / len(modules)
        metrics["mtp_loss"] = Mean(sum(m.total for m in modules), sum(m.weight for m in modules))
        load = load | {"mtp": mtp_load_KE}
    metrics["expert_load_max"] = busiest_expert(load["moe"])
    return loss, (metrics, load)


def busiest_expert(load_LE: Array) -> Max:
    """Tokens of the busiest expert over the mean, the largest of all layers: 1 is perfect balance."""
    return Max((load_LE.max(axis=-1) / jnp.maximum(load_LE.mean(axis=-1), 1)).max())
