r"""Reads the text of an answer, and compares it with the gold answer part by part, without sympy.

An answer is an answer, not work to do: where the gold answer is a number, only closed forms count (`closed_forms.py`);
elsewhere, only commands that the gold answer has, too. Relations count in solved form, as 1 < x \le 2 or x = 5.
Doubtful answers are wrong, since RL finds every false positive.
"""

import math
import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass, replace
from fractions import Fraction

from r1jax.rewards.closed_forms import DIGITS, MAX_DEPTH, PLAIN, ClosedForm, closed_form, digits, number

MAX_EXPONENT = 10**6  # the product of all numbers in exponents

# ---- reading

TEXT = r"\\(?:text(?:rm|bf|it|sf|tt|up|normal)?|math(?:rm|bf|it|sf)|boldsymbol|bm|[mh]box|operatorname)(?![a-z])\s*"
LATEX_THOUSANDS = re.compile(r"(?<=[0-9])(?:\{,\}|,?\\[,!]\s*)(?=[0-9]{3}(?![0-9]))")
DELIMITERS = [("$$", "$$"), ("$", "$"), (r"\(", r"\)"), (r"\[", r"\]"), ("**", "**")]
SPACE = re.compile(r"(\\\\)|~|\\[,;:! ]|\\q?quad(?![a-z])|\\(?:left|right|displaystyle)(?![a-zA-Z])\s*")
SIGNS = str.maketrans(
    {"−": "-", "–": "-", "≤": r"\le ", "≥": r"\ge ", "≠": r"\ne ", "∞": r"\infty ", "∪": r"\cup ", "∈": r"\in "}
    | {"π": r"\pi "}
)
SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻", "0123456789-")
NOTATION = [  # what is written in several ways, and the one in which it is compared
    (re.compile(pattern), usual)
    for pattern, usual in {
        r"\\not\s*=": r"\\ne ",
        r"\\varnothing(?![a-z])": r"\\emptyset",
        r"\\[dt](frac|binom)(?![a-z])": r"\\\1",
        r"\\[lr]?vert(?![a-z])": "|",
        r"\\langle((?:(?!\\[lr]angle)[^,])*,(?:(?!\\[lr]angle).)*)\\rangle(?![a-z])": r"(\1)",
        r"\\mathbb\s*([A-Z])": r"\\mathbb{\1}",
        r"\\dot\s*\{?([0-9])\}?([0-9]*)\\dot\s*\{?([0-9])\}?": r"\\overline{\1\2\3}",  # the ends of a period
        r"\\(?:mathrm|operatorname)\s*\{\s*((?:arc)?(?:sin|cos|tan)|ln|log|cot)\s*\}": r"\\\1 ",
    }.items()
]
UPRIGHT = re.compile(rf"{TEXT}(?:\{{\s*([ei])\s*\}}|([ei])(?![A-Za-z]))")  # the numbers e and i
CURRENCY = re.compile(r"^([+-]?)\s*(\\?\$|[€£¥₹])\s*|\s*(\\\$|[€£¥₹¢])$")
WHOLE_TEXT = re.compile(rf"{TEXT}\{{([^{{}}]*)\}}|\(([A-Z])\)")
LETTERS = re.compile(r"[A-Za-z][A-Za-z ,.'&-]*|[A-Za-z]{3}[A-Za-z0-9 ,.'&-]*")
WORDS = re.compile(r"[A-Za-z]{3,}(?: [A-Za-z0-9]+)*|[A-Z]{2,}|[Nn]o")

