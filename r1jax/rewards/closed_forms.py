r"""Numbers in closed form, read and evaluated without sympy.

A whitelist: numerals, fractions, roots, powers, π, e, i, and sums and products of these. Anything else, such as
\gcd(12, 18) or \sin 30°, is no closed form.
"""

import re
from collections import Counter
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import lru_cache
from typing import Any

from mpmath.ctx_mp import MPContext

MAX_LENGTH = 1000  # characters of an answer
MAX_DEPTH = 12  # of nested brackets
MAX_TERMS = 12  # of a sum
MAX_BITS = 20_000  # of a power of rational numbers
MAX_EXPONENT = 100  # of other numbers
PLACES = 6  # to which a decimal must agree with an irrational number

CONTEXT = MPContext()
CONTEXT.dps = 60
SAME = CONTEXT.mpf(10) ** -40  # relative error of equal numbers

DIGITS = r"(?:[1-9][0-9]{0,2}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]*)?|\.[0-9]+"
PLAIN = re.compile(rf"[+-]?(?:{DIGITS})")
PAIR = re.compile(r"\([^()]*,[^()]*\)")  # (1,234) is a point
MIXED = re.compile(r"([0-9]+)\s+([0-9]+)\s*/\s*([0-9]+)")
REPEATING = re.compile(r"([0-9]*)\.([0-9]*)\\(?:overline|bar|dot)(?![a-z])\s*(?:\{\s*([0-9]+)\s*\}|([0-9]))")
POWER_OF_TEN = (
    r"\s*(?:\\times|\\cdot|×|\*|(?<=\s)x\s)\s*10\s*(?:\^|\*\*)\s*(-?[0-9]{1,3}(?![0-9])|\{\s*-?[0-9]{1,3}\s*\})"
)
NUMERAL = re.compile(rf"({DIGITS})(?:[eE]([+-]?[0-9]{{1,3}})(?![0-9.])|{POWER_OF_TEN})?")
SIGN = re.compile(r"[+-]")
SIGNED = re.compile(r"(?=[({]\s*[+-])")
TIMES = re.compile(r"\\times(?![a-z])|\\cdot(?![a-z])|×|·|\*(?!\*)")
OVER = re.compile("/")
FACTOR = re.compile(r"(?=[({\\ei])")
POWER = re.compile(r"\^|\*\*")
SHORT_EXPONENT = re.compile(r"-?[0-9]+")
FRACTION = re.compile(r"\\[dtc]?frac(?![a-z])")
ROOT = re.compile(r"\\sqrt(?![a-z])\s*(?:\[\s*([0-9]{1,2})\s*\])?")
CONSTANT = re.compile(r"(?:\\(?:mathrm|text|operatorname)\s*\{([ei])\}|([ei])|\\(pi)|\\i(math))(?![a-z])")
DIGIT = re.compile("[0-9]")
OPEN = re.compile(r"[({]")
CLOSE = {"(": re.compile(r"\)"), "{": re.compile(r"\}")}
CONSTANTS: dict[str, Any] = {"e": CONTEXT.e, "i": CONTEXT.mpc(0, 1), "math": CONTEXT.mpc(0, 1), "pi": CONTEXT.pi}


@dataclass(frozen=True)
class ClosedForm:
    """A number and how it was written.

    Attributes:
      value: a Fraction if no root or constant occurs, else a number of 60 digits.
      work: how many steps are left to compute, such as the sum in 3 + 4 or the product in √2 √3.
      above: kinds of factors in the numerator: "rational", "root", "sum", "e", "pi", "imaginary"; and "power", for a
        rational number that was written as one.
      below: the same in the denominator.
    """

    value: Any
    work: int = 0
    above: Counter[str] = field(default_factory=Counter)
    below: Counter[str] = field(default_factory=Counter)

    def same(self, gold: "ClosedForm") -> bool:
        """Whether the numbers are equal, and this one leaves no more work than the gold answer."""
        ours, wanted = self.value, gold.value
        if self.work > gold.work:
            return False
        if isinstance(wanted, Fraction):
            return ours == wanted if isinstance(ours, Fraction) else rounded(wanted, ours)
        return near(ours, wanted) or (isinstance(ours, Fraction) and rounded(ours, wanted))

    def times(self, factor: "ClosedForm") -> "ClosedForm":
        above, below = self.above + factor.above, self.below + factor.below
        return ClosedForm(self.value * factor.value, self.work + factor.work, above, below)

    def over(self, divisor: "ClosedForm") -> "ClosedForm":
        if divisor.value == 0:
            raise ZeroDivisionError
        above, below = self.above + divisor.below, self.below + divisor.above
        irrational = not isinstance(divisor.value, Fraction)
        unusual = irrational and bool(divisor.above["sum"] or divisor.above["imaginary"])
        top = CONTEXT.convert(self.value) if irrational else self.value
        return ClosedForm(top / divisor.value, self.work + divisor.work + unusual, above, below)


