"""From rewards to the advantage of each token, on the host."""

from collections.abc import Callable, Sequence

import numpy as np

from r1jax.config import LossConfig, SamplingConfig
from r1jax.types import ROUNDING, Sample

# Added to the group's standard deviation. Code bases differ (1e-8 to 1e-4), and the papers have none. It matters only
# for rewards that differ by about as much: a group of equal rewards has advantage 0 with any.
ADVANTAGE_EPSILON = 1e-6


# Advantages, on the host: of rewards [B, G], where `valid_BG` is 1 on the samples that count; 0 on the others.


def centred_advantages(rewards_BG: np.ndarray, valid_BG: np.ndarray) -> np.ndarray:
    """reward - group mean (Dr. GRPO, arXiv 2503.20783, section 3.2: no standard deviation)."""
    number_B1 = np.maximum(valid_BG.sum(axis=1, keepdims=True), 1)
    # Relative to a reward of the group, so that equal rewards give exact zeros: their mean may be off by a rounding,
    # which a division by a standard deviation of about 0 would blow up.
    first_B1 = np.take_along_axis(rewards_BG, valid_BG.argmax(axis=1)[:, None], axis=1)
    rewards_BG = (rewards_BG - first_B1) * valid_BG
    rewards_BG *= np.ptp(rewards_BG, axis=1, keepdims=True) > ROUNDING  # else no signal, as in `grading.has_signal`
    return (rewards_BG - rewards_BG.sum(axis=1, keepdims=True) / number_B1) * valid_BG


def group_advantages(rewards_BG: np.ndarray, valid_BG: np.ndarray) -> np.ndarray:
    """(reward - group mean) / group standard deviation (GRPO, section 4.1.2; population standard deviation)."""
    centred_BG = centred_advantages(rewards_BG, valid_BG)
    number_B1 = np.maximum(valid_BG.sum(axis=1, keepdims=True), 1)
    deviation_B1 = np.sqrt((centred_BG**2).sum(axis=1, keepdims=True) / number_B1)
    return centred_BG / (deviation_B1 + ADVANTAGE_EPSILON)


def leave_one_out_advantages(rewards_BG: np.ndarray, valid_BG: np.ndarray) -> np.ndarray:
    """reward - mean of the group's other rewards (RLOO, arXiv 2402.14740, equation 7)."""
    number_B1 = valid_BG.sum(axis=1, keepdims=True)
    return centred_advantages(rewards_BG, valid_BG) * number_B1 / np.maximum(number_B1 - 1, 1)


ADVANTAGES = {
    "group": group_advantages,
    "centred": centred_advantages,
    "leave_one_out": leave_one_out_advantages,
}


def overlong_penalty(length_BG: np.ndarray, max_new_tokens: int, share: float) -> np.ndarray:
    """0, falling to -1 over the last `share` of max_new_tokens (DAPO, arXiv 2503.14476, equation 13); 0: off."""
    buffer = share * max_new_tokens
    return -np.clip((length_BG - (max_new_tokens - buffer)) / buffer, 0, 1) if buffer else 0.0 * length_BG


def broadcast_advantages(
    samples: Sequence[Sample], rewards_G: np.ndarray, valid_G: np.ndarray, c: LossConfig
) -> Sequence[np.ndarray]:
    """For each sample of a group an advantage per token: the same on all of them (`LossConfig.advantage`).

    A fork's own function has these arguments: the samples, their total rewards (with DAPO's penalty), 1.0 for each
    sample that is valid, and the algorithm. It returns an array [tokens] for each sample; where `Sample.loss_mask` is 0
    and where a sample is not valid, it is not read.
    """
    (advantage_G,) = ADVANTAGES[c.advantage](rewards_G[None], valid_G[None])
    return [np.full(len(sample.tokens), a) for sample, a in zip(samples, advantage_G, strict=True)]


def turn_advantages(discount: float) -> "AdvantageFunction":
    """Makes an advantage function by which the tokens of each turn get the advantage of its own return.

    A turn's return is the environment's rewards from it on, each turn later times `discount`; what else the sample
    earns counts as the last turn's. It is compared with the returns of the group's other samples from the same turn on.
    The environment's rewards have to be among the sample's, with weight 1 (`rules.environment_reward`).
    """

    def by_turn(
        samples: Sequence[Sample], rewards_G: np.ndarray, valid_G: np.ndarray, c: LossConfig
    ) -> Sequence[np.ndarray]:
        returns_GU = np.zeros((len(samples), max(len(s.turns) for s in samples)), np.float32)
        for g, sample in enumerate(samples):
            rewards = [turn.reward or 0.0 for turn in sample.turns]
            rewards[-1] += rewards_G[g] - sum(rewards)
            ahead = 0.0
            for u, reward in reversed(list(enumerate(rewards))):
                returns_GU[g, u] = ahead = reward + discount * ahead
        advantages = [np.zeros(len(sample.tokens)) for sample in samples]
        for u, returns_G in enumerate(returns_GU.T):
            has_turn_G = valid_G * [len(sample.turns) > u for sample in samples]
            for g, advantage in enumerate(ADVANTAGES[c.advantage](returns_G[None], has_turn_G[None])[0]):
                if has_turn_G[g]:
                    advantages[g][samples[g].turns[u].start : samples[g].turns[u].stop] = advantage
        return advantages

    by_turn.__qualname__ = f"turn_advantages({discount:g})"
    return by_turn


AdvantageFunction = Callable[[Sequence[Sample], np.ndarray, np.ndarray, LossConfig], Sequence[np.ndarray]]


def compute_advantages(
    groups: Sequence[Sequence[Sample]],
    c: LossConfig,
    sampling: SamplingConfig,
    function: AdvantageFunction = broadcast_advantages,
) -> list[Sample]:
    """Sets `Sample.advantages` in every group; returns the valid samples, which are trained on."""
    for samples in groups:
        length_G = np.asarray([sum(s.loss_mask) for s in samples], np.float32)
        rewards_G = np.asarray([s.reward for s in samples], np.float32)
        rewards_G += overlong_penalty(length_G, sampling.max_new_tokens, c.overlong_buffer)
        valid_G = np.asarray([s.valid for s in samples], np.float32)
        for sample, advantages in zip(samples, function(samples, rewards_G, valid_G, c), strict=True):
            sample.advantages = np.asarray(advantages, np.float32)
    return [sample for samples in groups for sample in samples if sample.valid]