RELATION = re.compile(
    r"[=<>≈]|\\(?:[lg]e|[lg]eq|[lg]eqslant|[lg]t|neq?|in|notin|approx|equiv|subset|subseteq|sim|cong|to|mid)(?![a-zA-Z])"
)
LETTER = r"(?:[A-Za-z]|\\(?:alpha|beta|gamma|delta|epsilon|theta|lambda|mu|omega|phi|rho|sigma|tau)(?![a-z]))"
POINT = rf"(?:{LETTER}|-?(?:{DIGITS})(?:/[0-9]+)?|-?\\frac\{{[0-9]+\}}\{{[0-9]+\}}|[A-Z]\\c[au]p[A-Z]|{TEXT}\{{\w+\}})"
NAME = re.compile(  # of what is equal to a value, without spaces
    rf"{LETTER}'*(?:_(?:\w|\{{[\w,]+\}}))?"  # x, \theta, x_1
    rf"|[fghpqEFGHPQSTV](?:_\w)?(?:'+|\^\{{-1\}})?\((?:{POINT}|[fgh]\({POINT}\))\)"  # f(2)
    r"|(?:m?\\(?:angle|triangle)|\\(?:overline|overrightarrow|vec)\{|\||\[)?[A-Z]{1,4}(?:\}|\||\])?"  # AB
    rf"|{TEXT}\{{[A-Za-z]+\}}|[A-Z][a-z]{{2,}}|answer|area|perimeter|sum|total|volume"
    r"|\([a-z](?:,[a-z])+\)"  # (x, y)
)
INEQUALITY = re.compile(r"([<>]=?|\\(?:[lg]t|[lg]e|[lg]eq|[lg]eqslant|neq?)(?![a-zA-Z]))")
MEMBER = re.compile(rf"({LETTER})\s*\\in(?![a-z])\s*(.+)", re.DOTALL)
EITHER = re.compile(rf"{TEXT}\{{\s*or\s*\}}|\bor\b|\\lor(?![a-z])|\\vee(?![a-z])")
BOTH = re.compile(rf"{TEXT}\{{\s*and\s*\}}|\band\b|\\land(?![a-z])|\\wedge(?![a-z])")

