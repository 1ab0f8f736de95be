"""GRPO and the losses against numbers worked out by hand."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1jax.config import LossConfig, OptimizerConfig
from r1jax.model.transformer import shift_targets
from r1jax.objectives import grpo
from r1jax.objectives.language_model import LossTerms, cross_entropy, language_model_loss
from r1jax.objectives.logprobs import token_logprobs
from r1jax.objectives.metrics import Max, Mean, merge_metrics
from r1jax.objectives.optimizer import learning_rate, make_optimizer
from r1jax.parallel import programs
from r1jax.parallel.transfers import snapshot
from r1jax.rollout.advantages import (
    ADVANTAGES,
    centred_advantages,
    group_advantages,
    leave_one_out_advantages,
    overlong_penalty,
)
from r1jax.types import TokenBatch, Weights
from tests.shared.loss_batches import LAYOUTS, pack


def array(rows) -> np.ndarray:
    return np.asarray(rows, np.float32)


def test_group_advantages_use_the_population_standard_deviation():
    advantages = group_advantages(array([[1.0, 0.0, 0.0, 0.0], [1.2, 1.2, 0.2, 0.2]]), np.ones((2, 4)))
    # mean 1/4, population variance 3/16: (1 - 1/4) / sqrt(3/16) = sqrt(3); the sample formula would give 1.5
    np.testing.assert_allclose(advantages[0], [math.sqrt(3), *[-1 / math.sqrt(3)] * 3], rtol=1e-4)
    np.testing.assert_allclose(advantages[1], [1, 1, -1, -1], rtol=1e-4)


def test_a_group_without_signal_has_no_advantage():
    for reward in (0.2, 1.2, 2.2):
        for size in (4, 6, 12, 16):  # means of some of these are off by a rounding
            for advantages in ADVANTAGES.values():
                assert not advantages(np.full((1, size), reward, np.float32), np.ones((1, size), np.float32)).any()


def test_advantages_follow_the_order_of_the_group():
    rewards = array([[0.3, 1.0, 0.0, 0.7]])
    order = np.array([2, 0, 3, 1])
    for advantages in ADVANTAGES.values():
        ones = np.ones((1, 4))
        np.testing.assert_allclose(advantages(rewards[:, order], ones), advantages(rewards, ones)[:, order], rtol=1e-5)


def test_advantages_by_hand():
    rewards = array([[1.0, 0.0, 0.5, 9.0]])
    counts = array([[1.0, 1.0, 1.0, 0.0]])  # the last was cut off, and counts in no mean
    np.testing.assert_allclose(centred_advantages(rewards, counts), [[0.5, -0.5, 0.0, 0.0]], atol=1e-6)
    np.testing.assert_allclose(leave_one_out_advantages(rewards, counts), [[0.75, -0.75, 0.0, 0.0]], atol=1e-6)
    deviation = math.sqrt(0.5 / 3)
    np.testing.assert_allclose(
        group_advantages(rewards, counts), [[0.5 / deviation, -0.5 / deviation, 0.0, 0.0]], rtol=1e-5, atol=1e-6
    )
    first_cut = centred_advantages(array([[9.0, 0.2, 0.2]]), array([[0.0, 1.0, 1.0]]))
    assert not first_cut.any()
    assert not group_advantages(rewards, np.zeros((1, 4))).any()


def test_the_overlong_penalty_falls_over_the_buffer():
    lengths = array([[10, 80, 90, 95, 100]])
    np.testing.assert_allclose(overlong_penalty(lengths, 100, 0.2), [[0, 0, -0.5, -0.75, -1]], atol=1e-6)
    assert not overlong_penalty(lengths, 100, 0).any()


@pytest.mark.parametrize(
    ("ratio", "advantage", "expected"),
    [
        (1.5, 1.0, 1.2),  # a gain is cut at 1 + epsilon
        (0.5, 1.0, 0.5),  # a loss is not
        (0.5, -1.0, -0.8),
        (1.5, -1.0, -1.5),
        (1.1, 2.0, 2.2),
    ],
)
def test_clipped_objective(ratio, advantage, expected):
    value = grpo.clipped_objective(jnp.zeros((1, 1)), jnp.full((1, 1), ratio), jnp.full((1, 1), advantage), 0.2, 0.2)
    assert float(value[0, 0]) == pytest.approx(expected)


def test_kl_k3_is_unbiased_and_never_negative():
    p, q = np.array([0.7, 0.2, 0.1]), np.array([0.5, 0.3, 0.2])
    estimate = np.asarray(grpo.kl_k3(jnp.log(p), jnp.log(q)))
    assert (estimate >= 0).all()
    assert (p * estimate).sum() == pytest.approx((p * np.log(p / q)).sum(), rel=1e-5)


def test_kl_k3_pulls_towards_the_reference():
    """Its expected gradient is that of KL; that of the k1 estimator is zero, which is why the loss doesn't use it."""
    logits, reference = jnp.array([1.0, 0.0, -0.5]), jax.nn.log_softmax(jnp.array([0.0, 0.5, 0.0]))

    def expected_estimate(logits, estimator):
        p = jax.lax.stop_gradient(jax.nn.softmax(logits))
        return (p * estimator(jax.nn.log_softmax(logits), reference)).sum()

    def reverse(logits):  # KL(ref || new)'s gradient is what k3 differentiates to when samples come from the policy
        return -(jnp.exp(reference) * jax.nn.log_softmax(logits)).sum()

    k3 = jax.grad(expected_estimate)(logits, grpo.kl_k3)
    k1 = jax.grad(expected_estimate)(logits, lambda new, ref: new - ref)
    np.testing.assert_allclose(k3, jax.grad(reverse)(logits), atol=1e-6)
    np.testing.assert_allclose(k1, jnp.zeros(3), atol=1e-6)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_aggregations_divide_by_what_they_say(layout):
    values = array([[1.0, 2.0, 3.0, 9.0], [10.0, 9.0, 9.0, 9.0], [9.0, 9.0, 9.0, 9.0]])
    mask = array([[1.0, 1.0, 1.0, 0.0], [1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
    packed = pack(layout, mask, np.zeros(3))
    values, batch = packed.place(values), packed.batch
    assert grpo.token_mean(values, batch).value() == pytest.approx(16 / 4)
    assert grpo.sequence_mean(values, batch, 4).value() == pytest.approx((2 + 10) / 2)
    assert grpo.constant_length(values, batch, 5).value() == pytest.approx(16 / (2 * 5))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("aggregation", sorted(grpo.AGGREGATIONS))
def test_loss_of_parts_adds_up_to_the_loss_of_the_whole(aggregation, layout):
    rng = np.random.default_rng(0)
    logp, old, ref = (-rng.random((6, 5)) for _ in range(3))
    advantage = rng.normal(size=6)
    mask = np.arange(5) < rng.integers(1, 6, (6, 1))

    def loss(rows):
        packed = pack(layout, mask[rows], advantage[rows], old=old[rows], ref=ref[rows])
        config = LossConfig(kl_coef=0.1, aggregation=aggregation)
        return grpo.grpo_loss(packed.place(logp[rows]), packed.batch, config, 12)

    with jax.enable_x64(True):  # the loss is a small difference of its terms
        whole, whole_metrics = loss(slice(None))
        parts = [loss(slice(i, i + 2)) for i in (0, 2, 4)]
        merged = parts[0][0].merge(parts[1][0]).merge(parts[2][0])
        metrics = merge_metrics(merge_metrics(parts[0][1], parts[1][1]), parts[2][1])
    assert merged.value() == pytest.approx(whole.value(), rel=1e-5)
    for name in whole_metrics:
        assert metrics[name].value() == pytest.approx(whole_metrics[name].value(), rel=1e-5), name


def test_what_is_masked_changes_nothing():
    packed = pack("one a row", array([[1.0, 1.0, 0.0]]), np.ones(1), ref=0.0)
    logp = jnp.where(packed.batch.loss_mask_BT, 0.0, -500.0)  # exp(500) is infinite
    c = LossConfig(kl_coef=0.1, aggregation="token_mean")
    loss, metrics = grpo.grpo_loss(logp, packed.batch, c, 12)
    assert loss.value() == pytest.approx(-1.0)
    assert metrics["clip_fraction_low"].value() == metrics["clip_fraction_high"].value() == 0
    assert metrics["ratio_deviation_max"].value() == 0


def test_token_logprobs_and_entropy_at_a_temperature():
    logits = jnp.array([[[0.0, math.log(4.0)]]])
    logp, entropy = token_logprobs(logits, jnp.array([[1]]), temperature=2.0)  # probabilities 1/3 and 2/3
    assert float(logp[0, 0]) == pytest.approx(math.log(2 / 3))
    assert float(entropy[0, 0]) == pytest.approx(-(1 / 3 * math.log(1 / 3) + 2 / 3 * math.log(2 / 3)))


def test_gradients_of_token_logprobs_and_entropy():
    """By JAX from the definition; the entropy's too, which a fork's loss may read."""
    logits = jax.random.normal(jax.random.key(0), (2, 3, 7)) * 3
    tokens, weights = jnp.array([[0, 6, 3], [1, 1, 5]]), jax.random.normal(jax.random.key(1), (2, 2, 3))

    def definition(logits):
        logp = jax.nn.log_softmax(logits / 0.7)
        return jnp.take_along_axis(logp, tokens[..., None], axis=-1)[..., 0], -(jnp.exp(logp) * logp).sum(axis=-1)

    def total(function):
        return lambda logits: sum((w * x).sum() for w, x in zip(weights, function(logits), strict=True))

    ours, theirs = (
        jax.value_and_grad(total(f))(logits) for f in (lambda x: token_logprobs(x, tokens, 0.7), definition)
    )
    np.testing.assert_allclose(ours[0], theirs[0], rtol=1e-5)
    np.testing.assert_allclose(ours[1], theirs[1], rtol=1e-4, atol=1e-6)


DRAFTS = [("train", True), *(pytest.param(switch, False, marks=pytest.mark.slow) for switch in ("freeze", "off"))]


@pytest.mark.parametrize(("switch", "moves"), DRAFTS)
def test_draft_modules_learn_from_the_corpus_when_they_are_to(one_device, model, policy, switch, moves):
    """Frozen or off, neither they nor, through them, the model learns from their loss; weight decay is no exception."""
    tokens = np.random.default_rng(0).integers(3, 200, (4, 12)).astype(np.int32)
    batch = TokenBatch(tokens, np.tile(np.arange(12, dtype=np.int32), (4, 1)), np.ones((4, 12), np.int32))
    optimizer = OptimizerConfig(1e-2, weight_decay=0.1, clip_norm=1e9, mtp=switch)
    state = programs.make_start_training(one_device, model, optimizer)(snapshot(Weights(*policy)))
    step = programs.make_language_model_step(one_device, model, optimizer, LossTerms(switch, 1.0, 1e-4))
    state, metrics = step(state, batch, np.float32(1e-2))
    before, after = policy[0], state.params

    def same(a, b) -> bool:
        return all(jax.tree.leaves(jax.tree.map(lambda x, y: bool((x == y).all()), a, b)))

    assert same(after["mtp"], before["mtp"]) is not moves
    assert same(state.router_bias["mtp"], policy[1]["mtp"]) is not moves
    assert ("mtp_loss" in metrics) is (switch != "off")
    loss = lambda p: language_model_loss(p, policy[1], batch, LossTerms(switch, 1.0, 1e-4), model)[0]  # noqa: E731
    main = lambda p: language_model_loss(p, policy[1], batch, LossTerms("off", 0.0, 1e-4), model)[0]  # noqa: E731
    embedding, alone = (jax.jit(jax.grad(f))(before)["embed_VD"] for f in (loss, main))
    assert bool(jnp.allclose(embedding, alone, atol=1e-7)) is not moves


def test_targets_stay_within_their_segment():
    batch = TokenBatch(
        tokens_BT=jnp.array([[5, 6, 7, 8, 9, 0]]),
        positions_BT=jnp.array([[0, 1, 2, 0, 1, 0]]),
        segment_ids_BT=jnp.array([[1, 1, 1, 2, 2, 0]]),
    )
    targets, mask = shift_targets(batch, 1)
    assert mask.tolist() == [[1, 1, 0, 1, 0, 0]]
    assert targets[0, [0, 1, 3]].tolist() == [6, 7, 9]
    assert shift_targets(batch, 2)[1].tolist() == [[1, 0, 0, 0, 0, 0]]


def test_cross_entropy_of_a_uniform_head_is_log_v(model):
    batch = TokenBatch(jnp.array([[1, 2, 3]]), jnp.array([[0, 1, 2]]), jnp.ones((1, 3), jnp.int32))
    params = {"head_DV": jnp.zeros((4, 11)), "embed_VD": jnp.zeros((11, 4))}
    loss = cross_entropy(params, jnp.ones((1, 3, 4)), batch, 1, dataclasses.replace(model, tokenizer_size=None))
    assert loss.value() == pytest.approx(math.log(11))
    assert float(loss.weight) == 2


def test_learning_rate_warms_up_from_its_first_step_and_ends_at_the_fraction():
    config = OptimizerConfig(learning_rate=1.0, warmup_steps=4, final_fraction=0.1)
    np.testing.assert_allclose([learning_rate(config, i, 104) for i in range(4)], [0.25, 0.5, 0.75, 1.0], rtol=1e-6)
    assert learning_rate(config, 4 + 50, 104) == pytest.approx(0.55, rel=1e-5)  # half way down the cosine
    assert learning_rate(config, 104, 104) == pytest.approx(0.1, rel=1e-5)


def test_metrics_keep_their_kind():
    merged = merge_metrics({"a": Mean(6.0, 2.0), "b": Max(3.0)}, {"a": Mean(0.0, 4.0), "b": Max(5.0), "c": Max(1.0)})
    assert {name: metric.value() for name, metric in merged.items()} == {"a": 1.0, "b": 5.0, "c": 1.0}


def test_moments_in_bfloat16_are_those_of_float32_rounded(model, policy):
    """Stored in half the bytes, and computed with in float32."""
    grads = jax.tree.map(lambda x: 0.01 * jnp.cos(jnp.arange(x.size)).reshape(x.shape), policy[0])
    updates, moments = {}, {}
    for dtype in (None, "bfloat16"):
        optimizer = make_optimizer(OptimizerConfig(1e-3, moment_dtype=dtype), model)
        state = optimizer.init(policy[0])
        for _ in range(3):
            updates[dtype], state = jax.jit(optimizer.update)(grads, state, policy[0])
        moments[dtype] = [x for x in jax.tree.leaves(state) if x.ndim]
    assert {x.dtype for x in moments[None]} == {jnp.dtype("float32")}
    assert {x.dtype for x in moments["bfloat16"]} == {jnp.dtype("bfloat16")}
    for a, b in zip(moments["bfloat16"], moments[None], strict=True):  # each of three steps rounds to 8 bits
        np.testing.assert_allclose(np.asarray(a, np.float32), b, rtol=3 * 2**-8, atol=1e-12)
    for a, b in zip(jax.tree.leaves(updates["bfloat16"]), jax.tree.leaves(updates[None]), strict=True):
        np.testing.assert_allclose(1e-3 * a, 1e-3 * b, rtol=0.02, atol=1e-8)  # as they are applied


def test_an_update_keeps_the_dtypes_of_its_state(model, policy):
    """Weights in bfloat16, gradients in float32: else the second update would be another program than the first."""
    optimizer = make_optimizer(OptimizerConfig(1e-3), dataclasses.replace(model, param_dtype="bfloat16"))
    params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), policy[0])
    state = optimizer.init(params)
    _, after = jax.eval_shape(optimizer.update, policy[0], state, params)
    assert jax.tree.map(lambda x: x.dtype, after) == jax.tree.map(lambda x: x.dtype, state)
