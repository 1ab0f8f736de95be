"""The sampler against the trainer's view of the same tokens."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1jax.config import OptimizerConfig, RLConfig
from r1jax.parallel import programs
from r1jax.sampling.generate import draw, prompt_batch
from r1jax.sampling.score import completion_mask, join, score
from r1jax.types import Generation, Prompts

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


def sample(layout, model, policy, prompts, *, group=4, new=12, temperature=1.0, eos=EOS, seed=0) -> Generation:
    run = programs.sampler(layout, model, group, new)
    return jax.device_get(run(*policy, prompts, jax.random.key(seed), np.float32(temperature), np.int32(eos)))


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


def test_the_loop_ends_with_the_last_output(one_device, model, policy, prompts):
    free = sample(one_device, model, policy, prompts, group=1, eos=-1)
    eos = int(free.tokens_BGN[0, 0, 0])
    alone = jax.tree.map(lambda x: x[:1], prompts)
    stopped = sample(one_device, model, policy, alone, group=1, eos=eos)
    assert stopped.length_BG.tolist() == [[1]]
    assert not stopped.tokens_BGN[0, 0, 1:].any()  # nothing was run after it


def test_a_sample_depends_on_its_prompt_and_index_only(one_device, model, policy, prompts):
    whole = sample(one_device, model, policy, prompts)
    order = np.array([2, 0])
    part = sample(one_device, model, policy, jax.tree.map(lambda x: x[order], prompts), group=2)
    np.testing.assert_array_equal(part.length_BG, whole.length_BG[order, :2])
    mask = np.asarray(completion_mask(part)) > 0
    np.testing.assert_array_equal(part.tokens_BGN[mask], whole.tokens_BGN[order, :2][mask])
    wider = dataclasses.replace(prompts, tokens_BP=np.pad(prompts.tokens_BP, ((0, 0), (6, 0))))
    np.testing.assert_array_equal(sample(one_device, model, policy, wider).length_BG, whole.length_BG)


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


def test_draws_follow_the_distribution():
    logits = jnp.log(jnp.array([0.5, 0.3, 0.2]))
    keys = jax.random.split(jax.random.key(0), (1, 20000))
    tokens, _ = draw(jnp.broadcast_to(logits, (1, 20000, 3)), keys, jnp.int32(0), jnp.float32(1.0))
    shares = np.bincount(np.asarray(tokens[0]), minlength=3) / 20000
    np.testing.assert_allclose(shares, [0.5, 0.3, 0.2], atol=4 * (0.25 / 20000) ** 0.5)  # four standard errors


def test_prompt_is_padded_on_the_left():
    batch = prompt_batch(Prompts(np.array([[0, 0, 7, 8]]), np.array([2]), np.array([0])))
    assert batch.segments_BT.tolist() == [[0, 0, 1, 1]]
    assert batch.positions_BT.tolist() == [[0, 0, 0, 1]]


def rl_config(**changes) -> RLConfig:
    numbers = dict(
        optimizer=OptimizerConfig(1e-3), steps=4, questions=4, group_size=4, minibatches=1, max_prompt_tokens=10,
        max_new_tokens=12, prompts=8,
    )  # fmt: skip
    return RLConfig(**numbers | changes)


@pytest.mark.parametrize("aggregation", ["token_mean", "sequence_mean"])
def test_before_the_first_update_the_ratio_is_one(one_device, model, policy, prompts, aggregation):
    from r1jax.types import RLState

    config = rl_config(aggregation=aggregation)
    generation = programs.sampler(one_device, model, 4, 12)(
        *policy, prompts, jax.random.key(0), np.float32(1), np.int32(EOS)
    )
    train = programs.start_training(one_device, model, config.optimizer)(*programs.snapshot(policy))
    state = RLState(train, *programs.snapshot(policy), np.int32(0))
    rewards = np.random.default_rng(0).random((4, 4)).astype(np.float32)
    batch = programs.prepare_batch(one_device, model)(state, prompts, generation, rewards, np.float32(1))
    _, metrics = programs.grpo_step(one_device, model, config)(train, batch, np.arange(16), np.float32(1))
    assert metrics["ratio_deviation_max"].value() < 1e-5
    assert metrics["clip_fraction"].value() == 0
    assert metrics["kl"].value() == pytest.approx(0, abs=1e-9)
    assert programs.sampler_gap(batch, generation)["sampler_gap_max"].value() < SAMPLER_TOLERANCE


def test_a_padding_token_that_was_drawn_is_a_token(model):
    generation = Generation(np.array([[[0, 5, 0]]]), np.zeros((1, 1, 3)), np.array([[2]]), np.array([[False]]))
    assert completion_mask(generation).tolist() == [[[1, 1, 0]]]
    rows = join(Prompts(np.array([[0, 9]]), np.array([1]), np.array([0])), generation)
    assert rows.segments_BT.tolist() == [[0, 1, 1, 1, 0]]
    assert rows.positions_BT.tolist() == [[0, 0, 1, 2, 0]]
