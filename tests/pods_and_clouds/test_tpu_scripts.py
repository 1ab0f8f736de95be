"""The scripts for pods, against a fake gcloud that records every call and injects failures (fake_gcloud.py)."""

import contextlib
import functools
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import yaml

from r1jax.runs import run as stages_run

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = sorted((ROOT / "tpu_scripts").glob("*.sh"))
FOR_USERS = [path.name for path in SCRIPTS if path.name not in ("worker.sh", "requirements.sh")]
# A pod of two hosts.
POD = (
    "--name",
    "r1",
    "--project",
    "p",
    "--zone",
    "us-west4-a",
    "--accelerator_type",
    "v5p-16",
    "--spot",
    "true",
)  # two hosts
WHERE = "--zone=us-west4-a --project=p"
RUN = ("--", "r1_zero_math", "--set", "BaseConfig.path='gs://b/base'", "--workdir", "gs://b/run")

# What a worker's programs do. A line of `runs` is a start of the run: the exit status of each worker, or `stay`.
PROGRAMS = {
    "curl": 'echo "$WORKER"',
    "python3": r"""
        case "$*" in
          "-m uv venv "*) mkdir -p r1jax_venv/bin && cp "$FAKE_CLOUD/bin/venv_python" r1jax_venv/bin/python ;;
          *) echo "$*" >> installed ;;
        esac""",
    "venv_python": r"""
        case "$*" in
          -c*) # both workers have to be there, as for jax.distributed
            echo >> "$FAKE_CLOUD/looks.$WORKER"
            for ((i = 0; i < 20; i++)); do
              cmp -s "$FAKE_CLOUD"/looks.[01] && break
              sleep 0.05
            done
            cmp -s "$FAKE_CLOUD"/looks.[01] || { rm "$FAKE_CLOUD/looks.$WORKER"; echo "alone"; exit 1; }
            cat "$FAKE_CLOUD/devices.$WORKER" 2>/dev/null || echo "8 devices, 4 here, jax 0.10.2" ;;
          "-m r1jax run "*)
            echo start >> "$FAKE_CLOUD/starts.$WORKER"
            plan=($(sed -n "$(wc -l < "$FAKE_CLOUD/starts.$WORKER")p" "$FAKE_CLOUD/runs"))
            printf '%s|' "$@" ; echo ; echo "step 7 of worker $WORKER"
            trap 'echo saved; exit 75' TERM
            [[ ${plan[WORKER]} != stay ]] || while true; do sleep 0.02; done
            exit "${plan[WORKER]}" ;;
        esac""",
}


