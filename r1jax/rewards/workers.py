"""Processes that run a function under time and memory limits, and are killed and replaced when they exceed them.

Threads can't be killed, and `signal.alarm` works on the main thread only: with either, a verifier can hang. Workers are
subprocesses that import the function's module and not the caller's `__main__`, so that they don't load jax. They
exchange JSON over pipes, so that no reply can run code here.
"""

import importlib
import json
import math
import os
import resource
import signal
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field
from multiprocessing.connection import wait
from subprocess import DEVNULL, PIPE, Popen
from typing import IO, Any

from r1jax.errors import RunError

STARTUP_SECONDS = 120.0  # for imports alone, on a busy machine


@dataclass(eq=False)
class Worker:
    process: Popen[bytes]
    requests: IO[bytes]
    replies: IO[bytes]
    deadline: float
    ready: bool = False
    task: int | None = None  # the index of its current item
    received: bytearray = field(default_factory=bytearray)

    @property
    def awaited(self) -> bool:
        return not self.ready or self.task is not None


class Workers(AbstractContextManager):
    """`number` processes that run `function`, named "module:name", from one JSON value to another.

    Each item has `seconds` of wall time and `memory` bytes of address space. An item that exceeds its time is counted
    in `timeouts`, one that exceeds its memory, dies or raises in `crashes`; the result of both is None. `map` is
    thread-safe and runs one call at a time.
    """

    def __init__(self, function: str, number: int, seconds: float, memory: int = 2 << 30):
        if number < 1:
            raise ValueError(f"number is {number}, expected 1 or more")
        self.command = [sys.executable, "-m", "r1jax.rewards.workers", function, str(seconds), str(memory)]
        self.seconds = seconds
        self.timeouts = self.crashes = 0
        self.startup_seconds = 0.0  # the slowest start so far
        self._lock = threading.Lock()
        self._workers = [start(self.command) for _ in range(number)]
        self._stop = weakref.finalize(self, stop_all, self._workers)  # also at interpreter exit

    def map(self, items: Sequence[Any]) -> list[Any]:
        """The result for each item, None where it failed. Raises RunError when a worker can't start."""
        with self._lock:
            if not self._stop.alive:
                raise ValueError("the workers are closed")
            try:
                return self._map(items)
            finally:  # after an exception, such as KeyboardInterrupt, no stale reply may stay in a pipe
                for worker in [w for w in self._workers if w.task is not None]:
                    self._replace(worker)

    def _map(self, items: Sequence[Any]) -> list[Any]:
        results: list[Any] = [None] * len(items)
        waiting = deque(range(len(items)))
        while waiting or any(worker.task is not None for worker in self._workers):
            for worker in self._workers:
                if waiting and not worker.awaited:
                    worker.task, worker.deadline = waiting.popleft(), time.monotonic() + self.seconds
                    with suppress(BrokenPipeError):  # the worker died, which reading its replies will show
                        send(worker.requests, items[worker.task])
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
                seconds = STARTUP_SECONDS - (worker.deadline - time.monotonic())
                self.startup_seconds = max(self.startup_seconds, seconds)
                return
            assert worker.task is not None
            results[worker.task] = reply.get("result")
            self.crashes += "error" in reply
            worker.task = None

    def _fail(self, worker: Worker, how: str) -> None:
        if not worker.ready:  # a replacement would fail as well
            raise RunError(f"a worker can't start: {how} (exit status {worker.process.poll()}): {self.command}")
        self._replace(worker)

    def _replace(self, worker: Worker) -> None:
        stop(worker)
        self._workers[self._workers.index(worker)] = start(self.command)

    def close(self) -> None:
        """Ends all processes; further calls do nothing."""
        with self._lock:
            self._stop()

    def __exit__(self, *exception: object) -> None:
        self.close()


def start(command: list[str]) -> Worker:
    """A process in its own session: it receives no ^C, and is killed together with its children."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)}
    process = Popen(command, stdin=PIPE, stdout=PIPE, stderr=DEVNULL, env=environment, start_new_session=True)
    assert process.stdin is not None and process.stdout is not None
    return Worker(process, process.stdin, process.stdout, deadline=time.monotonic() + STARTUP_SECONDS)


def stop(worker: Worker) -> None:
    if worker.process.returncode is None:  # not reaped yet, so that its pid isn't reused
        with suppress(ProcessLookupError):
            os.killpg(worker.process.pid, signal.SIGKILL)
        worker.process.wait()  # reaps it
    with suppress(BrokenPipeError):  # for a partly written request
        worker.requests.close()
    worker.replies.close()


def stop_all(workers: list[Worker]) -> None:
    while workers:
        stop(workers.pop())


def serve(function: str, seconds: float, memory: int) -> None:
    """Runs a worker: reads an item and writes a reply, one JSON line each, until the input ends."""
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # prints of the function must not reach the replies
    limit(resource.RLIMIT_AS, memory)
    limit(resource.RLIMIT_CORE, 0)
    try:
        module, name = function.split(":")
        call: Callable[[Any], Any] = getattr(importlib.import_module(module), name)
        send(replies, {})
    except Exception as error:
        return send(replies, {"error": f"{function}: {type(error).__name__}: {error}"})
    for line in sys.stdin.buffer:
        # If the owner is killed during a computation, the kernel ends the worker at this limit.
        limit(resource.RLIMIT_CPU, math.ceil(time.process_time() + seconds) + 1)
        try:
            message = {"result": call(json.loads(line))}
            json.dumps(message)
        except Exception as error:
            message = {"error": type(error).__name__}
        send(replies, message)
    return None


def send(pipe: IO[bytes], message: Any) -> None:
    pipe.write(json.dumps(message).encode() + b"\n")
    pipe.flush()


def limit(kind: int, value: int) -> None:
    hard = resource.getrlimit(kind)[1]
    resource.setrlimit(kind, (value if hard == resource.RLIM_INFINITY else min(value, hard), hard))


if __name__ == "__main__":
    serve(sys.argv[1], float(sys.argv[2]), int(sys.argv[3]))
