"""Several processes give the results of one, and all end when one is lost, fails or receives SIGTERM."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from subprocess import PIPE

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from etils import epath

from r1jax.checkpoint.store import policy_item
from r1jax.cli.main import main
from r1jax.parallel import hosts
from r1jax.parallel.transfers import make_checksums
from r1jax.runs.policy import load_policy
from r1jax.runs.run import sha256
from r1jax.telemetry.metrics import read_metrics
from tests.conftest import ROOT, xla_flags
from tests.shared.fake_gcs import fake_gcs
from tests.shared.several_processes import FORK, NUMBERS, TAUGHT, TAUGHT_NUMBERS, run_together, settings

# Two processes add their devices' numbers in another order than one: float32 rounding, over a few steps.
ROUNDING = 1e-5
WEIGHTS_ROUNDING = 5e-5  # Adam divides small gradients by small deviations; 6e-6 is typical
HEARTBEAT_TIMEOUT = 10
MARGIN = 5  # seconds that the abort itself may take
CLOCKS = ("seconds", "tokens_per_second", "device_idle", "memory_gib")


@pytest.fixture(scope="module")
def experiment(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("experiment") / "shared_work.py"
    path.write_text(FORK)
    return path


def command(experiment: Path, workdir: Path | str, **changes) -> list[str]:
    timeout = ["--heartbeat_timeout", str(HEARTBEAT_TIMEOUT)]
    return ["run", str(experiment), "--workdir", str(workdir), *timeout, *settings(**changes)]


@pytest.fixture(scope="module")
def alone(experiment, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("alone")
    [ended] = run_together(1, command(experiment, out / "run"), out)
    assert ended.status == 0, ended.text
    return out


@pytest.fixture(scope="module")
def together(experiment, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("together")
    for ended in run_together(2, command(experiment, out / "run"), out):
        assert ended.status == 0, ended.text
    return out


def figures(workdir: Path, stage: str) -> list[dict[str, float]]:
    """The metrics of a stage, without timings and memory."""
    rows = read_metrics(epath.Path(workdir) / stage / "metrics.jsonl")
    return [{name: x for name, x in row.items() if not name.startswith(CLOCKS)} for row in rows]


def mark(workdir: Path, stage: str) -> dict:
    return json.loads((workdir / stage / "complete.json").read_text())


def arrays(checkpoint: epath.Path) -> dict[str, np.ndarray]:
    """All arrays of a checkpoint, whatever devices they were saved from."""
    found = {}
    with ocp.PyTreeCheckpointer() as reader:
        for item in ("policy", "training"):
            tree = reader.metadata(checkpoint / item).item_metadata.tree
            how = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
            found[item] = reader.restore(checkpoint / item, restore_args=how)
    return {jax.tree_util.keystr(path): np.asarray(x) for path, x in jax.tree_util.tree_leaves_with_path(found)}


def require_alike_stage(one: Path, several: Path, stage: str, steps: int) -> None:
    rows = figures(one, stage), figures(several, stage)
    assert len(rows[0]) == steps
    for row, other in zip(*rows, strict=True):
        assert row.keys() == other.keys()
        for name in row:
            assert other[name] == pytest.approx(row[name], rel=ROUNDING, abs=ROUNDING), (stage, name)
    held = [arrays(epath.Path(w) / stage / "checkpoints" / str(steps)) for w in (one, several)]
    assert held[0].keys() == held[1].keys()
    for name, value in held[0].items():
        np.testing.assert_allclose(
            held[1][name], value, rtol=WEIGHTS_ROUNDING, atol=WEIGHTS_ROUNDING, err_msg=f"{stage} {name}"
        )


def require_alike(one: Path, several: Path) -> None:
    """The same ids and records; losses and weights equal up to rounding."""
    samples = [(w / "rl" / "samples.jsonl").read_text().splitlines() for w in (one, several)]
    tokens = [[json.loads(line)["tokens"] for line in lines] for lines in samples]
    assert tokens[0]
    assert tokens[0] == tokens[1]
    for stage in ("pretrain", "rl"):
        require_alike_stage(one, several, stage, steps=4)
    kept = [{k: v for k, v in mark(w, "rejection").items() if k != "content"} for w in (one, several)]
    assert kept[0] == kept[1]
    assert kept[0]["kept"] > 0
    assert mark(one, "evaluate") == mark(several, "evaluate")


@pytest.mark.slow
def test_two_processes_give_what_one_gives(alone, together):
    require_alike(alone / "run", together / "run")


@pytest.mark.slow
def test_each_process_grades_its_share(alone, together):
    graded = [p.read_text().splitlines() for p in sorted((together / "graded").iterdir())]
    [all_of_it] = [p.read_text().splitlines() for p in (alone / "graded").iterdir()]
    assert len(graded) == 2
    assert sorted(graded[0] + graded[1]) == sorted(all_of_it)
    assert min(map(len, graded)) >= 0.4 * len(all_of_it)


@pytest.mark.slow
def test_one_process_writes(together):
    run = together / "run"
    assert len(json.loads((run / "run.json").read_text())["sessions"]) == 1
    assert len(json.loads((run / "rl" / "sessions.json").read_text())) == 1
    assert len(list((run / "rl" / "tensorboard").iterdir())) == 1
    said = [(together / f"{i}.txt").read_text() for i in (0, 1)]
    assert "report: " in said[0]
    assert "pretrain 4/4" in said[0]
    assert "report: " not in said[1]
    assert "pretrain 4/4" not in said[1]


@pytest.mark.slow
def test_a_checkpoint_goes_onto_another_mesh(together, one_device):
    """A checkpoint of 2 processes x 4 devices, restored by one process onto one device, has the same bits."""
    policy = load_policy(epath.Path(together) / "run" / "rl", one_device)
    sums = jax.device_get(make_checksums(one_device)(policy_item(*policy.weights)))
    named = [f"{jax.tree_util.keystr(path)} {x}" for path, x in jax.tree_util.tree_leaves_with_path(sums)]
    assert sha256("\n".join(named).encode()) == mark(together / "run", "rl")["content"]


def begun(together: Path, tmp_path: Path) -> Path:
    """A copy of the run whose next stage is RL."""
    shutil.copytree(together / "run", tmp_path / "run")
    for stage in ("rl", "rejection", "evaluate"):
        shutil.rmtree(tmp_path / "run" / stage)
    return tmp_path / "run"


def require_same_bits(run: Path, other: Path) -> None:
    for stage in ("rl", "rejection", "evaluate"):
        assert mark(run, stage) == mark(other, stage)
    assert figures(run, "rl") == figures(other, "rl")


@pytest.mark.slow
@pytest.mark.parametrize("killed", [0, 1])
def test_when_one_is_killed_the_others_abort_and_the_run_resumes(together, experiment, tmp_path, killed):
    run = begun(together, tmp_path)
    ended = run_together(2, command(experiment, run), tmp_path, signals=(killed, "rl", signal.SIGKILL))
    assert ended[killed].status == -signal.SIGKILL
    left = ended[1 - killed]
    assert left.status == 1
    assert left.seconds < HEARTBEAT_TIMEOUT + MARGIN
    assert f"process {killed}" in left.said
    assert hosts.RESUME in left.said
    for again in run_together(2, command(experiment, run), tmp_path):
        assert again.status == 0, again.text
    require_same_bits(run, together / "run")


@pytest.mark.slow
def test_all_stop_when_one_receives_sigterm(together, experiment, tmp_path):
    """The same command resumes with the same bits; on another mesh, by one process, with the same up to rounding."""
    run = begun(together, tmp_path)
    for ended in run_together(2, command(experiment, run), tmp_path, signals=(1, "rl", signal.SIGTERM)):
        assert ended.status == 75, ended.text
        assert "rl" in ended.said and "step 3" in ended.said
    elsewhere = shutil.copytree(run, tmp_path / "elsewhere")
    for again in run_together(2, command(experiment, run), tmp_path):
        assert again.status == 0, again.text
    require_same_bits(run, together / "run")

    mesh = {"MeshConfig.data": 4, "MeshConfig.fsdp": 1, "MeshConfig.tensor": 2}
    [again] = run_together(1, command(experiment, elsewhere, **mesh), tmp_path)
    assert again.status == 0, again.text
    require_alike_stage(together / "run", elsewhere, "rl", steps=4)


@pytest.mark.slow
def test_two_processes_in_a_bucket(together, experiment, tmp_path):
    with fake_gcs() as (bucket, variables):
        command_there = command(experiment, "gs://bucket/run")
        for ended in run_together(2, command_there, tmp_path, variables=variables):
            assert ended.status == 0, ended.text
    for stage in ("pretrain", "rl", "rejection", "evaluate"):
        there = json.loads(bucket.objects[f"run/{stage}/complete.json"][0])
        assert there == mark(together / "run", stage), stage


@pytest.mark.slow
def test_four_processes_with_experts(experiment, tmp_path):
    """Whose tokens travel between processes, as do parts of rows, of matrices and of sums."""
    files = [
        word
        for name in ("model/tiny", "algorithm/grpo", "scale/cpu", "scale/token_mean")
        for word in ("--gin", f"{name}.gin")
    ]
    mesh = {"MeshConfig.data": 1, "MeshConfig.fsdp": 2, "MeshConfig.expert": 2, "MeshConfig.tensor": 2}
    grouped = {"ModelConfig.experts": "'grouped'"}
    for processes in (1, 4):
        out = tmp_path / str(processes)
        out.mkdir()
        for ended in run_together(processes, command(experiment, out / "run", **mesh, **grouped) + files, out):
            assert ended.status == 0, ended.text
    require_alike(tmp_path / "1" / "run", tmp_path / "4" / "run")


@pytest.mark.slow
def test_two_processes_learn_from_demonstrations_and_judgements(tmp_path):
    """With rollouts on their own mesh, and asynchronous RL."""
    experiment = tmp_path / "taught.py"
    experiment.write_text(TAUGHT)
    numbers = {name: value for name, value in NUMBERS.items() if "jection" not in name} | TAUGHT_NUMBERS
    words = [word for name, value in numbers.items() for word in ("--set", f"{name}={value}")]
    for processes in (1, 2):
        out = tmp_path / str(processes)
        out.mkdir()
        command = ["run", str(experiment), "--workdir", str(out / "run"), "--heartbeat_timeout", "60", *words]
        for ended in run_together(processes, command, out):
            assert ended.status == 0, ended.text
    one, two = (tmp_path / str(processes) / "run" for processes in (1, 2))
    for stage in ("sft", "helpful", "safe", "rl"):
        require_alike_stage(one, two, stage, steps=mark(one, stage)["steps"])
    for stage in ("preference_pairs", "ratings"):
        assert mark(one, stage) == mark(two, stage), stage
    found = [{k: v for k, v in mark(w, "evaluate").items() if k != "content"} for w in (one, two)]
    assert found[1] == pytest.approx(found[0], rel=ROUNDING)  # scores of a reward model differ by rounding


# ---- without experiments


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--coordinator", "127.0.0.1:1"], "--processes, --process_id"),
        (["--coordinator", "127.0.0.1:1", "--processes", "2", "--process_id", "2"], "--process_id"),
    ],
)
def test_flags_that_do_not_fit(capsys, tmp_path, flags, named):
    assert main(["run", "r1_zero", "--workdir", str(tmp_path / "run"), *flags]) == 2
    assert named in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_single_process_waits_for_nothing():
    assert hosts.gather_values("x", [1]) == [[1]]
    assert hosts.broadcast_from_main("x", lambda: (1, 2)) == (1, 2)
    hosts.gather_values("x", None, seconds=0)
    assert hosts.is_main_process()
    hosts.stop_if_preempted()


TALK = """
import time
from r1jax.errors import RunError, UsageError
from r1jax.parallel import hosts
me = ME
watch = hosts.start_hosts(WHO, heartbeat_timeout=20)
print(hosts.is_main_process(), [hosts.owns(i) for i in range(3)], hosts.gather_values("ids", {"i": me}))
told = hosts.broadcast_from_main("told", lambda: [me, 0.1])
print(told, [len(x) for x in hosts.gather_values("much", str(me) * 20_000_000)])
def refuse():
    raise UsageError(f"said by {me}")
