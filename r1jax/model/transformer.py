"""The model: embedding, scanned layers, norm, head, and the multi-token-prediction modules. Pure functions."""

import chex
import jax
import jax.numpy as jnp
from flax import struct

from r1jax.config import ModelConfig
from r1jax.model.attention import attend_absorbed, attend_expanded
from r1jax.model.layers import feed_forward, rms_norm
from r1jax.model.moe import moe
from r1jax.types import Array, Params, TokenBatch


@struct.dataclass
class Hidden:
    """What a forward pass over whole sequences gives; the stacks are "dense" and "moe", where the model has them."""

    hidden_BTD: Array  # after the final norm
    latents: dict[str, Array]  # [L, B, T, X] for each stack: the cache, when it was asked for
    load: dict[str, Array]  # [L, E] for each stack with experts: tokens that chose each expert
    balance: Array  # sequence-wise balance loss, summed over segments, mean over layers with experts


def cast(params: Params, config: ModelConfig) -> Params:
    """Stored weights in the dtype of the activations; routers stay as they are stored, and compute in float32."""
    return jax.tree_util.tree_map_with_path(
        lambda path, w: w if path[-1].key == "router_DE" else w.astype(config.dtype), params
    )


def stacks(params: Params) -> list[str]:
    """The scanned stacks of layers that this model has, in order."""
    return [name for name in ("dense", "moe") if name in params]


def _block(p: Params, bias_E: Array | None, x_BTD: Array, segments_BT: Array, attend, c: ModelConfig):
    """One layer; `attend(weights, x)` returns its output and whatever it wants to keep."""
    attended_BTD, kept = attend(p["attention"], rms_norm(x_BTD, p["attention_norm_D"], c.rms_norm_eps))
    x_BTD = x_BTD + attended_BTD
    normed_BTD = rms_norm(x_BTD, p["feed_forward_norm_D"], c.rms_norm_eps)
    if bias_E is None:
        return x_BTD + feed_forward(p["feed_forward"], normed_BTD), kept, None
    routed_BTD, statistics = moe(p["feed_forward"], bias_E, normed_BTD, segments_BT, c)
    return x_BTD + routed_BTD, kept, statistics


def forward(
    params: Params, router_bias: dict, batch: TokenBatch, config: ModelConfig, *, keep_latents: bool = False
) -> Hidden:
    """Runs whole (packed or padded) sequences. `batch` holds int32 [B, T]; segment 0 is padding."""
    chex.assert_equal_shape([batch.tokens_BT, batch.positions_BT, batch.segments_BT])
    params = cast(params, config)

    def attend(p, x_BTD):
        out_BTD, latents_BTX = attend_expanded(p, x_BTD, batch.positions_BT, batch.segments_BT, config)
        return out_BTD, latents_BTX if keep_latents else None

    def layer(x_BTD, weights):
        p, bias_E = weights
        x_BTD, latents_BTX, statistics = _block(p, bias_E, x_BTD, batch.segments_BT, attend, config)
        return x_BTD, (latents_BTX, statistics)

    x_BTD, latents, load, balance = params["embed_VD"][batch.tokens_BT], {}, {}, jnp.zeros(())
    for name in stacks(params):
        x_BTD, (latents[name], statistics) = jax.lax.scan(layer, x_BTD, (params[name], router_bias.get(name)))
        if statistics is not None:
            load[name], balance = statistics["load_E"], statistics["balance"].mean()
    return Hidden(rms_norm(x_BTD, params["norm_D"], config.rms_norm_eps), latents, load, balance)


def head(params: Params) -> Array:
    """The output head [D, V]: the embedding, where they are tied."""
    return params["head_DV"] if "head_DV" in params else params["embed_VD"].T


def logits(params: Params, hidden_BTD: Array) -> Array:
    """float32 [B, T, V]."""
    head_DV = head(params).astype(hidden_BTD.dtype)
    return jnp.matmul(hidden_BTD, head_DV, preferred_element_type=jnp.float32)


