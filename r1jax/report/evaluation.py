"""An evaluation's figures as JSON, as a table and as a plot."""

import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import matplotlib
import matplotlib.figure
from etils import epath

from r1jax.telemetry.files import write_whole
from r1jax.types import Sample

PLOT = "evaluation.svg"
BLUE, GREY, ORANGE = "#2459c4", "#8a93a3", "#d98032"
COLOURS = (BLUE, ORANGE, "#12784a", "#8c4fb0", "#b3382c")  # of sources
BINS = 30


def write_evaluation(
    directory: epath.Path,
    title: str,
    protocol: Mapping[str, Any],
    figures: Mapping[str, float],
    groups: Sequence[Sequence[Sample]],
) -> None:
    """Writes evaluation.json, evaluation.md and evaluation.svg. `protocol` is how it was drawn, and has the limit."""
    held = {"evaluation": title, "protocol": dict(protocol), "figures": dict(figures)}
    write_whole(directory / "evaluation.json", json.dumps(held, indent=1))
    write_whole(directory / "evaluation.md", markdown(title, protocol, figures))
    write_whole(directory / PLOT, svg_text(plot(title, figures, groups, protocol["max_new_tokens"])))


# ---- the table


def intervals(names: Iterable[str]) -> set[str]:
    """The names of intervals' ends, which are shown with what they are of."""
    names = set(names)
    return {name + end for name in names for end in ("_low", "_high") if name + end in names}


def show(name: str, figures: Mapping[str, float]) -> str:
    """A figure, with its interval where it has one."""
    if name not in figures:
        return "–"
    text = f"{figures[name]:.1f}" if "tokens" in name else f"{figures[name]:.3f}"
    if f"{name}_low" in figures:
        text += f" [{figures[f'{name}_low']:.3f}, {figures[f'{name}_high']:.3f}]"
    return text


def sources_of(figures: Mapping[str, float]) -> list[str]:
    """Those that have figures of their own, `source/figure`."""
    return list(dict.fromkeys(name.partition("/")[0] for name in figures if "/" in name))


def table(figures: Mapping[str, float]) -> list[list[str]]:
    """Rows of text, the first one the header: a column for all problems, and one for each of several sources."""
    sources = sources_of(figures)
    hidden = intervals(figures)
    rows = [["figure", "all" if sources else "value", *sources]]
    for name in figures:
        if "/" not in name and name not in hidden:
            rows.append([name, show(name, figures), *(show(f"{source}/{name}", figures) for source in sources)])
    return rows


def markdown(title: str, protocol: Mapping[str, Any], figures: Mapping[str, float]) -> str:
    header, *rows = table(figures)
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]

    def line(row: Sequence[str]) -> str:
        return "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"

    how = ", ".join(f"{name} {value}" for name, value in protocol.items())
    lines = [f"# {title}", "", how, "", line(header), line(["-" * width for width in widths]), *map(line, rows)]
    return "\n".join([*lines, "", "In brackets: 95 % intervals, by bootstrap over problems."]) + "\n"


# ---- the plot


def plot(
    title: str, figures: Mapping[str, float], groups: Sequence[Sequence[Sample]], limit: int
) -> matplotlib.figure.Figure:
    """pass@k with its intervals, and how long right and wrong outputs are."""
    figure = matplotlib.figure.Figure(figsize=(10, 3.6), layout="constrained")
    figure.suptitle(title, fontsize=10, x=0.01, ha="left")
    left, right = figure.subplots(1, 2)
    draw_pass(left, figures)
    draw_lengths(right, [sample for group in groups for sample in group], limit)
    return figure


def draw_pass(axes: Any, figures: Mapping[str, float]) -> None:
    """pass@k over k, of all problems or of each source; the dashed line is cons@n, of all."""
    axes.set_title("pass@k, with 95 % intervals", fontsize=9, loc="left")
    plain_axes(axes)
    for source, colour in zip(sources_of(figures) or [""], COLOURS * len(figures), strict=False):
        prefix = f"{source}/" if source else ""
        sizes = sorted(
            int(name.partition("@")[2]) for name in figures if name.startswith(f"{prefix}pass@") and name[-1].isdigit()
        )
        means, low, high = ([figures[f"{prefix}pass@{k}{end}"] for k in sizes] for end in ("", "_low", "_high"))
        axes.fill_between(sizes, low, high, color=colour, alpha=0.15, linewidth=0)
        axes.plot(sizes, means, color=colour, marker="o", markersize=4, label=source or "pass@k")
        axes.set_xscale("log", base=2)
        axes.set_xticks(sizes, [str(k) for k in sizes], minor=False)
    for name in figures:
        if name.startswith("cons@"):
            axes.axhline(
                figures[name],
                color=GREY,
                linestyle="--",
                linewidth=1,
                label=f"{name}, all" if sources_of(figures) else name,
            )
    axes.set_ylim(-0.03, 1.03)
    axes.set_xlabel("k", fontsize=9)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=8, frameon=False)


def draw_lengths(axes: Any, samples: Sequence[Sample], limit: int) -> None:
    """A stacked histogram; the dashed line is the limit."""
    axes.set_title("lengths of outputs", fontsize=9, loc="left")
    plain_axes(axes)
    kinds = {"right": (1.0, BLUE), "wrong": (0.0, ORANGE), "not judged": (None, GREY)}
    longest = max((len(s.tokens) for s in samples), default=1)
    width = max(1, math.ceil(longest / BINS))
    # Whole numbers of tokens, none on an edge; the last one is the longest's, which is the limit where any was cut off.
    edges = [longest + 0.5 - width * i for i in reversed(range(longest // width + 2))]
    shown = {
        name: (values, colour)
        for name, (verdict, colour) in kinds.items()
        if (values := [len(s.tokens) for s in samples if s.rewards.get("accuracy") == verdict])
    }
    if shown:
        counts, colours = zip(*shown.values(), strict=True)
        labels = [f"{name} ({len(values)})" for name, (values, _) in shown.items()]
        axes.hist(counts, edges, stacked=True, color=colours, label=labels)
    if longest > limit / 4:  # far beyond all that is there it would squeeze the rest
        axes.axvline(limit + 0.5, color=GREY, linestyle="--", linewidth=1, label=f"limit ({limit})")
    axes.set_xlim(left=0)
    axes.set_xlabel("tokens", fontsize=9)
    axes.set_ylabel("outputs", fontsize=9)
    axes.legend(fontsize=8, frameon=False)


def plain_axes(axes: Any) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", alpha=0.25)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=8)


def svg_text(figure: matplotlib.figure.Figure) -> str:
    """The <svg> element alone, the same for the same figure."""
    text = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "r1jax"}):
        figure.savefig(text, format="svg", metadata={"Date": None})
    svg = text.getvalue()
    return svg[svg.index("<svg") :]
