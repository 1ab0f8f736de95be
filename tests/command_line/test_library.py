"""The library: each function is what the stages run, and docs/library.md's examples work, in ten lines or less."""

import inspect
import os
import re
import subprocess
import sys
from dataclasses import fields, is_dataclass, replace

import jax
import numpy as np
import pytest
from etils import epath

import r1jax
from r1jax import config
from r1jax.config import LossConfig
from r1jax.data.feeds import write_problems
from r1jax.data.tasks import TASKS
from r1jax.errors import UsageError
from r1jax.library import checked, make_rl_config
from r1jax.model.transformer import sequence_logits
from r1jax.objectives.optimizer import policy_gradients
from r1jax.parallel.programs import make_logits
from r1jax.rewards.rules import Reward
from r1jax.rollout.advantages import compute_advantages
from r1jax.rollout.engine import buckets
from r1jax.runs.policy import Policy
from r1jax.runs.run import Experiment, open_run
from r1jax.stages.rl import Trainer, rl
from r1jax.telemetry.progress import Progress
from r1jax.types import Problem, TokenBatch
from tests.conftest import ROOT
from tests.shared.byte_tokenizer import publish_bytes
from tests.shared.checkpoints import contents
from tests.shared.engines import SAMPLER_TOLERANCE

PAGE = (ROOT / "docs" / "library.md").read_text()
EXAMPLES = dict(re.findall(r"^## ([^\n]+)\n(?:(?!^## ).)*?```python\n(.*?)```", PAGE, re.DOTALL | re.MULTILINE))
HUB = '"HuggingFaceTB/SmolLM2-135M-Instruct"'
DRAW = {"temperature": 0.8, "max_new_tokens": 12}
QUESTIONS = ["compute 3 #a - 1", "compute 3 #a - 1 #b + 7"]


@pytest.fixture(scope="module")
def loaded(saved_policy) -> Policy:
    return r1jax.load(str(saved_policy))


@pytest.fixture(scope="module")
def groups(loaded):
    """Samples whose rewards differ within each group."""
    found = r1jax.sample(loaded, QUESTIONS, n=4, **DRAW)
    for group in found:
        for sample in group:
            sample.reward = sum(sample.tokens) % 97 / 97
    return found


