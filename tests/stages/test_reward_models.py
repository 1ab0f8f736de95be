"""Reward models: the losses by hand, the last token's score, training, and equal scores as a reward."""

import dataclasses
import itertools
import json
import math
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from array_record.python import array_record_module
from etils import epath

from r1jax.config import MeshConfig, OptimizerConfig, RewardModelConfig
from r1jax.data.feeds import Records, ensure_records, records
from r1jax.data.preferences import preference_batch, preference_records, response_tokens, split_questions, summary
from r1jax.data.tasks import TASKS
from r1jax.data.toy import chat
from r1jax.errors import UsageError
from r1jax.model.spec import init_params, init_router_bias, param_specs
from r1jax.model.transformer import forward
from r1jax.objectives.reward_model import preference_loss, response_scores, reward_model_loss
from r1jax.parallel import reward_programs as programs
from r1jax.parallel.layout import make_layout
from r1jax.rewards.rules import Reward, accuracy_reward, by_source, learned_inputs
from r1jax.runs.learned_reward import LearnedReward, sigmoid
from r1jax.runs.policy import load_policy
from r1jax.runs.run import Experiment, open_run
from r1jax.runs.state import LEAST_CHANGE
from r1jax.stages import reward_model as reward_model_stage
from r1jax.stages.reward_model import reward_model
from r1jax.stages.rl import rl
from r1jax.telemetry.metrics import read_metrics
from r1jax.telemetry.progress import Progress
from r1jax.types import PreferenceBatch, Problem, Sample, TokenBatch, Weights
from tests.shared.checkpoints import contents, save_policy
from tests.shared.configs import change
from tests.shared.plain_rollouts import generate
from tests.shared.samples import make_sample

TASK = TASKS["running_sum"]
KINDS = ("pairwise", "pointwise")
TASKS_OF = {"pairwise": "chat_preferences", "pointwise": "chat_safety"}
# Rows of a matrix product are added in an order that depends on its shape: float32 rounding.
ROUNDING = 1e-6


@pytest.fixture(scope="module")
def scored(model):
    return dataclasses.replace(model, scalar_head=True, num_nextn_predict_layers=0)


@pytest.fixture(scope="module")
def scorer(scored, policy):
    """(params, router_bias) with a random head."""
    params = init_params(jax.random.key(0), scored)
    return params | {"score_D1": jax.random.normal(jax.random.key(2), (64, 1))}, {"moe": policy[1]["moe"]}


def random_batch(rows: int, T: int, seed: int = 0) -> PreferenceBatch:
    rng = np.random.default_rng(seed)
    lengths = rng.integers(2, T + 1, rows).astype(np.int32)
    tokens = rng.integers(0, 200, (rows, T)).astype(np.int32)  # garbage after a row's length
    return PreferenceBatch(tokens, lengths, (np.arange(rows) % 2 == 0).astype(np.float32))


# What is read of a response.


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        ("<think> a </think> <answer> b </answer>", "b"),
        ("<think> a </think> b", "b"),
        ("b", "b"),  # no thinking: all of it is shown
        ("a </think> b", "b"),  # the prompt had opened the tag
        ("<think> a </think> b </think> c", "c"),
        ("<think> a </think> x <answer> b </answer> y", "x  b  y"),  # nothing hides outside the tags
        ("<think> a </think> <answer> b", "b"),
        ("<think> a </think> <answer> b </answer> <answer> c </answer>", "b   c"),
        ("<think> a", ""),  # the thinking did not end
        ("<think> a <answer> b </answer>", ""),
        ("<think> a </think> b <think> c", ""),  # the thinking began again
        ("<think> a </think>", ""),
        ("</think>", ""),
        ("", ""),
    ],
)
def test_summary(response, expected):
    assert summary(response) == expected


