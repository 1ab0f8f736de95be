"""What rollouts may do otherwise: read 8-bit weights and latents, return their routes, run on a mesh of their own."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1jax.config import EngineConfig, MeshConfig, SamplingConfig
from r1jax.dry_run.stage_programs import placed_weights, rollout_stage_programs
from r1jax.errors import RunError, UsageError
from r1jax.model.blocked_cache import BLOCK
from r1jax.model.moe import affinities, choose_experts
from r1jax.model.quantize import dequantize, is_quantized, quantize, quantize_params
from r1jax.model.spec import init_params
from r1jax.parallel import memory, programs, rollout_programs
from r1jax.parallel.layout import Layout, make_layout, rollout_layout
from r1jax.parallel.rollout_programs import RolloutSpec
from r1jax.rollout.engine import RolloutEngine
from r1jax.types import Environments, Weights
from tests.shared.configs import rl_config
from tests.shared.engines import (
    SAMPLER_TOLERANCE,
    N,
    P,
    forward_routes,
    generate,
    make_engine,
    placed,
    teacher_forced,
    tokens,
)
from tests.shared.plain_rollouts import (
    completion_mask,
    fresh_state,
    join,
    one_update,
    score,
    taught,
    trainer_arrays,
    weighed,
)


@pytest.fixture(scope="module")
def prompts() -> list[tuple[int, list[int]]]:
    rng = np.random.default_rng(0)
    return [(100 + i, rng.integers(8, 200, n).tolist()) for i, n in enumerate([1, 40, 7, 16, 17, 33])]


@pytest.mark.parametrize(("kind", "worst"), [("int8", 0.5 / 127), ("fp8", 2**-4)])
def test_quantized_numbers_are_within_half_a_step(kind, worst):
    """int8 has steps of a 127th of the largest number; e4m3 three bits of mantissa, and below 2^-6 steps of 2^-9."""
    x = jax.random.normal(jax.random.key(0), (6, 40, 9))
    q = quantize(x, (1,), kind)
    assert q.values.dtype == {"int8": jnp.int8, "fp8": jnp.float8_e4m3fn}[kind]
    assert q.scale.shape == (6, 1, 9)
    largest = jnp.abs(x).max(axis=1, keepdims=True)
    step = largest if kind == "int8" else jnp.maximum(jnp.abs(x), largest * 2**-6 / 448)
    assert (jnp.abs(dequantize(q, jnp.float32) - x) <= step * worst * 1.001).all()
    assert (dequantize(quantize(jnp.zeros((3, 4)), (0,), kind), jnp.float32) == 0).all()


def test_every_matrix_of_a_layer_is_quantized_with_a_scale_for_each_output(model, policy):
    quantized = quantize_params(policy[0], model, "int8")
    shapes = {
        jax.tree_util.keystr(path): x.scale.shape
        for path, x in jax.tree_util.tree_leaves_with_path(quantized, is_leaf=is_quantized)
        if is_quantized(x)
    }
    L, E, D, F = 1, 4, 64, 32
    assert shapes["['moe']['feed_forward']['gate_EDF']"] == (L, E, 1, F)
    assert shapes["['moe']['attention']['out_HUD']"] == (L, 1, 1, D)
    assert shapes["['moe']['attention']['kv_b_CHW']"] == (L, 1, 4, 32)
    plain = {
        path[-1].key
        for path, x in jax.tree_util.tree_leaves_with_path(quantized, is_leaf=is_quantized)
        if not is_quantized(x)
    }
    assert plain >= {"embed_VD", "head_DV", "router_DE", "norm_D", "kv_norm_C"}
    assert not plain & {"q_DHM", "kv_a_DX", "gate_DF", "down_FD", "project_2DD"}


@pytest.mark.parametrize("config", [{"weight_dtype": "int8", "cache_dtype": "int8"}], ids=str)
def test_eight_bits_change_a_dense_model_little(one_device, dense_model, dense_policy, prompts, config):
    engine = make_engine(one_device, dense_model, eos=-1, **config)
    arrays, generation = trainer_arrays(prompts, generate(engine, dense_policy, prompts), P, N)
    gap = np.abs(teacher_forced(dense_model, dense_policy, arrays, generation) - generation.logp_BGN)
    assert 1e-4 < gap.mean() < 0.1


@pytest.mark.parametrize(
    "config",
    [{"weight_dtype": "int8"}, pytest.param({"weight_dtype": "fp8"}, marks=pytest.mark.slow), {"cache_dtype": "int8"}],
    ids=str,
)
def test_eight_bits_change_little_and_by_what_they_should(one_device, model, policy, prompts, config):
    """The sampler's log-probabilities are those of the dequantized weights, and near the trainer's; of an 8-bit cache
    only the latter is known."""
    policy = (init_params(jax.random.key(0), dataclasses.replace(model, initializer_range=None)), policy[1])
    engine = make_engine(one_device, model, eos=-1, **config)
    groups = generate(engine, policy, prompts)
    arrays, generation = trainer_arrays(prompts, groups, P, N)
    gap = np.abs(teacher_forced(model, policy, arrays, generation) - generation.logp_BGN)
    assert 1e-4 < gap.mean() < 0.1
    assert tokens(generate(make_engine(one_device, model, eos=-1, slots=3, **config), policy, prompts)) == tokens(
        groups
    )
    if "weight_dtype" in config:
        rounded = dequantize(quantize_params(policy[0], model, config["weight_dtype"]), jnp.float32)
        gap = np.abs(teacher_forced(model, (rounded, policy[1]), arrays, generation) - generation.logp_BGN)
        assert gap.max() < SAMPLER_TOLERANCE


def test_eight_bits_are_held_on_the_device_and_nowhere_expanded_whole(one_device, model, policy):
    c = dataclasses.replace(model, num_hidden_layers=6)
    S, W = 6, 96
    engine = make_engine(one_device, c, steps_per_round=4, weight_dtype="int8", cache_dtype="int8")
    params, bias = programs.abstract_weights(c)
    quantized = jax.eval_shape(lambda p: rollout_programs.rollout_params(p, c, "int8"), params)
    slots = jax.eval_shape(rollout_programs.make_slots(engine.spec, S, W))
    run = rollout_programs.make_decode(engine.spec, W)
    arguments = (Weights(quantized, bias), slots, np.zeros(S, bool), np.full(S, 9, np.int32), engine.draw_settings())
    text = run.lower(*arguments).compile().as_text()
    assert "s8[5,4,64,32]" in text  # gate_EDF of the five layers
    assert "f32[5,4,64,32]" not in text
    assert f"s8[5,{S},{W},48]" in text
    assert f"f32[5,{S},{W},48]" not in text


def test_the_trainer_replays_routes_of_grouped_queries(one_device, grouped_moe_model, grouped_moe_policy, prompts):
    """Of both layers: the sampler's log-probabilities and expert loads, whatever the trainer's router chooses."""
    policy, model = grouped_moe_policy, grouped_moe_model
    groups = generate(make_engine(one_device, model, routing_replay=True, prefill_chunk=7, slots=4), policy, prompts)
    for sample, expected in forward_routes(model, policy, groups[:2]):
        np.testing.assert_array_equal(np.sort(sample.routes), np.sort(expected))
    arrays, generation = trainer_arrays(prompts, groups, P, N)
    rows, routes = join(arrays, generation), generation.routes_BGTLK.reshape(18, P + N, 2, -1)
    other = with_other_router(policy[0], 0.3)
    run = jax.jit(lambda p, routes: score(p, policy[1], rows, N, 1.0, model, routes))
    logp, _, load = run(policy[0], routes)
    gap = np.abs(logp.reshape(generation.logp_BGN.shape) - generation.logp_BGN) * completion_mask(generation)
    assert gap.max() < SAMPLER_TOLERANCE
    assert (np.asarray(run(other, None)[2]["moe"]) != np.asarray(load["moe"])).any()
    np.testing.assert_array_equal(run(other, routes)[2]["moe"], load["moe"])


@pytest.mark.parametrize(
    "config", [pytest.param({}, marks=pytest.mark.slow), {"speculative": True, "prefill_chunk": 7, "slots": 4}], ids=str
)
def test_routes_come_back_with_the_tokens(one_device, model, policy, prompts, config):
    engine = make_engine(one_device, model, routing_replay=True, **config)
    groups = generate(engine, policy, prompts)
    assert tokens(groups) == tokens(generate(make_engine(one_device, model), policy, prompts))
    for sample, expected in forward_routes(model, policy, groups):
        np.testing.assert_array_equal(np.sort(sample.routes), np.sort(expected))
    _, generation = trainer_arrays(prompts, groups, P, N)
    assert generation.routes_BGTLK.shape == (len(prompts), 3, P + N, 1, model.num_experts_per_tok)
    sample, expected = next(forward_routes(model, policy, groups[2:]))
    routes, start = generation.routes_BGTLK[2, 0], P - sample.prompt_length
    assert (routes[:start] == -1).all()
    np.testing.assert_array_equal(np.sort(routes[start : start + len(sample.tokens)]), np.sort(expected))
    assert (routes[start + len(sample.tokens) :] == -1).all()


def test_prescribed_experts_get_this_routers_gate_values(model, policy):
    p = jax.tree.map(lambda w: w[0], policy[0]["moe"]["feed_forward"])
    x = jax.random.normal(jax.random.key(5), (7, model.hidden_size))
    scores = affinities(p, x, model)
    own, _ = choose_experts(scores, policy[1]["moe"][0], model)
    replay = jnp.array([[3, 0]] * 3 + [[-1, -1]] * 4)
    ids, gates = choose_experts(scores, policy[1]["moe"][0], model, replay)
    np.testing.assert_array_equal(ids[:3], replay[:3])
    np.testing.assert_array_equal(ids[3:], own[3:])
    chosen = np.take_along_axis(np.asarray(scores), np.asarray(ids), axis=1)
    expected = chosen / chosen.sum(axis=1, keepdims=True) * model.routed_scaling_factor
    np.testing.assert_allclose(gates, expected, rtol=1e-5)


def with_other_router(params, size: float):
    experts = params["moe"]["feed_forward"]
    noise = size * jax.random.normal(jax.random.key(3), experts["router_DE"].shape)
    changed = experts | {"router_DE": experts["router_DE"] + noise}
    return params | {"moe": params["moe"] | {"feed_forward": changed}}


def test_the_trainer_routes_as_the_rollout_did(one_device, model, policy, prompts):
    """Another router than the sampler's: replayed, every token takes the sampler's experts, and gradients reach it."""
    groups = generate(make_engine(one_device, model, routing_replay=True), policy, prompts)
    arrays, generation = trainer_arrays(prompts, groups, P, N)
    rows, routes = join(arrays, generation), generation.routes_BGTLK.reshape(18, P + N, 1, -1)
    other = with_other_router(policy[0], 0.3)
    run = jax.jit(lambda p, routes: score(p, policy[1], rows, N, 1.0, model, routes))
    mask = np.asarray(completion_mask(generation)).reshape(18, N)

    logp, _, load = run(policy[0], routes)
    np.testing.assert_allclose(logp * mask, run(policy[0], None)[0] * mask, atol=1e-6)
    assert (np.asarray(run(other, None)[2]["moe"]) != np.asarray(load["moe"])).any()
    np.testing.assert_array_equal(run(other, routes)[2]["moe"], load["moe"])
    assert np.abs((run(other, routes)[0] - run(other, None)[0]) * mask).max() > 0.01
    gradient = jax.grad(lambda p: (run(p, routes)[0] * mask).sum())(other)
    assert jnp.abs(gradient["moe"]["feed_forward"]["router_DE"]).max() > 0


def test_a_grpo_step_replays_its_rollouts_routes(one_device, model, policy, prompts):
    """The trainer's router differs a little from the sampler's, as after rounding. Replayed, its log-probabilities are
    nearer to the sampler's; the first ratio is 1 either way."""
    trainer = with_other_router(policy[0], 0.03)
    gaps = {}
    rewards = np.random.default_rng(0).random((6, 3)).astype(np.float32)
    for replay in (False, True):
        engine = make_engine(one_device, model, eos=-1, routing_replay=replay)
        arrays, generation = trainer_arrays(prompts, generate(engine, policy, prompts), P, N)
        config = rl_config(
            engine=engine.config, sampling=engine.sampling, steps=1, prompts_per_step=6, group_size=3,
            row_tokens=2 * (P + N),
        )  # fmt: skip
        samples = taught(arrays, generation, weighed(config, generation, rewards))
        state = fresh_state(one_device, model, (trainer, policy[1]), config)
        _, metrics = one_update(one_device, model, config, state, samples)
        gaps[replay] = metrics["logprob_gap"].value()
        assert metrics["ratio_deviation_max"].value() == 0
    assert gaps[True] < 0.7 * gaps[False]


