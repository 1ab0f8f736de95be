"""The model against itself on other paths, and against closed forms."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1jax.config import OptimizerConfig, RopeScalingConfig
from r1jax.model import moe, softmax_attention
from r1jax.model.attention import latents, score_scale
from r1jax.model.layers import linear, rms_norm, rope_amplitude, rope_frequencies, rotate
from r1jax.model.spec import ParamSpec, count_active_params, count_params, init_params, init_router_bias, param_specs
from r1jax.model.transformer import cast, forward, forward_cached, forward_mtp, init_cache, logits
from r1jax.objectives.language_model import LossTerms, busiest_expert, language_model_loss
from r1jax.objectives.optimizer import make_optimizer
from r1jax.types import Batch, TokenBatch, Weights

# float32 sums of some hundred terms in another order.
ROUNDING = dict(rtol=2e-4, atol=2e-5)


def plain_batch(tokens) -> TokenBatch:
    tokens = jnp.asarray(tokens, jnp.int32)
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    return TokenBatch(tokens, positions, jnp.ones_like(tokens))


def random_tokens(shape, seed=0):
    return np.random.default_rng(seed).integers(1, 200, shape).astype(np.int32)


def test_rms_norm_by_hand():
    np.testing.assert_allclose(
        rms_norm(jnp.array([3.0, 4.0]), jnp.array([1.0, 2.0]), 0.0), np.array([3, 8]) / 12.5**0.5, rtol=1e-6
    )


@pytest.mark.parametrize(
    ("equation", "inputs", "x", "w"),
    [
        ("BTD,DF->BTF", 1, (2, 3, 4), (4, 5)),
        ("TD,DHM->THM", 1, (3, 4), (4, 2, 5)),
        ("BTHU,HUD->BTD", 2, (2, 3, 2, 4), (2, 4, 5)),
    ],
)
def test_linear_equals_its_einsum(equation, inputs, x, w):
    x, w = (jax.random.normal(jax.random.key(i), shape) for i, shape in enumerate((x, w)))

    def gradients(function):
        return jax.value_and_grad(lambda x, w: jnp.sin(function(x, w)).sum(), (0, 1))(x, w)

    ours, theirs = gradients(lambda x, w: linear(x, w, inputs)), gradients(lambda x, w: jnp.einsum(equation, x, w))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), ours, theirs)


def test_rotation_depends_on_the_distance_only(model):
    rng = np.random.default_rng(0)
    q, k = (jnp.asarray(rng.normal(size=(1, 1, 1, 8)), jnp.float32) for _ in range(2))

    c = dataclasses.replace(model, qk_rope_head_dim=8, rope_theta=100.0)

    def score(i, j):
        return float((rotate(q, jnp.array([[i]]), c) * rotate(k, jnp.array([[j]]), c)).sum())

    assert score(7, 3) == pytest.approx(score(14, 10), rel=1e-4)
    assert score(7, 3) != pytest.approx(score(7, 4), rel=1e-2)
    one_pair = dataclasses.replace(c, qk_rope_head_dim=2)
    turned = rotate(jnp.array([[[[1.0, 0.0]]]]), jnp.array([[2]]), one_pair)[0, 0, 0]  # one radian per position
    np.testing.assert_allclose(turned, [np.cos(2.0), np.sin(2.0)], rtol=1e-6)


@pytest.mark.parametrize("q_lora_rank", [32, pytest.param(None, marks=pytest.mark.slow)])
def test_absorbed_equals_expanded_for_every_prompt_length(model, q_lora_rank):
    """forward_cached of k tokens and of the rest, one at a time or at once, equals one forward pass, for all k."""
    c = dataclasses.replace(model, q_lora_rank=q_lora_rank)
    assert_cached_equals_whole_sequences(c, (init_params(jax.random.key(3), c), init_router_bias(c)))


def test_grouped_query_attention_over_a_cache_equals_that_of_whole_sequences(dense_model, dense_policy):
    assert_cached_equals_whole_sequences(dense_model, dense_policy, T=5)


@pytest.mark.parametrize("experts", ["dense", pytest.param("grouped", marks=pytest.mark.slow)])
def test_grouped_queries_with_experts_over_a_cache_equal_whole_sequences(
    grouped_moe_model, grouped_moe_policy, experts
):
    c = dataclasses.replace(grouped_moe_model, experts=experts)
    assert_cached_equals_whole_sequences(c, grouped_moe_policy, T=5)


def assert_cached_equals_whole_sequences(c, policy, T=6):
    params, bias = policy
    batch = plain_batch(random_tokens((2, T)))
    whole = jax.jit(forward, static_argnames="config")(params, bias, batch, config=c).hidden_BTD
    run = jax.jit(forward_cached, static_argnames="config")

    def part(first, last, contexts):
        piece = (batch.tokens_BT[:, first:last], batch.positions_BT[:, first:last])
        return run(Weights(cast(params, c), bias), *piece, contexts, config=c)[:2]

    for k in range(1, T):
        hidden, prompt = part(0, k, [])
        np.testing.assert_allclose(hidden, whole[:, :k], **ROUNDING)
        seen = jnp.ones((1, 1, k), bool)
        np.testing.assert_allclose(part(k, T, [(prompt, seen)])[0], whole[:, k:], **ROUNDING)
        hidden, one = part(k, k + 1, [(prompt, seen)])
        np.testing.assert_allclose(hidden, whole[:, k : k + 1], **ROUNDING)
        if k + 1 < T:  # over two contexts, each with a masked token
            wider = [jax.tree.map(lambda x: jnp.pad(x, ((0, 0), (0, 0), (0, 1), (0, 0))), x) for x in (prompt, one)]
            masks = [jnp.arange(n + 1)[None, None] < n for n in (k, 1)]
            hidden, _ = part(k + 1, k + 2, list(zip(wider, masks, strict=True)))
            np.testing.assert_allclose(hidden, whole[:, k + 1 : k + 2], **ROUNDING)


def test_latent_cache_holds_latent_and_rotary_numbers_only(model, policy):
    batch = plain_batch(random_tokens((2, 5)))
    _, latents, _ = forward_cached(Weights(*policy), batch.tokens_BT, batch.positions_BT, [], model)
    numbers = model.kv_lora_rank + model.qk_rope_head_dim
    assert {name: x.shape for name, x in latents.items()} == {"dense": (1, 2, 5, numbers), "moe": (1, 2, 5, numbers)}
    empty = init_cache(model, 2, 5)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), empty) == jax.tree.map(lambda x: (x.shape, x.dtype), latents)


def test_the_cache_of_grouped_query_attention(dense_model, dense_policy):
    """The cache has the Y heads of keys and values only."""
    batch = plain_batch(random_tokens((2, 5)))
    _, latents, _ = forward_cached(Weights(*dense_policy), batch.tokens_BT, batch.positions_BT, [], dense_model)
    assert jax.tree.map(jnp.shape, latents) == {"dense": {"keys": (2, 2, 5, 16), "values": (2, 2, 5, 16)}}
    empty = init_cache(dense_model, 2, 5)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), empty) == jax.tree.map(lambda x: (x.shape, x.dtype), latents)


def test_dense_packed_equals_separate(dense_model, dense_policy):
    a, b = random_tokens((1, 5), 1), random_tokens((1, 7), 2)
    packed = TokenBatch(
        jnp.concatenate([a, b], axis=1), jnp.asarray([[*range(5), *range(7)]]), jnp.asarray([[1] * 5 + [2] * 7])
    )
    hidden = forward(*dense_policy, packed, dense_model).hidden_BTD
    separate = [forward(*dense_policy, plain_batch(x), dense_model).hidden_BTD for x in (a, b)]
    np.testing.assert_allclose(hidden, jnp.concatenate(separate, axis=1), **ROUNDING)


def test_llama3_slows_low_frequencies_only(dense_model):
    """By hand: pairs of 1, 1/8, 1/64 and 1/512 radians turn 10.2, 1.3, 0.16 and 0.02 times in 64 positions."""
    llama = RopeScalingConfig(4.0, 64, rope_type="llama3", low_freq_factor=1.0, high_freq_factor=4.0)
    c = dataclasses.replace(dense_model, rope_theta=8.0**4, head_dim=8, rope_scaling=llama)
    kept = (64 / 8 / (2 * np.pi) - 1) / 3
    expected = [1, (kept + (1 - kept) / 4) / 8, 1 / 64 / 4, 1 / 512 / 4]
    np.testing.assert_allclose(rope_frequencies(c), expected, rtol=1e-6)
    assert rope_amplitude(llama) == 1


def test_biases_start_at_zero_and_norms_at_one_and_neither_decays(dense_model):
    attention = init_params(jax.random.key(0), dense_model)["dense"]["attention"]
    for name in ("q_bias_HM", "k_bias_YM", "v_bias_YM", "q_norm_M", "k_norm_M"):
        assert (attention[name] == ("norm" in name)).all()
    params = init_params(jax.random.key(0), dense_model)
    optimizer = make_optimizer(OptimizerConfig(1.0, weight_decay=0.1), dense_model)
    updates, _ = optimizer.update(jax.tree.map(jnp.zeros_like, params), optimizer.init(params), params)
    moved = {name: bool(jnp.any(x != 0)) for name, x in updates["dense"]["attention"].items()}
    assert {name for name, is_moved in moved.items() if is_moved} == {"q_DHM", "k_DYM", "v_DYM", "out_HMD"}


def test_packed_equals_separate(model, policy):
    a, b = random_tokens((1, 5), 1), random_tokens((1, 7), 2)
    packed = TokenBatch(
        tokens_BT=jnp.concatenate([a, b, np.zeros((1, 3), np.int32)], axis=1),
        positions_BT=jnp.asarray([[*range(5), *range(7), 0, 0, 0]]),
        segment_ids_BT=jnp.asarray([[1] * 5 + [2] * 7 + [0] * 3]),
    )
    hidden = forward(*policy, packed, model)
    separate = [forward(*policy, plain_batch(x), model) for x in (a, b)]
    np.testing.assert_allclose(hidden.hidden_BTD[:, :5], separate[0].hidden_BTD, **ROUNDING)
    np.testing.assert_allclose(hidden.hidden_BTD[:, 5:12], separate[1].hidden_BTD, **ROUNDING)
    # No expert counts padding.
    np.testing.assert_array_equal(hidden.load["moe"], separate[0].load["moe"] + separate[1].load["moe"])


@pytest.mark.parametrize("attention", [pytest.param("full", marks=pytest.mark.slow), "chunked"])
@pytest.mark.parametrize("kind", ["latent", "grouped"])
def test_a_tree_of_turns_equals_its_paths(model, policy, dense_model, dense_policy, kind, attention, monkeypatch):
    """A turn that several others follow is run once: each sees what led to it, and no sibling."""
    monkeypatch.setattr(softmax_attention, "CHUNK", 4)
    config, weights = (model, policy) if kind == "latent" else (dense_model, dense_policy)
    config = dataclasses.replace(config, attention=attention)
    # Turns in depth-first order: their number of tokens, and the turn that they follow.
    lengths, parents = (4, 3, 2, 3, 2), (None, 0, 1, 1, 0)
    firsts = np.cumsum((0, *lengths))
    paths = []
    for turn, parent in enumerate(parents):
        paths.append([*([] if parent is None else paths[parent]), *range(firsts[turn], firsts[turn + 1])])
    T = firsts[-1]
    ends_T = np.zeros(T, np.int32)
    for turn in range(len(lengths)):
        ends_T[firsts[turn] : firsts[turn + 1]] = 1 + max(path[-1] for path in paths if firsts[turn] in path)
    positions_T = np.zeros(T, np.int32)
    for path in paths:
        positions_T[path] = np.arange(len(path))
    tokens_T = np.random.default_rng(0).integers(0, 200, T).astype(np.int32)
    zeros, ids_T = np.zeros((1, T), np.float32), np.repeat(np.arange(1, 1 + len(lengths)), lengths)
    tree = Batch(tokens_T[None], positions_T[None], ids_T[None], zeros > 0, zeros, zeros, ends_BT=ends_T[None])
    hidden_TD = forward(*weights, tree, config).hidden_BTD[0]
    for path in paths:
        n = len(path)
        alone = TokenBatch(tokens_T[None, path], np.arange(n)[None], np.ones((1, n), np.int32))
        np.testing.assert_allclose(
            hidden_TD[np.array(path)], forward(*weights, alone, config).hidden_BTD[0], **ROUNDING
        )


def test_packed_losses_equal_separate_ones(model):
    """Next-token, MTP (two modules) and balance losses, and expert loads, over segments."""
    c = dataclasses.replace(model, num_nextn_predict_layers=2, num_hidden_layers=3)
    params, bias = init_params(jax.random.key(0), c), init_router_bias(c)
    texts = [random_tokens((1, n), seed=n) for n in (9, 2, 6, 1)]  # some too short for a module's target
    packed = TokenBatch(
        tokens_BT=jnp.concatenate([*texts, np.zeros((1, 4), np.int32)], axis=1),
        positions_BT=jnp.asarray([[i for t in texts for i in range(t.shape[1])] + [0] * 4]),
        segment_ids_BT=jnp.asarray([[n for n, t in enumerate(texts, 1) for _ in range(t.shape[1])] + [0] * 4]),
    )
    run = jax.jit(lambda b: language_model_loss(params, bias, b, LossTerms("train", 0.3, 0.1), c)[1])
    metrics, load = run(packed)
    parts = [run(plain_batch(t)) for t in texts]
    for name in ("loss", "mtp_loss", "balance"):
        assert float(metrics[name].weight) == sum(float(m[name].weight) for m, _ in parts), name
        total = sum(float(m[name].total) for m, _ in parts)
        assert float(metrics[name].total) == pytest.approx(total, rel=1e-5), name
    assert float(metrics["loss"].weight) == 8 + 1 + 5
    assert float(metrics["mtp_loss"].weight) == (7 + 4) + (6 + 3)
    assert float(metrics["balance"].weight) == 4
    for stack in ("moe", "mtp"):
        np.testing.assert_array_equal(load[stack], sum(part[stack] for _, part in parts))


def test_mtp_sees_the_next_token_and_none_after_it(model, policy):
    tokens = random_tokens((1, 8))
    changed = tokens.copy()
    changed[0, 5] = (changed[0, 5] + 1) % 200

    def modules(t):
        batch = plain_batch(t)
        return forward_mtp(*policy, forward(*policy, batch, model), batch, model)[0]

    before, after = modules(tokens)[0], modules(changed)[0]
    difference = jnp.abs(before - after).max(axis=-1)[0]
    assert not difference[:4].any()
    assert difference[4] > 1e-3  # the module reads token 5 at position 4


def test_a_change_reaches_later_positions_only(model, policy):
    tokens = random_tokens((1, 8))
    changed = tokens.copy()
    changed[0, 3] = (changed[0, 3] + 1) % 200
    outputs = [logits(policy[0], forward(*policy, plain_batch(t), model).hidden_BTD) for t in (tokens, changed)]
    difference = jnp.abs(outputs[0] - outputs[1]).max(axis=-1)[0]
    assert not difference[:3].any()
    assert difference[3] > 1e-3


@pytest.fixture(scope="module")
def experts(model, policy):
    weights = jax.tree.map(lambda w: w[0], policy[0]["moe"]["feed_forward"])
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 12, model.hidden_size)), jnp.float32)
    return weights, x


def test_grouped_experts_equal_the_dense_oracle(model, policy, experts):
    weights, x = experts

    def run(name):
        c = dataclasses.replace(model, experts=name)

        def loss(weights, x):
            out, _ = moe.moe(weights, policy[1]["moe"][0], x, jnp.ones(x.shape[:2], jnp.int32), c)
            return (out**2).sum(), out

        return jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(weights, x)

    (_, dense), dense_grads = run("dense")
    (_, grouped), grouped_grads = run("grouped")
    np.testing.assert_allclose(grouped, dense, **ROUNDING)
    for a, b in zip(jax.tree.leaves(grouped_grads), jax.tree.leaves(dense_grads), strict=True):
        scale = float(jnp.abs(b).max())
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5 * scale)


def test_bias_changes_the_choice_but_not_the_gates(model):
    c = dataclasses.replace(model, num_experts_per_tok=2, norm_topk_prob=True, routed_scaling_factor=2.5)
    scores = jnp.array([[0.9, 0.5, 0.4, 0.1]])
    ids, gates = moe.choose_experts(scores, jnp.array([0.0, -1.0, 0.0, 1.0]), c)
    assert ids.tolist() == [[3, 0]]
    np.testing.assert_allclose(gates, [[2.5 * 0.1 / 1.0, 2.5 * 0.9 / 1.0]], rtol=1e-6)


def test_experts_of_dropped_groups_never_win_even_if_all_are_negative(model):
    c = dataclasses.replace(model, n_routed_experts=6, n_group=3, topk_group=1, num_experts_per_tok=2)
    scores = jnp.array([[0.30, 0.30, 0.59, 0.0, 0.2, 0.2]])
    # Group 0 has the best sum of two (0.6), group 1 the best expert. With a bias of -2 all kept affinities are
    # negative, so that experts masked with 0 would win.
    ids, _ = moe.choose_experts(scores, jnp.full((6,), -2.0), c)
    assert sorted(ids[0].tolist()) == [0, 1]


def test_v2_scores_a_group_by_its_best_expert(model):
    c = dataclasses.replace(model, n_routed_experts=6, n_group=3, topk_group=1, num_experts_per_tok=2)
    scores = jnp.array([[0.30, 0.30, 0.59, 0.0, 0.2, 0.2]])
    v2 = dataclasses.replace(c, topk_method="group_limited_greedy")
    assert moe.choose_experts(scores, jnp.zeros(6), v2)[0][0].tolist() == [2, 3]  # group 1 has the best expert
    assert moe.choose_experts(scores, jnp.zeros(6), c)[0][0].tolist() == [0, 1]  # group 0 the best two
    greedy = dataclasses.replace(c, topk_method="greedy")
    assert moe.choose_experts(scores, jnp.zeros(6), greedy)[0][0].tolist() == [2, 0]


def test_only_v3_uses_the_bias(model):
    scores, bias = jnp.array([[0.4, 0.3, 0.2, 0.1]]), jnp.array([-1.0, 0.0, 0.0, 0.0])
    for method, first in (("noaux_tc", 1), ("greedy", 0), ("group_limited_greedy", 0)):
        c = dataclasses.replace(model, topk_method=method, num_experts_per_tok=1)
        assert moe.choose_experts(scores, bias, c)[0].tolist() == [[first]]


def test_gates_with_and_without_renormalisation(model):
    scores = jnp.array([[0.5, 0.3, 0.1, 0.1]])
    c = dataclasses.replace(model, num_experts_per_tok=2, routed_scaling_factor=16.0, norm_topk_prob=False)
    np.testing.assert_allclose(moe.choose_experts(scores, jnp.zeros(4), c)[1], [[8.0, 4.8]], rtol=1e-6)
    renormalised = dataclasses.replace(c, norm_topk_prob=True)
    np.testing.assert_allclose(moe.choose_experts(scores, jnp.zeros(4), renormalised)[1], [[10.0, 6.0]], rtol=1e-6)


def test_affinities_by_hand(model):
    router = {"router_DE": jnp.array([[0.0, np.log(3.0)]])}
    sigmoid = moe.affinities(router, jnp.ones((1, 1)), model)
    softmax = moe.affinities(router, jnp.ones((1, 1)), dataclasses.replace(model, scoring_func="softmax"))
    np.testing.assert_allclose(sigmoid, [[0.5, 0.75]], rtol=1e-6)
    np.testing.assert_allclose(softmax, [[0.25, 0.75]], rtol=1e-6)


def test_the_router_stays_float32_in_a_bfloat16_model(model):
    c = dataclasses.replace(model, dtype="bfloat16")
    weights = cast(init_params(jax.random.key(0), c), c)
    assert weights["moe"]["feed_forward"]["router_DE"].dtype == jnp.float32
    assert weights["moe"]["feed_forward"]["gate_EDF"].dtype == jnp.bfloat16
    x = jnp.ones((1, c.hidden_size), jnp.bfloat16)
    assert moe.affinities({"router_DE": weights["moe"]["feed_forward"]["router_DE"][0]}, x, c).dtype == jnp.float32


@pytest.mark.slow
def test_bias_alone_balances_a_skewed_stream(model):
    """Without an auxiliary loss and at V3's speed, from 4 times the mean load to nearly even."""
    c = dataclasses.replace(model, n_routed_experts=16, num_experts_per_tok=2)
    weights = jax.tree.map(lambda w: w[0], init_params(jax.random.key(0), c)["moe"]["feed_forward"])
    weights["router_DE"] = jax.random.normal(jax.random.key(1), weights["router_DE"].shape) / c.hidden_size**0.5
    mean_D = 0.5 * jax.random.normal(jax.random.key(5), (c.hidden_size,))  # tokens have a common direction

    def busiest(speed):
        def step(bias_1E, key):
            x_BTD = mean_D + jax.random.normal(key, (1, 8192, c.hidden_size))
            scores_TE = moe.affinities(weights, x_BTD[0], c)
            ids_TK, _ = moe.choose_experts(scores_TE, bias_1E[0], c)
            load_1E = jnp.bincount(ids_TK.reshape(-1), length=16)[None].astype(jnp.float32)
            return moe.update_router_bias(bias_1E, load_1E, speed), load_1E.max() / load_1E.mean()

        return jax.lax.scan(step, jnp.zeros((1, 16)), jax.random.split(jax.random.key(2), 301))[1]

    load = jax.jit(busiest)(0.001)
    assert float(load[0]) >= 3
    assert float(load[-20:].max()) <= 1.2
    assert float(jax.jit(busiest)(0.0)[-20:].min()) >= 3  # without the bias the load stays uneven


