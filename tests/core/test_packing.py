"""Packed, in parts, with padding, in any order: the same loss and gradients as one sample a row, all at once."""

import dataclasses
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from r1jax.config import MeshConfig, OptimizerConfig, RLConfig
from r1jax.model.spec import init_params, init_router_bias
from r1jax.objectives.grpo import grpo_loss
from r1jax.parallel import programs
from r1jax.parallel.layout import make_layout
from r1jax.rollout.packing import (
    BatchShape,
    batch_shape,
    best_fit,
    make_minibatches,
    pack_microbatches,
    packing_metrics,
)
from r1jax.types import Batch, Sample
from tests.shared import configs
from tests.shared.engines import placed
from tests.shared.plain_rollouts import (
    Generation,
    Prompts,
    fresh_state,
    gradients,
    join,
    prepared,
    problem,
    score,
    taught,
)

B, G, P, N = 4, 3, 6, 10
INVARIANCE = 1e-5  # sums in another order, in float32
DOUBLE = 1e-6
REFERENCE_KL = 0.1
NEWER_EMITTER = "use_fusion_emitters" not in os.environ["XLA_FLAGS"]  # conftest.xla_flags


@given(st.lists(st.integers(2, 50), max_size=40), st.integers(50, 130), st.integers(1, 6))
@settings(max_examples=300, deadline=None, derandomize=True)
def test_best_fit_places_everything_once_and_overfills_nothing(sizes, room, most):
    rows = best_fit([np.array([n, 1]) for n in sizes], np.array([room, most]))
    assert sorted(item for row in rows for item in row) == list(range(len(sizes)))
    assert all(0 < len(row) <= most and sum(sizes[i] for i in row) <= room for row in rows)
    if most == 6 and len(rows) > 1:  # of two rows with places left, at most one is half empty
        assert sum(2 * sum(sizes[i] for i in row) <= room and len(row) < most for row in rows) <= 1


def test_best_fit_by_hand():
    # 7 opens a row of 10, 6 another; 4 fills the second, 3 the first, 2 and 2 need a third.
    def fit(tokens, *room):
        return best_fit([np.array([n, 1]) for n in tokens], np.array(room))

    assert fit([3, 6, 2, 7, 4, 2], 10, 9) == [[3, 0], [1, 4], [2, 5]]
    assert fit([3, 3, 3], 10, 2) == [[0, 1], [2]]
    assert fit([], 10, 2) == []


def test_rows_by_hand():
    def sample(response, advantage):
        n = len(response)
        return Sample(
            problem(0),
            tokens=[1, 2, *response],
            loss_mask=[0, 0] + [1] * n,
            logprobs=[0.0, 0.0, *(-float(t) for t in response)],
            advantages=[0.0, 0.0] + [advantage] * n,
        )

    samples = [sample([7], 0.5), sample([8, 9], -1.0)]
    [batch] = pack_microbatches(samples, BatchShape(2, 8, 3, 4))
    assert batch.tokens_BT.tolist() == [[1, 2, 8, 9, 1, 2, 7, 0], [0] * 8]
    assert batch.positions_BT.tolist() == [[0, 1, 2, 3, 0, 1, 2, 0], [0] * 8]
    assert batch.segment_ids_BT.tolist() == [[1, 1, 1, 1, 2, 2, 2, 0], [0] * 8]
    assert batch.loss_mask_BT.astype(int).tolist() == [[0, 0, 1, 1, 0, 0, 1, 0], [0] * 8]
    assert batch.logprobs_sampler_BT.tolist() == [[0, 0, -8, -9, 0, 0, -7, 0], [0] * 8]
    assert batch.advantages_BT.tolist() == [[0, 0, -1.0, -1.0, 0, 0, 0.5, 0], [0] * 8]
    assert batch.max_segments == 3
    assert batch.trained_BR.tolist() == [[2, 3, 6, 8], [8] * 4]
    assert batch.ends_BT is batch.routes_BTLK is batch.sampling_masks_BTI is None
    metrics = packing_metrics(samples, [batch])
    assert (metrics["packing_efficiency"].value(), metrics["shared_tokens"].value()) == (7 / 16, 0)


