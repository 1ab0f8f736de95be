"""DeepSeekMoE (V2, arXiv 2405.04434, section 2.2) with V3's bias-based load balancing. No token is ever dropped."""

import jax
import jax.numpy as jnp

from r1jax.config import ModelConfig
from r1jax.model.layers import feed_forward
from r1jax.model.ops import ONE_DEVICE, ShardedOps
from r1jax.model.spec import uses_router_bias
from r1jax.types import Array, Params


def affinities(p: Params, x_BTD: Array, c: ModelConfig) -> Array:
    """Affinity of each token to each expert, [B, T, E], in float32: sigmoid (V3, equation 15) or softmax (V2, 22)."""
    # By default a TPU multiplies float32 matrices in bfloat16, which would change routes.
    logits_BTE = jnp.matmul(x_BTD.astype(jnp.float32), p["router_DE"].astype(jnp.float32), precision="highest")
    return jax.nn.sigmoid(logits_BTE) if c.scoring_func == "sigmoid" else jax.nn.softmax(logits_BTE)


def choose_experts(
    scores_BTE: Array, bias_E: Array, c: ModelConfig, replay_BTK: Array | None = None
) -> tuple[Array, Array]:
    """Ids and gate values of the chosen experts, [B, T, K] each.

    "greedy" takes the best experts; "group_limited_greedy" those of the groups with the best expert (V2, section
    2.2.2); "noaux_tc" those of the groups with the best two, by biased affinity (V3). The bias never enters the gate
    values (V3, equation 16). `replay_BTK` prescribes ids where it is not -1, not gate values (arXiv 2510.11370).
    """
    biased_BTE = scores_BTE + jnp.broadcast_to(bias_E, scores_BTE.shape) if uses_router_bias(c) else scores_BTE
    if c.topk_method != "greedy" and c.topk_group < c.n_group:
        grouped_BTgE = biased_BTE.reshape(*biased_BTE.shape[:-1], c.n_group, -1)
        best = 1 if c.topk_method == "group_limited_greedy" else min(2, grouped_BTgE.shape[-1])
        group_scores_BTg = jax.lax.top_k(grouped_BTgE, best)[0].sum(axis=-1)
        kept_BTk = jax.lax.top_k(group_scores_BTg, c.topk_group)[1]
        is_kept_BTg = jax.nn.one_hot(kept_BTk, c.n_group).sum(axis=-2) > 0
        # The others get -inf and not 0, since biased affinities may be negative.
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
    """Routed experts plus shared ones, if any, [B, T, D], and statistics of the router.

    Segment 0 is padding: it is not counted, and goes to no expert; all of it would go to the same few.

    Statistics: `load_E`, the number of tokens that chose each expert; `balance`, the balance loss summed over segments;
    `ids_BTK`, each token's experts, which `replay_BTK` prescribes where it is not -1.
    """
    scores_BTE = affinities(p, x_BTD, c)
    ids_BTK, gates_BTK = choose_experts(scores_BTE, bias_E, c, replay_BTK)
    is_token_BT1 = segment_ids_BT[..., None] > 0
    out_BTD = ops.experts(p, x_BTD, jnp.where(is_token_BT1, ids_BTK, c.n_routed_experts), gates_BTK, c)
    if "shared" in p:
        out_BTD += ops.residual(feed_forward(p["shared"], ops.matmul_input(x_BTD)))

    chosen_BTE = jax.nn.one_hot(ids_BTK, c.n_routed_experts).sum(axis=-2) * is_token_BT1
    balance = balance_loss(scores_BTE, chosen_BTE, segment_ids_BT, c)
    return out_BTD, {"load_E": chosen_BTE.sum(axis=(0, 1)), "balance": balance, "ids_BTK": ids_BTK}


def balance_loss(scores_BTE: Array, chosen_BTE: Array, segment_ids_BT: Array, c: ModelConfig) -> Array:
    """Sum over segments of sum_e f_e P_e (V3, equations 17 to 20), which is 1 in a segment with an even load.

    f_e = E / (K T) * the number of the segment's T tokens that chose expert e; P_e = its mean normalised affinity.
    """
    T = segment_ids_BT.shape[1]
    starts_BT = segment_ids_BT != jnp.pad(segment_ids_BT, ((0, 0), (1, 0)), constant_values=-1)[:, :-1]
    number_BT = jnp.where(segment_ids_BT > 0, jnp.cumsum(starts_BT, axis=1), 0)  # renumbers the segments 1, 2, …

    def by_segment(values_BTE):
        return jax.vmap(lambda v, s: jax.ops.segment_sum(v, s, num_segments=T + 1))(values_BTE, number_BT)[:, 1:]

    tokens_Bs1 = jnp.maximum(by_segment(jnp.ones((*segment_ids_BT.shape, 1))), 1)
    f_BsE = by_segment(chosen_BTE) * c.n_routed_experts / (c.num_experts_per_tok * tokens_Bs1)
    P_BsE = by_segment(scores_BTE / scores_BTE.sum(axis=-1, keepdims=True)) / tokens_Bs1
    return (f_BsE * P_BsE).sum()


def update_router_bias(bias_LE: Array, load_LE: Array, speed: float) -> Array:
    """Lowers the bias of overloaded experts by `speed` and raises that of underloaded ones (V3, section 2.1.2)."""
    return bias_LE + speed * jnp.sign(load_LE.mean(axis=-1, keepdims=True) - load_LE)
