"""gin for numbers: files and `--set` bindings become an experiment's frozen dataclasses.

A scope is a field of the experiment's config: `rl/OptimizerConfig.learning_rate = 3e-6` binds the optimizer of the
stage `rl`, `OptimizerConfig.learning_rate` that of all stages. What is unknown, of another type, missing, or read by
nothing is an error.
"""

import contextlib
import dataclasses
import logging
import re
import tokenize
import typing
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import gin

from r1jax import config as configs
from r1jax.errors import UsageError

T = TypeVar("T")

gin.add_config_file_search_path(str(Path(__file__).resolve().parents[2] / "gin_configs"))  # of `include`

for _config in vars(configs).values():
    if dataclasses.is_dataclass(_config):
        gin.register(_config, module="r1jax")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """gin logs an error for each place where an included file is not, and then finds it."""
    logging.disable(logging.ERROR)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


def read_config(cls: type[T], files: Sequence[str], bindings: Sequence[str]) -> T:
    """Builds an experiment's config class. Raises UsageError with one line that says what to set."""
    gin.clear_config()
    try:
        with quiet():
            gin.parse_config_files_and_bindings(
                list(files), list(bindings), finalize_config=False, print_includes_and_imports=False
            )
        bound = set(re.findall(r"^([^\s#]\S*) =", gin.config_str(), re.MULTILINE))
    except (ValueError, SyntaxError, OSError, AttributeError, TypeError, ImportError, tokenize.TokenError) as error:
        raise UsageError(f"gin: {' '.join(str(error).split())}. Names are those of r1jax/config/__init__.py") from error
    used: set[str] = set()
    built = {
        field.name: _build(_hints(cls)[field.name], field.name, bound, used)
        for field in dataclasses.fields(cls)  # type: ignore[arg-type]
    }
    text = "\n".join([*bindings, *(Path(file).read_text() for file in files), gin.config_str()])
    used |= set(re.findall(r"%([\w/.]+)", text))  # macros
    referred = tuple(f"{name}." for name in re.findall(r"@([\w/.]+)\(\)", text))  # configs within bindings
    used |= {name for name in bound if name.startswith(referred)}
    unused = sorted(bound - used)
    if unused:
        raise UsageError(
            f"gin: nothing reads {', '.join(unused)}: check the scope (stages: {', '.join(built)}) and the name"
        )
    return cls(**built)


def _build(cls: type, scope: str, bound: set[str], used: set[str]) -> Any:
    """One dataclass, its nested ones first, with the bindings of its scope; types are checked before it is made."""
    hints, values = _hints(cls), {}
    try:
        with gin.config_scope(scope):
            bindings = gin.get_bindings(cls, resolve_references=True)
    except (ValueError, TypeError) as error:  # a macro that is not defined
        raise UsageError(f"gin: {scope}/{cls.__name__}: {' '.join(str(error).split())}") from error
    for field in dataclasses.fields(cls):
        name = f"{cls.__name__}.{field.name}"
        if field.name in bindings:
            # A binding of all stages that one of this scope overrides counts as read.
            used |= {candidate for candidate in (f"{scope}/{name}", name) if candidate in bound}
            values[field.name] = _checked(bindings[field.name], hints[field.name], name, scope)
        elif dataclasses.is_dataclass(hints[field.name]):
            values[field.name] = _build(hints[field.name], scope, bound, used)
        elif field.default is dataclasses.MISSING:
            raise UsageError(f"gin: {name} is not set: add a gin file that binds it, or --set {scope}/{name}=…")
    try:
        return cls(**values)
    except ValueError as error:  # the dataclass's own check
        raise UsageError(f"gin: {scope}/{cls.__name__}: {error}") from error


def _checked(value: Any, hint: Any, name: str, scope: str) -> Any:
    if not configs.fits(value, hint):
        expected = getattr(hint, "__name__", str(hint))
        raise UsageError(
            f"gin: {name} is {value!r} ({type(value).__name__}), expected {expected}: set {scope}/{name} to one"
        )
    return value


def _hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls)
