"""An evaluation's figures for readers: their names, which direction is better, which moved most."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

from r1jax.report.evaluation import Figures, interval, intervals

FIGURES = {  # name for readers; 1 where higher is better, -1 where lower is, 0 where neither is
    "greedy_accuracy": ("accuracy, greedy", 1),
    "pass@1": ("accuracy, sampled (pass@1)", 1),
    "format": ("format rate", 1),
    "language": ("reasoning in the question's language", 1),
    "language_mix": ("reasoning mixes languages", -1),
    "chat_preference": ("requests answered as preferred", 1),
    "harmful_refused": ("harmful requests refused", 1),
    "harmless_refused": ("harmless requests refused", -1),
    "chat_format": ("format rate, requests", 1),
    "response_tokens": ("mean response length (tokens)", 0),
    "finished": ("finished", 1),
    "truncated": ("truncated by the limit", -1),
}
MOVED = 6  # figures listed for a stage at most
SMALL = 0.02  # a figure that moved by less than this fraction of its scale is not listed


def figure_name(name: str) -> str:
    """A figure's name for readers. `source/figure` is a figure over the problems of one source."""
    source, _, figure = name.rpartition("/")
    words = FIGURES[figure][0] if figure in FIGURES else figure.replace("_", " ")
    return f"{source}: {words}" if source else words


def better(name: str) -> int:
    """1 where higher is better, -1 where lower is, 0 where neither is."""
    figure = name.rpartition("/")[2]
    return 1 if re.match(r"(pass|cons)@\d+$", figure) else FIGURES.get(figure, ("", 0))[1]


def format_figure(name: str, value: float) -> str:
    return f"{value:,.1f}" if "tokens" in name else number(value)


def number(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.1f}" if abs(value) >= 10 else f"{value:.3f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


@dataclass(frozen=True)
class Move:
    """A figure before and after."""

    name: str
    before: float
    after: float
    scale: float  # drawn as the full length

    @property
    def verdict(self) -> str:
        return {1: "good", -1: "bad"}.get((1 if self.after > self.before else -1) * better(self.name), "")

    @property
    def size(self) -> float:
        return abs(self.after - self.before) / self.scale


def find_moves(before: Figures, after: Figures) -> list[Move]:
    """The figures that moved most, without those of one source, of several samples or of quantiles (see `table`)."""
    moves = []
    for name in before.keys() & after.keys() - intervals(after):
        if "/" not in name and not re.match(r"cons@|pass@(?!1$)|tokens_|truncated|.*_p\d+$", name):
            values = before[name], after[name]
            moves.append(Move(name, *values, scale=max(1.0, *map(abs, values))))
    moves.sort(key=lambda move: (-move.size, move.name))
    return [move for move in moves if move.size >= SMALL][:MOVED]


def table(results: Sequence[Figures]) -> list[tuple[str, list[dict[str, Any]]]]:
    """A row per figure and a cell per evaluation. The best cells are marked where a figure has a better direction."""
    names = dict.fromkeys(chain(*results))
    hidden = intervals(names)
    return [(name, cells(name, results)) for name in names if name not in hidden]


def cells(name: str, results: Sequence[Figures]) -> list[dict[str, Any]]:
    values = {round(figures[name] * better(name), 3) for figures in results if name in figures}
    best = max(values) if better(name) and len(values) > 1 else None

    def cell(figures: Figures) -> dict[str, Any]:
        if name not in figures:
            return {"text": "–"}
        is_best = round(figures[name] * better(name), 3) == best
        return {"text": format_figure(name, figures[name]), "best": is_best, "interval": interval(name, figures)}

    return [cell(figures) for figures in results]
