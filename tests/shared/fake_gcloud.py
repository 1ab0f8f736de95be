"""A fake gcloud for test_tpu_scripts.py, which records every call, injects failures and imitates a TPU pod.

Its state is in directory $FAKE_CLOUD: `calls` (a JSON list of words per line), `plan.json` (the failures to inject),
`state.json`, and `workers/N`, the home of worker N. Commands for a worker are executed there by the machine's own bash,
so that the pid files, logs and exit statuses of worker.sh are real. Flags that gcloud lacks are refused.
"""

import contextlib
import fcntl
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

CLOUD = Path(os.environ["FAKE_CLOUD"])
WHERE = {"--zone", "--project"}
SSH = WHERE | {"--quiet", "--worker"}
FLAGS = {  # of gcloud 528
    "queued-resources create": WHERE
    | {"--node-id", "--accelerator-type", "--runtime-version", "--spot", "--valid-until-duration"},
    "queued-resources describe": WHERE | {"--format"},
    "queued-resources delete": WHERE | {"--force", "--quiet"},
    "tpu-vm describe": WHERE | {"--format"},
    "tpu-vm ssh": SSH | {"--command"},
    "tpu-vm scp": SSH,
}


class GcloudError(Exception):
    """A line on stderr and an exit status."""


def main(words: list[str]) -> None:
    with open(CLOUD / "calls", "a") as calls:
        calls.write(json.dumps(words) + "\n")
    if words[:2] != ["compute", "tpus"]:
        raise GcloudError("Invalid choice", 2)
    command = " ".join(words[2:4])
    flags = {
        word.partition("=")[0]: word.partition("=")[2] for word in words[4:] if word.startswith("--") and word != "--"
    }
    if unknown := flags.keys() - FLAGS.get(command, set()):
        raise GcloudError(f"unrecognized arguments: {unknown}", 2)
    operation = {
        "queued-resources create": create,
        "queued-resources describe": describe,
        "queued-resources delete": delete,
        "tpu-vm describe": describe_node,
        "tpu-vm ssh": ssh,
        "tpu-vm scp": scp,
    }[command]
    operation(flags, words[4:])


def edit(name: str, change):
    """Applies `change` to a JSON file under a lock, since workers run at the same time."""
    with open(CLOUD / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        path = CLOUD / name
        content = json.loads(path.read_text()) if path.exists() else {}
        result = change(content)
        path.write_text(json.dumps(content))
        return result


def planned(name: str):
    """Removes and returns the next planned event of a kind; None when none is left."""
    return edit("plan.json", lambda plan: plan[name].pop(0) if plan.get(name) else None)


def following(name: str):
    """The next value of a state; the last value is repeated."""

    def step(state):
        values = state.get(name)
        return values.pop(0) if values and len(values) > 1 else (values or [None])[0]

    return edit("state.json", step)


def not_found():
    raise GcloudError("ERROR: (gcloud) NOT_FOUND: Resource was not found", 1)


def create(flags, words) -> None:
    trouble = planned("create")
    if trouble == "quota":
        raise GcloudError(
            "ERROR: (gcloud.compute.tpus.queued-resources.create) RESOURCE_EXHAUSTED: Quota limit"
            " 'TPUV5sLitepodPerProjectPerZoneForTPUAPI' has been exceeded. Limit: 0 in zone us-west4-a.",
            1,
        )
    if trouble == "internal":
        raise GcloudError("ERROR: (gcloud.compute.tpus.queued-resources.create) INTERNAL: try again", 1)
    queue = trouble or ["WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE"]
    edit("state.json", lambda state: state.update(queue=queue, node=["READY"]))
    for worker in range(edit("plan.json", lambda plan: plan["hosts"])):
        home = CLOUD / "workers" / str(worker)
        shutil.rmtree(home, ignore_errors=True)
        home.mkdir(parents=True)


def describe(flags, words) -> None:
    if planned("describe") == "silent":
        raise GcloudError("ERROR: (gcloud) There was a problem reaching the service", 1)
    state = following("queue") or not_found()
    print(f"{state} {planned('reason') or ''}" if "failedData" in flags["--format"] else state)


def describe_node(flags, words) -> None:
    print(following("node") or not_found())


def delete(flags, words) -> None:
    end_jobs(signal.SIGKILL)
    edit("state.json", lambda state: state.clear())


def end_jobs(number: int) -> None:
    for pid in CLOUD.glob("workers/*/r1jax_job/pid"):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(int(pid.read_text()), number)


def preempt() -> None:
    """A preemption as gcloud may report it first: only the TPU has changed."""
    end_jobs(signal.SIGKILL)
    edit("state.json", lambda state: state.update(node=["PREEMPTED"]))


def suspend() -> None:
    """A preemption as gcloud reports it later: the TPU is gone, its queued resource remains."""
    end_jobs(signal.SIGKILL)
    edit("state.json", lambda state: state.update(queue=["SUSPENDED"], node=[]))


def away(times: str) -> None:
    """Makes worker 1 unreachable this many times."""
    edit("plan.json", lambda plan: plan.update(unreachable={"1": int(times)}))


def reach(flags) -> tuple[list[int], list[int]]:
    """(workers that are reached, workers that are not reached this time)."""
    state = following("node") or not_found()
    if state == "PREEMPTED":
        raise GcloudError('ERROR: (gcloud) This TPU has terminal state "PREEMPTED", so it cannot be used anymore.', 1)

    def change(plan):
        asked = list(range(plan["hosts"])) if flags["--worker"] == "all" else [int(flags["--worker"])]
        away = plan.setdefault("unreachable", {})
        missing = [worker for worker in asked if away.get(str(worker), 0) > 0]
        for worker in missing:
            away[str(worker)] -= 1
        return [worker for worker in asked if worker not in missing], missing

    return edit("plan.json", change)


def finish(codes: list[int], missing: list[int]) -> None:
    if missing:
        raise GcloudError("ERROR: (gcloud.compute.tpus.tpu-vm.ssh) [/usr/bin/ssh] exited with return code [255].", 255)
    sys.exit(next((code for code in codes if code), 0))


def ssh(flags, words) -> None:
    command = flags["--command"]
    match = re.search(r"worker\.sh (\w+)", command)
    verb = match[1] if match else "other"
    trouble = planned(f"before {verb}")
    if trouble:
        what, *words = trouble.split()
        {"preempt": preempt, "suspend": suspend, "away": away}[what](*words)
    reached, missing = reach(flags)
    lost = planned(f"during {verb}") == "lost"
    jobs = [
        subprocess.Popen(
            ["bash", "-c", command],
            cwd=CLOUD / "workers" / str(worker),
            env=os.environ | {"HOME": str(CLOUD / "workers" / str(worker)), "WORKER": str(worker)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL if lost else None,
        )
        for worker in reached
    ]
    finish([job.wait() for job in jobs], list(range(99)) if lost else missing)


def scp(flags, words) -> None:
    source, target = [word for word in words if not word.startswith("--")]
    reached, missing = reach(flags)
    for worker in reached:
        shutil.copy(source, CLOUD / "workers" / str(worker) / target.partition(":")[2])
    finish([], missing)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except GcloudError as error:
        print(error.args[0], file=sys.stderr)
        sys.exit(error.args[1])
