"""Statistics against closed forms, metrics files, and the report."""

import json
import math
import random
import re
from itertools import pairwise
from pathlib import Path

import pytest
from etils import epath

from r1jax.errors import UsageError
from r1jax.report import curves, figures, graph, report
from r1jax.runs import lineage
from r1jax.runs.lineage import FORMAT
from r1jax.telemetry.metrics import MetricsWriter, read_metrics
from r1jax.telemetry.statistics import confidence_interval, consensus, pass_at_k, solved, summarize
from r1jax.types import Problem, Sample
from tests.shared.samples import make_sample


def group(*accuracies: float) -> list[Sample]:
    problem = Problem(0, "q", "1", "en")
    return [make_sample(problem, "t", [5] * (i + 1), rewards={"accuracy": a}) for i, a in enumerate(accuracies)]


def test_pass_at_k_by_hand():
    assert pass_at_k(1, 4, 1) == 0.25
    assert pass_at_k(1, 4, 2) == 0.5
    assert pass_at_k(0, 4, 4) == 0
    assert pass_at_k(2, 4, 3) == 1
    assert solved([group(1, 0, 0, 0), group(1, 1, 1, 1)], 2) == 0.75


def test_consensus_takes_the_most_frequent_answer():
    groups = [group(1, 0, 0), group(0, 1, 1), group(0, 0, 0)]
    assert consensus(groups, [["1", "2", "2"], ["3", "1", "1"], [None, None, None]]) == pytest.approx(1 / 3)
    assert consensus([group(1, 0)], [["1", None]]) == 1  # a missing answer has no vote


def test_summary_is_the_mean_over_samples():
    assert summarize([group(1, 0), group(0, 0)]) == {"accuracy": 0.25, "response_tokens": 1.5, "finished": 1.0}


Z = 1.959964  # the normal distribution's 97.5 % quantile


def test_the_interval_of_verdicts_solves_wilsons_equation():
    """Its ends are where the mean is 1.96 standard errors away: (p - x)² = z² x (1 - x) / n, for n right and wrong."""
    for right in (0, 1, 30, 99, 100):
        for x in confidence_interval([1.0] * right + [0.0] * (100 - right), 1):
            assert (right / 100 - x) ** 2 == pytest.approx(Z**2 * x * (1 - x) / 100, abs=1e-9)
    assert confidence_interval([0.0] * 100, 1)[1] == pytest.approx(Z**2 / (100 + Z**2))
    assert confidence_interval([1.0] * 100, 16)[0] == pytest.approx(100 / (100 + Z**2))


def test_samples_of_equally_hard_problems_count_each_and_of_extreme_ones_none():
    equal = [0.25, 0.75] * 50  # the variance of a mean of four tosses of a coin: n × 4 answers
    assert confidence_interval(equal, 4) == pytest.approx(confidence_interval([0.0, 1.0] * 198, 1), abs=1e-12)
    assert confidence_interval(equal, 2) == pytest.approx(confidence_interval([0.0, 1.0] * 100, 1))  # at most n × 2
    assert confidence_interval([0.0, 1.0] * 50, 16) == confidence_interval([0.0, 1.0] * 50, 1)


@pytest.mark.parametrize("alpha, beta", [(0.3, 0.3), (2, 2), (8, 2), (20, 1)])
def test_the_interval_covers_the_mean_in_95_of_100_draws(alpha, beta):
    """Of 64 problems whose difficulty is drawn from a beta distribution, with four samples each."""
    rng = random.Random(0)
    covered, trials = 0, 2000
    for _ in range(trials):
        difficulties = [rng.betavariate(alpha, beta) for _ in range(64)]
        low, high = confidence_interval([sum(rng.random() < p for _ in range(4)) / 4 for p in difficulties], 4)
        covered += low <= alpha / (alpha + beta) <= high
    assert 0.93 <= covered / trials <= 0.97


def test_metrics_are_dropped_from_the_step_that_a_run_resumes_at(tmp_path):
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
    with pytest.raises(UsageError, match="--workdir"):
        report.write_report(epath.Path(tmp_path))


