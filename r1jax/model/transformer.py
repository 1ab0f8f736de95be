"""The model: embedding, scanned layers, norm, head, and the multi-token-prediction modules. Pure functions."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import chex
import jax
import jax.numpy as jnp
from flax import struct

from r1jax.config import ModelConfig
from r1jax.errors import UsageError
from r1jax.model.attention import attend_absorbed, attend_expanded
from r1jax.model.grouped_query import attend_cached, attend_grouped
from r1jax.model.layers import feed_forward, rms_norm
from r1jax.model.moe import moe
from r1jax.model.ops import ONE_DEVICE, ShardedOps
from r1jax.model.quantize import dequantize, is_quantized
from r1jax.model.spec import stack_layers
from r1jax.types import Array, Params, TokenBatch


@struct.dataclass
class Hidden:
    """What a forward pass over whole sequences gives."""

    hidden_BTD: Array  # after the final norm
    load: dict[str, Array]  # [L, E] for each stack with experts: tokens that chose each expert
    balance: Array  # sequence-wise balance loss, summed over segments, mean over layers with experts


def cast(params: Params, config: ModelConfig) -> Params:
    """Stored weights in the dtype of the activations; routers stay as they are stored, and compute in float32."""
    return jax.tree_util.tree_map_with_path(
        lambda path, w: w if is_quantized(w) or path[-1].key == "router_DE" else w.astype(config.dtype),
        params,
        is_leaf=is_quantized,
    )


def stacks(params: Params) -> list[str]:
    """The scanned stacks of layers that this model has, in order."""
    return [name for name in ("dense", "moe") if name in params]


def attend_whole(
    p: Params, x_BTD: Array, positions_BT: Array, segment_ids_BT: Array, c: ModelConfig, ops: ShardedOps = ONE_DEVICE
) -> Array:
    """Attention of whole sequences over themselves, [B, T, D]."""
    attend = attend_grouped if c.kv_lora_rank is None else attend_expanded
    return attend(p, x_BTD, positions_BT, segment_ids_BT, c, ops)


def attend_new(
    p: Params, x_BTD: Array, positions_BT: Array, contexts: Sequence, c: ModelConfig, ops: ShardedOps = ONE_DEVICE
) -> tuple[Array, Any]:
    """Attention of new tokens over what the cache has of those before, [B, T, D], and what it is to have of them."""
    attend = attend_cached if c.kv_lora_rank is None else attend_absorbed
    return attend(p, x_BTD, positions_BT, contexts, c, ops)


def embed(params: Params, tokens_BT: Array, c: ModelConfig, ops: ShardedOps) -> Array:
    """[B, T, D] in the dtype of the activations."""
    return ops.rows(ops.gather("embed_VD", params["embed_VD"].astype(c.dtype))[tokens_BT])


def _block(
    p: Params,
    bias_E: Array | None,
    x_BTD: Array,
    segment_ids_BT: Array,
    attend,
    c: ModelConfig,
    ops: ShardedOps,
    replay_BTK=None,
):
    """One layer, its router's statistics, and what `attend(weights, x)` returns beside its output."""
    p = dequantize(p, c.dtype)  # here, so that one layer at a time is in more than eight bits
    attended_BTD, kept = attend(p["attention"], rms_norm(x_BTD, p["attention_norm_D"], c.rms_norm_eps))
    x_BTD = x_BTD + ops.rows(attended_BTD)
    normed_BTD = rms_norm(x_BTD, p["feed_forward_norm_D"], c.rms_norm_eps)
    if bias_E is None:
        return x_BTD + ops.rows(feed_forward(p["feed_forward"], ops.inner(normed_BTD))), None, kept
    routed_BTD, statistics = moe(p["feed_forward"], bias_E, normed_BTD, segment_ids_BT, c, replay_BTK, ops)
    return x_BTD + routed_BTD, statistics, kept


def remat(layer: Callable, c: ModelConfig, *, scanned: bool) -> Callable:
    """A layer that keeps less for the backward pass, and computes it again (`ModelConfig.remat`)."""
    if c.remat == "none":
        return layer
    names = ("attended",) if c.remat == "attention" else ()
    policy = jax.checkpoint_policies.save_only_these_names(*names)
    return jax.checkpoint(layer, policy=policy, prevent_cse=not scanned)  # in a scan XLA can't share the two passes