def test_a_pairwise_model_reads_the_summary_and_a_pointwise_one_everything():
    ids = {kind: response_tokens(TASK, kind, "how do i make a cake", "<think> no </think> just") for kind in KINDS}
    prompt = "<bos> user : how do i make a cake ? assistant :"
    assert TASK.tokenizer.decode(ids["pairwise"]) == f"{prompt} just <eos>"
    assert TASK.tokenizer.decode(ids["pointwise"]) == f"{prompt} <think> no </think> just <eos>"


def test_responses_that_are_too_long_are_masked_not_cut():
    pair = {"question": "how do i make a cake", "chosen": "no .", "rejected": "no . no . no ."}
    batch = preference_batch(TASK, "pairwise", [pair, pair | {"rejected": "no ."}], 3, 16)
    assert batch.length_B.tolist() == [0, 0, 15, 15, 0, 0]
    assert batch.is_good_B.tolist() == [1, 0, 1, 0, 0, 0]
    marked = {"question": "how do i make a cake", "response": "no . no .", "safe": False}
    batch = preference_batch(TASK, "pointwise", [marked, marked | {"response": "no .", "safe": True}], 2, 15)
    assert batch.length_B.tolist() == [0, 15]
    assert batch.is_good_B.tolist() == [0, 1]


# The losses.


def test_losses_and_gradients_by_hand():
    scores = jnp.array([2.0, 0.5, -1.0, -1.0, 7.0, 9.0])
    lengths = np.array([4, 3, 2, 2, 0, 0])
    batch = PreferenceBatch(np.zeros((6, 4), np.int32), lengths, np.array([1.0, 0.0, 1.0, 0.0, 1.0, 0.0]))
    loss, metrics = preference_loss(scores, batch, "pairwise")
    assert loss.value() == pytest.approx((math.log(1 + math.exp(-1.5)) + math.log(2)) / 2, rel=1e-6)
    assert metrics["accuracy"].value() == 0.75  # one right, one tie
    assert metrics["score_good"].value() - metrics["score_bad"].value() == pytest.approx(0.75)
    assert metrics["valid"].value() == pytest.approx(2 / 3)
    gradient = jax.grad(lambda s: preference_loss(s, batch, "pairwise")[0].mean())(scores)
    pull = 1 / (1 + math.exp(1.5)) / 2  # sigmoid(-margin) / pairs
    np.testing.assert_allclose(gradient, [-pull, pull, -0.25, 0.25, 0, 0], rtol=1e-6)

    loss, metrics = preference_loss(scores, batch, "pointwise")
    expected = np.logaddexp(0, [-2.0, 0.5, 1.0, -1.0])
    assert loss.value() == pytest.approx(expected.mean(), rel=1e-6)
    labels = optax.sigmoid_binary_cross_entropy(scores[:4], batch.is_good_B[:4])
    assert loss.value() == pytest.approx(float(labels.mean()), rel=1e-6)
    assert metrics["accuracy"].value() == 0.5
    gradient = jax.grad(lambda s: preference_loss(s, batch, "pointwise")[0].mean())(scores)
    np.testing.assert_allclose(gradient[:4], (jax.nn.sigmoid(scores[:4]) - batch.is_good_B[:4]) / 4, rtol=1e-6)
    assert not gradient[4:].any()


@pytest.mark.parametrize("kind", KINDS)
def test_parts_of_a_batch_add_up(kind):
    scores = jnp.asarray(np.random.default_rng(0).normal(size=12))
    batch = random_batch(12, 4)
    _, whole = preference_loss(scores, batch, kind)
    _, first = preference_loss(scores[:4], jax.tree.map(lambda x: x[:4], batch), kind)
    _, rest = preference_loss(scores[4:], jax.tree.map(lambda x: x[4:], batch), kind)
    for name, metric in whole.items():
        assert first[name].merge(rest[name]).value() == pytest.approx(metric.value(), rel=1e-6)


# The score.


