"""Language consistency by the scripts of Unicode, and by a language identifier where languages share a script.

The identifier is py3langid (BSD-3-Clause, 4.6 MB, NumPy only): naive Bayes over byte n-grams, a table of 140 languages
that comes with the package. It is deterministic and offline; a window of text takes 40 microseconds.
"""

from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any

from r1jax.errors import UsageError
from r1jax.rewards.rules import RewardFunction, consistency, read_reasoning
from r1jax.rewards.words import HAN, KANA, LONGEST_WORD, UNSPACED, script
from r1jax.types import Sample

SCRIPTS = {
    "ar": frozenset({"ARABIC"}), "de": frozenset({"LATIN"}), "el": frozenset({"GREEK"}), "en": frozenset({"LATIN"}),
    "es": frozenset({"LATIN"}), "fr": frozenset({"LATIN"}), "he": frozenset({"HEBREW"}),
    "hi": frozenset({"DEVANAGARI"}), "ja": HAN | KANA, "ko": frozenset({"HANGUL"}), "ru": frozenset({"CYRILLIC"}),
    "uk": frozenset({"CYRILLIC"}), "zh": HAN,
}  # fmt: skip
# The identifier chooses among these: rare languages would only take over short texts full of formulas.
KNOWN = (
    "ar bg ca cs da de el en es fa fi fr he hi hr hu id it ja ko mr ne nl no pl pt ro ru sr sv tr uk ur vi zh"
).split()
WINDOW = 48  # bytes of text that are identified together, about eight words
FEWEST = 12  # bytes of text that are identified
DOUBT = 0.3  # the ratio of probabilities, of the language and the likeliest, at which a window counts in full


def script_consistency_reward(scripts: Mapping[str, frozenset[str]] = SCRIPTS) -> RewardFunction:
    """Returns a reward in [0, 1]: the share of the reasoning's words in the problem's language (R1, section 2.3.2).

    It is 0 without words; `rules.consistency` says what else lowers it. `scripts` maps a language to its scripts, named
    by the first word of their letters' Unicode names. All letters of a word must be in them, so that a look-alike
    letter makes the word foreign. Words in the scripts are identified, some at a time, and count by how likely their
    window is in the language. The reward raises UsageError for a language that `scripts` lacks.
    """

    def reward(sample: Sample) -> float:
        language = sample.problem.language
        if language not in scripts:
            known = ", ".join(sorted(scripts))
            raise UsageError(f"problem {sample.problem.id}: language is {language!r}, expected one of {known}")

        def count(words: list[str]) -> float:
            return identified([word for word in words if is_written_in(word, scripts[language])], language)

        return consistency(read_reasoning(sample.text), count)

    return reward


@lru_cache(maxsize=1 << 14)
def is_written_in(word: str, scripts: frozenset[str]) -> bool:
    return all(script(letter) in scripts for letter in word)


def identified(words: list[str], language: str) -> float:
    """How many of the words, which are in its scripts, are in the language; all where that can't be told."""
    if language not in KNOWN or sum(map(size, words)) < FEWEST:
        return float(len(words))
    total = 0.0
    for window in windows(words):
        telling = (word for word in window if len(word) <= LONGEST_WORD or len(set(word)) > 3)
        text = "".join(word if script(word[0]) in UNSPACED else f" {word}" for word in telling)
        total += len(window) * likelihood(text, language)
    return total


def windows(words: list[str]) -> Iterator[list[str]]:
    """Successive words of WINDOW bytes or more, the last up to twice as many."""
    first, remaining, own = 0, sum(map(size, words)), 0
    for i, word in enumerate(words):
        own, remaining = own + size(word), remaining - size(word)
        if own >= WINDOW and remaining >= WINDOW:
            yield words[first : i + 1]
            first, own = i + 1, 0
    if first < len(words):
        yield words[first:]


def size(text: str) -> int:
    return len(text.encode(errors="replace"))


def likelihood(text: str, language: str) -> float:
    """How likely the text is in the language, from 0 to 1: in full unless another is `1 / DOUBT` times as likely.

    The fewer letters, the less is held against it.
    """
    identifier = load_identifier()
    likeliest, probability = identifier.classify(text)
    if not text or likeliest == language:
        return 1.0
    ratio = dict(identifier.rank(text))[language] / probability
    evidence = min(1.0, size(text) / WINDOW)
    return min(1.0, ratio / (DOUBT * evidence**2))


@lru_cache(maxsize=1)
def load_identifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    identifier.set_languages(KNOWN)
    return identifier
