"""The tokenizers of published checkpoints: tokenizer.json or tokenizer.model, and tokenizer_config.json."""

import json
from typing import Any, Protocol

import jinja2.sandbox
import tokenizers
from etils import epath

from r1jax.data.tokenizer import copy_files
from r1jax.errors import UsageError


class Codec(Protocol):
    """Text to ids and back: the `tokenizers` library's, or SentencePiece's."""

    size: int  # largest id + 1
    bos: str  # what it begins and ends a text with by itself; "" for nothing
    eos: str

    def token_id(self, token: str) -> int | None: ...
    def encode(self, text: str) -> list[int]: ...
    def decode(self, ids: list[int]) -> str: ...


class TokenizersCodec:
    """A tokenizer.json."""

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
        except Exception as error:  # the library's own, as for a word that is not in a vocabulary of words
            raise UsageError(f"the tokenizer can't encode {text[:40]!r}: {error}") from error

    def decode(self, ids: list[int]) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=False)


class PublishedTokenizer:
    """A codec, and what tokenizer_config.json says: which tokens begin and end a text, and the chat template."""

    def __init__(self, directory: epath.Path, codec: Codec):
        """Raises UsageError when the files can't be read, or name no end token."""
        path = directory / "tokenizer_config.json"
        self.directory, self.codec = directory, codec
        self.config = read_json(path) if path.exists() else {}
        self.bos = token_text(self.config, "bos_token", path) or codec.bos
        self.eos = token_text(self.config, "eos_token", path) or codec.eos
        self.bos_id, eos_id = codec.token_id(self.bos), codec.token_id(self.eos)
        if eos_id is None:
            raise UsageError(f"{path}: eos_token '{self.eos}' is not in the vocabulary")
        self.eos_id: int = eos_id
        self.template = chat_template(directory, self.config)

    @property
    def size(self) -> int:
        return self.codec.size

    @property
    def begins_with_bos(self) -> bool:
        return self.bos_id is not None and self.config.get("add_bos_token", bool(self.codec.bos))

    def encode(self, text: str) -> list[int]:
        """Ids of the text alone; special tokens that are written out in it become their ids."""
        return self.codec.encode(text)

    def decode(self, ids: list[int]) -> str:
        return self.codec.decode(ids)

    def prompt(self, question: str) -> list[int]:
        """The question in the chat template; without one, after what the config says that texts begin with."""
        if self.template is not None:
            return self.encode(self.chat([{"role": "user", "content": question}]))
        ids = self.encode(question)
        return [self.bos_id, *ids] if self.begins_with_bos and self.bos_id is not None else ids

    def chat(self, messages: list[dict[str, Any]], *, add_generation_prompt: bool = True, **variables: Any) -> str:
        """Messages in the chat template, in a sandbox. Raises UsageError where there is none, or it refuses them."""
        if self.template is None:
            raise UsageError(f"{self.directory}: the tokenizer has no chat template")
        names = {"bos_token": self.bos, "eos_token": self.eos, "add_generation_prompt": add_generation_prompt}
        try:
            return self.template.render(messages=messages, **names, **variables)
        except Exception as error:  # a template is a program: what it raises is anything
            raise UsageError(f"{self.directory}: the chat template refuses these messages: {error}") from error

    def save(self, directory: epath.Path) -> None:
        copy_files(self.directory, directory)


def load_tokenizer(directory: epath.Path) -> PublishedTokenizer | None:
    """The tokenizer in a published checkpoint's directory; None where there is none."""
    if (directory / "tokenizer.json").exists():
        return PublishedTokenizer(directory, TokenizersCodec(directory / "tokenizer.json"))
    if (directory / "tokenizer.model").exists():
        from r1jax.data.seqio_tasks import SentencePieceCodec  # brings TensorFlow

        return PublishedTokenizer(directory, SentencePieceCodec(directory / "tokenizer.model"))
    return None


def read_json(path: epath.Path) -> dict[str, Any]:
    """Raises UsageError when the file is missing or no JSON object."""
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"{path} can't be read: {error}") from error
    if not isinstance(value, dict):
        raise UsageError(f"{path} holds no JSON object")
    return value


def token_text(config: dict[str, Any], key: str, path: epath.Path) -> str:
    """A token as tokenizer_config.json has it: text, or an object; "" for none."""
    token = config.get(key) or ""
    text = token.get("content") if isinstance(token, dict) else token
    if not isinstance(text, str):
        raise UsageError(f"{path}: {key} is {token!r}, expected text")
    return text


def chat_template(directory: epath.Path, config: dict[str, Any]) -> jinja2.Template | None:
    """Set up as transformers sets it up, so that published templates render alike."""
    text = config.get("chat_template")
    if (directory / "chat_template.jinja").exists():
        text = (directory / "chat_template.jinja").read_text()
    if isinstance(text, list):  # several, by name
        text = {t.get("name"): t.get("template") for t in text if isinstance(t, dict)}.get("default")
    if text is None:
        return None
    if not isinstance(text, str):
        raise UsageError(f"{directory}: chat_template is {text!r}, expected text")
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = lambda value, indent=None: json.dumps(value, ensure_ascii=False, indent=indent)
    environment.globals["raise_exception"] = refuse
    try:
        return environment.from_string(text)
    except jinja2.TemplateError as error:
        raise UsageError(f"{directory}: the chat template can't be read: {error}") from error


def refuse(message: str) -> None:
    raise jinja2.TemplateError(message)
