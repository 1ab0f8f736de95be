"""Runs a Python program that nobody has read. `launcher.py` builds the walls; this is the side of whoever asks."""

import functools
import json
import os
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from r1jax.errors import RunError

LAUNCHER = Path(__file__).with_name("launcher.py")
GRACE_SECONDS = 10.0  # for the launcher to start and to report, beyond the program's own wall time

# A layer counts only if a program inside runs into it. Each prints True, then. (In a process namespace the launcher is
# process 1, or outside, which reads as 0.)
PROBES = {
    "namespaces": "import os\nprint(os.getppid() < 2 and not os.path.exists('/proc') and not os.path.exists('/etc'))",
    "landlock": "import os\ntry: os.listdir('/')\nexcept PermissionError: print(True)",
    "limits": "try: bytearray(1 << 40)\nexcept MemoryError: print(True)",
    "seccomp": "import socket\ntry: socket.socket()\nexcept PermissionError: print(True)",
}
FULL = frozenset({"namespaces", "limits", "seccomp"})  # landlock says again what a root of its own says
# How namespaces are made: by the launcher, by bubblewrap, not at all. The first that works here is taken.
OWN, BUBBLEWRAP, NONE = frozenset({"namespaces"}), frozenset({"namespaces", "bubblewrap"}), frozenset[str]()


@dataclass(frozen=True)
class Limits:
    cpu_seconds: int = 5
    wall_seconds: float = 15.0  # generous: a busy machine must not cost a right program its reward
    memory_bytes: int = 1 << 30  # address space; the program is one process
    output_bytes: int = 1 << 20
    scratch_bytes: int = 16 << 20  # all files together, and each
    threads: int = 16


@dataclass(frozen=True)
class Ending:
    """How a program ended. `reply` is what it wrote to descriptor 3; `status` is negative for a signal."""

    stdout: bytes
    reply: bytes
    status: int
    reason: str  # "exit", "signal", "cpu time", "wall time", "output"

    @property
    def succeeded(self) -> bool:
        return self.reason == "exit" and self.status == 0


class Sandbox:
    """Programs run with every layer that this kernel has; it is refused where a required one is missing.

    `allow_weaker` takes what there is. Without namespaces landlock hides files, but programs have no scratch directory;
    without namespaces and seccomp, what a program forks may outlive it. Only the standard library can be imported
    inside. Threads may share a sandbox: it holds no state.

    Raises:
        RunError: this kernel lacks a layer that is required.
    """

    def __init__(
        self, limits: Limits | None = None, required: Iterable[str] = FULL, allow_weaker: bool = False
    ) -> None:
        self.limits = limits or Limits()
        self.layers = isolation()
        missing = frozenset(required) - self.layers
        if missing and not allow_weaker:
            names = [", ".join(sorted(layers)) or "nothing" for layers in (missing, self.layers)]
            raise RunError(
                f"the sandbox for programs lacks {names[0]} here and has {names[1]} ({why_not(missing)}): run where "
                "the kernel allows it, or set allow_weaker=True"
            )

    def run(self, program: str, stdin: str = "") -> Ending:
        """Runs `program` to its end or to a limit; nothing of it is left afterwards.

        Raises:
            RunError: the sandbox failed, which says nothing about the program.
        """
        return launch(program, stdin, self.limits, self.layers)


@functools.cache
def isolation() -> frozenset[str]:
    """The layers that hold on this machine, found by running into each; "bubblewrap" if it makes the namespaces.

    (Where the launcher can't make them, a trainer that is root needs an interpreter that a stranger can read.)
    """
    way = next((way for way in (OWN, BUBBLEWRAP) if holds("namespaces", way)), NONE)
    return way | {layer for layer in PROBES if holds(layer, way)}


def holds(layer: str, way: frozenset[str]) -> bool:
    """Whether a probe is stopped by this layer, in namespaces made in this way."""
    try:
        return launch(PROBES[layer], "", Limits(), way | {layer}).stdout == b"True\n"
    except RunError:
        return False


def why_not(layers: frozenset[str]) -> str:
    """What the kernel says to these layers, and bubblewrap to namespaces."""
    errors = []
    for way in (NONE, BUBBLEWRAP) if "namespaces" in layers else (NONE,):
        try:
            launch("", "", Limits(), layers | way)
        except RunError as error:
            errors.append(str(error))
    return "; ".join(errors) or "nothing stopped the probes"


def launch(program: str, stdin: str, limits: Limits, layers: Iterable[str]) -> Ending:
    """One launcher, one program."""
    job = {
        "program": program,
        "stdin": stdin,
        "limits": asdict(limits),
        "layers": sorted(layers),
        "parent": os.getpid(),
    }
    # The interpreter of the environment, not the environment: its packages stay outside.
    python = getattr(sys, "_base_executable", sys.executable)
    try:
        done = subprocess.run(
            [python, "-I", "-S", str(LAUNCHER)],
            input=json.dumps(job).encode(),
            capture_output=True,
            env={},
            cwd="/",
            start_new_session=True,
            timeout=limits.wall_seconds + GRACE_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise RunError(f"the sandbox failed: {error}") from error
    started, _, report = done.stdout.partition(b"\n")
    if started != b"started" or done.returncode != 0:
        last = done.stderr.decode(errors="replace").strip().splitlines()[-1:] or [f"status {done.returncode}"]
        raise RunError(f"the sandbox failed: {last[0]}")
    fields = json.loads(report)
    stdout, reply = (fields[name].encode("latin-1") for name in ("stdout", "reply"))
    return Ending(stdout, reply, fields["status"], fields["reason"])
