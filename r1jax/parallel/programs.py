"""The jitted programs: the functional core with shardings and donation. The only place that jits.

Each maker is cached on its (hashable) settings, so that stages with the same settings share one compiled program.
What may change during a run (learning rate, temperature, end token) is an argument or a function of the state.
"""

import functools
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding, PartitionSpec

from r1jax.config import ModelConfig, OptimizerConfig, PretrainConfig, RLConfig, RolloutConfig, SFTConfig
from r1jax.model.moe import update_router_bias
from r1jax.model.quantize import is_quantized, quantize_params
from r1jax.model.softmax_attention import choose_attention
from r1jax.model.spec import init_params, init_router_bias, uses_router_bias
from r1jax.model.transformer import cast
from r1jax.objectives.grpo import (
    ADVANTAGES,
    grpo_loss,
    importance_weights,
    logprob_gap,
    overlong_penalty,
    token_mean,
)
from r1jax.objectives.language_model import busiest_expert, language_model_loss, mtp_losses, pooled
from r1jax.objectives.metrics import Max, Mean, merge_metrics
from r1jax.objectives.optimizer import learning_rate, make_optimizer
from r1jax.parallel.layout import Layout
from r1jax.parallel.sharded_ops import make_sharded_ops
from r1jax.sampling.decode import Prefilled, Slots, decode_round, empty_slots, insert, prefill
from r1jax.sampling.score import by_output, output_mask, score
from r1jax.types import Gradients, GRPOBatch, PackedOutputs, RLState, TaughtBatch, TokenBatch, TrainState


def random_key(seed: int, *position: int):
    """A key that is a function of position: fold_in(seed, stage, step, ...)."""
    key = jax.random.key(seed)
    for p in position:
        key = jax.random.fold_in(key, p)
    return key


def on_platform(layout: Layout, model: ModelConfig) -> ModelConfig:
    """The model with its "auto" attention chosen for the devices that it will run on."""
    if model.attention != "auto":
        return model
    devices = layout.mesh.devices.ravel()
    capability = float(devices[0].compute_capability) if devices[0].platform == "gpu" else 0.0
    choice = choose_attention(devices[0].platform, model.dtype, model.qk_head_dim, capability)
    return replace(model, attention=choice)


@functools.cache
def abstract_policy(model: ModelConfig):
    """Shapes and dtypes of (params, router_bias)."""
    return jax.eval_shape(lambda: (init_params(jax.random.key(0), model), init_router_bias(model)))


@functools.cache
def train_state_shardings(layout: Layout, model: ModelConfig, config: OptimizerConfig) -> TrainState:
    """Adam's moments lie where their parameters lie; everything small is on every device."""
    optimizer = make_optimizer(config, model, 1)
    params = layout.params(model)
    abstract_params, abstract_bias = abstract_policy(model)
    opt_state = optax.tree_utils.tree_map_params(
        optimizer,
        lambda _, sharding: sharding,
        jax.eval_shape(optimizer.init, abstract_params),
        params,
        transform_non_params=lambda _: layout.replicated(),
    )
    bias = jax.tree.map(lambda _: layout.replicated(), abstract_bias)
    return TrainState(layout.replicated(), params, opt_state, bias)


@functools.cache
def init_policy(layout: Layout, model: ModelConfig):
    """key -> (params, router_bias), made on the devices where they will live."""

    def init(key):
        return init_params(key, model), init_router_bias(model)

    bias = jax.tree.map(lambda _: layout.replicated(), abstract_policy(model)[1])
    return jax.jit(init, out_shardings=(layout.params(model), bias))


def first_state(optimizer, config: OptimizerConfig, params, router_bias) -> TrainState:
    """At step 0, of a policy or a reward model."""
    if config.router_bias == "off":
        router_bias = jax.tree.map(jnp.zeros_like, router_bias)
    return TrainState(jnp.int32(0), params, optimizer.init(params), router_bias)


