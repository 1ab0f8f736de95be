"""Speculative decoding: the multi-token-prediction module drafts, the model checks, and no token changes."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1jax.errors import UsageError
from tests.shared.engines import SAMPLER_TOLERANCE, N, P, generate, make_engine, teacher_forced, tokens
from tests.shared.plain_rollouts import completion_mask, trainer_arrays


@pytest.fixture(scope="module")
def prompts() -> list[tuple[int, list[int]]]:
    rng = np.random.default_rng(0)
    return [(100 + i, rng.integers(8, 200, n).tolist()) for i, n in enumerate([1, 40, 7, 16, 17, 33, 2, 16, 25])]


def agreeing(policy, mix: float):
    """The policy with layers that add `mix` of what they did, and a module that passes the next token's embedding on:
    what the two predict is the same at 0, and less and less so above."""
    params, bias = policy
    params = jax.tree_util.tree_map_with_path(
        lambda path, w: w * mix if path[-1].key in ("out_HUD", "down_FD", "down_EFD") else w, params
    )
    D = params["embed_VD"].shape[1]
    project = jnp.concatenate([jnp.eye(D), jnp.zeros((D, D))])[None]
    return params | {"mtp": params["mtp"] | {"project_2DD": project}}, bias


def acceptance(engine) -> float:
    return engine.counts.accepted / engine.counts.drafted


@pytest.fixture(scope="module", params=[0.0, 0.02, 1.0], ids=["all", "most", "few"])
def accepting(request, policy):
    """Policies of which all, most and few drafts are accepted."""
    return request.param, agreeing(policy, request.param)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize(
    "config",
    [pytest.param({}, marks=pytest.mark.slow), {"slots": 3, "steps_per_round": 1, "prefill_chunk": 7}],
    ids=str,
)
def test_no_token_changes(one_device, model, prompts, accepting, temperature, config):
    mix, policy = accepting
    free = generate(make_engine(one_device, model, eos=-1, temperature=temperature), policy, prompts)
    eos = int(np.bincount(np.concatenate([s.response_tokens for g in free for s in g])).argmax())
    plain = make_engine(one_device, model, eos=eos, temperature=temperature)
    expected = generate(plain, policy, prompts)
    engine = make_engine(one_device, model, eos=eos, temperature=temperature, speculative=True, **config)
    groups = generate(engine, policy, prompts)
    assert tokens(groups) == tokens(expected)
    for group, others in zip(groups, expected, strict=True):
        for sample, other in zip(group, others, strict=True):
            np.testing.assert_allclose(sample.logprobs, other.logprobs, atol=SAMPLER_TOLERANCE)
            assert sample.finished == other.finished
    assert engine.counts.tokens == plain.counts.tokens
    ended_first = engine.counts.tokens - engine.counts.drafted - engine.counts.accepted
    assert 0 <= ended_first <= 3 * len(prompts)
    if mix == 0:
        assert engine.counts.drafted == engine.counts.accepted
    if not config and mix < 1 and temperature == 1:
        assert engine.counts.model_steps < 0.8 * plain.counts.model_steps


def test_some_drafts_are_right_and_some_wrong(one_device, model, policy, prompts):
    engine = make_engine(one_device, model, eos=-1, speculative=True)
    generate(engine, agreeing(policy, 0.02), prompts)
    assert 0.2 < acceptance(engine) < 0.95


def test_log_probabilities_equal_teacher_forced_ones(one_device, model, policy, prompts):
    policy = agreeing(policy, 0.02)
    engine = make_engine(one_device, model, speculative=True, top_k=20, keeps_sampling_masks=True, temperature=0.8)
    groups = generate(engine, policy, prompts)
    arrays, generation = trainer_arrays(prompts, groups, P, N)
    gap = np.abs(teacher_forced(model, policy, arrays, generation, 0.8) - generation.logp_BGN)
    assert float((gap * completion_mask(generation)).max()) < SAMPLER_TOLERANCE


def test_drafts_see_what_the_module_would_see_in_one_pass(one_device, model, policy):
    """The module's cache, filled by prefill and by steps, gives the drafts of a pass over the whole sequence: greedy
    drafts are accepted exactly where that pass predicts the model's own next token."""
    from r1jax.model.transformer import forward, forward_mtp, logits
    from tests.shared.reference import token_batch

    policy = agreeing(policy, 0.5)
    prompt = np.random.default_rng(1).integers(8, 200, 13).tolist()
    short = {"slots": 1, "steps_per_round": 4, "temperature": 0.0}
    engine = make_engine(one_device, model, eos=-1, group=1, speculative=True, **short)
    (sample,) = generate(engine, policy, [(0, prompt)])[0]
    batch = token_batch([sample.tokens])
    outputs, _ = forward_mtp(*policy, forward(*policy, batch, model), batch, model)
    drafts = np.asarray(logits(policy[0], outputs[0])[0].argmax(axis=-1))  # at i: what it thinks token i + 2 is
    steps, accepted, place = 0, 0, len(prompt)  # of the pending token
    whole = sample.tokens
    while place < len(whole):
        steps += 1
        is_right = place + 1 < len(whole) and drafts[place - 1] == whole[place + 1]
        accepted += is_right
        place += 1 + is_right
    assert (engine.counts.model_steps, engine.counts.accepted) == (steps, accepted)
    assert 0 < accepted < steps


def test_the_distribution_is_unchanged(one_device, model, policy):
    """Chi-square of the second, third and fourth token (the first is never a draft) against exact probabilities."""
    small = dataclasses.replace(model, vocab_size=5)
    params = policy[0] | {"embed_VD": policy[0]["embed_VD"][:5], "head_DV": policy[0]["head_DV"][:, :5]}
    params, bias = agreeing((params, policy[1]), 0.02)
    number, prompt = 4000, [1, 4, 2]
    engine = make_engine(one_device, small, eos=-1, group=number, new=3, slots=500, speculative=True)
    drawn = np.asarray(tokens(generate(engine, (params, bias), [(0, prompt)]))[0])
    assert 0.2 < acceptance(engine) < 0.95

    from r1jax.model.transformer import forward, logits
    from tests.shared.reference import token_batch

    every = np.stack(np.meshgrid(*[range(5)] * 3, indexing="ij"), axis=-1).reshape(-1, 3)
    rows = token_batch(np.concatenate([np.tile(prompt, (125, 1)), every], axis=1))
    logp = jax.nn.log_softmax(logits(params, forward(params, bias, rows, small).hidden_BTD))[:, 2:5]
    p = np.exp(np.take_along_axis(np.asarray(logp), every[..., None], axis=-1)[..., 0].sum(axis=1))
    seen = np.bincount(drawn @ [25, 5, 1], minlength=125)
    likely = p * number >= 5
    observed, expected = np.append(seen[likely], seen[~likely].sum()), np.append(p[likely], p[~likely].sum()) * number
    chi_square = ((observed - expected) ** 2 / expected).sum()
    freedom = len(expected) - 1
    assert freedom > 20
    assert chi_square < freedom + 4 * (2 * freedom) ** 0.5  # mean and standard deviation of the distribution


def test_a_model_without_the_module_is_refused(one_device, model):
    without = dataclasses.replace(model, num_nextn_predict_layers=0)
    with pytest.raises(UsageError, match="speculative.*num_nextn_predict_layers"):
        make_engine(one_device, without, speculative=True)
