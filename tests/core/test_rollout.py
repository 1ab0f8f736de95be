"""The rollout engine: whatever is batched with what, the same tokens, and each prompt run once."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1jax.config import EngineConfig, SamplingConfig
from r1jax.errors import RunError, UsageError
from r1jax.model.spec import init_params
from r1jax.parallel import programs, rollout_programs
from r1jax.parallel.memory import prefill_rows
from r1jax.rewards.grading import score_group
from r1jax.rollout import engine as engine_module
from r1jax.rollout.engine import RolloutEngine, bucket, buckets
from r1jax.types import Weights
from tests.shared.engines import SAMPLER_TOLERANCE, EndsWith, N, P, generate, make_engine, teacher_forced, tokens
from tests.shared.plain_rollouts import completion_mask, join, score, trainer_arrays


@pytest.fixture(scope="module")
def prompts() -> list[tuple[int, list[int]]]:
    rng = np.random.default_rng(0)
    return [(100 + i, rng.integers(8, 200, n).tolist()) for i, n in enumerate([1, 40, 7, 16, 17, 33, 2, 16, 25])]


@pytest.fixture(scope="module")
def eos(one_device, model, policy, prompts) -> int:
    """The token that is drawn most often: responses end early and late, and slots are refilled."""
    free = generate(make_engine(one_device, model, eos=-1), policy, prompts)
    drawn = np.concatenate([s.response_tokens for group in free for s in group])
    return int(np.bincount(drawn).argmax())


@pytest.fixture(scope="module")
def expected(one_device, model, policy, prompts, eos):
    """Everything at once, in one round."""
    engine = make_engine(one_device, model, eos=eos, slots=27, steps_per_round=N, prefill_rows=9)
    groups = generate(engine, policy, prompts)
    lengths = [len(s.response_tokens) for group in groups for s in group]
    assert engine.counts.rounds == 1
    assert min(lengths) < 5
    assert max(lengths) == N
    return tokens(groups)


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"slots": 1, "prefill_rows": 1},
        {"slots": 27, "steps_per_round": 1},
        {"slots": 5, "steps_per_round": 7, "prefill_rows": 2},
        {"prefill_chunk": 8},
        {"prefill_chunk": 5, "prefill_rows": 9},
    ],
    ids=str,
)
def test_slots_rounds_and_chunks_change_nothing(one_device, model, policy, prompts, eos, expected, config):
    engine = make_engine(one_device, model, eos=eos, **config)
    assert tokens(generate(engine, policy, prompts)) == expected
    assert engine.counts.prompts == len(prompts)  # each was run once, for a group of three
    assert engine.counts.tokens == sum(len(t) for group in expected for t in group)


def test_order_and_group_size_change_nothing(one_device, model, policy, prompts, eos, expected):
    engine = make_engine(one_device, model, eos=eos, group=2)
    order = [4, 0, 8, 2]
    assert tokens(generate(engine, policy, [prompts[i] for i in order])) == [expected[i][:2] for i in order]


def test_small_buckets_change_nothing(one_device, model, policy, prompts, eos, expected, monkeypatch):
    monkeypatch.setattr(engine_module, "SMALLEST_BUCKET", 8)
    engine = make_engine(one_device, model, eos=eos)
    assert engine.max_programs == 2 + 2 * 4 + 5
    made = {"prefill": set(), "width": set()}
    make_decode = rollout_programs.make_decode

    def count(spec, width):
        made["width"].add(width)
        return make_decode(spec, width)

    monkeypatch.setattr(rollout_programs, "make_decode", count)
    assert tokens(generate(engine, policy, prompts)) == expected
    assert made["width"] <= set(buckets(engine.width))
    assert len(made["width"]) > 2


def test_cost_follows_the_tokens_not_the_longest(one_device, model, policy, prompts, eos, expected):
    """With 4 slots the model steps are near tokens / slots; one batch after another takes the longest of each."""
    flat = sorted((len(t) for group in expected for t in group), reverse=True)
    engine = make_engine(one_device, model, eos=eos, slots=4, steps_per_round=1)
    generate(engine, policy, prompts)
    assert engine.counts.model_steps <= sum(flat) / 4 + 2 * N
    one_by_one = sum(max(len(t) for t in group) for group in expected)
    assert engine.counts.model_steps < one_by_one


@pytest.mark.parametrize("config", [{}, {"prefill_chunk": 7, "slots": 3}], ids=str)
def test_log_probabilities_equal_teacher_forced_ones(one_device, model, policy, prompts, eos, config):
    """For every prompt length, refill, chunk boundary, and end token first, last and never."""
    groups = generate(make_engine(one_device, model, eos=eos, temperature=0.8, **config), policy, prompts)
    arrays, generation = trainer_arrays(prompts, groups, P, N)
    mask = completion_mask(generation)
    gap = np.abs(teacher_forced(model, policy, arrays, generation, 0.8) - generation.logp_BGN) * mask
    assert float(gap.max()) < SAMPLER_TOLERANCE
    for (_, ids), group in zip(prompts, groups, strict=True):
        for sample in group:
            response = sample.response_tokens
            assert sample.tokens == ids + response
            assert sample.loss_mask == [0] * len(ids) + [1] * len(response)
            assert len(sample.logprobs) == len(sample.tokens)
            assert sample.logprobs[: len(ids)] == [0.0] * len(ids)
            assert sample.finished == (response[-1] == eos)
            assert sample.finish_reason == ("stop" if sample.finished else "length")
            assert eos not in response[:-1]
            assert sample.text == EndsWith(eos).decode(response[: len(response) - sample.finished])


def test_end_token_first_and_at_the_limit(one_device, model, policy, prompts):
    free = generate(make_engine(one_device, model, eos=-1), policy, prompts)[2][1].response_tokens
    for place in (0, N - 1):
        if free.index(free[place]) == place:
            sample = generate(make_engine(one_device, model, eos=free[place]), policy, prompts)[2][1]
            assert sample.response_tokens == free[: place + 1]
            assert sample.finished


def test_log_probabilities_are_those_of_the_truncated_distribution(one_device, model, policy, prompts, eos):
    """Normalised over the ids that come with each token; above the policy's own, which spread over all tokens."""
    engine = make_engine(one_device, model, eos=eos, top_k=3, min_new_tokens=4, keeps_sampling_masks=True)
    groups = generate(engine, policy, prompts)
    arrays, generation = trainer_arrays(prompts, groups, P, N)
    mask = np.asarray(completion_mask(generation)) > 0
    truncated = teacher_forced(model, policy, arrays, generation)
    assert np.abs(truncated - generation.logp_BGN)[mask].max() < SAMPLER_TOLERANCE
    samples = [s for group in groups for s in group]
    assert min(len(s.response_tokens) for s in samples) > 4
    for sample in samples:
        kept = sample.sampling_masks[sample.prompt_length :]
        assert ((kept >= 0).sum(axis=1) <= 3).all()
        assert (kept == np.asarray(sample.response_tokens)[:, None]).any(axis=1).all()
        assert eos not in kept[:4]
    own = teacher_forced(model, policy, arrays, dataclasses.replace(generation, masks_BGNK=None))
    differences = (truncated - own)[mask]
    assert (differences > -1e-6).all()
    assert differences.max() > 0.1
    without = make_engine(one_device, model, eos=eos, top_k=3, min_new_tokens=4)
    assert tokens(generate(without, policy, prompts)) == tokens(groups)