def test_a_shared_prompt_by_hand():
    """Once, but for its last tokens, which each sample has for itself; other prompts and single samples as ever."""

    def sample(i, prompt, response):
        n = len(prompt), len(response)
        zeros, ones = [0] * n[0], [1] * n[1]
        return Sample(
            problem(i), tokens=[*prompt, *response], loss_mask=zeros + ones, logprobs=[0.0] * sum(n),
            advantages=[0.0] * sum(n), routes=np.array([*prompt, *response])[:-1, None, None],
        )  # fmt: skip

    samples = [sample(0, [1, 2, 3, 4], [7]), sample(1, [1, 2, 5, 4], [6]), sample(0, [1, 2, 3, 4], [8, 9])]
    [batch] = pack_microbatches(samples, BatchShape(1, 16, 3, 5, routes=(1, 1), own_prompt=2))
    assert batch.tokens_BT.tolist() == [[1, 2, 3, 4, 7, 3, 4, 8, 9, 1, 2, 5, 4, 6, 0, 0]]
    assert batch.positions_BT.tolist() == [[0, 1, 2, 3, 4, 2, 3, 4, 5, 0, 1, 2, 3, 4, 0, 0]]
    assert batch.segment_ids_BT.tolist() == [[4, 4, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3, 3, 0, 0]]
    assert batch.ends_BT.tolist() == [[9, 9, 5, 5, 5, 9, 9, 9, 9, 14, 14, 14, 14, 14, 15, 16]]
    assert batch.trained_BR.tolist() == [[4, 7, 8, 13, 16]]
    assert batch.routes_BTLK[0, :, 0, 0].tolist() == [1, 2, 3, 4, -1, 3, 4, 8, -1, 1, 2, 5, 4, -1, -1, -1]
    assert packing_metrics(samples, [batch])["shared_tokens"].value() == 2 / 16
    [by_path] = pack_microbatches(samples, BatchShape(1, 16, 3, 5, routes=(1, 1), own_prompt=2, path=6))
    paths = [[0, 1, 2, 3, 4, 16], [0, 1, 5, 6, 7, 8], [9, 10, 11, 12, 13, 16]]
    assert by_path.paths_BsS.tolist() == [paths]
    places = by_path.places_BT[0, :14]
    assert np.ravel(paths)[places].tolist() == list(range(14))
    apart = pack_microbatches(samples, BatchShape(1, 8, 3, 5, routes=(1, 1), own_prompt=2))  # no room for both samples
    assert [b.positions_BT[0].tolist() for b in apart] == [[0, 1, 2, 3, 4, 5, 0, 0], *[[0, 1, 2, 3, 4, 0, 0, 0]] * 2]


def test_minibatches_of_shared_prompts_are_of_whole_groups():
    samples = [Sample(problem(i), i, g) for i in range(6) for g in range(4)]
    config = rl_config(share_prompts=True, prompts_per_step=6, group_size=4, minibatches_per_rollout=3, num_prompts=6)
    parts = make_minibatches(samples, config, (0, 1))
    assert [len({s.group for s in part}) for part in parts] == [2, 2, 2]
    assert sorted((s.group, s.index) for part in parts for s in part) == [(s.group, s.index) for s in samples]
    assert make_minibatches(samples, config, (0, 2)) != parts


def test_routes_and_sampling_masks_by_hand():
    """Both stand at their tokens; the last token of a sample may have no route, since nothing follows it."""
    sample = Sample(
        problem(0), tokens=[1, 2, 3], loss_mask=[0, 1, 1], logprobs=[0.0] * 3, advantages=[0.0] * 3,
        routes=np.array([[[4]], [[5]]]), sampling_masks=np.array([[-1, -1], [2, 9], [3, -1]]),
    )  # fmt: skip
    [batch] = pack_microbatches([sample, sample], BatchShape(1, 7, 2, 4, routes=(1, 1), mask_ids=2))
    assert batch.routes_BTLK[0, :, 0, 0].tolist() == [4, 5, -1, 4, 5, -1, -1]
    assert batch.sampling_masks_BTI[0].tolist() == [[-1, -1], [2, 9], [3, -1]] * 2 + [[-1, -1]]