def test_yarn_by_hand(model):
    """Pairs that turn often keep their frequency; pairs that turn less than once are slowed by the factor."""
    yarn = RopeScalingConfig(factor=40.0, original_max_position_embeddings=4096, mscale=1.0, mscale_all_dim=0.5)
    c = dataclasses.replace(model, qk_nope_head_dim=128, qk_rope_head_dim=64, rope_theta=10000.0, rope_scaling=yarn)
    plain = 10000.0 ** (-np.arange(32) / 32)
    frequencies = rope_frequencies(c)
    # 4096 positions: pair i turns 4096 * plain[i] / 2 pi times; more than 32 up to pair 10, less than 1 from pair 23.
    np.testing.assert_allclose(frequencies[:11], plain[:11], rtol=1e-6)
    np.testing.assert_allclose(frequencies[23:], plain[23:] / 40, rtol=1e-6)
    assert (np.diff(frequencies) < 0).all()
    np.testing.assert_allclose(rope_amplitude(yarn), (0.1 * np.log(40) + 1) / (0.05 * np.log(40) + 1))
    np.testing.assert_allclose(score_scale(c), 192**-0.5 * (0.05 * np.log(40) + 1) ** 2)
    off = dataclasses.replace(c, rope_scaling=RopeScalingConfig())
    np.testing.assert_allclose(rope_frequencies(off), plain, rtol=1e-6)
    assert rope_amplitude(off.rope_scaling) == 1
    assert score_scale(off) == 192**-0.5


