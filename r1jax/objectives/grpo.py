"""Group Relative Policy Optimization (DeepSeekMath, arXiv 2402.03300, section 4.1), one function for each choice."""

import jax.numpy as jnp

from r1jax.objectives.metrics import Max, Mean, Metrics
from r1jax.types import Array

# Added to the group's standard deviation. Code bases differ (1e-8 to 1e-4); the papers have none. It only decides how
# rewards that differ by about as much as itself are treated: a group of equal rewards has advantage 0 with any.
ADVANTAGE_EPSILON = 1e-6


def group_advantages(rewards_BG: Array) -> Array:
    """(reward - group mean) / group standard deviation, [B, G] (section 4.1.2; population standard deviation)."""
    # Measured from each group's first reward, so that equal rewards give exact zeros: their mean may be off by a
    # rounding, and that over a standard deviation of about nothing is not small.
    rewards_BG = rewards_BG - rewards_BG[:, :1]
    centred_BG = rewards_BG - rewards_BG.mean(axis=1, keepdims=True)
    return centred_BG / (rewards_BG.std(axis=1, keepdims=True) + ADVANTAGE_EPSILON)


def clipped_objective(ratio_BN: Array, advantage_BN: Array, epsilon: float) -> Array:
    """min(ratio * A, clip(ratio, 1 - epsilon, 1 + epsilon) * A) for each token (equation 3)."""
    clipped_BN = jnp.clip(ratio_BN, 1 - epsilon, 1 + epsilon)
    return jnp.minimum(ratio_BN * advantage_BN, clipped_BN * advantage_BN)


def kl_k3(logp_BN: Array, logp_ref_BN: Array) -> Array:
    """exp(ref - new) - (ref - new) - 1 for each token (equation 4): unbiased for KL(new || ref), never negative."""
    log_ratio_BN = logp_ref_BN - logp_BN
    return jnp.exp(log_ratio_BN) - log_ratio_BN - 1


def sequence_mean(values_BN: Array, mask_BN: Array) -> Mean:
    """Mean over each output's own tokens, then over outputs: the paper's 1/G sum 1/|o| (equation 3)."""
    per_output_B = (values_BN * mask_BN).sum(axis=1) / jnp.maximum(mask_BN.sum(axis=1), 1)
    return Mean(per_output_B.sum(), (mask_BN.sum(axis=1) > 0).astype(jnp.float32).sum())


def token_mean(values_BN: Array, mask_BN: Array) -> Mean:
    """Mean over all tokens of the batch (DAPO, arXiv 2503.14476, equation 8): long outputs weigh more."""
    return Mean((values_BN * mask_BN).sum(), mask_BN.sum())


AGGREGATIONS = {"sequence_mean": sequence_mean, "token_mean": token_mean}


def grpo_loss(
    logp_BN: Array,
    logp_old_BN: Array,
    logp_ref_BN: Array,
    advantage_B: Array,
    mask_BN: Array,
    *,
    clip_epsilon: float,
    kl_coef: float,
    aggregation: str,
) -> tuple[Mean, Metrics]:
    """-(clipped objective - kl_coef * KL), aggregated; its sum and weight, so that parts of a batch add up exactly.

    All arrays are float32; `mask_BN` is 1 on trained tokens.
    """
    # What is masked may hold anything: set before the exponentials, where an overflow times 0 would be no number.
    logp_BN, logp_old_BN, logp_ref_BN = (jnp.where(mask_BN > 0, x, 0.0) for x in (logp_BN, logp_old_BN, logp_ref_BN))
    ratio_BN = jnp.exp(logp_BN - logp_old_BN)
    kl_BN = kl_k3(logp_BN, logp_ref_BN)
    objective_BN = clipped_objective(ratio_BN, advantage_B[:, None], clip_epsilon) - kl_coef * kl_BN
    loss = AGGREGATIONS[aggregation](-objective_BN, mask_BN)
    is_clipped_BN = jnp.abs(ratio_BN - 1) > clip_epsilon
    metrics: Metrics = {
        "loss": loss,
        "kl": token_mean(kl_BN, mask_BN),
        "clip_fraction": token_mean(is_clipped_BN.astype(jnp.float32), mask_BN),
        "ratio_deviation_max": Max((jnp.abs(ratio_BN - 1) * mask_BN).max()),
    }
    return loss, metrics