def test_importing_is_quick_and_imports_no_jax():
    code = """
import sys, time
start = time.perf_counter()
import r1jax
print(time.perf_counter() - start, *(name for name in ("jax", "numpy", "r1jax.library") if name in sys.modules))
print(*(name for name in r1jax.__all__ if name not in dir(r1jax)))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    seconds, *imported = done.stdout.splitlines()[0].split()
    assert float(seconds) < 0.3 and not imported
    assert not done.stdout.splitlines()[1]


def test_loading_starts_as_commands_do(tmp_path):
    """With the same compilation cache, gs:// paths by gcsfs, and without the log lines of other libraries."""
    code = """
import os, r1jax
try:
    r1jax.load("runs/none")
except r1jax.UsageError:
    import jax
    from absl import logging
    print(jax.config.jax_compilation_cache_dir, os.environ["EPATH_USE_TF"], logging.get_verbosity())
"""
    unset = ("JAX_COMPILATION_CACHE_DIR", "EPATH_USE_TF", "XLA_FLAGS")
    variables = {name: value for name, value in os.environ.items() if name not in unset}
    variables |= {"HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=variables, capture_output=True, text=True)
    assert done.stdout.split() == [str(tmp_path / ".cache" / "r1jax" / "xla"), "false", "-3"], done.stderr
    assert not done.stderr


def test_public_names_are_documented():
    """Each argument of a function has a word in its docstring, each field of a config one in its own."""
    assert len(r1jax.__all__) == len(set(r1jax.__all__))
    public = {name: getattr(r1jax, name) for name in r1jax.__all__}
    for name, value in (vars(config) | public).items():
        text = inspect.getdoc(value) or ""
        assert text or name not in public, name
        if inspect.isclass(value) and is_dataclass(value):
            missing = [field.name for field in fields(value) if not re.search(rf"\b{field.name}\b", text)]
            assert not missing, (name, missing)
        if inspect.isfunction(value) and name in public:
            missing = [word for word in inspect.signature(value).parameters if not re.search(rf"\b{word}\b", text)]
            assert not missing, (name, missing)
            assert "Returns" in text and "Raises" in text, name
    with pytest.raises(AttributeError, match="no attribute 'sampel'"):
        r1jax.sampel  # noqa: B018


def test_logits_are_the_models(loaded, model, policy):
    ids = loaded.encode(QUESTIONS[1])
    found, of_ids, other = r1jax.logits(loaded, [QUESTIONS[1], ids, ids[:3]])
    row = np.asarray([ids])
    batch = TokenBatch(row, np.arange(row.size)[None], np.ones_like(row))
    expected = jax.jit(lambda batch: sequence_logits(jax.tree.map(jax.numpy.asarray, loaded.weights), batch, model))
    np.testing.assert_allclose(found, expected(batch)[0], atol=1e-4)  # other kernels for padded rows
    np.testing.assert_array_equal(found, of_ids)
    np.testing.assert_allclose(other, found[:3], atol=1e-4)
    assert found.dtype == np.float32 and found.shape == (len(ids), model.vocab_size)


def test_prompts_of_many_lengths_share_few_programs(loaded):
    longest = loaded.model.max_position_embeddings
    prompts = [[1 + i % 9 for i in range(length)] for length in (longest, 1, 30, 2, 29, 3)]
    found = r1jax.logits(loaded, prompts)
    assert [len(one) for one in found] == [len(prompt) for prompt in prompts]  # in the order of the prompts
    np.testing.assert_allclose(found[2][:29], found[4], atol=1e-4)
    run = make_logits(loaded.layout, loaded.model)
    assert run._cache_size() <= len(buckets(longest))


@pytest.mark.parametrize("sampling", [DRAW, DRAW | {"top_k": 5, "min_new_tokens": 2}])
def test_the_trainers_logprobs_are_the_engines(loaded, sampling):
    groups = r1jax.sample(loaded, QUESTIONS, n=6, **sampling)  # more than a microbatch
    samples = [sample for group in groups for sample in group]
    assert {sample.problem.question for sample in samples} == set(QUESTIONS)
    for sample, scores in zip(samples, r1jax.logprobs(loaded, samples, **sampling), strict=True):
        assert scores.dtype == np.float32 and scores.shape == (len(sample.tokens),)
        np.testing.assert_allclose(scores, sample.logprobs, atol=SAMPLER_TOLERANCE)
        assert all(scores[: sample.prompt_length] == 0)
    if "top_k" in sampling:
        with pytest.raises(UsageError, match="truncated"):
            r1jax.logprobs(loaded, samples, **DRAW)


def test_logprobs_of_written_responses(loaded):
    [written] = r1jax.logprobs(loaded, [r1jax.make_sample(loaded, QUESTIONS[0], "2 3")])
    ids = [*loaded.ask(QUESTIONS[0]), *loaded.tokenizer.encode("2 3"), loaded.tokenizer.eos_id]
    [logits] = r1jax.logits(loaded, [ids])
    expected = jax.nn.log_softmax(logits)[np.arange(len(ids) - 1), ids[1:]]
    np.testing.assert_allclose(written[-3:], expected[-3:], atol=1e-4)
    assert not written[:-3].any()


def test_samples_are_the_engines_whatever_is_drawn_beside_them(loaded, groups):
    again = r1jax.sample(loaded, [loaded.ask(QUESTIONS[0])], n=2, **DRAW)
    assert [s.tokens for s in again[0]] == [s.tokens for s in groups[0][:2]]
    other = r1jax.sample(loaded, QUESTIONS[0], n=2, seed=1, **DRAW)
    assert [s.tokens for s in other[0]] != [s.tokens for s in again[0]]


@pytest.mark.parametrize("loss", [LossConfig(), LossConfig(aggregation="constant_length", kl_coef=0.0)])
def test_loss_and_gradient_are_those_of_rls_programs(loaded, groups, loss):
    value, gradient, metrics = r1jax.grpo(loaded, groups, loss, **DRAW)
    numbers = dict(steps=1, prompts_per_step=2, group_size=4, minibatches_per_rollout=1, num_prompts=2, loss=loss)
    settings = make_rl_config(numbers | DRAW | {"learning_rate": 1.0, "max_prompt_tokens": 24})
    trainer = Trainer(loaded.layout, loaded.model, settings)
    state = trainer.start(loaded.path)
    samples = compute_advantages(groups, loss, settings.sampling)
    [minibatch], _ = trainer.add_logprobs(state, [samples])
    total = trainer.gradients(state.train.weights, minibatch, lambda: None)
    expected = policy_gradients(total.sums, total.weight, total.mtp_weight)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5, rtol=1e-4), gradient, expected)
    assert value == pytest.approx(total.metrics["loss"].value(), abs=1e-6)
    assert metrics["ratio_deviation_max"] == 0 and metrics["logprob_gap_max"] < SAMPLER_TOLERANCE
    assert max(abs(x).max() for x in jax.tree.leaves(gradient)) > 1e-3