def test_latents_have_their_own_norm_epsilon(model):
    """1e-6 as in DeepSeek's code, whatever rms_norm_eps is; the inputs are small enough for it to matter."""
    c = dataclasses.replace(model, rms_norm_eps=1e-2)
    weights = {"kv_a_DX": jnp.full((1, 48), 1e-3), "kv_norm_C": jnp.ones(32)}
    found = latents(weights, jnp.ones((1, 1, 1)), jnp.zeros((1, 1), jnp.int32), c)
    np.testing.assert_allclose(found[0, 0, :32], 1e-3 / (1e-6 + 1e-6) ** 0.5, rtol=1e-5)


def test_tied_embeddings_are_the_head(model):
    c = dataclasses.replace(model, tie_word_embeddings=True)
    params = init_params(jax.random.key(0), c)
    assert "head_DV" not in params
    hidden = jnp.ones((1, 1, c.hidden_size))
    np.testing.assert_allclose(logits(params, hidden), hidden @ params["embed_VD"].T, rtol=1e-6)
    assert sum(count_params(model).values()) - sum(count_params(c).values()) == 208 * 64


@pytest.mark.parametrize("dense", [0, 2])
def test_all_layers_may_have_experts_or_none(model, dense):
    c = dataclasses.replace(model, first_k_dense_replace=dense, num_nextn_predict_layers=0)
    params, bias = init_params(jax.random.key(0), c), init_router_bias(c)
    batch = plain_batch(random_tokens((1, 6)))
    loss, (_, load) = language_model_loss(params, bias, batch, LossTerms("train", 0.3, 0.1), c)
    assert np.isfinite(float(loss))
    assert list(load) == ([] if dense else ["moe"])
    assert ("expert_load_max" in busiest_expert(load)) == (not dense)


