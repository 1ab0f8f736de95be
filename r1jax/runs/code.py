"""The code that a stage was made with, so that a stage is not resumed with other code unnoticed.

`WORKDIR/code/` has each source as HASH_FILE, the experiment's among them. A stage's `code.json` lists what it was made
with: a dict of names to these files, and a further dict each time that changed code was accepted.
"""

import ast
import difflib
import hashlib
import inspect
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from etils import epath

from r1jax.paths import PACKAGE, project
from r1jax.telemetry.files import read_json, write_atomically

EXPERIMENTS = project() / "experiments"
PROMPT = "prompt"  # the name of the prompt's source, which is text


def module_sources(module: ModuleType) -> dict[str, str]:
    """The source of a module, and of those in its directory or in experiments/ that it imports, by path.

    Of this package only rewards are followed to what they import.
    """
    found: dict[str, str] = {}
    left = [module]
    for module in left:  # `left` grows in the loop
        path = file_of(module)
        if path is None or name_of_file(path) in found:
            continue
        found[name_of_file(path)] = path.read_text()
        is_core = path.is_relative_to(PACKAGE) and path.parent != EXPERIMENTS
        follows = not is_core or path.parent.name == "rewards"  # a verdict is made by all of it
        for value in vars(module).values() if follows else ():
            name = getattr(value, "__module__", None) or ""
            other = value if isinstance(value, ModuleType) else sys.modules.get(name)
            if other and (there := file_of(other)) and there.parent in (path.parent, EXPERIMENTS):
                left.append(other)
    return found


def sources_of(value: Any) -> dict[str, str]:
    """The sources of a function, or of an object that is called or asked, with those of the functions it holds."""
    value = getattr(value, "func", value)  # a functools.partial
    inner = [getattr(reward, "function", reward) for reward in getattr(value, "rewards", ())]  # of `by_source`
    name = getattr(value, "__module__", None) or type(value).__module__
    found = module_sources(sys.modules[name]) if name in sys.modules else {}
    if not found:  # a notebook's
        try:
            found = {getattr(value, "__qualname__", name): inspect.getsource(value)}
        except (OSError, TypeError):
            found = {}
    return {key: text for part in (found, *map(sources_of, inner)) for key, text in part.items()}


def file_of(module: Any) -> Path | None:
    name = getattr(module, "__file__", None) if isinstance(module, ModuleType) else None
    return Path(name).resolve() if name and name.endswith(".py") else None


def name_of_file(path: Path) -> str:
    """Its path in this project, or its name alone elsewhere, so that a run can be moved to another machine."""
    roots = (EXPERIMENTS.parent, PACKAGE.parent)  # one directory in a checkout, two in an installed wheel
    return next((str(path.relative_to(root)) for root in roots if path.is_relative_to(root)), path.name)


def meaning(name: str, source: str) -> str:
    """Python without comments, docstrings and layout; a prompt as it is."""
    if name == PROMPT:
        return source
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return source
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            del node.body[: ast.get_docstring(node) is not None]
    return ast.dump(tree)


def record_code(workdir: epath.Path, stage: epath.Path, sources: Mapping[str, str], accept: bool) -> list[str]:
    """Writes `code.json`, or compares `sources` with it; returns what changed, a phrase for each source.

    With `accept` the changed sources are added to it.
    """
    path = stage / "code.json"
    records: list[dict[str, str]] = read_json(path) if path.exists() else []
    changed = changes(workdir, records[-1], sources) if records else []
    if not records or (changed and accept):
        (workdir / "code").mkdir(exist_ok=True)
        for name, text in sources.items():
            kept = workdir / "code" / kept_name(name, text)
            if not kept.exists():
                write_atomically(kept, text)
        record = {name: kept_name(name, text) for name, text in sources.items()}
        write_atomically(path, json.dumps([*records, record], indent=1))
    return changed


def kept_name(name: str, text: str) -> str:
    return f"{hashlib.sha256(text.encode()).hexdigest()[:16]}_{Path(name).name}"


def changes(workdir: epath.Path, record: Mapping[str, str], sources: Mapping[str, str]) -> list[str]:
    """What differs between the sources in a record and those of now."""
    found = []
    for name in sorted(record.keys() | sources.keys()):
        kept = workdir / "code" / record.get(name, "")
        before = kept.read_text() if name in record and kept.exists() else ""
        now = sources.get(name, "")
        if meaning(name, before) != meaning(name, now):
            lines = list(difflib.unified_diff(before.splitlines(), now.splitlines(), n=0, lineterm=""))[2:]
            first = next((line for line in lines if line[0] in "+-" and line[1:].strip()), "")
            found.append(f"{name} ({len([x for x in lines if x[0] != '@'])} lines; the first: {first.strip()})")
    return found
