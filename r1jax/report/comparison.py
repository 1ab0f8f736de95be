"""Writes one page of several runs: means over seeds with intervals, curves with bands, differences of configs."""

import hashlib
import math
import re
from collections.abc import Mapping, Sequence
from functools import cache
from statistics import fmean, stdev
from typing import Any

from etils import epath
from scipy.special import stdtrit

from r1jax.errors import UsageError
from r1jax.paths import absolute
from r1jax.report.curves import Panel, Rows, panel
from r1jax.report.embedded import columns, thinning
from r1jax.report.evaluation import Figures, intervals
from r1jax.report.figures import format_figure
from r1jax.report.pages import render
from r1jax.report.record import RunRecord, figures_of, read_run
from r1jax.report.sections import folds, main_curves, state
from r1jax.runs.code import PROMPT, meaning
from r1jax.runs.lineage import StageRecord
from r1jax.telemetry.files import write_atomically

OF_THE_SEED = ("inputs", "problems", "kind")  # parts of a stage's config that are no settings
TELLING = ("rewards", "functions", "environment")  # parts in which what only one run has is a difference
MISSING = "–"
SEED = re.compile(r"-seed\d+")  # in the name of a file of records

# Runs whose settings are equal, but for the seed, are one group: one mean, one curve.
Group = Sequence[RunRecord]


def write_comparison(workdirs: Sequence[epath.Path], output: epath.Path | None = None) -> epath.Path:
    """Writes the page of several runs, by default to `comparison.html` in the current directory; returns its path.

    Raises UsageError where a directory holds no run, or is given twice.
    """
    workdirs = [absolute(workdir) for workdir in workdirs]
    if twice := [str(workdir) for workdir in workdirs if workdirs.count(workdir) > 1]:
        raise UsageError(f"{twice[0]} is given twice: expected different runs")
    runs = [read_run(workdir) for workdir in workdirs]
    labels = dict(zip(workdirs, names_of(workdirs), strict=True))
    groups = group_runs(runs)
    stages = list(dict.fromkeys(stage.name for run in runs for stage in run.made if stage.metrics))
    every = thinning([stage.metrics for run in runs for stage in run.made])
    titles = [", ".join(labels[run.workdir] for run in group) for group in groups]
    page = render(
        "comparison.html.j2",
        {
            "groups": titles,
            "stages": {name: embedded(name, groups, labels, every) for name in stages},
            "figures": [column for run in runs for column in figures_of(run, labels[run.workdir])],
        },
        experiments=list(dict.fromkeys(run.about["experiment"] for run in runs)),
        runs=[about(run, labels[run.workdir], group) for group, found in enumerate(groups) for run in found],
        titles=titles,
        differences=differences(runs),
        labels=[labels[run.workdir] for run in runs],
        tables=tables(groups),
        sections=[section(name, groups) for name in stages],
        every=every,
    )
    path = output or absolute("comparison.html")
    write_atomically(path, page)
    return path


def names_of(workdirs: Sequence[epath.Path]) -> list[str]:
    """The last parts of the paths, as many as it takes to tell them apart."""
    for parts in range(1, max(len(workdir.parts) for workdir in workdirs)):
        names = ["/".join(workdir.parts[-parts:]) for workdir in workdirs]
        if len(set(names)) == len(names):
            return names
    return [str(workdir) for workdir in workdirs]


def about(run: RunRecord, label: str, group: int) -> dict[str, Any]:
    """A run's row in the table of runs."""
    session = run.session
    begun = [f"{stage.name} {state(stage)}" for stage in run.stages if stage.result is None]
    complete = sum(stage.result is not None for stage in run.stages)
    return {
        "label": label,
        "group": group,
        "experiment": run.about["experiment"],
        "seed": session.get("seed", "–"),
        "started": str(session.get("started", ""))[:16].replace("T", " "),
        "git": session.get("git", "–"),
        "state": ", ".join([f"{complete} stages complete", *begun, *(f"{name} unreadable" for name in run.unreadable)]),
        "seconds": sum(stage.seconds or 0.0 for stage in run.stages),
    }


# ---- configs


def settings_of(run: RunRecord) -> dict[str, dict[str, Any]]:
    """By stage, with the prompt that it asks by; and hashes of the code, as `code`, which no stage can be called."""
    found, code = {stage.name: flat(without_seed(stage)) for stage in run.stages}, dict[str, str]()
    for stage, sources in run.code.items():
        for name, text in sources.items():
            if name == PROMPT:
                found[stage][PROMPT] = text
            else:
                code[name] = hash_of_code(name, text)
    return found | {"code": code}


@cache
def hash_of_code(name: str, text: str) -> str:
    """The same for code that differs in comments, docstrings or layout alone."""
    return hashlib.sha256(meaning(name, text).encode()).hexdigest()[:8]


def without_seed(stage: StageRecord) -> dict[str, Any]:
    """With the inputs that no seed decides: contents from outside the run, such as an imported base, and data files."""
    paths = {name: str(i.get("path", "")) for name, i in stage.config.get("inputs", {}).items()}
    outside = {name: stage.config["inputs"][name]["content"] for name, path in paths.items() if is_outside(path)}
    # Records are named after their seed and the contents of their sources (data/feeds.py).
    files = {name: SEED.sub("", path) for name, path in paths.items() if path.startswith("data/") and SEED.search(path)}
    settings = {name: value for name, value in stage.config.items() if name not in OF_THE_SEED}
    return settings | ({"inputs": outside | files} if outside or files else {})


