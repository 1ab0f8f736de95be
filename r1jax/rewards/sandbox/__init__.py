"""Runs untrusted Python programs: this module starts `launcher.py`, which isolates and runs one program."""

import functools
import json
import math
import os
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from r1jax.errors import RunError

LAUNCHER = Path(__file__).with_name("launcher.py")
STARVED = 10  # a program ends at the latest after this many times its wall time, however busy the machine is
GRACE_SECONDS = 10.0  # added to that for the launcher to start and report

# Programs that print True if their layer stops them; a layer is used only if its probe does. (In a process namespace
# the launcher is process 1, or outside, which reads as 0.)
PROBES = {
    "namespaces": "import os\nprint(os.getppid() < 2 and not os.path.exists('/proc') and not os.path.exists('/etc'))",
    "landlock": "import os\ntry: os.listdir('/')\nexcept PermissionError: print(True)",
    "limits": "try: bytearray(1 << 40)\nexcept MemoryError: print(True)",
    "seccomp": "import socket\ntry: socket.socket()\nexcept PermissionError: print(True)",
}
FULL = frozenset({"namespaces", "limits", "seccomp"})  # namespaces hide the files that landlock denies
# Namespaces made by the launcher, by bubblewrap, or not at all; the first that works is used.
OWN, BUBBLEWRAP, NONE = frozenset({"namespaces"}), frozenset({"namespaces", "bubblewrap"}), frozenset[str]()


@dataclass(frozen=True)
class Limits:
    cpu_seconds: int = 5
    wall_seconds: float = 15.0  # without the time in which the program waits for a core, while others have it
    memory_bytes: int = 1 << 30  # address space; the program is one process
    output_bytes: int = 1 << 20
    scratch_bytes: int = 16 << 20  # of all files together
    threads: int = 16


@dataclass(frozen=True)
class ProgramResult:
    """How a program ended, and what it wrote."""

    stdout: bytes
    reply: bytes  # written to descriptor 3
    status: int  # the exit status, or minus the number of a signal
    reason: str  # "exit", "signal", "cpu time", "wall time", "output"
    seconds: float  # wall time, as limited

    @property
    def succeeded(self) -> bool:
        return self.reason == "exit" and self.status == 0


class Sandbox:
    """Runs programs with every layer that this kernel supports. It is stateless and thread-safe.

    Programs can import the standard library only. Without namespaces, landlock hides files and there is no scratch
    directory; without namespaces and seccomp, processes that a program forks may outlive it.

    Raises RunError when the kernel lacks a layer in `required`, unless `allow_weaker`.
    """

    def __init__(self, limits: Limits | None = None, required: Iterable[str] = FULL, allow_weaker: bool = False):
        self.limits = limits or Limits()
        self.layers = detect_layers()
        missing = frozenset(required) - self.layers
        if missing and not allow_weaker:
            names = [", ".join(sorted(layers)) or "nothing" for layers in (missing, self.layers)]
            raise RunError(
                f"the sandbox lacks {names[0]} and has {names[1]} ({explain_missing(missing)}): run it on a kernel that"
                " allows them, or set allow_weaker=True"
            )

    def run(self, program: str, stdin: str = "", seconds: float = math.inf) -> ProgramResult:
        """Runs `program` to its end or a limit, leaving nothing behind. `seconds` can lower the limits of time.

        Raises RunError when the sandbox fails.
        """
        limits = self.limits
        if seconds < limits.wall_seconds:
            limits = replace(limits, cpu_seconds=min(limits.cpu_seconds, math.ceil(seconds)), wall_seconds=seconds)
        return launch(program, stdin, limits, self.layers)


@functools.cache
def detect_layers() -> frozenset[str]:
    """The layers that stop their probes on this machine, and "bubblewrap" if it makes the namespaces.

    Without own namespaces, a trainer that runs as root needs an interpreter that any user can read.
    """
    namespaces = next((made for made in (OWN, BUBBLEWRAP) if stops_probe("namespaces", made)), NONE)
    return namespaces | {layer for layer in PROBES if stops_probe(layer, namespaces)}


def stops_probe(layer: str, namespaces: frozenset[str]) -> bool:
    """Whether this layer stops its probe, together with these namespaces."""
    try:
        return launch(PROBES[layer], "", Limits(), namespaces | {layer}).stdout == b"True\n"
    except RunError:
        return False


def explain_missing(layers: frozenset[str]) -> str:
    """The kernel's errors for these layers, and bubblewrap's for namespaces."""
    errors = []
    for namespaces in (NONE, BUBBLEWRAP) if "namespaces" in layers else (NONE,):
        try:
            launch("", "", Limits(), layers | namespaces)
        except RunError as error:
            errors.append(str(error))
    return "; ".join(errors) or "nothing stopped the probes"


def launch(program: str, stdin: str, limits: Limits, layers: Iterable[str]) -> ProgramResult:
    """Runs one program in a launcher of its own. Raises RunError when the launcher fails."""
    longest = STARVED * limits.wall_seconds
    own = asdict(limits) | {"longest_seconds": longest}
    job = dict(program=program, stdin=stdin, limits=own, layers=sorted(layers), parent=os.getpid())
    # The environment's base interpreter, without the environment's packages.
    command = [getattr(sys, "_base_executable", sys.executable), "-I", "-S", str(LAUNCHER)]
    text, seconds = json.dumps(job).encode(), longest + GRACE_SECONDS
    try:
        done = subprocess.run(
            command, input=text, capture_output=True, env={}, cwd="/", start_new_session=True, timeout=seconds
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise RunError(f"the sandbox failed: {error}") from error
    started, _, report = done.stdout.partition(b"\n")
    if started != b"started" or done.returncode != 0:
        last = done.stderr.decode(errors="replace").strip().splitlines()[-1:] or [f"status {done.returncode}"]
        raise RunError(f"the sandbox failed: {last[0]}")
    fields = json.loads(report)
    written = {name: fields[name].encode("latin-1") for name in ("stdout", "reply")}
    return ProgramResult(**fields | written)
