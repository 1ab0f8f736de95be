"""Tokenizers of published checkpoints: tokenizer.json or tokenizer.model, with tokenizer_config.json."""

import functools
import json
from collections.abc import Sequence
from typing import Any, Protocol

import tokenizers
from etils import epath

from r1jax.data.chat_template import ChatTemplate, Message, load_chat_template
from r1jax.errors import UsageError

# The files of a published checkpoint that name its end tokens, and all that make up its tokenizer.
CONFIGS = ("generation_config.json", "config.json")
FILES = (
    "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja",
    *CONFIGS,
)  # fmt: skip
# The tokens that tokenizer_config.json names, which chat templates know by these names.
SPECIAL = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


class Codec(Protocol):
    """Converts text to ids and back, by the `tokenizers` library or by SentencePiece."""

    size: int  # largest id + 1
    bos: str  # the vocabulary's own begin and end tokens, "" without
    eos: str

    def token_id(self, token: str) -> int | None: ...
    def begin(self, text: str) -> list[str]: ...  # the tokens that its file puts before the text
    def encode(self, text: str) -> list[int]: ...
    def encode_plain(self, text: str) -> list[int]: ...
    def decode(self, ids: list[int]) -> str: ...


class TokenizersCodec:
    """A tokenizer.json, which names no begin or end token."""

    bos = eos = ""

    def __init__(self, path: epath.Path):
        try:
            self.tokenizer = tokenizers.Tokenizer.from_str(path.read_text())
        except Exception as error:  # the library raises Exception itself
            raise UsageError(f"{path} can't be read: {error}") from error
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()
        self.size = max(self.tokenizer.get_vocab(with_added_tokens=True).values()) + 1

    def token_id(self, token: str) -> int | None:
        return self.tokenizer.token_to_id(token)

    def begin(self, text: str) -> list[str]:
        encoded = self._encode(text, add_special_tokens=True)
        first = next((i for i, sequence in enumerate(encoded.sequence_ids) if sequence is not None), 0)
        return encoded.tokens[:first]

    def encode(self, text: str) -> list[int]:
        return self._encode(text, add_special_tokens=False).ids

    @functools.cached_property
    def plain(self) -> tokenizers.Tokenizer:
        """The same without its added tokens: text that looks like one is split like any other."""
        return tokenizers.Tokenizer.from_str(json.dumps(json.loads(self.tokenizer.to_str()) | {"added_tokens": []}))

    def encode_plain(self, text: str) -> list[int]:
        return self.plain.encode(text, add_special_tokens=False).ids

    def _encode(self, text: str, *, add_special_tokens: bool) -> tokenizers.Encoding:
        try:
            return self.tokenizer.encode(text, add_special_tokens=add_special_tokens)
        except Exception as error:  # raised for unknown words, which a word-level vocabulary has
            raise UsageError(f"the tokenizer can't encode {text[:40]!r}: {error}") from error

    def decode(self, ids: list[int]) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=False)


class PublishedTokenizer:
    """A codec with the begin and end tokens and the chat template that the files beside it name.

    Attributes:
      eos_ids: all end tokens: the tokenizer's own, `eos_id`, then those of generation_config.json and config.json.
      begin: the tokens that precede a text outside the chat template, which writes its own.
    """

    def __init__(self, directory: epath.Path, codec: Codec):
        """Raises UsageError when a file can't be read, and without an end token in the vocabulary."""
        path = directory / "tokenizer_config.json"
        self.directory, self.codec, self.size = directory, codec, codec.size
        config = read_tokenizer_config(directory)
        named = {name: token_text(config, name, path) for name in SPECIAL if config.get(name)}
        tokens = {"bos_token": codec.bos, "eos_token": codec.eos} | named
        self.special_tokens = {name: text for name, text in tokens.items() if text}
        self.bos = tokens["bos_token"]
        self.bos_id = codec.token_id(self.bos)
        self.eos_ids = end_ids(directory, codec, tokens["eos_token"])
        self.eos_id = self.eos_ids[0]
        adds_bos = self.bos_id is not None and config.get("add_bos_token", bool(codec.bos))
        a_text = codec.decode([self.eos_id])  # one that every vocabulary has; the tokenizer may append to it
        self.begin = codec.begin(a_text) or ([self.bos] if adds_bos else [])
        self.template: ChatTemplate | None = load_chat_template(directory, config)

    def encode(self, text: str) -> list[int]:
        """Ids of the text, without a begin or end token; special tokens written in the text become their ids."""
        return self.codec.encode(text)

    def encode_plain(self, text: str) -> list[int]:
        """Ids of the text, in which nothing becomes a special token."""
        return self.codec.encode_plain(text)

    def decode(self, ids: list[int]) -> str:
        return self.codec.decode(ids)

    def prompt(self, question: str) -> list[int]:
        """Ids of the question in the chat template, or, without a template, behind the begin tokens."""
        if self.template is not None:
            return self.encode(self.chat([{"role": "user", "content": question}]))
        return [*self.begin_ids, *self.encode(question)]

    @property
    def begin_ids(self) -> list[int]:
        return [i for token in self.begin if (i := self.codec.token_id(token)) is not None]

    def chat(self, messages: Sequence[Message], *, add_generation_prompt: bool = True, **variables: Any) -> str:
        """Renders the chat template. Raises UsageError without a template, and when it can't be read or fails."""
        if self.template is None:
            raise UsageError(f"{self.directory}: the tokenizer has no chat_template")
        variables = self.special_tokens | {"add_generation_prompt": add_generation_prompt} | variables
        return self.template.render(messages, **variables)

    def save(self, directory: epath.Path) -> None:
        copy_files(self.directory, directory, FILES)