def test_a_run_of_another_format_is_refused(tmp_path):
    (tmp_path / "run.json").write_text(json.dumps({"experiment": "x", "sessions": []}))
    with pytest.raises(UsageError, match=f"{tmp_path}.*format.*--workdir"):
        report.write_report(epath.Path(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]


# ---- the report of a whole run


FIGURES = {"greedy_accuracy": 0.125, "pass@1": 0.5, "pass@1_low": 0.4, "pass@1_high": 0.6, "response_tokens": 18.0}
BETTER = FIGURES | {"pass@1": 0.75, "greedy_accuracy": 0.875}
ROWS = [{"step": s, "reward": 0.1, "accuracy": 0.2, "format": 0.3, "response_tokens": 9.0} for s in (1, 2)]


def write_run(workdir: Path) -> None:
    about = {"format": FORMAT, "experiment": "x", "summary": "<b>bold</b>", "note": "a note", "sessions": []}
    (workdir / "run.json").write_text(json.dumps(about))


def write_stage(
    workdir: Path, name: str, kind: str, inputs: dict[str, str], result: dict | None = None, **more
) -> None:
    """A stage's directory as runs/run.py writes it; an input's content is what it holds now."""
    directory = workdir / name
    directory.mkdir()
    entries = {
        key: {"path": path, "content": lineage.content_now(workdir / path) or "was"} for key, path in inputs.items()
    }
    (directory / "config.json").write_text(json.dumps({"kind": kind, "inputs": entries} | more.get("config", {})))
    if "began" in more:
        sessions = [{"git": "abc", "began": more["began"], "ended": "2026-01-01T01:00:00Z"}]
        (directory / "sessions.json").write_text(json.dumps(sessions))
    if "metrics" in more:
        (directory / "metrics.jsonl").write_text("\n".join(map(json.dumps, more["metrics"])))
    if "samples" in more:
        (directory / "samples.jsonl").write_text("\n".join(map(json.dumps, more["samples"])))
    if result is not None:
        (directory / "complete.json").write_text(json.dumps(result | {"content": f"of {name}"}))


def sample(question: str, source: str, **rewards: float | None) -> dict:
    problem = {"question": question, "answer": "1", "source": source}
    text = f"<think> hm {question} </think> <answer> 1 </answer>"
    return {"problem": problem, "text": text, "finished": True, "rewards": rewards}


SUMS = [sample(f"{i} + 1", "sums", accuracy=1.0, refused=None) for i in range(20)]
REQUESTS = [sample(f"make {i}", "requests", accuracy=None, helpful=0.25) for i in range(20)]


@pytest.fixture
def workdir(tmp_path) -> Path:
    """base -> rl -> kept -> tuned, which is made of base too; base and rl were evaluated. Written in another order."""
    write_run(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "sums-train-seed0.array_record").write_text("1 + 1")
    write_stage(tmp_path, "zz_base", "pretrain", {"corpus": "data/sums-train-seed0.array_record"}, {"steps": 2})
    write_stage(tmp_path, "evaluate_before", "evaluate", {"checkpoint": "zz_base"}, FIGURES, samples=SUMS + REQUESTS)
    config = {"rl": {"steps": 2}, "rewards": {"format": {"weight": 0.2, "sources": ["sums"]}}}
    write_stage(tmp_path, "rl", "rl", {"base": "zz_base"}, {"steps": 2}, metrics=ROWS, config=config)
    write_stage(tmp_path, "evaluate_after", "evaluate", {"checkpoint": "rl"}, BETTER, samples=SUMS + REQUESTS)
    write_stage(tmp_path, "kept", "rejection", {"policy": "rl"}, {"drawn": 8, "kept": 2, "wrong": 5, "unfinished": 1})
    write_stage(tmp_path, "aa_tuned", "sft", {"base": "zz_base", "kept": "kept"}, {"steps": 2, "used": 2})
    return tmp_path


def page_of(workdir: Path) -> str:
    return report.write_report(epath.Path(workdir)).read_text()


def test_report_shows_what_was_written_and_escapes_it(workdir):
    page = page_of(workdir)
    assert "&lt;b&gt;bold" in page
    assert "&lt;think&gt; hm 0 + 1 &lt;/think&gt;" in page
    assert "0.125" in page
    assert "[0.400, 0.600]" in page
    assert re.findall(r'width:([\d.]+)%"></i>', page) == ["25.0", "62.5", "12.5"]  # kept, then the most frequent reason
    assert page.count('class="card"') == 12
    assert page.count("helpful&nbsp;0.25") == 12  # six requests, twice
    assert "None" not in page
    assert (workdir / "curves_rl.svg").exists()


def test_the_report_is_one_file(workdir):
    page = page_of(workdir)
    assert not any(mark in page for mark in ("src=", "<link", "@import", "<script", "url(", "http"))
    ids = set(re.findall(r'id="([^"]+)"', page))
    assert set(re.findall(r'href="#([^"]+)"', page)) == ids == {"zz_base", "rl", "kept", "aa_tuned"}


def test_stages_come_after_what_they_are_made_of(workdir):
    names = [stage.name for stage in lineage.read_stages(epath.Path(workdir))]
    place = {name: i for i, name in enumerate(names)}
    assert len(names) == 6
    assert place["zz_base"] < place["rl"] < place["kept"] < place["aa_tuned"]
    assert place["evaluate_before"] < place["evaluate_after"]


def test_stages_that_nothing_orders_come_as_they_were_begun(tmp_path):
    for minute, name in ((2, "a"), (1, "c"), (0, "b")):
        write_stage(tmp_path, name, "sft", {}, {}, began=f"2026-01-01T00:0{minute}:00Z")
    stages = lineage.read_stages(epath.Path(tmp_path))
    assert [stage.name for stage in stages] == ["b", "c", "a"]
    assert [stage.seconds for stage in stages] == [3600, 3540, 3480]


def test_the_graph_has_every_stage_and_edge(workdir):
    page = page_of(workdir)
    assert re.findall(r"<path d=[^>]*><title>([^<]*)", page) == [
        "zz_base → rl", "rl → kept", "zz_base → aa_tuned", "kept → aa_tuned",
    ]  # fmt: skip
    assert re.findall(r'class="name"[^>]*>([^<]*)', page) == ["zz_base", "rl", "kept", "aa_tuned"]
    assert "pass@1 0.75" in page  # an evaluation stands in the box of what it measured
    assert "sums-train-seed0" in page


def test_boxes_and_passing_lines_keep_apart():
    rng = random.Random(0)
    for _ in range(50):
        parents = {str(n): [str(p) for p in range(n) if rng.random() < 0.3] for n in range(rng.randint(1, 12))}
        drawn = graph.lay_out(parents)
        assert {(e.start, e.end) for e in drawn.edges} == {(p, n) for n, above in parents.items() for p in above}
        corners = list(drawn.boxes.values())
        for x, y in corners:
            assert all(abs(x - u) >= graph.WIDTH for u, v in corners if y == v and x != u)
            assert x + graph.WIDTH <= drawn.width
        for edge in drawn.edges:
            assert drawn.boxes[edge.start][1] < drawn.boxes[edge.end][1]
            # Where a line goes straight down past a row, it is between the boxes of that row.
            for x, start, downs in re.findall(r"([\d.]+),([\d.]+)((?:V[\d.]+)+)", edge.path):
                for top, bottom in pairwise(map(float, [start, *downs.split("V")[1:]])):
                    passed = [u for u, v in corners if v == top and bottom - top == graph.HEIGHT]
                    assert not any(u < float(x) < u + graph.WIDTH for u in passed)


def test_what_is_made_of_another_thing_now_is_stale_and_what_hangs_on_it(workdir):
    assert lineage.find_stale(lineage.read_stages(epath.Path(workdir))) == {}
    assert "Stale" not in page_of(workdir)
    (workdir / "rl" / "complete.json").write_text(json.dumps({"content": "other"}))
    stale = lineage.find_stale(lineage.read_stages(epath.Path(workdir)))
    named = {"kept": "policy (rl)", "evaluate_after": "checkpoint (rl)", "aa_tuned": "kept (kept)"}
    assert stale.keys() == named.keys()
    assert all(len(stale[name]) == 1 and named[name] in stale[name][0] for name in named)
    assert stale["aa_tuned"][0] in page_of(workdir)
    (workdir / "data" / "sums-train-seed0.array_record").write_text("1 + 2")
    assert "zz_base" in lineage.find_stale(lineage.read_stages(epath.Path(workdir)))


def test_a_run_in_the_middle(workdir):
    (workdir / "rl" / "complete.json").unlink()
    (workdir / "archive" / "1" / "old").mkdir(parents=True)
    (workdir / "archive" / "1" / "old" / "config.json").write_text("{}")
    config = {"rl": {"steps": 9}}
    write_stage(workdir, "more", "rl", {"base": "zz_base"}, metrics=ROWS[:1], config=config)
    write_stage(workdir, "aborted", "evaluate", {"checkpoint": "rl"})
    page = page_of(workdir)
    assert "at step 1 of 9" in page
    assert "aborted" in page
    assert "old" not in [stage.name for stage in lineage.read_stages(epath.Path(workdir))]


def test_kinds_of_stages_that_nobody_knows(tmp_path):
    write_run(tmp_path)
    assert "What each stage" not in page_of(tmp_path)  # nothing was begun
    rows = [{"step": s, "divergence": 1.0 / s} for s in (1, 2)]
    inputs = {"teacher": "/elsewhere/final_rl", "self": "<i>odd"}
    write_stage(tmp_path, "<i>odd", "distil", inputs, {"pairs": 1234}, metrics=rows)
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "config.json").write_text("{}")
    page = page_of(tmp_path)
    assert "pairs 1,234" in page
    assert "divergence" in page
    assert "&lt;i&gt;odd" in page
    assert "<i>odd" not in page
    assert "bare" in page


