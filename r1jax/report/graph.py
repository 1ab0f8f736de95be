"""Where the boxes and lines of a run's graph go: rows by the longest way from a source, from top to bottom."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

WIDTH, HEIGHT = 182, 62  # of a box
ROW = HEIGHT + 38
PORT = WIDTH - 18  # where lines enter and leave it: right of its data's label
LANE, GAP = 14, 16  # a lane is for a line that passes by a row's boxes


@dataclass(frozen=True)
class Edge:
    start: str
    end: str
    path: str  # of SVG


@dataclass(frozen=True)
class Graph:
    boxes: Mapping[str, tuple[float, float]]  # left upper corners
    edges: Sequence[Edge]
    width: float
    height: float


def lay_out(parents: Mapping[str, Sequence[str]]) -> Graph:
    """Of every node, after its parents: those, what it goes on from first. A node stands below its leftmost parent.

    Lines that leave one node share a lane, so that what many are made of runs beside them as one line.
    """
    row: dict[str, int] = {}
    for node in parents:
        row[node] = 1 + max((row[p] for p in parents[node]), default=-1)
    last = {node: max((row[n] for n in parents if node in parents[n]), default=0) for node in parents}
    port: dict[tuple[str, int], float] = {}  # where a node's line is in a row
    boxes: dict[str, tuple[float, float]] = {}
    width = 0.0
    for number in range(1 + max(row.values(), default=-1)):
        above = {  # where the lines into this row's boxes and lanes come from
            node: [port[p, number - 1] for p in (parents[node] if row[node] == number else [node])]
            for node in parents
            if row[node] == number or row[node] < number < last[node]
        }
        left = 0.0
        # Of those below one node the first is what goes on from it, so that a recipe's main line is straight.
        for node in sorted(above, key=lambda node: (min(above[node], default=0), above[node][:1], row[node] < number)):
            is_box = row[node] == number
            size, offset = (WIDTH, PORT) if is_box else (LANE, LANE / 2)
            left = max(left, min(above[node], default=0) - offset)
            port[node, number] = left + offset
            if is_box:
                boxes[node] = (left, number * ROW)
            left += size + GAP
            width = max(width, left - GAP)
    edges = [Edge(p, node, line(p, node, row, port)) for node in parents for p in parents[node]]
    return Graph(boxes, edges, width, max(row.values(), default=0) * ROW + HEIGHT)


def line(start: str, end: str, row: Mapping[str, int], port: Mapping[tuple[str, int], float]) -> str:
    """Down through the lanes of the rows between, with a bend before each row."""
    x = port[start, row[start]]
    path = f"M{x:g},{row[start] * ROW + HEIGHT}"
    for number in range(row[start] + 1, row[end] + 1):
        to = port[end if number == row[end] else start, number]
        above, below = (number - 1) * ROW + HEIGHT, number * ROW
        middle = (above + below) / 2
        path += f"V{below}" if to == x else f"C{x:g},{middle:g} {to:g},{middle:g} {to:g},{below}"
        if number < row[end]:
            path += f"V{below + HEIGHT}"
        x = to
    return path