def rl_config(**changes) -> RLConfig:
    numbers = dict(
        prompts_per_step=B, group_size=G, max_prompt_tokens=P, max_new_tokens=N, kl_coef=REFERENCE_KL, clip_low=0.05,
        clip_high=0.05,
    )  # fmt: skip
    return configs.rl_config(**numbers | changes)


@pytest.fixture(scope="module")
def rollout(model) -> tuple[Prompts, Generation, np.ndarray]:
    """Prompts and responses of all lengths, as if another policy had drawn them, and their advantages."""
    rng = np.random.default_rng(0)
    tokens = np.zeros((B, P), np.int32)
    lengths = np.asarray([5, 1, 3, 6], np.int32)
    for row, n in zip(tokens, lengths, strict=True):
        row[P - n :] = rng.integers(3, 200, n)
    generation = Generation(
        tokens_BGN=rng.integers(0, 200, (B, G, N)).astype(np.int32),
        logp_BGN=(-6 + rng.standard_normal((B, G, N))).astype(np.float32),
        length_BG=rng.integers(1, N + 1, (B, G)).astype(np.int32),
        finished_BG=np.ones((B, G), bool),
    )
    return Prompts(tokens, lengths, np.arange(B, dtype=np.int32)), generation, rng.standard_normal((B, G))


@pytest.fixture(scope="module")
def states(model, policy):
    """A policy, and another one that is the reference and, some updates ago, was the policy."""
    key = jax.random.key(7)
    other = jax.tree.map(lambda w: w + 0.02 * jax.random.normal(key, w.shape), policy[0])
    return policy, (other, policy[1])


VARIANTS = {
    "paper": {},
    "token mean": {"aggregation": "token_mean", "kl_correction": True},
    "constant length": {"aggregation": "constant_length", "advantage": "centred"},
    "sequence ratio": {"ratio": "sequence", "clip_low": 0.01, "clip_high": 0.01},
    "cispo": {"objective": "cispo", "aggregation": "token_mean", "clip_low": 1.0, "clip_high": 4.0},
    "importance": {"importance": "sequence", "aggregation": "token_mean"},
}
SHAPES = {
    "one a row": {},
    "packed": {"row_tokens": 40},
    "packed, in parts": {"row_tokens": 33, "microbatch_rows": 2},
    "one at a time": {"microbatch_rows": 1},
    "padded": {"microbatch_rows": 17},
    "shared prompts": {"share_prompts": True},
    "shared prompts, in parts": {"share_prompts": True, "row_tokens": 33, "microbatch_rows": 2},
}


def old_policys(batches, layout, model, states, config, samples):
    """The batches with the old log-probabilities of the other policy, so that ratios are not 1."""
    state = fresh_state(layout, model, states[1], config)
    older, _ = prepared(layout, model, config, state, samples)
    return [dataclasses.replace(b, logprobs_old_BT=o.logprobs_old_BT) for b, o in zip(batches, older, strict=True)]


def mean_gradients(layout, model, states, config, samples):
    """Gradients by tensor, metrics and expert loads, of all samples."""
    state = fresh_state(layout, model, states[0], config, reference=states[1])
    batches, _ = prepared(layout, model, config, state, samples)
    batches = old_policys(batches, layout, model, states, config, samples)
    total = gradients(layout, model, config, state.train, batches)
    modules = {"mtp": jax.tree.map(lambda x: x / total.mtp_weight, total.sums["mtp"])}
    means = jax.device_get(jax.tree.map(lambda x: x / total.weight, without_mtp(total.sums)) | modules)
    return means, {name: metric.value() for name, metric in total.metrics.items()}, jax.device_get(total.load)


def assert_close(a, b, tolerance=INVARIANCE):
    """Tensor by tensor, in norm."""
    expected = {jax.tree_util.keystr(path): y for path, y in jax.tree_util.tree_leaves_with_path(b)}
    found = {jax.tree_util.keystr(path): x for path, x in jax.tree_util.tree_leaves_with_path(a)}
    assert found.keys() == expected.keys()
    for name, y in expected.items():
        assert np.linalg.norm(found[name] - y) <= tolerance * np.linalg.norm(y), name