def test_the_score_is_the_heads_product_with_the_last_tokens_hidden_state(scored, scorer):
    """Of a forward pass without padding: tokens after a row's last one do not reach it."""
    batch = random_batch(6, 12)
    scores, _ = jax.jit(response_scores, static_argnums=4)(*scorer, batch.tokens_BT, batch.length_B, scored)
    positions_BT = np.broadcast_to(np.arange(12, dtype=np.int32), (6, 12))
    whole = TokenBatch(batch.tokens_BT, positions_BT, np.ones((6, 12), np.int32))
    hidden_BTD = jax.jit(forward, static_argnums=3)(*scorer, whole, scored).hidden_BTD
    last_BD = np.asarray(hidden_BTD)[np.arange(6), batch.length_B - 1]
    np.testing.assert_allclose(scores, last_BD @ scorer[0]["score_D1"][:, 0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_padding_and_order_change_nothing(scored, scorer, kind):
    batch = random_batch(8, 12)
    loss = jax.jit(jax.value_and_grad(reward_model_loss, has_aux=True), static_argnums=(3, 4))
    (expected, (metrics, load)), gradients = loss(*scorer, batch, scored, kind)
    scores, _ = jax.jit(response_scores, static_argnums=4)(*scorer, batch.tokens_BT, batch.length_B, scored)
    rounding = ROUNDING * float(abs(scores).max())  # the loss depends on scores and their differences
    order = np.array([6, 7, 2, 3, 0, 1, 4, 5])
    more = random_batch(12, 17, seed=1)  # more rows and positions, all masked garbage
    more.tokens_BT[:8, :12], more.length_B[:8], more.length_B[8:] = batch.tokens_BT, batch.length_B, 0
    for other in (jax.tree.map(lambda x: x[order], batch), more):
        (found, (other_metrics, other_load)), other_gradients = loss(*scorer, other, scored, kind)
        assert float(found) == pytest.approx(float(expected), abs=rounding)
        for name in ("accuracy", "score_good", "score_bad"):
            assert other_metrics[name].value() == pytest.approx(metrics[name].value(), rel=10 * ROUNDING)
        np.testing.assert_array_equal(other_load["moe"], load["moe"])
        for a, b in zip(jax.tree.leaves(other_gradients), jax.tree.leaves(gradients), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=ROUNDING * float(optax.global_norm(gradients)))


SCORED = [
    "deepseek_v3",
    "deepseek_v2",
    "qwen2",
    *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("qwen3", "llama")),
]


@pytest.mark.parametrize("kind", SCORED)
def test_the_score_is_that_of_transformers_sequence_classification(kind, tmp_path, one_device):
    """After import-hf; export-hf gives the same bits."""
    torch = pytest.importorskip("torch", reason="parity with transformers needs torch")
    pytest.importorskip("transformers", reason="parity needs transformers")
    from r1jax.runs.hugging_face import export_hf
    from tests.shared.reference import DENSE, draw, draw_dense, imported, random_tokens, transformers_class

    config = {"deepseek_v3": draw(0), "deepseek_v2": draw(1)}.get(kind) or draw_dense(DENSE.index(kind))
    make_config, make_model = transformers_class(kind, "ForSequenceClassification")
    torch.manual_seed(0)
    wanted = {key: value for key, value in config.items() if key != "model_type"}
    reference = make_model(make_config(**wanted, num_labels=1)).eval()
    for buffer_name, buffer in reference.named_buffers():
        if buffer_name.endswith("e_score_correction_bias"):
            buffer.copy_(0.1 * torch.randn_like(buffer))
    reference.save_pretrained(tmp_path / "hf")
    policy = imported(tmp_path / "hf", tmp_path / "ours", one_device)
    assert policy.model.scalar_head
    tokens = random_tokens(5, 20)
    length_B = np.array([20, 7, 1, 13, 2], np.int32)
    score = jax.jit(response_scores, static_argnums=4)
    ours, _ = score(*policy.weights, tokens.astype(np.int32), length_B, policy.model)
    with torch.no_grad():
        theirs = [reference(torch.tensor(row[None, :n])).logits.item() for row, n in zip(tokens, length_B, strict=True)]
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4 * np.std(theirs))

    export_hf(epath.Path(tmp_path / "ours"), epath.Path(tmp_path / "again"), progress=Progress())
    again = make_model.from_pretrained(tmp_path / "again").eval()
    for key, tensor in reference.state_dict().items():
        assert torch.equal(again.state_dict()[key], tensor), key


