"""Supervised fine-tuning: every epoch has each demonstration once, whole, with the loss on its response only."""

import dataclasses
import json
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from r1jax.config import DemonstrationsConfig, OptimizerConfig, SFTConfig
from r1jax.data.demonstrations import count_batches, demonstration_batches, encode, sft_batch
from r1jax.data.feeds import Records, ensure_records, records, write_array_record
from r1jax.data.tasks import TASKS
from r1jax.errors import UsageError
from r1jax.model.transformer import forward, logits
from r1jax.objectives.language_model import LossTerms, language_model_loss
from r1jax.parallel import programs
from r1jax.runs.run import Experiment, open_run
from r1jax.stages.demonstrations import demonstrations
from r1jax.stages.pretrain import pretrain
from r1jax.stages.sft import sft
from r1jax.telemetry.metrics import read_metrics
from r1jax.telemetry.progress import Progress
from r1jax.types import TokenBatch
from tests.shared.checkpoints import contents

TASK = TASKS["running_sum"]
CONFIG = SFTConfig(OptimizerConfig(1e-3), epochs=3, batch_size=4, sequence_length=48, log_every=1, save_every=3)
TEXTS = [f"<think> start {n} </think> <answer> {n} </answer>" for n in range(20)]
ROWS = [{"question": f"compute {n} #a + 1", "response": text} for n, text in enumerate(TEXTS)]


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> epath.Path:
    path = epath.Path(tmp_path_factory.mktemp("data")) / "demonstrations"
    write_array_record(path, ROWS)
    return path


def learnt(batches) -> list[tuple[list[int], list[int]]]:
    """(prompt, response) of each demonstration in the batches."""
    found = []
    for batch in batches:
        rows = (batch.tokens_BT, batch.segment_ids_BT, batch.loss_mask_BT, batch.positions_BT)
        for tokens, segments, mask, positions in zip(*rows, strict=True):
            for segment in range(1, segments.max() + 1):
                inside = segments == segment
                assert positions[inside].tolist() == list(range(inside.sum()))
                found.append((tokens[inside & ~mask].tolist(), tokens[inside & mask].tolist()))
            assert not mask[segments == 0].any()
    return found


def test_every_epoch_has_each_demonstration_once_in_another_order(written):
    feed, counts = demonstration_batches([written], TASK, CONFIG, 0)
    assert counts == {"used": 20, "too_long": 0}
    steps = count_batches(feed)
    batches = [sft_batch(packed, CONFIG) for packed in feed]
    assert steps == len(batches)
    assert {batch.loss_mask_BT.shape for batch in batches} == {(4, 48)}
    found = learnt(batches)
    expected = [
        (TASK.tokenizer.encode(TASK.prompt(r["question"])), [*TASK.tokenizer.encode(r["response"]), 2]) for r in ROWS
    ]
    assert TASK.tokenizer.eos_id == 2
    assert Counter(map(str, found)) == Counter(map(str, expected * 3))
    assert found[:20] != found[20:40]


def test_demonstrations_that_are_too_long_are_skipped_and_counted(written):
    length = len(encode(ROWS[0], TASK)["tokens"])
    long = dict(ROWS[0], response="start " * 40)
    write_array_record(written.with_name("mixed"), [*ROWS, long])
    paths = [written.with_name("mixed"), written]
    feed, counts = demonstration_batches(paths, TASK, CONFIG, 0)
    assert counts == {"used": 40, "too_long": 1}
    few = dataclasses.replace(CONFIG, examples=5, epochs=1)
    feed, counts = demonstration_batches([written], TASK, few, 0)
    assert counts["used"] == 5 == len(learnt([sft_batch(packed, few) for packed in feed]))
    with pytest.raises(UsageError, match="SFTConfig.sequence_length"):
        demonstration_batches([written], TASK, dataclasses.replace(CONFIG, sequence_length=length - 1), 0)


def test_the_loss_is_of_response_tokens_only(written, model, policy):
    """Equals log-probabilities of each demonstration alone, summed over its response by hand."""
    feed, _ = demonstration_batches([written], TASK, CONFIG, 0)
    batch = sft_batch(next(feed), CONFIG)
    terms = LossTerms("off", 0.0, 0.0)
    loss = jax.jit(lambda p, b, x: language_model_loss(p, b, x, terms, model)[1][0]["loss"])(*policy, batch)
    total, count = 0.0, 0
    apart = jax.jit(lambda p, b, x: jax.nn.log_softmax(logits(p, forward(p, b, x, model).hidden_BTD)))
    for prompt, response in learnt([batch]):
        ids = np.zeros(48, np.int32)
        ids[: len(prompt) + len(response)] = prompt + response
        segments = np.arange(48) < len(prompt) + len(response)
        row = TokenBatch(ids[None], np.arange(48)[None], segments[None].astype(int))
        logp = np.asarray(apart(*policy, row))[0]
        total -= sum(logp[len(prompt) - 1 + i, token] for i, token in enumerate(response))
        count += len(response)
    assert float(loss.weight) == count
    assert float(loss.total) == pytest.approx(total, rel=1e-5)


