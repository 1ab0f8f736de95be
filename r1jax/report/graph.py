"""Lays out the graph of a run from top to bottom; the row of a stage is the longest path from a source to it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

WIDTH, HEIGHT = 182, 62  # of a box
ROW = HEIGHT + 38
PORT = WIDTH - 18  # x at which lines enter and leave a box, right of the label of its data
LANE, GAP = 14, 16  # a lane is for a line that passes a row


@dataclass(frozen=True)
class Edge:
    start: str
    end: str
    path: str  # SVG path data


@dataclass(frozen=True)
class Graph:
    boxes: Mapping[str, tuple[float, float]]  # upper left corners
    edges: Sequence[Edge]
    width: float
    height: float


def lay_out(parents: Mapping[str, Sequence[str]]) -> Graph:
    """The layout of nodes, given in topological order with their parents, the main parent first.

    A node is placed below its leftmost parent. The lines that leave a node share one lane.
    """
    row: dict[str, int] = {}
    for node in parents:
        row[node] = 1 + max((row[p] for p in parents[node]), default=-1)
    last = {node: max((row[n] for n in parents if node in parents[n]), default=0) for node in parents}
    port: dict[tuple[str, int], float] = {}  # x of a node's line in a row
    boxes: dict[str, tuple[float, float]] = {}
    width = 0.0
    for number in range(1 + max(row.values(), default=-1)):
        above = {  # x of the lines into this row's boxes and lanes
            node: [port[p, number - 1] for p in (parents[node] if row[node] == number else [node])]
            for node in parents
            if row[node] == number or row[node] < number < last[node]
        }
        left = 0.0
        # Below a node its main child comes first, so that the main line of a recipe is straight.
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
    """The path down through the lanes of the rows in between, with a bend before each row."""
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
