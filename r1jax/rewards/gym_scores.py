"""Scores by reasoning-gym's verifiers, which may never return: run it in `workers.py` only.

Nine of them evaluate the answer as Python or by sympy, which does so as well. An answer could read the solution or do
harm: here they get an `eval` and a `parse_expr` without access to either, and the process may not write, connect or
start others. That stops what a policy might find, and not an attacker: it is no sandbox.

The only file of `rewards` that imports reasoning-gym.
"""

import ast
import builtins
import os
import re
import sys
from functools import lru_cache, wraps
from typing import Any

os.environ["OPENBLAS_NUM_THREADS"] = "1"  # each thread reserves memory, which is limited

import sympy  # noqa: E402
from sympy.parsing import sympy_parser  # noqa: E402

FUNCTIONS = {"abs", "max", "min", "pow", "round", "sum"}  # builtins that are mathematics
DENIED = frozenset(dir(builtins)) - FUNCTIONS
SYMBOLIC = re.compile(r"[\w\s+*/^()\[\],.=|!-]*")


def evaluate(text: str) -> Any:
    """`eval` of literals and operators. Raises ValueError for names and attributes, so that nothing can be called."""
    if any(isinstance(node, ast.Name | ast.Attribute) for node in ast.walk(ast.parse(text.strip(), mode="eval"))):
        raise ValueError(f"{text[:100]!r} is more than literals")
    return eval(text)


@wraps(sympy_parser.parse_expr)
def parse(text: str, *arguments: Any, _parse=sympy_parser.parse_expr, **options: Any) -> Any:
    """sympy's, for text without builtins, quotes or private names. Raises ValueError for other text."""
    names = set(re.findall(r"[^\W\d]\w*", text))
    if not SYMBOLIC.fullmatch(text) or "__" in text or names & DENIED:
        raise ValueError(f"{text[:100]!r} is more than mathematics")
    return _parse(text, *arguments, **options)


sympy.parse_expr = sympy_parser.parse_expr = parse

from reasoning_gym.factory import create_dataset  # noqa: E402

for _name, _module in list(sys.modules.items()):
    if _name.startswith("reasoning_gym."):
        vars(_module)["eval"] = evaluate


def deny(event: str, arguments: tuple[Any, ...]) -> None:
    """An audit hook. Raises PermissionError for writing, connecting, and starting processes."""
    writes = event == "open" and bool((arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
    if writes or (event.startswith(("os.", "subprocess.", "socket.", "shutil.", "ctypes.")) and event not in LISTING):
        raise PermissionError(event)


LISTING = ("os.listdir", "os.scandir")  # which imports do
sys.addaudithook(deny)


@lru_cache(maxsize=100)
def make_dataset(name: str, settings: str) -> Any:
    return create_dataset(name, **ast.literal_eval(settings), seed=0)


def score(item: tuple[str, str, str]) -> float:
    """The verifier's score in [0, 1] for (question, `Problem.answer`, answer); 0 where the answer makes it raise."""
    question, problem, answer = item
    entry = {"question": question, **ast.literal_eval(problem)}
    dataset = make_dataset(entry["dataset"], repr(entry["settings"]))
    try:
        value = float(dataset.score_answer(answer, entry))
    except Exception:
        dataset.score_answer(entry["answer"], entry)  # raises as well if it is not the answer's fault
        return 0.0
    if not 0 <= value <= 1:
        raise ValueError(f"the score is {value}")
    return value