def load_tokenizer(directory: epath.Path) -> PublishedTokenizer | None:
    """The tokenizer in a published checkpoint's directory; None when it has none."""
    if (path := directory / "tokenizer.json").exists():
        return PublishedTokenizer(directory, TokenizersCodec(path))
    if (path := directory / "tokenizer.model").exists():
        from r1jax.data.seqio_tasks import SentencePieceCodec  # imports TensorFlow

        return PublishedTokenizer(directory, SentencePieceCodec(path))
    return None


def copy_files(source: epath.Path, dest: epath.Path, names: Sequence[str]) -> None:
    """Copies those of the files that exist."""
    for path in (source / name for name in names):
        if path.is_file():
            path.copy(dest / path.name, overwrite=True)


def read_tokenizer_config(directory: epath.Path) -> dict[str, Any]:
    """tokenizer_config.json; older tokenizers name special tokens in special_tokens_map.json too, which then counts."""
    path, older = directory / "tokenizer_config.json", directory / "special_tokens_map.json"
    config = read_json(path) if path.exists() else {}
    if "added_tokens_decoder" in config or not older.exists():
        return config
    return config | {name: token for name, token in read_json(older).items() if name in SPECIAL}


def end_ids(directory: epath.Path, codec: Codec, eos: str) -> tuple[int, ...]:
    """The tokenizer's own end token `eos`, "" for none, and those that the configs beside it name.

    Raises UsageError when the vocabulary has none of them, or lacks `eos`.
    """
    own, named = codec.token_id(eos), config_end_ids(directory, codec.size)
    path = directory / "tokenizer_config.json"
    if eos and own is None:
        raise UsageError(f"{path}: eos_token '{eos}' is not in the vocabulary")
    if own is None and not named:
        raise UsageError(f"{path}: eos_token is missing, and no config.json beside it has an eos_token_id: set one")
    return tuple(dict.fromkeys([*([] if own is None else [own]), *named]))


def config_end_ids(directory: epath.Path, size: int) -> tuple[int, ...]:
    """The end tokens below `size` that generation_config.json and config.json name.

    Raises UsageError when one of the files has anything but ids.
    """
    found: list[int] = []
    for path in (directory / name for name in CONFIGS):
        value = read_json(path).get("eos_token_id") if path.exists() else None
        ids = value if isinstance(value, list) else [] if value is None else [value]
        if not all(type(i) is int for i in ids):
            raise UsageError(f"{path}: eos_token_id is {value!r}, expected a token id, a list of ids, or null")
        found += [i for i in ids if 0 <= i < size]
    return tuple(dict.fromkeys(found))


def read_json(path: epath.Path) -> dict[str, Any]:
    """A file's JSON object. Raises UsageError when the file is missing or holds anything else."""
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"{path} can't be read: {error}") from error
    if not isinstance(value, dict):
        raise UsageError(f"{path} holds a JSON {type(value).__name__}, expected an object")
    return value


def token_text(config: dict[str, Any], key: str, path: epath.Path) -> str:
    """The text of a token in tokenizer_config.json, where it is text or an object."""
    token = config[key]
    text = token.get("content") if isinstance(token, dict) else token
    if not isinstance(text, str):
        raise UsageError(f"{path}: {key} is {token!r}, expected text")
    return text
