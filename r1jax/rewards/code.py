"""Code rewards: 1 when the program in a response passes every test (R1, section 2.2.2), else 0.

Programs run in the sandbox (`sandbox/`). Expected outputs stay outside and are compared here, so that no program can
read or forge them. `problem.answer` has the tests as JSON, in the form of APPS and TACO:

    {"inputs": ["1 2\\n", …], "outputs": ["3\\n", …]}                        standard input and output
    {"fn_name": "add", "inputs": [[1, 2], …], "outputs": [3, …]}           calls, of a function or a method of Solution
"""

import json
import os
import secrets
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from r1jax.errors import RunError, UsageError
from r1jax.rewards.sandbox import Sandbox
from r1jax.types import Problem, Sample

# Runs inside the sandbox for tests of a function: imports the program as a module, calls the function on each input and
# writes the results to descriptor 3. The nonce tells this reply from the program's own output; nothing runs after it.
CALLS = """
import json, os, sys, types
job = json.load(sys.stdin)
module = types.ModuleType("program")
sys.modules["program"] = module
exec(compile(job["program"], "program.py", "exec"), module.__dict__)
name = job["fn_name"]
function = getattr(module, name) if hasattr(module, name) else getattr(module.Solution(), name)
values = [function(*arguments) for arguments in job["inputs"]]
with open(3, "w") as reply:
    reply.write(json.dumps([job["nonce"], values], allow_nan=False))
os._exit(0)
"""


@dataclass(frozen=True)
class Tests:
    fn_name: str | None  # None: the program reads standard input and prints
    inputs: list[Any]
    outputs: list[Any]


class CodeReward:
    """Grades programs, up to `workers` (default: the CPU cores) at once.

    A value is None when the sandbox failed, which says nothing about the program. Such failures are counted in
    `failures`; `last_failure` has the latest error.
    """

    def __init__(self, sandbox: Sandbox, workers: int | None = None) -> None:
        self.sandbox = sandbox
        self.workers = workers or os.cpu_count() or 1
        self.failures: Counter[str] = Counter(sandbox_failures=0)
        self.last_failure = ""

    @property
    def notice(self) -> str:
        """The isolation of this machine, for the run's log."""
        return f"programs are isolated by {', '.join(sorted(self.sandbox.layers)) or 'nothing: they can do harm'}"

    def grade(self, samples: Sequence[Sample]) -> list[float | None]:
        """1 for a program that passes, else 0; None where the sandbox itself fails.

        Raises UsageError for malformed tests.
        """
        jobs = [(extract_program(sample.text), parse_tests(sample.problem)) for sample in samples]
        with ThreadPoolExecutor(self.workers) as pool:
            results = list(pool.map(lambda job: self.check(*job), jobs))
        errors = [result for result in results if isinstance(result, str)]
        self.failures["sandbox_failures"] += len(errors)
        self.last_failure = errors[-1] if errors else self.last_failure
        return [None if isinstance(result, str) else float(result) for result in results]

    def check(self, program: str | None, tests: Tests) -> bool | str:
        """Whether the program passes all tests, or the sandbox's error."""
        if program is None:
            return False
        try:
            if tests.fn_name is not None:
                return returns(self.sandbox, program, tests.fn_name, tests.inputs, tests.outputs)
            return all(prints(self.sandbox, program, i, o) for i, o in zip(tests.inputs, tests.outputs, strict=True))
        except RunError as error:
            try:
                self.sandbox.run("pass")
            except RunError:
                return str(error)
            return False  # the sandbox works: the program made it fail


def extract_program(response: str) -> str | None:
    """The last closed ```python block after the thinking, else the contents of <answer>, else None."""
    final = response.rpartition("</think>")[2]
    program: str | None = None
    block: list[str] | None = None
    for line in final.split("\n"):
        fence = line.strip()
        if block is None and fence in ("```python", "```py", "```python3"):
            block = []
        elif block is not None and fence == "```":
            program, block = "\n".join(block) + "\n", None
        elif block is not None:
            block.append(line)
    if program is None and "```" not in final and final.count("<answer>") == final.count("</answer>") == 1:
        program = final.partition("<answer>")[2].partition("</answer>")[0].strip("\n") or None
    return program


def parse_tests(problem: Problem) -> Tests:
    """The tests in `problem.answer`. Raises UsageError for none, since any program would pass."""
    try:
        fields = json.loads(problem.answer)
        tests = Tests(fields.get("fn_name"), fields["inputs"], fields["outputs"])
        pairs = list(zip(tests.inputs, tests.outputs, strict=True)) if isinstance(tests.inputs, list) else []
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(f"problem {problem.id}: Problem.answer isn't tests as JSON: {error!r}") from error
    kind = str if tests.fn_name is None else list
    if not pairs or not all(isinstance(i, kind) and (tests.fn_name or isinstance(o, str)) for i, o in pairs):
        raise UsageError(f"problem {problem.id}: Problem.answer needs one or more tests with {kind.__name__} inputs")
    return tests


def prints(sandbox: Sandbox, program: str, stdin: str, expected: str) -> bool:
    """Whether the program prints exactly the expected lines, up to white space at the ends of lines and text."""
    result = sandbox.run(program, stdin)
    printed, wanted = ([x.rstrip() for x in text.rstrip().split(b"\n")] for text in (result.stdout, expected.encode()))
    return result.succeeded and printed == wanted


def returns(sandbox: Sandbox, program: str, fn_name: str, inputs: list[Any], outputs: list[Any]) -> bool:
    """Whether the function returns the expected values, called in one process."""
    nonce = secrets.token_hex(16)
    job = {"program": program, "fn_name": fn_name, "inputs": inputs, "nonce": nonce}
    result = sandbox.run(CALLS, json.dumps(job))
    try:
        reply = json.loads(result.reply)
    except (ValueError, RecursionError):
        return False
    return result.succeeded and same(reply, [nonce, outputs])


def same(value: Any, expected: Any) -> bool:
    """Equality of JSON values: 1 equals 1.0 but not true, and NaN equals nothing."""
    if isinstance(value, bool) or isinstance(expected, bool):
        return value is expected
    if isinstance(value, int | float) and isinstance(expected, int | float):
        return value == expected
    if isinstance(value, list) and isinstance(expected, list):
        return len(value) == len(expected) and all(map(same, value, expected))
    if isinstance(value, dict) and isinstance(expected, dict):
        return value.keys() == expected.keys() and all(same(value[key], expected[key]) for key in expected)
    return type(value) is type(expected) and value == expected
