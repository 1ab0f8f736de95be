"""The model: embedding, scanned layers, norm, head, and multi-token-prediction (MTP) modules. Pure functions."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import chex
import jax
import jax.numpy as jnp
from flax import struct

from r1jax.config import ModelConfig
from r1jax.errors import UsageError
from r1jax.model.attention import attend_cached, attend_sequence
from r1jax.model.blocked_cache import BlockedCache, is_blocked
from r1jax.model.experts import expert_layers
from r1jax.model.layers import feed_forward, rms_norm
from r1jax.model.moe import moe
from r1jax.model.ops import ONE_DEVICE, ShardedOps
from r1jax.model.quantize import dequantize, is_quantized
from r1jax.model.softmax_attention import ATTENDED
from r1jax.model.spec import stack_layers
from r1jax.types import Array, Params, TokenBatch, Weights

MASKED_LOGIT = -1e30  # finite, so that 0 * MASKED_LOGIT in an entropy is 0; with -inf it would be NaN


@struct.dataclass
class Hidden:
    """Outputs of a forward pass over whole sequences."""

    hidden_BTD: Array  # after the final norm
    load: dict[str, Array]  # [L, E] for each stack with experts: tokens that chose each expert
    balance: Array  # sequence-wise balance loss, summed over segments, mean over layers with experts


def cast(params: Params, config: ModelConfig) -> Params:
    """Params in the dtype of the activations, but for routers, which compute in float32."""

    def one(path, w):
        return w if is_quantized(w) or path[-1].key == "router_DE" else w.astype(config.dtype)

    return jax.tree.map_with_path(one, params, is_leaf=is_quantized)


def stacks(params: Params) -> list[str]:
    """The model's scanned stacks of layers, in order."""
    return [name for name in ("dense", "moe") if name in params]


def unstack(tree: Any) -> list:
    """A tree for each layer of a stack, [L, …]. Loops over them are unrolled."""
    return [jax.tree.map(lambda x, i=i: x[i], tree) for i in range(len(jax.tree.leaves(tree)[0]))]


def restack(layers: Sequence) -> Any:
    """The inverse of `unstack`."""
    return jax.tree.map(lambda *x: jnp.stack(x), *layers)


def run_layers(run: Callable, x_BTD: Array, params: Any, bias_LE: Array | None, layers: int) -> tuple[Array, tuple]:
    """Scans `run` over a stack's weights, router biases and layer numbers; a Python loop if weights are `unstack`ed.

    `run` gets the layer's number and not its cache and experts, which kernels read in place: a scan over these arrays
    would copy them. On a CPU a scan copies the other weights, too, at every step: there they are unstacked. On
    accelerators it copies nothing, and compiles faster than a loop.
    """
    if not isinstance(params, list):
        return jax.lax.scan(run, x_BTD, (params, bias_LE, jnp.arange(layers)))
    outputs = []
    for i, p in enumerate(params):
        x_BTD, output = run(x_BTD, (p, None if bias_LE is None else bias_LE[i], i))
        outputs.append(output)
    new, ids_BTK = zip(*outputs, strict=True)
    return x_BTD, (list(new) if isinstance(new[0], BlockedCache) else restack(new), restack(ids_BTK))


def of_layer(cache: Any, i: Any) -> Any:
    """What `attend_cached` takes for layer `i` of a stack's cache: its `BlockedCache`, or the cache of all layers."""
    return cache[i] if isinstance(cache, list) else cache


@jax.named_scope("embed")
def embed(params: Params, tokens_BT: Array, c: ModelConfig, ops: ShardedOps) -> Array:
    """[B, T, D] in the dtype of the activations."""
    return ops.residual(ops.gather_weights("embed_VD", params["embed_VD"].astype(c.dtype))[tokens_BT])


