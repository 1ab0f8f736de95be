r"""Accuracy on problems with one checkable answer (R1, section 2.2.2): what the answer is, and whether it is right.

Plain numbers are compared exactly, here. Everything else goes to math-verify in a pool of processes that can be killed
(`equality.py`, `workers.py`); before that, guards drop what could only be there to fool or to stall it. Where in doubt
an answer is wrong: RL finds every false positive. Known and left: math-verify takes $x^2 - 1$ for $(x - 1)(x + 1)$, and
compares decimals with roots and fractions of roots to six places.
"""

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from r1jax.rewards.workers import Workers
from r1jax.types import Sample

MAX_LENGTH = 1000  # characters of an answer
MAX_DEPTH = 12  # of brackets in it
MAX_EXPONENT = 10**6  # the product of all numbers that stand in exponents


# ---- what the answer is


def extract_answer(response: str) -> str | None:
    r"""The answer of a response, or None when it gives none, or more than one.

    What stands in its only <answer> … </answer>, and there in its only \boxed{…}, if it has one; without these tags the
    last \boxed{…}, or else what follows the last #### (GSM8K's form). Thinking never counts, finished or not.
    """
    said = response.rpartition("</think>")[2].partition("<think>")[0]
    tags = [m.span() for m in re.finditer(r"</?answer>", said)]
    if tags:
        return only_box(said[tags[0][1] : tags[1][0]]) if exactly_once(said) else None
    box = max(said.rfind(r"\boxed"), said.rfind(r"\fbox"))
    if box >= 0:
        return only_box(said[box:])
    final = said.rpartition("####")
    return (final[2].strip().split("\n")[0].strip() or None) if final[1] else None


def exactly_once(said: str) -> bool:
    return re.findall(r"</?answer>", said) == ["<answer>", "</answer>"]


def only_box(text: str) -> str | None:
    """What the text's only box holds, or the text when it has none; None when boxes differ or don't end."""
    text = text.strip()
    for _ in range(3):  # boxes in boxes
        if not re.search(r"\\(boxed|fbox)", text):
            return text or None
        held = boxes(text)
        if held is None or len(set(held)) != 1:
            return None
        text = held[0].strip()
    return None


def boxes(text: str) -> list[str] | None:
    """What each outermost box of the text holds; None when a box has no end."""
    held: list[str] = []
    end = 0
    for match in re.finditer(r"\\(?:boxed|fbox)\b", text):
        if match.start() >= end:
            brace = re.compile(r"\s*\{").match(text, match.end())
            close = closing_brace(text, brace.end()) if brace else None
            if brace is None or close is None:
                return None
            held.append(text[brace.end() : close])
            end = close
    return held


def closing_brace(text: str, start: int) -> int | None:
    r"""Where the brace closes that was opened before `start`. \{ and \} are signs of a set, not braces."""
    depth = 1
    for match in re.compile(r"\\.|[{}]", re.DOTALL).finditer(text, start):
        depth += {"{": 1, "}": -1}.get(match[0], 0)
        if depth == 0:
            return match.start()
    return None


# ---- how it is read

DIGITS = r"(?:[1-9][0-9]{0,2}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]*)?|\.[0-9]+"
NUMBER = re.compile(
    rf"(?P<sign>[+-]?)\s*(?:(?P<whole>[0-9]+)\s+(?=[0-9]+\s*/))?(?P<top>{DIGITS})(?:\s*/\s*(?P<bottom>{DIGITS}))?"
    r"(?:\s*(?:\\times|\\cdot|×)\s*10\s*\^\s*(?P<power>-?[0-9]|\{\s*-?[0-9]{1,2}\s*\}))?"
)
FRACTION = re.compile(r"\\[dtc]?frac\s*(?:\{\s*(-?[0-9.]+)\s*\}|([0-9]))\s*(?:\{\s*([0-9.]+)\s*\}|([0-9]))")
LATEX_THOUSANDS = re.compile(r"(?<=[0-9])(?:\{,\}|,?\\[,!])(?=[0-9]{3}(?![0-9]))")
DELIMITERS = [("$$", "$$"), ("$", "$"), (r"\(", r"\)"), (r"\[", r"\]"), ("**", "**")]