def is_outside(path: str) -> bool:
    return path.startswith(("/", "gs:"))


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested config as one level of dotted names."""
    found: dict[str, Any] = {}
    for name, value in config.items():
        found |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return found


def group_runs(runs: Sequence[RunRecord]) -> list[list[RunRecord]]:
    """Runs of one experiment whose stages have equal settings, as far as both have begun them."""
    groups: list[list[RunRecord]] = []
    for run in runs:
        alike = (group for group in groups if all(not differences([run, other]) for other in group))
        if (group := next(alike, None)) is not None:
            group.append(run)
        else:
            groups.append([run])
    return groups


def differences(runs: Sequence[RunRecord]) -> list[tuple[str, list[Any]]]:
    """(setting, its value in each run) of those that differ; MISSING in a run that lacks the stage or the setting.

    A setting that a run lacks, as one that an earlier version did not have, is no difference in itself, but for those
    that are TELLING.
    """
    experiments = [run.about["experiment"] for run in runs]
    found: list[tuple[str, list[Any]]] = [("experiment", experiments)] if len(set(experiments)) > 1 else []
    settings = [settings_of(run) for run in runs]
    for stage in dict.fromkeys(name for run in settings for name in run):
        for key in dict.fromkeys(key for run in settings for key in run.get(stage, {})):
            values = [setting(run.get(stage, {}), key) for run in settings]
            lacks = key.partition(".")[0] in TELLING and all(stage in run for run in settings)
            if len({str(value) for value in values} - (set() if lacks else {MISSING})) > 1:
                found.append((f"{stage}: {key}", values))
    return found


def setting(config: Mapping[str, Any], key: str) -> Any:
    """The value of a dotted name, or of what holds it: where `mesh` is None, so is `mesh.data`."""
    while key not in config:
        if "." not in key:
            return MISSING
        key = key.rpartition(".")[0]
    return config[key]


# ---- figures


def tables(groups: Sequence[Group]) -> list[tuple[str, list[tuple[str, list[dict[str, Any]]]]]]:
    """(evaluation, rows) with a row for each figure, which has a cell for each group."""
    names = dict.fromkeys(name for group in groups for run in group for name in run.evaluations)
    found = []
    for name in names:
        results = [[dict(run.evaluations[name].result or {}) for run in g if name in run.evaluations] for g in groups]
        figures = dict.fromkeys(key for group in results for figures in group for key in figures)
        shown = [key for key in figures if key not in intervals(figures)]
        found.append((name, [(key, [cell(key, group) for group in results]) for key in shown]))
    return found


def cell(name: str, results: Sequence[Figures]) -> dict[str, Any]:
    """A figure's mean over the runs of a group, its interval, and each run's value."""
    having = [figures for figures in results if name in figures]
    if not having:
        return {"text": "–"}
    values = [figures[name] for figures in having]
    ends = interval_over_runs(name, having)
    return {
        "text": format_figure(name, fmean(values)),
        "interval": "[{}, {}]".format(*(format_figure(name, end) for end in ends)) if ends else "",
        "each": [format_figure(name, value) for value in values] if len(values) > 1 else [],
    }


def t_interval(values: Sequence[float]) -> tuple[float, float]:
    """95 % interval of the mean of the normal distribution that two or more values were drawn from (Student 1908)."""
    half = float(stdtrit(len(values) - 1, 0.975)) * stdev(values) / math.sqrt(len(values))
    return fmean(values) - half, fmean(values) + half


def interval_over_runs(name: str, results: Sequence[Figures]) -> tuple[float, float] | None:
    """Student's 95 % interval over runs, or a single run's own; None where neither says anything.

    Equal values of a few seeds are no certainty: it is no narrower than the runs' own intervals are on average.
    """
    values = [figures[name] for figures in results]
    own = [(f[f"{name}_low"], f[f"{name}_high"]) for f in results if f"{name}_low" in f and f"{name}_high" in f]
    mean_own = (fmean(low for low, _ in own), fmean(high for _, high in own)) if len(own) == len(results) else None
    if len(set(values)) < 2:
        return mean_own
    low, high = t_interval(values)
    if mean_own:
        low, high = min(low, mean_own[0]), max(high, mean_own[1])
    is_share = "tokens" not in name and all(0 <= value <= 1 for value in values)
    return max(low, 0.0) if min(values) >= 0 else low, min(high, 1.0) if is_share else high


# ---- curves


def found_stages(name: str, groups: Sequence[Group]) -> list[list[StageRecord]]:
    return [[stage for run in group for stage in run.made if stage.name == name] for group in groups]


def embedded(name: str, groups: Sequence[Group], labels: Mapping[epath.Path, str], every: int) -> list[dict[str, Any]]:
    """A stage's metrics in each run that has begun it."""
    return [
        {"run": labels[run.workdir], "group": group} | columns(stage.metrics, every)
        for group, runs in enumerate(groups)
        for run in runs
        for stage in run.made
        if stage.name == name
    ]


def section(name: str, groups: Sequence[Group]) -> dict[str, Any]:
    """A stage's curves: those that its own report always shows, and all others."""
    stages = found_stages(name, groups)
    rows: list[list[Rows]] = [[stage.metrics for stage in group] for group in stages]
    one = max((stage for group in stages for stage in group), key=lambda stage: len(stage.metrics))
    panels: list[Panel] = [drawn for metric in main_curves(one) if (drawn := panel(rows, metric))]
    return {"name": name, "kind": one.kind, "panels": panels, "folds": folds(one, rows)}
