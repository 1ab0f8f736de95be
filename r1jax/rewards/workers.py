"""Processes that run a function under time and memory limits, and are killed and replaced when they exceed them.

Time is CPU time, which the kernel limits in the worker (ITIMER_PROF): results must not depend on the machine's load. A
worker that sleeps instead is killed when it did so from one look to the next.

Threads can't be killed, and `signal.alarm` works on the main thread only: with either, a verifier can hang. Workers are
subprocesses that import the function's module and not the caller's `__main__`, so that they don't load jax. They
exchange JSON over pipes, so that no reply can run code here.
"""

import importlib
import json
import os
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

STARTUP_SECONDS = 120.0  # for imports alone


@dataclass(eq=False)
class Worker:
    process: Popen[bytes]
    requests: IO[bytes]
    replies: IO[bytes]
    look: float  # when to look whether it sleeps
    started: float = field(default_factory=time.monotonic)
    seen: str | None = None  # at the last look, if it slept: the CPU time that it had used
    ready: bool = False
    task: int | None = None  # the index of its current item
    received: bytearray = field(default_factory=bytearray)

    @property
    def awaited(self) -> bool:
        return not self.ready or self.task is not None


class Workers(AbstractContextManager):
    """`number` processes that run `function`, named "module:name", from one JSON value to another.

    Each item has `seconds` of CPU time and `memory` bytes of address space. An item that exceeds its time or sleeps is
    counted in `timeouts`, one that exceeds its memory, dies or raises in `crashes`; the result of both is None. `map`
    is thread-safe and runs one call at a time. Modules that only an item needs are named in `imports`: their import
    would take its time.
    """

    def __init__(self, function: str, number: int, seconds: float, memory: int = 2 << 30, imports: Sequence[str] = ()):
        if number < 1:
            raise ValueError(f"number is {number}, expected 1 or more")
        self.command = [sys.executable, "-m", "r1jax.rewards.workers", function, str(memory), *imports]
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

    def verdicts(self, items: Sequence[Any], good: Sequence[Any]) -> list[Any]:
        """As `map`; but 0.0 for an item that failed by itself, as a success of the good item at its place shows.

        Failing must not pay more than being wrong. Where the good item fails as well, the item is tried once more, and
        None stays if it fails again.
        """
        results = self.map(items)
        failed = [i for i, result in enumerate(results) if result is None]
        beside = self.map([good[i] for i in failed])
        again = [i for i, result in zip(failed, beside, strict=True) if result is None]
        for i in failed:
            results[i] = 0.0
        for i, result in zip(again, self.map([items[i] for i in again]), strict=True):
            results[i] = result
        return results

    def _map(self, items: Sequence[Any]) -> list[Any]:
        results: list[Any] = [None] * len(items)
        waiting = deque(range(len(items)))
        while waiting or any(worker.task is not None for worker in self._workers):
            for worker in self._workers:
                if waiting and not worker.awaited:
                    worker.task, worker.look, worker.seen = waiting.popleft(), time.monotonic() + self.seconds, None
                    with suppress(BrokenPipeError):  # the worker died, which reading its replies will show
                        send(worker.requests, [self.seconds, items[worker.task]])
            awaited = [worker for worker in self._workers if worker.awaited]
            timeout = max(0.0, min(worker.look for worker in awaited) - time.monotonic())
            speaking = set(wait([worker.replies.fileno() for worker in awaited], timeout))
            for worker in awaited:
                if worker.replies.fileno() in speaking:
                    self._listen(worker, results)
                elif time.monotonic() > worker.look:
                    asleep = cpu_time_if_asleep(worker.process.pid)
                    if asleep is not None and asleep == worker.seen:
                        self._fail(worker, "it sleeps")
                        self.timeouts += 1
                    worker.seen = asleep
                    worker.look = time.monotonic() + max(self.seconds if worker.ready else STARTUP_SECONDS, 0.1)
        return results

    def _listen(self, worker: Worker, results: list[Any]) -> None:
        part = os.read(worker.replies.fileno(), 1 << 16)
        worker.received += part
        if not part:
            self._fail(worker, "it died")
            exceeded = worker.process.returncode == -signal.SIGPROF
            self.timeouts += exceeded
            self.crashes += not exceeded
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
    path = os.pathsep.join(path or os.getcwd() for path in sys.path)
    environment = os.environ | {"PYTHONPATH": path, "PYTHONHASHSEED": "0"}  # sympy's steps depend on hashes
    process = Popen(command, stdin=PIPE, stdout=PIPE, stderr=DEVNULL, env=environment, start_new_session=True)
    assert process.stdin is not None and process.stdout is not None
    return Worker(process, process.stdin, process.stdout, look=time.monotonic() + STARTUP_SECONDS)


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


def cpu_time_if_asleep(pid: int) -> str | None:
    """The clock ticks that a sleeping process has used; None for one that runs or waits for a core.

    Without /proc, where this is unknown, every process counts as asleep.
    """
    try:
        with open(f"/proc/{pid}/stat") as file:
            after_name = file.read().rpartition(")")[2].split()
    except OSError:
        return "unknown"
    return " ".join(after_name[11:13]) if after_name[0] == "S" else None


def serve(function: str, memory: int, imports: Sequence[str]) -> None:
    """Runs a worker: reads an item and writes a reply, one JSON line each, until the input ends."""
    import resource  # Windows has none, and the processes that make workers need none

    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # prints of the function must not reach the replies
    limit(resource.RLIMIT_AS, memory)
    limit(resource.RLIMIT_CORE, 0)
    signal.signal(signal.SIGPROF, signal.SIG_DFL)  # libtpu has its process ignore it, and children inherit that
    limit_cpu(STARTUP_SECONDS)
    try:
        module, name = function.split(":")
        call: Callable[[Any], Any] = getattr(importlib.import_module(module), name)
        for each in imports:
            importlib.import_module(each)
        limit_cpu(0)
        send(replies, {})
    except Exception as error:
        return send(replies, {"error": f"{function}: {type(error).__name__}: {error}"})
    for line in sys.stdin.buffer:
        seconds, item = json.loads(line)
        limit_cpu(max(seconds, 1e-6))
        try:
            message = {"result": call(item)}
            json.dumps(message)
        except Exception as error:
            message = {"error": type(error).__name__}
        limit_cpu(0)
        send(replies, message)
    return None


def limit_cpu(seconds: float) -> None:
    """Lets the kernel end this process by SIGPROF when it has used this much CPU time from now on; 0 for no limit."""
    signal.setitimer(signal.ITIMER_PROF, seconds)


def send(pipe: IO[bytes], message: Any) -> None:
    pipe.write(json.dumps(message).encode() + b"\n")
    pipe.flush()


def limit(kind: int, value: int) -> None:
    import resource

    hard = resource.getrlimit(kind)[1]
    resource.setrlimit(kind, (value if hard == resource.RLIM_INFINITY else min(value, hard), hard))


if __name__ == "__main__":
    serve(sys.argv[1], int(sys.argv[2]), sys.argv[3:])