PERCENT = re.compile(rf"(?P<value>.*[^\s\\])\s*(?:\\?%|\bper ?cent|{TEXT}\{{\s*percent\s*\}})", re.DOTALL)
DEGREES = re.compile(
    r"(?P<value>.*[0-9)}])\s*(?:\^\s*\\circ|\^\s*\{\s*\\circ\s*\}|\\degree|°)"
    rf"\s*(?:(?:{TEXT})?\{{?\s*(?P<scale>[CF])\s*\}}?)?",
    re.DOTALL,
)
UNIT_POWER = r"(?:\s*\^\s*\{?\s*-?[0-9]\s*\}?)?"
UNIT_TEXT = rf"{TEXT}\{{(?:[A-Za-z./^0-9 ]|\\cdot|\{{-?[0-9]\}})+\}}{UNIT_POWER}"
UNIT_FRACTION = rf"\\frac\s*\{{\s*({UNIT_TEXT})\s*\}}\s*\{{\s*({UNIT_TEXT})\s*\}}"
LATEX_UNIT = re.compile(
    r"(?P<value>.*?(?:[0-9)}\]]|\\pi))\s*"
    rf"(?P<unit>{UNIT_TEXT}(?:\s*(?:(?:/|\\cdot)\s*)?{UNIT_TEXT}){{0,4}}|{UNIT_FRACTION})",
    re.DOTALL,
)
UNIT = r"(?:[cdkmn]?m|[km]?g|[km]?L|ml|ft|in|yd|mi|lbs?|oz|mph|kph|hrs?|h|min|sec|s|[km]?J|[km]?W|[km]?N|[km]?V|k?Hz)"
WORD_UNIT = re.compile(
    r"(?P<value>.*(?:[0-9)}]|\\pi(?=\s)))(?:\s*(?P<short>[AaPp]\.?[Mm]\.?|sq\.? +[a-z]+"
    rf"|[cmk]m|k?g|ml|ft|in|mi|lbs?|oz|mph|hrs?|min|sec|{UNIT}\^\{{?[23]\}}?"
    rf"|{UNIT}(?:\^[23])?\s*/\s*{UNIT}(?:\^\{{?[23]\}}?)?)"
    r"|\s+(?P<long>(?:US )?[A-Za-z]{3,}(?:/[a-z]+|(?: [A-Za-z]{3,}){0,2})))",
    re.DOTALL,
)
TIME = re.compile(r"[0-9]{1,2}:[0-9]{2}")
SHORT_UNITS = {
    name: short
    for short, names in {
        "s": "sec second", "min": "minute", "h": "hr hour", "m": "meter metre", "g": "gram", "l": "liter litre",
        "in": "inch inche", "ft": "foot feet", "yd": "yard", "mi": "mile", "lb": "pound", "oz": "ounce",
        "mi/h": "mph", "km/h": "kph kmph", "/": "per", "degree": "deg",
        "$": "dollar buck usd", "€": "euro eur", "£": "gbp quid", "¥": "yen jpy yuan rmb cny", "₹": "rupee inr",
        "¢": "cent penny pennie",
    }.items()
    for name in names.split()
}  # fmt: skip
# What can follow an amount of money: 5 per hour, 18 each, or nothing.
UNIT_OF_MONEY = re.compile("(?:/.*|total|each|apiece|left|more|extra|altogether|remaining|profit|unit)?")
# Not units: these words change the number before them, or take it back.
NOT_UNITS = re.compile(
    r"""(?:one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|\w+teen|zero|half|halve|third|quarter
    |(?:twen|thir|for|fif|six|seven|eigh|nine)t(?:y|ie)|(?:four|fif|six|seven|eigh|nin|ten|eleven|twelf|\w+teen|\w+tie)th
    |\w*(?:hundred|thousand|illion|illiard)(?:th|en)?|hundert|tausend|lakh|lac|crore|doz|dozen|score|gross|pair|couple
    |\w*mil[lhji]*(?:on[eiy]?|oen?|oan[ei]|ard[ei]?n?)|duizend|tusen|tysiac|cien|\w*ciento|cento|mila
    |docena|dozzina|dutzend|juta|ribu|ratus
    |myriad|grand|googol\w*|kharab|padma|neel|shankh|wan|oku|mln|deca|\w*fold
    |times|doubled?|halved|tripled?|quadrupled?|negated|inverted|inverse|reciprocal|recurring|repeating|repeated
    |binary|ternary|octal|hex|hexadecimal|tau|bil|percentile
    |\w+ly|guess\w*|wrong|incorrect|false|never|none|nothing|something|unsure|unknown|perhaps|instead|ish
    |if|but|unless|except|otherwise|wait|think|possible|probable|for|with|when|where|while|also|etc|remainder
    |rounded|estimated?|almost|about|around|circa|upward|onward|above|below
    |squared|cubed|factorial|mn|bn|tn|mil|mio|mrd|thou|kilo|mega|giga
    |percent|percentage|pct|\w*mille?|bps|ppm|basis|plus|minus|negative|power|root|sqrt|infinity|inf|pi)s?
    |over|and|or|not|isn|maybe|point|cube|arab|mod|base|sin|cos|tan|log|exp|(?-i:[abcinxyzkKMBT])""",
    re.VERBOSE | re.IGNORECASE,
)


@dataclass(frozen=True)
class Answer:
    """The parts of `x = 5 cm`. Solved inequalities are the interval of their variable."""

    value: str
    name: str = ""
    unit: str = ""
    currency: str = ""  # its sign, apart from the unit: $5 per hour is of currency "$" and unit "/h"
    words: bool = False


