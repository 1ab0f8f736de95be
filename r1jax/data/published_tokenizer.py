"""Tokenizers of published checkpoints: tokenizer.json or tokenizer.model, with tokenizer_config.json."""

import json
from typing import Any, Protocol

import jinja2.sandbox
import tokenizers
from etils import epath

from r1jax.errors import UsageError

# The files that make up a published tokenizer.
FILES = (
    "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja",
    "generation_config.json",
)  # fmt: skip


class Codec(Protocol):
    """Converts text to ids and back, by the `tokenizers` library or by SentencePiece."""

    size: int  # largest id + 1
    bos: str  # the vocabulary's own begin and end tokens, "" without
    eos: str

    def token_id(self, token: str) -> int | None: ...
    def encode(self, text: str) -> list[int]: ...
    def decode(self, ids: list[int]) -> str: ...


class TokenizersCodec:
    """A tokenizer.json, which names no begin or end token."""

    bos = eos = ""

    def __init__(self, path: epath.Path):
        try:
            self.tokenizer = tokenizers.Tokenizer.from_str(path.read_text())
        except Exception as error:  # the library raises Exception itself
            raise UsageError(f"{path} can't be read: {error}") from error
        self.size = max(self.tokenizer.get_vocab(with_added_tokens=True).values()) + 1

    def token_id(self, token: str) -> int | None:
        return self.tokenizer.token_to_id(token)

    def encode(self, text: str) -> list[int]:
        try:
            return self.tokenizer.encode(text, add_special_tokens=False).ids
        except Exception as error:  # raised for unknown words, which a word-level vocabulary has
            raise UsageError(f"the tokenizer can't encode {text[:40]!r}: {error}") from error

    def decode(self, ids: list[int]) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=False)


class PublishedTokenizer:
    """A codec with the begin and end tokens and the chat template of tokenizer_config.json."""

    def __init__(self, directory: epath.Path, codec: Codec):
        """Raises UsageError when a file can't be read or the vocabulary lacks the end token."""
        path = directory / "tokenizer_config.json"
        self.directory, self.codec, self.size = directory, codec, codec.size
        self.config = read_json(path) if path.exists() else {}
        self.bos = token_text(self.config, "bos_token", path) or codec.bos
        self.eos = token_text(self.config, "eos_token", path) or codec.eos
        self.bos_id, eos_id = codec.token_id(self.bos), codec.token_id(self.eos)
        if eos_id is None:
            raise UsageError(f"{path}: eos_token '{self.eos}' is not in the vocabulary")
        self.eos_id: int = eos_id
        self.begins_with_bos = self.bos_id is not None and self.config.get("add_bos_token", bool(codec.bos))
        self.template = chat_template(directory, self.config)

    def encode(self, text: str) -> list[int]:
        """Ids of the text, without a begin or end token; special tokens written in the text become their ids."""
        return self.codec.encode(text)

    def decode(self, ids: list[int]) -> str:
        return self.codec.decode(ids)

    def prompt(self, question: str) -> list[int]:
        """Ids of the question in the chat template, or, without a template, behind the configured begin token."""
        if self.template is not None:
            return self.encode(self.chat([{"role": "user", "content": question}]))
        ids = self.encode(question)
        return [self.bos_id, *ids] if self.begins_with_bos and self.bos_id is not None else ids

    def chat(self, messages: list[dict[str, Any]], *, add_generation_prompt: bool = True, **variables: Any) -> str:
        """Renders the chat template in a sandbox. Raises UsageError without a template, and when it fails."""
        if self.template is None:
            raise UsageError(f"{self.directory}: the tokenizer has no chat_template")
        names = {"bos_token": self.bos, "eos_token": self.eos, "add_generation_prompt": add_generation_prompt}
        try:
            return self.template.render(messages=messages, **names, **variables)
        except Exception as error:  # a template is a program and can raise anything
            raise UsageError(f"{self.directory}: chat_template fails on these messages: {error}") from error

    def save(self, directory: epath.Path) -> None:
        for path in (self.directory / name for name in FILES):
            if path.exists():
                path.copy(directory / path.name, overwrite=True)


def load_tokenizer(directory: epath.Path) -> PublishedTokenizer | None:
    """The tokenizer in a published checkpoint's directory; None when it has none."""
    if (path := directory / "tokenizer.json").exists():
        return PublishedTokenizer(directory, TokenizersCodec(path))
    if (path := directory / "tokenizer.model").exists():
        from r1jax.data.seqio_tasks import SentencePieceCodec  # imports TensorFlow

        return PublishedTokenizer(directory, SentencePieceCodec(path))
    return None


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
    """The text of a token in tokenizer_config.json, where it is text or an object; "" when it is missing."""
    token = config.get(key) or ""
    text = token.get("content") if isinstance(token, dict) else token
    if not isinstance(text, str):
        raise UsageError(f"{path}: {key} is {token!r}, expected text")
    return text


def chat_template(directory: epath.Path, config: dict[str, Any]) -> jinja2.Template | None:
    """The chat template, in transformers' environment so that published templates render alike; None without one."""
    path = directory / "chat_template.jinja"
    text = path.read_text() if path.exists() else config.get("chat_template")
    if isinstance(text, list):  # several named templates
        text = {t.get("name"): t.get("template") for t in text if isinstance(t, dict)}.get("default")
    if text is None:
        return None
    if not isinstance(text, str):
        raise UsageError(f"{directory}: chat_template is {text!r}, expected text")
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )

    def raise_template_error(message: str) -> None:
        raise jinja2.TemplateError(message)

    environment.filters["tojson"] = lambda value, indent=None: json.dumps(value, ensure_ascii=False, indent=indent)
    environment.globals["raise_exception"] = raise_template_error
    try:
        return environment.from_string(text)
    except jinja2.TemplateError as error:
        raise UsageError(f"{directory}: chat_template can't be parsed: {error}") from error
