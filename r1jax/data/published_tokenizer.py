"""The tokenizers of published checkpoints: tokenizer.json or tokenizer.model, and tokenizer_config.json."""

import json
from typing import Any

import jinja2.sandbox
import tokenizers
from etils import epath

from r1jax.data.tokenizer import Tokenizer, copy_files
from r1jax.errors import UsageError


class PublishedTokenizer:
    """The tokenizer.json and tokenizer_config.json of a published checkpoint."""

    def __init__(self, directory: epath.Path):
        """Raises UsageError when the files can't be read, or name no end token."""
        self.directory = directory
        self.config = read_json(directory / "tokenizer_config.json")
        try:
            self.tokenizer = tokenizers.Tokenizer.from_str((directory / "tokenizer.json").read_text())
        except Exception as error:  # the library raises Exception itself
            raise UsageError(f"{directory / 'tokenizer.json'} can't be read: {error}") from error
        self.bos, self.eos = (token_text(self.config.get(name)) for name in ("bos_token", "eos_token"))
        self.bos_id, eos_id = (self.tokenizer.token_to_id(token) for token in (self.bos, self.eos))
        if eos_id is None:
            raise UsageError(f"{directory / 'tokenizer_config.json'}: eos_token '{self.eos}' is not in tokenizer.json")
        self.eos_id: int = eos_id
        self.template = chat_template(directory, self.config)

    @property
    def size(self) -> int:
        return max(self.tokenizer.get_vocab(with_added_tokens=True).values()) + 1

    def encode(self, text: str) -> list[int]:
        """Ids of the text alone; special tokens that are written out in it become their ids."""
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def decode(self, ids: list[int]) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=False)

    def prompt(self, question: str) -> list[int]:
        if self.template is not None:
            return self.encode(self.chat([{"role": "user", "content": question}]))
        bos_id = self.bos_id if self.config.get("add_bos_token", False) else None
        return ([] if bos_id is None else [bos_id]) + self.encode(question)

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


def load_tokenizer(directory: epath.Path) -> Tokenizer | None:
    """The tokenizer in a published checkpoint's directory; None where there is none."""
    if (directory / "tokenizer.json").exists():
        return PublishedTokenizer(directory)
    if (directory / "tokenizer.model").exists():
        from r1jax.data.seqio_tasks import SentencePieceTokenizer  # brings TensorFlow

        return SentencePieceTokenizer(directory)
    return None


def read_json(path: epath.Path) -> dict[str, Any]:
    """Raises UsageError when the file is missing or no JSON object."""
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} can't be read: {error}") from error
    if not isinstance(value, dict):
        raise UsageError(f"{path} holds no JSON object")
    return value


def token_text(token: str | dict | None) -> str:
    """A token as tokenizer_config.json has it: text, or an object; "" for none."""
    return token["content"] if isinstance(token, dict) else token or ""


def chat_template(directory: epath.Path, config: dict[str, Any]) -> jinja2.Template | None:
    """Set up as transformers sets it up, so that published templates render alike."""
    text = config.get("chat_template")
    if (directory / "chat_template.jinja").exists():
        text = (directory / "chat_template.jinja").read_text()
    if isinstance(text, list):  # several, by name
        text = {t["name"]: t["template"] for t in text}.get("default")
    if text is None:
        return None
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