@lru_cache(maxsize=10_000)
def closed_form(text: str) -> ClosedForm | None:
    """The number that a text is; None for anything else."""
    if len(text) <= MAX_LENGTH and PLAIN.fullmatch(text):
        return ClosedForm(Fraction(text.replace(",", "")))
    try:
        return Parser(text).whole() if len(text) <= MAX_LENGTH and not PAIR.fullmatch(text) else None
    except (ValueError, ArithmeticError, RecursionError):
        return None


class Parser:
    """Recursive descent; every method raises ValueError for a text that it can't read."""

    def __init__(self, text: str):
        self.text, self.at, self.depth = text, 0, 0

    def take(self, pattern: re.Pattern[str]) -> re.Match[str] | None:
        while self.text[self.at : self.at + 1].isspace():
            self.at += 1
        match = pattern.match(self.text, self.at)
        self.at = match.end() if match else self.at
        return match

    def whole(self) -> ClosedForm:
        found = self.sum()
        if self.text[self.at :].strip():
            raise ValueError
        return found

    def sum(self) -> ClosedForm:
        terms: list[ClosedForm] = []
        sign = self.take(SIGN)
        while sign or not terms:
            twice = bool(sign and self.take(SIGNED))  # -(-5)
            term = self.product()
            value = -term.value if sign and sign[0] == "-" else term.value
            terms.append(replace(term, value=value, work=term.work + twice))
            sign = self.take(SIGN)
        if len(terms) == 1:
            return terms[0]
        value = sum((term.value for term in terms[1:]), terms[0].value)
        if len(terms) > MAX_TERMS:
            raise ValueError
        values = [term.value for term in terms]
        work = sum(term.work + bool(term.above["sum"]) for term in terms)
        work += sum(any(alike(a, b) for b in values[:i]) for i, a in enumerate(values))
        return ClosedForm(value, work, Counter(["sum"] + ["imaginary"] * imaginary(value)))

    def product(self) -> ClosedForm:
        found, divided = self.power(), False
        while True:
            if self.take(OVER):
                found, divided = found.over(self.power()), True
            elif self.take(TIMES):
                found = found.times(self.power())
            elif self.take(FACTOR):
                if divided and not (isinstance(found.value, Fraction) and self.text[self.at] == "i"):
                    raise ValueError  # 1/2π is read both ways
                found = found.times(self.power())
            else:
                break
        kinds = [(kind, n) for side in (found.above, found.below) for kind, n in side.items()]
        excess = sum(n - 1 for kind, n in kinds if kind != "power")
        above, below = Counter(found.above.keys()), Counter(found.below.keys())
        return ClosedForm(found.value, found.work + excess, above, below)

    def power(self) -> ClosedForm:
        base = self.atom()
        if not self.take(POWER):
            return base
        short = self.take(SHORT_EXPONENT)
        return raised(base, ClosedForm(Fraction(short[0])) if short else self.argument())

    def argument(self) -> ClosedForm:
        digit = self.take(DIGIT)
        return ClosedForm(Fraction(digit[0]), above=Counter(["rational"])) if digit else self.atom()

    def atom(self) -> ClosedForm:
        if opened := self.take(OPEN):
            self.depth += 1
            if self.depth > MAX_DEPTH:
                raise ValueError
            found = self.sum()
            if not self.take(CLOSE[opened[0]]):
                raise ValueError
            self.depth -= 1
            return found
        if self.take(FRACTION):
            return self.argument().over(self.argument())
        if root := self.take(ROOT):
            return rooted(self.argument(), int(root[1] or 2))
        if constant := self.take(CONSTANT):
            name = next(group for group in constant.groups() if group)
            return ClosedForm(+CONSTANTS[name], above=Counter([name if name in ("e", "pi") else "imaginary"]))
        return self.numeral()

    def numeral(self) -> ClosedForm:
        if mixed := self.take(MIXED):
            value = Fraction(int(mixed[1])) + Fraction(int(mixed[2]), int(mixed[3]))
        elif repeating := self.take(REPEATING):
            period = repeating[3] or repeating[4]
            start = Fraction(int("0" + repeating[1] + repeating[2]), 10 ** len(repeating[2]))
            value = start + Fraction(int(period), 10 ** len(repeating[2]) * (10 ** len(period) - 1))
        elif digits := self.take(NUMERAL):
            exponent = int((digits[2] or digits[3] or "0").strip("{ }"))
            value = Fraction(digits[1].replace(",", "")) * Fraction(10) ** exponent
            if digits[1].isdecimal() and self.text[self.at :].lstrip().startswith("\\") and self.take(FRACTION):
                return self.mixed(value)
            return ClosedForm(value, above=Counter(["rational"] + ["power"] * (exponent != 0)))
        else:
            raise ValueError
        return ClosedForm(value, above=Counter(["rational"]))

    def mixed(self, whole: Fraction) -> ClosedForm:
        r"""After 1\frac: a mixed number if the fraction is proper, a product if it isn't rational."""
        top, bottom = self.argument(), self.argument()
        fraction = top.over(bottom)
        if not isinstance(fraction.value, Fraction):
            return ClosedForm(whole, above=Counter(["rational"])).times(fraction)
        if top.work or bottom.work or not 0 < fraction.value < 1 or whole == 0:
            raise ValueError
        return ClosedForm(whole + fraction.value, above=Counter(["rational"]))


