"""Group Relative Policy Optimization (DeepSeekMath, arXiv 2402.03300, section 4.1) and its variants.

Each choice is one function of a table below; `RLConfig` names one of each, and `gin_configs/algorithm/` the published
compositions. Arrays are float32; `mask_BN` is 1 on trained tokens.
"""

import jax
import jax.numpy as jnp

from r1jax.config import RLConfig
from r1jax.objectives.metrics import Max, Mean, Metrics, Min
from r1jax.types import Array

# Added to the group's standard deviation. Code bases differ (1e-8 to 1e-4); the papers have none. It only decides how
# rewards that differ by about as much as itself are treated: a group of equal rewards has advantage 0 with any.
ADVANTAGE_EPSILON = 1e-6


# Advantages: of rewards [B, G], where `valid_BG` is 1 on the outputs that count; 0 on the others.


def centred_advantages(rewards_BG: Array, valid_BG: Array) -> Array:
    """reward - group mean (Dr. GRPO, arXiv 2503.20783, section 3.2: no standard deviation)."""
    number_B1 = jnp.maximum(valid_BG.sum(axis=1, keepdims=True), 1)
    # Measured from a reward of the group, so that equal rewards give exact zeros: their mean may be off by a rounding,
    # and that over a standard deviation of about nothing is not small.
    first_B1 = jnp.take_along_axis(rewards_BG, valid_BG.argmax(axis=1)[:, None], axis=1)
    rewards_BG = (rewards_BG - first_B1) * valid_BG
    return (rewards_BG - rewards_BG.sum(axis=1, keepdims=True) / number_B1) * valid_BG


def group_advantages(rewards_BG: Array, valid_BG: Array) -> Array:
    """(reward - group mean) / group standard deviation (GRPO, section 4.1.2; population standard deviation)."""
    centred_BG = centred_advantages(rewards_BG, valid_BG)
    number_B1 = jnp.maximum(valid_BG.sum(axis=1, keepdims=True), 1)
    deviation_B1 = jnp.sqrt((centred_BG**2).sum(axis=1, keepdims=True) / number_B1)
    return centred_BG / (deviation_B1 + ADVANTAGE_EPSILON)


def leave_one_out_advantages(rewards_BG: Array, valid_BG: Array) -> Array:
    """reward - mean of the group's other rewards (RLOO, arXiv 2402.14740, equation 7)."""
    number_B1 = valid_BG.sum(axis=1, keepdims=True)
    return centred_advantages(rewards_BG, valid_BG) * number_B1 / jnp.maximum(number_B1 - 1, 1)


ADVANTAGES = {
    "group": group_advantages,
    "centred": centred_advantages,
    "leave_one_out": leave_one_out_advantages,
}


# Ratios of the policy to the one that the outputs were drawn from, for each token.


def token_ratio(log_ratio_BN: Array, mask_BN: Array) -> Array:
    """Each token's own (GRPO, equation 3)."""
    del mask_BN
    return jnp.exp(log_ratio_BN)


def sequence_ratio(log_ratio_BN: Array, mask_BN: Array) -> Array:
    """The geometric mean over the output's tokens, the same for all of them (GSPO, arXiv 2507.18071, equation 7)."""
    length_B1 = jnp.maximum(mask_BN.sum(axis=1, keepdims=True), 1)
    mean_B1 = (log_ratio_BN * mask_BN).sum(axis=1, keepdims=True) / length_B1
    return jnp.exp(jnp.broadcast_to(mean_B1, log_ratio_BN.shape))


RATIOS = {"token": token_ratio, "sequence": sequence_ratio}


# Objectives, for each token: what is maximised, without the KL term.