def test_prompt_tokens_give_no_gradient(written, model, policy, one_device):
    """The gradient of a batch without a response is zero, also in the MTP modules."""
    feed, _ = demonstration_batches([written], TASK, CONFIG, 0)
    batch = sft_batch(next(feed), CONFIG)
    terms = LossTerms("train", 0.3, 0.0)
    loss = jax.jit(jax.grad(lambda p, batch: language_model_loss(p, policy[1], batch, terms, model)[0]))
    none = loss(policy[0], dataclasses.replace(batch, loss_mask_BT=jnp.zeros_like(batch.loss_mask_BT)))
    assert all((np.asarray(g) == 0).all() for g in jax.tree.leaves(none))
    some = loss(policy[0], batch)
    assert all((np.asarray(some[part]) != 0).any() for part in ("head_DV", "embed_VD"))
    assert any((np.asarray(g) != 0).any() for g in jax.tree.leaves(some["mtp"]))


@pytest.fixture
def stage(tmp_path, experiment_config, one_device, written, toy_records):
    config = dataclasses.replace(
        experiment_config,
        pretrain=dataclasses.replace(experiment_config.pretrain, steps=2, batch_size=4, documents=200, log_every=1),
    )
    run = open_run(str(tmp_path / "run"), Experiment("x"), config, one_device, Progress()).with_task(TASK)
    base = pretrain(run.stage("pretrain"), config.pretrain, toy_records[TASK.corpus])

    def start(name: str, numbers: SFTConfig = CONFIG):
        return sft(run.stage(name), numbers, base, {"demonstrations": written})

    return start


@pytest.mark.slow
def test_it_learns_and_ends_in_the_same_bits_when_interrupted(stage, monkeypatch):
    whole = stage("whole")
    rows, result = read_metrics(whole / "metrics.jsonl"), json.loads((whole / "complete.json").read_text())
    assert [row["step"] for row in rows] == list(range(1, result["steps"] + 1))
    assert rows[-1]["loss"] < 0.9 * rows[0]["loss"]
    assert {"mtp_loss", "grad_norm", "learning_rate", "expert_load_max"} <= rows[0].keys()
    made = programs.make_language_model_step

    def failing(*arguments):
        step, calls = made(*arguments), []

        def run(*batch):
            calls.append(1)
            if len(calls) > 4:
                raise KeyboardInterrupt
            return step(*batch)

        return run

    monkeypatch.setattr(programs, "make_language_model_step", failing)
    with pytest.raises(KeyboardInterrupt):
        stage("killed")
    monkeypatch.undo()
    killed = stage("killed")
    expected, found = (contents(d / "checkpoints" / str(result["steps"])) for d in (whole, killed))
    for name in expected:
        np.testing.assert_array_equal(found[name], expected[name], err_msg=name)
    # The mark has the policy's hash: equal bits have equal marks.
    assert json.loads((killed / "complete.json").read_text()) == result


def test_rows_longer_than_the_models_positions_are_refused(stage):
    with pytest.raises(UsageError, match=r"SFTConfig.sequence_length is 5000"):
        stage("long", dataclasses.replace(CONFIG, sequence_length=5000))


def test_seqio_and_grain_agree_on_general_demonstrations(tmp_path):
    [path] = ensure_records([Records("chat_demonstrations", "train", 50)], 0, epath.Path(tmp_path))
    rows = list(records(path, None))
    assert len(rows) == 50
    assert all(len(encode(row, TASK)["tokens"]) <= 68 for row in rows)


def test_demonstrations_come_from_a_file_with_the_summary_at_the_end(tmp_path, experiment_config, one_device):
    rows = [
        {"q": f"compute {n} #a + 1", "thoughts": f"start {n} #a plus 1 gives {n + 1}", "sum": n + 1} for n in range(3)
    ]
    path = tmp_path / "written.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = DemonstrationsConfig(str(path), question="q", reasoning="thoughts", summary="sum")
    run = open_run(str(tmp_path / "run"), Experiment("x"), experiment_config, one_device, Progress())
    directory = demonstrations(run.stage("written"), config)
    found = list(records(directory, None))
    assert found[1] == {
        "question": "compute 1 #a + 1",
        "response": "<think> start 1 #a plus 1 gives 2 </think> <answer> 2 </answer>",
        "stage": "written",
    }
    assert len(found) == 3
    encode(found[0], TASK)
    path.write_text(path.read_text() + json.dumps({"q": "compute 1", "thoughts": "", "sum": 1}) + "\n")
    with pytest.raises(UsageError, match=r"line 4: .*'thoughts' .*DemonstrationsConfig.reasoning"):
        demonstrations(run.stage("written"), config)
    path.write_text(json.dumps(rows[0]) + "\n")
    with pytest.raises(UsageError, match=r"inputs.file.content"):  # the file has changed
        demonstrations(run.stage("written"), config)
