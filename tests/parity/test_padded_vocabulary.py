"""A tokenizer with fewer ids than the model: what it lacks is never drawn, and sampler and trainer agree on that."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from r1jax.checkpoint.store import find, read_about
from r1jax.config import BaseConfig, OptimizerConfig, RLConfig, RolloutConfig
from r1jax.data.toy.running_sum import TOKENIZER
from r1jax.errors import UsageError
from r1jax.model.transformer import forward, logits
from r1jax.objectives.language_model import language_model_loss
from r1jax.runs.policy import base_model, load_policy
from r1jax.types import TokenBatch
from tests.core.test_rollout import N, P, generate, make_engine
from tests.parity.test_published import export, import_, make_checkpoint, read_tensors
from tests.shared.unpacked import fresh_state, gradients, prepared, taught, trainer_arrays

SIZE = 100  # ids of the tokenizer, of the model's 208
TOLERANCE = 1e-4  # of float32 log-probabilities, as in tests/core/test_sampling.py


@pytest.fixture(scope="module")
def padded(model):
    return dataclasses.replace(model, tokenizer_size=SIZE)


@pytest.fixture(scope="module")
def prompts() -> list[tuple[int, list[int]]]:
    rng = np.random.default_rng(0)
    return [(i, rng.integers(3, SIZE, n).tolist()) for i, n in enumerate((5, 9, 2))]


def drawn(groups) -> np.ndarray:
    return np.concatenate([output.tokens for group in groups for output in group])


def rl_config(temperature: float) -> RLConfig:
    return RLConfig(
        OptimizerConfig(1e-3), RolloutConfig(), steps=1, questions=3, group_size=3, minibatches=1, prompts=3,
        max_prompt_tokens=P, max_new_tokens=N, temperature=temperature,
    )  # fmt: skip


@pytest.mark.parametrize("config", [{}, {"top_p": 0.9, "slots": 4}, {"speculative": True}], ids=str)
def test_no_padding_is_drawn_and_sampler_and_trainer_agree(one_device, model, padded, policy, prompts, config):
    temperature = 0.7
    assert drawn(generate(make_engine(one_device, model, eos=-1, **config), policy, prompts, temperature)).max() >= SIZE
    groups = generate(make_engine(one_device, padded, eos=-1, **config), policy, prompts, temperature)
    assert drawn(groups).max() < SIZE
    arrays, generation = trainer_arrays(prompts, groups, P, N)
    c = rl_config(temperature)
    state = fresh_state(one_device, padded, policy, c)
    outputs = taught(arrays, generation, np.linspace(-1, 1, 9).reshape(3, 3))
    batches, metrics = prepared(one_device, padded, c, state, outputs)
    assert metrics["logprob_gap_max"].value() < TOLERANCE
    total = gradients(one_device, padded, c, state.train, batches)
    head_DV = np.asarray(total.sums["head_DV"])
    assert np.isfinite(head_DV).all()
    assert not head_DV[:, SIZE:].any() and head_DV[:, :SIZE].any()
    found = {name: metric.value() for name, metric in total.metrics.items()}
    assert found["ratio_max"] == found["ratio_min"] == 1
    assert 0 < found["entropy"] < np.log(SIZE)  # at a temperature below 1


def test_log_probabilities_by_hand(one_device, padded, policy, prompts):
    """Those of a softmax over the tokenizer's ids alone."""
    (output, *_), *_ = generate(make_engine(one_device, padded, eos=-1), policy, prompts, 0.7)
    whole = [*prompts[0][1], *output.tokens]
    batch = TokenBatch(jnp.asarray([whole]), jnp.arange(len(whole))[None], jnp.ones((1, len(whole)), jnp.int32))
    logits_TV = logits(policy[0], forward(*policy, batch, padded).hidden_BTD)[0, len(prompts[0][1]) - 1 : -1, :SIZE]
    logp_TV = jax.nn.log_softmax(logits_TV / 0.7)
    by_hand = np.asarray(logp_TV)[np.arange(N), output.tokens]
    np.testing.assert_allclose(output.logprobs, by_hand, atol=TOLERANCE)


def test_padding_is_not_drawn_even_where_it_is_likeliest(one_device, padded, policy, prompts):
    params, bias = policy
    towards = params | {"head_DV": params["head_DV"].at[:, SIZE:].multiply(1e4)}
    for temperature in (0.0, 5.0):
        groups = generate(make_engine(one_device, padded, eos=-1), (towards, bias), prompts, temperature)
        assert drawn(groups).max() < SIZE
        logprobs = [x for group in groups for output in group for x in output.logprobs]
        assert np.isfinite(logprobs).all() and min(logprobs) > -100


def test_the_language_model_loss_leaves_padding_out(padded, model, policy):
    tokens = jnp.asarray(np.random.default_rng(1).integers(0, SIZE, (2, 20)), jnp.int32)
    batch = TokenBatch(tokens, jnp.broadcast_to(jnp.arange(20), (2, 20)), jnp.ones((2, 20), jnp.int32))
    params = policy[0] | {"head_DV": policy[0]["head_DV"][:, :SIZE]}
    cases = ((params, model), (policy[0], padded))
    expected, loss = (float(language_model_loss(p, policy[1], batch, c, 0.3, 0.0)[0]) for p, c in cases)
    assert loss == pytest.approx(expected, rel=1e-6)


def test_an_import_knows_its_tokenizers_size(tmp_path, model, one_device):
    larger = dataclasses.replace(model, vocab_size=256, experts="grouped")
    make_checkpoint(tmp_path / "ours", larger)
    export(tmp_path / "ours", tmp_path / "hf")
    TOKENIZER.save(epath.Path(tmp_path / "hf"))
    import_(tmp_path / "hf", tmp_path / "base")
    assert load_policy(epath.Path(tmp_path / "base"), one_device).model.tokenizer_size == TOKENIZER.size == 208
    base = base_model(BaseConfig(str(tmp_path / "base"), dtype="bfloat16", experts="dense"))
    saved, _ = read_about(*find(epath.Path(tmp_path / "base")))
    assert base == dataclasses.replace(saved, dtype="bfloat16", experts="dense")
    export(tmp_path / "base", tmp_path / "again")
    assert "tokenizer_size" not in json.loads((tmp_path / "again" / "config.json").read_text())
    assert read_tensors(tmp_path / "again") == read_tensors(tmp_path / "hf")  # padding rows too
    with pytest.raises(UsageError, match="BaseConfig: no checkpoint at .*import-hf"):
        base_model(BaseConfig(str(tmp_path / "nowhere")))
    with pytest.raises(UsageError, match="BaseConfig: experts is 'many'"):
        base_model(BaseConfig(str(tmp_path / "base"), experts="many"))


def test_a_size_that_the_model_cannot_have(model):
    for size in (0, 209):
        with pytest.raises(ValueError, match=f"tokenizer_size is {size}, expected 1 to vocab_size"):
            dataclasses.replace(model, tokenizer_size=size)