def clipped_objective(logp_BN: Array, ratio_BN: Array, advantage_BN: Array, low: float, high: float) -> Array:
    """min(ratio * A, clip(ratio, 1 - low, 1 + high) * A) (GRPO, equation 3; DAPO, arXiv 2503.14476, equation 8)."""
    del logp_BN
    clipped_BN = jnp.clip(ratio_BN, 1 - low, 1 + high)
    return jnp.minimum(ratio_BN * advantage_BN, clipped_BN * advantage_BN)


def weighted_objective(logp_BN: Array, ratio_BN: Array, advantage_BN: Array, low: float, high: float) -> Array:
    """clip(ratio, 1 - low, 1 + high) * A * log p, the clipped ratio a constant (CISPO, 2506.13585, equation 4)."""
    return jax.lax.stop_gradient(jnp.clip(ratio_BN, 1 - low, 1 + high)) * advantage_BN * logp_BN


OBJECTIVES = {"clipped": clipped_objective, "weighted": weighted_objective}


# Estimators of KL(policy || reference) from a token that the policy drew.


def kl_k1(logp_BN: Array, logp_ref_BN: Array) -> Array:
    """log p - log ref: unbiased, but its expected gradient as a loss is zero: it only adds noise."""
    return logp_BN - logp_ref_BN


def kl_k2(logp_BN: Array, logp_ref_BN: Array) -> Array:
    """(log p - log ref)^2 / 2: biased, but its gradient is that of KL."""
    return (logp_BN - logp_ref_BN) ** 2 / 2


def kl_k3(logp_BN: Array, logp_ref_BN: Array) -> Array:
    """exp(ref - new) - (ref - new) - 1 (GRPO, equation 4): unbiased, and never negative."""
    log_ratio_BN = logp_ref_BN - logp_BN
    return jnp.exp(log_ratio_BN) - log_ratio_BN - 1


KLS = {"k1": kl_k1, "k2": kl_k2, "k3": kl_k3}


# Aggregations: what is divided by what. `longest` is the most tokens that an output may have.


def sequence_mean(values_BN: Array, mask_BN: Array, longest: int) -> Mean:
    """Mean over each output's own tokens, then over outputs: the paper's 1/G sum 1/|o| (GRPO, equation 3)."""
    del longest
    per_output_B = (values_BN * mask_BN).sum(axis=1) / jnp.maximum(mask_BN.sum(axis=1), 1)
    return Mean(per_output_B.sum(), (mask_BN.sum(axis=1) > 0).astype(jnp.float32).sum())


def token_mean(values_BN: Array, mask_BN: Array, longest: int = 0) -> Mean:
    """Mean over all tokens of the batch (DAPO, equation 8): long outputs weigh more."""
    del longest
    return Mean((values_BN * mask_BN).sum(), mask_BN.sum())


def constant_length(values_BN: Array, mask_BN: Array, longest: int) -> Mean:
    """Sum over all tokens / (outputs * longest): no output's length divides anything (Dr. GRPO, section 3.2)."""
    outputs = (mask_BN.sum(axis=1) > 0).astype(jnp.float32).sum()
    return Mean((values_BN * mask_BN).sum(), outputs * longest)


AGGREGATIONS = {"sequence_mean": sequence_mean, "token_mean": token_mean, "constant_length": constant_length}


def overlong_penalty(length_BG: Array, longest: int, buffer: int) -> Array:
    """0 up to longest - buffer tokens, then falling to -1 at `longest` (DAPO, equation 13). `buffer` 0 turns it off."""
    return -jnp.clip((length_BG - (longest - buffer)) / max(buffer, 1), 0, 1) * (buffer > 0)


