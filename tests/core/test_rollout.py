"""The rollout engine: whatever is batched with what, the same tokens, and each prompt run once."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1jax.config import RolloutConfig
from r1jax.errors import RunError, UsageError
from r1jax.model.spec import init_params
from r1jax.parallel import programs
from r1jax.parallel.memory import prefill_rows
from r1jax.rollout import engine as engine_module
from r1jax.rollout.engine import RolloutEngine, bucket, buckets
from tests.core.test_sampling import SAMPLER_TOLERANCE, EndsWith, teacher_forced
from tests.shared.unpacked import completion_mask, join, score, trainer_arrays

P, N, EOS = 40, 20, 7


@pytest.fixture(scope="module")
def prompts() -> list[tuple[int, list[int]]]:
    rng = np.random.default_rng(0)
    return [(100 + i, rng.integers(8, 200, n).tolist()) for i, n in enumerate([1, 40, 7, 16, 17, 33, 2, 16, 25])]


def make_engine(layout, model, *, eos=EOS, group=3, new=N, tokenizer=None, **config) -> RolloutEngine:
    settings = RolloutConfig(**{"slots": 8, "steps_per_round": 6, "prefill_rows": 4} | config)
    return RolloutEngine(layout, model, tokenizer or EndsWith(eos), settings, group, P, new)


def generate(engine, policy, prompts, temperature=1.0, seed=0):
    return engine.generate(*policy, prompts, jax.random.key(seed), temperature)


def tokens(groups) -> list[list[list[int]]]:
    return [[output.tokens for output in group] for group in groups]


@pytest.fixture(scope="module")
def eos(one_device, model, policy, prompts) -> int:
    """The token that is drawn most often: outputs end early and late, and slots are refilled."""
    free = generate(make_engine(one_device, model, eos=-1), policy, prompts)
    drawn = np.concatenate([o.tokens for group in free for o in group])
    return int(np.bincount(drawn).argmax())


@pytest.fixture(scope="module")
def expected(one_device, model, policy, prompts, eos):
    """Everything at once, in one round."""
    engine = make_engine(one_device, model, eos=eos, slots=27, steps_per_round=N, prefill_rows=9)
    groups = generate(engine, policy, prompts)
    lengths = [len(o.tokens) for group in groups for o in group]
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
    decoder = programs.decoder

    def count(layout, model, config, width):
        made["width"].add(width)
        return decoder(layout, model, config, width)

    monkeypatch.setattr(programs, "decoder", count)
    assert tokens(generate(engine, policy, prompts)) == expected
    assert made["width"] <= set(buckets(engine.width))
    assert len(made["width"]) > 2


def test_cost_follows_the_tokens_not_the_longest(one_device, model, policy, prompts, eos, expected):
    """With 4 slots the model steps are near tokens / slots; one batch after another takes the longest of each."""
    flat = sorted((len(t) for group in expected for t in group), reverse=True)
    engine = make_engine(one_device, model, eos=eos, slots=4, steps_per_round=1)
    generate(engine, policy, prompts)
    assert engine.counts.steps <= sum(flat) / 4 + 2 * N
    one_by_one = sum(max(len(t) for t in group) for group in expected)
    assert engine.counts.steps < one_by_one


@pytest.mark.parametrize("config", [{}, {"prefill_chunk": 7, "slots": 3}], ids=str)
def test_log_probabilities_equal_teacher_forced_ones(one_device, model, policy, prompts, eos, config):
    """For every prompt length, refill, chunk boundary, and end token first, last and never."""
    groups = generate(make_engine(one_device, model, eos=eos, **config), policy, prompts, temperature=0.8)
    arrays, generation = trainer_arrays(prompts, groups, P, N)
    mask = completion_mask(generation)
    gap = np.abs(teacher_forced(model, policy, arrays, generation, 0.8) - generation.logp_BGN) * mask
    assert float(gap.max()) < SAMPLER_TOLERANCE
    for group in groups:
        for output in group:
            assert output.drawn_logprobs == pytest.approx(output.logprobs, abs=1e-6)
            assert output.finished == (output.tokens[-1] == eos)
            assert output.finish_reason == ("stop" if output.finished else "length")
            assert eos not in output.tokens[:-1]
            assert output.text == EndsWith(eos).decode(output.tokens[: len(output.tokens) - output.finished])


def test_end_token_first_and_at_the_limit(one_device, model, policy, prompts):
    free = generate(make_engine(one_device, model, eos=-1), policy, prompts)[2][1].tokens
    for place in (0, N - 1):
        if free.index(free[place]) == place:
            output = generate(make_engine(one_device, model, eos=free[place]), policy, prompts)[2][1]
            assert output.tokens == free[: place + 1]
            assert output.finished


def test_truncation_is_measured_beside_the_policy(one_device, model, policy, prompts, eos):
    engine = make_engine(one_device, model, eos=eos, top_k=3, min_new_tokens=4)
    groups = generate(engine, policy, prompts)
    arrays, generation = trainer_arrays(prompts, groups, P, N)
    gap = np.abs(teacher_forced(model, policy, arrays, generation) - generation.logp_BGN) * completion_mask(generation)
    assert float(gap.max()) < SAMPLER_TOLERANCE  # the policy's own, whatever is cut off
    outputs = [o for group in groups for o in group]
    assert min(len(o.tokens) for o in outputs) > 4
    differences = np.concatenate([np.subtract(o.drawn_logprobs, o.logprobs) for o in outputs])
    assert (differences > -1e-6).all()
    assert differences.max() > 0.1


def test_a_stop_string_ends_an_output_and_is_cut_off(one_device, model, policy, prompts, eos, expected):
    longest = max((t for group in expected for t in group), key=len)
    stop = EndsWith(0).decode(longest[8:10])
    plain = generate(make_engine(one_device, model, eos=eos), policy, prompts)
    stopped = generate(make_engine(one_device, model, eos=eos, stop=(stop,)), policy, prompts)
    cut = 0
    for before, after in zip((o for g in plain for o in g), (o for g in stopped for o in g), strict=True):
        if stop in before.text:
            cut += 1
            assert after.text == before.text[: before.text.find(stop)]
            assert after.tokens == before.tokens[: len(after.tokens)]
            assert len(after.tokens) == len(after.logprobs) == len(after.drawn_logprobs) < len(before.tokens)
            assert after.finished
        else:
            assert (after.tokens, after.text) == (before.tokens, before.text)
    assert cut


def test_without_a_tokenizer_only_the_limit_ends(one_device, model, policy, prompts):
    engine = RolloutEngine(one_device, model, None, RolloutConfig(slots=4), 1, P, 5)
    for group in generate(engine, policy, prompts):
        assert len(group[0].tokens) == 5
        assert (group[0].text, group[0].finished) == ("", False)


def test_more_than_one_token_may_end_an_output(one_device, model, policy, prompts, eos, expected):
    other = next(t for group in expected for out in group for t in out[3:6] if t != eos)
    outputs = generate(make_engine(one_device, model, eos=eos, stop_ids=(other,)), policy, prompts)
    for group, whole in zip(outputs, expected, strict=True):
        for output, tokens in zip(group, whole, strict=True):
            cut = tokens.index(other) + 1 if other in tokens else len(tokens)
            assert output.tokens == tokens[:cut]
            assert output.finished == (output.tokens[-1] in (eos, other))


def test_logits_that_are_not_finite_name_the_request(one_device, model, policy, prompts):
    params = policy[0] | {"head_DV": policy[0]["head_DV"].at[3, 5].set(jnp.nan)}
    with pytest.raises(RunError, match=r"not finite: prompt 10\d, sample 0, token 0"):
        generate(make_engine(one_device, model), (params, policy[1]), prompts)


def test_requests_that_cannot_fit_are_refused_first(one_device, model, policy):
    with pytest.raises(UsageError, match=r"a prompt has 41 tokens, expected 1 to 40: set max_prompt_tokens"):
        generate(make_engine(one_device, model), policy, [(0, [1] * 41)])
    with pytest.raises(UsageError, match="a prompt has 0 tokens"):
        generate(make_engine(one_device, model), policy, [(0, [])])
    with pytest.raises(UsageError, match="max_position_embeddings"):
        make_engine(one_device, dataclasses.replace(model, max_position_embeddings=50))


def test_a_decoding_round_holds_latents_and_no_heads(one_device, model, policy):
    """In the compiled round there is no key or value of a whole context, [.., W, H, N] or [.., H, W, N]."""
    c, r, S, W = model, RolloutConfig(steps_per_round=4), 6, 96
    slots = jax.eval_shape(programs.make_slots(one_device, c, r, S, W))
    settings = make_engine(one_device, c).settings(1.0, False)
    run = programs.make_decode(one_device, c, r, W)
    text = run.lower(*policy, slots, np.zeros(S, bool), np.int32(9), settings).compile().as_text()
    X, H = c.kv_lora_rank + c.qk_rope_head_dim, c.num_attention_heads
    assert f"f32[1,{S},{W},{X}]" in text  # the cache
    for size in (c.qk_nope_head_dim, c.v_head_dim, c.qk_nope_head_dim + c.qk_rope_head_dim):
        for shape in (f"{S},{W},{H},{size}", f"{S},{H},{W},{size}", f"{S},{H},{size},{W}"):
            assert f"[{shape}]" not in text


def test_a_context_of_128k_tokens_is_held_once(one_device, model):
    """Compiled for 8 layers and never run: what a round needs beside the cache, which it updates in place, is less than
    half of it (scores, and one layer's slice)."""
    c = dataclasses.replace(model, num_hidden_layers=8, max_position_embeddings=131072)
    r, S, W = RolloutConfig(steps_per_round=4), 4, 131072
    slots = jax.eval_shape(programs.make_slots(one_device, c, r, S, W))
    settings = make_engine(one_device, model).settings(1.0, False)
    run = programs.make_decode(one_device, c, r, W)
    lowered = run.lower(*programs.abstract_policy(c), slots, np.zeros(S, bool), np.int32(9), settings)
    memory = lowered.compile().memory_analysis()
    cache = 8 * S * W * (c.kv_lora_rank + c.qk_rope_head_dim) * 4
    assert memory.alias_size_in_bytes > cache
    assert memory.temp_size_in_bytes < 0.5 * cache


def test_bfloat16_rounds_alike_in_sampler_and_trainer(one_device, model, policy, prompts):
    """Computed in bfloat16 from float32 weights. Rounding alone sends some token to other experts in the trainer than
    in the sampler, which is most of the gap; replayed, it is a few units of the last of 8 bits, of logits up to 10."""
    c = dataclasses.replace(model, dtype="bfloat16")
    policy = (init_params(jax.random.key(0), dataclasses.replace(model, initializer_range=None)), policy[1])
    engine = make_engine(one_device, c, routing_replay=True)
    slots = jax.eval_shape(programs.make_slots(one_device, c, engine.config, 1, 8))
    assert all(latents.dtype == jnp.bfloat16 for latents in slots.cache.values())
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
    config = RolloutConfig(prefill_rows=16, prefill_chunk=512)
    assert [prefill_rows(one_device, config, P) for P in (128, 512, 513, 2048, 131072)] == [16, 16, 8, 4, 1]


def test_buckets():
    assert buckets(500) == [128, 256, 500]
    assert buckets(44) == [44]
    assert [bucket(n, 500) for n in (1, 128, 129, 256, 257, 500)] == [128, 128, 256, 256, 500, 500]