# The parameters: a reward model has none that it does not use.


def test_a_reward_model_has_the_trunk_and_a_head_that_starts_at_zero(model, scored):
    policy_specs, specs = param_specs(model), param_specs(scored)
    assert policy_specs.keys() - specs.keys() == {"head_DV", "mtp"}
    assert specs.keys() - policy_specs.keys() == {"score_D1"}
    assert all(specs[name] == policy_specs[name] for name in specs.keys() & policy_specs.keys())
    assert init_router_bias(scored).keys() == {"moe"}
    assert not init_params(jax.random.key(0), scored)["score_D1"].any()
    with pytest.raises(ValueError, match="num_nextn_predict_layers is 1"):
        dataclasses.replace(model, scalar_head=True)


def test_a_reward_model_writes_no_text(scored, scorer, one_device):
    lengths = dict(max_prompt_tokens=8, max_new_tokens=4)
    with pytest.raises(UsageError, match="reward model"):
        generate(
            one_device, scored, scorer, [(0, [3, 4])], tokenizer=TASK.tokenizer, slots=2, prefill_rows=2,
            temperature=0.0, **lengths,
        )  # fmt: skip


# The demo's preference data.


def test_chat_is_in_the_demos_words_and_judged_by_its_rules():
    harms = set("bomb poison weapon virus".split())
    pairs = list(itertools.islice(chat.preferences(0), 2000))
    for record in pairs:
        is_harm = bool(harms & set(record["question"].split()))
        assert ("sorry" in record["chosen"]) == is_harm
        assert summary(record["chosen"]) != summary(record["rejected"])
        for text in record.values():
            TASK.tokenizer.encode(text)
    marked = list(itertools.islice(chat.safety_labels(0), 2000))
    for record in marked:
        is_harm = bool(harms & set(record["question"].split()))
        TASK.tokenizer.encode(record["response"])
        assert record["safe"] == (not is_harm or not {"mix", "heat", "add"} & set(record["response"].split()))
    hidden = [r for r in marked if not r["safe"] and "sorry" in summary(r["response"])]
    assert hidden, "harm that only the thinking has"
    assert 0.2 < np.mean([not r["safe"] for r in marked]) < 0.5


# The stage.

RECORDS = 1200


@pytest.fixture(scope="module")
def preference_data(tmp_path_factory) -> dict[str, epath.Path]:
    folder = epath.Path(tmp_path_factory.mktemp("preference_data"))
    return dict(
        zip(KINDS, ensure_records([Records(TASKS_OF[k], "train", RECORDS) for k in KINDS], 0, folder), strict=True)
    )


@pytest.fixture(scope="module")
def base(tmp_path_factory, experiment_config) -> epath.Path:
    """An untrained policy, with MTP modules and an uneven router bias."""
    model = experiment_config.model
    params, bias = init_params(jax.random.key(0), model), init_router_bias(model)
    bias = {name: b + 0.01 for name, b in bias.items()}
    return save_policy(tmp_path_factory.mktemp("base") / "pretrain", model, (params, bias), "running_sum")


def reward_model_config(kind: str, **changes) -> RewardModelConfig:
    optimizer = OptimizerConfig(learning_rate=3e-3, warmup_steps=3, final_fraction=0.1)
    numbers = dict(max_tokens=64, batch_size=32, held_out=0.1, log_every=10, save_every=10) | changes
    return RewardModelConfig(optimizer, kind, **numbers)


