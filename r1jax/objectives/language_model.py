"""Next-token and multi-token prediction losses on packed rows."""

from dataclasses import dataclass

import jax.numpy as jnp

from r1jax.config import ModelConfig, PretrainConfig, SFTConfig
from r1jax.model.ops import ONE_DEVICE, ShardedOps
from r1jax.model.transformer import Hidden, forward, forward_mtp, shift_targets
from r1jax.objectives.logprobs import at_trained, hidden_logprobs
from r1jax.objectives.metrics import Max, Mean, Metrics
from r1jax.types import Array, Batch, Params, SFTBatch, TokenBatch


@dataclass(frozen=True)
class LossTerms:
    """The terms of a language model's loss beside the next token's; compiled programs are cached on it."""

    mtp: str  # OptimizerConfig.mtp
    mtp_weight: float  # of the mean loss of the multi-token-prediction modules (V3, equation 25)
    balance_weight: float  # of the experts' balance loss

    @classmethod
    def of(cls, config: PretrainConfig | SFTConfig) -> "LossTerms":
        return cls(config.optimizer.mtp, config.mtp_loss_weight, config.balance_loss_weight)


def cross_entropy(
    params: Params, hidden_BTD: Array, batch: TokenBatch, offset: int, model: ModelConfig, ops: ShardedOps = ONE_DEVICE
) -> Mean:
    """Sum of -log p(token i + offset) over the places that have one in their segment, and their number.

    Of a batch with a loss mask only the tokens in the mask are targets.
    """
    targets_BT, mask_BT = shift_targets(batch, offset)
    if isinstance(batch, SFTBatch):
        mask_BT &= jnp.roll(batch.loss_mask_BT, -offset, axis=1)
    if isinstance(batch, Batch) and batch.trained_BR is not None and ops.sequence_shards == 1:
        is_target_BR = (batch.trained_BR >= offset) & (batch.trained_BR < targets_BT.shape[1])
        hidden_BTD, targets_BT, mask_BT = (
            at_trained(batch.trained_BR, offset, x_BT) for x_BT in (hidden_BTD, targets_BT, mask_BT)
        )
        mask_BT &= is_target_BR
    size = model.tokenizer_size
    logp_BT, _ = hidden_logprobs(params, hidden_BTD, targets_BT, tokenizer_size=size, ops=ops)
    return Mean(-(logp_BT * mask_BT).sum(), mask_BT.sum().astype(jnp.float32))


def count_segments(segment_ids_BT: Array) -> Array:
    """How many segments there are, float32. A segment is contiguous, and segment 0 is padding."""
    before_BT = jnp.pad(segment_ids_BT, ((0, 0), (1, 0)))[:, :-1]
    return ((segment_ids_BT != before_BT) & (segment_ids_BT > 0)).sum().astype(jnp.float32)


def mtp_losses(
    params: Params,
    router_bias: dict,
    hidden: Hidden,
    batch: TokenBatch,
    model: ModelConfig,
    ops: ShardedOps = ONE_DEVICE,
) -> tuple[list[Mean], Array]:
    """The loss of each multi-token-prediction module (V3, equation 24), and their expert loads [L, E]."""
    outputs, load_LE = forward_mtp(params, router_bias, hidden, batch, model, ops)
    return [cross_entropy(params, out_BTD, batch, k + 2, model, ops) for k, out_BTD in enumerate(outputs)], load_LE


def pooled(means: list[Mean]) -> Mean:
    """The mean over everything that several means are over."""
    return Mean(sum(m.total for m in means), sum(m.weight for m in means))


def language_model_loss(
    params: Params,
    router_bias: dict,
    batch: TokenBatch,
    terms: LossTerms,
    model: ModelConfig,
    ops: ShardedOps = ONE_DEVICE,
) -> tuple[Array, tuple[Metrics, dict[str, Array]]]:
    """Mean next-token loss + mtp_weight * mean over modules of their loss (V3, equation 25) + balance loss.

    Returns the scalar loss, and (metrics, expert loads by stack).
    """
    hidden = forward(params, router_bias, batch, model, ops=ops)
    main = cross_entropy(params, hidden.hidden_BTD, batch, 1, model, ops)
    balance = Mean(hidden.balance, count_segments(batch.segment_ids_BT))
    loss = main.mean() + terms.balance_weight * balance.mean()
    metrics: Metrics = {"loss": main, "balance": balance}
    load = hidden.load
    if model.num_nextn_predict_layers and terms.mtp != "off":
        modules, mtp_load_LE = mtp_losses(params, router_bias, hidden, batch, model, ops)
        metrics["mtp_loss"] = pooled(modules)
        if terms.mtp == "train":
            loss += terms.mtp_weight * sum(m.mean() for m in modules) / len(modules)
            load = load | {"mtp": mtp_load_LE}
    return loss, (metrics, load)


def busiest_expert(load: dict[str, Array]) -> Metrics:
    """Tokens of the busiest expert over the mean, the largest of all layers: 1 is perfect balance."""
    loads_LE = [load_LE / jnp.maximum(load_LE.mean(axis=-1, keepdims=True), 1) for load_LE in load.values()]
    return {"expert_load_max": Max(jnp.max(jnp.asarray([x.max() for x in loads_LE])))} if loads_LE else {}