try:
    hosts.broadcast_from_main("refused", refuse)
except UsageError as error:
    print(error)
if me == 1:
    time.sleep(30)
try:
    hosts.gather_values("the corner", None, 2)
except RunError as error:
    print([word in str(error) for word in ("the corner", "process 1", "process 0")], flush=True)
    watch.end(1, error)
watch.end(0, None)
"""


def start(code: str, processes: int = 2, *, by_slurm: bool = False) -> list[subprocess.Popen]:
    """Processes that run `code`; WHO stands for the arguments of `start_hosts`, ME for the process's number."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def process(i: int) -> subprocess.Popen:
        slurm = {
            "SLURM_JOB_ID": "7", "SLURM_STEP_NODELIST": "localhost", "SLURM_NTASKS": str(processes),
            "SLURM_PROCID": str(i), "SLURM_LOCALID": str(i), "JAX_COORDINATOR_PORT": str(port),
        }  # fmt: skip
        who = "None, None, None" if by_slurm else f"'127.0.0.1:{port}', {processes}, {i}"
        variables = os.environ | {"XLA_FLAGS": xla_flags(2)} | (slurm if by_slurm else {})
        command = [sys.executable, "-c", code.replace("WHO", who).replace("ME", str(i))]
        return subprocess.Popen(command, stdout=PIPE, stderr=PIPE, text=True, cwd=ROOT, env=variables)

    return [process(i) for i in range(processes)]