def later_tokens(batch: TokenBatch, offset: int) -> tuple[Array, Array]:
    """The token `offset` places later, [B, T], and a mask of the same shape: whether it lies in the same segment."""
    T = batch.tokens_BT.shape[1]
    same_BT = (jnp.roll(batch.segments_BT, -offset, axis=1) == batch.segments_BT) & (batch.segments_BT > 0)
    return jnp.roll(batch.tokens_BT, -offset, axis=1), same_BT & (jnp.arange(T) < T - offset)


def forward_mtp(params: Params, router_bias: dict, hidden: Hidden, batch: TokenBatch, config: ModelConfig):
    """Multi-token prediction (V3, section 2.2): module k sees token i + k beside position i and predicts i + k + 1.

    Returns the modules' hidden states, a list of [B, T, D] after each module's norm, and their expert loads [K, E].
    A module takes the previous one's normed hidden states, as the first takes the model's. Where token i + k lies in
    another segment, the module sees zeros, no expert counts the token, and the loss masks it.
    """
    params = cast(params, config)
    x_BTD, outputs, loads = hidden.hidden_BTD, [], []

    def attend(p, x_BTD):
        return attend_expanded(p, x_BTD, batch.positions_BT, batch.segments_BT, config)

    for k in range(config.num_nextn_predict_layers):
        p = jax.tree.map(lambda w, k=k: w[k], params["mtp"])
        later_BT, mask_BT = later_tokens(batch, k + 1)
        later_BTD = jnp.where(mask_BT[..., None], params["embed_VD"][later_BT], 0)
        embedded_BTD = rms_norm(later_BTD, p["embed_norm_D"], config.rms_norm_eps)
        normed_BTD = rms_norm(x_BTD, p["hidden_norm_D"], config.rms_norm_eps)
        pair_BTD = jnp.concatenate([embedded_BTD, normed_BTD], axis=-1) @ p["project_2DD"]
        segments_BT = batch.segments_BT * mask_BT
        x_BTD, _, statistics = _block(p["block"], router_bias["mtp"][k], pair_BTD, segments_BT, attend, config)
        x_BTD = rms_norm(x_BTD, p["norm_D"], config.rms_norm_eps)
        outputs.append(x_BTD)
        loads.append(statistics["load_E"])
    return outputs, jnp.stack(loads)


def decode_step(
    params: Params,
    router_bias: dict,
    tokens_BG: Array,
    positions_BG: Array,
    prompt: dict[str, Array],
    prompt_mask_BP: Array,
    tail: dict[str, Array],
    index: Array,
    config: ModelConfig,
) -> tuple[Array, dict[str, Array]]:
    """One new token for each of G outputs of B prompts, over the latent cache.

    Args:
      tokens_BG, positions_BG: int32, the tokens to run and their positions.
      prompt: latents of the prompts, [L, B, P, X] for each stack; read only.
      tail: latents of the outputs, [L, B, G, N, X] for each stack; slots 0 to index - 1 are filled.
      index: the slot that these tokens take.

    Returns:
      hidden [B, G, D] after the final norm, and the tail with slot `index` written.
    """
    segments_BG = jnp.ones(tokens_BG.shape, jnp.int32)
    x_BGD = params["embed_VD"][tokens_BG]

    def layer(x_BGD, weights):
        p, bias_E, prompt_BPX, tail_BGNX = weights

        def attend(p, x_BGD):
            return attend_absorbed(p, x_BGD, positions_BG, prompt_BPX, prompt_mask_BP, tail_BGNX, index, config)

        x_BGD, new_BGX, _ = _block(p, bias_E, x_BGD, segments_BG, attend, config)
        return x_BGD, new_BGX

    for name in stacks(params):
        stack = (params[name], router_bias.get(name), prompt[name], tail[name])
        x_BGD, new_LBGX = jax.lax.scan(layer, x_BGD, stack)
        # One write after the scan: a tail that travels through the scan would be copied whole at every step.
        tail = tail | {name: jax.lax.dynamic_update_slice_in_dim(tail[name], new_LBGX[..., None, :], index, axis=3)}
    return rms_norm(x_BGD, params["norm_D"], config.rms_norm_eps), tail