def test_a_policy_of_another_run_is_what_was_before(tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    write_stage(other, "sft", "sft", {}, {})
    workdir = tmp_path / "run"
    workdir.mkdir()
    write_run(workdir)
    write_stage(workdir, "evaluate_before", "evaluate", {"checkpoint": str(other / "sft")}, FIGURES)
    write_stage(workdir, "first", "rl", {"base": str(other / "sft")}, {})
    write_stage(workdir, "second", "rl", {"base": "first"}, {})
    write_stage(workdir, "evaluate_second", "evaluate", {"checkpoint": "second"}, BETTER)
    page = page_of(workdir)
    assert "Held out, before → second" in page
    assert 'class="moves"' in page
    assert "Stale" not in page


def test_small_curves_are_small():
    rows = [{"step": step, "loss": 1.0 / step} for step in range(1, 5001)]
    drawn = curves.panel(rows, "loss")
    assert len(drawn.thick.split()) <= curves.POINTS + 1
    assert (drawn.low, drawn.high, drawn.steps) == (0, 1, (1, 5000))
    assert curves.panel(rows, "reward") is None
    assert curves.panel([{"step": 1, "accuracy": 0.0}], "accuracy").thick == "0.0,80.0"  # at the bottom


def test_only_what_moved_is_named_and_the_best_is_marked():
    before = {"pass@1": 0.5, "language_mix": 0.5, "format": 0.5, "pass@8": 0.5, "response_tokens": 20.0}
    after = {"pass@1": 0.75, "language_mix": 0.625, "format": 0.51, "pass@8": 1.0, "response_tokens": 10.0}
    moves = figures.find_moves(before, after)
    assert [(m.name, m.verdict) for m in moves] == [
        ("response_tokens", ""),
        ("pass@1", "good"),
        ("language_mix", "bad"),
    ]
    best = {name: [cell.get("best") for cell in cells] for name, cells in figures.table([before, after, {}])}
    assert best["pass@1"] == [False, True, None]
    assert best["language_mix"] == [True, False, None]
    assert best["response_tokens"] == [False, False, None]
