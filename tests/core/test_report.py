"""The report: pages of one run and of several, finished or not."""

import json
import random
import re
from itertools import pairwise
from pathlib import Path

import pytest
from etils import epath

from r1jax.cli.main import main
from r1jax.errors import UsageError
from r1jax.report import comparison, curves, embedded, figures, graph, report
from r1jax.report.record import RunRecord, read_run
from r1jax.runs import lineage
from r1jax.runs.code import PROMPT, record_code
from r1jax.runs.lineage import StageRecord
from tests.shared.written_runs import BETTER, FIGURES, ROWS, SUMS, sample, write_run, write_small_run, write_stage


@pytest.fixture
def workdir(tmp_path) -> Path:
    write_small_run(tmp_path)
    return tmp_path


def test_report_needs_a_run(tmp_path):
    with pytest.raises(UsageError, match="--workdir"):
        report.write_report(epath.Path(tmp_path))


def test_a_run_of_another_format_is_refused(tmp_path):
    (tmp_path / "run.json").write_text(json.dumps({"experiment": "x", "sessions": []}))
    with pytest.raises(UsageError, match=f"{tmp_path}.*format.*--workdir"):
        report.write_report(epath.Path(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]


# ---- the report of a whole run


def page_of(workdir: Path) -> str:
    return report.write_report(epath.Path(workdir)).read_text()


def data_of(page: str) -> dict:
    """What a page has for its script."""
    found = re.search(r'<script type="application/json" id="report-data">(.*?)</script>', page, re.DOTALL)
    assert found
    return json.loads(found[1])


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
    assert not any(mark in page for mark in ("src=", "<link", "@import", "url("))
    assert "Copyright (c) 2022 Leon Sorokin" in page  # the plotting library's licence asks for it
    ids = set(re.findall(r'<section id="([^"]+)"', page))
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
    drawn = curves.panel([[rows]], "loss")
    assert len(drawn.curves[0].thick.split()) <= curves.POINTS + 1
    assert (drawn.low, drawn.high, drawn.steps) == (0, 1, (1, 5000))
    assert curves.panel([[rows]], "reward") is None


@pytest.mark.parametrize("nothing", [0.0, -1e-11])
def test_curves_of_zeros_are_at_the_bottom(nothing):
    """The KL term of a first step is rounding noise of either sign."""
    [drawn] = curves.panel([[[{"step": 1, "kl": nothing}, {"step": 2, "kl": nothing}]]], "kl").curves
    assert drawn.thick == "0.0,80.0 200.0,80.0"


def test_curves_of_several_runs_are_their_mean_and_range():
    runs = [[{"step": step, "reward": value} for step in range(1, 6)] for value in (0.0, 0.5, 4.0)]
    drawn = curves.panel([runs[:2], [], runs[2:]], "reward")
    first, missing, other = drawn.curves
    assert (first.first, first.last, other.last, missing) == (0.25, 0.25, 4.0, None)
    assert {y for y in (point.split(",")[1] for point in first.band.split())} == {"80.0", "70.0"}  # 0 and 0.5 of 4
    assert (first.thin, other.band) == ("", "")


def test_values_that_are_no_numbers_are_left_out(workdir):
    rows = [{"step": 1, "loss": float("nan")}, {"step": 2, "loss": 1.0}, {"step": 3, "loss": float("inf")}]
    write_stage(workdir, "odd", "sft", {}, metrics=rows)
    data = data_of(page_of(workdir))
    assert data["stages"]["odd"][0]["metrics"]["loss"] == [None, 1, None]


def test_only_what_moved_is_named_and_the_best_is_marked():
    before = {"pass@1": 0.5, "language_mix": 0.5, "format": 0.5, "pass@8": 0.5, "response_tokens": 20.0}
    after = {"pass@1": 0.75, "language_mix": 0.625, "format": 0.51, "pass@8": 1.0, "response_tokens": 10.0}
    moves = figures.find_moves(before, after)
    assert [(m.name, m.verdict) for m in moves] == [
        ("response_tokens", ""),
        ("pass@1", "good"),
        ("language_mix", "bad"),
    ]
    marks = {name: [cell.get("mark") for cell in cells] for name, cells in figures.table([before, after, {}])}
    assert marks["pass@1"] == ["", "best", None]
    assert marks["language_mix"] == ["best", "", None]
    assert marks["response_tokens"] == ["", "", None]


def with_interval(low: float, value: float, high: float) -> dict[str, float]:
    return {"pass@1": value, "pass@1_low": low, "pass@1_high": high}


def test_a_best_value_whose_interval_overlaps_others_is_tied():
    low, middle, high = with_interval(0.1, 0.2, 0.3), with_interval(0.5, 0.6, 0.7), with_interval(0.65, 0.7, 0.75)
    [(_, found)] = figures.table([low, middle, high])
    assert [cell["mark"] for cell in found] == ["", "tied", "tied"]
    [(_, found)] = figures.table([low, middle])
    assert [cell["mark"] for cell in found] == ["", "best"]


def test_conclusions_say_what_the_figures_say():
    before = with_interval(0.5, 0.6, 0.7) | {"response_tokens": 31.0, "format": 0.9}
    after = with_interval(0.45, 0.55, 0.65) | {"response_tokens": 27.0, "format": 0.4}
    assert figures.conclude(before, after) == [
        "Sampled accuracy fell: 0.600 [0.500, 0.700] → 0.550 [0.450, 0.650], but the intervals overlap.",
        "Responses got shorter: 31.0 → 27.0 tokens.",
        "Worse: format rate, 0.900 → 0.400.",
    ]
    assert figures.conclude(with_interval(0.1, 0.2, 0.3), with_interval(0.4, 0.5, 0.6)) == [
        "Sampled accuracy rose: 0.200 [0.100, 0.300] → 0.500 [0.400, 0.600]."
    ]
    assert figures.conclude({}, after) == []


# ---- what the page's script reads


def test_all_metrics_are_embedded_and_in_folds(workdir):
    rows = [{"step": s, "reward": s / 2, "grad_norm": 1 / 3, "tokens_per_second": 9.0, "novel": 1.0} for s in (1, 2)]
    write_stage(workdir, "more", "rl", {"base": "zz_base"}, metrics=rows)
    page = page_of(workdir)
    [run] = data_of(page)["stages"]["more"]
    assert run["steps"] == [1, 2]
    assert run["metrics"]["reward"] == [0.5, 1] and run["metrics"]["grad_norm"] == [0.333333, 0.333333]
    titles = re.findall(r'data-stage="more" data-metrics="([^"]*)"><summary>([a-z ]*) \(1\)', page)
    assert dict(titles) == {
        "[&#34;tokens_per_second&#34;]": "speed and memory",
        "[&#34;grad_norm&#34;]": "loss and gradients",
        "[&#34;novel&#34;]": "others",
    }


def test_long_runs_are_thinned_and_say_so(workdir, monkeypatch):
    monkeypatch.setattr(embedded, "VALUES", 100)
    write_stage(workdir, "long", "sft", {}, metrics=[{"step": s, "loss": 1.0} for s in range(1, 101)])
    page = page_of(workdir)
    steps = data_of(page)["stages"]["long"][0]["steps"]
    assert steps == [*range(1, 101, 3), 100][: len(steps)] and steps[-1] == 100
    assert "charts and CSV have one step in 3." in page


def test_samples_are_spread_over_the_files_and_counted(workdir, monkeypatch):
    monkeypatch.setattr(embedded, "MOST", 10)
    rows = [sample(f"{i}?", "sums", accuracy=float(i % 2)) | {"step": i // 4, "reward": 0.5} for i in range(40)]
    (workdir / "rl" / "samples.jsonl").write_text("\n".join(map(json.dumps, rows)) + '\n{"step": 10, "prob')
    page = page_of(workdir)
    found = [s for s in data_of(page)["samples"] if s["stage"] == "rl"]
    assert [s["step"] for s in found] == list(range(10))
    assert (found[0]["question"], found[0]["reward"], found[0]["rewards"]) == ("0?", 0.5, {"accuracy": 0})
    assert "30 of 121 logged samples" in page  # of training, and of two evaluations of 40 problems


def test_long_samples_keep_both_ends():
    text = "a" * embedded.LONGEST + "b" * 1000
    clipped = embedded.clip(text)
    assert clipped.startswith("aaaa") and clipped.endswith("bbbb") and "1,000 characters left out" in clipped
    assert embedded.clip("short") == "short"


def test_no_text_ends_the_element_that_holds_it():
    text = "</script><!-- <script> &amp; \u2028"
    script = embedded.to_script({"text": text})
    assert "<" not in script
    assert json.loads(script) == {"text": text}


# ---- unfinished runs


def test_an_unfinished_run_says_what_is_complete_and_what_is_under_way(workdir):
    assert "6 stages complete" in page_of(workdir)
    write_stage(workdir, "more", "rl", {"base": "zz_base"}, metrics=ROWS, config={"rl": {"steps": 9}})
    page = page_of(workdir)
    assert re.search(r"Complete: [^.]*aa_tuned[^.]*\. Not complete: more \(at step 2 of 9\)\.", page)
    assert "of 7 stages" not in page  # how many will follow is not known


@pytest.mark.parametrize("content", ["", "{", "[]", '{"kind": "rl", "inputs": {"base": {}}}'])
def test_a_stage_that_cannot_be_read_is_named_and_left_out(workdir, content):
    (workdir / "half").mkdir()
    (workdir / "half" / "config.json").write_text(content)
    page = page_of(workdir)
    assert "Left out:" in page and "<b>half</b>" in page
    assert 'id="rl"' in page


@pytest.mark.parametrize("name", ["metrics.jsonl", "samples.jsonl", "complete.json", "sessions.json"])
def test_no_file_that_is_cut_short_stops_the_report(workdir, name):
    """What the RL stage has written, as if only a part had reached the disk."""
    path = workdir / "rl" / name
    sessions = [{"git": "abc", "began": "2026-01-01T00:00:00Z"}]
    whole = {"samples.jsonl": json.dumps(SUMS[0]), "sessions.json": json.dumps(sessions)}.get(name) or path.read_text()
    for size in range(0, len(whole), -(-len(whole) // 8)):
        path.write_text(whole[:size])
        assert "What each stage changed" in page_of(workdir)


# ---- several runs


@pytest.fixture
def seeds(tmp_path) -> list[Path]:
    """Three runs; the last has another KL coefficient and is not finished."""
    found = []
    for seed, accuracy in enumerate((0.5, 0.7, 0.9)):
        workdir = tmp_path / f"s{seed}"
        workdir.mkdir()
        write_run(workdir, sessions=[{"seed": seed, "git": "abc", "started": "2026-01-01T00:00:00Z"}])
        config = {"rl": {"steps": 2, "loss": {"kl_coef": 0.1 if seed == 2 else 0.0}}, "problems": f"hash {seed}"}
        rows = [{"step": s, "reward": accuracy, "grad_norm": 1.0} for s in (1, 2)]
        write_stage(workdir, "rl", "rl", {}, {"steps": 2}, metrics=rows, config=config)
        figures = {"pass@1": accuracy, "pass@1_low": accuracy - 0.05, "pass@1_high": accuracy + 0.05}
        write_stage(workdir, "evaluate_rl", "evaluate", {"checkpoint": "rl"}, figures if seed < 2 else None)
        found.append(workdir)
    return found


def compare(workdirs: list[Path], output: Path) -> str:
    return comparison.write_comparison([epath.Path(w) for w in workdirs], epath.Path(output)).read_text()


def test_seeds_have_a_mean_with_students_interval(seeds, tmp_path):
    page = compare(seeds[:2], tmp_path / "page.html")
    low, high = comparison.t_interval([0.5, 0.7])
    assert (low, high) == (pytest.approx(0.6 - 12.7062 * 0.1), pytest.approx(0.6 + 12.7062 * 0.1))
    assert "0.600" in page and "[0.000, 1.000]" in page and "0.500 · 0.700" in page  # a share ends at 0 and 1
    assert "Different settings" not in page
    assert data_of(page)["groups"] == ["s0, s1"]
    assert [run["run"] for run in data_of(page)["stages"]["rl"]] == ["s0", "s1"]


def test_equal_figures_of_seeds_are_no_certainty():
    same = {"pass@1": 1.0, "pass@1_low": 0.9, "pass@1_high": 1.0}
    assert comparison.interval_over_runs("pass@1", [same, same]) == (0.9, 1.0)
    assert comparison.interval_over_runs("pass@1", [same]) == (0.9, 1.0)
    assert comparison.interval_over_runs("format", [{"format": 1.0}]) is None
    assert comparison.interval_over_runs("format", [{"format": 1.0}] * 3) is None
    low, high = comparison.interval_over_runs("response_tokens", [{"response_tokens": n} for n in (1.0, 9.0)])
    assert low == 0 and high == pytest.approx(5 + 12.7062 * 4)


def test_runs_with_other_settings_are_another_group(seeds, tmp_path):
    page = compare(seeds, tmp_path / "page.html")
    assert data_of(page)["groups"] == ["s0, s1", "s2"]
    assert "rl: rl.loss.kl_coef" in page and "rl.steps" not in page
    assert "evaluate_rl begun" in page
    assert re.findall(r'class="panel" data-stage="rl" data-metric="(\w+)"', page) == ["reward"]


def test_settings_differ_where_both_runs_have_them():
    def run(**config) -> RunRecord:
        stage = StageRecord("rl", {"kind": "rl", **config}, [], [], [], None, None, 0.0)
        return RunRecord(epath.Path("x"), {"experiment": "x"}, [stage], {})

    assert comparison.differences([run(a=1, b=2), run(a=1)]) == []  # an older version had no b
    assert comparison.differences([run(mesh=None), run(mesh={"data": 2})]) == [("rl: mesh.data", [None, 2])]
    assert comparison.differences([run(a={"b": [1, 2]}), run(a={"b": [1, 3]})]) == [("rl: a.b", [[1, 2], [1, 3]])]
    inside, outside = {"path": "data/x", "content": "1"}, {"path": "/base", "content": "2"}
    assert comparison.differences([run(inputs={"a": inside}, problems="x"), run(inputs={}, problems="y")]) == []
    bases = [run(inputs={"base": outside | {"content": content}}) for content in "12"]
    assert comparison.differences(bases) == [("rl: inputs.base", ["1", "2"])]
    rewarded = [run(rewards={"right": {"weight": 1.0}}), run(rewards={})]
    assert comparison.differences(rewarded) == [("rl: rewards.right.weight", [1.0, comparison.MISSING])]


def with_records(workdir: Path, seed: int, contents: str) -> None:
    path = workdir / "rl" / "config.json"
    records = {"path": f"data/problems-train-seed{seed}-64-{contents}.array_record", "content": f"hash {seed}"}
    path.write_text(json.dumps(json.loads(path.read_text()) | {"inputs": {"problems": records}}))


def test_runs_on_other_training_files_are_another_group(seeds):
    for seed, workdir in enumerate(seeds[:2]):
        with_records(workdir, seed, "aaaa")
    same, other = (read_run(epath.Path(workdir)) for workdir in seeds[:2])
    assert comparison.group_runs([same, other]) == [[same, other]]
    with_records(seeds[1], 1, "bbbb")
    other = read_run(epath.Path(seeds[1]))
    assert comparison.group_runs([same, other]) == [[same], [other]]
    [(name, files)] = comparison.differences([same, other])
    assert name == "rl: inputs.problems" and files[0] == "data/problems-train-64-aaaa.array_record"


def test_runs_of_changed_code_are_another_group(seeds):
    """And of another prompt; comments and docstrings are no code."""

    def code(workdir: Path, source: str, prompt: str = "{question}"):
        directory = epath.Path(workdir)
        record_code(directory, directory / "rl", {"mine.py": source, PROMPT: prompt}, accept=True)
        return read_run(directory)

    first, second = code(seeds[0], "reward = 1\n"), code(seeds[1], '"""Mine."""\nreward = 1  # the best\n')
    assert comparison.group_runs([first, second]) == [[first, second]]
    changed = code(seeds[1], "reward = 2\n")
    assert comparison.group_runs([first, changed]) == [[first], [changed]]
    [(name, hashes)] = comparison.differences([first, changed])
    assert name == "code: mine.py" and hashes[0] != hashes[1]
    asked = code(seeds[1], "reward = 1\n", "Q: {question}")
    assert comparison.differences([first, asked]) == [("rl: prompt", ["{question}", "Q: {question}"])]


def test_comparisons_of_nothing_are_refused_in_one_line(seeds, tmp_path, capsys):
    assert main(["report", str(seeds[0]), str(seeds[0])]) == 2
    assert "given twice" in capsys.readouterr().err
    assert main(["report", str(seeds[0]), str(tmp_path / "nowhere")]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert "nowhere holds no run" in line


def test_pages_are_written_where_the_help_says(seeds, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["report", *map(str, seeds)]) == 0
    assert main(["report", str(seeds[0]), "--output", "one.html"]) == 0
    assert main(["report", str(seeds[0])]) == 0
    written = [tmp_path / "comparison.html", tmp_path / "one.html", seeds[0] / "report.html"]
    assert capsys.readouterr().out.splitlines() == [f"report: {path}" for path in written]
    assert all(path.exists() for path in written)