def raised(base: ClosedForm, exponent: ClosedForm) -> ClosedForm:
    """A power. Roots of numerals, and powers of e and π, are answers; powers of powers, i, roots, sums are work."""
    powers = [side["power"] for form in (base, exponent) for side in (form.above, form.below)]
    work, power = base.work + exponent.work + any(powers), exponent.value
    if base.above == Counter(["e"]) and near(base.value, CONTEXT.e) and abs(power) <= MAX_EXPONENT:
        work += isinstance(power, CONTEXT.mpc)
        return ClosedForm(CONTEXT.exp(power), work, Counter(["e"] + ["imaginary"] * isinstance(power, CONTEXT.mpc)))
    if not isinstance(power, Fraction):
        raise ValueError
    if isinstance(base.value, Fraction) and power.denominator == 1:
        size = max(base.value.numerator.bit_length(), base.value.denominator.bit_length())
        if abs(power) * size > MAX_BITS:
            raise ValueError
        return ClosedForm(base.value**power.numerator, work, Counter(["rational", "power"]))
    if abs(power) > MAX_EXPONENT or base.value == 0:
        raise ValueError
    if isinstance(base.value, Fraction) and power.denominator <= MAX_EXPONENT:
        root = rooted(replace(base, work=work), power.denominator)
        value = root.value**power.numerator
        return replace(root, value=value, work=root.work + (rational(value) and not rational(root.value)))
    if power.denominator != 1:
        raise ValueError
    work += base.above != Counter(["pi"])
    return ClosedForm(base.value**power.numerator, work, base.above)


def rooted(of: ClosedForm, degree: int) -> ClosedForm:
    """A root. That of a perfect power, of a sum and of a negative number are work."""
    if degree < 2:
        raise ValueError
    number = CONTEXT.convert(of.value)
    odd = isinstance(of.value, Fraction) and of.value < 0 and degree % 2
    value = -CONTEXT.root(-number, degree) if odd else CONTEXT.root(number, degree)
    negative = isinstance(value, CONTEXT.mpc) and bool(value.imag)
    work = of.work + bool(of.above["sum"]) + bool(odd or negative or rational(value))
    return ClosedForm(value, work, Counter(["root"] + ["imaginary"] * negative))


def imaginary(value: Any) -> bool:
    return isinstance(value, CONTEXT.mpc) and abs(value.imag) > SAME * abs(value)


def near(a: Any, b: Any) -> bool:
    a, b = CONTEXT.convert(a), CONTEXT.convert(b)
    return abs(a - b) <= SAME * max(abs(a), abs(b))


def rational(value: Any) -> bool:
    """Whether a number of 60 digits is a fraction of small numbers, as which irrational ones are not written."""
    if imaginary(value):
        return False
    scaled = Fraction(int(CONTEXT.nint(CONTEXT.re(value) * CONTEXT.mpf(10) ** 50)), 10**50)
    return near(scaled.limit_denominator(10**6), value)


def alike(a: Any, b: Any) -> bool:
    """Whether two terms can be added: both are rational, or their quotient is."""
    if isinstance(a, Fraction) or isinstance(b, Fraction):
        return isinstance(a, Fraction) and isinstance(b, Fraction)
    return a == 0 or b == 0 or rational(a / b)


def rounded(decimal: Fraction, value: Any) -> bool:
    """Whether a decimal is an irrational number to six places, and to as many significant digits."""
    short = (decimal * 10 ** (PLACES - 1)).denominator == 1
    if short or 10**30 % decimal.denominator or imaginary(value) or rational(value):
        return False
    exact = Fraction(int(CONTEXT.nint(CONTEXT.re(value) * CONTEXT.mpf(10) ** 50)), 10**50)
    return round(decimal, PLACES) == round(exact, PLACES) and abs(decimal - exact) <= abs(exact) / 10**PLACES


def digits(value: Any) -> str:
    """The first 30 digits of an irrational number."""
    return str(CONTEXT.nstr(value, 30))


def number(text: str) -> Fraction | None:
    r"""The exact value of 1,234, -0.50, 3/4, 1 1/2, \frac{3}{4}, 10^5, 3 \times 10^5; None for anything else."""
    found = closed_form(text)
    return found.value if found and not found.work and isinstance(found.value, Fraction) else None
