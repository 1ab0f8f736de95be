"""The site that `make docs` builds with Sphinx: the pages of this directory and, in _generated/, what the code says.

Tutorials are notebooks, which are run for it; their outputs are kept in .cache/notebooks until their code changes.
Pages keep the links that a repository's web page renders; `rewrite_links` turns those that leave this directory.
"""

import argparse
import dataclasses
import re
import shutil
import sys
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "docs")]

from needs import missing  # noqa: E402

import r1jax  # noqa: E402
from r1jax import config as configs  # noqa: E402
from r1jax.cli.main import make_parser  # noqa: E402

project = "r1jax"
author = "The r1jax authors"
copyright = author
release = metadata.version("r1jax")
TUTORIALS = sorted((ROOT / "docs" / "tutorials").glob("*.md"))
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["README.md", "_build", "jupyter_execute"]
html_theme = "sphinx_book_theme"
html_title = "r1jax"
smartquotes = False
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 4
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
napoleon_use_ivar = True  # fields are listed once, in their class's docstring
suppress_warnings = ["myst.header"]  # a page's first table may precede its sections
nb_execution_mode = "cache"  # a notebook runs when its code has changed, in a directory of its own
nb_execution_cache_path = str(ROOT / ".cache" / "notebooks")
nb_execution_in_temp = True
nb_execution_raise_on_error = True
nb_execution_timeout = 1800
nb_execution_excludepatterns = [f"tutorials/{page.name}" for page in TUTORIALS if missing(page)]  # shown without output

FOR_WORKERS = ("gym_scores", "sandbox", "adapters")  # they lock their process down, or need other packages
GENERATED = Path(__file__).parent / "_generated"
OUTSIDE = {  # pages of other directories, by their names in the site
    "README.md": "index.md",
    "docs/README.md": "index.md",
    "BUILD.md": "_generated/build.md",
    "CONTRIBUTING.md": "_generated/contributing.md",
    "CHANGELOG.md": "_generated/changelog.md",
    "tpu_scripts/README.md": "_generated/pods.md",
}
FLOORS = {  # packages from the top down, as in BUILD.md
    "stages": "Stages", "runs": "Runs", "report": "Report", "dry_run": "Dry runs", "environments": "Environments",
    "rollout": "Rollouts", "data": "Data", "rewards": "Rewards", "checkpoint": "Checkpoints", "telemetry": "Telemetry",
    "parallel": "Parallel", "model": "Model", "objectives": "Objectives", "sampling": "Sampling",
}  # fmt: skip


def rewrite_links(text: str, directory: str) -> str:
    """Links of a page in `directory` of the project as those of a page in `docs/`, or in one of its directories."""
    up = "" if directory == "docs" else "../"

    def replace(link: re.Match) -> str:
        path, anchor = link.group(1), link.group(2) or ""
        target = (ROOT / directory / path).resolve()
        name = target.relative_to(ROOT).as_posix() if target.is_relative_to(ROOT) else ""
        if name in OUTSIDE:
            return f"]({up}{OUTSIDE[name]}{anchor})"
        if name.startswith("docs/"):
            return f"]({up}{name.removeprefix('docs/')}{anchor})"
        return link.group(0) if not name else f"]({'../' + up}{name}{anchor})"

    return re.sub(r"\]\(([\w./-]+\.\w+|[\w./-]+/)(#[\w-]+)?\)", replace, text)


def write_generated() -> None:
    shutil.rmtree(GENERATED, ignore_errors=True)
    GENERATED.mkdir()
    for name, page in OUTSIDE.items():
        if page.startswith("_generated/") and (ROOT / name).exists():
            text = rewrite_links((ROOT / name).read_text(), str(Path(name).parent))
            (GENERATED.parent / page).write_text(text)
    (GENERATED / "commands.md").write_text(commands_page())
    (GENERATED / "settings.md").write_text(settings_page())
    functions = ", ".join(r1jax.PUBLIC["r1jax.library"])
    library = ["# Library", "", *automodule("r1jax.library", functions)]
    (GENERATED / "api_library.md").write_text("\n".join(library) + "\n")
    for package, title in FLOORS.items():
        (GENERATED / f"api_{package}.md").write_text(api_page(package, title))


def commands_page() -> str:
    """The help text of every command."""
    parser = make_parser()
    [commands] = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
    parts = ["# Command reference", "", "The output of `--help`; [Command line](../command_line.md) explains it."]
    for name, command in commands.choices.items():
        command.formatter_class = lambda prog: argparse.HelpFormatter(prog, width=100)
        parts += ["", f"## {name}", "", "```text", command.format_help().strip(), "```"]
    return "\n".join(parts) + "\n"


def settings_page() -> str:
    """Every field of every config class: type, default, and what its class's docstring says about it."""
    parts = ["# Settings", "", "[Configuration](../configuration.md) explains how gin files and `--set` bind them."]
    for name, kind in sorted(vars(configs).items()):
        if not dataclasses.is_dataclass(kind):
            continue
        summary, _, attributes = (kind.__doc__ or "").partition("Attributes:")
        said = dict(re.findall(r"^ {6}(\w+): (.*(?:\n {8}.*)*)", attributes, re.MULTILINE))
        parts += ["", f"## {name}", "", " ".join(summary.split()).replace("*", r"\*"), ""]
        parts += ["| field | type | default | |", "| --- | --- | --- | --- |"]
        for field in dataclasses.fields(kind):
            hint = getattr(field.type, "__name__", str(field.type)) if isinstance(field.type, type) else str(field.type)
            cells = (f"`{field.name}`", f"`{hint}`", default_of(field), " ".join(said.get(field.name, "").split()))
            parts.append("| " + " | ".join(cell.replace("|", r"\|").replace("*", r"\*") for cell in cells) + " |")
    return "\n".join(parts) + "\n"


def default_of(field: dataclasses.Field) -> str:
    if field.default is not dataclasses.MISSING:
        return f"`{field.default!r}`"
    return "its own" if field.default_factory is not dataclasses.MISSING else "must be set"


def api_page(package: str, title: str) -> str:
    """The docstrings of a package and its public modules."""
    files = sorted((ROOT / "r1jax" / package).rglob("*.py"))
    parts = [f"# {title}", "", *automodule(f"r1jax.{package}", members=None)]
    for path in files:
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        if path.name.startswith("_") or any(word in name for word in FOR_WORKERS):
            continue
        parts += ["", f"## {name}", "", *automodule(name)]
    return "\n".join(parts) + "\n"


def automodule(name: str, members: str | None = "") -> list[str]:
    """Of its members those that have a docstring, those that are named, or none."""
    options = [] if members is None else [f"   :members: {members}".rstrip()]
    return ["```{eval-rst}", f".. automodule:: {name}", *options, "```"]


def as_rst(app, what, name, object, options, lines: list[str]) -> None:
    """Docstrings are plain text with `code`: RST's other characters mean themselves."""
    pieces = re.split(r"(`[^`]+`)", "\n".join(lines))
    for i, piece in enumerate(pieces):
        # RST's literals end before no letter; an escaped space is nothing.
        pieces[i] = f"\\ `{piece}`\\ " if i % 2 else re.sub(r"([*|_\\])", r"\\\1", piece)
    lines[:] = "".join(pieces).split("\n")


def setup(app) -> None:
    app.connect("autodoc-process-docstring", as_rst, priority=100)
    app.connect("source-read", lambda app, page, source: source.__setitem__(0, site_text(page, source[0])))


def site_text(page: str, text: str) -> str:
    return text if page.startswith("_generated/") else rewrite_links(text, str(Path("docs", page).parent))


write_generated()