@functools.cache
def checksums(layout: Layout):
    """A tree of arrays -> the same tree of uint32: what each holds, wherever it lies and however it is divided.

    The sum, modulo 2^32, of each value's bits mixed with its place: two that differ are told apart but for one chance
    in 2^32 for each tensor.
    """

    def mix(x):  # the finalizer of MurmurHash3
        x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
        x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
        return x ^ (x >> 16)

    def one(x):
        bits = jax.lax.bitcast_convert_type(x, f"uint{8 * x.dtype.itemsize}").astype(jnp.uint32)
        place = jnp.zeros(x.shape, jnp.uint32)
        for axis, size in enumerate(x.shape):
            place = place * jnp.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis)
        return mix(bits ^ mix(place)).sum(dtype=jnp.uint32)

    return jax.jit(lambda tree: jax.tree.map(one, tree), out_shardings=layout.replicated())


@functools.cache
def start_training(layout: Layout, model: ModelConfig, config: OptimizerConfig):
    """(params, router_bias) -> TrainState at step 0. The arguments are donated."""
    optimizer = make_optimizer(config, model, 1)

    def start(params, router_bias):
        return first_state(optimizer, config, params, router_bias)

    return jax.jit(start, out_shardings=train_state_shardings(layout, model, config), donate_argnums=(0, 1))


def apply_updates(optimizer, model: ModelConfig, config: OptimizerConfig, state: TrainState, grads, load):
    """The next state, and what to log of the update."""
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    if config.mtp != "train" and "mtp" in updates:
        updates = updates | {"mtp": jax.tree.map(jnp.zeros_like, updates["mtp"])}  # weight decay is no exception
    bias = state.router_bias
    if uses_router_bias(model) and config.router_bias == "train":
        # Stacks that this step did not run have no load, and keep their bias.
        bias = bias | {name: update_router_bias(bias[name], load[name], config.router_bias_speed) for name in load}
    norms = {"grad_norm": Max(optax.global_norm(grads)), "update_norm": Max(optax.global_norm(updates))}
    busiest = busiest_expert({name: load_LE for name, load_LE in load.items() if name != "mtp"})
    return TrainState(state.step + 1, optax.apply_updates(state.params, updates), opt_state, bias), norms | busiest


def pretrain_step(layout: Layout, model: ModelConfig, config: PretrainConfig):
    """(TrainState, TokenBatch) -> (TrainState, metrics). The state is donated."""
    return language_model_step(layout, model, config, config.steps)


def sft_step(layout: Layout, model: ModelConfig, config: SFTConfig, steps: int):
    """(TrainState, TaughtBatch) -> (TrainState, metrics), one of `steps`. The state is donated."""
    return language_model_step(layout, model, config, steps)


@functools.cache
def language_model_step(layout: Layout, model: ModelConfig, config: PretrainConfig | SFTConfig, steps: int):
    """(TrainState, TokenBatch, or a TaughtBatch, of which a part is learnt) -> (TrainState, metrics)."""
    model = on_platform(layout, model)
    ops = make_sharded_ops(layout, model)
    optimizer = make_optimizer(config.optimizer, model, steps)
    schedule = learning_rate(config.optimizer, steps)

    def step(state: TrainState, batch: TokenBatch | TaughtBatch):
        tokens, is_target_BT = (batch.tokens, batch.is_taught_BT) if isinstance(batch, TaughtBatch) else (batch, None)
        loss = functools.partial(
            language_model_loss,
            config=model,
            mtp=config.optimizer.mtp,
            mtp_weight=config.mtp_loss_weight,
            balance_weight=config.balance_loss_weight,
            is_target_BT=is_target_BT,
            ops=ops,
        )
        grads, (metrics, load) = jax.grad(loss, has_aux=True)(state.params, state.router_bias, tokens)
        state, norms = apply_updates(optimizer, model, config.optimizer, state, grads, load)
        return state, metrics | norms | {"learning_rate": Max(schedule(state.step - 1))}

    shardings = train_state_shardings(layout, model, config.optimizer)
    return jax.jit(step, donate_argnums=0, out_shardings=(shardings, layout.replicated()))


