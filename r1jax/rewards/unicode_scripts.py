"""Language consistency for languages that their scripts tell apart (Chinese and English, say; no word lists).

English and Spanish share a script: for them there are word lists (`rules.language_consistency_reward`). Japanese in
Han characters alone can't be told from Chinese.
"""

import re
import unicodedata
from collections.abc import Mapping
from functools import lru_cache

from r1jax.errors import UsageError
from r1jax.rewards.rules import RewardFunction, read_thinking
from r1jax.types import Sample

HAN = frozenset({"CJK", "IDEOGRAPHIC"})
KANA = frozenset({"HIRAGANA", "KATAKANA", "KATAKANA-HIRAGANA"})  # the last is the sign of long vowels
UNSPACED = HAN | KANA  # written without spaces: each character counts as a word
SCRIPTS = {
    "ar": frozenset({"ARABIC"}), "de": frozenset({"LATIN"}), "el": frozenset({"GREEK"}), "en": frozenset({"LATIN"}),
    "es": frozenset({"LATIN"}), "fr": frozenset({"LATIN"}), "he": frozenset({"HEBREW"}),
    "hi": frozenset({"DEVANAGARI"}), "ja": HAN | KANA, "ko": frozenset({"HANGUL"}), "ru": frozenset({"CYRILLIC"}),
    "uk": frozenset({"CYRILLIC"}), "zh": HAN,
}  # fmt: skip

# Tags, and the commands of mathematics. What stands in code counts: thinking must not hide there.
NOT_PROSE = re.compile(
    r"</?(?:think|answer)>|\\(?:begin|end|left|right|text|mathrm|mathbf|mathbb|boxed|[dt]?frac|sqrt|times|cdot|div|pm|leq?|geq?"
    r"|neq?|approx|equiv|implies|Rightarrow|rightarrow|to|sum|prod|int|lim|infty|cup|cap|in|subset|sin|cos|tan|log|ln|exp"
    r"|pi|theta|alpha|beta|gamma|delta|lambda|mu|sigma|omega|circ|angle|overline|quad|ldots|cdots|pmod|binom)(?![a-zA-Z])"
)
SPELT = re.compile(r"(?<!\w)(?:[^\W\d_][ .\-_]){3,}[^\W\d_](?!\w)")  # f-i-r-s-t is a word, and no product of variables


def script_consistency_reward(scripts: Mapping[str, frozenset[str]] = SCRIPTS) -> RewardFunction:
    """Words in the scripts of the problem's language / all words, in the thinking (R1, section 2.3.2); 0 without words.

    `scripts` holds each language's scripts, by the first word of their letters' Unicode names. A word counts for a
    language when all of its letters do: a look-alike letter makes it foreign.

    The reward raises UsageError for a language that `scripts` lacks.
    """

    def reward(sample: Sample) -> float:
        language = sample.problem.language
        if language not in scripts:
            known = ", ".join(sorted(scripts))
            raise UsageError(f"problem {sample.problem.id}: no scripts are known of language {language!r}, of {known}")
        words = split_words(read_thinking(sample.text))
        return sum(all(script(c) in scripts[language] for c in word) for word in words) / max(len(words), 1)

    return reward


def split_words(text: str) -> list[str]:
    """Runs of letters, and each character of a script without spaces. Numbers and signs part words.

    Vowel signs and accents are left out, as they have no script of their own. So are single Latin and Greek letters:
    they are variables more often than words.
    """
    # Letters in mathematical type are letters.
    text = "".join(unicodedata.normalize("NFKC", c) if c.isalpha() else c for c in NOT_PROSE.sub(" ", text))
    text = SPELT.sub(lambda match: re.sub(r"[ .\-_]", "", match[0]), text)
    words = "".join(set_apart(c) for c in text).split()
    return [word for word in words if len(word) > 1 or script(word) not in ("LATIN", "GREEK")]


def set_apart(character: str) -> str:
    if not character.isalpha():
        return "" if unicodedata.category(character).startswith("M") else " "
    return f" {character} " if script(character) in UNSPACED else character


@lru_cache(maxsize=4096)
def script(letter: str) -> str:
    """The first word of its name, "LATIN" of LATIN SMALL LETTER A; "" where it has none."""
    return unicodedata.name(letter, "").partition(" ")[0]
