"""Float32 masters of bfloat16 weights: their arithmetic, shardings and memory; what an update changes."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from r1jax.cli.experiments import gin_path, load_experiment
from r1jax.cli.gin_config import read_config
from r1jax.config import MeshConfig, OptimizerConfig
from r1jax.model.spec import param_specs
from r1jax.objectives.optimizer import apply_updates, first_state, make_optimizer
from r1jax.parallel import programs
from r1jax.parallel.layout import make_layout
from r1jax.parallel.memory import rl_memory, training_memory
from r1jax.types import Weights
from tests.shared.configs import rl_config
from tests.shared.engines import placed

# XLA contracts a product and a sum into one rounding where NumPy has two.
CONTRACTION = dict(rtol=1e-6, atol=1e-9)


@pytest.fixture(scope="module")
def bfloat16(model):
    return dataclasses.replace(model, param_dtype="bfloat16")


def rounded(params):
    return jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)


def updater(model, config: OptimizerConfig):
    """(state, gradients) -> (state, metrics), at the config's learning rate; no expert has any load."""
    optimizer = make_optimizer(config, model)

    def update(state, grads):
        load = jax.tree.map(jnp.zeros_like, state.router_bias)
        return apply_updates(optimizer, config, model, state, grads, load, jnp.float32(config.learning_rate))

    return jax.jit(update)


def begin(model, config: OptimizerConfig, policy):
    return first_state(make_optimizer(config, model), config, model, Weights(*policy))


def pull(params):
    """The gradient of half the squared distance from 0.1, of the weights that it is given."""
    return jax.tree.map(lambda x: x.astype(jnp.float32) - 0.1, params)


def test_masters_are_optax_adamw_on_float32_with_gradients_of_the_rounded_weights(bfloat16, policy):
    config = OptimizerConfig(1e-4, b1=0.9, b2=0.95, weight_decay=0.1, clip_norm=1.0)
    masters = policy[0]
    decays = jax.tree_util.tree_map_with_path(lambda path, _: "norm" not in path[-1].key, masters)
    clip, adamw = optax.clip_by_global_norm(1.0), optax.adamw(1e-4, 0.9, 0.95, weight_decay=0.1, mask=decays)
    reference = optax.chain(clip, adamw)
    reference_state = reference.init(masters)
    state, update = begin(bfloat16, config, policy), updater(bfloat16, config)
    for _ in range(5):
        updates, reference_state = jax.jit(reference.update)(pull(rounded(masters)), reference_state, masters)
        masters = optax.apply_updates(masters, updates)
        state, _ = update(state, pull(state.params))
    for ours, theirs in zip(jax.tree.leaves(state.opt_state.masters), jax.tree.leaves(masters), strict=True):
        np.testing.assert_allclose(ours, theirs, **CONTRACTION)
    stored = rounded(state.opt_state.masters)
    for ours, theirs in zip(jax.tree.leaves(state.params), jax.tree.leaves(stored), strict=True):
        assert ours.dtype == jnp.bfloat16
        np.testing.assert_array_equal(ours, theirs)
    moments = [x for x in jax.tree.leaves(state.opt_state.inner) if x.ndim]
    assert {x.dtype for x in moments} == {jnp.dtype("float32")}


def test_float32_weights_have_no_masters(model, policy):
    config = OptimizerConfig(1e-3)
    with_masters, without = (
        begin(model, dataclasses.replace(config, master_weights=choice), policy) for choice in (True, False)
    )
    assert jax.tree.structure(with_masters) == jax.tree.structure(without)
    assert len(jax.tree.leaves(with_masters)) == len(jax.tree.leaves(without))


