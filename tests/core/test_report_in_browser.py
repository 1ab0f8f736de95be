"""The report's pages in a browser: values under the pointer, zoom, folds, the sample browser, files of values."""

import json
from pathlib import Path

import pytest
from etils import epath

from r1jax.report import comparison, report
from tests.shared.chromium import CHROMIUM, Page
from tests.shared.written_runs import BETTER, FIGURES, sample, write_run, write_stage

pytest.importorskip("aiohttp")
pytestmark = pytest.mark.skipif(not CHROMIUM, reason="needs Chromium")

STEPS = range(1, 41)
TURNS = [{"text": "<think> ask </think> 1 + 1", "observation": "the tool says 2"}, {"text": "2", "observation": None}]
WINDOWS = [(1400, 1000, False), (1400, 1000, True), (390, 844, False), (390, 844, True)]


def reward(step: int, seed: int = 0) -> float:
    return (step + 10 * seed) / 100


def write_rl_run(workdir: Path, seed: int = 0) -> Path:
    """A base and RL from it, both evaluated; right answers from step 21 on, and a sample with a tool's output."""
    workdir.mkdir()
    write_run(workdir, sessions=[{"seed": seed, "git": "abc", "started": "2026-01-01T00:00:00Z", "command": "x"}])
    write_stage(workdir, "base", "pretrain", {}, {"steps": 2})
    write_stage(workdir, "evaluate_base", "evaluate", {"checkpoint": "base"}, FIGURES)
    rows = [{"step": step, "reward": reward(step, seed), "kl": 0.0, "grad_norm": 0.25 * step} for step in STEPS]
    samples = [
        sample(f"{step} + 1", "sums", accuracy=float(step > 20)) | {"step": step, "reward": 1.0} for step in STEPS
    ]
    samples[0] |= {"turns": TURNS}
    samples[1] |= {"trained": False}
    write_stage(workdir, "rl", "rl", {"base": "base"}, {"steps": 40}, metrics=rows, samples=samples)
    write_stage(workdir, "evaluate_rl", "evaluate", {"checkpoint": "rl"}, BETTER)
    return workdir


@pytest.fixture(scope="module")
def run_page(tmp_path_factory) -> Path:
    return Path(report.write_report(epath.Path(write_rl_run(tmp_path_factory.mktemp("one") / "run"))))


@pytest.fixture(scope="module")
def seeds_page(tmp_path_factory) -> Path:
    home = tmp_path_factory.mktemp("several")
    runs = [epath.Path(write_rl_run(home / f"s{seed}", seed)) for seed in range(3)]
    return Path(comparison.write_comparison(runs, epath.Path(home / "page.html")))


def text(page: Page, selector: str) -> str:
    return page(f"document.querySelector({selector!r}).textContent").strip()


def value(metric: str) -> str:
    return f'.panel[data-metric="{metric}"] .value'


def plot(metric: str) -> str:
    return f'.panel[data-metric="{metric}"] .u-over'


def step_shown(page: Page) -> int:
    """The step under the pointer."""
    return int(text(page, value("reward")).split(":")[0].removeprefix("step "))


@pytest.mark.parametrize("name", ["run_page", "seeds_page"])
@pytest.mark.parametrize("width, height, dark", WINDOWS)
def test_pages_fit_the_window_write_no_errors_and_ask_the_network_for_nothing(name, width, height, dark, request):
    file = request.getfixturevalue(name)
    with Page(file, width, height, dark) as page:
        page("document.querySelectorAll('details').forEach(fold => fold.open = true)")
        page("new Promise(done => setTimeout(done, 200))")
        assert page("document.documentElement.scrollWidth") <= width
        red, *_ = page("getComputedStyle(document.body).backgroundColor.match(/[0-9]+/g).map(Number)")
        assert (red < 80) == dark
        assert page.errors == []
        assert page.requests == [file.as_uri()]


def test_the_pointer_shows_values_and_a_drag_zooms(run_page):
    with Page(run_page) as page:
        assert text(page, value("reward")) == "0.02 → 0.39"  # means of five steps
        page.mouse("mouseMoved", page.place(plot("reward"), 0.5))
        step = step_shown(page)
        assert 19 <= step <= 22  # half of the way
        assert text(page, value("reward")) == f"step {step}: {reward(step):g}"
        assert text(page, value("kl")) == f"step {step}: 0"  # the other charts of the stage show the same step

        start, end = page.place(plot("reward"), 0.5), page.place(plot("reward"), 0.75)
        page.mouse("mousePressed", start, button="left", clickCount=1)
        page.mouse("mouseMoved", ((start[0] + end[0]) / 2, start[1]), button="left", buttons=1)
        page.mouse("mouseMoved", end, button="left", buttons=1)
        page.mouse("mouseReleased", end, button="left", clickCount=1)
        page.mouse("mouseMoved", page.place(plot("reward"), 0.02))
        assert 20 <= step_shown(page) <= 22  # what was in the middle is at the left
        for count in (1, 2):
            page.mouse("mousePressed", end, button="left", clickCount=count)
            page.mouse("mouseReleased", end, button="left", clickCount=count)
        page.mouse("mouseMoved", page.place(plot("reward"), 0.02))
        assert step_shown(page) <= 2
        assert page.errors == []