def read(text: str) -> Answer:
    """An answer without delimiters, with its name and its unit apart."""
    text = text.strip()
    if text.isascii() and PLAIN.fullmatch(text):
        return Answer(text.rstrip("."))
    if not text.isascii():
        text = re.sub("[⁰¹²³⁴-⁹⁻]+", lambda power: f"^{{{power[0].translate(SUPERSCRIPTS)}}}", text)
        # Converts digits of other scripts, but not ½ or Ⅳ.
        text = "".join(str(unicodedata.decimal(c, c)) for c in text).translate(SIGNS)
    text = text.removesuffix(".").rstrip()
    for opens, closes in DELIMITERS:
        inner = text.removeprefix(opens).removesuffix(closes)
        if len(inner) == len(text) - len(opens) - len(closes) and opens not in inner:
            text = inner.strip().removesuffix(".").rstrip()
    text = SPACE.sub(lambda space: space[1] or " ", LATEX_THOUSANDS.sub(",", text)).strip()
    for pattern, usual in NOTATION:
        text = pattern.sub(usual, text)
    words = False
    while whole := WHOLE_TEXT.fullmatch(text):
        text = (whole[1] or whole[2] or "").strip().removesuffix(".")
        words = bool(LETTERS.fullmatch(text))
    name, text = solved(UPRIGHT.sub(r" \1\2 ", text).strip())
    return Answer(name=name, words=words, **split_currency(*split_unit(text)))


def solved(text: str) -> tuple[str, str]:
    """The name and the value of `x = 5` or `5 = x`, the variable and the interval of `1 < x`; else ("", text)."""
    if not RELATION.search(text):
        return "", text
    if member := MEMBER.fullmatch(text):
        return member[1], member[2]
    if intervals := solutions(text):
        return intervals
    if text.count("=") == len(RELATION.findall(text)) == 1:
        sides = [side.strip() for side in text.split("=")]
        for name, value in (sides, sides[::-1]):
            name = re.sub(r"\s", "", name)
            letters_of_value = re.sub(r"\\[a-zA-Z]+", "", value)
            implicit = len(name) == 1 and (name in letters_of_value or value in ("x", "y", "z"))
            if NAME.fullmatch(name) and not implicit:
                return re.sub(r"[{}|]|\\overline", "", name), value
    return "", text


def solutions(text: str) -> tuple[str, str] | None:
    r"""The variable and the intervals of solved inequalities, joined by \cup; None for anything else."""
    found = [bounds(BOTH.split(part)) for part in EITHER.split(text)]
    variables = {variable for variable, _ in found}
    if len(variables) != 1 or "" in variables:
        return None
    return variables.pop(), r" \cup ".join(interval for _, interval in found)


def bounds(inequalities: list[str]) -> tuple[str, str]:
    """The variable and the interval in which all solved inequalities hold; ("", "") for others."""
    low, high, variables = r"(-\infty", r"\infty)", set()
    for inequality in inequalities:
        parts = [part.strip() for part in INEQUALITY.split(inequality)]
        if len(parts) == 3 and parts[1].startswith(r"\ne") and len(inequalities) == 1:
            variable, bound = (parts[0], parts[2]) if re.fullmatch(LETTER, parts[0]) else (parts[2], parts[0])
            if re.fullmatch(LETTER, variable) and closed_form(bound):
                return variable, rf"(-\infty, {bound}) \cup ({bound}, \infty)"
        variable = next((part for part in parts[::2] if re.fullmatch(LETTER, part)), "")
        at = parts.index(variable) if variable else 0
        if not variable or len(parts) not in (3, 5) or (len(parts) == 5 and at != 2):
            return "", ""
        variables.add(variable)
        for sign, bound in zip(parts[1::2], parts[:at:2] + parts[at + 2 :: 2], strict=True):
            upward = (sign[0] == "<" or sign.startswith(r"\l")) == (parts.index(bound) < at)
            closed = sign in ("<=", ">=") or sign[1:3] in ("le", "ge")
            if sign.startswith(r"\ne") or not (closed_form(bound) or re.fullmatch(r"[+-]?\s*\\infty", bound)):
                return "", ""
            if upward and low == r"(-\infty":
                low = ("[" if closed else "(") + bound
            elif not upward and high == r"\infty)":
                high = bound + ("]" if closed else ")")
            else:
                return "", ""
    return (variables.pop(), f"{low}, {high}") if len(variables) == 1 else ("", "")