def _block(
    p: Params,
    routing: tuple[Array | None, Array | None],
    x_BTD: Array,
    segment_ids_BT: Array,
    attend: Callable[[Params, Array], tuple[Array, Any]],
    c: ModelConfig,
    ops: ShardedOps,
) -> tuple[Array, Any, Any]:
    """One layer: [B, T, D], the statistics of its router, and what `attend(weights, x)` returns beside its output.

    Args:
      routing: the router bias [E], None in a dense layer; and prescribed expert ids [B, T, K], or None.
      segment_ids_BT: int32, for experts: 0 is padding, which is sent to none and not counted; the balance loss is a sum
        over the other segments.
    """
    p = dequantize(p, c.dtype)  # here, so that only one layer at a time is dequantized
    bias_E, replay_BTK = routing
    with jax.named_scope("attention"):  # scopes name the model's parts in a profile
        attended_BTD, cache = attend(p["attention"], rms_norm(x_BTD, p["attention_norm_D"], c.rms_norm_eps))
        x_BTD = x_BTD + ops.residual(attended_BTD)
    with jax.named_scope("feed_forward" if bias_E is None else "experts"):
        normed_BTD = rms_norm(x_BTD, p["feed_forward_norm_D"], c.rms_norm_eps)
        if bias_E is None:
            return x_BTD + ops.residual(feed_forward(p["feed_forward"], ops.matmul_input(normed_BTD))), None, cache
        routed_BTD, statistics = moe(p["feed_forward"], bias_E, normed_BTD, segment_ids_BT, c, replay_BTK, ops)
        return x_BTD + routed_BTD, statistics, cache


def remat(layer: Callable, c: ModelConfig, *, scanned: bool) -> Callable:
    """Wraps a layer so that the backward pass recomputes what `ModelConfig.remat` does not save."""
    if c.remat == "none":
        return layer
    names = (ATTENDED,) if c.remat == "attention" else ()
    policy = jax.checkpoint_policies.save_only_these_names(*names)
    # Forward and backward pass of a scan are two loops, across which XLA can't undo the recomputation.
    return jax.checkpoint(layer, policy=policy, prevent_cse=not scanned)


def forward(
    params: Params,
    router_bias: dict,
    batch: TokenBatch,
    config: ModelConfig,
    routes_BTLK: Array | None = None,
    ops: ShardedOps = ONE_DEVICE,
) -> Hidden:
    """Runs whole sequences, packed or padded: `batch` holds int32 [B, T]; segment 0 is padding.

    `routes_BTLK` prescribes the experts of each token in each layer with experts; where it is -1 the router chooses.
    """
    chex.assert_equal_shape([batch.tokens_BT, batch.positions_BT, batch.segment_ids_BT])

    def attend(p, x_BTD):
        return attend_sequence(p, x_BTD, batch.positions_BT, batch.segments, config, ops), None

    def layer(name, x_BTD, weights):
        p, *routing = weights
        p = ops.gather_weights(name, cast(p, config))  # here, so that one layer at a time is cast and gathered
        x_BTD, statistics, _ = _block(p, routing, x_BTD, batch.segment_ids_BT, attend, config, ops)
        return x_BTD, None if statistics is None else {name: statistics[name] for name in ("load_E", "balance")}

    x_BTD, load, balance = embed(params, batch.tokens_BT, config, ops), {}, jnp.zeros(())
    for name in stacks(params):
        replay_LBTK = None if routes_BTLK is None or name == "dense" else jnp.moveaxis(routes_BTLK, 2, 0)
        run = remat(functools.partial(layer, name), config, scanned=True)
        x_BTD, statistics = jax.lax.scan(run, x_BTD, (params[name], router_bias.get(name), replay_LBTK))
        if statistics is not None:  # of the one stack with experts
            load[name], balance = statistics["load_E"], statistics["balance"].mean()
    return Hidden(rms_norm(x_BTD, params["norm_D"], config.rms_norm_eps), load, balance)


def head_name(params: Params) -> str:
    """The param that is the output head: the embedding if they are tied. Raises UsageError for a reward model."""
    if "score_D1" in params:
        raise UsageError("this is a reward model (ModelConfig.scalar_head): it scores texts and can't generate any")
    return "head_DV" if "head_DV" in params else "embed_VD"


@jax.named_scope("head")
def logits(params: Params, hidden_BTD: Array, tokenizer_size: int | None = None) -> Array:
    """float32 [B, T, V]. Ids from `tokenizer_size` on are padding of the vocabulary, and get probability 0."""
    name = head_name(params)
    head_DV = (params[name] if name == "head_DV" else params[name].T).astype(hidden_BTD.dtype)
    logits_BTV = jnp.matmul(hidden_BTD, head_DV, preferred_element_type=jnp.float32)
    if tokenizer_size is None:
        return logits_BTV
    return jnp.where(jnp.arange(head_DV.shape[-1]) < tokenizer_size, logits_BTV, MASKED_LOGIT)


def sequence_logits(weights: Weights, batch: TokenBatch, config: ModelConfig, ops: ShardedOps = ONE_DEVICE) -> Array:
    """Next-token logits at every position of whole sequences, float32 [B, T, V]."""
    name, hidden = head_name(weights.params), forward(*weights, batch, config, ops=ops)
    head = {name: ops.gather_weights(name, weights.params[name])}
    return ops.logits(logits(head, ops.matmul_input(hidden.hidden_BTD), config.tokenizer_size))


