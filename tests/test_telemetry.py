"""Figures against closed forms; what is written can be read back."""

import json
import math

import pytest
from etils import epath

from r1jax.errors import UsageError
from r1jax.telemetry import report
from r1jax.telemetry.metrics import MetricsWriter, read_metrics
from r1jax.telemetry.statistics import confidence_interval, consensus, pass_at_k, solved, summarize
from r1jax.types import Problem, Sample


def group(*accuracies: float) -> list[Sample]:
    problem = Problem(0, "q", "1", "en")
    return [Sample(problem, "t", [5] * (i + 1), True, {"accuracy": a}) for i, a in enumerate(accuracies)]


def test_pass_at_k_by_hand():
    assert pass_at_k(1, 4, 1) == 0.25
    assert pass_at_k(1, 4, 2) == 0.5
    assert pass_at_k(0, 4, 4) == 0
    assert pass_at_k(2, 4, 3) == 1
    assert solved([group(1, 0, 0, 0), group(1, 1, 1, 1)], 2) == 0.75


def test_consensus_takes_the_most_frequent_answer():
    groups = [group(1, 0, 0), group(0, 1, 1), group(0, 0, 0)]
    assert consensus(groups, [["1", "2", "2"], ["3", "1", "1"], [None, None, None]]) == pytest.approx(1 / 3)
    assert consensus([group(1, 0)], [["1", None]]) == 1  # no answer doesn't vote


def test_summary_is_the_mean_over_samples():
    assert summarize([group(1, 0), group(0, 0)]) == {"accuracy": 0.25, "response_tokens": 1.5, "finished": 1.0}


def test_confidence_interval_covers_like_the_normal_one():
    values = [1.0] * 30 + [0.0] * 70
    low, high = confidence_interval(values)
    half = 1.96 * math.sqrt(0.3 * 0.7 / 100)
    assert low == pytest.approx(0.3 - half, abs=0.02)
    assert high == pytest.approx(0.3 + half, abs=0.02)
    assert confidence_interval(values) == (low, high)


def test_metrics_of_an_interrupted_run_are_dropped_from_where_it_goes_on(tmp_path):
    directory = epath.Path(tmp_path)
    writer = MetricsWriter(directory, 1)
    for step in (1, 2, 3):
        writer.write(step, {"loss": float(step)})
    writer.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')  # cut short by a kill
    writer = MetricsWriter(directory, 3)
    writer.write(3, {"loss": 30.0})
    writer.close()
    rows = read_metrics(directory / "metrics.jsonl")
    assert [(r["step"], r["loss"]) for r in rows] == [(1, 1.0), (2, 2.0), (3, 30.0)]
    assert list(directory.glob("tensorboard/events*"))


def test_report_needs_a_run(tmp_path):
    with pytest.raises(UsageError, match="holds no run"):
        report.write_report(epath.Path(tmp_path))


def test_report_shows_what_was_written_and_escapes_it(tmp_path):
    about = {"experiment": "x", "summary": "<b>bold</b>", "note": "a note", "sessions": []}
    (tmp_path / "run.json").write_text(json.dumps(about))
    figures = {"greedy_accuracy": 0.125, "pass@1": 0.5, "pass@1_low": 0.4, "pass@1_high": 0.6, "response_tokens": 18.0}
    sample = {"problem": {"question": "q", "answer": "1"}, "text": "<think> hm </think> <answer> 1 </answer>",
              "finished": True, "rewards": {"accuracy": 1.0}}  # fmt: skip
    for name, kind in (("before", "evaluate"), ("train", "rl"), ("after", "evaluate")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps({"kind": kind}))
        (tmp_path / name / "complete.json").write_text(json.dumps(figures))
    for name in ("before", "after"):
        (tmp_path / name / "samples.jsonl").write_text("\n".join([json.dumps(sample)] * 20))
    rows = [{"step": s, "reward": 0.1, "accuracy": 0.2, "format": 0.3, "response_tokens": 9.0} for s in (1, 2)]
    (tmp_path / "train" / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)))
    page = report.write_report(epath.Path(tmp_path)).read_text()
    assert "&lt;b&gt;bold" in page
    assert "&lt;think&gt; hm &lt;/think&gt;" in page
    assert "0.125" in page
    assert "0.500 [0.400, 0.600]" in page
    assert page.count('class="card"') == 12
    assert page.count("<svg") == 1
    # Self-contained: nothing is loaded from anywhere.
    assert not any(mark in page for mark in ("src=", "<link", "@import", "<script"))
