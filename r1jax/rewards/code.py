"""Code rewards: 1 when the program in a response passes every test (R1, section 2.2.2), else 0.

Programs run in the sandbox (`sandbox/`). Expected outputs stay outside and are compared here, so that no program can
read or forge them. `problem.answer` has the tests as JSON, in the form of APPS and TACO:

    {"inputs": ["1 2\\n", …], "outputs": ["3\\n", …]}                        standard input and output
    {"fn_name": "add", "inputs": [[1, 2], …], "outputs": [3, …]}           calls, of a function or a method of Solution

Standard input and output may also be lists of lines, and what a function returns may be wrapped in a list, as in APPS.
Numbers are compared by `close`.
"""

import json
import math
import os
import re
import secrets
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from r1jax.errors import RunError, UsageError
from r1jax.rewards.sandbox import Sandbox
from r1jax.types import Problem, Sample

# Runs inside the sandbox for tests of a function: imports the program as a module, calls the function on each input and
# writes the results to descriptor 3. The nonce tells this reply from the program's own output; nothing runs after it.
# What LeetCode and APPS import for a program is found after its own names, as builtins are, and not by `hasattr`.
CALLS = """
import bisect, builtins, collections, copy, datetime, functools, heapq, itertools, json, math, operator, os, random, re
import string, sys, time, types, typing
given = {}
for library in (operator, copy, string, re, random, math, itertools, functools, heapq, bisect, collections, typing):
    names = getattr(library, "__all__", [name for name in vars(library) if name[0] != "_"])
    given.update((name, getattr(library, name)) for name in names)
for library in (bisect, collections, copy, datetime, functools, heapq, itertools, json, math, operator, os, random, re,
                string, sys, time, typing):
    given[library.__name__] = library
job = json.load(sys.stdin)
module = types.ModuleType("program")
sys.modules["program"] = module
given.update(vars(builtins))
module.__dict__["__builtins__"] = given
exec(compile(job["program"], "program.py", "exec"), module.__dict__)
name = job["fn_name"]
function = getattr(module, name) if hasattr(module, name) else getattr(module.Solution(), name)
values = [function(*arguments) for arguments in job["inputs"]]
with open(3, "w") as reply:
    reply.write(json.dumps([job["nonce"], values], allow_nan=False))
os._exit(0)
"""

# Opening fences of Markdown: indentation, marks, the first word of what follows.
FENCE = re.compile(r"([ \t]*+)(`{3,}+|~{3,}+)[ \t]*+[{.]*+([^\s`{}.:,=]*+)[^`]*+")
# Where a tag stands on a fence's line.
TOUCHING = re.compile(r"<answer>(?=[ \t]*(?:```|~~~))|(?:(?<=```)|(?<=~~~))(?=[ \t]*</answer>)")
PYTHON = {"python", "python3", "py", "py3", "pypy", "pypy3"}
# A block without a language is a program rather than its output if it has one of these.
STATEMENT = re.compile(r"^\s*(?:print\s*\(|def |class |import |from \w+ import |exec\s*\(|sys\.stdout)", re.MULTILINE)

NUMBER = re.compile(r"(?<![\w.])[+-]?[0-9]+(?:\.[0-9]+)?(?:[eE][+-]?[0-9]{1,3})?(?![\w.])")
NOISE = 1e-9  # what rounding adds to a result, of its size or, below 1, in all
DECIMALS = 6  # numbers with as many are read as rounded
LONGEST = 1000  # digits of two numbers that are compared other than as text


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
        """Whether the program passes all tests, or the sandbox's error. All tests share the sandbox's wall time."""
        if program is None:
            return False
        try:
            if tests.fn_name is not None:
                return returns(self.sandbox, program, tests.fn_name, tests.inputs, tests.outputs)
            remaining = self.sandbox.limits.wall_seconds
            for stdin, expected in zip(tests.inputs, tests.outputs, strict=True):
                result = self.sandbox.run(program, stdin, remaining)
                remaining -= result.seconds
                if remaining <= 0 or not result.succeeded or not prints(result.stdout, expected):
                    return False
            return True
        except RunError as error:
            try:
                self.sandbox.run("pass")
            except RunError:
                return str(error)
            return False  # the sandbox works: the program made it fail


def extract_program(response: str) -> str | None:
    """The last closed Python block after the thinking, else one without a language, else <answer>, else None."""
    final = TOUCHING.sub(r"\g<0>\n", response.rpartition("</think>")[2])
    found: dict[bool, str] = {}  # by whether the block says that it is Python
    fence, block = None, list[str]()
    for line in final.split("\n"):
        if fence is None:
            fence, block = FENCE.fullmatch(line.rstrip()), []
        elif is_closed(line, fence[2]):
            code, language = "\n".join(block) + "\n", fence[3].casefold()
            if language in PYTHON or not language and (False not in found or STATEMENT.search(code)):
                found[language in PYTHON] = code
            fence = None
        else:
            indentation = len(fence[1])
            block.append(line[indentation:] if not line[:indentation].strip() else line)
    program = found.get(True, found.get(False))
    if program is None and "```" not in final and final.count("<answer>") == final.count("</answer>") == 1:
        program = final.partition("<answer>")[2].partition("</answer>")[0].strip("\n") or None
    return program


