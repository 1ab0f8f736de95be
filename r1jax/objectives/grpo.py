"""Group Relative Policy Optimization (DeepSeekMath, arXiv 2402.03300, section 4.1) and its variants.

Each choice is one function of a table below; `LossConfig` names one of each, and `gin_configs/algorithm/` has the
published compositions. `rl_loss`, at the end, is the whole loss. Arrays [B, T] are float32, one number a token; masks
are `batch.loss_mask_BT`'s, True on trained tokens.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp

from r1jax.config import LossConfig, ModelConfig
from r1jax.model.ops import ONE_DEVICE, ShardedOps
from r1jax.objectives.language_model import mtp_losses, pooled
from r1jax.objectives.logprobs import sample_logprobs
from r1jax.objectives.metrics import Max, Mean, Metrics, Min
from r1jax.objectives.segments import segment_broadcast, segment_length, segment_sum
from r1jax.types import Array, Batch, Params, Weights

# Ratios policy / old policy, float32 [B, T]. All functions of a table take the same arguments; some ignore a few.


def token_ratio(log_ratio_BT: Array, batch: Batch) -> Array:
    """Each token's own (GRPO, equation 3)."""
    return jnp.exp(log_ratio_BT)


def sequence_ratio(log_ratio_BT: Array, batch: Batch) -> Array:
    """The geometric mean over a sample's tokens, the same for all of them (GSPO, arXiv 2507.18071, equation 7)."""
    mean_BS = segment_sum(log_ratio_BT, batch) / jnp.maximum(segment_length(batch), 1)
    return jnp.exp(segment_broadcast(mean_BS, batch))


RATIOS = {"token": token_ratio, "sequence": sequence_ratio}


# Objectives, for each token: what is maximised, without the KL term.


def clipped_objective(logp_BT: Array, ratio_BT: Array, advantage_BT: Array, low: float, high: float) -> Array:
    """min(ratio * A, clip(ratio, 1 - low, 1 + high) * A) (GRPO, equation 3; DAPO, equation 8)."""
    clipped_BT = jnp.clip(ratio_BT, 1 - low, 1 + high)
    return jnp.minimum(ratio_BT * advantage_BT, clipped_BT * advantage_BT)


def cispo_objective(logp_BT: Array, ratio_BT: Array, advantage_BT: Array, low: float, high: float) -> Array:
    """clip(ratio, 1 - low, 1 + high) * A * log p, the clipped ratio a constant (CISPO, 2506.13585, equation 4)."""
    return jax.lax.stop_gradient(jnp.clip(ratio_BT, 1 - low, 1 + high)) * advantage_BT * logp_BT


OBJECTIVES = {"clipped": clipped_objective, "cispo": cispo_objective}


# Estimators of KL(policy || reference) from a token that the policy drew.


def kl_k1(logp_BT: Array, logp_ref_BT: Array) -> Array:
    """log p - log ref: unbiased. With `kl_correction` its gradient is that of KL; without, zero in expectation."""
    return logp_BT - logp_ref_BT


def kl_k2(logp_BT: Array, logp_ref_BT: Array) -> Array:
    """(log p - log ref)^2 / 2: biased, but its gradient is that of KL."""
    return (logp_BT - logp_ref_BT) ** 2 / 2


def kl_k3(logp_BT: Array, logp_ref_BT: Array) -> Array:
    """exp(log ref - log p) - (log ref - log p) - 1 (GRPO, equation 4): unbiased and never negative.

    With `kl_correction` its gradient is that of KL(policy || reference); without it, that of KL(reference || policy).
    """
    log_ratio_BT = logp_ref_BT - logp_BT
    return jnp.exp(log_ratio_BT) - log_ratio_BT - 1


KLS = {"k1": kl_k1, "k2": kl_k2, "k3": kl_k3}


# Aggregations of [B, T] over trained tokens: sums and weights, so that parts of a batch add up exactly.


def sequence_mean(values_BT: Array, batch: Batch, max_new_tokens: int) -> Mean:
    """Mean over each sample's tokens, then over samples: the paper's 1/G sum 1/|o| (GRPO, equation 3)."""
    length_BS = segment_length(batch)
    means_BS = segment_sum(values_BT, batch) / jnp.maximum(length_BS, 1)
    return Mean(means_BS.sum(), (length_BS > 0).sum(dtype=jnp.float32))


def token_mean(values_BT: Array, batch: Batch, max_new_tokens: int = 0) -> Mean:
    """Mean over all tokens of the batch (DAPO, equation 8): long responses weigh more."""
    return Mean(jnp.where(batch.loss_mask_BT, values_BT, 0).sum(), batch.loss_mask_BT.sum(dtype=jnp.float32))


