r"""Accuracy on problems with one checkable answer (R1, section 2.2.2): extracts the answer and compares it.

Plain numbers are compared exactly in this process. Other answers go to math-verify in a pool of processes that can be
killed (`equality.py`, `workers.py`), after guards reject those that could fool or stall it. Doubtful answers are wrong,
since RL finds every false positive. Known limits: math-verify accepts $x^2 - 1$ for $(x - 1)(x + 1)$, and compares
decimals with roots and fractions of roots to six places.
"""

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from fractions import Fraction

from r1jax.rewards.workers import Workers
from r1jax.types import Sample

MAX_LENGTH = 1000  # characters of an answer
MAX_DEPTH = 12  # of nested brackets
MAX_EXPONENT = 10**6  # the product of all numbers in exponents


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


# ---- reading

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
# Not units: these words change the number before them, or take it back.
NOT_UNITS = frozenset(
    """hundred hundreds thousand thousands million millions billion billions trillion trillions dozen dozens score
    half halves third thirds quarter quarters fourth fourths fifth fifths tenth tenths hundredth hundredths thousandth
    thousandths one two three four five six seven eight nine ten eleven twelve twenty thirty forty fifty sixty seventy
    eighty ninety zero squared cubed factorial percent percentage pct times plus minus over and or not isn maybe point
    mod pi infinity inf sqrt root sin cos tan log exp e i n x y z""".split()
)


@dataclass(frozen=True)
class Answer:
    """The parts of `x = 5 cm`."""

    value: str
    name: str = ""
    unit: str = ""


def read(text: str) -> Answer:
    """An answer without delimiters, with its name and its unit apart."""
    # Converts digits of other scripts, but not ², ½ or Ⅳ.
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
    """Splits "5 cm" into ("5", "cm"); percent is a unit."""
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
    value = (Fraction(match["whole"] or 0) + top / bottom) * Fraction(10) ** int((match["power"] or "0").strip("{ }"))
    return -value if match["sign"] == "-" else value


# ---- guards before sympy

SEVERAL = re.compile(r"(?<![A-Za-z\\])(?:or|either|maybe|not)(?![A-Za-z])|\\lor|\\vee|\?")
EXPONENT = re.compile(r"\s*(?:\^|\*\*)\s*")
EXPONENT_TOKEN = re.compile(r"-?(?:[0-9]+|\\[a-zA-Z]+(?:\s*\{[^{}]*\})*|.)?", re.DOTALL)
SMALL_POWER = re.compile(r"(?<=[a-z])\s*\^\s*(?:[0-9]|\{\s*[0-9]\s*\})")  # x^2: always harmless
FACTORIAL = re.compile(r"(?<![0-9])(?:[0-9]{1,3}|[a-z])\s*!")
UNFINISHED = re.compile(r"\\(?:int|iint|oint|sum|prod|lim|frac\s*\{\s*d\s*\}|binom|dbinom|tbinom)(?![a-z])")
# Where the gold answer is a plain number, unevaluated arithmetic restates the question.
CALCULATION = re.compile(
    r"[*×·÷!=≈_:|]|\\(?:times|cdot|div|approx|sqrt|log|ln)(?![a-z])|[0-9]\s+[0-9]|[\w)}\]+-]\s*[+/-]"
)


def explodes(text: str) -> bool:
    """Whether an answer is malformed, too deep or too large to compute, as no correct answer is."""
    if not balanced(text) or "!" in FACTORIAL.sub("", text):
        return True
    powers = exponents(SMALL_POWER.sub("", text))
    numbers = [max(1, int(digits)) for power in powers for digits in re.findall("[0-9]{1,20}", power)]
    return math.prod(numbers) > MAX_EXPONENT or any(EXPONENT.search(power) or "!" in power for power in powers)


def balanced(text: str) -> bool:
    """Whether braces close and brackets aren't too deep. Brackets needn't match: [1, 2) is an interval."""
    braces = brackets = 0
    for sign in re.findall(r"\\.|[{}()\[\]]", text, re.DOTALL):
        braces += {"{": 1, "}": -1}.get(sign, 0)
        brackets += {"(": 1, "[": 1, ")": -1, "]": -1}.get(sign, 0)
        if braces < 0 or braces + brackets > MAX_DEPTH:
            return False
    return braces == 0


