"""An evaluation's figures for readers: their names, which direction is better, which moved most."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

from r1jax.report.evaluation import Figures, interval, intervals, show

FIGURES = {  # name for readers; 1 where higher is better, -1 where lower is, 0 where neither is
    "greedy_accuracy": ("accuracy, greedy", 1),
    "pass@1": ("accuracy, sampled (pass@1)", 1),
    "format": ("format rate", 1),
    "language": ("reasoning in the question's language", 1),
    "language_mix": ("reasoning mixes languages", -1),
    "last_number": ("last number right, in any form", 1),
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


def conclude(before: Figures, after: Figures) -> list[str]:
    """What the figures say in words: accuracy, lengths, and what got worse."""
    shared = before.keys() & after.keys()
    sentences = []
    if "pass@1" in shared:
        verb = compared(before["pass@1"], after["pass@1"], ("fell", "stayed the same", "rose"))
        doubt = ", but the intervals overlap" if overlap("pass@1", before, after) else ""
        sentences.append(f"Sampled accuracy {verb}: {show('pass@1', before)} → {show('pass@1', after)}{doubt}.")
    if "response_tokens" in shared:
        old, new = round(before["response_tokens"], 1), round(after["response_tokens"], 1)
        verb = compared(old, new, ("got shorter", "kept their length", "got longer"))
        sentences.append(f"Responses {verb}: {old:.1f} → {new:.1f} tokens.")
    for move in find_moves(before, after):
        if move.verdict == "bad" and move.name != "pass@1":
            ends = f"{format_figure(move.name, move.before)} → {format_figure(move.name, move.after)}"
            sentences.append(f"Worse: {figure_name(move.name)}, {ends}.")
    return sentences


def compared(before: float, after: float, verbs: tuple[str, str, str]) -> str:
    """The verb for a figure that fell, stayed or rose."""
    return verbs[1 + (after > before) - (after < before)]


def overlap(name: str, a: Figures, b: Figures) -> bool:
    """True where a figure's confidence intervals in two evaluations have a value in common."""
    ends = [figures.get(name + end) for figures in (a, b) for end in ("_low", "_high")]
    return None not in ends and ends[0] <= ends[3] and ends[2] <= ends[1]  # type: ignore[operator]


def table(results: Sequence[Figures]) -> list[tuple[str, list[dict[str, Any]]]]:
    """A row per figure and a cell per evaluation. The best are marked where a figure has a better direction."""
    names = dict.fromkeys(chain(*results))
    hidden = intervals(names)
    return [(name, cells(name, results)) for name in names if name not in hidden]


def cells(name: str, results: Sequence[Figures]) -> list[dict[str, Any]]:
    """A cell is "tied" where its interval overlaps that of the best, instead of one being the best."""
    values = {i: round(figures[name] * better(name), 3) for i, figures in enumerate(results) if name in figures}
    best = max(values, key=lambda i: values[i]) if better(name) and len(set(values.values())) > 1 else None
    tied = {i for i in values if best is not None and overlap(name, results[i], results[best])} | {best}

    def cell(i: int, figures: Figures) -> dict[str, Any]:
        if name not in figures:
            return {"text": "–"}
        is_best = best is not None and (i in tied or values[i] == values[best])
        mark = ("tied" if len(tied) > 1 else "best") if is_best else ""
        return {"text": format_figure(name, figures[name]), "mark": mark, "interval": interval(name, figures)}

    return [cell(i, figures) for i, figures in enumerate(results)]