def importance_weights(log_ratio_BN: Array, mask_BN: Array, c: RLConfig) -> Array:
    """Trainer's / sampler's probability of each token or of its output's tokens together, up to a limit; constants.

    Both are of the policy that drew: the weights make up for rounding, quantized rollouts and other routes (truncated
    importance sampling, as in IMPALA, arXiv 1802.01561, section 4).
    """
    if c.importance == "none":
        return jnp.ones_like(log_ratio_BN)
    log_ratio_BN = jnp.where(mask_BN > 0, log_ratio_BN, 0.0)
    if c.importance == "sequence":
        log_ratio_BN = jnp.broadcast_to(log_ratio_BN.sum(axis=1, keepdims=True), log_ratio_BN.shape)
    weights_BN = jnp.exp(log_ratio_BN)
    beyond = c.importance_limit if c.importance_beyond == "truncate" else 0.0
    return jnp.where(weights_BN > c.importance_limit, beyond, weights_BN)


def logprob_gap(logp_old_BN: Array, logp_sampler_BN: Array, mask_BN: Array, weights_BN: Array) -> Metrics:
    """|sampler's - trainer's log-probability| over the sampled tokens: what a wrong cache or temperature would show.

    And KL(sampler || trainer), by the k3 estimator.
    """
    gap_BN = jnp.where(mask_BN > 0, logp_old_BN - logp_sampler_BN, 0.0)
    return {
        "logprob_gap": token_mean(jnp.abs(gap_BN), mask_BN),
        "logprob_gap_max": Max(jnp.abs(gap_BN).max()),
        "sampler_kl": token_mean(jnp.exp(gap_BN) - gap_BN - 1, mask_BN),
        "importance_weight": token_mean(weights_BN, mask_BN),
    }


def grpo_loss(
    logp_BN: Array,
    logp_old_BN: Array,
    logp_ref_BN: Array,
    advantage_B: Array,
    mask_BN: Array,
    c: RLConfig,
    weights_BN: Array | float = 1.0,
) -> tuple[Mean, Metrics]:
    """-(weight * objective - kl_coef * KL), aggregated; its sum and weight, so that parts of a batch add up exactly."""
    # What is masked may hold anything: set before the exponentials, where an overflow times 0 would be no number.
    logp_BN, logp_old_BN, logp_ref_BN = (jnp.where(mask_BN > 0, x, 0.0) for x in (logp_BN, logp_old_BN, logp_ref_BN))
    ratio_BN = RATIOS[c.ratio](logp_BN - logp_old_BN, mask_BN)
    objective_BN = OBJECTIVES[c.objective](logp_BN, ratio_BN, advantage_B[:, None], c.clip_low, c.clip_high)
    kl_BN = KLS[c.kl_estimator](logp_BN, logp_ref_BN)
    if c.kl_correction:  # the outputs are an older policy's: unbiased again (DeepSeek-V3.2, 2512.02556, equation 7)
        kl_BN = kl_BN * jnp.exp(logp_BN - logp_old_BN) * weights_BN
    loss = AGGREGATIONS[c.aggregation](c.kl_coef * kl_BN - weights_BN * objective_BN, mask_BN, c.max_new_tokens)
    # The minimum of `clipped_objective` cuts on the side that the advantage leads to; `weighted_objective` on both.
    rises_B1 = advantage_B[:, None] > 0
    cuts_low_BN = (ratio_BN < 1 - c.clip_low) & (~rises_B1 | (c.objective == "weighted"))
    cuts_high_BN = (ratio_BN > 1 + c.clip_high) & (rises_B1 | (c.objective == "weighted"))
    metrics: Metrics = {
        "loss": loss,
        "clip_fraction_low": token_mean(cuts_low_BN.astype(jnp.float32), mask_BN),
        "clip_fraction_high": token_mean(cuts_high_BN.astype(jnp.float32), mask_BN),
        "ratio_deviation_max": Max((jnp.abs(ratio_BN - 1) * mask_BN).max()),
        "ratio_max": Max(jnp.where(mask_BN > 0, ratio_BN, 0.0).max()),
        "ratio_min": Min(jnp.where(mask_BN > 0, ratio_BN, jnp.where(mask_BN.any(), jnp.inf, 1.0)).min()),
    }
    return loss, metrics | ({"kl": token_mean(kl_BN, mask_BN)} if c.kl_coef else {})
