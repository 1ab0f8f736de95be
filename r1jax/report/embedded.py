"""The data that a page carries for its script: metrics by column, and a bounded number of samples."""

import contextlib
import json
import math
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any

from etils import epath
from markupsafe import Markup

VALUES = 150_000  # numbers in a page; longer runs are thinned to every n-th step
SAMPLE_BYTES = 2_000_000  # of all samples in a page
MOST = 3000  # samples of a stage
READ = 20  # bytes that are parsed for a byte in the page: token ids and the middles of long texts are left out
LONGEST = 8000  # characters of a sample


def to_script(data: Any) -> Markup:
    """JSON that can stand in a <script> element: no text in it can end the element or open another."""
    return Markup(json.dumps(data, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c"))


def columns(rows: Sequence[Mapping[str, Any]], every: int) -> dict[str, Any]:
    """Every n-th row, and the last, as lists by metric, with six digits; None where a row has no number."""
    kept = [row for i, row in enumerate(rows) if i % every == 0 or i == len(rows) - 1]
    names = dict.fromkeys(name for row in kept for name in row if name != "step")
    return {
        "every": every,
        "steps": [row.get("step") for row in kept],
        "metrics": {name: [short(row.get(name)) for row in kept] for name in names},
    }


def thinning(stages: Sequence[Sequence[Mapping[str, Any]]]) -> int:
    """The n for which every n-th row of all stages are no more than VALUES numbers."""
    return max(1, math.ceil(sum(len(row) for rows in stages for row in rows) / VALUES))


def short(value: Any) -> float | int | None:
    if not isinstance(value, int | float) or not math.isfinite(value):
        return None
    digits = float(f"{value:.6g}")
    return int(digits) if digits.is_integer() and abs(digits) < 1e15 else digits


def read_samples(directories: Sequence[epath.Path]) -> tuple[list[dict[str, Any]], int]:
    """Samples of stages, evenly spaced over each file, and how many there are in the files."""
    files = [file for directory in directories if (file := directory / "samples.jsonl").exists()]
    samples: list[dict[str, Any]] = []
    total = 0
    for file in files:
        share = SAMPLE_BYTES // len(files)
        lines, count = read_lines(file, READ * share)
        found = [row for line in lines if (row := compact(file.parent.name, line))]
        size = sum(len(json.dumps(row)) for row in found) or 1
        samples += evenly(found, len(found) * share // size)
        total += count
    return samples, total


def read_lines(file: epath.Path, limit: int) -> tuple[list[bytes], int]:
    """At most MOST lines, evenly spaced, of about `limit` bytes, and how many the file has; it may be of gigabytes."""
    with file.open("rb") as opened:
        ends = list(accumulate(map(len, opened), initial=0))
        count = len(ends) - 1
        lines = []
        for i in evenly(range(count), min(MOST, limit * count // max(ends[-1], 1) + 1)):
            opened.seek(ends[i])
            lines.append(opened.read(ends[i + 1] - ends[i]))
    return lines, count


def evenly(items: Sequence[Any], limit: int) -> list[Any]:
    """All items, or `limit` of them with equal distances."""
    if len(items) <= limit:
        return list(items)
    return [items[i * len(items) // limit] for i in range(limit)]


def compact(stage: str, line: bytes) -> dict[str, Any]:
    """What a page shows of a row of samples.jsonl; {} for a row that a kill cut short."""
    with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError):
        row = json.loads(line)
        problem = row["problem"]
        rewards = {name: short(value) for name, value in row.get("rewards", {}).items() if value is not None}
        shown = {
            "stage": stage,
            "step": row.get("step"),
            "source": problem.get("source") or "",
            "question": clip(problem["question"]),
            "answer": problem.get("answer"),
            "reward": short(row.get("reward")),
            "rewards": rewards,
            "finished": bool(row.get("finished")),
            "trained": row.get("trained"),  # None: an evaluation's
        }
        if row.get("turns"):
            parts = [(clip(turn["text"]), clip(turn.get("observation") or "")) for turn in row["turns"]]
            return shown | {"turns": parts}
        return shown | {"text": clip(row["text"])}
    return {}


def clip(text: str) -> str:
    """Both ends of a text that is very long."""
    if len(text) <= LONGEST:
        return text
    half = LONGEST // 2
    return f"{text[:half]}\n[… {len(text) - 2 * half:,} characters left out …]\n{text[-half:]}"