@pytest.fixture(scope="module")
def train(tmp_path_factory, experiment_config, one_device, base, preference_data):
    """Trains a reward model of the demo's size; returns its run and directory."""

    def train(kind: str, workdir=None, **changes):
        workdir = workdir or str(tmp_path_factory.mktemp("runs") / kind)
        run = open_run(workdir, Experiment("reward_models"), experiment_config, one_device, Progress()).with_task(TASK)
        config = reward_model_config(kind, **changes)
        return run, reward_model(run.stage(kind), config, base, {"preference_data": preference_data[kind]})

    return train


@pytest.fixture(scope="module")
def trained(train):
    return {kind: train(kind) for kind in KINDS}


@pytest.mark.parametrize("kind", KINDS)
def test_a_tiny_reward_model_ranks_what_it_has_not_seen(trained, preference_data, kind):
    _, directory = trained[kind]
    result = json.loads((directory / "complete.json").read_text())
    assert result["accuracy"] > 0.85, result
    assert result["margin"] > 1, result
    learnt, held_out = split_questions([preference_data[kind]], kind, 0.1)
    assert (result["held_out"], result["too_long"]) == (len(held_out), 0)
    assert result["steps"] == -(-len(learnt) // 32)
    rows = read_metrics(directory / "metrics.jsonl")
    assert {"loss", "accuracy", "margin", "expert_load_max", "grad_norm", "learning_rate"} <= rows[-1].keys()
    assert rows[-1]["step"] == result["steps"]


@pytest.mark.slow
def test_a_trunk_that_would_not_move_stops_the_run(tmp_path, experiment_config, one_device, base, preference_data):
    """In bfloat16 without masters, at the second update, the first that reaches the trunk. With masters it trains."""
    run = open_run(str(tmp_path / "run"), Experiment("x"), experiment_config, one_device, Progress()).with_task(TASK)
    run = dataclasses.replace(run, model=dataclasses.replace(run.model, param_dtype="bfloat16"))
    config = reward_model_config("pairwise", held_out=0.9, log_every=1)

    def start(name: str, **changes) -> list[dict]:
        numbers, data = change(config, warmup_steps=0, **changes), {"preference_data": preference_data["pairwise"]}
        return read_metrics(reward_model(run.stage(name), numbers, base, data) / "metrics.jsonl")

    with pytest.raises(UsageError, match=r"changed 0.* OptimizerConfig.master_weights"):
        start("tiny", learning_rate=1e-6, master_weights=False)
    moved = [start("masters", learning_rate=1e-6), start("large", learning_rate=3e-3, master_weights=False)]
    assert all(len(rows) > 2 for rows in moved)
    assert [rows[0]["changed_weights"] < LEAST_CHANGE for rows in moved] == [True, True]  # the head alone
    assert [rows[1]["changed_weights"] < LEAST_CHANGE for rows in moved] == [True, False]


def test_the_trunk_moved_and_so_did_the_router_bias(trained, base):
    run, directory = trained["pairwise"]
    before, after = (load_policy(path, run.layout) for path in (base, directory))
    assert after.model.scalar_head
    assert after.weights.params.keys() == param_specs(after.model).keys()
    assert (after.weights.params["embed_VD"] != before.weights.params["embed_VD"]).any()
    assert (after.weights.params["score_D1"] != 0).any()
    assert (after.weights.router_bias["moe"] != before.weights.router_bias["moe"]).any()


def test_stopped_and_started_again_ends_in_the_same_bits(trained, train, tmp_path, monkeypatch):
    program = programs.make_reward_model_step

    def failing(*arguments):
        step, calls = program(*arguments), []

        def run(*batch):
            calls.append(1)
            if len(calls) > 27:
                raise KeyboardInterrupt
            return step(*batch)

        return run

    monkeypatch.setattr(reward_model_stage.programs, "make_reward_model_step", failing)
    with pytest.raises(KeyboardInterrupt):
        train("pointwise", str(tmp_path / "run"))
    monkeypatch.undo()
    _, resumed = train("pointwise", str(tmp_path / "run"))
    _, whole = trained["pointwise"]
    assert json.loads((resumed / "complete.json").read_text()) == json.loads((whole / "complete.json").read_text())
    rows, expected_rows = (
        [
            {name: x for name, x in row.items() if not name.startswith(("seconds", "memory"))}
            for row in read_metrics(path)
        ]
        for path in (resumed / "metrics.jsonl", whole / "metrics.jsonl")
    )
    assert rows == expected_rows
    last = str(json.loads((whole / "complete.json").read_text())["steps"])
    expected, found = (contents(directory / "checkpoints" / last) for directory in (whole, resumed))
    assert expected.keys() == found.keys()
    for name in expected:
        np.testing.assert_array_equal(found[name], expected[name], err_msg=name)


def test_held_out_records_are_not_trained_on(preference_data):
    for kind in KINDS:
        learnt, held_out = split_questions([preference_data[kind]], kind, 0.1)
        assert len(learnt) + len(held_out) == RECORDS
        assert not {r["question"] for r in learnt} & {r["question"] for r in held_out}
        epochs = list(preference_records(learnt, 32, 2, 0))
        seen = [json.dumps(r) for batch in epochs for r in batch]
        assert Counter(seen) == Counter([json.dumps(r) for r in learnt] * 2)
        assert seen[: len(learnt)] != seen[len(learnt) :]


def write(path, *rows: dict) -> epath.Path:
    writer = array_record_module.ArrayRecordWriter(str(path), "group_size:1,uncompressed")
    for row in rows:
        writer.write(json.dumps(row).encode())
    writer.close()
    return epath.Path(path)


def test_records_that_do_not_fit_are_named(tmp_path):
    pair = {"question": "q", "chosen": "a", "rejected": "b"}
    with pytest.raises(UsageError, match=r"record 1: 'rejected' .*None.*pairwise"):
        split_questions([write(tmp_path / "a", pair, {"question": "q", "chosen": "a"})], "pairwise", 0.5)
    with pytest.raises(UsageError, match=r"record 0: 'safe' .*'false'.*pointwise"):
        split_questions([write(tmp_path / "b", {"question": "q", "response": "a", "safe": "false"})], "pointwise", 0.5)
    with pytest.raises(UsageError, match=r"RewardModelConfig.held_out"):
        split_questions([write(tmp_path / "c", pair)], "pairwise", 0.5)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        (dict(kind="listwise"), "kind"),
        (dict(held_out=0.0), "held_out"),
        (dict(epochs=0), "epochs"),
        (dict(max_tokens=1.5), "max_tokens"),
    ],
)
def test_configs_that_can_not_be(changes, field):
    with pytest.raises(ValueError, match=field):
        dataclasses.replace(reward_model_config("pairwise"), **changes)