def unpacked_gradients(model, states, config, rollout):
    """The loss as it is written, on one sample a row, all of them in one batch, and no code of packing."""
    prompts, generation, advantage_BG = rollout
    rows = join(prompts, generation)
    mask_BN = jnp.arange(N) < generation.length_BG.reshape(-1, 1)
    plain = dataclasses.replace(config.loss, importance="none")

    def wide(values_BN):  # behind the prompts
        return jnp.pad(jnp.broadcast_to(values_BN, mask_BN.shape), ((0, 0), (P, 0)))

    def logp(params):
        return score(params, states[0][1], rows, N, 1.0, model)[0]

    @jax.jit
    def compute(params, other):
        old = reference = logp(other)
        weights = 1.0
        if config.loss.importance == "sequence":
            gap = ((old - generation.logp_BGN.reshape(-1, N)) * mask_BN).sum(axis=1, keepdims=True)
            weights = jnp.minimum(jnp.exp(gap), config.loss.importance_limit)
        batch = Batch(
            rows.tokens_BT,
            rows.positions_BT,
            rows.segment_ids_BT,
            wide(mask_BN),
            logprobs_sampler_BT=wide(0.0),
            advantages_BT=wide(weights * advantage_BG.reshape(-1, 1)),  # a weight of the objective is one of these
            logprobs_old_BT=wide(old),
            logprobs_ref_BT=wide(reference),
        )

        def loss(params):
            return grpo_loss(wide(logp(params)), batch, plain, N)[0].mean()

        return jax.value_and_grad(loss)(params)

    value, grads = compute(states[0][0], states[1][0])
    return float(value), jax.device_get(grads)


QUICK = [("paper", "packed, in parts"), ("paper", "shared prompts"), ("importance", "shared prompts, in parts")]
SLOW = ("sequence ratio", "token mean", "constant length")
QUICK += [pytest.param(v, "packed, in parts", marks=pytest.mark.slow) for v in SLOW]


@pytest.mark.parametrize(("variant", "shape"), QUICK)
def test_loss_and_gradients_equal_unpacked_ones(one_device, model, states, rollout, variant, shape):
    check_against_unpacked(one_device, model, states, rollout, variant, shape, INVARIANCE)


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("shape", SHAPES)
def test_they_are_equal_in_double_precision(one_device, model, states, rollout, variant, shape, monkeypatch):
    """All shapes of all variants, ten times closer: in float32, rounding alone takes single tensors to 1.3e-5.

    That is with weights as large as the test's, and as many parts as there are samples. What packing gets or gives in
    float32 (advantages, rotary frequencies) stays that, and is 2e-8 of the gradients.
    """
    monkeypatch.setattr(jnp, "float32", jnp.float64)
    double = dataclasses.replace(model, attention="full")
    for field in ("dtype", "param_dtype"):
        object.__setattr__(double, field, "float64")  # no choice of a user's
    with jax.enable_x64(True):
        states = jax.tree.map(lambda x: jnp.asarray(np.asarray(x), jnp.float64), states)
        check_against_unpacked(one_device, double, states, rollout, variant, shape, DOUBLE)


def check_against_unpacked(one_device, model, states, rollout, variant, shape, tolerance):
    """Also in another order: groups and minibatches may be dealt out in any."""
    samples = taught(*rollout)
    config = rl_config(**VARIANTS[variant] | SHAPES[shape])
    loss, plain = unpacked_gradients(model, states, config, rollout)
    shuffled = [samples[i] for i in np.random.default_rng(3).permutation(len(samples))]
    found, metrics, _ = mean_gradients(one_device, model, states, config, shuffled)
    assert metrics["loss"] == pytest.approx(loss, rel=tolerance, abs=tolerance)
    assert metrics["clip_fraction_low"] + metrics["clip_fraction_high"] > 0  # ratios on both sides of the clip
    assert_close(without_mtp(found), without_mtp(plain), tolerance)