def test_a_finger_shows_values_too(run_page):
    with Page(run_page, 390, 844) as page:
        page.call("Emulation.setTouchEmulationEnabled", enabled=True)
        x, y = page.place(plot("reward"), 0.5)
        page.call("Input.synthesizeTapGesture", x=x, y=y)
        assert 19 <= step_shown(page) <= 22
        assert page.errors == []


def test_smoothing_log_scale_and_folds(run_page):
    with Page(run_page) as page:
        fold = "details.fold[data-metrics*=grad_norm]"
        assert not page(f"!!document.querySelector('{fold} canvas')")
        page(f"document.querySelector('{fold}').open = true")
        page("new Promise(done => setTimeout(done, 200))")
        assert page(f"!!document.querySelector('{fold} canvas')")
        assert text(page, value("grad_norm")) == "0.5 → 9.75"
        page("window.choice = document.querySelector('[name=window]'); choice.value = 1")
        page("choice.dispatchEvent(new Event('change'))")
        assert text(page, value("grad_norm")) == "0.25 → 10"
        page("document.querySelector('[name=log]').click()")
        assert text(page, value("kl")) == "– → –"  # zeros have no logarithm
        assert text(page, value("reward")) == "0.01 → 0.4"
        assert page.errors == []


def fill(page: Page, **fields: str) -> int:
    """Fills in the form of the sample browser; returns how many samples it says it has found."""
    for name, content in fields.items():
        page(f"document.querySelector('#report-browser [name={name}]').value = {content!r}")
    page("document.querySelector('#report-browser form').dispatchEvent(new Event('input'))")
    return int(text(page, "#report-browser .found").split()[0])


def test_the_sample_browser_filters(run_page):
    with Page(run_page) as page:
        assert fill(page) == 40
        assert page("document.querySelectorAll('#report-browser .card').length") == 10
        page("document.querySelector('#report-browser .more').click()")
        assert page("document.querySelectorAll('#report-browser .card').length") == 30
        assert fill(page, verdict="right") == 20
        assert fill(page, first="11", last="25") == 5
        assert "25 + 1" in text(page, "#report-browser .card:nth-child(5)")
        assert fill(page, text="HM 23 ") == 1
        assert fill(page, high="0.5") == 0
        assert fill(page, high="", verdict="", first="", last="", text="tool says") == 1
        assert text(page, "#report-browser .observed") == "the tool says 2"
        assert fill(page, text="", trained="false") == 1
        assert "left out of training" in text(page, "#report-browser .card")
        assert fill(page, trained="", text="tool says") == 1
        assert page("document.querySelector('#report-browser .text details').open") is False  # the thinking
        assert page.errors == []


def test_metrics_come_as_csv(run_page):
    with Page(run_page) as page:
        page("window.made = []; URL.createObjectURL = blob => (made.push(blob), 'blob:none')")
        page("HTMLAnchorElement.prototype.click = function () { made.push(this.download) }")
        page("document.querySelector('button.csv[data-stage=rl]').click()")
        header, *rows = page("made[0].text()").splitlines()
        assert (page("made[1]"), header) == ("rl.csv", "run,step,reward,kl,grad_norm")
        assert [row.split(",")[1:3] for row in rows] == [[str(step), f"{reward(step):g}"] for step in STEPS]


def test_several_runs_show_their_mean_and_range(seeds_page):
    with Page(seeds_page) as page:
        page.mouse("mouseMoved", page.place(plot("reward"), 0.5))
        step = step_shown(page)
        low, mean, high = (json.loads(f"{reward(step, seed):.3g}") for seed in range(3))
        assert text(page, value("reward")) == f"step {step}: {mean:g} [{low:g}, {high:g}]"
        assert page.errors == []


@pytest.mark.parametrize("name", ["run_page", "seeds_page"])
def test_pages_are_complete_without_scripts(name, request):
    with Page(request.getfixturevalue(name), scripts=False) as page:
        assert page("document.querySelectorAll('.panel svg polyline.thick').length") == 2
        assert page("[...document.querySelectorAll('button.csv, #report-controls')].every(e => !e.checkVisibility())")
        assert "grad norm" in text(page, "details.fold[data-metrics*=grad_norm]")