class Cloud:
    """A checkout with the scripts, and a fake cloud next to it."""

    def __init__(self, directory: Path):
        self.directory, self.checkout = directory / "cloud", directory / "checkout"

    def make(self) -> None:
        (self.directory / "bin").mkdir(parents=True)
        self.program("gcloud", f'exec {shlex.quote(sys.executable)} -SE {ROOT / "tests/shared/fake_gcloud.py"} "$@"')
        self.program("kubectl", 'printf "%s " "$@" >> "$FAKE_CLOUD/kubectl"; cat >> "$FAKE_CLOUD/kubectl"')
        for name, text in PROGRAMS.items():
            self.program(name, text)
        shutil.copytree(ROOT / "tpu_scripts", self.checkout / "tpu_scripts", ignore=shutil.ignore_patterns("pod.env"))
        for name in ("requirements.txt", "requirements-dev.txt"):
            shutil.copy(ROOT / name, self.checkout)
        (self.checkout / ".gitignore").write_text(".cache/\n")
        self.git("init", "-q")
        self.git("add", ".")
        self.git("commit", "-q", "-m", "code")
        self.plan()

    def program(self, name: str, text: str) -> None:
        path = self.directory / "bin" / name
        path.write_text(f"#!/usr/bin/env bash\n{text}\n")
        path.chmod(0o755)

    def git(self, *words: str) -> str:
        identity = ("-c", "user.name=t", "-c", "user.email=t@localhost")
        return subprocess.run(
            ["git", *identity, *words], cwd=self.checkout, check=True, capture_output=True, text=True
        ).stdout

    def plan(self, runs: str = "0 0", **what) -> None:
        (self.directory / "runs").write_text(runs)
        (self.directory / "plan.json").write_text(json.dumps({"hosts": 2} | what))

    def environment(self) -> dict[str, str]:
        path = f"{self.directory / 'bin'}:{os.environ['PATH']}"
        fast = {"POD_PAUSE": "0.03", "POD_PATIENCE": "3"}
        return os.environ | fast | {"PATH": path, "FAKE_CLOUD": str(self.directory)}

    def shell(self, command: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            ["bash", "-c", command],
            env=self.environment(),
            cwd=self.directory,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    def command(self, script: str, *words: str, pod=POD) -> str:
        verb, rest = (words[:1], words[1:]) if script == "gke.sh" else ((), words)
        return shlex.join([str(self.checkout / "tpu_scripts" / script), *verb, *pod, *rest])

    def run(self, script: str, *words: str, pod=POD) -> subprocess.CompletedProcess:
        return self.shell(self.command(script, *words, pod=pod))

    def watch(self) -> subprocess.Popen:
        """A run.sh that has seen both workers running."""
        command = f"exec {self.command('run.sh', *RUN)}"
        environment = self.environment() | {"POD_PAUSE": "0.2"}
        # Background jobs of a shell ignore Ctrl-C, and so do their children: restore the default handler.
        hears = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
        started = ["bash", "-c", command]
        watcher = subprocess.Popen(started, env=environment, stderr=subprocess.PIPE, text=True, preexec_fn=hears)
        assert watcher.stderr is not None
        assert any("2 of 2 workers running" in line for line in watcher.stderr)
        return watcher

    def calls(self) -> list[str]:
        path = self.directory / "calls"
        return [shlex.join(json.loads(line)) for line in path.read_text().splitlines()] if path.exists() else []

    def steps(self) -> list[str]:
        """The calls that change something, in a word or two; consecutive polls count as one."""
        steps: list[str] = []
        for call in self.calls():
            words = shlex.split(call)
            if words[3] == "describe":
                continue
            target = next((word.partition("=")[2] for word in words if word.startswith("--worker=")), "")
            command = next((word for word in words if word.startswith("--command=")), "")
            verb = command.partition("worker.sh ")[2].split(" ")[0] or command.partition("=")[2].split(" ")[0]
            step = " ".join(part for part in (words[3], target, verb) if part)
            if step != "ssh all poll" or steps[-1:] != [step]:
                steps.append(step)
        return steps

    def starts(self, worker: int) -> int:
        path = self.directory / f"starts.{worker}"
        return len(path.read_text().splitlines()) if path.exists() else 0


@pytest.fixture(scope="module")
def empty(tmp_path_factory) -> Path:
    """A cloud without a TPU, to be copied."""
    path = tmp_path_factory.mktemp("empty")
    Cloud(path).make()
    return path


@pytest.fixture(scope="module")
def set_up(tmp_path_factory, empty) -> Path:
    """A cloud with a TPU that two commands created and set up, to be copied."""
    path = shutil.copytree(empty, tmp_path_factory.mktemp("set_up") / "all")
    for script in ("create.sh", "setup.sh"):
        done = Cloud(path).run(script)
        assert done.returncode == 0, done.stderr
    (path / "cloud" / "calls").unlink()
    return path


@pytest.fixture
def cloud(tmp_path, empty):
    yield from lend(tmp_path / "empty", empty)


@pytest.fixture
def pod(tmp_path, set_up):
    yield from lend(tmp_path / "set_up", set_up)


def lend(directory: Path, template: Path):
    cloud = Cloud(shutil.copytree(template, directory))
    yield cloud
    for pid in cloud.directory.glob("workers/*/r1jax_job/pid"):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(int(pid.read_text()), signal.SIGKILL)


SET_UP = ["scp all", "ssh all install", "ssh all setup", "ssh all devices"]


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_strict_and_parse(path):
    assert "set -euo pipefail" in path.read_text()
    assert os.access(path, os.X_OK)
    assert subprocess.run(["bash", "-n", str(path)], check=False).returncode == 0


def test_shellcheck_finds_nothing():
    shellcheck = Path(sys.executable).parent / "shellcheck"  # of requirements-dev.txt
    files = [*SCRIPTS, *(ROOT / "tpu_scripts").glob("*.bash")]
    done = subprocess.run([str(shellcheck), "-x", *map(str, files)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize("script", FOR_USERS)
def test_help(cloud, script):
    done = cloud.run(script, "--help", pod=())
    assert done.returncode == 0
    assert f"tpu_scripts/{script}" in done.stdout
    assert "--accelerator_type" in done.stdout


DRY_RUNS = {
    "create.sh": [],
    "setup.sh": [],
    "sync.sh": [],
    "stop.sh": [],
    "status.sh": [],
    "logs.sh": [],
    "delete.sh": [],
    "run.sh": RUN,
    "tensorboard.sh": ["--workdir", "gs://b/run"],
}


@pytest.mark.parametrize("script", DRY_RUNS)
def test_a_dry_run_prints_commands_and_calls_nothing(cloud, pod, script):
    done = cloud.run(script, "--dry_run", *DRY_RUNS[script])
    assert (done.returncode, cloud.calls()) == (0, [])
    assert not (cloud.checkout / ".cache").exists()
    commands = [line for line in done.stdout.splitlines() if not line.startswith("#")]
    assert commands
    for line in commands:
        assert shlex.split(line)[0] in ("gcloud", "git", "mkdir"), line
    # Pasted into a shell one by one, the commands have the same effect.
    for line in commands:
        if "-L 6006" not in line and "tail" not in line:
            pasted = pod.shell(line)
            assert pasted.returncode == 0, pasted.stderr


@pytest.mark.parametrize(
    ("script", "words", "pod", "named"),
    [
        ("create.sh", [], (), "name is"),
        ("create.sh", [], POD[:2], "project is"),
        ("create.sh", [], POD[:4], "zone is"),
        ("create.sh", [], POD[:6], "accelerator_type is"),
        ("create.sh", ["--name", "R1"], POD, "name is 'R1'"),
        ("create.sh", ["--zone", "us-west4"], POD, "zone is 'us-west4'"),
        ("create.sh", ["--spot", "yes"], POD, "spot is 'yes'"),
        ("create.sh", ["--valid_until", "soon"], POD, "valid_until is 'soon'"),
        ("create.sh", ["--accelerator_type", "v5litepod-17"], POD, "accelerator_type is 'v5litepod-17'"),
        ("create.sh", ["--accelerator_type", "h100"], POD, "accelerator_type is 'h100'"),
        ("create.sh", ["--colour", "red"], POD, "--colour"),
        ("create.sh", ["--zone"], POD, "--zone"),
        ("create.sh", ["r1"], POD, "'r1'"),
        ("create.sh", ["--pod", "nowhere.env"], POD, "nowhere.env"),
        ("run.sh", [], POD, "after --"),
        ("run.sh", ["--", "r1_zero_math", "--workdir", "runs/x"], POD, "--workdir gs://"),
        ("run.sh", ["--max_restarts", "many", *RUN], POD, "max_restarts is 'many'"),
        ("logs.sh", ["--worker", "2"], POD, "worker is 2"),
        ("tensorboard.sh", [], POD, "workdir is"),
        ("cost.sh", ["--accelerator_type", "v6e-8", "--hours", "1"], (), "--price_per_chip_hour\n"),
        ("gke.sh", ["nothing"], (), "'nothing'"),
        ("gke.sh", ["manifest", *RUN], POD, "image is"),
        ("gke.sh", ["manifest", "--image", "i", *RUN, "a\nb"], POD, "argument"),
    ],
)
def test_wrong_settings_are_one_line_and_exit_2(cloud, script, words, pod, named):
    done = cloud.run(script, *words, pod=pod)
    assert (done.returncode, cloud.calls()) == (2, [])
    assert named in done.stderr
    assert done.stderr.startswith(f"{script}: ")
    assert len(done.stderr.strip().splitlines()) == 1


def test_settings_come_from_a_file_and_flags_win(cloud):
    (cloud.checkout / "tpu_scripts" / "pod.env").write_text(
        "# ours\n\nname=r2\nproject=p\nzone=us-west4-a\naccelerator_type=v5p-256"
    )
    done = cloud.run("create.sh", "--zone", "us-east5-a", "--valid_until", "6h", "--dry_run", pod=())
    assert done.stdout.splitlines()[0] == (
        "gcloud compute tpus queued-resources create r2 --zone=us-east5-a --project=p --node-id=r2"
        " --accelerator-type=v5p-256 --runtime-version=v2-alpha-tpuv5 --valid-until-duration=6h"
    )
    (cloud.checkout / "tpu_scripts" / "pod.env").write_text("name=r2\ncolour=red\n")
    done = cloud.run("create.sh", pod=())
    assert (done.returncode, "colour=red" in done.stderr) == (2, True)
    (cloud.checkout / "tpu_scripts" / "pod.env").write_text("name=$(touch executed)\n")
    assert "name is '$(touch" in cloud.run("create.sh", *POD[2:], pod=()).stderr  # read, not executed
    assert not (cloud.directory / "executed").exists()


def test_create_asks_once_and_waits(cloud):
    done = cloud.run("create.sh")
    assert done.returncode == 0, done.stderr
    describe = f"compute tpus queued-resources describe r1 {WHERE} '--format=value(state.state)'"
    node = f"compute tpus tpu-vm describe r1 {WHERE} '--format=value(state)'"
    assert cloud.calls() == [
        describe,
        f"compute tpus queued-resources create r1 {WHERE} --node-id=r1 --accelerator-type=v5p-16"
        " --runtime-version=v2-alpha-tpuv5 --spot",
        describe,
        describe,
        describe,
        node,
    ]
    done = cloud.run("create.sh")  # again: it is ready
    assert done.returncode == 0
    assert cloud.steps() == ["create"]


def test_quota_is_one_line_and_no_loop(cloud):
    cloud.plan(create=["quota"])
    done = cloud.run("create.sh")
    assert done.returncode == 1
    [line] = done.stderr.strip().splitlines()
    for words in ("TPUV5sLitepodPerProjectPerZoneForTPUAPI", "us-west4-a", "8 chips", "another --zone", "smaller"):
        assert words in line
    assert cloud.steps() == ["create"]


def test_a_request_that_fails_in_the_queue(cloud):
    cloud.plan(create=[["ACCEPTED", "FAILED"]], reason=["Quota 'X' exhausted. Limit 0"])
    done = cloud.run("create.sh")
    assert (done.returncode, "Quota 'X' exhausted" in done.stderr) == (1, True)
    assert "delete.sh" in cloud.run("create.sh").stderr
    assert cloud.run("delete.sh").returncode == 0
    assert cloud.steps() == ["create", "delete"]
    assert "r1 " in cloud.run("delete.sh").stderr


def test_setup_sends_installs_and_counts(cloud):
    assert cloud.run("create.sh").returncode == 0
    (cloud.checkout / "requirements.txt").open("a").write("# changed\n")
    (cloud.checkout / "fork.py").write_text("")
    done = cloud.run("setup.sh")
    assert done.returncode == 0, done.stderr
    assert cloud.steps() == ["create", *SET_UP]
    assert "(git add): fork.py" in done.stderr
    assert done.stderr.count("8 devices, 4 here") == 2
    for worker in range(2):
        home = cloud.directory / "workers" / str(worker)
        assert (home / "r1jax/requirements.txt").read_text().endswith("# changed\n")
        assert (home / "r1jax/GIT_STATE").read_text().strip() == cloud.git("describe", "--always", "--dirty").strip()
        assert not (home / "r1jax/fork.py").exists()
        wanted = (home / "r1jax_requirements.txt").read_text()
        assert "jax[tpu]==0.10.2" in wanted and "optax==" in wanted and "gcsfs==" in wanted  # --workdir gs://
        assert "torch" not in wanted and "pytest" not in wanted
        assert "tensorflow-cpu" not in wanted and "\ntensorflow==2.21.0\n" in wanted  # not both, by tensorflow-text
        assert "r1jax_requirements.txt" in (home / "installed").read_text()


def test_setup_names_the_worker_that_differs(cloud):
    assert cloud.run("create.sh").returncode == 0
    (cloud.directory / "devices.1").write_text("8 devices, 3 here, jax 0.10.2\n")
    done = cloud.run("setup.sh")
    assert done.returncode == 1
    assert "worker 1 has 8 devices, 3 here" in done.stderr
    assert "worker 0 has" not in done.stderr


def test_all_workers_look_at_the_devices_at_once(cloud):
    """If one is not reached, all look again: they see the devices only together."""
    assert cloud.run("create.sh").returncode == 0
    cloud.plan(**{"before devices": ["away 1"]})
    done = cloud.run("setup.sh")
    assert done.returncode == 0, done.stderr
    assert cloud.steps() == ["create", *SET_UP, "ssh all devices"]
    assert "try 1 of 3" in done.stderr


def test_a_run_to_its_end(pod):
    done = pod.run("run.sh", *RUN)
    assert done.returncode == 0, done.stderr
    assert pod.steps() == ["ssh all start", "ssh all poll"]
    log = (pod.directory / "workers/1/r1jax_job/log").read_text()
    assert "-m|r1jax|run|r1_zero_math|--set|BaseConfig.path='gs://b/base'|--workdir|gs://b/run|" in log
    assert "step 7 of worker 0" in done.stderr


def test_run_needs_a_pod(cloud):
    done = cloud.run("run.sh", *RUN)
    assert (done.returncode, cloud.steps()) == (1, [])
    assert "create.sh and setup.sh" in done.stderr
    assert cloud.run("create.sh").returncode == 0
    assert cloud.run("sync.sh").returncode == 0
    done = cloud.run("run.sh", *RUN)
    assert (done.returncode, "setup.sh" in done.stderr) == (1, True)


@pytest.mark.parametrize("trouble", ["preempt", "suspend"])
def test_a_preempted_run_resumes(pod, trouble):
    pod.plan(runs="stay stay\n0 0", **{"before poll": ["", "", trouble]})
    done = pod.run("run.sh", *RUN)
    assert done.returncode == 0, done.stderr
    assert pod.steps() == [
        "ssh all start", "ssh all poll",
        "delete", "create", *SET_UP,
        "ssh all start", "ssh all poll",
    ]  # fmt: skip
    assert [pod.starts(worker) for worker in range(2)] == [2, 2]
    assert "restart 1 of at most 10" in done.stderr


def test_preempted_and_then_no_quota_ends(pod):
    pod.plan(runs="stay stay", create=["quota"], **{"before poll": ["preempt"]})
    done = pod.run("run.sh", *RUN)
    assert (done.returncode, "Quota limit" in done.stderr) == (1, True)
    assert pod.steps() == ["ssh all start", "ssh all poll", "delete", "create"]


def test_recreation_is_retried_and_bounded(pod):
    pod.plan(create=["internal"] * 9, **{"before start": ["preempt"]})
    done = pod.run("run.sh", "--max_restarts", "3", *RUN)
    assert done.returncode == 1
    assert "after 3 restarts" in done.stderr
    assert pod.steps() == ["ssh all start", "delete", "create", "create", "create"]


def test_a_setup_that_failed_deletes_no_pod(pod):
    pod.plan(runs="stay stay\n0 0", **{"before poll": ["preempt"], "before setup": ["away 6"]})
    done = pod.run("run.sh", *RUN)
    assert done.returncode == 0, done.stderr
    assert pod.steps() == [
        "ssh all start", "ssh all poll",
        "delete", "create", *SET_UP[:3], *["ssh 1 setup"] * 5,
        *SET_UP,
        "ssh all start", "ssh all poll",
    ]  # fmt: skip


def test_a_run_that_saved_on_sigterm_is_restarted(pod):
    pod.plan(runs="1 75\n75 75\n0 0")
    done = pod.run("run.sh", *RUN)
    assert done.returncode == 0, done.stderr
    assert pod.steps() == ["ssh all start", "ssh all poll"] * 3


def test_restarts_without_progress_are_bounded(pod):
    pod.plan(runs="75 75\n" * 9)
    done = pod.run("run.sh", "--max_restarts", "2", *RUN)
    assert (done.returncode, "after 2 restarts" in done.stderr) == (1, True)
    assert pod.starts(0) == 3


@pytest.mark.parametrize(
    ("runs", "status", "named"),
    [("0 1", 1, "worker 1: the run failed (exit status 1)"), ("75 2", 2, "worker 1: the config is wrong")],
)
def test_a_failure_is_shown_and_not_restarted(pod, runs, status, named):
    pod.plan(runs=runs)
    done = pod.run("run.sh", *RUN)
    assert (done.returncode, named in done.stderr) == (status, True), done.stderr
    assert "step 7 of worker" in done.stderr
    assert [pod.starts(worker) for worker in range(2)] == [1, 1]


def test_workers_that_hang_after_a_failure_are_stopped(pod):
    pod.plan(runs="stay 1")
    done = pod.run("run.sh", *RUN)
    assert (done.returncode, "worker 1: the run failed" in done.stderr) == (1, True), done.stderr
    assert "ssh all stop" in pod.steps()
    assert "saved" in (pod.directory / "workers/0/r1jax_job/log").read_text()


def test_a_lost_connection_starts_nothing_twice(pod):
    pod.plan(runs="stay stay", **{"during start": ["lost"], "before poll": [""] * 3 + ["preempt"]}, create=["quota"])
    done = pod.run("run.sh", *RUN)
    assert "no answer from worker 0, 1; try 1 of 5" in done.stderr
    assert pod.steps()[:3] == ["ssh all start", "ssh all start", "ssh all poll"]
    assert [pod.starts(worker) for worker in range(2)] == [1, 1]


def test_a_second_watcher_only_watches_and_another_command_is_refused(pod):
    pod.plan(runs="stay stay")
    watcher = pod.watch()
    watcher.kill()
    watcher.communicate()
    watcher = pod.watch()
    watcher.kill()
    watcher.communicate()
    assert [pod.starts(worker) for worker in range(2)] == [1, 1]
    done = pod.run("run.sh", *RUN, "--set", "x=1")
    assert (done.returncode, ": r1_zero_math" in done.stderr) == (1, True)
    done = pod.run("setup.sh")
    assert (done.returncode, "stop.sh" in done.stderr) == (1, True)
    assert "worker 1: running step 7 of worker 1" in pod.run("status.sh").stdout
    assert "step 7 of worker 1" in pod.run("logs.sh", "--worker", "1", "--lines", "5").stdout


def test_stopped_for_good(pod):
    pod.plan(runs="stay stay\n0 0")
    with pod.watch() as watcher:
        assert pod.run("stop.sh").stdout.count("asked to save and stop") == 2
        assert "stopped by stop.sh" in watcher.stderr.read()
    assert watcher.returncode == 75
    assert [pod.starts(worker) for worker in range(2)] == [1, 1]
    assert pod.run("run.sh", *RUN).returncode == 0
    assert [pod.starts(worker) for worker in range(2)] == [2, 2]


def test_stopped_before_its_restart(pod):
    pod.plan(runs="75 75\n0 0")
    command, slow = f"exec {pod.command('run.sh', *RUN)}", pod.environment() | {"POD_PAUSE": "2"}
    with subprocess.Popen(["bash", "-c", command], env=slow, stderr=subprocess.PIPE, text=True) as watcher:
        assert any("again: restart 1 of at most 10" in line for line in watcher.stderr)
        assert pod.run("stop.sh").returncode == 0
        assert "stopped by stop.sh" in watcher.stderr.read()
    assert watcher.returncode == 75
    assert pod.starts(0) == 1


def test_ctrl_c_ends_the_watching_and_not_the_run(pod):
    pod.plan(runs="stay stay")
    with pod.watch() as watcher:
        watcher.send_signal(signal.SIGINT)
        assert "the run continues" in watcher.stderr.read()
    assert watcher.returncode == 130
    assert "worker 0: running" in pod.run("status.sh").stdout


def test_a_worker_out_of_reach_for_a_while(cloud):
    assert cloud.run("create.sh").returncode == 0
    cloud.plan(unreachable={"1": 2})
    done = cloud.run("setup.sh")
    assert done.returncode == 0, done.stderr
    assert cloud.steps() == [
        "create", "scp all", "ssh all install", "scp 1", "ssh 1 install",
        "ssh all setup", "ssh all devices",
    ]  # fmt: skip
    assert "no answer from worker 1; try 1 of 5" in done.stderr


def test_a_worker_out_of_reach_for_good(pod):
    pod.plan(runs="stay stay", unreachable={"1": 99})
    done = pod.run("run.sh", *RUN)
    assert done.returncode == 1
    assert "worker 1 of r1 " in done.stderr
    assert "delete.sh, create.sh, setup.sh" in done.stderr
    assert pod.steps() == ["ssh all start", *["ssh 1 start"] * 5]
    done = pod.run("status.sh")
    assert (done.returncode, "worker 1: does not answer" in done.stdout) == (1, True)


def test_a_run_on_a_restarted_host_is_restarted(pod):
    pod.plan(runs="0 0")
    for worker in range(2):  # the pid of no run, and no exit status
        job = pod.directory / "workers" / str(worker) / "r1jax_job"
        job.mkdir()
        (job / "pid").write_text("1")
    assert "worker 0: gone" in pod.run("status.sh").stdout
    done = pod.run("run.sh", *RUN)
    assert done.returncode == 0, done.stderr


def test_gcloud_that_does_not_answer_deletes_nothing(pod):
    pod.plan(runs="stay stay", describe=["", "", *["silent"] * 200])
    done = pod.run("run.sh", *RUN)
    assert (done.returncode, "gcloud failed" in done.stderr) == (1, True)
    assert pod.steps() == ["ssh all start"]


def test_a_short_silence_of_gcloud_is_waited_out(pod):
    pod.plan(describe=["", "", "silent", "silent"])
    done = pod.run("run.sh", *RUN)
    assert done.returncode == 0, done.stderr
    assert pod.steps() == ["ssh all start", "ssh all poll"]


@pytest.mark.parametrize(
    ("accelerator_type", "chips", "hosts", "topology"),
    [
        ("v5litepod-1", 1, 1, "1x1"),
        ("v5litepod-8", 8, 1, "2x4"),
        ("v5litepod-16", 16, 4, "4x4"),
        ("v6e-64", 64, 16, "8x8"),
        ("v6e-256", 256, 64, "16x16"),
        ("v5p-8", 4, 1, "2x2x1"),
        ("v5p-256", 128, 32, "4x4x8"),
        ("v5p-1024", 512, 128, "8x8x8"),
        ("v5p-12288", 6144, 1536, "16x16x24"),
    ],
)
def test_accelerator_types(cloud, accelerator_type, chips, hosts, topology):
    words = ("--accelerator_type", accelerator_type, "--hours", "1.5", "--price_per_chip_hour", "2")
    assert cloud.run("cost.sh", *words, pod=()).stdout == (
        f"{accelerator_type}: {chips} chips x 1.5 hours x 2 a chip-hour = {chips * 3:.2f}\n"
    )
    done = cloud.run("gke.sh", "manifest", "--accelerator_type", accelerator_type, "--image", "i:1", *RUN)
    spec = yaml.safe_load(done.stdout)["spec"]["replicatedJobs"][0]["template"]["spec"]
    pod = spec["template"]["spec"]
    assert pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"] == topology
    assert spec["completions"] == spec["parallelism"] == hosts
    assert pod["containers"][0]["resources"]["limits"] == {"google.com/tpu": chips // hosts}


def test_the_jobset(cloud):
    done = cloud.run("gke.sh", "manifest", "--image", "eu.pkg.dev/p/r/r1jax:1", "--max_restarts", "7", *RUN)
    assert done.returncode == 0, done.stderr
    assert "${" not in done.stdout
    jobset = yaml.safe_load(done.stdout)
    assert (jobset["apiVersion"], jobset["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    assert jobset["metadata"]["name"] == "r1"
    assert jobset["spec"]["failurePolicy"]["maxRestarts"] == 7
    [rule] = jobset["spec"]["failurePolicy"]["rules"]
    assert rule == {"action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}
    job = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]
    assert job["backoffLimit"] == 0
    [rule] = job["podFailurePolicy"]["rules"]
    assert rule["onExitCodes"] == {"containerName": "r1jax", "operator": "In", "values": [2]}
    pod = job["template"]["spec"]
    assert pod["restartPolicy"] == "Never"
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v5p-slice",
        "cloud.google.com/gke-tpu-topology": "2x2x2",
        "cloud.google.com/gke-spot": "true",
    }
    [container] = pod["containers"]
    assert container["image"] == "eu.pkg.dev/p/r/r1jax:1"
    assert container["args"] == ["run", *RUN[1:]]
    assert jobset["spec"]["replicatedJobs"][0]["replicas"] == 1
    two_slices = yaml.safe_load(cloud.run("gke.sh", "manifest", "--image", "i", "--slices", "2", *RUN).stdout)
    assert two_slices["spec"]["replicatedJobs"][0]["replicas"] == 2
    on_demand = cloud.run("gke.sh", "manifest", "--image", "i", "--spot", "false", *RUN).stdout
    assert "gke-spot" not in on_demand
    assert len(yaml.safe_load(on_demand)["spec"]["replicatedJobs"]) == 1


def test_kubectl(cloud):
    manifest = cloud.run("gke.sh", "manifest", "--image", "i", *RUN).stdout
    dry = cloud.run("gke.sh", "apply", "--dry_run", "--image", "i", *RUN)
    assert dry.stdout == f"kubectl apply -f - <<'END'\n{manifest}END\n"
    assert not (cloud.directory / "kubectl").exists()
    assert cloud.run("gke.sh", "apply", "--image", "i", *RUN).returncode == 0
    assert (cloud.directory / "kubectl").read_text() == f"apply -f - {manifest}"
    assert cloud.run("gke.sh", "delete").returncode == 0
    assert (cloud.directory / "kubectl").read_text().endswith("delete jobset r1 ")
    logs = cloud.run("gke.sh", "logs", "--dry_run", "--worker", "2").stdout
    assert "jobset-name=r1,jobset.sigs.k8s.io/job-index=0,batch.kubernetes.io/job-completion-index=2" in logs
    assert "kubectl get jobset r1" in cloud.run("gke.sh", "status", "--dry_run").stdout
    build = cloud.run("gke.sh", "build", "--dry_run", "--image", "i").stdout
    assert "docker build -f tpu_scripts/Dockerfile -t i - <" in build


def test_the_image_is_built_from_what_git_tracks(cloud):
    cloud.program("docker", 'printf "%s " "$@" >> "$FAKE_CLOUD/docker"; [[ $1 == push ]] || cat > context')
    done = cloud.run("gke.sh", "build", "--image", "i:1")
    assert done.returncode == 0, done.stderr
    assert (cloud.directory / "docker").read_text() == "build -f tpu_scripts/Dockerfile -t i:1 - push i:1 "
    with tarfile.open(cloud.directory / "context") as context:
        names = context.getnames()
    assert {"tpu_scripts/Dockerfile", "requirements.txt", "GIT_STATE"} <= set(names)
    dockerfile = (ROOT / "tpu_scripts/Dockerfile").read_text()
    copied = [word for line in dockerfile.splitlines() if line.startswith("COPY ") for word in line.split()[1:-1]]
    assert set(copied) <= {*names, "."}


def test_a_run_notes_the_commit_that_was_sent(tmp_path, monkeypatch):
    monkeypatch.setattr(stages_run, "__file__", str(tmp_path / "r1jax" / "runs" / "run.py"))
    assert stages_run.session(0, "r1_zero")["git"] == "not a git checkout"
    (tmp_path / "GIT_STATE").write_text("0123abc-dirty\n")
    assert stages_run.session(0, "r1_zero")["git"] == "0123abc-dirty"


def test_xpk(cloud):
    flags = ("--image", "i", "--cluster", "c", "--slices", "3")
    [line] = cloud.run("gke.sh", "xpk", *flags, *RUN).stdout.splitlines()
    words = shlex.split(line)
    assert words[:3] == ["xpk", "workload", "create"]
    assert {"--tpu-type=v5p-16", "--restart-on-exit-codes=75", "--max-restarts=10", "--num-slices=3"} <= set(words)
    [command] = [word.partition("=")[2] for word in words if word.startswith("--command=")]
    assert shlex.split(command) == ["python", "-m", "r1jax", "run", *RUN[1:]]