def rollout_weights(params, model: ModelConfig, kind: str):
    """The trainer's weights as rollouts read them: in the dtype of the activations, matrices perhaps in 8 bits."""
    return cast(params if kind == "model" else quantize_params(params, model, kind), model)


@functools.cache
def rollout_shardings(layout: Layout, model: ModelConfig, kind: str):
    """Shardings of (`rollout_weights`, router_bias). A scale is whole along the axes that share it."""
    params, bias = abstract_policy(model)
    weights = jax.eval_shape(functools.partial(rollout_weights, model=model, kind=kind), params)

    def one(sharding, weight):
        if not is_quantized(weight):
            return sharding
        axes = [axis if size > 1 else None for axis, size in zip(sharding.spec, weight.scale.shape, strict=True)]
        return replace(weight, values=sharding, scale=NamedSharding(layout.mesh, PartitionSpec(*axes)))

    return jax.tree.map(one, layout.params(model), weights), jax.tree.map(lambda _: layout.replicated(), bias)


def copies_weights(model: ModelConfig, kind: str) -> bool:
    """Whether rollouts read other numbers than the trainer's."""
    return kind != "model" or model.param_dtype != model.dtype


@functools.cache
def copy_weights(layout: Layout, model: ModelConfig, kind: str):
    """params of the trainer, wherever they lie -> `rollout_weights`, as the rollouts' `layout` has them."""
    weights = functools.partial(rollout_weights, model=model, kind=kind)
    return jax.jit(weights, out_shardings=rollout_shardings(layout, model, kind)[0])


def sync(layout: Layout, model: ModelConfig, kind: str):
    """(params, router_bias) of the trainer -> those of rollouts, as `layout` has them.

    All on the devices. Where the trainer's are as they should be, they are not copied.
    """
    shardings = rollout_shardings(layout, model, kind)

    def run(params, router_bias):
        wanted = layout.params(model)
        lies_so = jax.tree.map(lambda x, s: x.sharding.is_equivalent_to(s, x.ndim), params, wanted)
        if copies_weights(model, kind) or not all(jax.tree.leaves(lies_so)):
            params = copy_weights(layout, model, kind)(params)
        return params, jax.device_put(router_bias, shardings[1])

    return run


def by_row(layout: Layout) -> NamedSharding:
    """Of latents, [layers, rows, …]."""
    return NamedSharding(layout.mesh, PartitionSpec(None, layout.rules.batch))


def slot_shardings(layout: Layout, model: ModelConfig, config: RolloutConfig) -> Slots:
    """Slots are divided over the batch axes; a cache is [layers, slots, …]."""
    cache = by_row(layout)
    abstract = jax.eval_shape(lambda: empty_slots(model, config, 1, 1))
    by_slot = jax.tree.map(lambda _: layout.batch(), abstract)
    return replace(by_slot, cache=jax.tree.map(lambda _: cache, abstract.cache))


@functools.cache
def make_slots(layout: Layout, model: ModelConfig, config: RolloutConfig, slots: int, width: int):
    """() -> Slots, all free."""
    make = functools.partial(empty_slots, model, config, slots, width)
    return jax.jit(make, out_shardings=slot_shardings(layout, model, config))


@functools.cache
def make_prefill(layout: Layout, model: ModelConfig, config: RolloutConfig):
    """(params, router_bias, tokens [B, P], lengths [B], ids [B]) -> Prefilled, on every device but for its latents."""
    run = functools.partial(prefill, c=model, r=config, ops=make_sharded_ops(layout, model))
    everywhere: Any = layout.replicated()
    latents: Any = by_row(layout)
    return jax.jit(run, out_shardings=Prefilled(latents, *[everywhere] * 5))


