"""DeepSeekMoE (V2, arXiv 2405.04434, section 2.2) with V3's bias-based load balance. No token is ever dropped."""

import jax
import jax.numpy as jnp

from r1jax.config import ModelConfig
from r1jax.model.layers import feed_forward
from r1jax.model.ops import ONE_DEVICE, ShardedOps
from r1jax.model.spec import uses_router_bias
from r1jax.types import Array, Params


def affinities(p: Params, x_BTD: Array, c: ModelConfig) -> Array:
    """Affinity of each token to each expert, [B, T, E], in float32: sigmoid (V3, equation 15) or softmax (V2, 22)."""
    # Highest precision: on a TPU a float32 product would otherwise be rounded to bfloat16, and routes would differ.
    logits_BTE = jnp.matmul(x_BTD.astype(jnp.float32), p["router_DE"].astype(jnp.float32), precision="highest")
    return jax.nn.sigmoid(logits_BTE) if c.scoring_func == "sigmoid" else jax.nn.softmax(logits_BTE)


def group_scores(biased_BTgE: Array, c: ModelConfig) -> Array:
    """A group's score [B, T, g]: its best affinity (V2, section 2.2.2) or the sum of its two best biased ones (V3)."""
    best = 1 if c.topk_method == "group_limited_greedy" else min(2, biased_BTgE.shape[-1])
    return jax.lax.top_k(biased_BTgE, best)[0].sum(axis=-1)


def choose_experts(
    scores_BTE: Array, bias_E: Array, c: ModelConfig, replay_BTK: Array | None = None
) -> tuple[Array, Array]:
    """Ids and gate values of the chosen experts, [B, T, K] each.

    "greedy" takes the best of all, "group_limited_greedy" the best of the best groups, and "noaux_tc" the best biased
    ones of the best groups. The bias takes part in the choice only, never in the gate value (V3, equation 16). Experts
    of groups that are not kept are at minus infinity, not at zero, since a biased affinity may be negative.
    `replay_BTK` prescribes the ids where it is not -1; the gate values are still this router's (arXiv 2510.11370).
    """
    biased_BTE = scores_BTE + bias_E if uses_router_bias(c) else scores_BTE
    if c.topk_method != "greedy" and c.topk_group < c.n_group:
        grouped_BTgE = biased_BTE.reshape(*biased_BTE.shape[:-1], c.n_group, -1)
        kept_BTk = jax.lax.top_k(group_scores(grouped_BTgE, c), c.topk_group)[1]
        is_kept_BTg = jax.nn.one_hot(kept_BTk, c.n_group).sum(axis=-2) > 0
        biased_BTE = jnp.where(is_kept_BTg[..., None], grouped_BTgE, -jnp.inf).reshape(biased_BTE.shape)
    ids_BTK = jax.lax.top_k(biased_BTE, c.num_experts_per_tok)[1]
    if replay_BTK is not None:
        ids_BTK = jnp.where(replay_BTK < 0, ids_BTK, replay_BTK)
    gates_BTK = jnp.take_along_axis(scores_BTE, ids_BTK, axis=-1)
    if c.norm_topk_prob:
        gates_BTK = gates_BTK / (gates_BTK.sum(axis=-1, keepdims=True) + 1e-20)
    return ids_BTK, gates_BTK * c.routed_scaling_factor


def moe(
    p: Params,
    bias_E: Array,
    x_BTD: Array,
    segment_ids_BT: Array,
    c: ModelConfig,
    replay_BTK: Array | None = None,
    ops: ShardedOps = ONE_DEVICE,
) -> tuple[Array, dict[str, Array]]:
    """Routed plus shared experts, [B, T, D], and the router's statistics over all but segment 0, the padding.

    Statistics: `load_E`, how many tokens chose each expert, `balance`, the sum of the segments' balance losses, and
    `ids_BTK`, the experts of each token. `replay_BTK` prescribes them where it is not negative.
    """
    scores_BTE = affinities(p, x_BTD, c)
    ids_BTK, gates_BTK = choose_experts(scores_BTE, bias_E, c, replay_BTK)
    out_BTD = ops.experts(p, x_BTD, ids_BTK, gates_BTK, c)
    out_BTD += ops.rows(feed_forward(p["shared"], ops.inner(x_BTD)))

    chosen_BTE = jax.nn.one_hot(ids_BTK, c.n_routed_experts).sum(axis=-2) * (segment_ids_BT > 0)[..., None]
    balance = balance_loss(scores_BTE, chosen_BTE, segment_ids_BT, c)
    return out_BTD, {
        "load_E": chosen_BTE.sum(axis=(0, 1)),
        "balance": balance,
        "ids_BTK": ids_BTK,
    }


def balance_loss(scores_BTE: Array, chosen_BTE: Array, segment_ids_BT: Array, c: ModelConfig) -> Array:
    """Sum over segments of sum_e f_e P_e (V3, equations 17 to 20); 1 for each that uses all experts alike.

    f_e = E / (K T) * how many tokens of the segment chose expert e; P_e = mean of its normalised affinity over them.
    """
    T = segment_ids_BT.shape[1]
    starts_BT = segment_ids_BT != jnp.pad(segment_ids_BT, ((0, 0), (1, 0)), constant_values=-1)[:, :-1]
    number_BT = jnp.where(segment_ids_BT > 0, jnp.cumsum(starts_BT, axis=1), 0)  # 1 to T, whatever the ids are

    def by_segment(values_BTE):
        return jax.vmap(lambda v, s: jax.ops.segment_sum(v, s, num_segments=T + 1))(values_BTE, number_BT)[:, 1:]

    tokens_Bs1 = jnp.maximum(by_segment(jnp.ones((*segment_ids_BT.shape, 1))), 1)
    f_BsE = by_segment(chosen_BTE) * c.n_routed_experts / (c.num_experts_per_tok * tokens_Bs1)
    P_BsE = by_segment(scores_BTE / scores_BTE.sum(axis=-1, keepdims=True)) / tokens_Bs1
    return (f_BsE * P_BsE).sum()


def update_router_bias(bias_LE: Array, load_LE: Array, speed: float) -> Array:
    """After a step, the bias of an overloaded expert falls by `speed` and that of an underloaded one rises by it."""
    return bias_LE + speed * jnp.sign(load_LE.mean(axis=-1, keepdims=True) - load_LE)
