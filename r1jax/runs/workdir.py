"""The lock on a workdir, and what is undone there when a start is refused."""

import contextlib
import os
import time
from dataclasses import dataclass
from typing import TextIO

from etils import epath

from r1jax.errors import UsageError
from r1jax.paths import in_bucket
from r1jax.telemetry.files import write_atomically

RESULTS = ("complete.json", "metrics.jsonl", "checkpoints/*", "part-*")  # of a stage that got somewhere
KEPT = ("archive", "code")  # never removed from a workdir with earlier stages


@dataclass
class Held:
    """A workdir that this process has locked.

    Attributes:
      existed: whether the directory was there before.
      names: of what was in it.
      record: the text of its run.json, None without one.
      since: the time of the lock, in whole seconds, as files have it.
    """

    file: TextIO
    existed: bool
    names: set[str]
    record: str | None
    since: int


HELD: dict[str, Held] = {}  # by directory; held until this process ends, however it ends


def lock(directory: epath.Path) -> None:
    """Makes the directory and takes it for this process. Raises UsageError while another process is at work in it.

    A directory in a bucket can't be locked, nor one on Windows, and nothing is undone in it.
    """
    existed, run = directory.exists(), directory / "run.json"
    if existed and not directory.is_dir():
        raise UsageError(f"--workdir {directory} is a file, expected a directory")
    directory.mkdir(parents=True, exist_ok=True)
    if in_bucket(directory) or str(directory) in HELD:
        return
    try:
        import fcntl
    except ImportError:  # Windows
        return
    names, path = {child.name for child in directory.iterdir()}, directory / ".lock"
    file = open(path, "a")  # noqa: SIM115
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        is_there = path.exists() and os.path.samestat(os.fstat(file.fileno()), os.stat(path))
    except BlockingIOError:
        is_there = False
    if not is_there:  # or it was removed by a process that ended just now
        raise UsageError(f"another process is at work in {directory}: wait for it, or set another --workdir")
    record = run.read_text() if run.exists() else None
    HELD[str(directory)] = Held(file, existed, names, record, int(time.time()))


def keep(directory: epath.Path) -> None:
    """What is in the directory now is not undone."""
    if held := HELD.get(str(directory)):
        held.names, held.record = {child.name for child in directory.iterdir()}, None


def undo(directory: epath.Path) -> None:
    """Removes what this process wrote, because its start was refused; nothing if a stage got somewhere."""
    held = HELD.pop(str(directory), None)
    if held is None:
        return
    with held.file:  # the lock, which is given back at the end
        remove_new(directory, held)


def remove_new(directory: epath.Path, held: Held) -> None:
    """What `undo` does, under the lock."""
    kept = KEPT if held.names else ()
    new = [child for child in directory.iterdir() if child.name not in held.names and child.name not in kept]
    stages = [child for child in directory.iterdir() if child.is_dir()]
    written = [path for child in stages for pattern in RESULTS for path in child.glob(pattern)]
    if any(path.stat().mtime >= held.since for path in written):
        return
    for child in new:
        child.rmtree() if child.is_dir() else child.unlink()
    run = directory / "run.json"
    if held.record is not None and run.read_text() != held.record:
        write_atomically(run, held.record)
    if not held.existed:
        with contextlib.suppress(OSError):  # on a network file system the lock is still there
            directory.rmdir()