@functools.cache
def make_insert(layout: Layout, model: ModelConfig, config: RolloutConfig):
    """(Slots, Prefilled, rows [S], samples [S], key, DrawSettings) -> Slots. The slots are donated."""
    shardings = slot_shardings(layout, model, config)
    return jax.jit(functools.partial(insert, truncate=config.truncates), out_shardings=shardings, donate_argnums=0)


@functools.cache
def make_decode(layout: Layout, model: ModelConfig, config: RolloutConfig, width: int):
    """(params, router_bias, Slots, is_free [S], limit, DrawSettings) -> (Slots, Emitted). The slots are donated."""

    ops = make_sharded_ops(layout, model)

    def decode(params, router_bias, slots: Slots, is_free_S, limit, settings):
        slots = replace(slots, done_S=slots.done_S | is_free_S)
        return decode_round(params, router_bias, slots, limit, settings, model, config, ops, width=width)

    return jax.jit(decode, out_shardings=(slot_shardings(layout, model, config), layout.replicated()), donate_argnums=2)


@functools.cache
def advantages(config: RLConfig):
    """(rewards [B, G], lengths [B, G], counts [B, G]: 1 on the outputs that count) -> advantages [B, G]."""

    def compute(rewards_BG, length_BG, counts_BG):
        rewards_BG += overlong_penalty(length_BG, config.max_new_tokens, config.overlong_buffer)
        return ADVANTAGES[config.advantage](rewards_BG, counts_BG)

    return jax.jit(compute)


@functools.cache
def prepare_batch(layout: Layout, model: ModelConfig, config: RLConfig):
    """(RLState, PackedOutputs, temperature) -> (GRPOBatch, metrics). The packed outputs are donated.

    Adds the log-probabilities of the outputs under the policy and under the reference, both from the trainer's own
    forward pass: the first ratio is exactly 1 whatever the sampler's rounding.
    """
    model = on_platform(layout, model)
    ops = make_sharded_ops(layout, model)

    def prepare(state: RLState, packed: PackedOutputs, temperature):
        N, train = config.max_new_tokens, state.train
        routes = packed.routes_BTLK
        logp_old_BN, _, _ = score(train.params, train.router_bias, packed, N, temperature, model, routes, ops)
        logp_ref_BN = logp_old_BN  # which costs nothing
        if config.kl_coef:
            reference = (state.reference, state.reference_router_bias)
            logp_ref_BN, _, _ = score(*reference, packed, N, temperature, model, ops=ops)
        logp_sampler_BN, mask_BN = by_output(packed.logp_sampler_BT, packed, N), output_mask(packed, N)
        weights_BN = importance_weights(logp_old_BN - logp_sampler_BN, mask_BN, config)
        metrics = logprob_gap(logp_old_BN, logp_sampler_BN, mask_BN, weights_BN)
        if config.old_logprobs == "sampler":
            logp_old_BN = logp_sampler_BN
        advantage_B = packed.advantage_BJ.reshape(-1)
        return GRPOBatch(packed, mask_BN, advantage_B, logp_old_BN, logp_ref_BN, weights_BN), metrics

    return jax.jit(prepare, donate_argnums=1, out_shardings=(layout.batch(), layout.replicated()))