NAME = re.compile(r"(?P<name>[A-Za-z])\s*=\s*(?P<value>[^=<>]+)")
PERCENT = re.compile(r"(?P<value>.*[^\s\\])\s*(?:\\?%|\bper ?cent|\\text\s*\{\s*percent\s*\})", re.DOTALL)
DEGREES = re.compile(r"(?P<value>.*[0-9)}])\s*(?:\^\s*\\circ|\^\s*\{\s*\\circ\s*\}|\\degree|°)", re.DOTALL)
LATEX_UNIT = re.compile(
    r"(?P<value>.*?[0-9)}\]])(?:\s|~|\\[ ,;:!])*"
    r"\\(?:text|textrm|mathrm|mbox)\s*(?P<unit>\{[A-Za-z./ ]+\}(?:\^\{?[23]\}?)?)",
    re.DOTALL,
)
WORD_UNIT = re.compile(
    r"(?P<value>.*[0-9}])(?:\s*(?P<short>[cmk]m|k?g|ft|lbs?|mph|hrs?)|\s+(?P<long>[A-Za-z]{3,}(?: [A-Za-z]{3,}){0,2}))"
)
# Words that are no unit: they make another number of the one before them, or take it back.
NOT_UNITS = frozenset(
    """hundred hundreds thousand thousands million millions billion billions trillion trillions dozen dozens score
    half halves third thirds quarter quarters fourth fourths fifth fifths tenth tenths hundredth hundredths thousandth
    thousandths one two three four five six seven eight nine ten eleven twelve twenty thirty forty fifty sixty seventy
    eighty ninety zero squared cubed factorial percent percentage pct times plus minus over and or not isn maybe point
    mod pi infinity inf sqrt root sin cos tan log exp e i n x y z""".split()
)


@dataclass(frozen=True)
class Answer:
    """`x = 5 cm` in its parts."""

    value: str
    name: str = ""
    unit: str = ""


def read(text: str) -> Answer:
    """An answer without the marks around it, and with its name and its unit apart."""
    # Digits of other scripts are these digits; other signs that look like digits (², ½, Ⅳ) are not.
    text = "".join(str(unicodedata.decimal(c, c)) for c in text).replace("−", "-")
    text = text.strip().removesuffix(".").rstrip()
    for opens, closes in DELIMITERS:
        inner = text.removeprefix(opens).removesuffix(closes)
        if len(inner) == len(text) - len(opens) - len(closes) and opens not in inner:
            text = inner.strip()
    text = re.sub(r"\\(?:left|right)(?![a-zA-Z])\s*", "", LATEX_THOUSANDS.sub(",", text))
    whole = re.fullmatch(r"\\(?:text|textbf|mathrm|mathbf|mbox)\s*\{([^{}]*)\}|\(([A-Z])\)", text)
    text = (whole[1] or whole[2] or "").strip() if whole else text
    name = NAME.fullmatch(text)
    value, unit = split_unit(name["value"].strip() if name else text)
    return Answer(re.sub(r"^([+-]?)\s*(?:\\?\$|[€£¥])\s*", r"\1", value), name["name"] if name else "", unit)


def split_unit(text: str) -> tuple[str, str]:
    """("5", "cm") of "5 cm". Percent is a unit here."""
    for pattern, unit in ((PERCENT, "%"), (DEGREES, "degree")):
        if match := pattern.fullmatch(text):
            return match["value"].strip(), unit
    match = LATEX_UNIT.fullmatch(text) or WORD_UNIT.fullmatch(text)
    if match is None:
        return text, ""
    unit = (match["unit"] if match.re is LATEX_UNIT else match["short"] or match["long"]).lower()
    if NOT_UNITS & set(re.findall("[a-z]+", unit)):
        return text, ""
    if match.re is WORD_UNIT and number(match["value"].lstrip("\\$ ")) is None:
        return text, ""
    return match["value"].strip(), re.sub(r"[{}\s.]", "", unit).rstrip("s")