@pytest.mark.parametrize("by_slurm", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["by flags", "by Slurm"])
def test_processes_exchange_values(by_slurm):
    running = start(TALK, by_slurm=by_slurm)
    (out, _), (other, told) = [process.communicate(timeout=120) for process in running]
    assert [process.returncode for process in running] == [1, 1]
    same = ["[{'i': 0}, {'i': 1}]", "[0, 0.1] [20000000, 20000000]", "said by 0"]
    mine = "True [True, False, True]", "False [False, True, False]"
    assert out.splitlines() == [f"{mine[0]} {same[0]}", *same[1:], "[True, True, False]"]
    assert other.splitlines() == [f"{mine[1]} {same[0]}", *same[1:]]
    last = told.strip().splitlines()[-1]
    assert last.startswith("r1jax: process 0 ") and "the corner" in last and "process 1" in last


WRONG = """
import sys
from r1jax.errors import UsageError
from r1jax.parallel import hosts
watch = hosts.start_hosts(WHO, heartbeat_timeout=10)
if ME == 1:
    watch.end(2, UsageError("no such option"))
hosts.gather_values("a place where process 1 never comes", None)
"""


def test_all_end_with_the_status_of_the_one_that_failed():
    """Also process 0, which learns of the failure before process 1 has exited. Scripts do not retry status 2."""
    running = start(WRONG)
    told = [process.communicate(timeout=120)[1] for process in running]
    assert [process.returncode for process in running] == [2, 2]
    last = told[0].strip().splitlines()[-1]
    assert last.startswith("r1jax: process 1 ") and "no such option" in last


