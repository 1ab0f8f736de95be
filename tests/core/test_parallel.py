"""Sharded programs give the unsharded numbers, on fake devices."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1jax.config import EngineConfig, MeshConfig, OptimizerConfig
from r1jax.errors import UsageError
from r1jax.model.spec import ParamSpec
from r1jax.objectives.language_model import LossTerms
from r1jax.parallel import programs
from r1jax.parallel.layout import Layout, Rules, make_layout, rollout_layout
from r1jax.runs.checks import check_sizes
from r1jax.types import TokenBatch
from tests.shared.configs import rl_config
from tests.shared.engines import placed, sample
from tests.shared.plain_rollouts import Prompts, fresh_state, one_update, taught, weighed

MESHES = {
    "1": (MeshConfig(data=1), 1),
    "8x1": (MeshConfig(data=8), 8),
    "2x4 tensor": (MeshConfig(data=2, tensor=4), 8),
    "2x4 expert": (MeshConfig(data=2, expert=4), 8),
    "2x4 fsdp": (MeshConfig(data=2, fsdp=4), 8),
    "2x2x2 context": (MeshConfig(expert=2, context=2), 8),
}
DENSE_MESH = MeshConfig(data=2, fsdp=2, tensor=2)  # its two heads of keys and values divide no further
# Sums over devices are added in another order than sums on one: float32 rounding, through three layers and Adam.
REDUCTION = dict(rtol=1e-4, atol=1e-5)


def layout(name: str) -> Layout:
    config, devices = (MESHES | {"dense": (DENSE_MESH, 8)})[name]
    return make_layout(config, jax.devices()[:devices])


@pytest.fixture(scope="module")
def batch() -> TokenBatch:
    rng = np.random.default_rng(0)
    tokens = rng.integers(1, 200, (8, 16)).astype(np.int32)
    segments = np.where(np.arange(16) < 10, 1, 2) * np.ones((8, 1), np.int32)
    positions = np.where(np.arange(16) < 10, np.arange(16), np.arange(16) - 10) * np.ones((8, 1), np.int32)
    return TokenBatch(tokens, positions.astype(np.int32), segments.astype(np.int32))


def pretrain_once(lay: Layout, model, policy, batch, experts="dense"):
    model = dataclasses.replace(model, experts=experts)
    optimizer = OptimizerConfig(1e-3, clip_norm=1e9)
    state = programs.make_start_training(lay, model, optimizer)(placed(lay, model, policy))
    step = programs.make_language_model_step(lay, model, optimizer, LossTerms("train", 0.3, 1e-4))
    state, metrics = step(state, lay.put_batch(batch), np.float32(1e-3))
    # After one step Adam's first moment is (1 - b1) * gradient: the gradients themselves.
    moments = [s.mu for s in jax.tree.leaves(state.opt_state, is_leaf=lambda s: hasattr(s, "mu")) if hasattr(s, "mu")]
    return jax.device_get((metrics, moments[0], state.router_bias))


SHARDED = [(name, experts) for name in MESHES for experts in ("dense", "grouped") if name != "1"]


@pytest.mark.slow  # test_meshes.py has a quick one
@pytest.mark.parametrize(("name", "experts"), SHARDED)
def test_sharded_loss_and_gradients_equal_unsharded(model, policy, batch, name, experts):
    assert_same_training(model, policy, batch, name, experts)


@pytest.mark.slow
def test_a_dense_models_sharded_loss_and_gradients_equal_unsharded(dense_model, dense_policy, batch):
    assert_same_training(dense_model, dense_policy, batch, "dense")


def assert_same_training(model, policy, batch, name, experts="dense"):
    metrics, gradients, bias = pretrain_once(layout("1"), model, policy, batch)
    sharded_metrics, sharded_gradients, sharded_bias = pretrain_once(layout(name), model, policy, batch, experts)
    for key in metrics:
        assert sharded_metrics[key].value() == pytest.approx(metrics[key].value(), rel=1e-5), key
    for a, b in zip(jax.tree.leaves(sharded_gradients), jax.tree.leaves(gradients), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5 * np.abs(b).max())
    for a, b in zip(jax.tree.leaves(sharded_bias), jax.tree.leaves(bias), strict=True):
        np.testing.assert_array_equal(a, b)


def grpo_once(lay: Layout, model, policy, *, share_prompts=False):
    rng = np.random.default_rng(0)
    config = rl_config(  # several microbatches of rows for 8 devices
        prompts_per_step=8, row_tokens=40, microbatch_rows=6, share_prompts=share_prompts
    )
    prompts = Prompts(
        rng.integers(3, 200, (8, 10)).astype(np.int32), np.full(8, 10, np.int32), np.arange(8, dtype=np.int32)
    )
    weights = placed(lay, model, policy)
    generation = sample(lay, model, weights, prompts, slots=13)  # fewer than samples, and no multiple of 8
    samples = taught(prompts, generation, weighed(config, generation, rng.random((8, 4)).astype(np.float32)))
    state = fresh_state(lay, model, weights, config)
    train, metrics = one_update(lay, model, config, state, samples)
    return jax.device_get((generation, metrics, train.params))


OTHERS = [pytest.param(m, marks=pytest.mark.slow) for m in MESHES if m not in ("1", "2x4 expert")]


@pytest.mark.parametrize("name", ["2x4 expert", *OTHERS])
def test_sharded_rollout_and_update_equal_unsharded(model, policy, name):
    assert_same_rollout_and_update(model, policy, name)


@pytest.mark.slow
def test_a_dense_models_sharded_rollout_and_update_equal_unsharded(dense_model, dense_policy):
    """Also with prompts that are shared on the mesh alone."""
    assert_same_rollout_and_update(dense_model, dense_policy, "dense", share_prompts=True)


@pytest.mark.slow
def test_shared_prompts_on_rows_that_devices_share(model, policy):
    """With a context axis; without a router bias, which follows how often tokens are run."""
    params, bias = policy
    unbiased = jax.tree.map(jnp.zeros_like, bias)
    model = dataclasses.replace(model, topk_method="greedy")
    assert_same_rollout_and_update(model, (params, unbiased), "2x2x2 context", share_prompts=True)


def assert_same_rollout_and_update(model, policy, name, *, share_prompts=False):
    generation, metrics, params = grpo_once(layout("1"), model, policy)
    sharded_generation, sharded_metrics, sharded_params = grpo_once(
        layout(name), model, policy, share_prompts=share_prompts
    )
    np.testing.assert_array_equal(sharded_generation.tokens_BGN, generation.tokens_BGN)
    np.testing.assert_allclose(sharded_generation.logp_BGN, generation.logp_BGN, **REDUCTION)
    for key in ("loss", "entropy", "grad_norm"):
        assert sharded_metrics[key].value() == pytest.approx(metrics[key].value(), rel=1e-3, abs=1e-6), key
    for a, b in zip(jax.tree.leaves(sharded_params), jax.tree.leaves(params), strict=True):
        # Adam divides by the root of the squared gradient: where a gradient is all rounding, its sign is arbitrary,
        # and one step of the learning rate (1e-3) to either side is right. Nearly all entries agree far better.
        assert (np.abs(a - b) < 1e-5).mean() > 0.99
        assert np.abs(a - b).max() <= 2.001e-3


def test_parameters_really_are_divided(model, policy):
    lay = layout("2x4 expert")
    gate = placed(lay, model, policy).params["moe"]["feed_forward"]["gate_EDF"]
    assert gate.addressable_shards[0].data.shape == (1, 1, 64, 32)


def test_adams_moments_lie_with_their_parameters(model, policy):
    lay = layout("2x4 tensor")
    shardings = programs.train_state_shardings(lay, model, OptimizerConfig(1e-3))
    moments = [
        s.mu for s in jax.tree.leaves(shardings.opt_state, is_leaf=lambda s: hasattr(s, "mu")) if hasattr(s, "mu")
    ]
    assert jax.tree.leaves(moments[0]) == jax.tree.leaves(shardings.params)


@pytest.mark.parametrize(
    "mesh", [MeshConfig(data=3), MeshConfig(data=-1, fsdp=-1), MeshConfig(data=0), MeshConfig(data=2)], ids=str
)
def test_a_mesh_that_does_not_fit(mesh):
    with pytest.raises(UsageError, match="MeshConfig"):
        make_layout(mesh)


def test_a_batch_that_the_mesh_cannot_divide():
    with pytest.raises(UsageError, match=r"batch_size is 6.* 8"):
        layout("8x1").require_batch("batch_size", 6)


def test_a_row_that_the_mesh_cannot_divide():
    with pytest.raises(UsageError, match=r"row_tokens is 37.* 2"):
        check_sizes(layout("2x2x2 context"), None, rl_config(row_tokens=37))


def test_rollouts_have_whole_rows():
    """On the trainer's devices each has rows of its own; a mesh of their own with a context axis is refused."""
    lay = rollout_layout(layout("2x2x2 context"), EngineConfig())
    assert (lay.rules.tokens, lay.round_up(1)) == ((), 8)
    with pytest.raises(ValueError, match=r"mesh.context is 2.*rollout/MeshConfig.context"):
        EngineConfig(mesh=MeshConfig(context=2))


def test_a_tensor_that_the_mesh_cannot_divide(model):
    odd = dataclasses.replace(model, vocab_size=206)
    with pytest.raises(UsageError, match=r"embed_VD.*MeshConfig\.tensor"):
        layout("2x4 tensor").params(odd)


def test_heads_of_keys_that_the_mesh_cannot_divide(dense_model):
    with pytest.raises(UsageError, match=r"k_DYM.*MeshConfig\.tensor"):
        layout("2x4 tensor").params(dense_model)


def test_rules_that_clash():
    lay = dataclasses.replace(layout("2x4 tensor"), rules=Rules(embed=("tensor",)))
    with pytest.raises(UsageError, match="embed.*tensor"):
        lay.param("embed", ParamSpec((8, 8), ("vocab", "embed"), 1, ""))
