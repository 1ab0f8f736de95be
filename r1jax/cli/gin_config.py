"""Reads gin files and `--set` bindings into an experiment's frozen dataclasses.

A scope is a field of the experiment's config: `rl/OptimizerConfig.learning_rate = 3e-6` binds the optimizer of the
stage `rl`, `OptimizerConfig.learning_rate` the optimizers of all stages. A field of type `X | None` is None unless its
scope is bound, or X without a scope and no other field has to be an X. An unknown name, a wrong type, a missing value
and a `--set` that nothing reads are errors; a file may bind what this experiment does not read, which is a warning.
"""

import ast
import dataclasses
import difflib
import logging
import re
import sys
import tokenize
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import gin

from r1jax import config as configs
from r1jax.errors import UsageError
from r1jax.paths import project

T = TypeVar("T")

gin.add_config_file_search_path(str(project() / "gin_configs"))  # for `include`

for _config in vars(configs).values():
    if dataclasses.is_dataclass(_config):
        gin.register(_config, module="r1jax")


def read_config(cls: type[T], files: Sequence[str], bindings: Sequence[str]) -> T:
    """An instance of an experiment's config class. Raises UsageError with one line that says what to set.

    In `bindings`, text needs no quotes.
    """
    bindings = [quoted(binding) for binding in bindings]
    gin.clear_config()
    logging.disable(logging.ERROR)  # gin logs an error for each directory that it searches in vain for an include
    try:
        gin.parse_config_files_and_bindings(list(files), list(bindings), finalize_config=False)
        bound = set(re.findall(r"^([^\s#]\S*) =", gin.config_str(), re.MULTILINE))
    except (ValueError, SyntaxError, OSError, AttributeError, TypeError, ImportError, tokenize.TokenError) as error:
        reason = " ".join(str(error).split())
        reason = re.sub(r"malformed node.*?<[^>]*>", "not a literal (strings need quotes).", reason)
        raise UsageError(f"gin: {reason}. Names are those of r1jax/config/__init__.py{did_you_mean(reason)}") from error
    finally:
        logging.disable(logging.NOTSET)
    used: set[str] = set()
    built = {name: _build(_class(hint), name, bound, used) for name, hint in _present(cls, bound).items()}
    text = re.sub("#.*", "", "\n".join([*bindings, *(Path(file).read_text() for file in files), gin.config_str()]))
    used |= set(re.findall(r"%([\w/.]+)", text))  # macros
    referred = tuple(f"{name}." for name in re.findall(r"@([\w/.]+)\(\)", text))  # configs inside bindings
    used |= {name for name in bound if name.startswith(referred)}
    unread = bound - used
    if unread:
        names, scopes = ", ".join(sorted(unread)), ", ".join(built)
        line = f"gin: nothing reads {names}: check the name and the scope (one of {scopes})"
        if unread & {binding.partition("=")[0].strip().removeprefix("r1jax.") for binding in bindings}:
            raise UsageError(line)
        print(f"r1jax: warning: {line}", file=sys.stderr)
    absent = dict.fromkeys(typing.get_type_hints(cls).keys() - built.keys())
    return cls(**built, **absent)


def quoted(binding: str) -> str:
    """NAME=text as NAME='text'; what gin reads by itself stays as it is."""
    name, sign, value = binding.partition("=")
    try:
        ast.literal_eval(value.strip())
    except (ValueError, SyntaxError):
        if sign and not re.search(r"[@%\[({'\"]", value):
            return f"{name}={value.strip()!r}"
    return binding


def did_you_mean(message: str) -> str:
    """The class or field nearest to a name in gin's message that no config has."""
    classes = {name: kind for name, kind in vars(configs).items() if dataclasses.is_dataclass(kind)}
    fields = {field.name for kind in classes.values() for field in dataclasses.fields(kind)}
    for word in re.findall(r"'(\w+)'", message):
        known = classes if word[:1].isupper() else fields
        near = difflib.get_close_matches(word, known, 1, 0.8)
        if near and word not in known:
            return f"; did you mean {near[0]}?"
    return ""


def _present(cls: type, bound: set[str]) -> dict[str, Any]:
    """The fields of an experiment's config with their types, without those that may be None and are not bound.

    A binding without a scope is not for such a field where another field, which has to be there, is of its type.
    """
    hints = typing.get_type_hints(cls)

    def is_bound(name: str, hint: Any) -> bool:
        of_class = () if _class(hint) in hints.values() else (f"{_class(hint).__name__}.",)
        return any(binding.startswith((f"{name}/", *of_class)) for binding in bound)

    return {name: hint for name, hint in hints.items() if _class(hint) is hint or is_bound(name, hint)}


def _class(hint: Any) -> Any:
    """X for `X` and for `X | None`."""
    return hint if isinstance(hint, type) else next(x for x in typing.get_args(hint) if x is not types.NoneType)


def _build(cls: type, scope: str, bound: set[str], used: set[str]) -> Any:
    """One dataclass with the bindings of its scope, after its nested ones; types are checked before it is built."""
    hints, values = typing.get_type_hints(cls), {}
    try:
        with gin.config_scope(scope):
            bindings = gin.get_bindings(cls, resolve_references=True)
    except (ValueError, TypeError) as error:  # an undefined macro
        raise UsageError(f"gin: {scope}/{cls.__name__}: {' '.join(str(error).split())}") from error
    for field in dataclasses.fields(cls):
        name = f"{cls.__name__}.{field.name}"
        if field.name in bindings:
            # A binding for all stages counts as read also where this scope overrides it.
            used |= {candidate for candidate in (f"{scope}/{name}", name) if candidate in bound}
            value, hint = bindings[field.name], hints[field.name]
            if not configs.fits(value, hint):
                given = f"{value!r} ({type(value).__name__}), expected {configs.expected_type(value, hint)}"
                raise UsageError(f"gin: {name} is {given}: set {scope}/{name} to one")
            values[field.name] = value
        elif dataclasses.is_dataclass(hints[field.name]):
            values[field.name] = _build(hints[field.name], scope, bound, used)
        elif field.default is field.default_factory is dataclasses.MISSING:
            raise UsageError(f"gin: {name} is not set: add a gin file that binds it, or --set {scope}/{name}=…")
    try:
        return cls(**values)
    except ValueError as error:  # the dataclass's own check
        raise UsageError(f"gin: {scope}/{cls.__name__}: {error}") from error
