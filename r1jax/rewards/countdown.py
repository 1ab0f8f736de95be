"""Countdown: reach a target from given numbers (as in TinyZero's tasks). `problem.answer` is the task as JSON:

    {"numbers": [3, 5, 2], "target": 16}        one right answer: 2 * (3 + 5)

Each number must be used exactly once, with + - * / and parentheses, and nothing else. Division is exact.
"""

import ast
import json
import operator
import re
from collections.abc import Callable
from fractions import Fraction
from typing import Any

from r1jax.errors import UsageError
from r1jax.rewards.rules import answered_by, parse
from r1jax.types import Problem, Sample

OPERATIONS: dict[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
}  # fmt: skip
EXPRESSION = re.compile(r"[0-9+*/() -]{1,200}")  # short: what Python parses, and what it computes, stays small
MAX_PARENTHESES = 20  # nested or not; Python's parser takes ten times as many


def read_expression(sample: Sample) -> str | None:
    """What the answer comes to, and the numbers that it does so with: 2 * (3 + 5) and (5 + 3) * 2 are one answer.

    The text where it is no arithmetic, None where there is none.
    """
    parts = parse(sample.text)
    if parts is None or not parts.answer:
        return None
    found = compute(parts.answer)
    return f"{found[0]} of {sorted(found[1])}" if found else parts.answer


@answered_by(read_expression)
def countdown_reward(sample: Sample) -> float:
    """1 when the answer of a well-formed response reaches the target with each number used once, else 0.

    The form is `rules.parse`'s, as for the demo: no box and no last line, since an expression is no LaTeX, and every
    further way to answer is one more to fool. "= 16" after the expression makes it wrong.

    Raises:
        UsageError: the problem has no such task.
    """
    numbers, target = parse_task(sample.problem)
    parts = parse(sample.text)
    found = compute(parts.answer) if parts else None
    return float(found is not None and found[0] == target and sorted(found[1]) == numbers)


def parse_task(problem: Problem) -> tuple[list[int], int]:
    """The numbers, sorted, and the target."""
    try:
        task = json.loads(problem.answer)
        numbers, target = task["numbers"], task["target"]
        if type(target) is int and numbers and all(type(number) is int for number in numbers):
            return sorted(numbers), target
    except (ValueError, KeyError, TypeError):
        pass
    raise UsageError(
        f'problem {problem.id}: its answer should be a countdown task, {{"numbers": [3, 5, 2], "target": 16}}, '
        f"got {problem.answer[:100]!r}"
    )


def compute(expression: str) -> tuple[Fraction, list[int]] | None:
    """The exact value and the numbers used; None for anything that is not the plainest arithmetic."""
    if not EXPRESSION.fullmatch(expression) or expression.count("(") > MAX_PARENTHESES:
        return None
    used: list[int] = []
    try:
        return evaluate(ast.parse(expression, mode="eval").body, used), used
    except (SyntaxError, ValueError, ZeroDivisionError):
        return None


def evaluate(node: ast.expr, used: list[int]) -> Fraction:
    """Nothing is ever run as Python: what is not on this list (signs, powers, calls, ...) raises ValueError."""
    match node:
        case ast.Constant(value=int(number)):
            used.append(number)
            return Fraction(number)
        case ast.BinOp(left, operation, right) if type(operation) in OPERATIONS:
            return OPERATIONS[type(operation)](evaluate(left, used), evaluate(right, used))
    raise ValueError(f"{type(node).__name__} is not allowed")