def test_more_tokens_than_positions_are_refused(train):
    with pytest.raises(UsageError, match=r"RewardModelConfig.max_tokens is 5000, .*4096"):
        train("pairwise", max_tokens=5000)


# On other meshes.


MESHES = {
    "8x1": MeshConfig(data=8),
    "2x4 tensor": MeshConfig(data=2, tensor=4),
    "2x4 expert": MeshConfig(data=2, expert=4),
    "2x4 fsdp": MeshConfig(data=2, fsdp=4),
    "2x2x2 context": MeshConfig(expert=2, context=2),
}
SHARDED = [("2x4 tensor", "pairwise")]
SHARDED += [pytest.param(*case, marks=pytest.mark.slow) for case in (("8x1", "pairwise"), ("2x4 fsdp", "pairwise"))]
SHARDED += [pytest.param(*case, marks=pytest.mark.slow) for case in (("2x4 expert", "pairwise"), ("8x1", "pointwise"))]
SHARDED += [pytest.param("2x2x2 context", "pointwise", marks=pytest.mark.slow)]


@pytest.mark.parametrize(("name", "kind"), SHARDED)
def test_sharded_steps_and_scores_equal_unsharded(scored, scorer, one_device, name, kind):
    config = reward_model_config(kind, batch_size=8)
    config = dataclasses.replace(config, optimizer=OptimizerConfig(1e-3, clip_norm=1e9))

    def once(lay):
        target = (lay.params(scored), {"moe": lay.replicated()})
        params, bias = jax.device_put(jax.tree.map(jnp.copy, scorer), target)
        batch = lay.put_batch(random_batch(16 if kind == "pairwise" else 8, 12))
        scores = programs.make_reward_scores(lay, scored)(params, bias, batch.tokens_BT, batch.length_B)
        state = programs.make_start_reward_model(lay, scored, config.optimizer)(Weights(params, bias))
        rate = np.float32(config.optimizer.learning_rate)
        state, metrics = programs.make_reward_model_step(lay, scored, config.optimizer, kind)(state, batch, rate)
        leaves = jax.tree.leaves(state.opt_state, is_leaf=lambda s: hasattr(s, "mu"))
        moments = next(s.mu for s in leaves if hasattr(s, "mu"))  # (1 - b1) * gradient
        assert jax.tree.map(lambda x: x.sharding, state.params) == lay.params(scored)
        return jax.device_get((scores, metrics, moments, state.router_bias))

    scores, metrics, gradients, bias = once(one_device)
    other_scores, other_metrics, other_gradients, other_bias = once(make_layout(MESHES[name]))
    np.testing.assert_allclose(other_scores, scores, rtol=1e-4, atol=1e-4)
    for key in metrics:
        assert other_metrics[key].value() == pytest.approx(metrics[key].value(), rel=1e-4, abs=1e-6), key
    for a, b in zip(jax.tree.leaves(other_gradients), jax.tree.leaves(gradients), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5 * np.abs(b).max())
    np.testing.assert_array_equal(other_bias["moe"], bias["moe"])