MESHES = [MeshConfig(data=2, expert=2, tensor=2), MeshConfig(data=4, fsdp=2), MeshConfig(expert=4)]


EVERYTHING = {"weight_dtype": "int8", "speculative": True, "routing_replay": True}
ON_MESHES = [
    pytest.param(MESHES[0], {}, marks=pytest.mark.slow),
    (MESHES[1], {}),
    (MESHES[0], EVERYTHING),
    pytest.param(MESHES[1], EVERYTHING, marks=pytest.mark.slow),
    pytest.param(MESHES[2], EVERYTHING, marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("mesh", "config"), ON_MESHES, ids=str)
def test_rollouts_on_another_mesh_give_the_same_tokens(one_device, model, policy, prompts, mesh, config):
    trainer = make_layout(MeshConfig(fsdp=8))
    expected = generate(make_engine(one_device, model, **config), policy, prompts)
    engine = make_engine(trainer, model, mesh=mesh, **config)
    assert dict(engine.spec.layout.mesh.shape) != dict(trainer.mesh.shape)
    assert tokens(generate(engine, placed(trainer, model, policy), prompts)) == tokens(expected)


def spec(layout: Layout, model, **numbers) -> RolloutSpec:
    config = EngineConfig(**numbers)
    return RolloutSpec(rollout_layout(layout, config), model, config)


def test_weights_are_copied_only_where_they_are_sharded_otherwise(model, policy):
    def buffers(params):
        return [s.data.unsafe_buffer_pointer() for w in jax.tree.leaves(params) for s in w.addressable_shards]

    trainer = make_layout(MeshConfig(fsdp=8))
    weights = placed(trainer, model, policy)
    params, _ = rollout_programs.sync(spec(trainer, model), weights)
    assert buffers(params) == buffers(weights.params)
    other = MeshConfig(expert=4, data=2)
    params, _ = rollout_programs.sync(spec(trainer, model, mesh=other), weights)
    assert params["moe"]["feed_forward"]["gate_EDF"].addressable_shards[0].data.shape == (1, 1, 64, 32)
    params, _ = rollout_programs.sync(spec(trainer, model, mesh=other, weight_dtype="int8"), weights)
    gate = params["moe"]["feed_forward"]["gate_EDF"]
    assert gate.values.addressable_shards[0].data.shape == (1, 1, 64, 32)
    assert gate.scale.addressable_shards[0].data.shape == (1, 1, 1, 32)


@pytest.mark.parametrize("config", [{}, {"cache_dtype": "int8", "weight_dtype": "int8", "speculative": True}], ids=str)
def test_memory_is_known_before_it_is_taken(one_device, model, policy, config):
    engine = make_engine(one_device, model, **config)
    slots = rollout_programs.make_slots(engine.spec, engine.slots, engine.width)()
    held = sum(x.nbytes for x in jax.tree.leaves(slots.cache))
    assert engine.memory["cache"] == held
    params, _ = rollout_programs.sync(engine.spec, Weights(*policy))
    assert engine.memory["copy of the weights"] == sum(x.nbytes for x in jax.tree.leaves(params))
    if not config:  # two layers of 48 numbers of four bytes, as keys and as values, in whole blocks
        assert engine.memory["cache"] == 8 * -(-(P + N + 6) // BLOCK) * BLOCK * 2 * 48 * 4 * 2


@pytest.mark.parametrize("dtype", ["model", "int8"])
def test_rows_that_are_appended_to_are_counted(one_device, model, dtype):
    """The compiled program copies them; its attention has float32 scores, once or twice."""
    long = dataclasses.replace(model, max_position_embeddings=8192)
    sampling, config = SamplingConfig(P, 8192 - P), EngineConfig(slots=16, append_rows=8, cache_dtype=dtype)
    environments = Environments(lambda: None, list)
    engine = RolloutEngine(one_device, long, None, config, sampling, 1, environments=environments)
    *_, append = rollout_stage_programs(engine, placed_weights(one_device, long))
    assert append.name == "append"
    temporary = append.jitted.lower(*append.arguments).compile().memory_analysis().temp_size_in_bytes
    copied, scores = engine.memory["appended rows"], engine.memory["attention scores"]
    assert copied == engine.memory["cache"] // 2
    assert copied + scores / 4 < temporary < 1.1 * (copied + scores)
    assert "appended rows" not in memory.rollout_memory(engine.spec, sampling)


def test_memory_is_divided_over_devices(one_device, model):
    eight = make_layout(MeshConfig(data=4, expert=2))
    # Caches in 8 bits have one form on all devices.
    options = {"slots": 64, "weight_dtype": "int8", "cache_dtype": "int8"}
    specs = (spec(layout, model, **options) for layout in (one_device, eight))
    alone, divided = (memory.rollout_memory(s, SamplingConfig(P, N)) for s in specs)
    assert divided["cache"] * 8 == alone["cache"]
    assert alone["copy of the weights"] / 2 < divided["copy of the weights"] < alone["copy of the weights"]


def test_what_cannot_fit_is_refused_before_anything_is_made(one_device, model):
    """A context of 128K tokens is a number in a config: it fits with few slots, and not with many."""
    long = dataclasses.replace(model, max_position_embeddings=131072)
    needs = memory.rollout_memory(spec(one_device, long, slots=4), SamplingConfig(1024, 131072 - 1024))
    assert needs["cache"] == 4 * (131072 + BLOCK) * 2 * 48 * 4 * 2
    engine = make_engine(one_device, dataclasses.replace(long, max_position_embeddings=2**40), slots=4)
    assert engine.slots == 4
    with pytest.raises(UsageError, match=r"cache \d+.*EngineConfig.slots"):
        make_engine(one_device, dataclasses.replace(long, max_position_embeddings=2**40), slots=64, new=2**30)


def test_out_of_memory_names_the_buffer_and_the_knobs(one_device, model, policy, prompts, monkeypatch):
    """The estimate is silenced, so that the allocation itself fails."""
    monkeypatch.setattr("r1jax.rollout.engine.require_memory", lambda layout, needs: None)
    endless = dataclasses.replace(model, max_position_embeddings=2**40)
    engine = make_engine(one_device, endless, slots=64, new=2**30)
    says = r"cache of 64 slots of 1,073,741,870 tokens \(estimated at 491\d\d\.\d\d GiB.*EXHAUSTED"
    with pytest.raises(RunError, match=says) as caught:
        generate(engine, policy, prompts)
    for knob in ("EngineConfig.slots", "SamplingConfig.max_new_tokens", "EngineConfig.prefill_rows"):
        assert knob in str(caught.value)


def test_replay_without_experts_is_refused(one_device, model):
    dense = dataclasses.replace(model, first_k_dense_replace=2, num_nextn_predict_layers=0)
    with pytest.raises(UsageError, match="routing_replay"):
        make_engine(one_device, dense, routing_replay=True)