def constant_length(values_BT: Array, batch: Batch, max_new_tokens: int) -> Mean:
    """Sum over all tokens / (samples * max_new_tokens): nothing depends on lengths (Dr. GRPO, section 3.2)."""
    samples = (segment_length(batch) > 0).sum(dtype=jnp.float32)
    return Mean(jnp.where(batch.loss_mask_BT, values_BT, 0).sum(), samples * max_new_tokens)


AGGREGATIONS = {"sequence_mean": sequence_mean, "token_mean": token_mean, "constant_length": constant_length}


def importance_weights(batch: Batch, c: LossConfig) -> Array:
    """exp(old - sampler's log-probability), capped at `importance_limit`, float32 [B, T]; constants in the gradient.

    They correct for a rollout that an older policy drew (max_staleness 1), for rounding, for quantized rollouts and for
    tokens that were sent to other experts (truncated importance sampling, as in IMPALA, arXiv 1802.01561, section 4).
    With `importance` "sequence" a token's weight is the product over the tokens of its sample.
    """
    if c.importance == "none":
        return jnp.ones(batch.loss_mask_BT.shape)
    log_ratio_BT = jnp.where(batch.loss_mask_BT, batch.logprobs_old_BT - batch.logprobs_sampler_BT, 0.0)
    if c.importance == "sequence":
        log_ratio_BT = segment_broadcast(segment_sum(log_ratio_BT, batch), batch)
    weights_BT = jnp.exp(log_ratio_BT)
    beyond = c.importance_limit if c.importance_mode == "truncate" else 0.0
    return jnp.where(weights_BT > c.importance_limit, beyond, weights_BT)


def logprob_gap(batch: Batch, c: LossConfig) -> Metrics:
    """|sampler's - trainer's log-probability| over the drawn tokens, and KL(sampler || trainer) by the k3 estimator.

    A wrong cache, temperature or sampling mask shows here, and so does a stale policy.
    """
    gap_BT = jnp.where(batch.loss_mask_BT, batch.logprobs_old_BT - batch.logprobs_sampler_BT, 0.0)
    return {
        "logprob_gap": token_mean(jnp.abs(gap_BT), batch),
        "logprob_gap_max": Max(jnp.abs(gap_BT).max()),
        "sampler_kl": token_mean(jnp.exp(gap_BT) - gap_BT - 1, batch),
        "importance_weight": token_mean(importance_weights(batch, c), batch),
    }


def with_old_logprobs(batch: Batch, logp_BT: Array, c: LossConfig) -> tuple[Batch, Metrics]:
    """The batch with the log-probabilities that ratios are relative to, and how far the sampler's are from `logp_BT`.

    `logp_BT` are the trainer's, of the policy before the update.
    """
    batch = replace(batch, logprobs_old_BT=logp_BT)
    gap = logprob_gap(batch, c)
    return replace(batch, logprobs_old_BT=batch.logprobs_sampler_BT) if c.old_logprobs == "sampler" else batch, gap


def grpo_loss(logp_BT: Array, batch: Batch, c: LossConfig, max_new_tokens: int) -> tuple[Mean, Metrics]:
    """-(importance weight * objective - kl_coef * KL), aggregated over the batch.

    Args:
      logp_BT: log-probabilities of the batch's tokens by the policy, float32.
      batch: its arrays are undefined where `loss_mask_BT` is False; `logprobs_ref_BT` is None with kl_coef 0.

    Returns:
      Mean(total, weight) and the metrics. The trainer adds up totals and weights of a minibatch's microbatches: its
      gradient is that of the sum of totals, over max(the sum of weights, 1).
    """

    def masked(x_BT):  # before the exponentials: infinity * 0 is NaN
        return jnp.where(batch.loss_mask_BT, x_BT, 0.0)

    logp_BT, old_BT, advantage_BT = (masked(x) for x in (logp_BT, batch.logprobs_old_BT, batch.advantages_BT))
    ratio_BT = RATIOS[c.ratio](logp_BT - old_BT, batch)
    weights_BT = importance_weights(batch, c)
    losses_BT = -weights_BT * OBJECTIVES[c.objective](logp_BT, ratio_BT, advantage_BT, c.clip_low, c.clip_high)
    metrics: Metrics = {}
    if c.kl_coef:
        kl_BT = KLS[c.kl_estimator](logp_BT, masked(batch.logprobs_ref_BT))
        if c.kl_correction:  # unbiased for samples of an older policy too (DeepSeek-V3.2, 2512.02556, equation 7)
            correction_BT = jnp.exp(logp_BT - old_BT)
            # The gradient of k2 is that of KL already: one through the ratio would be added to it.
            correction_BT = jax.lax.stop_gradient(correction_BT) if c.kl_estimator == "k2" else correction_BT
            kl_BT = kl_BT * correction_BT * weights_BT
        losses_BT += c.kl_coef * kl_BT
        metrics["kl"] = token_mean(kl_BT, batch)  # corrected, where the loss is
    loss = AGGREGATIONS[c.aggregation](losses_BT, batch, max_new_tokens)
    return loss, metrics | {"loss": loss} | ratio_metrics(ratio_BT, advantage_BT, batch, c)


