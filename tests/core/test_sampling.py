"""The sampler against the trainer's view of the same tokens."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1jax.objectives.grpo import importance_weights
from r1jax.objectives.logprobs import token_logprobs
from r1jax.rollout.advantages import compute_advantages
from r1jax.sampling.draw import DrawSettings, Truncation, draw, keep_likely
from r1jax.types import Sample
from tests.shared.configs import rl_config
from tests.shared.plain_rollouts import (
    Generation,
    Prompts,
    completion_mask,
    fresh_state,
    generate,
    gradients,
    join,
    one_update,
    prepared,
    prompt_batch,
    score,
    taught,
    trainer_arrays,
    weighed,
)

EOS = 2
LENGTHS = [5, 9, 1, 7]
# The bar of the field's most filed bug: absorbed attention over a cache against one expanded pass, float32.
SAMPLER_TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def prompts() -> Prompts:
    rng = np.random.default_rng(0)
    tokens = np.zeros((4, 10), np.int32)
    for row, n in zip(tokens, LENGTHS, strict=True):
        row[-n:] = rng.integers(3, 200, n)
    return Prompts(tokens, np.asarray(LENGTHS, np.int32), np.asarray([11, 5, 7, 30], np.int32))


class EndsWith:
    """A tokenizer that knows an end token, and spells ids."""

    def __init__(self, eos_id: int):
        self.eos_ids = (eos_id,)

    def decode(self, ids):
        return " ".join(str(i) for i in ids)


def asked(prompts: Prompts) -> list[tuple[int, list[int]]]:
    rows = zip(prompts.id_B, prompts.tokens_BP, prompts.length_B, strict=True)
    return [(int(i), row[len(row) - n :].tolist()) for i, row, n in rows]


def draw_samples(
    layout, model, policy, prompts, *, group=4, new=12, temperature=1.0, eos=EOS, seed=0, **numbers
) -> list[list[Sample]]:
    numbers = {"slots": 16, "steps_per_round": 5, "prefill_rows": 4} | numbers
    limits = {"max_prompt_tokens": 10, "max_new_tokens": new, "temperature": temperature}
    tokenizer = EndsWith(eos)
    return generate(
        layout, model, policy, asked(prompts), tokenizer=tokenizer, group=group, seed=seed, **limits, **numbers
    )


def sample(layout, model, policy, prompts, *, new=12, **numbers) -> Generation:
    groups = draw_samples(layout, model, policy, prompts, new=new, **numbers)
    return trainer_arrays(asked(prompts), groups, 10, new)[1]


def teacher_forced(model, policy, prompts, generation, temperature=1.0):
    logp, _, _ = jax.jit(score, static_argnames=("new_tokens", "c"))(
        *policy, join(prompts, generation), generation.tokens_BGN.shape[-1], temperature, c=model
    )
    return np.asarray(logp).reshape(generation.logp_BGN.shape)


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_log_probabilities_equal_teacher_forced_ones(one_device, model, policy, prompts, temperature):
    generation = sample(one_device, model, policy, prompts, temperature=temperature)
    gap = np.abs(teacher_forced(model, policy, prompts, generation, temperature) - generation.logp_BGN)
    assert (gap * completion_mask(generation)).max() < SAMPLER_TOLERANCE
    other = np.abs(teacher_forced(model, policy, prompts, generation, 1.3) - generation.logp_BGN)
    assert (other * completion_mask(generation)).max() > 0.01  # the measure sees a wrong temperature


def test_log_probabilities_of_a_dense_model_equal_teacher_forced_ones(one_device, dense_model, dense_policy, prompts):
    """Over chunks of prompts and refilled slots, too."""
    generation = sample(one_device, dense_model, dense_policy, prompts, temperature=0.6, slots=6, prefill_chunk=4)
    gap = np.abs(teacher_forced(dense_model, dense_policy, prompts, generation, 0.6) - generation.logp_BGN)
    assert (gap * completion_mask(generation)).max() < SAMPLER_TOLERANCE


def test_end_token_first_last_and_never(one_device, model, policy, prompts):
    free = sample(one_device, model, policy, prompts, eos=-1)
    assert (free.length_BG == 12).all()
    assert not free.finished_BG.any()
    for index in (0, 11):
        eos = int(free.tokens_BGN[1, 2, index])
        stopped = sample(one_device, model, policy, prompts, eos=eos)
        first = free.tokens_BGN[1, 2].tolist().index(eos)
        assert stopped.length_BG[1, 2] == first + 1  # the end token counts
        assert stopped.finished_BG[1, 2]
        np.testing.assert_array_equal(stopped.tokens_BGN[1, 2, : first + 1], free.tokens_BGN[1, 2, : first + 1])
        gap = np.abs(teacher_forced(model, policy, prompts, stopped) - stopped.logp_BGN) * completion_mask(stopped)
        assert gap.max() < SAMPLER_TOLERANCE


def test_a_sample_depends_on_its_prompt_and_index_only(one_device, model, policy, prompts):
    whole = sample(one_device, model, policy, prompts)
    order = np.array([2, 0])
    part = sample(one_device, model, policy, jax.tree.map(lambda x: x[order], prompts), group=2)
    np.testing.assert_array_equal(part.length_BG, whole.length_BG[order, :2])
    mask = np.asarray(completion_mask(part)) > 0
    np.testing.assert_array_equal(part.tokens_BGN[mask], whole.tokens_BGN[order, :2][mask])


def test_another_step_or_sample_draws_other_tokens(one_device, model, policy, prompts):
    a, b = (sample(one_device, model, policy, prompts, eos=-1, seed=s) for s in (0, 1))
    assert (a.tokens_BGN != b.tokens_BGN).any()
    assert (a.tokens_BGN[:, 0] != a.tokens_BGN[:, 1]).any()


def test_greedy_takes_the_most_likely_token(one_device, model, policy, prompts):
    greedy = sample(one_device, model, policy, prompts, temperature=0.0, eos=-1)
    assert (greedy.tokens_BGN[:, 0] == greedy.tokens_BGN[:, 3]).all()
    for other in range(3):
        changed = greedy.tokens_BGN.copy()
        changed[:, :, 4] = (changed[:, :, 4] + 1 + other) % model.vocab_size
        alternative = dataclasses.replace(greedy, tokens_BGN=changed)
        assert (
            teacher_forced(model, policy, prompts, alternative)[:, :, 4]
            < teacher_forced(model, policy, prompts, greedy)[:, :, 4]
        ).all()


def settings(**changes) -> DrawSettings:
    values = dict(temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, min_tokens=0, stop_ids=np.array([-1], np.int32))
    values |= changes
    integers = {name: np.int32(values[name]) for name in ("top_k", "min_tokens")}
    floats = {name: np.float32(values[name]) for name in ("temperature", "top_p", "min_p")}
    return DrawSettings(stop_ids=values["stop_ids"], **integers, **floats)


def draws(logits, number=20000, *, truncate=False, count=0, **changes):
    keys, counts = jax.random.split(jax.random.key(0), number), jnp.full(number, count, jnp.int32)
    rows = jnp.broadcast_to(jnp.asarray(logits), (number, len(logits)))
    drawn = jax.device_get(draw(rows, keys, counts, settings(**changes), Truncation(truncate)))
    return drawn.token_S, drawn.logp_S


FOUR_STANDARD_ERRORS = 4 * (0.25 / 20000) ** 0.5


def test_draws_follow_the_distribution():
    tokens, logp = draws(np.log([0.5, 0.3, 0.2]))
    np.testing.assert_allclose(np.bincount(tokens) / 20000, [0.5, 0.3, 0.2], atol=FOUR_STANDARD_ERRORS)
    np.testing.assert_allclose(logp, np.log([0.5, 0.3, 0.2])[tokens], rtol=1e-5)


def test_truncated_draws_follow_what_is_kept_with_its_log_probabilities():
    tokens, logp = draws(np.log([0.2, 0.5, 0.3]), truncate=True, top_k=2)
    np.testing.assert_allclose(np.bincount(tokens) / 20000, [0, 0.625, 0.375], atol=FOUR_STANDARD_ERRORS)
    np.testing.assert_allclose(logp, np.log([1, 0.625, 0.375])[tokens], rtol=1e-5)


def test_no_stop_token_before_the_shortest_answer():
    stop = np.array([1], np.int32)
    tokens, logp = draws(np.log([0.25, 0.5, 0.25]), min_tokens=3, count=2, stop_ids=stop)
    assert set(tokens) == {0, 2}
    np.testing.assert_allclose(logp, np.log(0.5), rtol=1e-5)
    assert 1 in draws(np.log([0.25, 0.5, 0.25]), min_tokens=3, count=3, stop_ids=stop)[0]


@pytest.mark.parametrize(
    ("changes", "kept"),
    [
        ({}, [1, 1, 1, 1]),
        ({"top_k": 2}, [0, 1, 0, 1]),
        ({"top_k": 9}, [1, 1, 1, 1]),
        ({"top_p": 0.4}, [0, 1, 0, 0]),  # the likeliest stays, also where it alone is more
        ({"top_p": 0.5}, [0, 1, 0, 0]),  # it reaches one half
        ({"top_p": 0.51}, [0, 1, 0, 1]),
        ({"min_p": 0.35}, [0, 1, 0, 1]),  # at least 0.175
        ({"min_p": 0.25, "top_k": 2}, [0, 1, 0, 1]),
        ({"min_p": 1.0}, [0, 1, 0, 0]),
    ],
)
def test_what_truncation_keeps(changes, kept):
    logp = jnp.log(jnp.array([[0.125, 0.5, 0.125, 0.25]]))
    allowed, ids = keep_likely(logp, settings(**changes), 0)
    assert allowed[0].tolist() == [bool(k) for k in kept]
    assert sorted(i for i in ids[0].tolist() if i >= 0) == [i for i, k in enumerate(kept) if k]
    bounded, ids = keep_likely(logp, settings(**changes), 3)  # of equal ones the first
    likeliest = {1, 3, 0}
    assert bounded[0].tolist() == [bool(k) and i in likeliest for i, k in enumerate(kept)]
    assert {i for i in ids[0].tolist() if i >= 0} == {i for i, k in enumerate(kept) if k} & likeliest


def test_ties_are_cut_to_exactly_k():
    assert int(keep_likely(jnp.zeros((1, 6)) - np.log(6), settings(top_k=4), 0)[0].sum()) == 4


def test_prompt_is_padded_on_the_left():
    batch = prompt_batch(Prompts(np.array([[0, 0, 7, 8]]), np.array([2]), np.array([0])))
    assert batch.segment_ids_BT.tolist() == [[0, 0, 1, 1]]
    assert batch.positions_BT.tolist() == [[0, 0, 0, 1]]


def random_rewards() -> np.ndarray:
    return np.random.default_rng(0).random((4, 4)).astype(np.float32)


PACKED = {"row_tokens": 50, "microbatch_rows": 3}


@pytest.mark.parametrize("remat", [pytest.param("attention", marks=pytest.mark.slow), "full"])
def test_with_layers_recomputed_the_first_ratio_is_one(one_device, model, policy, prompts, remat):
    config = rl_config(aggregation="token_mean")
    generation = sample(one_device, model, policy, prompts)
    outputs = taught(prompts, generation, weighed(config, generation, random_rewards()))
    state, again = fresh_state(one_device, model, policy, config), dataclasses.replace(model, remat=remat)
    _, metrics = one_update(one_device, again, config, state, outputs)
    assert metrics["ratio_deviation_max"].value() == 0
    assert metrics["clip_fraction_low"].value() == metrics["clip_fraction_high"].value() == 0


NO_REFERENCE = {"temperature": 0.6, "kl_coef": 0.0}


@pytest.mark.parametrize("changes", [{}, {"aggregation": "sequence_mean"}, PACKED, NO_REFERENCE], ids=str)
def test_before_the_first_update_the_ratio_is_one(one_device, model, policy, prompts, changes):
    config = rl_config(**{"aggregation": "token_mean"} | changes)
    generation = sample(one_device, model, policy, prompts, temperature=config.sampling.temperature)
    outputs = taught(prompts, generation, weighed(config, generation, random_rewards()))
    _, metrics = one_update(one_device, model, config, fresh_state(one_device, model, policy, config), outputs)
    assert metrics["ratio_deviation_max"].value() == 0
    assert metrics["ratio_max"].value() == metrics["ratio_min"].value() == 1
    assert metrics["clip_fraction_low"].value() == metrics["clip_fraction_high"].value() == 0
    if config.has_reference:
        assert metrics["kl"].value() == pytest.approx(0, abs=1e-9)
    assert metrics["logprob_gap_max"].value() < SAMPLER_TOLERANCE


TRUNCATED = [
    {"top_p": 0.9},
    {"top_k": 20},
    {"min_p": 0.05},
    {"top_p": 0.9, "sampling_mask_ids": 5},
    {"min_new_tokens": 6},
]


SPECULATIVE = {"speculative": True}
PLAIN_AND_SPECULATIVE = [
    *[pytest.param(changes, {}, id=str(changes)) for changes in TRUNCATED],
    pytest.param(TRUNCATED[0], SPECULATIVE, id=f"{TRUNCATED[0]} speculative"),
    *[pytest.param(c, SPECULATIVE, id=f"{c} speculative", marks=pytest.mark.slow) for c in TRUNCATED[1:]],
]


@pytest.mark.parametrize(("changes", "engine"), PLAIN_AND_SPECULATIVE)
def test_the_trainer_normalises_over_what_the_sampler_kept(one_device, model, policy, prompts, changes, engine):
    """The first ratio is 1, and the gap is rounding, where tokens are drawn from a part of the distribution."""
    config = rl_config(aggregation="token_mean", kl_coef=0.01, temperature=0.8, **changes)
    eos = int(sample(one_device, model, policy, prompts, eos=-1).tokens_BGN[0, 0, 3])
    groups = draw_samples(
        one_device, model, policy, prompts, keeps_sampling_masks=True, temperature=0.8, eos=eos, **changes, **engine
    )
    for sample_ in (s for group in groups for s in group):
        sample_.reward = float(len(set(sample_.tokens)))
        masks = sample_.sampling_masks
        assert masks.shape == (len(sample_.tokens), config.sampling.sampling_mask_ids)
        assert (masks[: sample_.prompt_length] == -1).all()
        drawn = range(sample_.prompt_length, len(sample_.tokens))
        assert all(sample_.tokens[t] in masks[t] for t in drawn)
        assert all((masks[t] >= 0).sum() <= config.sampling.top_k or not config.sampling.top_k for t in drawn)
    samples = compute_advantages(groups, config.loss, config.sampling)
    other = jax.tree.map(lambda x: 0.9 * x, policy)  # a reference that is not the policy
    state = fresh_state(one_device, model, policy, config, reference=other)
    batches, gap = prepared(one_device, model, config, state, samples)
    assert gap["logprob_gap_max"].value() < SAMPLER_TOLERANCE
    metrics = gradients(one_device, model, config, state.train, batches).metrics
    assert metrics["ratio_deviation_max"].value() == 0
    assert np.isfinite(metrics["kl"].value())
    assert 0 < metrics["entropy"].value() < np.log(config.sampling.sampling_mask_ids)
    # Without the masks the trainer sees another distribution.
    whole = rl_config(aggregation="token_mean", kl_coef=0.01, temperature=0.8)
    _, wrong = prepared(one_device, model, whole, state, samples)
    assert wrong["logprob_gap_max"].value() > 100 * SAMPLER_TOLERANCE


def test_log_probabilities_over_a_sampling_mask_equal_those_of_the_masked_distribution():
    rng = np.random.default_rng(0)
    logits, tokens = rng.normal(size=(2, 5, 11)), rng.integers(0, 11, (2, 5))
    masks = np.full((2, 5, 6), -1, np.int32)
    for place in np.ndindex(2, 5):
        kept = {int(tokens[place]), *rng.choice(11, rng.integers(0, 5), replace=False).tolist()}
        masks[place][: len(kept)] = sorted(kept)
    logp, entropy = token_logprobs(jnp.asarray(logits), jnp.asarray(tokens), 0.7, jnp.asarray(masks))
    for place in np.ndindex(2, 5):
        kept = masks[place][masks[place] >= 0]
        p = np.exp(logits[place][kept] / 0.7)
        p /= p.sum()
        assert float(logp[place]) == pytest.approx(np.log(p[list(kept).index(tokens[place])]), abs=1e-5)
        assert float(entropy[place]) == pytest.approx(-(p * np.log(p)).sum(), abs=1e-5)


def test_truncated_outputs_count_in_nothing_when_they_are_masked(one_device, model, policy, prompts):
    free = sample(one_device, model, policy, prompts, eos=-1)
    generation = sample(one_device, model, policy, prompts, eos=int(np.bincount(free.tokens_BGN.ravel()).argmax()))
    cut = ~generation.finished_BG
    assert cut.any()
    assert not cut.all()
    rewards = random_rewards()
    config = rl_config(mask_truncated=True)
    advantages = weighed(config, generation, rewards, ~cut)
    assert not advantages[cut].any()
    other = np.where(cut, 100.0, rewards)  # what they were given changes no other's advantage
    np.testing.assert_array_equal(advantages, weighed(config, generation, other, ~cut))
    for group, is_cut in zip(advantages, cut, strict=True):
        assert group[~is_cut].sum() == pytest.approx(0, abs=1e-5)


def test_the_overlong_penalty_is_part_of_the_advantage(one_device, model, policy, prompts):
    generation = sample(one_device, model, policy, prompts, group=2)
    generation = dataclasses.replace(generation, length_BG=np.array([[12, 6]] * 4, np.int32))
    config = rl_config(overlong_buffer=0.5, advantage="centred")
    advantages = weighed(config, generation, np.ones((4, 2), np.float32))
    np.testing.assert_allclose(advantages, [[-0.5, 0.5]] * 4, atol=1e-6)


def test_the_samplers_log_probabilities_as_the_old_ones(one_device, model, policy, prompts):
    """Rollouts in 8 bits: against the sampler's the first ratio is not 1, and weights make up for it."""
    generation = sample(one_device, model, policy, prompts, weight_dtype="int8")
    config = rl_config(importance="token")
    outputs = taught(prompts, generation, weighed(config, generation, random_rewards()))
    [trainer], _ = prepared(one_device, model, config, fresh_state(one_device, model, policy, config), outputs)
    config = rl_config(old_logprobs="sampler")
    state = fresh_state(one_device, model, policy, config)
    [sampler], _ = prepared(one_device, model, config, state, outputs)
    is_token = np.asarray(trainer.loss_mask_BT)
    gap = np.asarray(trainer.logprobs_old_BT - trainer.logprobs_sampler_BT)[is_token]
    np.testing.assert_array_equal(sampler.logprobs_old_BT, sampler.logprobs_sampler_BT)
    weights = np.asarray(importance_weights(trainer, rl_config(importance="token").loss))[is_token]
    np.testing.assert_allclose(weights, np.minimum(np.exp(gap), 2), rtol=1e-5)
    assert weights.std() > 0
    metrics = gradients(one_device, model, config, state.train, [sampler]).metrics
    assert metrics["ratio_deviation_max"].value() == pytest.approx(np.abs(np.expm1(gap)).max(), rel=1e-3)


def test_a_padding_token_that_was_drawn_is_a_token(model):
    generation = Generation(np.array([[[0, 5, 0]]]), np.zeros((1, 1, 3)), np.array([[2]]), np.array([[False]]))
    assert completion_mask(generation).tolist() == [[[1, 1, 0]]]
    rows = join(Prompts(np.array([[0, 9]]), np.array([1]), np.array([0])), generation)
    assert rows.segment_ids_BT.tolist() == [[0, 1, 1, 1, 0]]
    assert rows.positions_BT.tolist() == [[0, 0, 1, 2, 0]]
