"""gin for numbers: files and `--set` bindings become an experiment's frozen dataclasses.

A scope is a field of the experiment's config: `rl/OptimizerConfig.learning_rate = 3e-6` binds the optimizer of the
stage `rl`, `OptimizerConfig.learning_rate` that of all stages. What is unknown, of another type, missing, or read by
nothing is an error.
"""

import dataclasses
import re
import types
import typing
from collections.abc import Sequence
from typing import Any, TypeVar

import gin

from r1jax import config as configs
from r1jax.errors import UsageError

T = TypeVar("T")

for _config in vars(configs).values():
    if dataclasses.is_dataclass(_config):
        gin.register(_config, module="r1jax")


def read_config(cls: type[T], files: Sequence[str], bindings: Sequence[str]) -> T:
    """Builds an experiment's config class. Raises UsageError with one line that says what to set."""
    gin.clear_config()
    try:
        gin.parse_config_files_and_bindings(
            list(files), list(bindings), finalize_config=False, print_includes_and_imports=False
        )
        bound = set(re.findall(r"^(\S+) =", gin.config_str(), re.MULTILINE))
    except (ValueError, SyntaxError, OSError, AttributeError, TypeError) as error:
        raise UsageError(f"gin: {' '.join(str(error).split())}. Names are those of r1jax/config.py") from error
    used: set[str] = set()
    built = {
        field.name: _build(_hints(cls)[field.name], field.name, bound, used)
        for field in dataclasses.fields(cls)  # type: ignore[arg-type]
    }
    unused = sorted(name for name in bound - used if not _is_macro(name))
    if unused:
        raise UsageError(
            f"gin: nothing reads {', '.join(unused)}: check the scope (stages: {', '.join(built)}) and the name"
        )
    return cls(**built)


def _build(cls: type, scope: str, bound: set[str], used: set[str]) -> Any:
    """One dataclass, its nested ones first, with the bindings of its scope."""
    hints, nested = _hints(cls), {}
    for field in dataclasses.fields(cls):
        candidates = (f"{scope}/{cls.__name__}.{field.name}", f"{cls.__name__}.{field.name}")
        name = next((name for name in candidates if name in bound), None)
        if name is not None:
            used.add(name)
        elif dataclasses.is_dataclass(hints[field.name]):
            nested[field.name] = _build(hints[field.name], scope, bound, used)
        elif field.default is dataclasses.MISSING:
            raise UsageError(
                f"gin: {candidates[1]} is not set: add a gin file that binds it, or --set {candidates[0]}=…"
            )
    try:
        with gin.config_scope(scope):
            made = gin.get_configurable(cls)(**nested)
    except ValueError as error:  # a dataclass's own check
        raise UsageError(f"gin: {scope}/{cls.__name__}: {str(error).splitlines()[0]}") from error
    for field in dataclasses.fields(cls):
        value = getattr(made, field.name)
        if not dataclasses.is_dataclass(value) and not _fits(value, hints[field.name]):
            expected = getattr(hints[field.name], "__name__", str(hints[field.name]))
            raise UsageError(
                f"gin: {cls.__name__}.{field.name} is {value!r} ({type(value).__name__}), expected {expected}: "
                f"set {scope}/{cls.__name__}.{field.name} to one"
            )
    return made


def _fits(value: Any, hint: Any) -> bool:
    if isinstance(hint, types.UnionType):
        return any(_fits(value, option) for option in typing.get_args(hint))
    if hint is float:  # an int is a float, but a bool is neither
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, hint)


def _hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def _is_macro(name: str) -> bool:
    return "." not in name
