"""The interface of tokenizers, and a word-level tokenizer."""

import json
from typing import Protocol

import tokenizers
from etils import epath

from r1jax.errors import UsageError


class Tokenizer(Protocol):
    size: int  # largest id + 1
    bos_id: int | None
    eos_id: int  # its own end token
    eos_ids: tuple[int, ...]  # and all others that end a response

    def encode(self, text: str) -> list[int]: ...
    def encode_plain(self, text: str) -> list[int]: ...  # without special tokens, whatever is written in the text
    def decode(self, ids: list[int]) -> str: ...
    def prompt(self, question: str) -> list[int]: ...  # ids of a question in the chat template, if it has one
    def save(self, directory: epath.Path) -> None: ...  # as tokenizer.json or tokenizer.model


class WordTokenizer:
    """One token per word, words separated by spaces. Id 0 is padding."""

    def __init__(self, words: list[str], eos: str):
        self.words, self.eos = words, eos
        self.ids = {word: i for i, word in enumerate(words)}
        if len(self.ids) != len(words):
            raise ValueError("words has duplicates, expected each word once")
        self.size = len(words)
        self.bos_id, self.eos_id = self.ids.get("<bos>"), self.ids[eos]
        self.eos_ids: tuple[int, ...] = (self.eos_id,)

    def encode(self, text: str) -> list[int]:
        """Raises UsageError for a word outside the vocabulary."""
        unknown = [word for word in text.split() if word not in self.ids]
        if unknown:
            raise UsageError(f"word '{unknown[0]}' is not among the {self.size} words of this task's vocabulary")
        return [self.ids[word] for word in text.split()]

    def encode_plain(self, text: str) -> list[int]:
        """Raises UsageError for an end or begin token too."""
        ids = self.encode(text)
        if special := [self.words[i] for i in ids if i == self.bos_id or i in self.eos_ids]:
            raise UsageError(f"the text has the special token '{special[0]}', expected plain words")
        return ids

    def decode(self, ids: list[int]) -> str:
        return " ".join(self.words[i] for i in ids)

    def prompt(self, question: str) -> list[int]:
        return self.encode(question)

    def save(self, directory: epath.Path) -> None:
        tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(self.ids))
        tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
        (directory / "tokenizer.json").write_text(tokenizer.to_str(pretty=True))
        bos = {} if self.bos_id is None else {"bos_token": self.words[self.bos_id]}
        config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": self.eos, **bos}
        (directory / "tokenizer_config.json").write_text(json.dumps(config, indent=1))
