"""Language consistency for languages with different scripts, such as Chinese and English, without word lists.

Languages that share a script need word lists (`rules.language_consistency_reward`). Japanese written in Han characters
alone can't be told from Chinese.
"""

import re
import unicodedata
from collections.abc import Mapping
from functools import lru_cache

from r1jax.errors import UsageError
from r1jax.rewards.rules import RewardFunction, read_thinking
from r1jax.types import Sample

HAN = frozenset({"CJK", "IDEOGRAPHIC"})
KANA = frozenset({"HIRAGANA", "KATAKANA", "KATAKANA-HIRAGANA"})  # the last is the long vowel mark
UNSPACED = HAN | KANA  # written without spaces: each character counts as a word
SCRIPTS = {
    "ar": frozenset({"ARABIC"}), "de": frozenset({"LATIN"}), "el": frozenset({"GREEK"}), "en": frozenset({"LATIN"}),
    "es": frozenset({"LATIN"}), "fr": frozenset({"LATIN"}), "he": frozenset({"HEBREW"}),
    "hi": frozenset({"DEVANAGARI"}), "ja": HAN | KANA, "ko": frozenset({"HANGUL"}), "ru": frozenset({"CYRILLIC"}),
    "uk": frozenset({"CYRILLIC"}), "zh": HAN,
}  # fmt: skip

# Tags and LaTeX commands. Code counts as prose, or thinking could hide in it.
NOT_PROSE = re.compile(
    r"</?(?:think|answer)>|\\(?:begin|end|left|right|text|mathrm|mathbf|mathbb|boxed|[dt]?frac|sqrt|times|cdot|div|pm|leq?|geq?"
    r"|neq?|approx|equiv|implies|Rightarrow|rightarrow|to|sum|prod|int|lim|infty|cup|cap|in|subset|sin|cos|tan|log|ln|exp"
    r"|pi|theta|alpha|beta|gamma|delta|lambda|mu|sigma|omega|circ|angle|overline|quad|ldots|cdots|pmod|binom)(?![a-zA-Z])"
)
SPELT = re.compile(r"(?<!\w)(?:[^\W\d_][ .\-_]){3,}[^\W\d_](?!\w)")  # f-i-r-s-t is a word, not variables


def script_consistency_reward(scripts: Mapping[str, frozenset[str]] = SCRIPTS) -> RewardFunction:
    """Returns a reward in [0, 1]: the share of the thinking's words in the language's scripts (R1, section 2.3.2).

    It is 0 without words. `scripts` maps a language to its scripts, named by the first word of their letters' Unicode
    names. All letters of a word must be in them, so that a look-alike letter makes the word foreign. The reward raises
    UsageError for a language that `scripts` lacks.
    """

    def reward(sample: Sample) -> float:
        language = sample.problem.language
        if language not in scripts:
            known = ", ".join(sorted(scripts))
            raise UsageError(f"problem {sample.problem.id}: language is {language!r}, expected one of {known}")
        words = split_words(read_thinking(sample.text))
        return sum(all(script(c) in scripts[language] for c in word) for word in words) / max(len(words), 1)

    return reward


def split_words(text: str) -> list[str]:
    """Runs of letters, and each character of a script without spaces; numbers and signs separate words.

    Vowel signs and accents, which have no script of their own, are dropped, and single Latin and Greek letters, which
    are mostly variables.
    """
    # NFKC turns letters in mathematical type into plain letters.
    text = "".join(unicodedata.normalize("NFKC", c) if c.isalpha() else c for c in NOT_PROSE.sub(" ", text))
    text = SPELT.sub(lambda match: re.sub(r"[ .\-_]", "", match[0]), text)
    words = "".join(separate(c) for c in text).split()
    return [word for word in words if len(word) > 1 or script(word) not in ("LATIN", "GREEK")]


def separate(character: str) -> str:
    """The character with spaces where words end; "" for a mark, which belongs to the letter before it."""
    if not character.isalpha():
        return "" if unicodedata.category(character).startswith("M") else " "
    return f" {character} " if script(character) in UNSPACED else character


@lru_cache(maxsize=4096)
def script(letter: str) -> str:
    """The first word of its Unicode name, "LATIN" for LATIN SMALL LETTER A; "" without a name."""
    return unicodedata.name(letter, "").partition(" ")[0]
