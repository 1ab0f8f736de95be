"""DeepSeekMoE with bias-based load balance (V3, arXiv 2412.19437, section 2.1.2). No token is ever dropped."""

import jax
import jax.numpy as jnp

from r1jax.config import ModelConfig
from r1jax.model.layers import feed_forward
from r1jax.types import Array, Params


def affinities(p: Params, x_TD: Array) -> Array:
    """Sigmoid affinity of each token to each expert, [T, E], in float32 (V3, equation 15)."""
    return jax.nn.sigmoid(x_TD.astype(jnp.float32) @ p["router_DE"].astype(jnp.float32))


def choose_experts(scores_TE: Array, bias_E: Array, c: ModelConfig) -> tuple[Array, Array]:
    """Ids [T, K] and gate values [T, K] of the chosen experts.

    The bias takes part in the choice only, never in the gate value (V3, equation 16). A group's score is the sum of its
    two best biased affinities; the experts of groups that are not kept are at minus infinity, not at zero, since a
    biased affinity may be negative.
    """
    biased_TE = scores_TE + bias_E
    if c.topk_group < c.n_group:
        T, E = scores_TE.shape
        grouped_TgE = biased_TE.reshape(T, c.n_group, E // c.n_group)
        group_score_Tg = jax.lax.top_k(grouped_TgE, min(2, E // c.n_group))[0].sum(axis=-1)
        kept_Tk = jax.lax.top_k(group_score_Tg, c.topk_group)[1]
        is_kept_Tg = jax.nn.one_hot(kept_Tk, c.n_group).sum(axis=1) > 0
        biased_TE = jnp.where(is_kept_Tg[:, :, None], grouped_TgE, -jnp.inf).reshape(T, E)
    ids_TK = jax.lax.top_k(biased_TE, c.num_experts_per_tok)[1]
    gates_TK = jnp.take_along_axis(scores_TE, ids_TK, axis=-1)
    if c.norm_topk_prob:
        gates_TK = gates_TK / (gates_TK.sum(axis=-1, keepdims=True) + 1e-20)
    return ids_TK, gates_TK * c.routed_scaling_factor


def experts_dense(p: Params, x_TD: Array, ids_TK: Array, gates_TK: Array) -> Array:
    """Every expert on every token, weighted: the oracle, and the fastest form for few and small experts on a CPU."""
    E = p["gate_EDF"].shape[0]
    weights_TE = (jax.nn.one_hot(ids_TK, E, dtype=x_TD.dtype) * gates_TK.astype(x_TD.dtype)[..., None]).sum(axis=1)
    hidden_ETF = jax.nn.silu(jnp.einsum("TD,EDF->ETF", x_TD, p["gate_EDF"]))
    hidden_ETF = hidden_ETF * jnp.einsum("TD,EDF->ETF", x_TD, p["up_EDF"]) * weights_TE.T[..., None]
    return jnp.einsum("ETF,EFD->TD", hidden_ETF, p["down_EFD"])


def experts_grouped(p: Params, x_TD: Array, ids_TK: Array, gates_TK: Array) -> Array:
    """Each token only on its chosen experts: sort by expert, three ragged matmuls, unsort."""
    T, K = ids_TK.shape
    order = jnp.argsort(ids_TK.reshape(-1), stable=True)  # [T * K] slots, ordered by expert
    group_sizes_E = jnp.bincount(ids_TK.reshape(-1), length=p["gate_EDF"].shape[0])
    sorted_SD = x_TD[order // K]
    hidden_SF = jax.nn.silu(jax.lax.ragged_dot(sorted_SD, p["gate_EDF"], group_sizes_E))
    hidden_SF = hidden_SF * jax.lax.ragged_dot(sorted_SD, p["up_EDF"], group_sizes_E)
    out_SD = jax.lax.ragged_dot(hidden_SF, p["down_EFD"], group_sizes_E)
    out_SD = out_SD[jnp.argsort(order)].reshape(T, K, -1)
    return jnp.einsum("TKD,TK->TD", out_SD, gates_TK.astype(x_TD.dtype))


def moe(p: Params, bias_E: Array, x_BTD: Array, mask_BT: Array, c: ModelConfig) -> tuple[Array, dict[str, Array]]:
    """Routed plus shared experts, [B, T, D], and the router's statistics over the tokens in `mask` (no padding).

    Statistics: `load_E`, how many tokens chose each expert, and `balance`, the sequence-wise balance loss.
    """
    x_TD = x_BTD.reshape(-1, x_BTD.shape[-1])
    scores_TE = affinities(p, x_TD)
    ids_TK, gates_TK = choose_experts(scores_TE, bias_E, c)
    experts = experts_dense if c.experts == "dense" else experts_grouped
    out_TD = experts(p, x_TD, ids_TK, gates_TK) + feed_forward(p["shared"], x_TD)

    chosen_TE = jax.nn.one_hot(ids_TK, c.n_routed_experts).sum(axis=1)
    chosen_BTE = chosen_TE.reshape(*mask_BT.shape, -1) * mask_BT[..., None]
    balance = balance_loss(scores_TE.reshape(chosen_BTE.shape), chosen_BTE, mask_BT, c)
    return out_TD.reshape(x_BTD.shape), {"load_E": chosen_BTE.sum(axis=(0, 1)), "balance": balance}


def balance_loss(scores_BTE: Array, chosen_BTE: Array, mask_BT: Array, c: ModelConfig) -> Array:
    """Mean over rows of sum_e f_e P_e (V3, equations 17 to 20); 1 when a row uses all experts alike.

    f_e = E / (K T) * how many tokens of the row chose expert e; P_e = mean of its normalised affinity over the row.
    """
    tokens_B1 = jnp.maximum(mask_BT.sum(axis=1, keepdims=True), 1)
    f_BE = chosen_BTE.sum(axis=1) * c.n_routed_experts / (c.num_experts_per_tok * tokens_B1)
    normalised_BTE = scores_BTE / scores_BTE.sum(axis=-1, keepdims=True) * mask_BT[..., None]
    P_BE = normalised_BTE.sum(axis=1) / tokens_B1
    return (f_BE * P_BE).sum(axis=-1).mean()


def update_router_bias(bias_LE: Array, load_LE: Array, speed: float) -> Array:
    """After a step, the bias of an overloaded expert falls by `speed` and that of an underloaded one rises by it."""
    return bias_LE + speed * jnp.sign(load_LE.mean(axis=-1, keepdims=True) - load_LE)
