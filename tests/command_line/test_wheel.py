"""An installed wheel, without the checkout: what it contains, and that it works from any directory."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from r1jax.cli.experiments import load_experiment
from r1jax.runs.code import module_sources
from tests.conftest import ROOT, xla_flags
from tests.shared.small_run import OPTIMISED, settings

SHIPPED = ("r1jax", "experiments", "gin_configs")
SOURCES = (*SHIPPED, "pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE")
FORK = '''"""A fork that is nowhere near the project."""

import experiments
import r1jax
from experiments.r1_zero import GIN_FILES, Config, run

print(experiments.__file__, r1jax.__file__)
'''
NOT_ON_WINDOWS = ("fcntl", "grp", "pty", "pwd", "resource", "syslog", "termios", "tty")
WITHOUT_THEM = f"""
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name in {NOT_ON_WINDOWS}:
            raise ImportError(f"no module {{name}} on this platform")
for name in {NOT_ON_WINDOWS}:
    sys.modules.pop(name, None)
sys.meta_path.insert(0, Missing())
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Built from a copy, since a build leaves files beside its sources."""
    home = tmp_path_factory.mktemp("wheel")
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, home / "copy" / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, home / "copy")
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(home), "."]
    done = subprocess.run(command, cwd=home / "copy", capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    [built] = home.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Path:
    """What of the wheel comes into site-packages."""
    directory = tmp_path_factory.mktemp("site-packages")
    with zipfile.ZipFile(wheel) as contents:
        contents.extractall(directory)
    return directory


def python(*arguments: str, path: Path, cwd: Path) -> str:
    """What Python prints with `path` first on its path, and neither `cwd` nor the checkout."""
    environment = os.environ | {"PYTHONPATH": str(path), "XLA_FLAGS": xla_flags(1), "COLUMNS": "200"}
    command = [sys.executable, "-P", *arguments]
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_wheel_has_every_file_and_one_package(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    files = {path for name in SHIPPED for path in (ROOT / name).rglob("*") if path.is_file() and path.suffix != ".pyc"}
    relative = {path.relative_to(ROOT).as_posix() for path in files}
    expected = {name if name.startswith("r1jax/") else f"r1jax/_project/{name}" for name in relative}
    assert {"r1jax/report/report.html.j2", "r1jax/_project/gin_configs/scale/cpu.gin"} <= expected
    assert {name for name in names if ".dist-info/" not in name} == expected


def test_commands_and_forks_from_any_directory(installed, tmp_path):
    listed = python("-m", "r1jax", "experiments", path=installed, cwd=tmp_path)
    assert {line.split()[0] for line in listed.splitlines()} == {p.stem for p in ROOT.glob("experiments/[!_]*.py")}
    (tmp_path / "fork.py").write_text(FORK)
    printed = python("-m", "r1jax", "run", "fork.py", "--dry_run", path=installed, cwd=tmp_path)
    project = installed / "r1jax" / "_project"
    assert printed.splitlines()[0] == f"{project / 'experiments/__init__.py'} {installed / 'r1jax/__init__.py'}"
    assert "rl_update" in printed


def test_a_run_records_the_same_code_and_no_git_state(installed, tmp_path):
    code = """
import json
from r1jax.cli.experiments import load_experiment
from r1jax.runs.code import module_sources, sources_of
from r1jax.runs.run import session
print(json.dumps([module_sources(load_experiment("r1")), session(0, "r1_zero")]))
"""
    subprocess.run(["git", "init", "-q"], cwd=installed, check=True)  # of the project that has the environment in it
    sources, session = json.loads(python("-c", code, path=installed, cwd=tmp_path))
    assert sources == module_sources(load_experiment("r1"))
    assert (session["git"], session["versions"]["r1jax"]) == ("not a git checkout", "0.1.0")


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"], ["experiments"]], ids=" ".join)
def test_nothing_that_windows_lacks_is_imported_at_start_up(tmp_path, arguments):
    code = f"{WITHOUT_THEM}\nfrom r1jax.cli.main import main\nsys.exit(main({arguments}))"
    assert python("-c", code, path=ROOT, cwd=tmp_path)


@pytest.mark.parametrize("module", ["r1jax.runs.run", "r1jax.rewards.workers", "r1jax.rewards.sandbox"])
def test_runs_import_nothing_that_windows_lacks(tmp_path, module):
    code = f"import jax, subprocess\n{WITHOUT_THEM}\nimport {module}"  # what others import on this platform is theirs
    python("-c", code, path=ROOT, cwd=tmp_path)


@pytest.mark.slow
def test_the_wheel_alone_runs_in_a_fresh_environment(wheel, tmp_path):
    """Installs the wheel and its dependencies, 3.5 GB, from the package index."""
    environment = tmp_path / "environment"
    subprocess.run([sys.executable, "-m", "venv", environment], check=True)
    subprocess.run([environment / "bin" / "pip", "install", "-q", wheel], check=True)
    (tmp_path / "elsewhere").mkdir()
    variables = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | OPTIMISED
    command = [environment / "bin" / "r1jax", "run", "r1_zero", "--workdir", "run", *settings()]
    done = subprocess.run(
        command, cwd=tmp_path / "elsewhere", env=variables, text=True, stderr=subprocess.PIPE, check=False
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "elsewhere" / "run" / "report.html").exists()