def number(text: str) -> Fraction | None:
    r"""The exact value of 1,234, -0.50, 3/4, 1 1/2, \frac{3}{4}, 10^5 or 3 \times 10^5; None for anything else."""
    text = FRACTION.sub(lambda m: f" {m[1] or m[2]}/{m[3] or m[4]} ", text, count=1).strip()
    text = re.sub(r"^([+-]?)\s*10\s*\^", r"\g<1>1 \\times 10^", text)
    match = NUMBER.fullmatch(text) if len(text) <= MAX_LENGTH else None
    if match is None:
        return None
    top, bottom = (Fraction((match[part] or "1").replace(",", "")) for part in ("top", "bottom"))
    if bottom == 0:
        return None
    size = (Fraction(match["whole"] or 0) + top / bottom) * Fraction(10) ** int((match["power"] or "0").strip("{ }"))
    return -size if match["sign"] == "-" else size


# ---- what must not reach sympy

SEVERAL = re.compile(r"(?<![A-Za-z\\])(?:or|either|maybe|not)(?![A-Za-z])|\\lor|\\vee|\?")
EXPONENT = re.compile(r"\s*(?:\^|\*\*)\s*")
EXPONENT_TOKEN = re.compile(r"-?(?:[0-9]+|\\[a-zA-Z]+(?:\s*\{[^{}]*\})*|.)?", re.DOTALL)
SMALL_POWER = re.compile(r"(?<=[a-z])\s*\^\s*(?:[0-9]|\{\s*[0-9]\s*\})")  # x^2: harmless wherever it stands
FACTORIAL = re.compile(r"(?<![0-9])(?:[0-9]{1,3}|[a-z])\s*!")
UNFINISHED = re.compile(r"\\(?:int|iint|oint|sum|prod|lim|frac\s*\{\s*d\s*\}|binom|dbinom|tbinom)(?![a-z])")
# With a plain number as gold, arithmetic that is still to be done is the question again.
CALCULATION = re.compile(
    r"[*×·÷!=≈_:|]|\\(?:times|cdot|div|approx|sqrt|log|ln)(?![a-z])|[0-9]\s+[0-9]|[\w)}\]+-]\s*[+/-]"
)


def explodes(text: str) -> bool:
    """Whether an answer is broken, too deep or too large to be computed: no right answer is."""
    if not balanced(text) or "!" in FACTORIAL.sub("", text):
        return True
    powers = exponents(SMALL_POWER.sub("", text))
    numbers = [max(1, int(digits)) for power in powers for digits in re.findall("[0-9]{1,20}", power)]
    return math.prod(numbers) > MAX_EXPONENT or any(EXPONENT.search(power) or "!" in power for power in powers)


def balanced(text: str) -> bool:
    """Whether braces close, and brackets are not too deep. Brackets need not match: [1, 2) is an interval."""
    braces = brackets = 0
    for mark in re.findall(r"\\.|[{}()\[\]]", text, re.DOTALL):
        braces += {"{": 1, "}": -1}.get(mark, 0)
        brackets += {"(": 1, "[": 1, ")": -1, "]": -1}.get(mark, 0)
        if braces < 0 or braces + brackets > MAX_DEPTH:
            return False
    return braces == 0


def exponents(text: str) -> list[str]:
    """What stands after each ^ or **: a group or a token, and one more ^ if it is the base of a tower."""
    found = []
    for match in EXPONENT.finditer(text):
        start = end = match.end()
        depth = 0
        for mark in re.findall(r"[{(})]|[^{(})]+", text[start:]) if text[start : start + 1] in ("{", "(") else ():
            depth += {"{": 1, "(": 1, "}": -1, ")": -1}.get(mark, 0)
            end += len(mark)
            if depth == 0:
                break
        if end == start:
            token = EXPONENT_TOKEN.match(text, start)
            end = token.end() if token else start
        found.append(text[start:end] + ("^" if EXPONENT.match(text, end) else ""))
    return found


# ---- whether it is right