def shift_targets(batch: TokenBatch, offset: int) -> tuple[Array, Array]:
    """Tokens shifted left by `offset`, int32 [B, T], and where such a target exists, bool [B, T].

    A target is inside the row and in the token's own segment; or, for the last tokens of a shared prompt, in the sample
    that follows it.
    """
    ids_BT, ends_BT, T = batch.segments.ids_BT, batch.segments.ends_BT, batch.tokens_BT.shape[1]
    later_T = jnp.arange(T) + offset
    follows_BT = jnp.roll(ids_BT, -offset, axis=1) == ids_BT if ends_BT is None else later_T[None] < ends_BT
    return jnp.roll(batch.tokens_BT, -offset, axis=1), follows_BT & (ids_BT > 0) & (later_T < T)[None]


@jax.named_scope("mtp")
def forward_mtp(
    params: Params,
    router_bias: dict,
    hidden: Hidden,
    batch: TokenBatch,
    config: ModelConfig,
    ops: ShardedOps = ONE_DEVICE,
) -> tuple[list[Array], Array]:
    """The MTP modules (V3, section 2.2): at position i, module k = 1, 2, … reads token i + k and predicts i + k + 1.

    Each module takes the normed hidden states of the one before, the first those of the model. Where token i + k is in
    another segment, the module reads zeros, experts treat the position as padding, and the loss masks it.

    Returns:
      The hidden states after each module's norm, [B, T, D] each, and the expert loads [modules, E].
    """
    outputs, loads = [hidden.hidden_BTD], []

    def attend(p, x_BTD):
        return attend_sequence(p, x_BTD, batch.positions_BT, batch.segments, config, ops), None

    def module(x_BTD, later_BTD, segment_ids_BT, p, bias_E):
        p = ops.gather_weights("mtp", cast(p, config))
        x_BTD = ops.residual(mtp_input(p, x_BTD, later_BTD, config))
        x_BTD, statistics, _ = _block(p["block"], (bias_E, None), x_BTD, segment_ids_BT, attend, config, ops)
        return rms_norm(x_BTD, p["norm_D"], config.rms_norm_eps), statistics["load_E"]

    run = remat(module, config, scanned=False)
    for i in range(config.num_nextn_predict_layers):
        later_BT, mask_BT = shift_targets(batch, i + 1)
        later_BTD = jnp.where(mask_BT[..., None], embed(params, later_BT, config, ops), 0)
        p = jax.tree.map(lambda w, i=i: w[i], params["mtp"])
        x_BTD, load_E = run(outputs[-1], later_BTD, batch.segment_ids_BT * mask_BT, p, router_bias["mtp"][i])
        outputs.append(x_BTD)
        loads.append(load_E)
    return outputs[1:], jnp.stack(loads)


def mtp_input(p: Params, hidden_BTD: Array, embedded_BTD: Array, c: ModelConfig) -> Array:
    """A module's input, [B, T, D]: hidden states and the embeddings of later tokens, projected (V3, equation 21)."""
    embedded_BTD = rms_norm(embedded_BTD, p["embed_norm_D"], c.rms_norm_eps)
    normed_BTD = rms_norm(hidden_BTD, p["hidden_norm_D"], c.rms_norm_eps)
    return jnp.concatenate([embedded_BTD, normed_BTD], axis=-1) @ dequantize(p["project_2DD"], c.dtype)


