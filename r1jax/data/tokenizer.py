"""Tokenizers: what the rest needs of one, and the word-level one of the demo."""

import json
from typing import Protocol

import tokenizers
from etils import epath

from r1jax.errors import UsageError

# What a published tokenizer consists of, beside the model.
FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "generation_config.json",
)


class Tokenizer(Protocol):
    @property
    def size(self) -> int: ...  # largest id + 1
    @property
    def bos_id(self) -> int | None: ...
    @property
    def eos_id(self) -> int: ...
    def encode(self, text: str) -> list[int]: ...
    def decode(self, ids: list[int]) -> str: ...
    def prompt(self, question: str) -> list[int]: ...  # ids that a model is asked the question with
    def save(self, directory: epath.Path) -> None: ...  # in the published form


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
    def bos_id(self) -> int | None:
        return self.ids.get("<bos>")

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

    def prompt(self, question: str) -> list[int]:
        return self.encode(question)

    def save(self, directory: epath.Path) -> None:
        tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(self.ids))
        tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
        (directory / "tokenizer.json").write_text(tokenizer.to_str(pretty=True))
        bos = {} if self.bos_id is None else {"bos_token": self.words[self.bos_id]}
        config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": self.eos, **bos}
        (directory / "tokenizer_config.json").write_text(json.dumps(config, indent=1))


def copy_files(source: epath.Path, directory: epath.Path) -> None:
    for name in FILES:
        if (source / name).exists():
            (source / name).copy(directory / name, overwrite=True)
