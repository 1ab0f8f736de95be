"""Every mesh shape of 2, 4 or 8 devices over fsdp, expert and tensor gives the results of one device.

A fourth number of a shape is the size of the context axis.
"""

import dataclasses
import itertools

import jax
import numpy as np
import pytest

from r1jax.config import MeshConfig, OptimizerConfig
from r1jax.model import context_attention
from r1jax.model.spec import init_params, init_router_bias
from r1jax.objectives.language_model import LossTerms, language_model_loss
from r1jax.parallel import programs
from r1jax.parallel.layout import make_layout
from r1jax.parallel.sharded_ops import make_sharded_ops
from r1jax.types import TokenBatch
from tests.shared.engines import generate, make_engine, placed, tokens

SHAPES = [shape for shape in itertools.product((1, 2, 4, 8), repeat=3) if np.prod(shape) <= 8 and max(shape) > 1]
SHAPES += [(1, 1, 1, 8), (2, 1, 1, 4), (1, 4, 1, 2), (1, 1, 4, 2), (2, 2, 1, 2), (1, 2, 2, 2), (2, 1, 2, 2)]
QUICK = [(2, 2, 2)]


def cases(quick: list) -> list:
    return [pytest.param(s, marks=[] if s in quick else pytest.mark.slow, id="x".join(map(str, s))) for s in SHAPES]


# Relative to each tensor's norm: float32 sums over devices are in another order.
ROUNDING = 1e-5


@pytest.fixture(scope="module", params=["latent", pytest.param("grouped-queries", marks=pytest.mark.slow)])
def eight(request, model, grouped_moe_model):
    """A model with 8 experts and 8 heads of keys, divisible by 8 devices, and its (params, router_bias)."""
    if request.param == "latent":  # the demo's
        model = dataclasses.replace(model, num_attention_heads=8, n_routed_experts=8)
    else:  # Qwen3-MoE's parts
        model = dataclasses.replace(grouped_moe_model, num_attention_heads=16, num_key_value_heads=8)
    model = dataclasses.replace(model, experts="grouped", remat="full", vocab_size=208)
    params = init_params(jax.random.key(0), model)
    bias = jax.tree.map(lambda b: 0.1 * jax.random.normal(jax.random.key(1), b.shape), init_router_bias(model))
    return model, (params, bias)


@pytest.fixture(scope="module")
def batch() -> TokenBatch:
    rng = np.random.default_rng(0)
    segments = np.where(np.arange(32) < 20, 1, 2) * np.ones((8, 1), np.int32)
    positions = np.where(np.arange(32) < 20, np.arange(32), np.arange(32) - 20) * np.ones((8, 1), np.int32)
    tokens = rng.integers(1, 200, (8, 32))
    return TokenBatch(*(x.astype(np.int32) for x in (tokens, positions, segments)))


def mesh_of(shape) -> MeshConfig:
    fsdp, expert, tensor, context = (*shape, 1)[:4]
    return MeshConfig(data=1, fsdp=fsdp, expert=expert, context=context, tensor=tensor)


def loss_and_gradients(layout, model, policy, batch):
    ops = make_sharded_ops(layout, model)

    def loss(params, bias, batch):
        return language_model_loss(params, bias, batch, LossTerms("train", 0.3, 1e-4), model, ops)

    params, bias = jax.device_put(policy, (layout.params(model), layout.replicated()))
    run = jax.jit(jax.value_and_grad(loss, has_aux=True), out_shardings=(None, layout.params(model)))
    (value, (_, load)), grads = run(params, bias, layout.put_batch(batch))
    return jax.device_get((value, load, grads))


@pytest.fixture(scope="module")
def on_one_device(eight, batch, one_device):
    return loss_and_gradients(one_device, *eight, batch)


@pytest.mark.parametrize("shape", cases(QUICK))
def test_loss_and_gradients_equal_those_of_one_device(eight, batch, on_one_device, shape):
    layout = make_layout(mesh_of(shape), jax.devices()[: np.prod(shape)])
    value, load, grads = loss_and_gradients(layout, *eight, batch)
    expected, expected_load, expected_grads = on_one_device
    assert value == pytest.approx(expected, rel=ROUNDING)
    for name in expected_load:
        np.testing.assert_array_equal(load[name], expected_load[name])
    for (path, b), a in zip(jax.tree.leaves_with_path(expected_grads), jax.tree.leaves(grads), strict=True):
        assert np.linalg.norm(a - b) <= ROUNDING * np.linalg.norm(b), jax.tree_util.keystr(path)


@pytest.fixture(scope="module")
def prompts():
    rng = np.random.default_rng(1)
    return [(i, rng.integers(3, 200, int(rng.integers(3, 14))).tolist()) for i in range(6)]


@pytest.fixture(scope="module")
def drawn(eight, one_device, prompts):
    return tokens(generate(make_engine(one_device, eight[0]), eight[1], prompts))


@pytest.mark.parametrize("shape", cases(QUICK))
def test_rollouts_give_the_same_ids(eight, prompts, drawn, shape, monkeypatch):
    """On the trainer's layout, and on a mesh for rollouts of the same devices; there the cache is read in chunks."""
    monkeypatch.setattr(context_attention, "CHUNK", 16)
    model, policy = eight
    layout = make_layout(mesh_of(shape), jax.devices()[: np.prod(shape)])
    weights = placed(layout, model, policy)
    for mesh in (None, mesh_of(shape[:3])) if len(shape) == 3 else (None,):
        assert tokens(generate(make_engine(layout, model, mesh=mesh), weights, prompts)) == drawn


def test_no_device_has_all_experts_or_stores_a_whole_matrix(eight, batch):
    """The compiled training step never holds all experts, in weights or gradients, and shards its results 8 times."""
    model = dataclasses.replace(eight[0], moe_intermediate_size=40)  # a unique shape
    layout, optimizer = make_layout(mesh_of((2, 4, 1))), OptimizerConfig(1e-3)
    start = programs.make_start_training(layout, model, optimizer)
    state = start.trace(programs.abstract_weights(model)).out_info
    step = programs.make_language_model_step(layout, model, optimizer, LossTerms("train", 0.3, 1e-4))
    step = step.lower(state, layout.abstract_batch(batch), np.float32(1e-3)).compile()
    E, D, F = 8, model.hidden_size, model.moe_intermediate_size
    whole = {f"[{E},{D},{F}]", f"[{E},{F},{D}]", f"[1,{E},{D},{F}]", f"[1,{E},{F},{D}]"}
    assert not [shape for shape in whole if shape in step.as_text()]
    for x in jax.tree.leaves(step.out_info[0].params):
        if x.ndim > 2:  # a stack of matrices
            assert np.prod(x.shape) == 8 * np.prod(x.sharding.shard_shape(x.shape)), x