def split_unit(text: str) -> tuple[str, str]:
    """Splits "5 cm" into ("5", "cm"); percent is a unit."""
    if match := PERCENT.fullmatch(text):
        return match["value"].strip(), "%"
    if match := DEGREES.fullmatch(text):
        return match["value"].strip(), "degree" + (match["scale"] or "")
    match = LATEX_UNIT.fullmatch(text) or WORD_UNIT.fullmatch(text)
    if match is None:
        return text, ""
    unit = match["unit"] if match.re is LATEX_UNIT else match["short"] or match["long"]
    unit = re.sub(TEXT, "", re.sub(UNIT_FRACTION, r"\1/\2", unit))
    if any(map(NOT_UNITS.fullmatch, re.findall("[A-Za-z]+", unit))):
        return text, ""
    if match.re is WORD_UNIT and not (TIME.fullmatch(match["value"]) or closed_form(CURRENCY.sub("", match["value"]))):
        return text, ""
    unit = re.sub(r"(?i)(sq(?:uare)?|cubic)\.? +([a-z]+)", lambda m: m[2] + ("^3" if m[1][0] in "cC" else "^2"), unit)
    return match["value"].strip(), re.sub(r"[{}\s.]|\\cdot", "", re.sub("[A-Za-z]+", short_unit, unit))


def split_currency(value: str, unit: str) -> dict[str, str]:
    """The fields of `Answer` for "\\$5" and "/h", or for "5" and "$/h". Two currencies are left in the value."""
    amount, slash, rate = unit.partition("/")
    signs = {(sign[2] or sign[3])[-1] for sign in CURRENCY.finditer(value)} | set(re.findall("[$€£¥₹¢]", amount))
    if len(signs) > 1:
        return {"value": f"{value} {unit}"}
    amount = re.sub("[a-z]*[$€£¥₹¢]", "", amount)
    return {"value": CURRENCY.sub(r"\1", value), "unit": amount + slash + rate, "currency": "".join(signs)}


def short_unit(word: re.Match[str]) -> str:
    """A unit without plural, and as its sign if it has one: cm for centimeters."""
    unit = word[0].lower()
    unit = unit.removesuffix("s") if len(unit) > 2 else unit
    prefix = re.match("(kilo|centi|milli)(?=met|gram|lit)", unit)
    rest = unit[prefix.end() :] if prefix else unit
    return (prefix[1][0] if prefix else "") + SHORT_UNITS.get(rest, rest)


# ---- guards before sympy

EXPONENT = re.compile(r"\s*(?:\^|\*\*)\s*")
EXPONENT_TOKEN = re.compile(r"-?(?:[0-9]+|\\[a-zA-Z]+(?:\s*\{[^{}]*\})*|.)?", re.DOTALL)
SMALL_POWER = re.compile(r"(?<=[a-z])\s*\^\s*(?:[0-9]|\{\s*[0-9]\s*\})")  # x^2: always harmless
FACTORIAL = re.compile(r"(?<![0-9])(?:[0-9]{1,3}|[a-z])\s*!")
OPERATION = re.compile(r"\\(?:begin|end)\s*\{[^{}]*\}|\\[a-zA-Z]+|[!?|:'a-zA-Z]")
HARMLESS = {r"\frac", r"\dfrac", r"\tfrac", r"\sqrt", r"\cdot", r"\times", r"\pi", r"\infty", r"\cup", "e", "i"}
UNBOUNDED = {r"\infty", r"\mathbb", r"\setminus", "R"}  # golds with one of these can be written with the others
CLASSES = {
    name: of
    for of, names in {
        "log": r"\ln \log \lg",
        "trigonometry": r"\sin \cos \tan \cot \sec \csc",
        "order": r"\le \leq \leqslant \lt \ge \geq \geqslant \gt",
        "ne": r"\ne \neq",
    }.items()
    for name in names.split()
}


def operations(text: str) -> set[str]:
    found = {CLASSES.get(name, name) for name in OPERATION.findall(text)} - HARMLESS
    return found | (UNBOUNDED if found & UNBOUNDED or r"\infty" in text else set())


