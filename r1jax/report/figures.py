"""An evaluation's figures for readers: their names, which way is better, what moved."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from r1jax.report.evaluation import intervals

FIGURES = {  # what an evaluation's figures are called, and whether more of them is better (1) or worse (-1)
    "greedy_accuracy": ("accuracy, greedy", 1),
    "pass@1": ("accuracy, sampled (pass@1)", 1),
    "format": ("format rate", 1),
    "language": ("thinking in the question's language", 1),
    "language_mix": ("thinking mixes languages", -1),
    "chat_preference": ("requests answered as preferred", 1),
    "harmful_refused": ("harmful requests refused", 1),
    "harmless_refused": ("harmless requests refused", -1),
    "chat_format": ("format rate, requests", 1),
    "response_tokens": ("mean response length (tokens)", 0),
    "finished": ("ended by itself", 1),
    "truncated": ("cut off by the limit", -1),
}
MOVED = 6  # figures named of a stage; those that moved by less than SMALL of their scale are not
SMALL = 0.02


Figures = Mapping[str, float]


def figure_name(name: str) -> str:
    """A figure's name for readers; `source/figure` is one over a source alone."""
    source, _, figure = name.rpartition("/")
    words = FIGURES[figure][0] if figure in FIGURES else figure.replace("_", " ")
    return f"{source}: {words}" if source else words


def better(name: str) -> int:
    """1 where more is better, -1 where less is, 0 where neither is."""
    figure = name.rpartition("/")[2]
    return 1 if re.match(r"(pass|cons)@\d+$", figure) else FIGURES.get(figure, ("", 0))[1]


def shown(name: str, value: float) -> str:
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
    scale: float  # what is drawn as full length

    @property
    def verdict(self) -> str:
        return {1: "good", -1: "bad"}.get((1 if self.after > self.before else -1) * better(self.name), "")

    @property
    def size(self) -> float:
        return abs(self.after - self.before) / self.scale


def moved(before: Figures, after: Figures) -> list[Move]:
    """The figures that moved most. Those of one source, several tries or part of the lengths are left to the table."""
    moves = []
    for name in before.keys() & after.keys() - intervals(after):
        if "/" not in name and not re.match(r"cons@|pass@(?!1$)|tokens_|truncated|.*_p\d+$", name):
            values = before[name], after[name]
            moves.append(Move(name, *values, scale=max(1.0, *map(abs, values))))
    moves.sort(key=lambda move: (-move.size, move.name))
    return [move for move in moves if move.size >= SMALL][:MOVED]


def table(results: Sequence[Figures]) -> list[tuple[str, list[dict[str, Any]]]]:
    """One row a figure, one cell an evaluation; the best are marked, where a best there is."""
    names = list(dict.fromkeys(name for figures in results for name in figures))
    rows = []
    for name in names:
        if name in intervals(names):
            continue
        values = [round(figures[name] * better(name), 3) for figures in results if name in figures]
        best = max(values) if better(name) and len(set(values)) > 1 else None
        cells: list[dict[str, Any]] = []
        for figures in results:
            cell: dict[str, Any] = {"text": "–"}
            if name in figures:
                cell = {"text": shown(name, figures[name]), "best": round(figures[name] * better(name), 3) == best}
            if f"{name}_low" in figures:
                cell["interval"] = f"[{figures[f'{name}_low']:.3f}, {figures[f'{name}_high']:.3f}]"
            cells.append(cell)
        rows.append((name, cells))
    return rows