def forward(
    params: Params,
    router_bias: dict,
    batch: TokenBatch,
    config: ModelConfig,
    routes_BTLK: Array | None = None,
    ops: ShardedOps = ONE_DEVICE,
) -> Hidden:
    """Runs whole (packed or padded) sequences. `batch` holds int32 [B, T]; segment 0 is padding.

    `routes_BTLK` prescribes the experts of each token in each layer that has experts; -1 lets the router choose.
    """
    chex.assert_equal_shape([batch.tokens_BT, batch.positions_BT, batch.segment_ids_BT])

    def attend(p, x_BTD):
        return attend_whole(p, x_BTD, batch.positions_BT, batch.segment_ids_BT, config, ops), None

    def layer(name, x_BTD, weights):
        p, bias_E, replay_BTK = weights
        p = ops.gather(name, cast(p, config))  # here, so that one layer at a time is cast, and whole
        x_BTD, statistics, _ = _block(p, bias_E, x_BTD, batch.segment_ids_BT, attend, config, ops, replay_BTK)
        return x_BTD, statistics and {name: statistics[name] for name in ("load_E", "balance")}

    x_BTD, load, balance = embed(params, batch.tokens_BT, config, ops), {}, jnp.zeros(())
    for name in stacks(params):
        replay_LBTK = None if routes_BTLK is None or name == "dense" else jnp.moveaxis(routes_BTLK, 2, 0)
        run = remat(functools.partial(layer, name), config, scanned=True)
        x_BTD, statistics = jax.lax.scan(run, x_BTD, (params[name], router_bias.get(name), replay_LBTK))
        if statistics is not None:
            load[name], balance = statistics["load_E"], statistics["balance"].mean()
    return Hidden(rms_norm(x_BTD, params["norm_D"], config.rms_norm_eps), load, balance)


def head_name(params: Params) -> str:
    """The tensor that is the output head: the embedding, where they are tied. Raises UsageError for a reward model."""
    if "score_D1" in params:
        raise UsageError("this is a reward model (ModelConfig.scalar_head): it scores texts, and writes none")
    return "head_DV" if "head_DV" in params else "embed_VD"


def head(params: Params) -> Array:
    """The output head [D, V]."""
    name = head_name(params)
    return params[name] if name == "head_DV" else params[name].T


NEVER = -1e30  # a padding id's logit: probability 0, and in entropies 0 * NEVER is 0, where -inf would be NaN


def logits(params: Params, hidden_BTD: Array, tokens: int | None = None) -> Array:
    """float32 [B, T, V]. Ids from `tokens` on (`ModelConfig.tokenizer_size`) are padding: no distribution has them."""
    head_DV = head(params).astype(hidden_BTD.dtype)
    logits_BTV = jnp.matmul(hidden_BTD, head_DV, preferred_element_type=jnp.float32)
    return logits_BTV if tokens is None else jnp.where(jnp.arange(head_DV.shape[-1]) < tokens, logits_BTV, NEVER)


def shift_targets(batch: TokenBatch, offset: int) -> tuple[Array, Array]:
    """The token `offset` places later, [B, T], and a mask of the same shape: whether it lies in the same segment."""
    T = batch.tokens_BT.shape[1]
    same_BT = (jnp.roll(batch.segment_ids_BT, -offset, axis=1) == batch.segment_ids_BT) & (batch.segment_ids_BT > 0)
    return jnp.roll(batch.tokens_BT, -offset, axis=1), same_BT & (jnp.arange(T) < T - offset)


def forward_mtp(
    params: Params,
    router_bias: dict,
    hidden: Hidden,
    batch: TokenBatch,
    config: ModelConfig,
    ops: ShardedOps = ONE_DEVICE,
):
    """Multi-token prediction (V3, section 2.2): module k sees token i + k beside position i and predicts i + k + 1.

    Returns the modules' hidden states, a list of [B, T, D] after each module's norm, and their expert loads [K, E].
    A module takes the previous one's normed hidden states, as the first takes the model's. Where token i + k lies in
    another segment, the module sees zeros, no expert counts the token, and the loss masks it.
    """
    outputs, loads = [hidden.hidden_BTD], []

    def attend(p, x_BTD):
        return attend_whole(p, x_BTD, batch.positions_BT, batch.segment_ids_BT, config, ops), None

    def module(x_BTD, later_BTD, segment_ids_BT, p, bias_E):
        p = ops.gather("mtp", cast(p, config))
        pair_BTD = ops.rows(mtp_input(p, x_BTD, later_BTD, config))
        x_BTD, statistics, _ = _block(p["block"], bias_E, pair_BTD, segment_ids_BT, attend, config, ops)
        return rms_norm(x_BTD, p["norm_D"], config.rms_norm_eps), statistics["load_E"]

    for k in range(config.num_nextn_predict_layers):
        later_BT, mask_BT = shift_targets(batch, k + 1)
        later_BTD = jnp.where(mask_BT[..., None], embed(params, later_BT, config, ops), 0)
        p = jax.tree.map(lambda w, k=k: w[k], params["mtp"])
        segment_ids_BT = batch.segment_ids_BT * mask_BT
        run = remat(module, config, scanned=False)
        x_BTD, load_E = run(outputs[-1], later_BTD, segment_ids_BT, p, router_bias["mtp"][k])
        outputs.append(x_BTD)
        loads.append(load_E)
    return outputs[1:], jnp.stack(loads)


