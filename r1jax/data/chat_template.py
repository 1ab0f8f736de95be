"""Chat templates of published tokenizers, in an environment like transformers', so that they render alike."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox
from etils import epath

from r1jax.errors import UsageError

Message = Mapping[str, Any]
REASONING = ("reasoning_content", "thinking", "reasoning")  # names of a message's reasoning; templates read the first


@dataclass(frozen=True)
class ChatTemplate:
    """A template that renders messages in a sandbox.

    A template that can't be read or parsed has an `error` instead of a program: weights can be imported all the same.
    """

    directory: epath.Path
    program: jinja2.Template | None
    error: str = ""

    def render(self, messages: Sequence[Message], **variables: Any) -> str:
        """Raises UsageError when the template has an error, and when it fails on the messages."""
        if self.program is None:
            raise UsageError(self.error)
        absent = {"tools": None, "documents": None}
        try:
            return self.program.render(messages=[with_reasoning(m) for m in messages], **absent | variables)
        except Exception as error:  # a template is a program and can raise anything
            raise UsageError(f"{self.directory}: chat_template fails on these messages: {one_line(error)}") from error


def load_chat_template(directory: epath.Path, config: Mapping[str, Any]) -> ChatTemplate | None:
    """The template in chat_template.jinja or tokenizer_config.json; None without one."""
    try:
        text = template_text(directory, config)
        return None if text is None else ChatTemplate(directory, make_environment().from_string(text))
    except Exception as error:  # templates are compiled to Python, which raises many types
        hint = "mend it to ask in the chat template"
        return ChatTemplate(directory, None, f"{directory}: chat_template can't be read: {one_line(error)}; {hint}")


def template_text(directory: epath.Path, config: Mapping[str, Any]) -> str | None:
    """The text of the default template. Raises OSError, or ValueError for anything but text."""
    path = directory / "chat_template.jinja"
    text = path.read_text() if path.exists() else config.get("chat_template")
    if isinstance(text, list):  # several named templates
        names = {t.get("name"): t.get("template") for t in text if isinstance(t, dict)}
        if "default" not in names:
            raise ValueError(f"it has the names {list(names)}, expected one named 'default'")
        text = names["default"]
    if not isinstance(text, str | None):
        raise ValueError(f"it is {text!r}, expected text")
    return text


def with_reasoning(message: Message) -> dict[str, Any]:
    """A message without keys that are None, and with its reasoning, if any, under the names that templates read."""
    given = {key: value for key, value in message.items() if value is not None}
    if (name := next((name for name in REASONING if name in given), None)) is not None:
        given = {"thinking": given[name]} | given | {"reasoning_content": given[name]}
    return given


def one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())


# ---- the environment


class GenerationExtension(jinja2.ext.Extension):
    """`{% generation %} … {% endgeneration %}`, which marks what the assistant says, renders as its contents."""

    tags = {"generation"}

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("contents"), [], [], body).set_lineno(line)

    def contents(self, caller: jinja2.runtime.Macro) -> str:
        return caller()


class Namespace(jinja2.utils.Namespace):
    """A `namespace` that refuses underscores: Jinja's accepts `__call__`, say, and calls it unchecked."""

    def __init__(*args: Any, **attributes: Any):  # an attribute may be named self
        for name in dict(*args[1:], **attributes):
            require_public(name)
        jinja2.utils.Namespace.__init__(*args, **attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        require_public(name)
        super().__setitem__(name, value)


def require_public(name: Any) -> None:
    if str(name).startswith("_"):
        raise jinja2.exceptions.SecurityError(f"unsafe attribute {name!r} of a namespace")


frozen: datetime | None = None


def freeze_date(time: str) -> None:
    """Templates show this date, in ISO 8601, from now on: a run that is resumed on another day asks as before."""
    global frozen
    frozen = datetime.fromisoformat(time)


def make_environment() -> jinja2.sandbox.ImmutableSandboxedEnvironment:
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[GenerationExtension, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = to_json
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda form: (frozen or datetime.now()).strftime(form)
    environment.globals["namespace"] = Namespace
    return environment


def to_json(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
):
    """Jinja's own `tojson` escapes HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)
