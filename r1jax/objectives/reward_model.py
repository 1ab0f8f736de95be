"""Reward models (R1, supplement): the policy's trunk with a scalar head, on preference pairs or rated responses."""

import jax
import jax.numpy as jnp

from r1jax.config import ModelConfig
from r1jax.model.ops import ONE_DEVICE, ShardedOps
from r1jax.model.transformer import forward
from r1jax.objectives.metrics import Mean, Metrics
from r1jax.types import Array, Params, PreferenceBatch, TokenBatch


def response_scores(
    params: Params,
    router_bias: dict,
    tokens_BT: Array,
    length_B: Array,
    config: ModelConfig,
    ops: ShardedOps = ONE_DEVICE,
) -> tuple[Array, dict[str, Array]]:
    """The scalar head on the hidden state, after the final norm, of each row's last token: float32 [B]; expert loads.

    The last token is found by length and never by its id. In float32 also where activations are not: bfloat16 would
    give good responses the same score.
    """
    T = tokens_BT.shape[1]
    is_token_BT = (jnp.arange(T) < length_B[:, None]).astype(jnp.int32)
    batch = TokenBatch(tokens_BT * is_token_BT, jnp.arange(T) * is_token_BT, is_token_BT)
    hidden = forward(params, router_bias, batch, config, ops=ops)
    last_B11 = jnp.maximum(length_B - 1, 0)[:, None, None]
    last_BD = jnp.take_along_axis(hidden.hidden_BTD, last_B11, axis=1)[:, 0]
    scores_B1 = last_BD.astype(jnp.float32) @ params["score_D1"].astype(jnp.float32)
    return scores_B1[:, 0], hidden.load


# Margins of judged pairs or responses: how far the scores agree with the label, and 1 where it is valid, 0 on padding.


def pairwise_margins(scores_B: Array, batch: PreferenceBatch) -> tuple[Array, Array]:
    """Score of the chosen response - score of the rejected one, [B / 2] (Bradley-Terry's log odds)."""
    scores_J2 = scores_B.reshape(-1, 2)
    return scores_J2[:, 0] - scores_J2[:, 1], (batch.length_B.reshape(-1, 2) > 0).all(axis=1)


def pointwise_margins(scores_B: Array, batch: PreferenceBatch) -> tuple[Array, Array]:
    """The score of a safe response, and minus that of an unsafe one, [B]: the log odds of the label."""
    return scores_B * (2 * batch.is_good_B - 1), batch.length_B > 0


MARGINS = {"pairwise": pairwise_margins, "pointwise": pointwise_margins}


def preference_loss(scores_B: Array, batch: PreferenceBatch, kind: str) -> tuple[Mean, Metrics]:
    """-log sigmoid(margin), as a sum and its weight, so that parts of a batch add up exactly.

    On pairs that is InstructGPT's equation 1 (arXiv 2203.02155), on single responses binary cross entropy. A margin of
    0 is half right. `score_good` and `score_bad` are mean scores of chosen or safe, of rejected or unsafe responses.
    """
    margin_J, valid_J = MARGINS[kind](scores_B, batch)
    weight_J, is_row_B = valid_J.astype(jnp.float32), batch.length_B > 0

    def mean(values: Array, weights: Array) -> Mean:
        return Mean((values * weights).sum(), weights.sum())

    loss = mean(-jax.nn.log_sigmoid(margin_J), weight_J)
    return loss, {
        "loss": loss,
        "accuracy": mean(jnp.heaviside(margin_J, 0.5), weight_J),
        "score_good": mean(scores_B, batch.is_good_B * is_row_B),
        "score_bad": mean(scores_B, (1 - batch.is_good_B) * is_row_B),
        "valid": Mean(weight_J.sum(), jnp.float32(weight_J.size)),  # the others are padding, or were too long
    }


def reward_model_loss(
    params: Params,
    router_bias: dict,
    batch: PreferenceBatch,
    config: ModelConfig,
    kind: str,
    ops: ShardedOps = ONE_DEVICE,
) -> tuple[Array, tuple[Metrics, dict[str, Array]]]:
    """The scalar loss, and (metrics, expert loads by stack)."""
    scores_B, load = response_scores(params, router_bias, batch.tokens_BT, batch.length_B, config, ops)
    loss, metrics = preference_loss(scores_B, batch, kind)
    return loss.mean(), (metrics, load)