def test_a_stop_string_ends_a_sample_and_is_cut_off(one_device, model, policy, prompts, eos, expected):
    longest = max((t for group in expected for t in group), key=len)
    stop = EndsWith(0).decode(longest[8:10])
    plain = generate(make_engine(one_device, model, eos=eos), policy, prompts)
    stopped = generate(make_engine(one_device, model, eos=eos, stop=(stop,)), policy, prompts)
    cut = 0
    for before, after in zip((s for g in plain for s in g), (s for g in stopped for s in g), strict=True):
        if stop in before.text:
            cut += 1
            assert after.text == before.text[: before.text.find(stop)]
            assert after.tokens == before.tokens[: len(after.tokens)]
            assert len(after.tokens) == len(after.logprobs) == len(after.loss_mask) < len(before.tokens)
            assert after.finished
        else:
            assert (after.tokens, after.text) == (before.tokens, before.text)
    assert cut


def test_without_a_tokenizer_only_the_limit_ends(one_device, model, policy, prompts):
    engine = RolloutEngine(one_device, model, None, EngineConfig(slots=4), SamplingConfig(P, 5), 1)
    for group in generate(engine, policy, prompts):
        assert len(group[0].response_tokens) == 5
        assert (group[0].text, group[0].finished) == ("", False)


