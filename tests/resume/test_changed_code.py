"""Changed code is refused or accepted; a finished stage of RL goes on; a refused start leaves nothing."""

import functools
import importlib.util
import json
import shutil
import subprocess
import sys

import pytest
from etils import epath

from experiments import r1_zero
from r1jax.config import OptimizerConfig
from r1jax.data.toy.episodes import HigherLower
from r1jax.environments.processes import InProcesses
from r1jax.errors import UsageError
from r1jax.rewards.mathematics import MathVerifier
from r1jax.rewards.rules import accuracy_reward, by_source
from r1jax.runs.changes import effect_of_more_steps
from r1jax.runs.code import EXPERIMENTS, meaning, module_sources, record_code, sources_of
from r1jax.runs.workdir import HELD, lock, undo
from tests.shared.checkpoints import require_same_bits
from tests.shared.configs import rl_config
from tests.shared.small_run import FORK, r1jax, settings


def module(path, text: str, name: str = "a_fork"):
    path.write_text(text)
    spec = importlib.util.spec_from_file_location(name, path)
    loaded = importlib.util.module_from_spec(spec)
    sys.modules[name] = loaded
    spec.loader.exec_module(loaded)
    return loaded


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A fork with a helper beside it."""
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "a_package").mkdir()
    (tmp_path / "a_package" / "__init__.py").write_text("from .numbers import HALF\n")
    (tmp_path / "a_package" / "numbers.py").write_text("HALF = 0.5\n")
    (tmp_path / "a_helper.py").write_text("WEIGHT = 2\n")
    text = "from a_helper import WEIGHT\ndef reward(sample):\n    from a_package import HALF\n    return HALF\n"
    yield module(tmp_path / "fork.py", text)
    for name in ("a_helper", "a_fork", "a_package", "a_package.numbers"):
        sys.modules.pop(name, None)


OWN = {"fork.py", "a_helper.py", "a_package/__init__.py", "a_package/numbers.py"}


def test_sources_of_an_experiment_are_its_file_and_what_it_imports(own):
    assert module_sources(own).keys() == {"fork.py", "a_helper.py"}
    own.reward(None)  # imports the package
    assert module_sources(own).keys() == OWN
    found = module_sources(r1_zero)
    assert {"experiments/r1_zero.py", "experiments/_toy.py", "experiments/_files.py"} <= found.keys()
    assert all(name.startswith("experiments/") for name in found)
    assert found["experiments/r1_zero.py"] == (EXPERIMENTS / "r1_zero.py").read_text()


def test_sources_of_rewards_are_the_code_of_their_verdicts(own):
    own.reward(None)
    assert sources_of(own.reward).keys() == OWN
    assert sources_of(functools.partial(own.reward)).keys() == OWN
    assert sources_of(InProcesses(HigherLower, 1)).keys() == {"r1jax/data/toy/episodes.py"}
    assert "r1jax/rewards/rules.py" in sources_of(accuracy_reward)
    assert {"r1jax/rewards/mathematics.py", "r1jax/rewards/workers.py"} <= sources_of(MathVerifier).keys()
    mixed = by_source({"a": own.reward, "b": accuracy_reward}, 1.0)
    assert {"fork.py", "r1jax/rewards/rules.py"} <= sources_of(mixed.function).keys()


SAME = [
    ("x = 1", "x = 1  # a comment"),
    ("def f(x):\n    return x", 'def f(x):\n    """What it does."""\n    return x'),
    ('"""One thing."""\nx = 1', '"""Another."""\n\n\nx = (1)'),
    ("f(a, b)", "f(\n    a,\n    b,\n)"),
    ('x = "a"', "x = 'a'"),
    ("class A:\n    x = 1", 'class A:\n    """A."""\n\n    x = 1'),
    ("x = 10000", "x = 10_000"),
]
OTHER = [
    ("x = 1", "x = 2"),
    ("x = 1", "x = 1.0"),
    ("def f(x):\n    return x", "def f(x):\n    return -x"),
    ("def f(x, y=1): ...", "def f(x, y=2): ..."),
    ("if a:\n    b()\nc()", "if a:\n    b()\n    c()"),
    ("x = 'a'", "x = 'a '"),
    ("import a", "import b as a"),
    ("@cache\ndef f(): ...", "def f(): ..."),
    ("f(*a)", "f(a)"),
    ("def f(): ...", ""),
]


@pytest.mark.parametrize(("before", "after", "same"), [(*c, True) for c in SAME] + [(*c, False) for c in OTHER])
def test_layout_and_comments_mean_nothing(before, after, same):
    assert (meaning("fork.py", before) == meaning("fork.py", after)) == same


def test_layout_is_part_of_a_prompt():
    assert meaning("prompt", "User: {question}") != meaning("prompt", "User:  {question}")


def test_changed_code_is_named_kept_and_accepted(tmp_path):
    workdir, stage = epath.Path(tmp_path), epath.Path(tmp_path) / "rl"
    stage.mkdir()
    old, new = {"fork.py": "x = 1\ny = 2\n", "prompt": "Q: {question}"}, {"fork.py": "x = 1\ny = 3\n", "prompt": "Q"}
    assert record_code(workdir, stage, old, accept=False) == []
    assert record_code(workdir, stage, old | {"fork.py": "x = 1  # one\ny = 2\n"}, accept=False) == []
    record = (stage / "code.json").read_text()
    changed = record_code(workdir, stage, new, accept=False)
    assert len(changed) == 2 and "-y = 2" in changed[0] and "prompt" in changed[1]
    assert (stage / "code.json").read_text() == record  # a refused start leaves no trace
    assert len(record_code(workdir, stage, {"fork.py": old["fork.py"]}, accept=False)) == 1  # one that is gone
    assert record_code(workdir, stage, new, accept=True) == changed
    assert record_code(workdir, stage, new, accept=False) == []
    assert len(record_code(workdir, stage, old, accept=False)) == 2  # back again is a change as well
    kept = {name: (workdir / "code" / file).read_text() for name, file in json.loads(record)[0].items()}
    assert kept == old


def test_a_finished_run_notices_changed_code_and_goes_on_for_more_steps(finished, tmp_path):
    """Extended from 2 to 4 steps it ends in the bits of a run of 4."""
    workdir, fork = tmp_path / "run", tmp_path / "variety.py"
    shutil.copytree(finished, workdir)
    shutil.rmtree(workdir / "rl" / "checkpoints" / "4")
    for name, change in (("config.json", {"rl": {"steps": 2}}), ("complete.json", {"steps": 2})):
        path = workdir / "rl" / name
        record = json.loads(path.read_text())
        path.write_text(json.dumps(record | {k: (record[k] | v if k == "rl" else v) for k, v in change.items()}))
    before = {p: p.read_bytes() for p in workdir.rglob("*") if p.is_file()}
    command = ("run", str(fork), "--workdir", str(workdir), *settings())

    fork.write_text(FORK.replace("/ 10", "/ 11"))
    refused = r1jax(*command)
    assert refused.returncode == 2
    (line,) = refused.stderr.splitlines()
    assert "variety.py" in line and "/ 10" in line and "--accept_code" in line
    assert {p: p.read_bytes() for p in workdir.rglob("*") if p.is_file()} == before

    fork.write_text(FORK + "# a comment\n")
    done = r1jax(*command)
    assert done.returncode == 0, done.stderr
    assert "from 2 to 4 steps" in done.stdout and "resuming at step 3 of 4" in done.stdout
    assert sorted(p.name for p in (workdir / "archive" / "1").iterdir()) == ["evaluate_r1_zero"]
    require_same_bits(finished, workdir)
    figures = [json.loads((w / "evaluate_r1_zero" / "complete.json").read_text()) for w in (finished, workdir)]
    assert figures[0] == figures[1]


def test_what_a_longer_schedule_does_is_said():
    constant = rl_config(steps=20, optimizer=OptimizerConfig(learning_rate=1e-3))
    assert "goes on at 0.001" in effect_of_more_steps(constant, 10)
    decays = rl_config(steps=20, optimizer=OptimizerConfig(learning_rate=1e-3, final_fraction=0.1))
    assert "stretched" in effect_of_more_steps(decays, 10)


def start(directory: epath.Path, *files: str) -> None:
    """A start that is refused after it has written `files`."""
    lock(directory)
    (directory / "run.json").write_text("this session")
    for file in files:
        (directory / file).parent.mkdir(exist_ok=True)
        (directory / file).write_text("{}")
    undo(directory)


def test_a_refused_start_leaves_nothing(tmp_path):
    new, empty, old = (epath.Path(tmp_path) / name for name in ("new", "empty", "old"))
    empty.mkdir()
    for directory in (new, empty):
        start(directory, "base/config.json", "data/rows")
    assert not new.exists() and not list(empty.iterdir())
    old.mkdir()
    (old / "run.json").write_text("the session before")
    start(old, "base/config.json")
    assert [p.name for p in old.iterdir()] == ["run.json"]
    assert (old / "run.json").read_text() == "the session before"
    for result in ("complete.json", "metrics.jsonl"):  # work is never removed, though it ends with an error
        start(new, "base/config.json", f"base/{result}")
        assert (new / "base" / result).exists() and (new / "run.json").exists()
        new.rmtree()


def test_a_start_without_the_lock_undoes_nothing(tmp_path):
    """It lies with the process that has it."""
    code = (
        "import sys; from etils import epath; from r1jax.runs.workdir import lock;"
        "lock(epath.Path(sys.argv[1])); print('locked', flush=True); sys.stdin.read()"
    )
    directory = epath.Path(tmp_path / "run")
    other = subprocess.Popen([sys.executable, "-c", code, str(directory)], stdin=-1, stdout=-1, text=True)
    assert other.stdout.readline() == "locked\n"
    (directory / "pretrain").mkdir()
    with pytest.raises(UsageError):
        lock(directory)
    undo(directory)
    assert (directory / "pretrain").exists() and (directory / ".lock").exists()
    other.communicate()
    lock(directory)
    undo(directory)
    assert str(directory) not in HELD and (directory / "pretrain").exists()
