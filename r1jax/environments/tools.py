"""Tools: typed Python functions that a policy calls in its turns, and reads the results of."""

import inspect
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, get_type_hints

from r1jax.errors import UsageError
from r1jax.types import Problem, Step

Tool = Callable[..., Any]  # with a __name__, annotated parameters and a docstring
Call = tuple[str, dict[str, Any]]  # a tool's name, and its arguments

TYPES = {str: "string", int: "integer", float: "number", bool: "boolean", list: "array", dict: "object"}
# A call as Hermes and Qwen write it; the whole turn, as Llama 3 writes it; and for bases <tool> NAME ARGUMENT </tool>.
# The last tag of a turn may be missing: as a stop string it is cut off.
TAGGED_CALL = re.compile(r"<(tool_call|tool)>(.*?)(?:</\1>|\Z)", re.DOTALL)
BARE_CALL = re.compile(r"(?:<\|python_tag\|>\s*)?(\{.*\})", re.DOTALL)
NAMED = inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY  # parameters as calls give them


@dataclass
class ToolEnvironment:
    """Runs the tools that each turn calls; a turn that calls none is the last.

    A call that can't be read and a tool that raises are answered with what went wrong.

    Attributes:
      tools: a tool with state, an object with `__call__`, has to be made for each environment.
      result: the text of an answer, with {} where the results stand.
      error: the result of a call that fails, with {} where the reason stands, if at all.
    """

    tools: Sequence[Tool]
    result: str = "{}"
    error: str = "error: {}"

    def __post_init__(self) -> None:
        self.by_name = {name_of(tool): tool for tool in self.tools}
        for tool in self.tools:
            parameters(tool)  # raises for one that can't be called
        if len(self.by_name) < len(self.tools):
            raise UsageError(f"two tools have the same name: {', '.join(map(name_of, self.tools))}")

    def reset(self, problem: Problem, seed: int) -> None:
        """Tools know nothing of the problem."""

    def step(self, turn: str) -> Step:
        results = [self.run(read, text) for read, text in self.find_calls(turn)]
        return Step(self.result.replace("{}", "\n".join(results))) if results else Step(done=True)

    def find_calls(self, turn: str) -> list[tuple[Callable[[str], Call], str]]:
        """The text of each call, and the function that reads it."""
        if (bare := BARE_CALL.fullmatch(turn.strip())) and '"name"' in bare[1]:  # other JSON is an answer
            return [(read_json, bare[1])]
        readers = {"tool_call": read_json, "tool": self.read_tag}
        return [(readers[tag], text) for tag, text in TAGGED_CALL.findall(turn)]

    def run(self, read: Callable[[str], Call], text: str) -> str:
        """The result of a call, or what is wrong with it."""
        try:
            name, arguments = read(text)
            if name not in self.by_name:
                raise UsageError(f"there is no tool {name[:40]!r}, expected one of {', '.join(self.by_name)}")
            tool = self.by_name[name]
            return str(tool(**convert(tool, arguments))) or "(no output)"
        except Exception as error:  # a tool may raise anything; the policy reads why
            return self.error.replace("{}", (" ".join(str(error).split()) or type(error).__name__)[:300])

    def read_tag(self, text: str) -> Call:
        """NAME ARGUMENT, or ARGUMENT alone where there is one tool: its first parameter, JSON if that is no text."""
        name, *given = text.strip().split(maxsplit=1) or [""]
        if name not in self.by_name and len(self.by_name) == 1:
            [name], given = self.by_name, [text.strip()]
        types = parameters(self.by_name[name]) if name in self.by_name else {}
        first, kind = next(iter(types.items()), ("argument", str))
        return name, {first: given[0] if kind is str else json.loads(given[0])} if given else {}


def read_json(text: str) -> Call:
    """{"name": …, "arguments": {…}}; Llama 3 calls the arguments parameters."""
    try:
        call = json.loads(text)
        arguments = call.get("arguments", call.get("parameters", {}))
        arguments = json.loads(arguments) if isinstance(arguments, str) else arguments
        return str(call["name"]), dict(arguments or {})
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise UsageError(f'the call is no JSON {{"name": …, "arguments": {{…}}}} ({type(error).__name__})') from error


def name_of(tool: Tool) -> str:
    return getattr(tool, "__name__", type(tool).__name__)


def parameters(tool: Tool) -> dict[str, type]:
    """The parameters with their types. Raises UsageError for a tool that can't be called with JSON, or is async."""
    function = tool if inspect.isroutine(tool) else type(tool).__call__
    hints, found = get_type_hints(function), inspect.signature(tool).parameters
    bad = [str(one) for name, one in found.items() if one.kind not in NAMED or hints.get(name) not in TYPES]
    if bad or inspect.iscoroutinefunction(function) or inspect.isgeneratorfunction(function):
        wanted = "a plain function of named parameters annotated as " + ", ".join(kind.__name__ for kind in TYPES)
        raise UsageError(f"tool {name_of(tool)}: {', '.join(bad) or 'async or yield'}, expected {wanted}")
    return {name: hints[name] for name in found}


def convert(tool: Tool, arguments: dict[str, Any]) -> dict[str, Any]:
    """The arguments as the tool's types. Raises TypeError for a wrong, missing or unknown one."""
    hints = parameters(tool)
    inspect.signature(tool).bind(**arguments)
    for name, value in arguments.items():
        if hints[name] is float and type(value) is int:
            arguments[name] = float(value)
        elif type(value) is not hints[name]:
            raise TypeError(f"'{name}' is {value!r:.40}, expected {TYPES[hints[name]]}")
    return arguments


def schema(tool: Tool) -> dict[str, Any]:
    """The JSON schema that chat templates show a model, from signature and docstring (Args: as in this project)."""
    text, _, described = inspect.cleandoc(tool.__doc__ or type(tool).__doc__ or "").partition("\nArgs:\n")
    about = dict(re.findall(r"^ +(\w+): (.*(?:\n {3,}.*)*)", described, re.MULTILINE))
    signature = inspect.signature(tool).parameters
    properties = {
        name: {"type": TYPES[kind], "description": " ".join(about.get(name, "").split())}
        for name, kind in parameters(tool).items()
    }
    required = [name for name in properties if signature[name].default is inspect.Parameter.empty]
    arguments = {"type": "object", "properties": properties, "required": required}
    function = {"name": name_of(tool), "description": " ".join(text.split()), "parameters": arguments}
    return {"type": "function", "function": function}
