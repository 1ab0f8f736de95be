"""An evaluation's figures as JSON, table and plot."""

import io
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from itertools import chain
from typing import Any

import matplotlib
import matplotlib.figure
from etils import epath

from r1jax.config import EvaluateConfig
from r1jax.telemetry.files import write_atomically
from r1jax.telemetry.metrics import sample_row
from r1jax.types import Sample

PLOT = "evaluation.svg"
BLUE, GREY, ORANGE = "#2459c4", "#8a93a3", "#d98032"
COLOURS = (BLUE, ORANGE, "#12784a", "#8c4fb0", "#b3382c")  # of sources
BINS = 30

Figures = Mapping[str, float]
Groups = Sequence[Sequence[Sample]]  # the samples of each problem


def write_evaluation(out: epath.Path, title: str, config: EvaluateConfig, figures: Figures, groups: Groups) -> None:
    """Writes evaluation.json, evaluation.md, evaluation.svg, and each problem's first sample to samples.jsonl."""
    protocol = {"problems": len(groups), "samples": config.samples_per_prompt} | asdict(config.sampling)
    held = {"evaluation": title, "protocol": protocol, "figures": dict(figures)}
    write_atomically(out / "evaluation.json", json.dumps(held, indent=1))
    write_atomically(out / "evaluation.md", markdown(title, protocol, figures))
    write_atomically(out / PLOT, svg_text(plot(title, figures, groups, config.sampling.max_new_tokens)))
    rows = "".join(json.dumps(sample_row(group[0])) + "\n" for group in groups)
    write_atomically(out / "samples.jsonl", rows)


# ---- the table


def intervals(names: Iterable[str]) -> set[str]:
    """The names of the ends of confidence intervals, which are shown with their figure."""
    names = set(names)
    return {name + end for name in names for end in ("_low", "_high") if name + end in names}


def show(name: str, figures: Figures) -> str:
    """A figure as text, with its confidence interval if there is one."""
    if name not in figures:
        return "–"
    text = f"{figures[name]:.1f}" if "tokens" in name else f"{figures[name]:.3f}"
    return f"{text} {interval(name, figures)}".rstrip()


def interval(name: str, figures: Figures) -> str:
    """A figure's confidence interval as text, "" if it has none."""
    low, high = figures.get(f"{name}_low"), figures.get(f"{name}_high")
    return "" if low is None or high is None else f"[{low:.3f}, {high:.3f}]"


def sources_of(figures: Figures) -> list[str]:
    """The sources that have figures of their own, named `source/figure`."""
    return list(dict.fromkeys(name.partition("/")[0] for name in figures if "/" in name))


def table(figures: Figures) -> list[list[str]]:
    """Rows of text after a header row, with a column for all problems and one for each of several sources."""
    sources = sources_of(figures)
    hidden = intervals(figures)
    rows = [["figure", "all" if sources else "value", *sources]]
    for name in figures:
        if "/" not in name and name not in hidden:
            rows.append([name, show(name, figures), *(show(f"{source}/{name}", figures) for source in sources)])
    return rows


def markdown(title: str, protocol: Mapping[str, Any], figures: Figures) -> str:
    header, *rows = table(figures)
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]

    def line(row: Sequence[str]) -> str:
        return "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"

    how = ", ".join(f"{name} {value}" for name, value in protocol.items())
    lines = [f"# {title}", "", how, "", line(header), line(["-" * width for width in widths]), *map(line, rows)]
    return "\n".join([*lines, "", "In brackets: 95 % confidence intervals (Wilson) over problems."]) + "\n"


# ---- the plot


def plot(title: str, figures: Figures, groups: Groups, limit: int) -> matplotlib.figure.Figure:
    """pass@k with confidence intervals, and the lengths of right and wrong outputs."""
    figure = matplotlib.figure.Figure(figsize=(10, 3.6), layout="constrained")
    figure.suptitle(title, fontsize=10, x=0.01, ha="left")
    left, right = figure.subplots(1, 2)
    draw_pass(left, figures)
    draw_lengths(right, list(chain(*groups)), limit)
    return figure


def draw_pass(axes: Any, figures: Figures) -> None:
    """pass@k by k, over all problems or each source. The dashed line is cons@n over all problems."""
    plain_axes(axes, "pass@k, with 95 % intervals")
    for source, colour in zip(sources_of(figures) or [""], COLOURS * len(figures), strict=False):
        prefix = f"{source}/" if source else ""
        found = (re.fullmatch(re.escape(prefix) + r"pass@(\d+)", name) for name in figures)
        sizes = sorted(int(match[1]) for match in found if match)
        means, low, high = ([figures[f"{prefix}pass@{k}{end}"] for k in sizes] for end in ("", "_low", "_high"))
        axes.fill_between(sizes, low, high, color=colour, alpha=0.15, linewidth=0)
        axes.plot(sizes, means, color=colour, marker="o", markersize=4, label=source or "pass@k")
        axes.set_xscale("log", base=2)
        axes.set_xticks(sizes, [str(k) for k in sizes], minor=False)
    for name in figures:
        if name.startswith("cons@"):
            label = f"{name}, all" if sources_of(figures) else name
            axes.axhline(figures[name], color=GREY, linestyle="--", linewidth=1, label=label)
    axes.set_ylim(-0.03, 1.03)
    axes.set_xlabel("k", fontsize=9)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=8, frameon=False)


def draw_lengths(axes: Any, samples: Sequence[Sample], limit: int) -> None:
    """A stacked histogram of output lengths; the dashed line is the limit."""
    plain_axes(axes, "lengths of outputs")
    kinds = {"right": (1.0, BLUE), "wrong": (0.0, ORANGE), "not graded": (None, GREY)}
    longest = max((len(s.response_tokens) for s in samples), default=1)
    width = max(1, math.ceil(longest / BINS))
    # Edges lie between whole numbers of tokens; the longest output is in the last bin.
    edges = [longest + 0.5 - width * i for i in reversed(range(longest // width + 2))]
    shown = []
    for name, (verdict, colour) in kinds.items():
        if values := [len(s.response_tokens) for s in samples if s.rewards.get("accuracy") == verdict]:
            shown.append((values, colour, f"{name} ({len(values)})"))
    if shown:
        counts, colours, labels = zip(*shown, strict=True)
        axes.hist(counts, edges, stacked=True, color=colours, label=labels)
    if longest > limit / 4:  # a limit far beyond would squeeze the histogram
        axes.axvline(limit + 0.5, color=GREY, linestyle="--", linewidth=1, label=f"limit ({limit})")
    axes.set_xlim(left=0)
    axes.set_xlabel("tokens", fontsize=9)
    axes.set_ylabel("outputs", fontsize=9)
    axes.legend(fontsize=8, frameon=False)


def plain_axes(axes: Any, title: str, fontsize: int = 9) -> None:
    axes.set_title(title, fontsize=fontsize, loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", alpha=0.25)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=8)


def svg_text(figure: matplotlib.figure.Figure) -> str:
    """The <svg> element of a figure. Equal figures give equal texts."""
    text = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "r1jax"}):
        figure.savefig(text, format="svg", metadata={"Date": None})
    svg = text.getvalue()
    return svg[svg.index("<svg") :]