@pytest.mark.parametrize("changes", [{}, {"importance": "token"}, {"old_logprobs": "sampler"}], ids=str)
def test_old_log_probabilities_need_no_pass_before_the_first_update(one_device, model, policy, rollout, changes):
    """They are the new ones, held constant: the first ratio is 1 by construction, and all else as with a pass."""
    config, samples = rl_config(**changes), taught(*rollout)
    state = fresh_state(one_device, model, policy, config)
    batches, gap = prepared(one_device, model, config, state, samples)
    known = gradients(one_device, model, config, state.train, batches)
    without = gradients(
        one_device, model, config, state.train, [dataclasses.replace(b, logprobs_old_BT=None) for b in batches]
    )
    found = {name: metric.value() for name, metric in without.metrics.items()}
    assert found == pytest.approx({name: x.value() for name, x in (known.metrics | gap).items()}, rel=1e-5, abs=1e-6)
    if "old_logprobs" not in changes:
        assert found["ratio_min"] == found["ratio_max"] == 1
    assert_close(without.sums, known.sums)


PARTS = ["one at a time", "shared prompts, in parts", pytest.param("padded", marks=pytest.mark.slow)]


@pytest.mark.parametrize("shape", PARTS)
def test_modules_metrics_and_loads_are_the_same_in_parts(one_device, model, states, rollout, shape):
    whole = mean_gradients(one_device, model, states, rl_config(), taught(*rollout))
    parts = mean_gradients(one_device, model, states, rl_config(**SHAPES[shape]), taught(*rollout))
    assert_close(parts[0], whole[0])
    assert parts[1] == pytest.approx(whole[1], rel=1e-4, abs=1e-5)
    for name, load_LE in whole[2].items():
        if "shared" in shape:  # a prompt that is run once loads its experts once
            assert parts[2][name].sum() < load_LE.sum()
        else:
            np.testing.assert_array_equal(parts[2][name], load_LE)


def without_mtp(tree: dict) -> dict:
    return {name: x for name, x in tree.items() if name != "mtp"}


def test_samples_that_do_not_divide_into_minibatches_or_devices(model, policy, rollout):
    """8 devices, microbatches of 8 rows, 7 samples: the same update as on one device."""
    samples = taught(*rollout)[:7]
    after = []
    for layout in (make_layout(MeshConfig(data=1), jax.devices()[:1]), make_layout(MeshConfig(data=4, fsdp=2))):
        config = rl_config(microbatch_rows=3)
        state = fresh_state(layout, model, placed(layout, model, policy), config)
        batches, _ = prepared(layout, model, config, state, samples)
        total = gradients(layout, model, config, state.train, batches)
        after.append(jax.device_get(total.sums))
    assert_close(after[1], after[0])


# ---- what else learns beside the policy


def update(layout, model, policy, samples, **changes):
    config = rl_config(optimizer=OptimizerConfig(1e-2, weight_decay=0.1, **changes))
    state = fresh_state(layout, model, policy, config)
    batches, _ = prepared(layout, model, config, state, samples)
    total = gradients(layout, model, config, state.train, batches)
    train, metrics = programs.make_rl_update(layout, model, config.optimizer)(
        state.train, total, np.float32(config.optimizer.learning_rate)
    )
    return jax.device_get((train, total.sums)), {name: metric.value() for name, metric in metrics.items()}


def same(a, b) -> bool:
    return all(jax.tree.leaves(jax.tree.map(lambda x, y: bool((x == y).all()), a, b)))


def test_the_draft_modules_learn_on_their_own(one_device, model, policy, rollout):
    """Trained, frozen or off, they change nothing that the policy draws with; frozen, not even by weight decay.

    To the last bit; with the older emitter, which fuses the three programs otherwise, to rounding.
    """
    before, samples = jax.device_get(policy), taught(*rollout)
    (trained, train_sums), train_metrics = update(one_device, model, policy, samples, mtp="train")
    (frozen, freeze_sums), freeze_metrics = update(one_device, model, policy, samples, mtp="freeze")
    (off, off_sums), off_metrics = update(one_device, model, policy, samples, mtp="off")
    assert_close(without_mtp(train_sums), without_mtp(off_sums))
    assert_close(without_mtp(freeze_sums), without_mtp(off_sums))
    if NEWER_EMITTER:
        assert same(without_mtp(trained.params), without_mtp(off.params))
        assert same(without_mtp(frozen.params), without_mtp(off.params))
    assert not same(trained.params["mtp"], before[0]["mtp"])
    assert same(frozen.params["mtp"], before[0]["mtp"])
    assert same(off.params["mtp"], before[0]["mtp"])
    assert not same(trained.router_bias["mtp"], before[1]["mtp"])
    assert same(frozen.router_bias["mtp"], before[1]["mtp"])
    assert train_metrics["mtp_loss"] == freeze_metrics["mtp_loss"] > 0
    assert "mtp_loss" not in off_metrics


