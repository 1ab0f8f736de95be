"""Each stage records its inputs; a change upstream is refused, or the stages downstream are rerun."""

import json
import shutil
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from r1jax.config import MeshConfig
from r1jax.errors import UsageError
from r1jax.parallel.layout import make_layout
from r1jax.parallel.transfers import make_checksums
from r1jax.runs.lineage import FORMAT
from r1jax.runs.run import Experiment, archive, content_hash, downstream, open_run
from r1jax.runs.workdir import undo
from r1jax.telemetry.progress import Progress
from tests.shared.small_run import r1jax, settings


@pytest.fixture
def run(tmp_path, experiment_config, one_device):
    def open(**options):
        return open_run(str(tmp_path / "run"), Experiment("x"), experiment_config, one_device, Progress(), **options)

    return open


def make(run, name: str, inputs: dict, result: int) -> epath.Path:
    """A stage whose result is a number."""
    stage = run.stage(name)
    stage.open("number", inputs)
    if stage.result() is None:
        stage.complete({"number": result})
    return stage.directory


def make_all(run, first: int = 1) -> dict[str, epath.Path]:
    """a -> b -> d, a -> c -> d, e."""
    made = {"a": make(run, "a", {}, first)}
    made["b"] = make(run, "b", {"from": made["a"]}, 2)
    made["c"] = make(run, "c", {"from": made["a"]}, 3)
    made["d"] = make(run, "d", {"left": made["b"], "right": made["c"]}, 4)
    return made | {"e": make(run, "e", {}, 5)}


def test_a_stage_records_its_inputs_and_sessions(run):
    made = make_all(run())
    config = json.loads((made["d"] / "config.json").read_text())
    contents = {n: json.loads((made[n] / "complete.json").read_text())["content"] for n in "bc"}
    assert config["inputs"] == {
        "left": {"path": "b", "content": contents["b"]},
        "right": {"path": "c", "content": contents["c"]},
    }
    (session,) = json.loads((made["d"] / "sessions.json").read_text())
    assert {"git", "command", "versions", "devices", "started", "seed"} <= session.keys()


def test_another_input_is_refused_with_what_changed(run):
    made = make_all(run())
    mark = json.loads((made["b"] / "complete.json").read_text())
    (made["b"] / "complete.json").write_text(json.dumps(mark | {"content": "feed"}))
    with pytest.raises(UsageError, match=rf"inputs.left.content: {mark['content']}.*feed.*--from d"):
        make_all(run())


def test_from_reruns_a_stage_and_everything_downstream(run):
    made = make_all(run())
    before = {name: Path(path / "complete.json").stat().st_mtime_ns for name, path in made.items()}
    again = make_all(run(rerun_from="a"), first=10)
    assert json.loads((again["a"] / "complete.json").read_text())["number"] == 10
    assert Path(again["e"] / "complete.json").stat().st_mtime_ns == before["e"]
    archived = again["a"].parent / "archive" / "1"
    assert sorted(p.name for p in archived.iterdir()) == ["a", "b", "c", "d"]  # nothing is lost
    assert json.loads((archived / "a" / "complete.json").read_text())["number"] == 1
    make_all(run(rerun_from="c"), first=10)
    assert sorted(p.name for p in (archived.parent / "2").iterdir()) == ["c", "d"]


def test_from_an_unknown_stage_is_refused(run):
    make_all(run())
    with pytest.raises(UsageError, match=r"--from rl: .*a, b, c, d, e"):
        run(rerun_from="rl")


def test_an_interrupted_archive_can_be_repeated(run, monkeypatch):
    """The named stage is moved last."""
    made = make_all(run())
    workdir, rename, moved = made["a"].parent, type(made["a"]).rename, []

    def failing(self, target):
        if len(moved) == 2:
            raise KeyboardInterrupt
        moved.append(self.name)
        return rename(self, target)

    monkeypatch.setattr(type(made["a"]), "rename", failing)
    with pytest.raises(KeyboardInterrupt):
        archive(workdir, "a")
    monkeypatch.undo()
    left = archive(workdir, "a")
    assert sorted(moved + left) == ["a", "b", "c", "d"]
    assert moved[0] == "d"


def test_an_input_that_is_unfinished_or_missing_is_named(run, tmp_path):
    opened = run()
    opened.stage("a").open("number", {})
    with pytest.raises(UsageError, match="run/a"):
        opened.stage("b").open("number", {"from": opened.workdir / "a"})
    with pytest.raises(UsageError, match="nowhere"):
        opened.stage("b").open("number", {"from": opened.workdir / "nowhere"})


