"""Processes that run a function under a time and a memory limit, and are killed and replaced when they pass it.

Threads can't be killed, and `signal.alarm` works on the main thread only: both let a verifier hang or fail in silence.
Workers are plain subprocesses with pipes (they import the function's module, not the caller's `__main__`, so they know
no jax), and speak JSON, so that nothing a worker says can run code here.
"""

import importlib
import json
import math
import os
import resource
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import wait
from typing import IO, Any

from r1jax.errors import RunError

STARTUP_SECONDS = 120.0  # imports alone, on a machine that is busy


@dataclass(eq=False)
class Worker:
    process: subprocess.Popen[bytes]
    requests: IO[bytes]
    replies: IO[bytes]
    started: float
    deadline: float
    ready: bool = False
    task: int | None = None  # the item that it works on
    received: bytearray = field(default_factory=bytearray)

    @property
    def awaited(self) -> bool:
        return not self.ready or self.task is not None


class Workers:
    """`number` processes that run `function`, named "module:name", from one JSON value to another.

    Each item has `seconds` of wall time and `memory` bytes of address space. What passes the first has the result None
    and is counted in `timeouts`; what passes the second, dies or raises in `crashes`. Any thread may call `map`; one
    call runs at a time.
    """

    def __init__(self, function: str, number: int, seconds: float, memory: int = 2 << 30):
        if number < 1:
            raise ValueError(f"number is {number}: at least one worker is needed")
        self.command = [sys.executable, "-m", "r1jax.rewards.workers", function, str(seconds), str(memory)]
        self.seconds = seconds
        self.timeouts = self.crashes = 0
        self.startup_seconds = 0.0  # the slowest start so far
        self._lock = threading.Lock()
        self._workers = [start(self.command) for _ in range(number)]
        self._stop = weakref.finalize(self, stop_all, self._workers)  # also at interpreter exit

    def map(self, items: Sequence[Any]) -> list[Any]:
        """The function's result of each item, in order; None where it failed.

        Raises RunError when a worker can't start, and ValueError after `close`.
        """
        with self._lock:
            if not self._stop.alive:
                raise ValueError("the workers are closed")
            try:
                return self._map(items)
            finally:  # an exception, such as the user's ^C, must not leave an old item's reply in a pipe
                for worker in [w for w in self._workers if w.task is not None]:
                    self._replace(worker)

    def _map(self, items: Sequence[Any]) -> list[Any]:
        results: list[Any] = [None] * len(items)
        waiting = deque(range(len(items)))
        while waiting or any(worker.task is not None for worker in self._workers):
            for worker in self._workers:
                if waiting and not worker.awaited:
                    ask(worker, waiting[0], items[waiting.popleft()], self.seconds)
            awaited = [worker for worker in self._workers if worker.awaited]
            timeout = max(0.0, min(worker.deadline for worker in awaited) - time.monotonic())
            speaking = set(wait([worker.replies.fileno() for worker in awaited], timeout))
            for worker in awaited:
                if worker.replies.fileno() in speaking:
                    self._listen(worker, results)
                elif time.monotonic() > worker.deadline:
                    self._fail(worker, f"it was not ready after {STARTUP_SECONDS:.0f} s")
                    self.timeouts += 1
        return results

    def _listen(self, worker: Worker, results: list[Any]) -> None:
        part = os.read(worker.replies.fileno(), 1 << 16)
        worker.received += part
        if not part:
            self._fail(worker, "it died")
            self.crashes += 1
        elif part.endswith(b"\n"):
            reply = json.loads(worker.received)
            worker.received.clear()
            if not worker.ready:
                if "error" in reply:
                    raise RunError(f"a worker can't start: {reply['error']}")
                worker.ready = True
                self.startup_seconds = max(self.startup_seconds, time.monotonic() - worker.started)
                return
            assert worker.task is not None
            results[worker.task] = reply.get("result")
            self.crashes += "error" in reply
            worker.task = None

    def _fail(self, worker: Worker, how: str) -> None:
        if not worker.ready:  # the next one would fail as well
            raise RunError(f"a worker can't start: {how} (exit status {worker.process.poll()}): {self.command}")
        self._replace(worker)

    def _replace(self, worker: Worker) -> None:
        stop(worker)
        self._workers[self._workers.index(worker)] = start(self.command)

    def close(self) -> None:
        """Ends all processes. May be called twice."""
        with self._lock:
            self._stop()

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def start(command: list[str]) -> Worker:
    """A process in a session of its own: ^C is not for it, and what it starts can be killed with it."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)}
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=environment,
        start_new_session=True,
    )
    assert process.stdin is not None and process.stdout is not None
    now = time.monotonic()
    return Worker(process, process.stdin, process.stdout, started=now, deadline=now + STARTUP_SECONDS)


def ask(worker: Worker, task: int, item: Any, seconds: float) -> None:
    worker.task = task
    worker.deadline = time.monotonic() + seconds
    with suppress(BrokenPipeError):  # it is dead: its end of the other pipe will say so
        worker.requests.write(json.dumps(item).encode() + b"\n")
        worker.requests.flush()


def stop(worker: Worker) -> None:
    if worker.process.returncode is None:  # not reaped yet: the number is still its own
        with suppress(ProcessLookupError):
            os.killpg(worker.process.pid, signal.SIGKILL)
        worker.process.wait()  # leaves no zombie
    with suppress(BrokenPipeError):  # a request that was half written
        worker.requests.close()
    worker.replies.close()


def stop_all(workers: list[Worker]) -> None:
    while workers:
        stop(workers.pop())


def serve(function: str, seconds: float, memory: int) -> None:
    """A worker's life: a line in, a line out, until its input ends."""
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a task prints must not look like a reply
    limit(resource.RLIMIT_AS, memory)
    limit(resource.RLIMIT_CORE, 0)
    try:
        module, name = function.split(":")
        call: Callable[[Any], Any] = getattr(importlib.import_module(module), name)
        reply(replies, {})
    except Exception as error:
        return reply(replies, {"error": f"{function}: {type(error).__name__}: {error}"})
    for line in sys.stdin.buffer:
        # A worker whose owner was killed while it computes is killed by the kernel.
        limit(resource.RLIMIT_CPU, math.ceil(time.process_time() + seconds) + 1)
        try:
            said = {"result": call(json.loads(line))}
            json.dumps(said)
        except Exception as error:
            said = {"error": type(error).__name__}
        reply(replies, said)
    return None


def reply(replies: IO[bytes], said: dict[str, Any]) -> None:
    replies.write(json.dumps(said).encode() + b"\n")
    replies.flush()


def limit(kind: int, value: int) -> None:
    hard = resource.getrlimit(kind)[1]
    resource.setrlimit(kind, (value if hard == resource.RLIM_INFINITY else min(value, hard), hard))


if __name__ == "__main__":
    serve(sys.argv[1], float(sys.argv[2]), int(sys.argv[3]))