def mtp_input(p: Params, hidden_BTD: Array, embedded_BTD: Array, c: ModelConfig) -> Array:
    """A module's input, [B, T, D]: a position's hidden state beside a later token's embedding (V3, equation 21)."""
    embedded_BTD = rms_norm(embedded_BTD, p["embed_norm_D"], c.rms_norm_eps)
    normed_BTD = rms_norm(hidden_BTD, p["hidden_norm_D"], c.rms_norm_eps)
    return jnp.concatenate([embedded_BTD, normed_BTD], axis=-1) @ dequantize(p["project_2DD"], c.dtype)


def forward_cached(
    params: Params,
    router_bias: dict,
    tokens_BT: Array,
    positions_BT: Array,
    contexts: Sequence[tuple[dict[str, Any], Array]],
    config: ModelConfig,
    ops: ShardedOps = ONE_DEVICE,
) -> tuple[Array, dict[str, Any], Array | None]:
    """Runs T new tokens of each sequence over the latents of what came before: prefill, decoding and verification.

    Latents are what the cache holds of a token: with grouped-query attention, {"keys": …, "values": …} for an array.

    Args:
      params: in the dtype of the activations (`cast`).
      tokens_BT, positions_BT: int32; a token also sees those before it among them.
      contexts: pairs of latents, [L, B, S, X] for each stack, and a mask that broadcasts to [B, T, S]; read only.

    Returns:
      hidden [B, T, D] after the final norm, the new tokens' latents, [L, B, T, X] for each stack, and the experts that
      they chose, [B, T, L, K]; None in a model without experts.
    """
    segment_ids_BT = jnp.ones(tokens_BT.shape, jnp.int32)
    masks = [mask_BTS for _, mask_BTS in contexts]

    def layer(name, x_BTD, weights):
        p, bias_E, caches = weights
        p, caches = ops.gather(name, p), dequantize(caches, config.dtype)

        def attend(p, x_BTD):
            return attend_new(p, x_BTD, positions_BT, list(zip(caches, masks, strict=True)), config, ops)

        x_BTD, statistics, new_BTX = _block(p, bias_E, x_BTD, segment_ids_BT, attend, config, ops)
        return x_BTD, (new_BTX, None if statistics is None else statistics["ids_BTK"])

    x_BTD, new, routes_BTLK = embed(params, tokens_BT, config, ops), {}, None
    for name in stacks(params):
        run, caches = functools.partial(layer, name), [latents[name] for latents, _ in contexts]
        x_BTD, (new[name], ids_LBTK) = jax.lax.scan(run, x_BTD, (params[name], router_bias.get(name), caches))
        if ids_LBTK is not None:
            routes_BTLK = jnp.moveaxis(ids_LBTK, 0, 2)
    return rms_norm(x_BTD, params["norm_D"], config.rms_norm_eps), new, routes_BTLK


def forward_mtp_cached(
    params: Params,
    router_bias: dict,
    hidden_BTD: Array,
    tokens_BT: Array,
    positions_BT: Array,
    contexts: Sequence[tuple[dict[str, Array], Array]],
    config: ModelConfig,
    ops: ShardedOps = ONE_DEVICE,
) -> tuple[Array, dict[str, Array]]:
    """As `forward_cached`, the first multi-token-prediction module: of position i it is given the model's hidden state,
    after the final norm, and token i + 1; it predicts token i + 2.

    Returns:
      hidden [B, T, D] after the module's norm, and its latents of these positions, {"mtp": [1, B, T, X]}.
    """
    p = ops.gather("mtp", jax.tree.map(lambda w: w[0], params["mtp"]))
    caches = [(dequantize(latents["mtp"], config.dtype)[0], mask_BTS) for latents, mask_BTS in contexts]

    def attend(p, x_BTD):
        return attend_new(p, x_BTD, positions_BT, caches, config, ops)

    x_BTD = ops.rows(mtp_input(p, hidden_BTD, embed(params, tokens_BT, config, ops), config))
    segment_ids_BT = jnp.ones(tokens_BT.shape, jnp.int32)
    x_BTD, _, new_BTX = _block(p["block"], router_bias["mtp"][0], x_BTD, segment_ids_BT, attend, config, ops)
    return rms_norm(x_BTD, p["norm_D"], config.rms_norm_eps), {"mtp": new_BTX[None]}


def empty_latents(config: ModelConfig, rows: int, tokens: int, *, mtp: bool = False) -> dict[str, Any]:
    """Zeros, [L, rows, tokens, X] for each stack, in the dtype of the activations; `mtp`: also for the first module.

    With grouped-query attention keys and values are two arrays: each is read whole where it lies, and in 8 bits has
    scales of its own.
    """
    layers = {name: len(numbers) for name, numbers in stack_layers(config).items() if name != "mtp"}
    layers |= {"mtp": 1} if mtp else {}

    def zeros(L: int, X: int) -> Array:
        return jnp.zeros((L, rows, tokens, X), config.dtype)

    if config.kv_lora_rank is None:
        X = config.num_key_value_heads * config.head_dim
        return {name: {"keys": zeros(L, X), "values": zeros(L, X)} for name, L in layers.items()}
    return {name: zeros(L, config.kv_lora_rank + config.qk_rope_head_dim) for name, L in layers.items()}
