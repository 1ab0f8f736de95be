"""Tokenizers: what a task needs of one, and the word-level one of the demo."""

from typing import Protocol

from r1jax.errors import UsageError


class Tokenizer(Protocol):
    @property
    def size(self) -> int: ...
    @property
    def eos_id(self) -> int: ...
    def encode(self, text: str) -> list[int]: ...
    def decode(self, ids: list[int]) -> str: ...


class WordTokenizer:
    """One token a word; words are separated by spaces. Id 0 is padding."""

    def __init__(self, words: list[str], eos: str):
        self.words = words
        self.ids = {word: i for i, word in enumerate(words)}
        if len(self.ids) != len(words):
            raise ValueError("a word stands twice in the vocabulary")
        self.eos = eos

    @property
    def size(self) -> int:
        return len(self.words)

    @property
    def eos_id(self) -> int:
        return self.ids[self.eos]

    def encode(self, text: str) -> list[int]:
        """Raises UsageError for a word outside the vocabulary."""
        unknown = [word for word in text.split() if word not in self.ids]
        if unknown:
            raise UsageError(f"word '{unknown[0]}' is not among the {self.size} words of this task's vocabulary")
        return [self.ids[word] for word in text.split()]

    def decode(self, ids: list[int]) -> str:
        return " ".join(self.words[i] for i in ids)
