"""DeepSeekMoE (V2, arXiv 2405.04434, section 2.2) with V3's bias-based load balance. No token is ever dropped."""

import jax
import jax.numpy as jnp

from r1jax.config import ModelConfig
from r1jax.model.layers import feed_forward
from r1jax.model.ops import ONE_DEVICE, Ops
from r1jax.model.spec import uses_router_bias
from r1jax.types import Array, Params


def affinities(p: Params, x_TD: Array, c: ModelConfig) -> Array:
    """Affinity of each token to each expert, [T, E], in float32: sigmoid (V3, equation 15) or softmax (V2, 22)."""
    # Highest precision: on a TPU a float32 product would otherwise be rounded to bfloat16, and routes would differ.
    logits_TE = jnp.matmul(x_TD.astype(jnp.float32), p["router_DE"].astype(jnp.float32), precision="highest")
    return jax.nn.sigmoid(logits_TE) if c.scoring_func == "sigmoid" else jax.nn.softmax(logits_TE)


def group_scores(biased_TgE: Array, c: ModelConfig) -> Array:
    """A group's score [T, g]: its best affinity (V2, section 2.2.2) or the sum of its two best biased ones (V3)."""
    best = 1 if c.topk_method == "group_limited_greedy" else min(2, biased_TgE.shape[-1])
    return jax.lax.top_k(biased_TgE, best)[0].sum(axis=-1)


def choose_experts(
    scores_TE: Array, bias_E: Array, c: ModelConfig, replay_TK: Array | None = None
) -> tuple[Array, Array]:
    """Ids [T, K] and gate values [T, K] of the chosen experts.

    "greedy" takes the best of all, "group_limited_greedy" the best of the best groups, and "noaux_tc" the best biased
    ones of the best groups. The bias takes part in the choice only, never in the gate value (V3, equation 16). Experts
    of groups that are not kept are at minus infinity, not at zero, since a biased affinity may be negative.
    `replay_TK` prescribes the ids where it is not -1; the gate values are still this router's (arXiv 2510.11370).
    """
    biased_TE = scores_TE + bias_E if uses_router_bias(c) else scores_TE
    if c.topk_method != "greedy" and c.topk_group < c.n_group:
        T, E = scores_TE.shape
        grouped_TgE = biased_TE.reshape(T, c.n_group, E // c.n_group)
        kept_Tk = jax.lax.top_k(group_scores(grouped_TgE, c), c.topk_group)[1]
        is_kept_Tg = jax.nn.one_hot(kept_Tk, c.n_group).sum(axis=1) > 0
        biased_TE = jnp.where(is_kept_Tg[:, :, None], grouped_TgE, -jnp.inf).reshape(T, E)
    ids_TK = jax.lax.top_k(biased_TE, c.num_experts_per_tok)[1]
    if replay_TK is not None:
        ids_TK = jnp.where(replay_TK < 0, ids_TK, replay_TK)
    gates_TK = jnp.take_along_axis(scores_TE, ids_TK, axis=-1)
    if c.norm_topk_prob:
        gates_TK = gates_TK / (gates_TK.sum(axis=-1, keepdims=True) + 1e-20)
    return ids_TK, gates_TK * c.routed_scaling_factor


def moe(
    p: Params,
    bias_E: Array,
    x_BTD: Array,
    segments_BT: Array,
    c: ModelConfig,
    replay_BTK: Array | None = None,
    ops: Ops = ONE_DEVICE,
) -> tuple[Array, dict[str, Array]]:
    """Routed plus shared experts, [B, T, D], and the router's statistics over all but segment 0, the padding.

    Statistics: `load_E`, how many tokens chose each expert, `balance`, the sum of the segments' balance losses, and
    `ids_BTK`, the experts of each token. `replay_BTK` prescribes them where it is not negative.
    """
    x_TD = x_BTD.reshape(-1, x_BTD.shape[-1])
    scores_TE = affinities(p, x_TD, c)
    replay_TK = None if replay_BTK is None else replay_BTK.reshape(-1, c.num_experts_per_tok)
    ids_TK, gates_TK = choose_experts(scores_TE, bias_E, c, replay_TK)
    shape_BTK = (*segments_BT.shape, c.num_experts_per_tok)
    ids_BTK = ids_TK.reshape(shape_BTK)
    out_BTD = ops.experts(p, x_BTD, ids_BTK, gates_TK.reshape(shape_BTK), c)
    out_BTD += ops.rows(feed_forward(p["shared"], ops.inner(x_BTD)))

    chosen_TE = jax.nn.one_hot(ids_TK, c.n_routed_experts).sum(axis=1)
    chosen_BTE = chosen_TE.reshape(*segments_BT.shape, -1) * (segments_BT > 0)[..., None]
    balance = balance_loss(scores_TE.reshape(chosen_BTE.shape), chosen_BTE, segments_BT, c)
    return out_BTD, {
        "load_E": chosen_BTE.sum(axis=(0, 1)),
        "balance": balance,
        "ids_BTK": ids_BTK,
    }


def balance_loss(scores_BTE: Array, chosen_BTE: Array, segments_BT: Array, c: ModelConfig) -> Array:
    """Sum over segments of sum_e f_e P_e (V3, equations 17 to 20); 1 for each that uses all experts alike.

    f_e = E / (K T) * how many tokens of the segment chose expert e; P_e = mean of its normalised affinity over them.
    """
    T = segments_BT.shape[1]
    starts_BT = segments_BT != jnp.pad(segments_BT, ((0, 0), (1, 0)), constant_values=-1)[:, :-1]
    number_BT = jnp.where(segments_BT > 0, jnp.cumsum(starts_BT, axis=1), 0)  # 1 to T, whatever the ids are

    def by_segment(values_BTE):
        return jax.vmap(lambda v, s: jax.ops.segment_sum(v, s, num_segments=T + 1))(values_BTE, number_BT)[:, 1:]

    tokens_Bs1 = jnp.maximum(by_segment(jnp.ones((*segments_BT.shape, 1))), 1)
    f_BsE = by_segment(chosen_BTE) * c.n_routed_experts / (c.num_experts_per_tok * tokens_Bs1)
    P_BsE = by_segment(scores_BTE / scores_BTE.sum(axis=-1, keepdims=True)) / tokens_Bs1
    return (f_BsE * P_BsE).sum()


def update_router_bias(bias_LE: Array, load_LE: Array, speed: float) -> Array:
    """After a step, the bias of an overloaded expert falls by `speed` and that of an underloaded one rises by it."""
    return bias_LE + speed * jnp.sign(load_LE.mean(axis=-1, keepdims=True) - load_LE)