def test_the_hash_of_files_depends_on_names_and_bytes(tmp_path):
    one, other = epath.Path(tmp_path) / "one", epath.Path(tmp_path) / "other"
    (one / "deep").mkdir(parents=True)
    (one / "deep" / "a").write_bytes(b"a" * 100)
    (one / "b").write_bytes(b"b")
    shutil.copytree(one, other)
    assert content_hash(one) == content_hash(other)
    (other / "b").write_bytes(b"c")
    assert content_hash(one) != content_hash(other)
    (other / "b").rename(other / "c")
    (other / "c").write_bytes(b"b")
    assert content_hash(one) != content_hash(other)


def test_checksums_depend_on_values_places_and_signs_but_not_on_the_mesh(one_device):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(16, 8)).astype(np.float32)
    sums = make_checksums(one_device)
    first = int(sums(x))
    for changed in (x[::-1], x.T.reshape(16, 8), -x, np.nextafter(x, 9), np.where(np.arange(8) == 3, x + 1, x)):
        assert int(sums(np.ascontiguousarray(changed, np.float32))) != first
    one_bit = x.copy()
    one_bit.view(np.uint32)[5, 3] ^= 1
    assert int(sums(one_bit)) != first
    mesh = make_layout(MeshConfig(data=1, fsdp=2, tensor=4))
    spread = make_checksums(mesh)(mesh.put_batch(x))
    assert int(spread) == first
    assert sums({"w": jnp.zeros((3,), jnp.bfloat16)})["w"].dtype == jnp.uint32


@pytest.mark.slow
def test_a_run_is_rerun_from_a_stage_with_another_config(finished, fork, tmp_path):
    """On the command line: refused with the difference first, then rerun with --from."""
    workdir = tmp_path / "run"
    shutil.copytree(finished, workdir)
    arguments = ("run", str(fork), "--workdir", str(workdir), *settings(**{"LossConfig.kl_coef": 0.5}))
    refused = r1jax(*arguments)
    assert refused.returncode == 2
    assert "rl.loss.kl_coef: 0.001" in refused.stderr
    assert "--from rl" in refused.stderr
    kept = (workdir / "pretrain" / "complete.json").stat().st_mtime_ns
    done = r1jax(*arguments, "--from", "rl")
    assert done.returncode == 0, done.stderr
    assert "rerun: rl, evaluate_r1_zero" in done.stdout
    assert json.loads((workdir / "rl" / "config.json").read_text())["rl"]["loss"]["kl_coef"] == 0.5
    assert (workdir / "pretrain" / "complete.json").stat().st_mtime_ns == kept
    assert downstream(epath.Path(workdir), "rl") == ["rl", "evaluate_r1_zero"]


def test_a_moved_input_is_the_same_input(run, tmp_path):
    opened = run()
    other = epath.Path(tmp_path) / "elsewhere"
    for place in ("one", "two"):
        (other / place).mkdir(parents=True)
        (other / place / "data").write_text("the same")
    made = make(opened, "a", {"from": other / "one"}, 1)
    assert make(opened, "a", {"from": other / "two"}, 2) == made
    assert json.loads((made / "complete.json").read_text())["number"] == 1
    (other / "two" / "data").write_text("another")
    with pytest.raises(UsageError, match="inputs.from.content"):
        make(opened, "a", {"from": other / "two"}, 2)


def test_a_published_checkpoint_in_the_workdir_is_not_a_stage(run):
    workdir = make_all(run())["a"].parent
    (workdir / "exported").mkdir()
    (workdir / "exported" / "config.json").write_text('{"model_type": "deepseek_v3"}')
    (workdir / "exported" / "model.safetensors.index.json").write_text("{}")
    assert sorted(downstream(workdir, "b")) == ["b", "d"]


def test_from_in_an_empty_directory_writes_nothing(run, tmp_path):
    with pytest.raises(UsageError, match="--from a"):
        run(rerun_from="a")
    undo(epath.Path(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("found", [{}, {"format": 1}, {"format": 3}])
def test_a_run_of_another_format_is_refused_and_left_alone(run, tmp_path, found):
    make_all(run())
    path = tmp_path / "run" / "run.json"
    record = json.loads(path.read_text())
    assert record.pop("format") == FORMAT
    path.write_text(json.dumps(record | found))
    before = path.read_bytes()
    with pytest.raises(UsageError, match=r"format.*--workdir") as refused:
        run(rerun_from="a")
    assert "\n" not in str(refused.value)
    assert path.read_bytes() == before
    assert (tmp_path / "run" / "a").exists()