def decide(answer: Answer, gold: Answer) -> bool | None:
    """Right or wrong where that needs no algebra; None where it does."""
    if any(a and g and a != g for a, g in ((answer.unit, gold.unit), (answer.name, gold.name))):
        return False
    given, wanted = number(answer.value), number(gold.value)
    if given is not None and wanted is not None:
        return same_number(given, wanted, answer.unit == "%", gold.unit == "%")
    if answer == gold or (wanted is None and spelling(answer) == spelling(gold)):
        return True
    if explodes(answer.value) or (UNFINISHED.search(answer.value) and not UNFINISHED.search(gold.value)):
        return False
    if SEVERAL.search(answer.value) and not SEVERAL.search(gold.value) and "," not in gold.value:
        return False
    if wanted is not None and CALCULATION.search(answer.value):
        return False
    if re.fullmatch(r"[A-Za-z]{4,}(?: [A-Za-z]+)*", gold.value):  # words
        return answer.value.casefold() == gold.value.casefold()
    return None


def spelling(answer: Answer) -> tuple[str, str]:
    """The value without the spaces and the sizes of fractions that change nothing: spares most right answers sympy."""
    text = re.sub(r"\\[dt]frac(?![a-z])", r"\\frac", answer.value)
    return re.sub(r"(?<![A-Za-z0-9\\])\s+|\s+(?![A-Za-z0-9])", "", text), answer.unit


def same_number(given: Fraction, wanted: Fraction, given_percent: bool, wanted_percent: bool) -> bool:
    """50% is 1/2, and 50 where one side left the sign out; below 1 a number is what it says."""
    if given_percent == wanted_percent:
        return given == wanted
    if given == wanted and abs(given) > 1:
        return True
    return given / (100 if given_percent else 1) == wanted / (100 if wanted_percent else 1)


class MathVerifier:
    """Grades responses; holds the processes that do it."""

    def __init__(self, processes: int = 2, seconds: float = 5.0):
        self.workers = Workers("r1jax.rewards.equality:equal", processes, seconds)

    def verify(self, pairs: Sequence[tuple[str, str]]) -> list[float | None]:
        """1 or 0 for each (response, gold answer); None where math-verify died or hung, or there is no gold answer.

        Raises RunError when math-verify can't be started.
        """
        verdicts: list[bool | None] = []
        open_questions: dict[int, tuple[str, str]] = {}
        for place, (response, gold_text) in enumerate(pairs):
            text, gold = extract_answer(response), read(gold_text)
            answer = read(text) if text is not None and len(text) <= MAX_LENGTH else None
            verdict = False if answer is None or not answer.value else decide(answer, gold)
            verdicts.append(verdict if gold.value else None)
            if answer is not None and gold.value and verdict is None:
                open_questions[place] = (latex(answer), latex(gold))
        different = list(dict.fromkeys(open_questions.values()))  # a group's samples often agree
        found = dict(zip(different, self.workers.map(different), strict=True))
        for place, question in open_questions.items():
            verdicts[place] = found[question]
        return [None if verdict is None else float(verdict) for verdict in verdicts]

    def answer(self, sample: Sample) -> str | None:
        """As `verify` reads it: 0.50 and 1/2 are one answer, and so is one text however it is spaced."""
        text = extract_answer(sample.text)
        answer = read(text) if text is not None and len(text) <= MAX_LENGTH else None
        if answer is None or not answer.value:
            return None
        value = number(answer.value)
        named = f"{answer.name} = " if answer.name else ""
        return f"{named}{spelling(answer)[0] if value is None else value} {answer.unit}".rstrip()

    def grade(self, samples: Sequence[Sample]) -> list[float | None]:
        """The reward of many samples at once, which keeps all processes busy."""
        return self.verify([(sample.text, sample.problem.answer) for sample in samples])

    @property
    def failures(self) -> Counter[str]:
        """Each of these cost its questions their verdict: None."""
        return Counter(timeouts=self.workers.timeouts, crashes=self.workers.crashes)

    def close(self) -> None:
        self.workers.close()

    def __enter__(self) -> "MathVerifier":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def latex(answer: Answer) -> str:
    """The answer for math-verify: names and units have been compared, percent has a value."""
    return answer.value + (r"\%" if answer.unit == "%" else "")