def test_more_than_one_token_may_end_a_sample(one_device, model, policy, prompts, eos, expected):
    other = next(t for group in expected for out in group for t in out[3:6] if t != eos)
    groups = generate(make_engine(one_device, model, eos=eos, stop_ids=(other,)), policy, prompts)
    for group, whole in zip(groups, expected, strict=True):
        for sample, ids in zip(group, whole, strict=True):
            cut = ids.index(other) + 1 if other in ids else len(ids)
            assert sample.response_tokens == ids[:cut]
            assert sample.finished == (sample.tokens[-1] in (eos, other))


def test_any_end_token_of_the_tokenizer_ends_a_sample_as_its_own_does(
    one_device, model, policy, prompts, eos, expected
):
    other = next(t for group in expected for out in group for t in out[3:6] if t != eos)
    engine = make_engine(one_device, model, eos=eos)
    engine.tokenizer.eos_ids = (eos, other)
    listed = generate(make_engine(one_device, model, eos=eos, stop_ids=(other,)), policy, prompts)
    groups = generate(engine, policy, prompts)
    assert tokens(groups) == tokens(listed)
    samples = [sample for group in groups for sample in group]
    ended = [sample for sample in samples if sample.tokens[-1] == other]
    assert ended
    assert {sample.finish_reason for sample in ended} == {"stop"}
    for sample in ended:
        assert sample.text == engine.tokenizer.decode(sample.response_tokens[:-1])
    score_group({}, samples, mask_truncated=True)
    assert [s.valid for s in samples] == [s.tokens[-1] in (eos, other) for s in samples]
    assert not all(s.valid for s in samples)


def test_ignoring_end_tokens_compiles_nothing(one_device, model):
    """One end token keeps the settings' shapes, and so the programs, that a dry run has without a tokenizer."""
    engine = make_engine(one_device, model)
    without = RolloutEngine(one_device, model, None, engine.config, engine.sampling, 1)
    assert engine.draw_settings().stop_ids.shape == without.draw_settings().stop_ids.shape == (1,)
    engine.tokenizer.eos_ids = (7, 8, 9)
    assert engine.draw_settings().stop_ids.tolist() == [7, 8, 9]
    assert engine.draw_settings(ignore_eos=True).stop_ids.tolist() == [-1, -1, -1]


def test_logits_that_are_not_finite_name_the_request(one_device, model, policy, prompts):
    params = policy[0] | {"head_DV": policy[0]["head_DV"].at[3, 5].set(jnp.nan)}
    with pytest.raises(RunError, match=r"problem 10\d, sample 0, token 0"):
        generate(make_engine(one_device, model), (params, policy[1]), prompts)


def test_requests_that_cannot_fit_are_refused_first(one_device, model, policy):
    with pytest.raises(UsageError, match=r"41 .*max_prompt_tokens"):
        generate(make_engine(one_device, model), policy, [(0, [1] * 41)])
    with pytest.raises(UsageError, match=r" 0 tokens.*max_prompt_tokens"):
        generate(make_engine(one_device, model), policy, [(0, [])])
    with pytest.raises(UsageError, match="max_position_embeddings"):
        make_engine(one_device, dataclasses.replace(model, max_position_embeddings=50))