@pytest.mark.parametrize(
    ("dtype", "masters", "least", "most"),
    [("float32", True, 0.98, 1), ("bfloat16", True, 0.001, 0.02), ("bfloat16", False, 0.001, 0.01)],
)
def test_what_an_update_changes_is_counted_as_it_is_stored(model, policy, dtype, masters, least, most):
    """By NumPy, of the state before and after. At 3e-6 bfloat16 keeps nearly all bits, but masters move."""
    model = dataclasses.replace(model, param_dtype=dtype)
    config = OptimizerConfig(3e-6, master_weights=masters)
    params = jax.tree.map(lambda x: x.astype("float32" if masters else dtype), policy[0])
    before = begin(model, config, (params, policy[1]))
    after, metrics = updater(model, config)(before, pull(before.params))

    def numbers(tree):
        return np.concatenate([np.asarray(x, np.float32).ravel() for x in jax.tree.leaves(tree)])

    changed = (numbers(before.params) != numbers(after.params)).mean()
    assert metrics["changed_weights"].value() == pytest.approx(changed, rel=1e-6)
    assert least <= changed <= most
    weights = [s.opt_state.masters if dtype == "bfloat16" and masters else s.params for s in (before, after)]
    moved = numbers(weights[1]) - numbers(weights[0])
    assert metrics["update_norm"].value() == pytest.approx(np.linalg.norm(moved), rel=1e-3)
    if dtype == "float32" or masters:
        assert metrics["update_norm"].value() == pytest.approx(3e-6 * math.sqrt(moved.size), rel=0.02)  # Adam's first


@pytest.mark.parametrize("name", ["deepseek_v3", "deepseek_v2", "moonlight_16b_a3b", "qwen2_5_7b", "llama3_1_8b"])
def test_the_count_of_a_matrix_fits_int32(name):
    files = [gin_path(file) for file in (f"model/{name}.gin", "algorithm/grpo.gin", "scale/cpu.gin")]
    model = read_config(load_experiment("r1_zero").Config, files, ["ModelConfig.experts='grouped'"]).model
    assert max(math.prod(spec.shape[-2:]) for spec in jax.tree.leaves(param_specs(model))) < 2**31


def test_masters_are_placed_with_their_parameters(bfloat16, policy):
    """Weights in bfloat16 rounded from float32, masters with all bits, both divided over the devices."""
    layout = make_layout(MeshConfig(data=2, expert=4))
    config = OptimizerConfig(1e-3)
    shardings = programs.train_state_shardings(layout, bfloat16, config)
    assert shardings.opt_state.masters == shardings.params == layout.params(bfloat16)
    state = programs.make_start_training(layout, bfloat16, config)(placed(layout, bfloat16, policy))
    masters = state.opt_state.masters
    for master, stored, original in zip(*map(jax.tree.leaves, (masters, state.params, policy[0])), strict=True):
        np.testing.assert_array_equal(master, original)
        np.testing.assert_array_equal(stored, original.astype(jnp.bfloat16))
    gate = masters["moe"]["feed_forward"]["gate_EDF"]
    assert gate.addressable_shards[0].data.shape == (1, 1, 64, 32)


@pytest.mark.parametrize(("moments", "size"), [(None, 6), ("bfloat16", 4)])
def test_masters_are_counted_and_offloaded_with_the_optimizer(bfloat16, policy, one_device, moments, size):
    """Beside weights of 2 bytes: masters of 4 and two moments, which are float32 unless a dtype is set."""
    config = OptimizerConfig(1e-3, moment_dtype=moments)
    held = training_memory(one_device, bfloat16, config)
    numbers = sum(x.size for x in jax.tree.leaves(policy[0]))
    assert held["weights"] == held["gradients"] == 2 * numbers
    assert held["optimizer"] == pytest.approx(size * held["weights"], rel=1e-4)
    state = begin(bfloat16, config, policy)
    assert held["optimizer"] == sum(x.nbytes for x in jax.tree.leaves(state.opt_state))
    offloaded = rl_memory(one_device, bfloat16, rl_config(optimizer=config, offload=("optimizer",)))
    assert "optimizer" not in offloaded
    assert offloaded["optimizer, back"] + offloaded["gradients"] == pytest.approx(held["optimizer"] + 4 * numbers)