@functools.cache
def grpo_gradients(layout: Layout, model: ModelConfig, config: RLConfig):
    """(params, router_bias, GRPOBatch, temperature) -> Gradients of the microbatch."""
    model = on_platform(layout, model)
    ops = make_sharded_ops(layout, model)
    # Recomputing the forward pass in the backward one saves memory, and keeps XLA from fusing it otherwise than in
    # `prepare_batch`: the first ratio is 1 to the last bit, where it was within 2e-5. Layers that do so are enough.
    rematerialised = jax.checkpoint(score, static_argnums=(3, 5, 7)) if model.remat == "none" else score

    def loss(params, router_bias, batch: GRPOBatch, temperature):
        packed = batch.packed
        logp_BN, entropy_BN, hidden = rematerialised(
            params, router_bias, packed, config.max_new_tokens, temperature, model, packed.routes_BTLK, ops
        )
        part, metrics = grpo_loss(
            logp_BN, batch.logp_old_BN, batch.logp_ref_BN, batch.advantage_B, batch.mask_BN, config, batch.weights_BN
        )
        metrics["entropy"] = token_mean(entropy_BN, batch.mask_BN)
        total, load, modules = part.total, hidden.load, Mean(jnp.zeros(()), jnp.zeros(()))
        if model.num_nextn_predict_layers and config.optimizer.mtp != "off":
            # The modules learn to draft what this policy draws; nothing that it draws with learns from them.
            detached, hidden = jax.lax.stop_gradient((params, hidden))
            detached = detached | {"mtp": params["mtp"]}
            losses, mtp_load_KE = mtp_losses(detached, router_bias, hidden, packed.tokens, model, packed.is_new_BT, ops)
            metrics["mtp_loss"] = modules = pooled(losses)
            if config.optimizer.mtp == "train":
                total += modules.total  # alone in its gradients, which Adam scales: a weight would change nothing
                load = load | {"mtp": mtp_load_KE}
        return total, (part.weight, modules.weight, metrics, load)

    def compute(params, router_bias, batch: GRPOBatch, temperature):
        sums, parts = jax.grad(loss, has_aux=True)(params, router_bias, batch, temperature)
        return Gradients(jax.tree.map(lambda x: x.astype(jnp.float32), sums), *parts)

    everywhere: Any = layout.replicated()
    shardings = Gradients(layout.params(model), everywhere, everywhere, everywhere, everywhere)
    return jax.jit(compute, out_shardings=shardings)


@functools.partial(jax.jit, donate_argnums=0)
def add_gradients(a: Gradients, b: Gradients) -> Gradients:
    """Those of two microbatches together. The first is donated."""
    added = jax.tree.map(jnp.add, replace(a, metrics={}), replace(b, metrics={}))
    return replace(added, metrics=merge_metrics(a.metrics, b.metrics))


@functools.cache
def grpo_update(layout: Layout, model: ModelConfig, config: RLConfig):
    """(TrainState, Gradients of a minibatch) -> (TrainState, metrics). The state is donated."""
    updates = config.steps * config.updates
    optimizer = make_optimizer(config.optimizer, model, updates, detached_mtp=True)
    schedule = learning_rate(config.optimizer, updates)

    def update(state: TrainState, gradients: Gradients):
        def mean(path, total):
            divisor = gradients.mtp_weight if path[0].key == "mtp" else gradients.weight
            return total / jnp.maximum(divisor, 1)

        # In float32, whatever weights and moments are stored in.
        grads = jax.tree_util.tree_map_with_path(mean, gradients.sums)
        state, norms = apply_updates(optimizer, model, config.optimizer, state, grads, gradients.load)
        norms["grad_norm"] = Max(optax.global_norm({name: x for name, x in grads.items() if name != "mtp"}))  # clipped
        return state, gradients.metrics | norms | {"learning_rate": Max(schedule(state.step - 1))}

    shardings = train_state_shardings(layout, model, config.optimizer)
    return jax.jit(update, donate_argnums=0, out_shardings=(shardings, layout.replicated()))


def on_host(tree):
    """The same arrays, divided as they are, in the hosts' memory; `on_device` brings them back."""
    return jax.tree.map(lambda x: jax.device_put(x, x.sharding.with_memory_kind("pinned_host")), tree)


def on_device(tree):
    """Arrays in the devices' own memory; those that are there are not copied."""

    def one(x):
        is_there = x.sharding.memory_kind != "pinned_host"
        return x if is_there else jax.device_put(x, x.sharding.with_memory_kind("device"))

    return jax.tree.map(one, tree)


@jax.jit
def snapshot(tree):
    """A copy with buffers of its own: the original may be donated afterwards."""
    return jax.tree.map(jnp.copy, tree)