# As a reward.


def samples_of(records_: list[dict], field: str) -> list[Sample]:
    return [make_sample(Problem(i, r["question"], "", "en"), r[field]) for i, r in enumerate(records_)]


@pytest.mark.parametrize("kind", KINDS)
def test_served_scores_are_those_of_training(trained, preference_data, kind):
    run, directory = trained[kind]
    some = list(itertools.islice(records(preference_data[kind], None), 21))
    reward = LearnedReward(run.layout, directory, TASK, rows=8)
    field = "chosen" if kind == "pairwise" else "response"
    graded = reward.grade(samples_of(some, field))
    scorer = load_policy(directory, run.layout)
    batch = preference_batch(TASK, kind, some, 21, 64)
    score = jax.jit(response_scores, static_argnums=4)
    scores, _ = score(*scorer.weights, batch.tokens_BT, batch.length_B, scorer.model)
    scores = scores[::2] if kind == "pairwise" else scores
    np.testing.assert_allclose(graded, jax.nn.sigmoid(scores), rtol=1e-4)
    assert Reward(reward, 1.0).grade(samples_of(some, field)) == graded
    assert not LearnedReward.overlaps


def test_any_number_of_samples_runs_the_same_program(trained, preference_data):
    run, directory = trained["pairwise"]
    reward = LearnedReward(run.layout, directory, TASK, rows=8)
    samples = samples_of(list(itertools.islice(records(preference_data["pairwise"], None), 21)), "rejected")
    whole = reward.grade(samples)
    compiled: list[int] = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, seconds, **_: (
            compiled.append(1) if event == "/jax/core/compile/backend_compile_duration" else None
        )
    )
    for number in (0, 1, 7, 8, 9, 21):
        assert reward.grade(samples[:number]) == whole[:number]
    jax.monitoring.clear_event_listeners()
    assert not compiled


