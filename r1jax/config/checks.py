"""Checks of a config's fields: types, signs, choices."""

import dataclasses
import math
import types
import typing
from typing import Any


def fits(value: Any, hint: Any) -> bool:
    """Whether a value is of an annotated type; an int is a float, but a bool is neither."""
    if isinstance(hint, types.UnionType):
        return any(fits(value, option) for option in typing.get_args(hint))
    if typing.get_origin(hint) is tuple:
        return isinstance(value, tuple) and all(fits(item, typing.get_args(hint)[0]) for item in value)
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, hint)


EXAMPLES = {str: ("a", "b"), int: (1, 2)}  # of tuples, by the type of what is in them


def expected_type(value: Any, hint: Any) -> str:
    """The name of an annotated type; of a tuple with an example, which has the `value` in it where it can."""
    if typing.get_origin(hint) is not tuple:
        return getattr(hint, "__name__", str(hint))
    item = typing.get_args(hint)[0]
    items = tuple(value) if isinstance(value, list) else (value,)
    if fits(items, hint):
        return f"a tuple such as {items!r}"
    return f"a tuple such as {EXAMPLES[item]!r}" if item in EXAMPLES else f"a tuple of {item.__name__}"


def require_types(config) -> None:
    """Raises ValueError for the first field that is not of its annotated type."""
    hints = typing.get_type_hints(type(config))
    for field in dataclasses.fields(config):
        value, hint = getattr(config, field.name), hints[field.name]
        if not fits(value, hint):
            raise ValueError(
                f"{field.name} is {value!r} ({type(value).__name__}), expected {expected_type(value, hint)}"
            )


def require_positive(config, *names: str, why: str = "") -> None:
    """Raises ValueError for the first of the named fields that is not above zero."""
    for name in names:
        if getattr(config, name) <= 0:
            raise ValueError(f"{name} is {getattr(config, name)}, expected more than 0{why}")


def require_unset(config, names: tuple[str, ...], whose: str) -> None:
    """Raises ValueError for the first of the named fields that says something: nothing would read it."""
    for name in names:
        if getattr(config, name):
            raise ValueError(f"{name} is {getattr(config, name)}, but it is {whose}: leave it out")


def require_choice(config, name: str, options: tuple[str, ...]) -> None:
    """Raises ValueError when the named field is none of `options`."""
    if getattr(config, name) not in options:
        expected = ", ".join(f"'{option}'" for option in options)
        raise ValueError(f"{name} is '{getattr(config, name)}', expected one of {expected}")