def computes(answer: str, gold: str) -> bool:
    """Whether an answer has operations that the gold answer does not have: it leaves the work to the verifier."""
    unions = answer.count(r"\cup") > gold.count(r"\cup") + gold.count(r"\setminus")
    return unions or not operations(answer) <= operations(gold) or answer.count(r"\begin") > gold.count(r"\begin")


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

SEPARATOR = re.compile(rf"[,;]|{EITHER.pattern}|{BOTH.pattern}")
# The same, but 1,234 is whole.
OUTER_SEPARATOR = re.compile(rf",(?!(?<=[0-9],)[0-9]{{3}}(?![0-9]))|;|{EITHER.pattern}|{BOTH.pattern}")
SETS = (r"\cup", r"\mathbb", r"\setminus")  # shapes that other shapes may equal
UNION = re.compile(r"\\cup(?![a-z])")
POINTS = re.compile("[A-Z]{2,}")  # of triangles and segments: no products
TOKEN = re.compile(r"\\[a-zA-Z]+|\\.|.", re.DOTALL)
DEPTH = dict.fromkeys(["{", "(", "[", r"\{", r"\begin"], 1) | dict.fromkeys(["}", ")", "]", r"\}", r"\end"], -1)
MATRIX = re.compile(
    r"[(\[]?\s*\\begin\s*\{([pbB]?matrix|array)\}(?:\s*\{[clr]*\})?(.*)\\end\s*\{\1\}\s*[)\]]?", re.DOTALL
)
ROW_END = re.compile(r"\\\\(?:\s*\[[^\]]*\])?")
BASE_NAMES = "two three four five six seven eight nine ten eleven twelve".split()
BASED = re.compile(
    rf"(?:{TEXT}\{{)?\(?(-?[0-9][0-9A-Z,]*(?:\.[0-9A-Z]+)?)\)?\}}?\s*"
    rf"_\s*\{{?\s*(?:{TEXT}\{{)?\s*\(?([0-9]+|{'|'.join(BASE_NAMES)})[\s)}}]*"
)

Algebra = Callable[[str, str], bool]


def decide(answer: Answer, gold: Answer, algebra: Algebra | None = None) -> bool | None:
    """Whether the answer is correct. Parts that take algebra are given to `algebra`; None where that is missing."""
    if differ(answer.name, gold.name) or differ(answer.currency, gold.currency):
        return False
    if differ(answer.unit, gold.unit) and not same_degrees(answer.unit, gold.unit):
        return False
    if differs_from_money(answer, gold) or differs_from_money(gold, answer):
        return False
    if {answer.unit, gold.unit} & {"am", "pm"}:
        return spelling(answer)[0] == spelling(gold)[0]
    if "_" in answer.value + gold.value and (in_bases := compare_bases(answer, gold)) is not None:
        return in_bases
    if wanted := closed_form(gold.value):
        given = closed_form(single(answer.value))
        return given is not None and same_number(given, wanted, answer.unit == "%", gold.unit == "%")
    if spelling(answer) == spelling(gold):
        return True
    if answer.words or gold.words or WORDS.fullmatch(gold.value):
        return letters(answer.value) == letters(gold.value)
    if explodes(answer.value):
        return False
    (gold_shape, wanted_parts), (shape, given_parts) = parts(gold.value), parts(answer.value)
    if not gold_shape and closed_form(answer.value):  # 1,234 is no list
        shape = ""
    shapes = {shape, gold_shape}
    if "" not in shapes and (len(shapes) == 1 or ("list" in shapes and shapes <= {"list", "()", "union"})):
        ordered = not shapes <= {"list", "union"}
        ours, theirs = elements(given_parts, answer), elements(wanted_parts, gold)
        if shapes == {"list", "()"} and not (is_point(ours, answer) and is_point(theirs, gold)):
            return False
        verdict = compare_elements(ours, theirs, ordered, algebra)
        if verdict is not False or "union" not in shapes:
            return verdict
    elif shapes != {""} and not any(name in answer.value + gold.value for name in SETS):
        return False
    return compare_whole(answer, gold, algebra)


