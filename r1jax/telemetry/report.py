"""`report.html`: one self-contained page of a run, made from what its stages wrote."""

import json
from typing import Any

import jinja2
import matplotlib.figure
from etils import epath
from markupsafe import Markup

from r1jax.errors import UsageError
from r1jax.telemetry.evaluation import BLUE, GREY, PLOT, intervals, plain_axes, show, svg_text
from r1jax.telemetry.files import write_whole
from r1jax.telemetry.metrics import read_metrics

CURVES = {
    "reward": "reward",
    "accuracy": "accuracy at temperature",
    "format": "format rate",
    "response_tokens": "response length (tokens)",
}
FIGURE_NAMES = {
    "greedy_accuracy": "accuracy, greedy",
    "pass@1": "accuracy, sampled (pass@1)",
    "format": "format rate",
    "response_tokens": "mean response length (tokens)",
    "language_mix": "thinking mixes languages",
    "finished": "ended by itself",
}
SAMPLES = 12


def write_report(workdir: epath.Path) -> epath.Path:
    """Writes and returns `workdir/report.html`. Raises UsageError when the directory holds no run."""
    workdir = epath.Path(workdir).absolute()
    if not (workdir / "run.json").exists():
        raise UsageError(f"{workdir} holds no run: expected the --workdir of `r1jax run`")
    run = json.loads((workdir / "run.json").read_text())
    stages = read_stages(workdir)
    evaluations = {s["name"]: s["result"] for s in stages if s["config"]["kind"] == "evaluate" and s["result"]}
    trainings = [s for s in stages if s["config"]["kind"] == "rl" and s["metrics"]]
    curves = {s["name"]: draw_curves(s["metrics"], base_of(evaluations)) for s in trainings}
    environment = jinja2.Environment(loader=jinja2.PackageLoader("r1jax.telemetry", "."), autoescape=True)
    page = environment.get_template("report.html.j2").render(
        run=run,
        stages=stages,
        table=before_after(evaluations),
        evaluations=list(evaluations),
        curves=[(name, Markup(svg)) for name, svg in curves.items()],
        plots=[(name, Markup(plot.read_text())) for name in evaluations if (plot := workdir / name / PLOT).exists()],
        samples=paired_samples(workdir, list(evaluations)),
    )
    path = workdir / "report.html"
    write_whole(path, page)
    for name, svg in curves.items():
        write_whole(workdir / f"curves_{name}.svg", svg)
    return path


def read_stages(workdir: epath.Path) -> list[dict[str, Any]]:
    """Every stage's name, config, metrics and result, in the order in which they were begun."""
    found = []
    for config in workdir.glob("*/config.json"):
        complete = config.parent / "complete.json"
        result = json.loads(complete.read_text()) if complete.exists() else None
        found.append(
            {
                "name": config.parent.name,
                "began": config.stat().mtime,
                "config": json.loads(config.read_text()),
                "metrics": read_metrics(config.parent / "metrics.jsonl"),
                "result": result and {name: value for name, value in result.items() if name != "content"},  # a hash
            }
        )
    return sorted(found, key=lambda stage: stage["began"])


def base_of(evaluations: dict[str, dict[str, float]]) -> dict[str, float]:
    """The first evaluation: the dashed line in every curve."""
    return next(iter(evaluations.values()), {})


def before_after(evaluations: dict[str, dict[str, float]]) -> list[tuple[str, list[str]]]:
    """One row a figure, one column an evaluation."""
    names = list(dict.fromkeys(name for figures in evaluations.values() for name in figures))
    order = [name for name in FIGURE_NAMES if name in names] + [name for name in names if name not in FIGURE_NAMES]
    return [
        (FIGURE_NAMES.get(name, name), [show(name, figures) for figures in evaluations.values()])
        for name in order
        if name not in intervals(names)
    ]


def draw_curves(metrics: list[dict[str, float]], base: dict[str, float]) -> str:
    """Four panels as SVG. Thin: each step; thick: mean of the last five."""
    figure = matplotlib.figure.Figure(figsize=(10, 5.4), layout="constrained")
    steps = [row["step"] for row in metrics]
    for axes, (name, title) in zip(figure.subplots(2, 2).flat, CURVES.items(), strict=True):
        values = [row.get(name, float("nan")) for row in metrics]  # a fork may not have this reward
        smooth = [sum(values[max(0, i - 4) : i + 1]) / (i + 1 - max(0, i - 4)) for i in range(len(values))]
        axes.plot(steps, values, color=BLUE, alpha=0.3, linewidth=1)
        axes.plot(steps, smooth, color=BLUE, linewidth=2)
        start = base.get("pass@1" if name == "accuracy" else name)
        if start is not None:
            axes.axhline(start, color=GREY, linestyle="--", linewidth=1)
            axes.annotate("base", (steps[-1], start), color=GREY, ha="right", va="bottom", fontsize=8)
        axes.set_title(title, fontsize=10, loc="left")
        axes.set_ylim(bottom=0)
        plain_axes(axes)
    figure.supxlabel("RL step", fontsize=9)
    return svg_text(figure)


def paired_samples(workdir: epath.Path, evaluations: list[str]) -> list[list[dict[str, Any]]]:
    """For twelve problems, the first and the last policy's answer, each with its rewards."""
    columns = []
    for name in dict.fromkeys([evaluations[0], evaluations[-1]]) if evaluations else ():
        lines = (workdir / name / "samples.jsonl").read_text().splitlines()[:SAMPLES]
        columns.append([json.loads(line) | {"stage": name} | split_text(json.loads(line)["text"]) for line in lines])
    return [list(row) for row in zip(*columns, strict=True)]


def split_text(text: str) -> dict[str, str]:
    """The thinking, and what comes after it."""
    thinking, tag, rest = text.partition("</think>")
    return {"thinking": thinking + tag, "answer": rest} if tag else {"thinking": "", "answer": text}