def ratio_metrics(ratio_BT: Array, advantage_BT: Array, batch: Batch, c: LossConfig) -> Metrics:
    """Shares of tokens whose ratio is clipped, and how far ratios are from 1."""
    mask_BT = batch.loss_mask_BT
    # The minimum of `clipped_objective` clips only where the advantage pushes the ratio further from 1; CISPO clips on
    # both sides.
    both = c.objective == "cispo"
    clips_low_BT = (ratio_BT < 1 - c.clip_low) & ((advantage_BT < 0) | both)
    clips_high_BT = (ratio_BT > 1 + c.clip_high) & ((advantage_BT > 0) | both)
    return {
        "clip_fraction_low": token_mean(clips_low_BT.astype(jnp.float32), batch),
        "clip_fraction_high": token_mean(clips_high_BT.astype(jnp.float32), batch),
        "ratio_deviation_max": Max(jnp.where(mask_BT, jnp.abs(ratio_BT - 1), 0.0).max()),
        "ratio_max": Max(jnp.where(mask_BT, ratio_BT, 0.0).max()),
        "ratio_min": Min(jnp.where(mask_BT, ratio_BT, jnp.where(mask_BT.any(), jnp.inf, 1.0)).min()),
    }


LossFunction = Callable[[Array, Batch, LossConfig, int], tuple[Mean, Metrics]]


@dataclass(frozen=True)
class LossSpec:
    """What an RL loss is, beside its arrays. Hashable: compiled programs are cached on it."""

    config: LossConfig
    max_new_tokens: int  # "constant_length" divides by it
    mtp: str = "train"  # OptimizerConfig.mtp: "train", "freeze" or "off"
    loss: LossFunction = grpo_loss  # or a fork's own


def rl_loss(
    params: Params,
    router_bias: dict,
    batch: Batch,
    temperature: Array,
    spec: LossSpec,
    model: ModelConfig,
    ops: ShardedOps = ONE_DEVICE,
) -> tuple[Array, tuple[Array, Array, Metrics, dict[str, Array]]]:
    """The whole loss of a batch: policy, KL and multi-token prediction (MTP); no balance and no entropy term.

    Args:
      temperature: float32 scalar, that the samples were drawn at.

    Returns:
      The sum to differentiate, a float32 scalar; and (weight, mtp_weight, metrics, load) as in `Gradients`.
    """
    logprobs, metrics = sample_logprobs, dict[str, Any]()
    if batch.logprobs_old_BT is not None and model.remat == "none":
        # This costs a second forward pass, although `remat` is "none": only so XLA compiles the same kernels as in the
        # program that computed the old log-probabilities, and the first ratio is exactly 1. With `remat` each layer is
        # recomputed anyway.
        logprobs = jax.checkpoint(sample_logprobs, static_argnums=(3, 4))
    logp_BT, entropy_BT, hidden = logprobs(Weights(params, router_bias), batch, temperature, model, ops)
    if batch.logprobs_old_BT is None:
        batch, metrics = with_old_logprobs(batch, jax.lax.stop_gradient(logp_BT), spec.config)
    loss, of_loss = spec.loss(logp_BT, batch, spec.config, spec.max_new_tokens)
    metrics |= of_loss | {"entropy": token_mean(entropy_BT, batch)}
    total, load = loss.total, hidden.load
    mtp_loss = Mean(jnp.zeros(()), jnp.zeros(()))
    if model.num_nextn_predict_layers and spec.mtp != "off":
        # The modules learn to draft what this policy draws, and the policy learns nothing from them.
        detached, hidden = jax.lax.stop_gradient((params, hidden))
        detached = detached | {"mtp": params["mtp"]}
        losses, mtp_load_LE = mtp_losses(detached, router_bias, hidden, batch, model, ops)
        metrics["mtp_loss"] = mtp_loss = pooled(losses)
        if spec.mtp == "train":
            # Without a weight: no other term moves the modules, they are clipped apart, and Adam is scale-invariant.
            total += mtp_loss.total
            load = load | {"mtp": mtp_load_LE}
    return total, (loss.weight, mtp_loss.weight, metrics, load)