def compare_whole(answer: Answer, gold: Answer, algebra: Algebra | None) -> bool | None:
    """Compares expressions, unsolved relations and sets, if the answer has no operation that the gold answer lacks."""
    relation = bool(RELATION.search(gold.value))
    ours = f"{answer.name} = {answer.value}" if relation and answer.name else answer.value
    if bool(RELATION.search(ours)) != relation or computes(ours, gold.value):
        return False
    if sorted(POINTS.findall(ours)) != sorted(POINTS.findall(gold.value)):
        return False
    percent = (r"\%" * (part.unit == "%") for part in (answer, gold))
    return algebra(ours + next(percent), gold.value + next(percent)) if algebra else None


def elements(texts: list[str], of: Answer) -> list[Answer]:
    """The elements of a list, with its name and its currency if they have none."""
    inherited = "" if of.name.startswith("(") else of.name
    found = [read(text) for text in texts]
    return [
        replace(part, name=part.name or inherited, currency=part.currency or ("" if part.unit else of.currency))
        for part in found
    ]


def is_point(coordinates: list[Answer], of: Answer) -> bool:
    """Whether a list or pair can be a point: not an interval or values of one variable, which share a name; no set."""
    names = [part.name for part in coordinates if part.name]
    return len(set(names)) == len(names) and not of.value.startswith(r"\{")


def compare_elements(given: list[Answer], wanted: list[Answer], ordered: bool, algebra: Algebra | None) -> bool | None:
    """Compares elements one by one if they are ordered, else as multisets."""
    names = [part.name for part in given if part.name]
    sets = [all(part.value.startswith(r"\{") for part in side) for side in (given, wanted)]
    if len(given) != len(wanted) or sets[0] != sets[1]:
        return False
    if ordered:
        verdicts = [decide(ours, theirs, algebra) for ours, theirs in zip(given, wanted, strict=True)]
        return False if False in verdicts or names != sorted(names) else None if None in verdicts else True
    variables = {name.partition("_")[0] for name in names}
    if len(variables) > 1 and not any(part.name for part in wanted):  # x = 1, y = 2 for 1, 2
        return False
    undecided = False
    for part in wanted:
        verdicts = [decide(other, part, algebra) for other in given]
        if True in verdicts:
            given.pop(verdicts.index(True))
        elif None in verdicts:
            undecided = True
        else:
            return False
    return None if undecided else True


def parts(value: str) -> tuple[str, list[str]]:
    """The shape ("list", "union", "()", "[)", "2x3" …) of an answer and its elements; ("", []) for one element."""
    if matrix := MATRIX.fullmatch(value.strip()):
        rows = [split(row, re.compile("&")) for row in split(matrix[2], ROW_END)]
        rows = [row for row in rows if any(row)]
        shape = "x".join(map(str, (len(rows), *{len(row) for row in rows})))
        return shape, [cell for row in rows for cell in row]
    pieces = split(value, UNION)
    if len(pieces) > 1:
        return "union", pieces
    inner = enclosed(value)
    elements = split_list(inner or value)
    if inner and value.startswith("\\") and len(elements) == 1 and elements[0].startswith("("):  # \{(1, 2)\}
        return parts(elements[0])
    if inner and not value.startswith("\\"):
        return (value[0] + value[-1], elements) if len(elements) > 1 else ("", [])
    return ("list", elements) if len(elements) > 1 else ("", [])


def split_list(text: str) -> list[str]:
    r"""The elements of a list; 1 \pm i are two."""
    several = re.search(rf",\s|{EITHER.pattern}|{BOTH.pattern}", text)
    found = []
    for part in split(text, OUTER_SEPARATOR if several else SEPARATOR):
        both = [part.replace(r"\pm", sign) for sign in "+-"] if part.count(r"\pm") == 1 else [part]
        found += [one.strip() for one in both if part.strip()]
    return found


