"""Next-token and multi-token prediction losses on packed rows."""

import jax.numpy as jnp

from r1jax.config import ModelConfig
from r1jax.model.ops import ONE_DEVICE, ShardedOps
from r1jax.model.transformer import Hidden, forward, forward_mtp, shift_targets
from r1jax.objectives.logprobs import hidden_logprobs
from r1jax.objectives.metrics import Max, Mean, Metrics
from r1jax.types import Array, Params, TokenBatch


def cross_entropy(
    params: Params,
    hidden_BTD: Array,
    batch: TokenBatch,
    offset: int,
    is_target_BT: Array | None = None,
    *,
    tokenizer_size: int | None = None,
    ops: ShardedOps = ONE_DEVICE,
) -> Mean:
    """Sum of -log p(token i + offset) over the places that have one in their segment, and their number.

    With `is_target_BT`, only these tokens are targets.
    """
    targets_BT, mask_BT = shift_targets(batch, offset)
    if is_target_BT is not None:
        mask_BT &= jnp.roll(is_target_BT, -offset, axis=1)
    logp_BT, _ = hidden_logprobs(params, hidden_BTD, targets_BT, tokenizer_size=tokenizer_size, ops=ops)
    return Mean(-(logp_BT * mask_BT).sum(), mask_BT.sum().astype(jnp.float32))


def count_segments(segment_ids_BT: Array) -> Array:
    """How many segments there are, float32; each stands in one piece, and segment 0 is padding."""
    before_BT = jnp.pad(segment_ids_BT, ((0, 0), (1, 0)))[:, :-1]
    return ((segment_ids_BT != before_BT) & (segment_ids_BT > 0)).sum().astype(jnp.float32)


def mtp_losses(
    params: Params,
    router_bias: dict,
    hidden: Hidden,
    batch: TokenBatch,
    config: ModelConfig,
    is_target_BT: Array | None = None,
    ops: ShardedOps = ONE_DEVICE,
) -> tuple[list[Mean], Array]:
    """The loss of each multi-token-prediction module (V3, equation 24), and their expert loads [K, E]."""
    outputs, load_KE = forward_mtp(params, router_bias, hidden, batch, config, ops)
    size = config.tokenizer_size
    losses = [
        cross_entropy(params, out_BTD, batch, k + 2, is_target_BT, tokenizer_size=size, ops=ops)
        for k, out_BTD in enumerate(outputs)
    ]
    return losses, load_KE


def pooled(means: list[Mean]) -> Mean:
    """One mean over all that several are over."""
    return Mean(sum(m.total for m in means), sum(m.weight for m in means))


def language_model_loss(
    params: Params,
    router_bias: dict,
    batch: TokenBatch,
    config: ModelConfig,
    mtp_weight: float,
    balance_weight: float,
    mtp: str = "train",
    is_target_BT: Array | None = None,
    ops: ShardedOps = ONE_DEVICE,
) -> tuple[Array, tuple[Metrics, dict[str, Array]]]:
    """Mean next-token loss + mtp_weight * mean over modules of their loss (V3, equation 25) + balance loss.

    `mtp` is a switch of `OptimizerConfig`. With `is_target_BT` only these tokens are learnt.

    Returns the scalar loss, and (metrics, expert loads by stack).
    """
    hidden = forward(params, router_bias, batch, config, ops=ops)
    size = config.tokenizer_size
    main = cross_entropy(params, hidden.hidden_BTD, batch, 1, is_target_BT, tokenizer_size=size, ops=ops)
    balance = Mean(hidden.balance, count_segments(batch.segment_ids_BT))
    loss = main.mean() + balance_weight * balance.mean()
    metrics: Metrics = {"loss": main, "balance": balance}
    load = hidden.load
    if config.num_nextn_predict_layers and mtp != "off":
        modules, mtp_load_KE = mtp_losses(params, router_bias, hidden, batch, config, is_target_BT, ops)
        metrics["mtp_loss"] = pooled(modules)
        if mtp == "train":
            loss += mtp_weight * sum(m.mean() for m in modules) / len(modules)
            load = load | {"mtp": mtp_load_KE}
    return loss, (metrics, load)


def busiest_expert(load: dict[str, Array]) -> Metrics:
    """Tokens of the busiest expert over the mean, the largest of all layers: 1 is perfect balance."""
    loads_LE = [load_LE / jnp.maximum(load_LE.mean(axis=-1, keepdims=True), 1) for load_LE in load.values()]
    return {"expert_load_max": Max(jnp.max(jnp.asarray([x.max() for x in loads_LE])))} if loads_LE else {}