def is_closed(line: str, marks: str) -> bool:
    """Whether the line ends the block that `marks` began."""
    line = line.strip()
    return len(line) >= len(marks) and set(line) == {marks[0]}


def parse_tests(problem: Problem) -> Tests:
    """The tests in `problem.answer`. Raises UsageError for none, since any program would pass."""
    try:
        fields = json.loads(problem.answer)
        inputs, outputs, fn_name = fields["inputs"], fields["outputs"], fields.get("fn_name")
        if fn_name is None:
            inputs, outputs = [join_lines(i) for i in inputs], [join_lines(o) for o in outputs]
        tests = Tests(fn_name, inputs, outputs)
        pairs = list(zip(tests.inputs, tests.outputs, strict=True)) if isinstance(fields["inputs"], list) else []
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UsageError(f"problem {problem.id}: Problem.answer isn't tests as JSON: {error!r}") from error
    kind = str if tests.fn_name is None else list
    if not pairs or not all(isinstance(i, kind) and (tests.fn_name or isinstance(o, str)) for i, o in pairs):
        raise UsageError(f"problem {problem.id}: Problem.answer needs one or more tests with {kind.__name__} inputs")
    return tests


def join_lines(text: Any) -> Any:
    """A list of lines, or of lists of words, as one text; anything else as it is."""
    if not isinstance(text, list):
        return text
    lines = [" ".join(line) if isinstance(line, list) else line.removesuffix("\n") for line in text]
    return "\n".join(lines) + "\n"


def prints(stdout: bytes, expected: str) -> bool:
    """Whether these are the expected lines, with numbers that are `close`, up to white space at their ends."""
    wanted = [line.rstrip() for line in expected.encode("utf-8", "surrogatepass").rstrip().split(b"\n")]
    lines = [line.rstrip() for line in stdout.rstrip().split(b"\n")]
    return len(lines) == len(wanted) and all(map(reads_as, lines, wanted))


def reads_as(line: bytes, expected: bytes) -> bool:
    """Whether the lines are equal, or are up to numbers, which are `close`."""
    if line == expected:
        return True
    printed, wanted = (text.decode(errors="surrogateescape") for text in (line, expected))
    if NUMBER.split(printed) != NUMBER.split(wanted):
        return False
    return all(map(close, NUMBER.findall(printed), NUMBER.findall(wanted)))


def close(printed: str, expected: str) -> bool:
    """Whether a printed number is the expected one: one without a point exactly, but for zeros behind a point."""
    if printed == expected or len(printed) + len(expected) > LONGEST:
        return printed == expected
    if "." not in expected:
        whole = re.sub(r"\.0+$", "", printed)
        return whole == expected or (whole, expected) == ("-0", "0")
    return rounds_to(Decimal(printed), Decimal(expected))


def rounds_to(value: Decimal, wanted: Decimal) -> bool:
    """Whether the numbers are equal up to rounding.

    They may differ by `NOISE`, but less than half a unit of the wanted number's last place, or be the same when both
    are rounded to the places of the shorter one, with `DECIMALS` decimals and significant digits or more.
    """
    difference = abs(value - wanted)
    if not difference or difference <= min(Decimal(NOISE) * max(Decimal(1), abs(wanted)), last_place(wanted) / 2):
        return True
    shorter = max(value, wanted, key=last_place)
    significant = len(shorter.as_tuple().digits) >= DECIMALS
    return significant and last_place(shorter) <= Decimal(10) ** -DECIMALS and difference <= last_place(shorter) / 2


def last_place(number: Decimal) -> Decimal:
    """The unit of its last digit: 0.01 for 2.50."""
    return Decimal(1).scaleb(int(number.as_tuple().exponent))


def returns(sandbox: Sandbox, program: str, fn_name: str, inputs: list[Any], outputs: list[Any]) -> bool:
    """Whether the function returns the expected values, called in one process."""
    nonce = secrets.token_hex(16)
    job = {"program": program, "fn_name": fn_name, "inputs": inputs, "nonce": nonce}
    result = sandbox.run(CALLS, json.dumps(job))
    try:
        reply = json.loads(result.reply)
    except (ValueError, RecursionError):
        return False
    expected = [outputs]
    if all(isinstance(output, list) and len(output) == 1 for output in outputs):
        expected.append([output[0] for output in outputs])  # APPS wraps what is returned
    return result.succeeded and any(same(reply, [nonce, values], rounded=True) for values in expected)


def same(value: Any, expected: Any, rounded: bool = False) -> bool:
    """Equality of JSON values: 1 equals 1.0 but not true, and NaN equals nothing.

    With `rounded`, numbers have to equal expected fractions only up to rounding (`rounds_to`).
    """
    if isinstance(value, bool) or isinstance(expected, bool):
        return value is expected
    if isinstance(value, int | float) and isinstance(expected, int | float):
        if rounded and isinstance(expected, float) and isinstance(value, float) and math.isfinite(value - expected):
            return rounds_to(Decimal(repr(value)), Decimal(repr(expected)))
        return value == expected
    if isinstance(value, list) and isinstance(expected, list):
        return len(value) == len(expected) and all(same(v, e, rounded) for v, e in zip(value, expected, strict=True))
    if isinstance(value, dict) and isinstance(expected, dict):
        return value.keys() == expected.keys() and all(same(value[key], expected[key], rounded) for key in expected)
    return type(value) is type(expected) and value == expected