def test_a_model_without_shared_experts_has_its_chosen_experts_alone(grouped_moe_model, grouped_moe_policy):
    """By hand, of one token: softmax over all experts, the best two, renormalised."""
    weights = jax.tree.map(lambda w: w[0], grouped_moe_policy[0]["moe"]["feed_forward"])
    assert "shared" not in weights
    x_D = jax.random.normal(jax.random.key(1), (grouped_moe_model.hidden_size,))
    scores_E = jax.nn.softmax(x_D @ weights["router_DE"])
    best = np.argsort(scores_E)[::-1][:2]
    outputs = [
        (jax.nn.silu(x_D @ weights["gate_EDF"][e]) * (x_D @ weights["up_EDF"][e])) @ weights["down_EFD"][e]
        for e in best
    ]
    expected = sum(scores_E[e] * out for e, out in zip(best, outputs, strict=True)) / scores_E[best].sum()
    bias_E = grouped_moe_policy[1]["moe"][0]
    out_BTD, statistics = moe.moe(weights, bias_E, x_D[None, None], jnp.ones((1, 1), jnp.int32), grouped_moe_model)
    assert statistics["ids_BTK"][0, 0].tolist() == best.tolist()
    np.testing.assert_allclose(out_BTD[0, 0], expected, **ROUNDING)


