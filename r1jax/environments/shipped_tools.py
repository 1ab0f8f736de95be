"""A calculator, and Python in the sandbox that keeps its variables between calls."""

import json

from r1jax.rewards.countdown import compute
from r1jax.rewards.sandbox import Sandbox

# Runs all cells but the last in silence: a program of the sandbox ends with its call, so that state is made again.
CELLS = """
import ast, contextlib, io, json, sys, traceback
cells = json.load(sys.stdin)
scope = {"__name__": "__main__"}
def run(cell):
    try:
        body = ast.parse(cell).body
        last = [body.pop()] if body and isinstance(body[-1], ast.Expr) else []
        exec(compile(ast.Module(body, []), "cell", "exec"), scope)
        exec(compile(ast.Interactive(last), "cell", "single"), scope)  # prints its value
    except BaseException as error:
        print("".join(traceback.format_exception_only(error)).strip())
for cell in cells[:-1]:
    with contextlib.redirect_stdout(io.StringIO()):
        run(cell)
run(cells[-1])
"""


def calculator(expression: str) -> str:
    """Computes an arithmetic expression exactly.

    Args:
      expression: whole numbers, + - * / and parentheses, such as 3 * (4 + 5).
    """
    result = compute(expression)
    if result is None:
        raise ValueError("expected whole numbers, + - * / and parentheses, and no division by 0")
    return str(result[0])


class Python:
    """Runs Python code, and returns what it prints and the value of its last line. Variables stay for later calls.

    Args:
      code: a program; the standard library can be imported.
    """

    __name__ = "python"

    def __init__(self, sandbox: Sandbox):
        self.sandbox, self.cells = sandbox, list[str]()

    def __call__(self, code: str) -> str:
        self.cells.append(code)
        done = self.sandbox.run(CELLS, json.dumps(self.cells))
        written = done.stdout.decode(errors="replace").strip()
        if done.succeeded:
            return written
        self.cells.pop()  # it would fail again, in every later call
        return f"{written}\nerror: ended by {done.reason} ({done.status})".strip()
