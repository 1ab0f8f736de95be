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
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from importlib.util import resolve_name
from pathlib import Path
from types import ModuleType
from typing import Any

from etils import epath

from r1jax.paths import PACKAGE, project, read_json
from r1jax.telemetry.files import write_atomically

EXPERIMENTS = project() / "experiments"
PROMPT = "prompt"  # the name of the prompt's source, which is text


def module_sources(module: ModuleType) -> dict[str, str]:
    """The source of a module, and of those below its directory or experiments/ that it imports, by path.

    Of this package only rewards are followed to what they import: all of it makes a verdict.
    """
    first, found = file_of(module), dict[str, str]()
    roots = [] if first is None else [first.parent, EXPERIMENTS]
    if first and first.is_relative_to(PACKAGE) and first.parent != EXPERIMENTS:
        roots = [first.parent] if first.parent.name == "rewards" else []
    left = [module]
    for module in left:  # `left` grows in the loop
        path = file_of(module)
        if path is None or (name := name_of_file(path, roots)) in found:
            continue
        found[name] = read(path)
        left += [other for other in imported(module, found[name]) if is_own(file_of(other), roots)]
    return found


def imported(module: ModuleType, source: str) -> Iterator[ModuleType]:
    """The modules that import statements anywhere in the source name, as far as they are loaded."""
    for node in ast.walk(ast.parse(source)):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
        if isinstance(node, ast.ImportFrom):
            relative = "." * node.level + (node.module or "")
            start = resolve_name(relative, module.__package__) if node.level else relative
            names = [start, *(f"{start}.{name}" for name in names)]
        yield from (sys.modules[name] for name in names if name in sys.modules)


def is_own(path: Path | None, roots: Sequence[Path]) -> bool:
    """Whether a file is of the experiment, or of rewards, and not of an installed package."""
    if path is None or path.parent in roots:
        return path is not None
    is_installed = path.is_relative_to(PACKAGE) or "site-packages" in path.parts
    return not is_installed and any(path.is_relative_to(root) for root in roots)


@cache
def read(path: Path) -> str:
    """As it was at first, when it was imported; it may be edited while the run goes on."""
    return path.read_text()


def sources_of(value: Any) -> dict[str, str]:
    """The sources of a function, or of an object that is called or asked, with those of the functions it holds."""
    value = getattr(value, "func", None) or getattr(value, "make", value)  # of a functools.partial, of InProcesses
    inner = [getattr(reward, "function", reward) for reward in getattr(value, "rewards", ())]  # of `by_source`
    name = getattr(value, "__module__", None) or type(value).__module__
    found = module_sources(sys.modules[name]) if name in sys.modules and name != "__main__" else {}
    if not found:  # a notebook's, or of a script that calls the library
        try:
            found = {getattr(value, "__qualname__", name): inspect.getsource(value)}
        except (OSError, TypeError):
            found = {}
    return {key: text for part in (found, *map(sources_of, inner)) for key, text in part.items()}


def file_of(module: Any) -> Path | None:
    name = getattr(module, "__file__", None) if isinstance(module, ModuleType) else None
    return Path(name).resolve() if name and name.endswith(".py") else None


def name_of_file(path: Path, roots: Sequence[Path]) -> str:
    """Its path in this project, or below one of the roots, so that a run can be moved to another machine."""
    for root in (EXPERIMENTS.parent, PACKAGE.parent, *roots):
        if path.is_relative_to(root):
            return str(path.relative_to(root))
    return path.name


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
            node.body = node.body[1:] if ast.get_docstring(node) is not None else node.body
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


def last_sources(workdir: epath.Path, stage: epath.Path) -> dict[str, str]:
    """The sources that a stage was made with last, by name; those whose files are gone are left out."""
    records = read_json(stage / "code.json") if (stage / "code.json").exists() else []
    kept = {name: workdir / "code" / file for name, file in (records[-1] if records else {}).items()}
    return {name: file.read_text() for name, file in kept.items() if file.exists()}


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
