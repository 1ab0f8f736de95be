"""A stage's curves: small panels in the report, and a picture in a file of its own."""

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

Rows = Sequence[Mapping[str, float]]


@dataclass(frozen=True)
class Panel:
    """One small curve in SVG coordinates. Its labels are HTML, so that they do not scale with the SVG."""

    name: str
    first: float  # smoothed values
    last: float
    low: float  # of the axis
    high: float
    steps: tuple[int, int]
    thin: str
    thick: str
    base: float | None  # y of the dashed line


def panel(rows: Rows, name: str, base: float | None = None) -> Panel | None:
    """A metric's curve; None where the metric was not logged."""
    found = [(row["step"], row[name]) for row in rows if name in row]
    if not found:
        return None
    steps, values = zip(*found, strict=True)
    smooth = smoothed(values)
    seen = [*values, *([] if base is None else [base])]
    low, high = min(0.0, *seen), max(seen)
    if (0.5 < high < 1 and "loss" not in name) or high == low == 0:
        high = 1.0  # the metric is a fraction
    span = high - low or 1.0
    width, height = PANEL
    across = max(steps[-1] - steps[0], 1)

    def points(heights: Sequence[float]) -> str:
        every = -(-len(heights) // POINTS)
        kept = [i for i in range(len(heights)) if i % every == 0 or i == len(heights) - 1]
        placed = [((steps[i] - steps[0]) / across * width, (high - heights[i]) / span * height) for i in kept]
        return " ".join(f"{x:.1f},{y:.1f}" for x, y in placed)

    dashed = None if base is None else (high - base) / span * height
    return Panel(name, smooth[0], smooth[-1], low, high, (steps[0], steps[-1]), points(values), points(smooth), dashed)


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
