"""The commands of docs/how_to.md name experiments, gin files and settings that exist."""

import json
import re
import subprocess

import pytest

from r1jax.cli.experiments import gin_path, load_experiment
from r1jax.cli.gin_config import read_config
from r1jax.cli.main import make_parser
from tests.conftest import ROOT

PAGE = (ROOT / "docs" / "how_to.md").read_text()
SECTIONS = dict(re.findall(r"^## ([^\n]+)\n(.*?)(?=^## |\Z)", PAGE, re.DOTALL | re.MULTILINE))
# Stands for every program: prints its words, and does nothing.
STUB = """#!/usr/bin/env python3
import json, sys
print(json.dumps(sys.argv[1:]))
"""


def commands(section: str, folder) -> list[list[str]]:
    """The words of each r1jax command of a section, as its shell would give them to it."""
    (folder / ".venv" / "bin").mkdir(parents=True)
    for name in (".venv/bin/python", "curl"):
        (folder / name).write_text(STUB)
        (folder / name).chmod(0o755)
    code = "\n".join(re.findall(r"```bash\n(.*?)```", SECTIONS[section], re.DOTALL))
    done = subprocess.run(["bash", "-euc", f"PATH=.:$PATH\n{code}"], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    words = map(json.loads, done.stdout.splitlines())
    return [found[2:] for found in words if found[:2] == ["-m", "r1jax"]]


@pytest.mark.parametrize("section", SECTIONS)
def test_documented_commands_are_read(section, tmp_path, saved_policy):
    runs = [words for words in commands(section, tmp_path) if words[0] == "run"]
    assert runs
    for words in runs:
        words = [word.replace("runs/r1_zero/pretrain", str(saved_policy)) for word in words]  # the demo's base
        args = make_parser().parse_args(words)
        experiment = load_experiment(args.experiment)
        files = [gin_path(file) for file in args.gin or experiment.GIN_FILES]
        config = read_config(experiment.Config, files, args.set)
        assert config.base is None or not config.base.path.startswith("'")