def test_router_bias_moves_against_the_load():
    bias = moe.update_router_bias(jnp.zeros((1, 4)), jnp.array([[10.0, 2.0, 4.0, 4.0]]), 0.001)
    np.testing.assert_allclose(bias, [[-0.001, 0.001, 0.001, 0.001]])
    assert not moe.update_router_bias(jnp.zeros((1, 4)), jnp.full((1, 4), 5.0), 0.001).any()


def test_balance_loss_is_one_when_even_and_e_over_k_when_collapsed(model):
    c = dataclasses.replace(model, n_routed_experts=4, num_experts_per_tok=1)
    one_segment = jnp.ones((1, 4), jnp.int32)
    even = moe.balance_loss(jnp.full((1, 4, 4), 0.5), jnp.eye(4)[None], one_segment, c)
    one = jnp.zeros((1, 4, 4)).at[..., 0].set(1.0)
    assert float(even) == pytest.approx(1.0)
    assert float(moe.balance_loss(one, one, one_segment, c)) == pytest.approx(4.0)


def test_active_parameters_of_a_model_without_shared_experts(grouped_moe_model):
    D, Y, H, M, F, E, K, L, V = 32, 2, 4, 8, 24, 8, 2, 2, 208
    attention = 2 * D * H * M + 2 * D * Y * M + 2 * M
    outside = 2 * V * D + D + L * (2 * D + attention + D * E)
    assert count_active_params(grouped_moe_model) == outside + L * K * 3 * D * F
    assert sum(count_params(grouped_moe_model).values()) == outside + L * E * 3 * D * F