def lower_round(layout, model, slots: int, width: int, weights=None, **engine):
    """A round of decoding as accelerators run it, scanned, lowered for the shapes of its arguments."""
    made = make_engine(layout, model, steps_per_round=4, **engine)
    spec = ScannedSpec(made.spec.layout, made.spec.model, made.spec.engine, made.spec.truncation)
    shapes = jax.eval_shape(rollout_programs.make_slots(spec, slots, width))
    weights = weights or programs.abstract_weights(model)
    run = rollout_programs.make_decode(spec, width)
    return run.lower(weights, shapes, np.zeros(slots, bool), np.int32(9), made.draw_settings())


class ScannedSpec(rollout_programs.RolloutSpec):
    unstacks = False


def test_a_decoding_round_holds_latents_and_no_heads(one_device, model, policy):
    """In the compiled round there is no key or value of a whole context, [.., W, H, N] or [.., H, W, N]."""
    c, S, W = model, 6, 96
    text = lower_round(one_device, c, S, W, Weights(*policy)).compile().as_text()
    X, H = c.kv_lora_rank + c.qk_rope_head_dim, c.num_attention_heads
    assert f"f32[1,{S},{W},{X}]" in text  # the cache
    for size in (c.qk_nope_head_dim, c.v_head_dim, c.qk_nope_head_dim + c.qk_rope_head_dim):
        for shape in (f"{S},{W},{H},{size}", f"{S},{H},{W},{size}", f"{S},{H},{size},{W}"):
            assert f"[{shape}]" not in text


def test_a_context_of_128k_tokens_is_held_once(one_device, model):
    """Compiled for 8 layers and never run: what a round needs beside the cache, which it updates in place, is less than
    half of it (scores, and one layer's slice)."""
    c = dataclasses.replace(model, num_hidden_layers=8, max_position_embeddings=131072)
    S, W = 4, 131072
    memory = lower_round(one_device, c, S, W).compile().memory_analysis()
    cache = 8 * S * W * (c.kv_lora_rank + c.qk_rope_head_dim) * 4
    assert memory.alias_size_in_bytes > cache
    assert memory.temp_size_in_bytes < 0.5 * cache


def test_bfloat16_rounds_alike_in_sampler_and_trainer(one_device, model, policy, prompts):
    """Computed in bfloat16 from float32 weights. Rounding alone sends some token to other experts in the trainer than
    in the sampler, which is most of the gap; replayed, it is a few units of the last of 8 bits, of logits up to 10."""
    c = dataclasses.replace(model, dtype="bfloat16")
    policy = (init_params(jax.random.key(1), dataclasses.replace(model, initializer_range=None)), policy[1])
    engine = make_engine(one_device, c, routing_replay=True)
    slots = jax.eval_shape(rollout_programs.make_slots(engine.spec, 1, 8))
    assert all(latents.dtype == jnp.bfloat16 for latents in jax.tree.leaves(slots.cache))
    groups = generate(engine, policy, prompts)

    arrays, generation = trainer_arrays(prompts, groups, P, N)
    rows, mask = join(arrays, generation), np.asarray(completion_mask(generation)).reshape(-1, N)
    routes = generation.routes_BGTLK.reshape(*rows.tokens_BT.shape, 1, -1)
    gaps = [
        np.abs(score(*policy, rows, N, 1.0, c, r)[0] - generation.logp_BGN.reshape(-1, N)) * mask
        for r in (None, routes)
    ]
    assert gaps[0].max() > 0.1
    assert gaps[1].max() < 0.05


def test_long_prompts_are_run_in_fewer_rows(one_device):
    config = EngineConfig(prefill_rows=16, prefill_chunk=512)
    assert [prefill_rows(one_device, config, P) for P in (128, 512, 513, 2048, 131072)] == [16, 16, 8, 4, 1]


def test_buckets():
    assert buckets(500) == [128, 256, 500]
    assert buckets(44) == [44]
    assert [bucket(n, 500) for n in (1, 128, 129, 256, 257, 500)] == [128, 128, 256, 256, 500, 500]
