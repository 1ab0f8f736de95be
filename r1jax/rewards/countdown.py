"""Countdown: reach a target from given numbers (as in TinyZero's tasks). `problem.answer` is the puzzle as JSON:

    {"numbers": [3, 5, 2], "target": 16}        one solution: 2 * (3 + 5)

An answer uses each number exactly once, with + - * / and parentheses only. Division is exact.
"""

import ast
import json
import operator
import re
from collections.abc import Callable
from fractions import Fraction
from typing import Any

from r1jax.errors import UsageError
from r1jax.rewards.rules import answered_by, parse_answer
from r1jax.types import Problem, Sample

OPERATIONS: dict[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
}  # fmt: skip
EXPRESSION = re.compile(r"[0-9+*/() -]{1,200}")  # short, which bounds parsing and arithmetic
MAX_PARENTHESES = 20  # in total; far below the depth that Python's parser accepts


def read_expression(sample: Sample) -> str | None:
    """The answer's value and numbers, by which 2 * (3 + 5) and (5 + 3) * 2 are one vote; None without an answer.

    Text that isn't arithmetic is returned as it is.
    """
    answer = parse_answer(sample.text)
    if not answer:
        return None
    result = compute(answer)
    return f"{result[0]} of {sorted(result[1])}" if result else answer


@answered_by(read_expression)
def countdown_reward(sample: Sample) -> float:
    """1 when the answer of a well-formed response reaches the target with each number used once, else 0.

    The form is that of `rules.parse_answer` alone: a box or a last line would be further ways to fool the reward. The
    answer is the expression without "= 16". Raises UsageError for a problem whose answer isn't a puzzle.
    """
    numbers, target = parse_puzzle(sample.problem)
    answer = parse_answer(sample.text)
    result = compute(answer) if answer else None
    return float(result is not None and result[0] == target and sorted(result[1]) == numbers)


def parse_puzzle(problem: Problem) -> tuple[list[int], int]:
    """The sorted numbers and the target. Raises UsageError when `problem.answer` has none."""
    try:
        puzzle = json.loads(problem.answer)
        numbers, target = puzzle["numbers"], puzzle["target"]
        if type(target) is int and numbers and all(type(number) is int for number in numbers):
            return sorted(numbers), target
    except (ValueError, KeyError, TypeError):
        pass
    raise UsageError(
        f"problem {problem.id}: Problem.answer is {problem.answer[:100]!r}, expected a countdown puzzle such as"
        ' {"numbers": [3, 5, 2], "target": 16}'
    )


def compute(expression: str) -> tuple[Fraction, list[int]] | None:
    """The exact value and the numbers used, or None for anything but + - * / on unsigned integers."""
    if not EXPRESSION.fullmatch(expression) or expression.count("(") > MAX_PARENTHESES:
        return None
    used: list[int] = []
    try:
        return evaluate(ast.parse(expression, mode="eval").body, used), used
    except (SyntaxError, ValueError, ZeroDivisionError):
        return None


def evaluate(node: ast.expr, used: list[int]) -> Fraction:
    """Evaluates the syntax tree itself and never runs it; other nodes (signs, powers, calls …) raise ValueError."""
    match node:
        case ast.Constant(value=int(number)):
            used.append(number)
            return Fraction(number)
        case ast.BinOp(left, operation, right) if type(operation) in OPERATIONS:
            return OPERATIONS[type(operation)](evaluate(left, used), evaluate(right, used))
    raise ValueError(f"{type(node).__name__} is not allowed")
