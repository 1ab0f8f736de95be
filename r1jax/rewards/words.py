"""The words of a response, as the language rewards count them, and characters that nobody sees."""

import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

HAN = frozenset({"CJK", "IDEOGRAPHIC"})
KANA = frozenset({"HIRAGANA", "KATAKANA", "KATAKANA-HIRAGANA"})  # the last is the long vowel mark
UNSPACED = HAN | KANA  # written without spaces: each character counts as a word

# Letters and signs that show nothing: Hangul fillers, Braille and Egyptian blanks, an object, a null note head.
BLANK = frozenset("\u115f\u1160\u2800\u3164\uffa0\ufffc\U00013441\U00013442\U0001d159")

# LaTeX commands and names of functions. Code counts as prose, or thinking could hide in it.
COMMANDS = (
    "begin|end|left|right|text|textbf|mathrm|mathbf|mathbb|mathcal|operatorname|boxed|[dt]?frac|sqrt|times|cdot|div|pm|mp"
    "|leq?|geq?|leqslant|geqslant|neq?|approx|equiv|sim|cong|propto|implies|iff|[Rr]ightarrow|[Ll]eftarrow|to|mapsto|sum"
    "|prod|i*nt|oint|lim|infty|partial|nabla|cup|cap|in|notin|subset|subseteq|emptyset|setminus|forall|exists|therefore"
    "|because|neg|land|lor|pi|theta|alpha|beta|[Gg]amma|[Dd]elta|lambda|mu|nu|rho|tau|[Ss]igma|[Pp]hi|varphi|psi|[Oo]mega"
    "|epsilon|varepsilon|circ|angle|triangle|perp|parallel|mid|overline|overrightarrow|underline|vec|hat|bar|quad|qquad"
    "|[lcv]?dots|bmod|pmod|d?binom|lfloor|rfloor|lceil|rceil|tag|big|Big"
)
FUNCTIONS = "arc(?:sin|cos|tan)|(?:sin|cos|tan)h?|cot|sec|csc|log|ln|lg|exp|max|min|mod|gcd|lcm|det|lim"
ENVIRONMENTS = "align|aligned|equation|cases|[pbv]?matrix|array|gather|split"
TAG = re.compile(r"</?(?:think|answer)>")
NOT_PROSE = re.compile(
    rf"\\(?:begin|end)\{{(?:{ENVIRONMENTS})\*?\}}"
    rf"|\\(?:{COMMANDS}|{FUNCTIONS})(?![a-zA-Z])|(?<![a-zA-Z])(?:{FUNCTIONS})(?![a-zA-Z])"
)
LETTER = r"[^\W\d_]"
# Products of variables, names of points, and units, such as 4ac, nθ, AB = CD and 5 kg.
OPERATOR, LATIN, GREEK = r"[=+*/^·×÷√∠△²³°⊥∥≤≥≈]", "A-Za-z", "Α-Ωα-ω"
PRODUCT = re.compile(
    rf"(?:(?<=[0-9])|(?<={OPERATOR})|(?<={OPERATOR} ))[{LATIN}{GREEK}]{{2,4}}(?!{LETTER})"
    rf"|(?<!{LETTER})(?:[{LATIN}{GREEK}]{{2,4}}(?!{LETTER})(?=[0-9]| ?{OPERATOR})|[{LATIN}][{GREEK}](?!{LETTER}))"
    rf"|(?<![{LATIN}])[A-H]{{2,4}}(?![{LATIN}])"
    rf"|(?<=[0-9] )(?:[kcmdn][mgls]|k?Pa|mol|[kMG]?Hz|[kM]?eV|kJ|kW|min)(?![{LATIN}])"
)
FORMULA, SHORT = re.compile(r"\$[^$\n]{1,200}\$"), re.compile(rf"(?<![{LATIN}\\])[{LATIN}]{{2,3}}(?![{LATIN}])")
# f-i-r-s-t is a word, not variables: five letters or more with spaces and punctuation or always the same sign between,
# or ten with anything.
OWN = r"[^\W\d_\u3040-\u30ff\u3400-\u9fff]"  # of scripts with spaces
SPELT = re.compile(
    rf"(?<!{OWN})(?:(?:{OWN}(?:\s+|\s*[-,.;:/\\|'\"`~·•…、，。]\s*)){{4,}}{OWN}"
    rf"|{OWN}(?P<sign>[\W\d_]{{1,3}})(?:{OWN}(?P=sign)){{3,}}{OWN}|{OWN}(?:[\W\d_]{{1,6}}{OWN}){{9,}})(?!{OWN})"
)
LONGEST_WORD = 40  # letters; where more are spelt they are several words
NUMERALS = "²³¹¼-¾⁰-₉⅐-↋①-⒛⓪-⓿❶-➓"
NEUTRAL = re.compile(rf"\d[\d.,]*|[{NUMERALS}]|[^\w\s]")  # numbers and signs