def exponents(text: str) -> list[str]:
    """The group or token after each ^ or **, with a ^ appended if it is the base of a tower."""
    found = []
    for match in EXPONENT.finditer(text):
        start = end = match.end()
        depth = 0
        for part in re.findall(r"[{(})]|[^{(})]+", text[start:]) if text[start : start + 1] in ("{", "(") else ():
            depth += {"{": 1, "(": 1, "}": -1, ")": -1}.get(part, 0)
            end += len(part)
            if depth == 0:
                break
        if end == start:
            token = EXPONENT_TOKEN.match(text, start)
            end = token.end() if token else start
        found.append(text[start:end] + ("^" if EXPONENT.match(text, end) else ""))
    return found


# ---- comparison


def decide(answer: Answer, gold: Answer) -> bool | None:
    """Whether the answer is correct, or None when that takes algebra."""
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
    """The value without spaces and fraction sizes, and the unit: settles most correct answers without sympy."""
    text = re.sub(r"\\[dt]frac(?![a-z])", r"\\frac", answer.value)
    return re.sub(r"(?<![A-Za-z0-9\\])\s+|\s+(?![A-Za-z0-9])", "", text), answer.unit


def same_number(given: Fraction, wanted: Fraction, given_percent: bool, wanted_percent: bool) -> bool:
    """Equality of numbers of which either may be a percentage: 50% is 1/2, or 50, but 0.5% is not 0.5."""
    if given_percent == wanted_percent:
        return given == wanted
    if given == wanted and abs(given) > 1:
        return True
    return given / (100 if given_percent else 1) == wanted / (100 if wanted_percent else 1)


Extract = Callable[[str], str | None]
EXTRACT: dict[str, Extract] = {"marked": extract_answer, "last_number": last_number}  # by PromptConfig.answer


class MathVerifier(AbstractContextManager):
    """Grades responses by a pool of processes, with `seconds` for each comparison; leaving its context ends them.

    `extract` finds the text of a response's answer, None without one.
    """

    def __init__(self, processes: int = 2, seconds: float = 5.0, extract: Extract = extract_answer):
        self.workers, self.extract = Workers("r1jax.rewards.equality:equal", processes, seconds), extract

    def verify(self, pairs: Sequence[tuple[str, str]]) -> list[float | None]:
        """1 or 0 for each (response, gold answer); None where math-verify failed, and for an empty gold answer."""
        verdicts: list[bool | None] = []
        undecided: dict[int, tuple[str, str]] = {}
        for i, (response, gold_text) in enumerate(pairs):
            answer, gold = read_response(response, self.extract), read(gold_text)
            verdict = decide(answer, gold) if answer else False
            verdicts.append(verdict if gold.value else None)
            if answer and gold.value and verdict is None:
                undecided[i] = (latex(answer), latex(gold))
        distinct = list(dict.fromkeys(undecided.values()))  # a group's samples often agree
        equal = dict(zip(distinct, self.workers.map(distinct), strict=True))
        for i, pair in undecided.items():
            verdicts[i] = equal[pair]
        return [None if verdict is None else float(verdict) for verdict in verdicts]

    def answer(self, sample: Sample) -> str | None:
        """The normalised answer, None without one: 0.50 and 1/2 are one answer, spaces and sizes don't matter."""
        answer = read_response(sample.text, self.extract)
        if answer is None:
            return None
        value = number(answer.value)
        named = f"{answer.name} = " if answer.name else ""
        return f"{named}{spelling(answer)[0] if value is None else value} {answer.unit}".rstrip()

    def grade(self, samples: Sequence[Sample]) -> list[float | None]:
        """1 for a correct answer, else 0; None where math-verify failed."""
        return self.verify([(sample.text, sample.problem.answer) for sample in samples])

    @property
    def failures(self) -> Counter[str]:
        """Comparisons that exceeded their time or crashed; their result is None."""
        return Counter(timeouts=self.workers.timeouts, crashes=self.workers.crashes)

    def __exit__(self, *exception: object) -> None:
        self.workers.close()


def read_response(response: str, extract: Extract = extract_answer) -> Answer | None:
    """A response's answer; None when it has none, or one that is empty or longer than MAX_LENGTH."""
    text = extract(response)
    answer = read(text) if text is not None and len(text) <= MAX_LENGTH else None
    return answer if answer and answer.value else None


def latex(answer: Answer) -> str:
    """The value for math-verify, after names and units were compared; only percent changes it."""
    return answer.value + (r"\%" if answer.unit == "%" else "")