@pytest.mark.slow
@pytest.mark.skipif(NEWER_EMITTER, reason="the test before is of the newer emitter")
def test_with_the_newer_emitter_they_change_no_bit():
    test = f"{__file__}::test_the_draft_modules_learn_on_their_own"
    newer = os.environ | {"R1JAX_TEST_NEWER_EMITTER": "1"}
    done = subprocess.run([sys.executable, "-m", "pytest", "-n", "0", test], env=newer, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_the_draft_modules_learn_to_draft_the_samples(one_device, model, policy, rollout):
    config = rl_config(optimizer=OptimizerConfig(1e-2), kl_coef=0.0)
    prompts, generation, advantage_BG = rollout
    samples = taught(prompts, generation, 0 * advantage_BG)  # nothing else moves
    state, losses = fresh_state(one_device, model, policy, config), []
    for _ in range(8):
        batches, _ = prepared(one_device, model, config, state, samples)
        total = gradients(one_device, model, config, state.train, batches)
        train, metrics = programs.make_rl_update(one_device, model, config.optimizer)(
            state.train, total, np.float32(1e-2)
        )
        state = dataclasses.replace(state, train=train)
        losses.append(metrics["mtp_loss"].value())
    assert losses[-1] < 0.7 * losses[0]
    assert same(without_mtp(state.train.params), without_mtp(policy[0]))


def test_router_bias_switches(one_device, model, policy, rollout):
    before, samples = jax.device_get(policy), taught(*rollout)
    (trained, _), _ = update(one_device, model, policy, samples, router_bias="train")
    (frozen, _), _ = update(one_device, model, policy, samples, router_bias="freeze")
    (off, _), _ = update(one_device, model, policy, samples, router_bias="off")
    moved = np.abs(trained.router_bias["moe"] - before[1]["moe"])
    np.testing.assert_allclose(moved[moved > 0], OptimizerConfig(1.0).router_bias_speed, rtol=1e-3)
    assert (moved > 0).any()
    assert same(frozen.router_bias, before[1])
    assert all((bias == 0).all() for bias in off.router_bias.values())


def test_models_without_experts_or_modules_are_trained_too(one_device, model, rollout):
    dense = dataclasses.replace(model, first_k_dense_replace=2, num_nextn_predict_layers=0)
    policy = init_params(jax.random.key(0), dense), init_router_bias(dense)
    (after, _), metrics = update(one_device, dense, policy, taught(*rollout))
    assert not same(after.params, jax.device_get(policy[0]))
    assert "mtp_loss" not in metrics
    assert "expert_load_max" not in metrics


def test_a_row_holds_at_least_the_longest_sample(model):
    assert batch_shape(rl_config(), model) == BatchShape(12, 16, 1, 10)
    assert batch_shape(rl_config(row_tokens=10), model) == BatchShape(12, 16, 8, 10)
    assert batch_shape(rl_config(row_tokens=48, minibatches_per_rollout=2), model) == BatchShape(2, 48, 24, 30)
    assert batch_shape(rl_config(row_tokens=48, microbatch_rows=5), model) == BatchShape(5, 48, 24, 30)
    assert batch_shape(rl_config(row_tokens=48, microbatch_rows=5), model, 8) == BatchShape(8, 48, 24, 30)


def test_a_row_of_shared_prompts_is_a_group(model):
    """A prompt of 6, but for the last 2 tokens, and 3 samples of 2 + 10; the model has one MTP module."""
    assert batch_shape(rl_config(share_prompts=True), model) == BatchShape(4, 40, 3, 30, own_prompt=2)
    with pytest.raises(ValueError, match="minibatches_per_rollout"):
        rl_config(share_prompts=True, minibatches_per_rollout=5)
