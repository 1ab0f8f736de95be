r"""Accuracy on problems with one checkable answer (R1, section 2.2.2): extracts the answer and compares it.

Numbers are compared exactly in this process, and lists, intervals and matrices by their elements (`answers.py`,
`closed_forms.py`). What takes algebra goes to math-verify in a pool of processes that can be killed (`equality.py`,
`workers.py`). Known limit: expressions count in any form, as (x - 1)(x + 1) for $x^2 - 1$.
"""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict

from r1jax.rewards.answers import Answer, canonical, decide, read
from r1jax.rewards.answers import explodes as explodes
from r1jax.rewards.closed_forms import DIGITS, MAX_LENGTH
from r1jax.rewards.closed_forms import number as number
from r1jax.rewards.workers import Workers
from r1jax.types import Sample

# ---- extraction


def extract_answer(response: str) -> str | None:
    r"""The answer of a response, or None when it has none or several.

    It is the contents of the only <answer> … </answer>, or of the only \boxed{…} in it; without tags, of the last
    \boxed{…}; else the line after the last #### (GSM8K's form). Thinking is ignored, even if it doesn't end.
    """
    text = response.rpartition("</think>")[2].partition("<think>")[0]
    tags = list(re.finditer(r"</?answer>", text))
    if tags:
        once = [tag[0] for tag in tags] == ["<answer>", "</answer>"]
        return only_box(text[tags[0].end() : tags[1].start()]) if once else None
    box = max(text.rfind(r"\boxed"), text.rfind(r"\fbox"))
    if box >= 0:
        return only_box(text[box:])
    final = text.rpartition("####")
    return (final[2].strip().split("\n")[0].strip() or None) if final[1] else None


def last_number(response: str) -> str | None:
    """The last number of a response, wherever it stands; None without one."""
    numbers = re.findall(rf"(?<![\w.])[+-]?(?:{DIGITS})(?:/(?:{DIGITS}))?", response)
    return numbers[-1].rstrip(".") if numbers else None


def last_number_reward(sample: Sample) -> float:
    """1 if the last number of a response is the answer, in whatever form: what is learnt beside the format."""
    return float(last_number(sample.text) == sample.problem.answer)


def only_box(text: str) -> str | None:
    """The contents of the text's only box, or the text when it has none; None when boxes differ or don't end."""
    text = text.strip()
    for _ in range(3):  # boxes in boxes
        if not re.search(r"\\(boxed|fbox)", text):
            return text or None
        contents = boxes(text)
        if contents is None or len(set(contents)) != 1:
            return None
        text = contents[0].strip()
    return None


def boxes(text: str) -> list[str] | None:
    """The contents of the outermost boxes; None when a box has no end."""
    contents: list[str] = []
    end = 0
    for match in re.finditer(r"\\(?:boxed|fbox)\b", text):
        if match.start() >= end:
            brace = re.compile(r"\s*\{").match(text, match.end())
            close = closing_brace(text, brace.end()) if brace else None
            if brace is None or close is None:
                return None
            contents.append(text[brace.end() : close])
            end = close
    return contents


def closing_brace(text: str, start: int) -> int | None:
    r"""Position of the brace that closes the one opened before `start`. \{ and \} are set signs, not braces."""
    depth = 1
    for match in re.compile(r"\\.|[{}]", re.DOTALL).finditer(text, start):
        depth += {"{": 1, "}": -1}.get(match[0], 0)
        if depth == 0:
            return match.start()
    return None


Extract = Callable[[str], str | None]
EXTRACT: dict[str, Extract] = {"marked": extract_answer, "last_number": last_number}  # by PromptConfig.answer


class MathVerifier(AbstractContextManager):
    """Grades responses by a pool of processes, with `seconds` for each comparison; leaving its context ends them.

    `extract` finds the text of a response's answer, None without one.
    """

    def __init__(self, processes: int = 2, seconds: float = 5.0, extract: Extract = extract_answer):
        self.workers, self.extract = Workers("r1jax.rewards.equality:equal", processes, seconds), extract

    def verify(self, pairs: Sequence[tuple[str, str]]) -> list[float | None]:
        """1 or 0 for each (response, gold answer); None for an empty gold answer, and one that math-verify fails on.

        It is 0 for an answer that makes math-verify fail.
        """
        verdicts: list[bool | None] = []
        undecided: dict[int, tuple[Answer, Answer]] = {}
        for i, (response, gold_text) in enumerate(pairs):
            answer, gold = read_response(response, self.extract), read(gold_text)
            verdict = decide(answer, gold) if answer else False
            verdicts.append(verdict if gold.value else None)
            if answer and gold.value and verdict is None:
                undecided[i] = (answer, gold)
        distinct = list(dict.fromkeys(undecided.values()))  # a group's samples often agree
        items, good = (
            [[asdict(part) for part in pair] for pair in pairs] for pairs in (distinct, [(g, g) for _, g in distinct])
        )
        equal = dict(zip(distinct, self.workers.verdicts(items, good), strict=True))
        for i, pair in undecided.items():
            verdicts[i] = equal[pair]
        return [None if verdict is None else float(verdict) for verdict in verdicts]

    def answer(self, sample: Sample) -> str | None:
        """The normalised answer, None without one: 0.50 and 1/2 are one answer, spaces and sizes don't matter."""
        answer = read_response(sample.text, self.extract)
        if answer is None:
            return None
        named = f"{answer.name} = " if answer.name else ""
        return f"{named}{answer.currency}{canonical(answer)} {answer.unit}".rstrip()

    def grade(self, samples: Sequence[Sample]) -> list[float | None]:
        """1 for a correct answer, else 0; None where the gold answer can't be compared."""
        return self.verify([(sample.text, sample.problem.answer) for sample in samples])

    @property
    def failures(self) -> Counter[str]:
        """Comparisons that exceeded their time or crashed."""
        return Counter(timeouts=self.workers.timeouts, crashes=self.workers.crashes)

    def __exit__(self, *exception: object) -> None:
        self.workers.close()


def read_response(response: str, extract: Extract = extract_answer) -> Answer | None:
    """A response's answer; None when it has none, or one that is empty or longer than MAX_LENGTH."""
    text = extract(response)
    answer = read(text) if text is not None and len(text) <= MAX_LENGTH else None
    return answer if answer and answer.value else None