def test_parameter_count_by_hand(model):
    D, H, C, R, N, U, Q = 64, 4, 32, 16, 16, 16, 64
    attention = D * Q + Q + Q * H * (N + R) + D * (C + R) + C + C * H * (N + U) + H * U * D
    experts = D * 4 + (4 + 1) * 3 * D * 32
    block = 2 * D + attention
    expected = {
        "embed_VD": 208 * D,
        "dense": block + 3 * D * 128,
        "moe": block + experts,
        "norm_D": D,
        "head_DV": D * 208,
        "mtp": 3 * D + 2 * D * D + block + experts,
        "router_bias.moe": 4,
        "router_bias.mtp": 4,
    }
    assert count_params(model) == expected


def test_initialisation_follows_the_specs(model):
    params = init_params(jax.random.key(0), model)
    specs = param_specs(model)
    shapes = jax.tree.map(lambda s: s.shape, specs, is_leaf=lambda s: isinstance(s, ParamSpec))
    assert jax.tree.map(lambda w: w.shape, params) == shapes
    assert float(params["head_DV"].std()) == pytest.approx(model.initializer_range, rel=0.05)
    assert (params["moe"]["attention"]["kv_norm_C"] == 1).all()
    by_fan_in = init_params(jax.random.key(0), dataclasses.replace(model, initializer_range=None))
    assert float(by_fan_in["embed_VD"].std()) == pytest.approx(1, rel=0.05)
    assert float(by_fan_in["dense"]["feed_forward"]["down_FD"].std()) == pytest.approx(128**-0.5, rel=0.05)
    assert float(by_fan_in["moe"]["feed_forward"]["down_EFD"].std()) == pytest.approx(32**-0.5, rel=0.05)
    assert float(by_fan_in["moe"]["attention"]["out_HUD"].std()) == pytest.approx(64**-0.5, rel=0.05)
    assert not jnp.allclose(params["moe"]["feed_forward"]["gate_EDF"], params["moe"]["feed_forward"]["up_EDF"])


def test_compiled_size_does_not_grow_with_depth(model):
    """Layers are scanned, so that the lowered programs of a deep and a shallow model have equal size."""

    def lines(layers):
        c = dataclasses.replace(model, num_hidden_layers=layers)
        params = jax.eval_shape(lambda: init_params(jax.random.key(0), c))
        bias = {"moe": jax.ShapeDtypeStruct((layers - 1, 4), jnp.float32)}
        batch = jax.eval_shape(lambda: plain_batch(jnp.zeros((1, 8), jnp.int32)))
        return len(
            jax.jit(lambda p, b, x: forward(p, b, x, c).hidden_BTD).lower(params, bias, batch).as_text().splitlines()
        )

    assert lines(40) == lines(3)
