"""A tokenizer with fewer ids than the model: what it lacks is never drawn, and sampler and trainer agree on that."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from r1jax.checkpoint.store import find_checkpoint, read_metadata
from r1jax.config import BaseConfig
from r1jax.data.toy.running_sum import TOKENIZER
from r1jax.errors import UsageError
from r1jax.model.transformer import forward, logits
from r1jax.objectives.language_model import LossTerms, language_model_loss
from r1jax.runs.policy import base_model, load_policy
from r1jax.types import TokenBatch
from tests.shared.checkpoints import export, import_, make_checkpoint, read_tensors
from tests.shared.configs import rl_config
from tests.shared.engines import SAMPLER_TOLERANCE, N, P, generate, make_engine
from tests.shared.plain_rollouts import fresh_state, gradients, prepared, taught, trainer_arrays

SIZE = 100  # ids of the tokenizer, of the model's 208


@pytest.fixture(scope="module")
def padded(model):
    return dataclasses.replace(model, tokenizer_size=SIZE)


@pytest.fixture(scope="module")
def prompts() -> list[tuple[int, list[int]]]:
    rng = np.random.default_rng(0)
    return [(i, rng.integers(3, SIZE, n).tolist()) for i, n in enumerate((5, 9, 2))]


def drawn(groups) -> np.ndarray:
    return np.concatenate([sample.response_tokens for group in groups for sample in group])


@pytest.mark.parametrize(
    "config", [{"top_p": 0.9, "slots": 4}, pytest.param({"speculative": True}, marks=pytest.mark.slow)], ids=str
)
def test_no_padding_is_drawn_and_sampler_and_trainer_agree(one_device, model, padded, policy, prompts, config):
    config = config | {"temperature": 0.7, "keeps_sampling_masks": True}
    assert drawn(generate(make_engine(one_device, model, eos=-1, **config), policy, prompts)).max() >= SIZE
    engine = make_engine(one_device, padded, eos=-1, **config)
    groups = generate(engine, policy, prompts)
    assert drawn(groups).max() < SIZE
    arrays, generation = trainer_arrays(prompts, groups, P, N)
    c = rl_config(steps=1, prompts_per_step=3, group_size=3, engine=engine.config, sampling=engine.sampling)
    state = fresh_state(one_device, padded, policy, c)
    samples = taught(arrays, generation, np.linspace(-1, 1, 9).reshape(3, 3))
    batches, metrics = prepared(one_device, padded, c, state, samples)
    assert metrics["logprob_gap_max"].value() < SAMPLER_TOLERANCE
    total = gradients(one_device, padded, c, state.train, batches)
    head_DV = np.asarray(total.sums["head_DV"])
    assert np.isfinite(head_DV).all()
    assert not head_DV[:, SIZE:].any() and head_DV[:, :SIZE].any()
    found = {name: metric.value() for name, metric in total.metrics.items()}
    assert found["ratio_max"] == found["ratio_min"] == 1
    assert 0 < found["entropy"] < np.log(SIZE)  # at a temperature below 1


def test_log_probabilities_by_hand(one_device, padded, policy, prompts):
    """Those of a softmax over the tokenizer's ids alone."""
    engine = make_engine(one_device, padded, eos=-1, temperature=0.7)
    (sample, *_), *_ = generate(engine, policy, prompts)
    whole, start = sample.tokens, sample.prompt_length
    batch = TokenBatch(jnp.asarray([whole]), jnp.arange(len(whole))[None], jnp.ones((1, len(whole)), jnp.int32))
    logits_TV = logits(policy[0], forward(*policy, batch, padded).hidden_BTD)[0, start - 1 : -1, :SIZE]
    logp_TV = jax.nn.log_softmax(logits_TV / 0.7)
    by_hand = np.asarray(logp_TV)[np.arange(N), sample.response_tokens]
    np.testing.assert_allclose(sample.response_logprobs, by_hand, atol=SAMPLER_TOLERANCE)


def test_padding_is_not_drawn_even_where_it_is_likeliest(one_device, padded, policy, prompts):
    params, bias = policy
    towards = params | {"head_DV": params["head_DV"].at[:, SIZE:].multiply(1e4)}
    for temperature in (0.0, 5.0):
        engine = make_engine(one_device, padded, eos=-1, temperature=temperature)
        groups = generate(engine, (towards, bias), prompts)
        assert drawn(groups).max() < SIZE
        logprobs = [x for group in groups for sample in group for x in sample.logprobs]
        assert np.isfinite(logprobs).all() and min(logprobs) > -100


def test_the_language_model_loss_leaves_padding_out(padded, model, policy):
    tokens = jnp.asarray(np.random.default_rng(1).integers(0, SIZE, (2, 20)), jnp.int32)
    batch = TokenBatch(tokens, jnp.broadcast_to(jnp.arange(20), (2, 20)), jnp.ones((2, 20), jnp.int32))
    params = policy[0] | {"head_DV": policy[0]["head_DV"][:, :SIZE]}
    cases = ((params, model), (policy[0], padded))
    expected, loss = (
        float(language_model_loss(p, policy[1], batch, LossTerms("train", 0.3, 0.0), c)[0]) for p, c in cases
    )
    assert loss == pytest.approx(expected, rel=1e-6)


def test_an_import_knows_its_tokenizers_size(tmp_path, model, one_device):
    larger = dataclasses.replace(model, vocab_size=256, experts="grouped")
    make_checkpoint(tmp_path / "ours", larger)
    export(tmp_path / "ours", tmp_path / "hf")
    TOKENIZER.save(epath.Path(tmp_path / "hf"))
    import_(tmp_path / "hf", tmp_path / "base")
    assert load_policy(epath.Path(tmp_path / "base"), one_device).model.tokenizer_size == TOKENIZER.size == 208
    base = base_model(BaseConfig(str(tmp_path / "base"), dtype="bfloat16", experts="dense"))
    saved, _ = read_metadata(*find_checkpoint(epath.Path(tmp_path / "base")))
    assert base == dataclasses.replace(saved, dtype="bfloat16", experts="dense")
    export(tmp_path / "base", tmp_path / "again")
    assert "tokenizer_size" not in json.loads((tmp_path / "again" / "config.json").read_text())
    assert read_tensors(tmp_path / "again") == read_tensors(tmp_path / "hf")  # padding rows too
    with pytest.raises(UsageError, match="BaseConfig.*import-hf"):
        base_model(BaseConfig(str(tmp_path / "nowhere")))
    with pytest.raises(UsageError, match="BaseConfig.*experts.*'many'"):
        base_model(BaseConfig(str(tmp_path / "base"), experts="many"))


def test_a_size_that_the_model_cannot_have(model):
    for size in (0, 209):
        with pytest.raises(ValueError, match=f"tokenizer_size is {size}.*vocab_size"):
            dataclasses.replace(model, tokenizer_size=size)