@dataclass(frozen=True)
class Words:
    """The words of a text, and how many numbers, variables and signs it has beside them."""

    words: list[str]
    neutral: int


def is_empty(text: str) -> bool:
    """Whether nobody sees anything of the text: white space, control and format characters, fillers, lone accents."""
    return all(character in BLANK or unicodedata.category(character)[0] not in "LNPS" for character in text)


class Table(dict[int, str]):
    """A table for `str.translate`, filled as characters come."""

    def __init__(self, function: Callable[[str], str]):
        self.function = function

    def __missing__(self, code: int) -> str:
        self[code] = self.function(chr(code))
        return self[code]


def clean(character: str) -> str:
    """Drops invisible characters, and turns letters in mathematical type into plain ones."""
    if character in BLANK:
        return " "
    if is_ignored(character):
        return ""
    return unicodedata.normalize("NFKC", character) if character.isalpha() else character


def is_ignored(character: str) -> bool:
    """Whether the character takes no room between two letters: control and format characters, variation selectors."""
    if unicodedata.category(character) in ("Cf", "Cc"):
        return not character.isspace()
    return bool(re.match("[\u034f\u17b4\u17b5\u180b-\u180f\ufe00-\ufe0f\U000e0100-\U000e01ef]", character))


def read_words(text: str, formulas: bool = True) -> Words:
    """Runs of letters, and each character of a script without spaces; numbers and signs separate words.

    Vowel signs and accents, which have no script of their own, are dropped. Single Latin and Greek letters, which are
    mostly variables, are no words, unless they spell one. Nor are commands, products and units, with `formulas`.
    """
    text = TAG.sub(" ", text.translate(CLEANED))
    if formulas:
        text = FORMULA.sub(lambda match: SHORT.sub("0", match[0]), NOT_PROSE.sub(" 0 ", text))
        text = PRODUCT.sub("0", text)
    text = SPELT.sub(lambda match: join_letters(match[0]), text)
    found = text.translate(SEPARATED).split()
    words = [word for word in found if len(word) > 1 or script(word) not in ("LATIN", "GREEK")]
    return Words(words, len(found) - len(words) + sum(1 for _ in NEUTRAL.finditer(text)))


def join_letters(spelt: str) -> str:
    """The words that are spelt; three letters in turns spell none."""
    letters = re.sub(r"[\W\d_]", "", spelt)
    if len(set(letters)) < 4:
        return spelt
    return " ".join(letters[i : i + LONGEST_WORD] for i in range(0, len(letters), LONGEST_WORD))


def separate(character: str) -> str:
    """The character with spaces where words end; "" for a mark, which belongs to the letter before it."""
    if not character.isalpha():
        return "" if unicodedata.category(character).startswith("M") else " "
    return f" {character} " if script(character) in UNSPACED else character


CLEANED, SEPARATED = Table(clean), Table(separate)


@lru_cache(maxsize=4096)
def script(letter: str) -> str:
    """The first word of its Unicode name, "LATIN" for LATIN SMALL LETTER A; "" without a name."""
    return unicodedata.name(letter, "").partition(" ")[0]
