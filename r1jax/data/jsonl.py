"""Problems and demonstrations from files of JSON lines, whose columns `JsonlConfig` and `DemonstrationsConfig` name."""

import json
import re
from collections.abc import Callable
from typing import Any, TypeVar

from etils import epath

from r1jax.config import DemonstrationsConfig, JsonlConfig, PreferenceFileConfig, fits
from r1jax.errors import UsageError
from r1jax.types import Problem

T = TypeVar("T")


def read_problems(config: JsonlConfig, source: str) -> list[Problem]:
    """All problems of a file, labelled with `source`. Raises UsageError for the first invalid line."""
    read = read_lines(config.path, lambda line: read_line(line, config), "JsonlConfig")
    return [Problem(i, question, answer, config.language, source) for i, (question, answer) in enumerate(read)]


def read_demonstrations(config: DemonstrationsConfig) -> list[dict]:
    """All demonstrations of a file, reasoning in R1-Zero's tags. Raises UsageError for the first invalid line."""
    return read_lines(config.path, lambda line: read_demonstration(line, config), "DemonstrationsConfig")


def read_preferences(config: PreferenceFileConfig, kind: str) -> list[dict]:
    """All preferences of a file, of `kind` "pairwise" or "pointwise". Raises UsageError for the first invalid line."""
    return read_lines(config.path, lambda line: read_preference(line, config, kind), "PreferenceFileConfig")


def read_lines(path: str, read: Callable[[str], T], setting: str) -> list[T]:
    """`read(line)` of each non-empty line. Raises UsageError with the line's number where `read` raises ValueError."""
    try:
        lines = epath.Path(path).read_bytes().decode().split("\n")  # splitlines would also cut within JSON strings
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} can't be read: {error}; set {setting}.path to a file of JSON lines") from error
    parsed: list[T] = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                parsed.append(read(line))
            except ValueError as error:
                raise UsageError(f"{path}, line {number}: {error}") from error
    if not parsed:
        raise UsageError(f"{path} has no lines: set {setting}.path to a file of JSON lines")
    return parsed


def read_demonstration(line: str, config: DemonstrationsConfig) -> dict:
    """A line's question and response. Raises ValueError with the field of `DemonstrationsConfig` to set."""
    row = read_row(line)
    columns = {"question": config.question, "reasoning": config.reasoning, "summary": config.summary}
    texts = {
        field: column_text(row, column, field, "DemonstrationsConfig") for field, column in columns.items() if column
    }
    tagged = f"<think> {texts.get('reasoning')} </think> <answer> {texts['summary']} </answer>"
    return {"question": texts["question"], "response": tagged if config.reasoning else texts["summary"]}


def read_preference(line: str, config: PreferenceFileConfig, kind: str) -> dict:
    """A line's question and responses. Raises ValueError with the field of `PreferenceFileConfig` to set."""
    row = read_row(line)
    pair = {"chosen": config.chosen, "rejected": config.rejected}
    columns = {"question": config.question} | (pair if kind == "pairwise" else {"response": config.response})
    found: dict[str, Any] = {
        field: column_text(row, column, field, "PreferenceFileConfig") for field, column in columns.items()
    }
    if kind == "pointwise":
        found["safe"] = row.get(config.safe)
        if not isinstance(found["safe"], bool):
            raise ValueError(
                f"column '{config.safe}' is {found['safe']!r}, expected true or false: set PreferenceFileConfig.safe"
            )
    return found


def read_row(line: str) -> dict[str, Any]:
    """The JSON object on a line, numbers as they are written. Raises ValueError for anything else."""
    try:
        row = json.loads(line, parse_float=str, parse_int=str)  # the float of 0.00005 is written 5e-05
    except (ValueError, RecursionError) as error:
        raise ValueError(f"invalid JSON ({error}), expected one object on each line") from error
    if not isinstance(row, dict):
        raise ValueError(f"got {line.strip()[:80]!r}, expected one JSON object on each line")
    return row


def read_line(line: str, config: JsonlConfig) -> tuple[str, str]:
    """A line's question and answer. Raises ValueError with the field of `JsonlConfig` to set."""
    row = read_row(line)
    question = column_text(row, config.question, "question")
    text = column_text(row, config.answer, "answer")
    answer = ANSWER_FORMS[config.answer_form](text)
    if not answer:
        raise ValueError(
            f"column '{config.answer}' has {text[-80:]!r}, expected an answer of the form '{config.answer_form}':"
            " set JsonlConfig.answer or JsonlConfig.answer_form"
        )
    return question, answer


def column_text(row: dict[str, Any], column: str, field: str, setting: str = "JsonlConfig") -> str:
    """A column's text or number, as non-empty text. Raises ValueError for anything else."""
    if column not in row:
        columns = ", ".join(f"'{name}'" for name in row)
        raise ValueError(f"no column '{column}' among {columns}: set {setting}.{field} to one of them")
    value = row[column]
    text = str(value).strip() if any(fits(value, kind) for kind in (str, int, float)) else ""
    text.encode()  # raises ValueError for half of a surrogate pair, which no file could hold
    if not text:
        raise ValueError(f"column '{column}' is {value!r}, expected text or a number: set {setting}.{field}")
    return text


def after_hashes(text: str) -> str:
    """GSM8K's form (arXiv 2110.14168): the number after the last ####, without thousands separators; else ""."""
    last = text.rpartition("####")[2] if "####" in text else ""
    return re.sub(r"(?<=[0-9]),(?=[0-9]{3})", "", last.strip())


def last_box(text: str) -> str:
    r"""MATH's form (arXiv 2103.03874): the contents of the last \boxed{…}, else ""; \{ and \} are no braces."""
    start = max(text.rfind(r"\boxed"), text.rfind(r"\fbox"))
    box = re.sub(r"^\\(boxed|fbox)\s*", "", text[start:]) if start >= 0 else ""
    if not box.startswith("{"):
        return box.partition("$")[0].strip()  # \boxed 5$: MATH has a few without braces
    depth = 0
    for match in re.finditer(r"\\.|[{}]", box, re.DOTALL):
        depth += {"{": 1, "}": -1}.get(match[0], 0)
        if depth == 0:
            return box[1 : match.start()].strip()
    return ""


ANSWER_FORMS: dict[str, Callable[[str], str]] = {"plain": str.strip, "hashes": after_hashes, "boxed": last_box}
