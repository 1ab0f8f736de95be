"""List the experiments."""

import argparse
import ast
import difflib
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from r1jax.errors import UsageError
from r1jax.paths import project

ROOT = project()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """`experiments` takes none."""


def main(args: argparse.Namespace) -> None:
    for path in sorted((ROOT / "experiments").glob("[!_]*.py")):
        print(f"{path.stem:24} {summary(read_docstring(path))}")


def read_docstring(path: Path) -> str | None:
    """The docstring of an experiment that is not executed, since that would import JAX, which takes seconds.

    Raises UsageError where the file has a syntax error.
    """
    try:
        return ast.get_docstring(ast.parse(path.read_text()))
    except SyntaxError as error:
        raise UsageError(f"experiment {path} can't be loaded: {error}") from error


def load_experiment(name: str) -> ModuleType:
    """The module of an experiment, by its name or by the path of a .py file.

    Raises UsageError where there is no such file, or it can't be imported or lacks a part.
    """
    path = Path(name) if name.endswith(".py") else ROOT / "experiments" / f"{name}.py"
    if not path.is_file():
        known = [path.stem for path in (ROOT / "experiments").glob("[!_]*.py")]
        near = "".join(f"; did you mean {other}?" for other in difflib.get_close_matches(name, known, 1))
        raise UsageError(
            f"no experiment '{name}': expected a name from `r1jax experiments` or a path to a .py file{near}"
        )
    if str(ROOT) not in sys.path:
        sys.path.insert(0, str(ROOT))  # so that a fork in any directory can import `experiments`
    if (beside := str(path.absolute().parent)) not in sys.path:
        sys.path.append(beside)  # and modules of its own
    spec = importlib.util.spec_from_file_location(f"r1jax_experiment_{path.stem}", path)
    assert spec and spec.loader  # a .py file always has both
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look up their module here
    try:
        spec.loader.exec_module(module)
    except (ImportError, SyntaxError) as error:
        raise UsageError(f"experiment {path} can't be loaded: {error}") from error
    if missing := [attribute for attribute in ("Config", "GIN_FILES", "run") if not hasattr(module, attribute)]:
        raise UsageError(f"experiment {path} has no {', '.join(missing)}: experiments/r1_zero.py is an example")
    return module


def summary(docstring: str | None) -> str:
    """Its first line."""
    return (docstring or "").strip().partition("\n")[0]


def gin_path(name: str, *folders: Path) -> str:
    """The path of a gin file: in one of `folders`, as given, or below gin_configs/.

    Raises UsageError where there is none.
    """
    for path in (*(folder / name for folder in folders), Path(name), ROOT / "gin_configs" / name):
        if path.is_file():
            return str(path)
    beside = "".join(f", in {folder}" for folder in folders)
    raise UsageError(f"no gin file '{name}', neither in this directory{beside} nor below gin_configs/")


def gin_paths(module: ModuleType, given: Sequence[str] | None) -> list[str]:
    """The gin files of an experiment: those `given`, else its own, which may stand beside its file."""
    beside = Path(module.__file__ or "").parent
    return [gin_path(name) for name in given or ()] or [gin_path(name, beside) for name in module.GIN_FILES]