@pytest.mark.slow
def test_a_sharded_policy_is_the_same(saved_policy, loaded, groups):
    """Over eight devices, none of which has all of the policy, and with fewer prompts than devices."""
    sharded = r1jax.load(saved_policy, mesh=r1jax.MeshConfig(data=2, fsdp=4))
    assert len(jax.tree.leaves(sharded.weights.params)[0].devices()) == 8
    for ours, one in zip(r1jax.logits(sharded, QUESTIONS), r1jax.logits(loaded, QUESTIONS), strict=True):
        np.testing.assert_allclose(ours, one, atol=1e-4)
    again = r1jax.sample(sharded, QUESTIONS, n=4, **DRAW)
    assert [[s.tokens for s in group] for group in again] == [[s.tokens for s in group] for group in groups]
    value, gradient, _ = r1jax.grpo(sharded, groups, **DRAW)
    expected, of_one, _ = r1jax.grpo(loaded, groups, **DRAW)
    assert value == pytest.approx(expected, abs=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4, rtol=1e-3), gradient, of_one)


def test_training_is_the_stage_of_an_experiment(loaded, experiment_config, one_device, tmp_path):
    problems = [Problem(n, q, "", "en") for n, q in enumerate(f"compute {n} #a - {m}" for n in (3, 4) for m in (1, 2))]

    def varied(sample):
        return sum(sample.tokens) % 97 / 97

    settings = DRAW | {"steps": 2, "prompts_per_step": 2, "group_size": 4, "learning_rate": 1e-3, "seed": 3}
    trained = r1jax.train(loaded, problems, varied, tmp_path / "ours", **settings)
    assert trained.path == epath.Path(tmp_path / "ours" / "rl")

    schedule = make_rl_config(
        {name: x for name, x in settings.items() if name != "seed"}
        | {"max_prompt_tokens": max(len(loaded.ask(p.question)) for p in problems), "num_prompts": 4}
        | {"minibatches_per_rollout": 1, "microbatch_rows": 8}
    )
    opened = open_run(str(tmp_path / "theirs"), Experiment("other"), experiment_config, one_device, Progress())
    run = replace(opened, model=loaded.model, task=TASKS["running_sum"], seed=3)
    records = write_problems(problems, "problems", run.workdir / "data")
    directory = rl(run.stage("rl"), schedule, loaded.path, records, {"score": Reward(varied, 1.0)})
    ours, theirs = (contents(stage / "checkpoints" / "2") for stage in (trained.path, directory))
    assert ours.keys() == theirs.keys()
    for name in ours:
        np.testing.assert_array_equal(ours[name], theirs[name], err_msg=name)
    assert any((ours[name] != x).any() for name, x in contents(loaded.path / "checkpoints" / "1").items()
               if name in ours and "params" in name)  # fmt: skip

    again = r1jax.train(loaded, problems, varied, tmp_path / "ours", **settings)  # complete: returned
    jax.tree.map(np.testing.assert_array_equal, again.weights, trained.weights)
    with pytest.raises(UsageError, match="learning_rate"):
        r1jax.train(loaded, problems, varied, tmp_path / "ours", **settings | {"learning_rate": 1e-2})