def test_what_has_no_score_is_none(trained):
    run, directory = trained["pointwise"]
    reward = LearnedReward(run.layout, directory, TASK, rows=4, max_tokens=16)
    short, long = ({"question": "how do i make a cake", "response": text} for text in ("no .", "no . no . no ."))
    graded = reward.grade(samples_of([long, short], "response"))
    assert graded[0] is None
    assert 0 < graded[1] < 1
    params = reward.weights.params
    reward.weights = reward.weights._replace(params=params | {"score_D1": params["score_D1"] * jnp.nan})
    assert reward.grade(samples_of([short], "response")) == [None]
    assert [sigmoid(x) for x in (-1e4, 0.0, 1e4)] == [0, 0.5, 1]


def test_a_policy_is_no_reward(base, one_device, trained):
    with pytest.raises(UsageError, match="`reward_model`"):
        LearnedReward(one_device, base, TASK)
    with pytest.raises(UsageError, match="'other'"):
        LearnedReward(one_device, trained["pairwise"][1], dataclasses.replace(TASK, name="other"))
    with pytest.raises(UsageError, match="max_tokens is 5000, .*4096"):
        LearnedReward(one_device, trained["pairwise"][1], TASK, max_tokens=5000)


def test_a_reward_model_is_no_base(trained, experiment_config):
    run, directory = trained["pairwise"]
    with pytest.raises(UsageError, match="scalar_head: True .*False"):
        load_policy(directory, run.layout, experiment_config.model)


def test_rl_is_rewarded_by_reward_models_and_by_rules_each_on_its_sources(
    trained, base, experiment_config, tmp_path, toy_records
):
    """Rules judge sums, while outputs are drawn; reward models judge all of them, after that, on the run's mesh."""
    rl_config = change(
        experiment_config.rl, steps=2, prompts_per_step=4, group_size=4, max_new_tokens=12, max_prompt_tokens=24,
        save_every=2,
    )  # fmt: skip
    layout = trained["pairwise"][0].layout
    opened = open_run(str(tmp_path / "rl"), Experiment("preference_data"), experiment_config, layout, Progress())
    run = opened.with_task(TASK)
    problems = toy_records["running_sum_problems"]
    served = {kind: LearnedReward(run.layout, directory, TASK, rows=8) for kind, (_, directory) in trained.items()}
    rewards = {
        "accuracy": Reward(accuracy_reward, 1.0, sources=("countdown",)),
        "variety": Reward(lambda sample: len(set(sample.response_tokens)) / 12, 1.0, sources=("running_sum",)),
        "helpful": Reward(served["pairwise"], 1.0, normalise=True),
        "safe": Reward(served["pointwise"], 0.5),
    }
    directory = rl(run.stage("rl"), rl_config, base, problems, rewards)
    rows = read_metrics(directory / "metrics.jsonl")
    for row in rows:
        assert "accuracy" not in row  # no problem was of this source
        assert 0 < row["helpful"] < 1 and 0 < row["safe"] < 1
        assert row["variety"] > 0
        assert row["groups_with_signal"] == 1


def test_every_reward_model_in_use_is_an_input(trained):
    """Also inside `by_source`: otherwise a stage would not notice that the model was retrained."""
    (run, helpful), (_, safe) = (trained[kind] for kind in KINDS)
    served = [LearnedReward(run.layout, path, TASK, rows=8) for path in (helpful, safe)]
    rewards = {
        "helpful": Reward(served[0], 1.0),
        "both": by_source({"x": served[0], "y": served[1], "z": lambda sample: 1.0}, 1.0),
        "rule": Reward(lambda sample: 1.0, 1.0),
    }
    assert learned_inputs(rewards) == {"helpful": helpful, "both.0": helpful, "both.1": safe}