SUMS = """
import os, signal, time
import jax, jax.numpy as jnp
from r1jax.config import MeshConfig
from r1jax.parallel import hosts
from r1jax.parallel.layout import make_layout
watch = hosts.start_hosts(WHO, heartbeat_timeout=10)
layout = make_layout(MeshConfig(data=-1))
add = jax.jit(lambda x: x.sum(), out_shardings=layout.replicated())
for step in range(100_000):
    print(float(add(layout.put_batch(jnp.arange(8.0)))), flush=True)
    if (step, ME) == (20, KILLED):
        print("killed", time.time(), flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize(("processes", "killed"), [(2, 0), (2, 1), pytest.param(4, 2, marks=pytest.mark.slow)])
def test_the_others_abort_when_one_is_killed(processes, killed):
    running = start(SUMS.replace("KILLED", str(killed)), processes)
    out, _ = running[killed].communicate(timeout=120)
    assert running[killed].returncode == -signal.SIGKILL
    for process in running[:killed] + running[killed + 1 :]:
        left, told = process.communicate(timeout=120)
        seconds = time.time() - float(out.split()[-1])
        assert process.returncode == 1
        assert "28.0" in out and "28.0" in left
        assert seconds < 10 + 5
        last = told.strip().splitlines()[-1]
        assert last.startswith("r1jax: ") and f"process {killed}" in last
