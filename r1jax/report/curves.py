"""A stage's curves: small panels in the report, and a picture in a file of its own."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

import matplotlib.figure

from r1jax.report.evaluation import BLUE, GREY, plain_axes, svg_text

PICTURE = {
    "reward": "reward",
    "accuracy": "accuracy at temperature",
    "format": "format rate",
    "response_tokens": "response length (tokens)",
    "finished": "responses that end by themselves",
}  # the first four of which there is anything to see
POINTS = 150  # of a small curve, at most
PANEL = (200, 80)  # width and height
ZERO = 1e-9  # a smaller metric is rounding noise, drawn as zero

Rows = Sequence[Mapping[str, float]]


@dataclass(frozen=True)
class Curve:
    """SVG points of one run, or of several: the mean of their smoothed values, and a band from lowest to highest."""

    thin: str  # each step of a single run
    thick: str
    band: str
    first: float  # of the thick curve
    last: float


@dataclass(frozen=True)
class Panel:
    """Small curves of a metric in SVG coordinates. Labels are HTML, so that they do not scale with the SVG."""

    name: str
    curves: Sequence[Curve | None]  # one for each group of runs; None where it lacks the metric
    low: float  # of the axis
    high: float
    steps: tuple[float, float]
    dashed: float | None  # y of the dashed line
    base: float | None  # its value


def panel(groups: Sequence[Sequence[Rows]], name: str, base: float | None = None) -> Panel | None:
    """A metric's curves, one for each group of runs; None where the metric was not logged."""
    found = [[run for rows in group if (run := series(rows, name))] for group in groups]
    seen = [value for group in found for run in group for value in run.values()]
    steps = [step for group in found for run in group for step in run]
    if not seen:
        return None
    seen += [] if base is None else [base]
    low, high = min(0.0, *seen), max(0.0, *seen)
    if (0.5 < high < 1 and "loss" not in name) or high == low == 0:
        high = 1.0  # the metric is a fraction
    axes = (min(steps), max(steps), low, high)
    dashed = None if base is None else (high - base) / (high - low) * PANEL[1]
    return Panel(name, [curve(group, axes) for group in found], low, high, axes[:2], dashed, base)


def series(rows: Rows, name: str) -> dict[float, float]:
    """A metric by step, without values that are not numbers."""
    found = {row["step"]: row[name] for row in rows if name in row and "step" in row}
    return {step: 0.0 if abs(v) < ZERO else v for step, v in found.items() if v is not None and math.isfinite(v)}


def curve(runs: Sequence[Mapping[float, float]], axes: tuple[float, float, float, float]) -> Curve | None:
    """The curves of a group of runs, at the steps of all of them."""
    if not runs:
        return None
    smooth = [dict(zip(run, smoothed(list(run.values())), strict=True)) for run in runs]
    steps = sorted({step for run in runs for step in run})
    values = [[run[step] for run in smooth if step in run] for step in steps]
    thick = [fmean(found) for found in values]
    thin = points(steps, list(runs[0].values()), axes) if len(runs) == 1 else ""
    band = ""
    if len(runs) > 1:
        back = points(steps, [min(found) for found in values], axes).split()[::-1]
        band = " ".join([points(steps, [max(found) for found in values], axes), *back])
    return Curve(thin, points(steps, thick, axes), band, thick[0], thick[-1])


def points(steps: Sequence[float], heights: Sequence[float], axes: tuple[float, float, float, float]) -> str:
    """At most POINTS and the last one, as SVG writes them."""
    first, last, low, high = axes
    width, height = PANEL
    every = -(-len(heights) // POINTS)
    kept = [i for i in range(len(heights)) if i % every == 0 or i == len(heights) - 1]
    across, span = last - first or 1, high - low
    placed = [((steps[i] - first) / across * width, (high - heights[i]) / span * height) for i in kept]
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in placed)


def smoothed(values: Sequence[float]) -> list[float]:
    """Centered means over five values."""
    return [fmean(values[max(0, i - 2) : i + 3]) for i in range(len(values))]


def picture(rows: Rows, base: Mapping[str, float]) -> str:
    """Four panels of RL as SVG. Thin: each step; thick: mean of five steps; dashed: the base's evaluation."""
    figure = matplotlib.figure.Figure(figsize=(10, 5.4), layout="constrained")
    steps = [row["step"] for row in rows]
    seen = [(name, title) for name, title in PICTURE.items() if any(row.get(name) for row in rows)]
    panels = figure.subplots(2, 2).flat
    for axes in panels[len(seen) :]:
        axes.set_axis_off()
    for axes, (name, title) in zip(panels, seen, strict=False):
        values = [row.get(name, float("nan")) for row in rows]  # a fork may not have this reward
        axes.plot(steps, values, color=BLUE, alpha=0.3, linewidth=1)
        axes.plot(steps, smoothed(values), color=BLUE, linewidth=2)
        start = base.get("pass@1" if name == "accuracy" else name)
        if start is not None:
            axes.axhline(start, color=GREY, linestyle="--", linewidth=1)
            axes.annotate("base", (steps[-1], start), color=GREY, ha="right", va="bottom", fontsize=8)
        axes.set_ylim(bottom=0)
        plain_axes(axes, title, fontsize=10)
    figure.supxlabel("RL step", fontsize=9)
    return svg_text(figure)
