"""Code rewards: 1 when the program in a response passes every test (R1, section 2.2.2: tests, not opinions).

Programs run in `sandbox.py`. Expected outputs never go there: what a program can see, print or forge doesn't help it to
know them. They are compared here. Tests are the JSON that coding data sets use (APPS, TACO), in `problem.answer`:

    {"inputs": ["1 2\\n", …], "outputs": ["3\\n", …]}                        standard input and output
    {"fn_name": "add", "inputs": [[1, 2], …], "outputs": [3, …]}           calls, of a function or a method of Solution
"""

import json
import os
import secrets
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

from r1jax.errors import RunError, UsageError
from r1jax.rewards.sandbox import Sandbox
from r1jax.types import Problem

# What runs inside for calls: the program as a module, then its function on each input; the reply goes to descriptor 3,
# and nothing runs after it. The nonce says that this code wrote the reply, and not a stray print.
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


class Answered(Protocol):
    """What a reward reads of a sample."""

    @property
    def problem(self) -> Problem: ...
    @property
    def text(self) -> str: ...


@dataclass(frozen=True)
class Tests:
    fn_name: str | None
    inputs: list[Any]
    outputs: list[Any]


class CodeReward:
    """A reward: call it with a sample, or `grade` with many, which run side by side.

    A value is None when the sandbox failed: that is nothing the program did. It is counted in `failures`, and
    `last_failure` says why.
    """

    def __init__(self, sandbox: Sandbox, workers: int | None = None) -> None:
        self.sandbox = sandbox
        self.workers = workers or os.cpu_count() or 1
        self.failures: Counter[str] = Counter(sandbox_failures=0)
        self.last_failure = ""

    @property
    def notice(self) -> str:
        """What who reads the log should know."""
        return f"programs run behind {', '.join(sorted(self.sandbox.layers)) or 'nothing: any may do harm'}"

    def __call__(self, sample: Answered) -> float | None:
        return self.grade([sample])[0]

    def grade(self, samples: Iterable[Answered]) -> list[float | None]:
        """One value for each sample, in order.

        Raises:
            UsageError: a problem's tests are not tests.
        """
        jobs = [(extract_program(sample.text), parse_tests(sample.problem)) for sample in samples]
        with ThreadPoolExecutor(self.workers) as pool:
            results = list(pool.map(lambda job: self.judge(*job), jobs))
        errors = [result for result in results if isinstance(result, str)]
        self.failures["sandbox_failures"] += len(errors)
        self.last_failure = errors[-1] if errors else self.last_failure
        return [None if isinstance(result, str) else float(result) for result in results]

    def judge(self, program: str | None, tests: Tests) -> bool | str:
        """Whether the program passes, or why the sandbox could not say."""
        try:
            return program is not None and passes(self.sandbox, program, tests)
        except RunError as error:
            return str(error)


def extract_program(response: str) -> str | None:
    """The last closed ```python block after the thinking; without one, what stands in <answer>; without that, None."""
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
    """Raises UsageError when `problem.answer` has no tests: no program must pass for want of them."""
    try:
        fields = json.loads(problem.answer)
        tests = Tests(fields.get("fn_name"), fields["inputs"], fields["outputs"])
        pairs = list(zip(tests.inputs, tests.outputs, strict=True)) if isinstance(tests.inputs, list) else []
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(f"problem {problem.id}: its answer should be tests as JSON, got {error!r}") from error
    kind = str if tests.fn_name is None else list
    if not pairs or not all(isinstance(i, kind) and (tests.fn_name or isinstance(o, str)) for i, o in pairs):
        raise UsageError(f"problem {problem.id}: expected one or more tests with inputs of type {kind.__name__}")
    return tests


def passes(sandbox: Sandbox, program: str, tests: Tests) -> bool:
    if tests.fn_name is None:
        return all(prints(sandbox, program, i, o) for i, o in zip(tests.inputs, tests.outputs, strict=True))
    return returns(sandbox, program, tests.fn_name, tests.inputs, tests.outputs)


def prints(sandbox: Sandbox, program: str, stdin: str, expected: str) -> bool:
    """Whether the whole output is the expected one, line by line, but for white space at the ends of lines and text."""
    ending = sandbox.run(program, stdin)
    return ending.succeeded and lines(ending.stdout) == lines(expected.encode())


def lines(text: bytes) -> list[bytes]:
    return [line.rstrip() for line in text.rstrip().split(b"\n")]


def returns(sandbox: Sandbox, program: str, fn_name: str, inputs: list[Any], outputs: list[Any]) -> bool:
    """Whether the function returns the expected values, all calls in one process."""
    nonce = secrets.token_hex(16)
    job = {"program": program, "fn_name": fn_name, "inputs": inputs, "nonce": nonce}
    ending = sandbox.run(CALLS, json.dumps(job))
    try:
        reply = json.loads(ending.reply)
    except (ValueError, RecursionError):
        return False
    return ending.succeeded and same(reply, [nonce, outputs])


def same(value: Any, expected: Any) -> bool:
    """Equality of JSON values. True is not 1, but 1.0 is; NaN is nothing's equal."""
    if isinstance(value, bool) or isinstance(expected, bool):
        return value is expected
    if isinstance(value, int | float) and isinstance(expected, int | float):
        return value == expected
    if isinstance(value, list) and isinstance(expected, list):
        return len(value) == len(expected) and all(map(same, value, expected))
    if isinstance(value, dict) and isinstance(expected, dict):
        return value.keys() == expected.keys() and all(same(value[key], expected[key]) for key in expected)
    return type(value) is type(expected) and value == expected