def forward_cached(
    weights: Weights,
    tokens_BT: Array,
    positions_BT: Array,
    contexts: Sequence[tuple[dict[str, Any], Array]],
    config: ModelConfig,
    ops: ShardedOps = ONE_DEVICE,
    is_token_BT: Array | bool = True,
) -> tuple[Array, dict[str, Any], Array | None]:
    """Runs T new tokens of each sequence over a cache: prefill, decoding and verification of drafts.

    Args:
      weights: in the dtype of the activations (`cast`), or quantized; stacks may be `unstack`ed.
      tokens_BT, positions_BT: int32; each token also attends to those before it among the T.
      contexts: pairs of a cache (`init_cache`), which is only read, and a bool mask that broadcasts to [B, T, S], True
        where a new token attends to position s < S of the cache; or one pair, whose cache is a list of `BlockedCache`s
        for each unstacked stack: these are written.
      is_token_BT: bool; the others are padding, which no expert runs.

    Returns:
      hidden [B, T, D] after the final norm; the cache of the new tokens, [L, B, T, X] for each stack, or the
      `BlockedCache`s with them; and their experts, int32 [B, T, L, K], or None in a model without experts.
    """
    params, router_bias = weights
    segment_ids_BT = jnp.broadcast_to(jnp.asarray(is_token_BT, jnp.int32), tokens_BT.shape)

    def layer(name, x_BTD, inputs):
        p, bias_E, i = inputs
        if config.experts != "dense" and not isinstance(params[name], list):
            # Kernels read layer i of the whole stack: a slice of it would be a copy of the layer's experts.
            p = p | {"feed_forward": p["feed_forward"] | expert_layers(params[name]["feed_forward"], i)}
        p = ops.gather_weights(name, p)
        pairs = [(of_layer(cache[name], i), mask_BTS) for cache, mask_BTS in contexts]
        attend = functools.partial(attend_cached, positions_BT=positions_BT, contexts=pairs, layer=i, c=config, ops=ops)
        x_BTD, statistics, new = _block(p, (bias_E, None), x_BTD, segment_ids_BT, attend, config, ops)
        return x_BTD, (new, statistics and statistics["ids_BTK"])

    x_BTD, new, routes_BTLK = embed(params, tokens_BT, config, ops), {}, None
    for name in stacks(params):
        x_BTD, (new[name], ids_LBTK) = run_layers(
            functools.partial(layer, name), x_BTD, params[name], router_bias.get(name), len(stack_layers(config)[name])
        )
        routes_BTLK = None if ids_LBTK is None else jnp.moveaxis(ids_LBTK, 0, 2)
    return rms_norm(x_BTD, params["norm_D"], config.rms_norm_eps), new, routes_BTLK


@struct.dataclass
class MTPInputs:
    """Inputs of an MTP module: for position i the hidden state, after the norm, and token i + 1."""

    hidden_BTD: Array
    tokens_BT: Array  # int32
    positions_BT: Array  # int32


@jax.named_scope("mtp")
def forward_mtp_cached(
    weights: Weights,
    inputs: MTPInputs,
    contexts: Sequence[tuple[dict[str, Any], Array]],
    config: ModelConfig,
    ops: ShardedOps = ONE_DEVICE,
    is_token_BT: Array | bool = True,
) -> tuple[Array, dict[str, Any]]:
    """`forward_cached` of the first MTP module, which predicts token i + 2 at position i.

    Returns:
      hidden [B, T, D] after the module's norm; and the cache of the new tokens, {"mtp": [1, B, T, X]}.
    """
    params, router_bias = weights
    p = ops.gather_weights("mtp", jax.tree.map(lambda w: w[0], params["mtp"]))
    pairs = [(of_layer(cache["mtp"], 0), mask_BTS) for cache, mask_BTS in contexts]
    attend = functools.partial(
        attend_cached, positions_BT=inputs.positions_BT, contexts=pairs, layer=0, c=config, ops=ops
    )
    x_BTD = ops.residual(mtp_input(p, inputs.hidden_BTD, embed(params, inputs.tokens_BT, config, ops), config))
    segment_ids_BT = jnp.broadcast_to(jnp.asarray(is_token_BT, jnp.int32), inputs.tokens_BT.shape)
    x_BTD, _, new = _block(p["block"], (router_bias["mtp"][0], None), x_BTD, segment_ids_BT, attend, config, ops)
    return rms_norm(x_BTD, p["norm_D"], config.rms_norm_eps), {"mtp": [new] if is_blocked(pairs) else new[None]}


def init_cache(config: ModelConfig, rows: int, tokens: int, *, mtp: bool = False) -> dict[str, Any]:
    """Zeros, [L, rows, tokens, X] for each stack, in the dtype of the activations; `mtp`: also for the first module.

    With MLA one array of latents; with GQA {"keys": …, "values": …}, so that each is contiguous and, in 8 bits, has
    its own scales.
    """
    layers = {name: 1 if name == "mtp" else len(r) for name, r in stack_layers(config).items() if mtp or name != "mtp"}

    def zeros(L: int, X: int) -> Array:
        return jnp.zeros((L, rows, tokens, X), config.dtype)

    if config.kv_lora_rank is None:
        X = config.num_key_value_heads * config.head_dim
        return {name: {"keys": zeros(L, X), "values": zeros(L, X)} for name, L in layers.items()}
    return {name: zeros(L, config.kv_lora_rank + config.qk_rope_head_dim) for name, L in layers.items()}