def test_bad_input_is_one_clear_error(loaded, groups, tmp_path):
    def worth(sample):
        return 0.0

    def no_metrics(logp_BT, batch, c, max_new_tokens):
        from r1jax.objectives.grpo import token_mean

        return token_mean(logp_BT, batch), {}

    for call, named in {
        lambda: r1jax.load(tmp_path / "nowhere"): "nowhere",
        lambda: r1jax.load(loaded.path, prompt=r1jax.PromptConfig("chat")): "prompt",
        lambda: r1jax.logits(loaded, [[]]): "0 tokens",
        lambda: r1jax.logits(loaded, [[1, 99999]]): "99999",
        lambda: r1jax.sample(loaded, []): "prompts is empty",
        lambda: r1jax.sample(loaded, ["3"], n=0): "n is 0, expected 1 or more",
        lambda: r1jax.sample(loaded, ["what is love"]): "'what'",
        lambda: r1jax.sample(loaded, ["3"], temprature=1.0): "temprature",
        lambda: r1jax.sample(loaded, ["3"], temperature=-1.0): "temperature is -1.0",
        lambda: r1jax.sample(loaded, ["3"], max_new_tokens=10**6): "max_position_embeddings",
        lambda: r1jax.logprobs(loaded, []): "no samples",
        lambda: r1jax.logprobs(loaded, groups[0], temperature=0): "temperature is 0, expected more than 0",
        lambda: r1jax.logprobs(loaded, groups[0], max_new_tokens=1): "max_new_tokens",
        lambda: r1jax.grpo(loaded, [[replace(s, valid=False) for s in groups[0]]]): "invalid",
        lambda: r1jax.grpo(loaded, groups, loss=no_metrics): "no_metrics",
        lambda: r1jax.train(loaded, [], worth, tmp_path / "w"): "problems: there are none",
        lambda: r1jax.train(loaded, ["3"], worth, tmp_path / "w", stepz=3): "stepz",
        lambda: r1jax.train(replace(loaded, path=None), ["3"], worth, tmp_path / "w"): "no checkpoint",
    }.items():
        with pytest.raises(UsageError, match=named) as raised:
            call()
        assert len(str(raised.value).splitlines()) == 1
    assert not (tmp_path / "w").exists()
    with pytest.raises(UsageError, match="LossConfig"):
        checked(LossConfig, {"clip": 1.0})


@pytest.fixture(scope="module")
def published(tmp_path_factory, model):
    return publish_bytes(tmp_path_factory.mktemp("hub"), model)


@pytest.mark.parametrize("title", EXAMPLES)
def test_the_documented_examples_run(title, published, tmp_path, monkeypatch, capsys):
    code = EXAMPLES[title]
    assert HUB in code and len([line for line in code.splitlines() if line.strip()]) <= 10
    monkeypatch.setenv("HOME", str(published.parent / "home"))  # converted once for all
    monkeypatch.chdir(tmp_path)
    exec(compile(code.replace(HUB, repr(str(published))), title, "exec"), {"__name__": "__main__"})
    assert len(list((published.parent / "home" / ".cache" / "r1jax" / "models").iterdir())) == 1
    if title == "Training":
        assert (tmp_path / "runs" / "train" / "rl" / "complete.json").exists()
    else:
        assert capsys.readouterr().out


def test_there_is_an_example_of_each():
    assert [*EXAMPLES] == ["Logits", "Samples", "Log-probabilities", "Loss and gradient of GRPO", "Training"]
