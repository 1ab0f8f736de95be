"""Problems and demonstrations from files with a JSON object a line, by their column maps (`JsonlConfig`)."""

import json
import re
from collections.abc import Callable
from typing import Any, TypeVar

from etils import epath

from r1jax.config import DemonstrationsConfig, JsonlConfig, fits
from r1jax.errors import UsageError
from r1jax.types import Problem

T = TypeVar("T")


def read_problems(config: JsonlConfig, source: str) -> list[Problem]:
    """All problems of a file, which carry `source`. Raises UsageError for the first line that is none."""
    read = read_lines(config.path, lambda line: read_line(line, config), "JsonlConfig")
    return [Problem(i, question, answer, config.language, source) for i, (question, answer) in enumerate(read)]


def read_demonstrations(config: DemonstrationsConfig) -> list[dict]:
    """All demonstrations of a file, in the asked form: the reasoning, and the summary at the end.

    Raises UsageError for the first line that is none.
    """
    return read_lines(config.path, lambda line: read_demonstration(line, config), "DemonstrationsConfig")


def read_lines(path: str, read: Callable[[str], T], setting: str) -> list[T]:
    """What `read` makes of each line. Raises UsageError, with the number of the line that it raises ValueError for."""
    try:
        lines = epath.Path(path).read_bytes().decode().split("\n")  # splitlines would also cut within JSON strings
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} can't be read: {error}. Set {setting}.path to a file of JSON lines") from error
    found: list[T] = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                found.append(read(line))
            except ValueError as error:
                raise UsageError(f"{path}, line {number}: {error}") from error
    if not found:
        raise UsageError(f"{path} has no lines: set {setting}.path to a file that has some")
    return found


def read_demonstration(line: str, config: DemonstrationsConfig) -> dict:
    """Raises ValueError that says what is wrong, and what to set."""
    row = read_row(line)
    columns = {"question": config.question, "reasoning": config.reasoning, "summary": config.summary}
    held = {field: column_text(row, column, field, "DemonstrationsConfig") for field, column in columns.items()}
    response = f"<think> {held['reasoning']} </think> <answer> {held['summary']} </answer>"
    return {"question": held["question"], "response": response}


def read_row(line: str) -> dict[str, Any]:
    """The object on a line. Raises ValueError when there is none."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"no JSON ({error}): expected one whole object on each line") from error
    if not isinstance(row, dict):
        raise ValueError(f"{line.strip()[:80]!r} is no JSON object: expected one on each line")
    return row


def read_line(line: str, config: JsonlConfig) -> tuple[str, str]:
    """Question and answer. Raises ValueError that says what is wrong, and what to set."""
    row = read_row(line)
    question = column_text(row, config.question, "question")
    held = column_text(row, config.answer, "answer")
    answer = ANSWER_FORMS[config.answer_form](held)
    if not answer:
        raise ValueError(
            f"column '{config.answer}' has no answer of the form '{config.answer_form}', but {held[-80:]!r}:"
            " set JsonlConfig.answer or JsonlConfig.answer_form"
        )
    return question, answer


def column_text(row: dict[str, Any], column: str, field: str, setting: str = "JsonlConfig") -> str:
    """A column that has to hold text or a number, as text."""
    if column not in row:
        there = ", ".join(f"'{name}'" for name in row)
        raise ValueError(f"no column '{column}' among {there}: set {setting}.{field} to one of them")
    value = row[column]
    text = str(value).strip() if any(fits(value, kind) for kind in (str, int, float)) else ""
    text.encode()  # half of a surrogate pair raises ValueError here: it can't be written
    if not text:
        raise ValueError(f"column '{column}' is {value!r}, expected text or a number: set {setting}.{field}")
    return text


def after_hashes(text: str) -> str:
    """GSM8K's (arXiv 2110.14168): the number after the last ####, without commas between thousands."""
    last = text.rpartition("####")[2] if "####" in text else ""
    return re.sub(r"(?<=[0-9]),(?=[0-9]{3})", "", last.strip())


def last_box(text: str) -> str:
    r"""MATH's (arXiv 2103.03874): what the last \boxed{…} holds, in balanced braces; \{ and \} are signs of a set."""
    start = max(text.rfind(r"\boxed"), text.rfind(r"\fbox"))
    held = re.sub(r"^\\(boxed|fbox)\s*", "", text[start:]) if start >= 0 else ""
    if not held.startswith("{"):
        return held.partition("$")[0].strip()  # \boxed 5$: MATH has a few without braces
    depth = 0
    for mark in re.finditer(r"\\.|[{}]", held, re.DOTALL):
        depth += {"{": 1, "}": -1}.get(mark[0], 0)
        if depth == 0:
            return held[1 : mark.start()].strip()
    return ""


ANSWER_FORMS: dict[str, Callable[[str], str]] = {"plain": str.strip, "hashes": after_hashes, "boxed": last_box}