def split(text: str, separator: re.Pattern[str]) -> list[str]:
    """Splits at separators outside of all brackets."""
    found, start, at, depth = [], 0, 0, 0
    while at < len(text):
        match = separator.match(text, at) if depth == 0 else None
        if match:
            found.append(text[start:at].strip())
            start = at = match.end()
        elif token := TOKEN.match(text, at):
            depth += DEPTH.get(token[0], 0)
            at = token.end()
    return [*found, text[start:].strip()]


def enclosed(text: str) -> str | None:
    r"""The contents of the brackets around a whole text, as (1, 2], [3, 4) or \{5, 6\}; None without these."""
    tokens = TOKEN.findall(text.strip())
    if len(tokens) < 2 or tokens[0] not in ("(", "[", r"\{") or tokens[-1] not in (")", "]", r"\}"):
        return None
    depth = 0
    for i, token in enumerate(tokens):
        depth += DEPTH.get(token, 0)
        if depth == 0 and i + 1 < len(tokens):
            return None
    return "".join(tokens[1:-1])


def single(text: str) -> str:
    r"""The element of \{5\}, any other text unchanged."""
    inner = enclosed(text) if text.startswith(r"\{") else None
    return text if inner is None else inner


def compare_bases(answer: Answer, gold: Answer) -> bool | None:
    """Compares numerals such as 1010_2, which need the same base and digits; None where neither is one."""
    given, wanted = BASED.fullmatch(answer.value), BASED.fullmatch(gold.value)
    if wanted:
        digits_given = given[1] if given else re.sub(r"\s", "", answer.value)
        same_base = given is None or base(given[2]) == base(wanted[2])
        return same_base and digits_given.replace(",", "") == wanted[1].replace(",", "")
    if given:
        return base(given[2]) == 10 and number(gold.value) == number(given[1]) is not None
    return None


def base(text: str) -> int:
    return BASE_NAMES.index(text) + 2 if text in BASE_NAMES else int(text)


def letters(text: str) -> str:
    """Words without spaces; the case of single letters counts."""
    text = re.sub(r"\s", "", text)
    return text.casefold() if len(text) > 1 else text


def spelling(answer: Answer) -> tuple[str, str]:
    """The value without spaces and fraction sizes, and the unit: settles most correct answers without sympy."""
    text = re.sub(r"\\[dt]frac(?![a-z])", r"\\frac", answer.value)
    return re.sub(r"(?<![A-Za-z0-9\\])\s+|\s+(?![A-Za-z0-9])", "", text), answer.unit


def canonical(answer: Answer) -> str:
    """The value in a form that equal numbers share, if no work is left to compute it."""
    form = closed_form(answer.value)
    if answer.words and len(answer.value) > 1 and not WORDS.fullmatch(answer.value):
        return rf"\text{{{answer.value}}}"  # in order, unlike other lists and products
    if form is None or form.work:
        return spelling(answer)[0]
    return str(form.value) if isinstance(form.value, Fraction) else digits(form.value)


def differ(part: str, gold_part: str) -> bool:
    return bool(part and gold_part) and part != gold_part


def differs_from_money(answer: Answer, money: Answer) -> bool:
    """Whether `money` is an amount without a unit, as $5, and `answer` a number with another unit, as 5 cm."""
    is_amount = money.currency != "" and not money.unit
    pounds = money.currency == "£" and "lb" in answer.unit
    return is_amount and not answer.currency and not pounds and not UNIT_OF_MONEY.fullmatch(answer.unit)


def same_degrees(unit: str, gold_unit: str) -> bool:
    return "degree" in (unit, gold_unit) and unit.startswith("degree") and gold_unit.startswith("degree")


def same_number(given: ClosedForm, wanted: ClosedForm, given_percent: bool, wanted_percent: bool) -> bool:
    """Equality of numbers of which either may be a percentage: 50% is 1/2, or 50, but 0.5% is not 0.5."""
    if given_percent == wanted_percent or (given.same(wanted) and abs(given.value) > 1):
        return given.same(wanted)
    ours, theirs = (
        replace(form, value=form.value / 100) if percent else form
        for form, percent in ((given, given_percent), (wanted, wanted_percent))
    )
    return ours.same(theirs)
