"""Several processes as one run: their start, exchange of values, barriers, preemption and heartbeats.

All processes run the same program in the same order on one mesh; only process 0 writes files. Besides collectives they
exchange small JSON values through the key-value store of JAX's coordinator, which runs in process 0.
"""

import contextlib
import ctypes
import itertools
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import jax
from jax.experimental.multihost_utils import reached_preemption_sync_point

from r1jax.errors import Preempted, RunError, UsageError

HEARTBEAT_TIMEOUT = 30.0  # seconds without a heartbeat after which a process counts as lost
BARRIER_TIMEOUT = 1800.0  # seconds; long, because one process may be writing records or waiting for a slow verifier
FAILED = "failed with "  # the last heartbeat of a failed process: its exit status and the reason follow
ABORTS = "aborts as "  # the last heartbeat of process 0 when another process is lost: the reason follows
RESUME = "rerun the same command on all hosts to resume from the last checkpoint"

PR_SET_PDEATHSIG = 1  # linux/prctl.h

_exchanges, _checks = itertools.count(), itertools.count()  # equal on all processes, which run the same calls
_sigterm_received = threading.Event()


def start_hosts(
    coordinator: str | None, processes: int | None, process_id: int | None, *, heartbeat_timeout=HEARTBEAT_TIMEOUT
) -> "Hosts | None":
    """Connects to the other processes of the run, before any other use of JAX. Returns None for a single process.

    JAX detects TPU pods, GKE, Slurm and Open MPI; elsewhere all three arguments are needed. Raises UsageError for
    inconsistent arguments, RunError when the processes can't connect.
    """
    from jax._src.clusters import ClusterEnv

    given = {"--coordinator": coordinator, "--processes": processes, "--process_id": process_id}
    missing = [flag for flag, value in given.items() if value is None]
    if 0 < len(missing) < 3 and processes != 1:
        raise UsageError(f"{', '.join(missing)} not given: --coordinator, --processes and --process_id go together")
    if processes is not None and process_id is not None and not 0 <= process_id < processes:
        raise UsageError(f"--process_id is {process_id}, expected 0 to {processes - 1} with --processes {processes}")
    # No public API asks whether JAX detects a cluster: jax.distributed.initialize both asks and connects.
    is_in_cluster = any(env.is_env_present() for env in ClusterEnv._cluster_types if not env.opt_in_only_method)
    if processes == 1 or not (coordinator or is_in_cluster):
        return None
    fork_supervised()
    try:
        jax.distributed.initialize(
            coordinator,
            processes,
            process_id,
            initialization_timeout=900,  # seconds; hosts that did not respond at first are started one by one
            heartbeat_timeout_seconds=round(3 * heartbeat_timeout),  # ours comes first, and names the lost process
            shutdown_timeout_seconds=round(heartbeat_timeout),
        )
    except (RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        raise RunError(
            f"the processes could not connect: {reason}. Check --coordinator HOST:PORT, --processes and --process_id on"
            " all hosts, or set --processes 1 for a single process"
        ) from error
    if jax.default_backend() == "cpu":
        # On CPU only process 0 reads the compilation cache. It would reach a collective while the others still compile,
        # and gloo times out after 30 s.
        jax.config.update("jax_enable_compilation_cache", False)
    return Hosts(heartbeat_timeout)


def fork_supervised() -> None:
    """Returns in a child process. The parent waits for it and exits with its status.

    JAX aborts a process that loses the coordinator, which Python can't catch. The parent reports it and exits with 1.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if not child:
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # Linux: the child never outlives the parent
        return
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to the child too
    signal.signal(signal.SIGTERM, lambda number, _: os.kill(child, number))
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status == -signal.SIGABRT:
        abort("JAX aborted this process (see above): it most likely lost process 0, the coordinator")
    if status < 0:
        if -status != signal.SIGKILL:  # whose handler can't be set
            signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    os._exit(status)


def is_main_process() -> bool:
    """Whether this is process 0, which writes the run's files."""
    return not jax.distributed.is_initialized() or jax.process_index() == 0


def owns(index: int) -> bool:
    """Whether this process does item `index` of work that is split among the processes."""
    return index % jax.process_count() == jax.process_index()


def gather_values(name: str, value: Any, seconds: float = BARRIER_TIMEOUT) -> list[Any]:
    """All-gathers JSON values, in the order of processes: a barrier. `name` is used in errors.

    Raises RunError, which names the missing processes, after `seconds`.
    """
    if jax.process_count() == 1:
        return [value]
    number = next(_exchanges)
    client, folder, me = key_value_store(), f"r1jax/exchange/{number}/", jax.process_index()

    def received() -> dict[int, Any]:
        return {int(key.rsplit("/", 1)[1]): json.loads(text) for key, text in client.key_value_dir_get(folder)}

    client.key_value_set(f"{folder}{me}", json.dumps(value))
    try:
        client.wait_at_barrier(f"r1jax/{number}/{name}", int(1000 * seconds))
    except jax.errors.JaxRuntimeError as error:
        if "DEADLINE_EXCEEDED" not in str(error):
            raise
        missing = processes_text(set(range(jax.process_count())) - received().keys())
        raise RunError(f"{name}: {missing} did not arrive within {seconds:g} s; {RESUME}") from error
    values = received()
    if number:  # all processes are past the previous exchange
        client.key_value_delete(f"r1jax/exchange/{number - 1}/{me}")
    return [values[process] for process in range(jax.process_count())]


def broadcast_from_main(name: str, make: Callable[[], Any], seconds: float = BARRIER_TIMEOUT) -> Any:
    """The JSON value of `make()`, which only process 0 calls. All processes raise its UsageError or RunError."""
    if jax.process_count() == 1:
        return make()
    result: tuple[str, Any] = ("value", None)
    if is_main_process():
        try:
            result = ("value", make())
        except (UsageError, RunError) as error:
            result = (type(error).__name__, str(error))
    kind, value = gather_values(name, result, seconds)[0]
    if kind != "value":
        raise {"UsageError": UsageError, "RunError": RunError}[kind](value)
    return value


@contextlib.contextmanager
def catch_sigterm() -> Iterator[None]:
    """Within the context SIGTERM makes `preempted` true. With several processes JAX's preemption service handles it."""
    if jax.distributed.is_initialized():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda *_: _sigterm_received.set())
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
        _sigterm_received.clear()


def preempted() -> bool:
    """Whether any process of the run received SIGTERM or notice of TPU maintenance.

    All processes must make the same calls: the answer turns true at the same call on all of them.
    """
    if not jax.distributed.is_initialized():
        return _sigterm_received.is_set()
    return reached_preemption_sync_point(next(_checks))


def stop_if_preempted() -> None:
    """Raises Preempted if `preempted()`."""
    if preempted():
        raise Preempted("received SIGTERM or notice of TPU maintenance")


def key_value_store() -> Any:
    """The client of JAX's coordinator."""
    from jax._src import distributed  # no public API; Orbax imports it too

    return distributed.global_state.client


def processes_text(processes: set[int]) -> str:
    return ("process " if len(processes) == 1 else "processes ") + ", ".join(map(str, sorted(processes)))


class Hosts:
    """Sends heartbeats to the other processes, and aborts this process when one of them fails or sends none.

    A collective waits forever for a lost process and can't be interrupted, so a thread ends the whole process.
    """

    def __init__(self, heartbeat_timeout: float):
        self.heartbeat_timeout = heartbeat_timeout
        self.interval = min(2.0, heartbeat_timeout / 5)
        self.me, self.processes = jax.process_index(), jax.process_count()
        self.client, self.ended = key_value_store(), threading.Event()
        self.failure = ""
        self.thread = threading.Thread(target=self.watch, name="hosts", daemon=True)
        self.thread.start()

    def watch(self) -> None:
        """Sends a heartbeat and checks those of the others, every `interval` seconds until `end`."""
        heartbeats = {process: ("", time.monotonic()) for process in range(self.processes)}
        for beat in itertools.count():
            try:
                self.client.key_value_set(f"r1jax/heartbeat/{self.me}", self.failure or str(beat), allow_overwrite=True)
                found = self.client.key_value_dir_get("r1jax/heartbeat/")
            except jax.errors.JaxRuntimeError:
                if not (self.ended.is_set() or self.failure):
                    abort("lost process 0, the coordinator")
                return
            for key, heartbeat in found:
                process = int(key.rsplit("/", 1)[1])
                if heartbeat.startswith(ABORTS) and not self.failure:
                    abort(heartbeat.removeprefix(ABORTS))
                if heartbeat != heartbeats[process][0]:
                    heartbeats[process] = heartbeat, time.monotonic()
                elif heartbeat.startswith(FAILED) and not self.failure:  # unchanged since the last check
                    if not self.me:
                        time.sleep(4 * self.interval)  # the failed process needs the coordinator to exit by itself
                    code, reason = heartbeat.removeprefix(FAILED).split(" ", 1)
                    abort(f"process {process} failed: {reason}", int(code))
            # Process 0 holds the store: it times out first, tells the others, and exits last.
            timeout = self.heartbeat_timeout - (0 if self.me else 2 * self.interval)
            lost = {process for process, (_, when) in heartbeats.items() if time.monotonic() - when > timeout}
            if lost - {self.me} and not self.ended.is_set():
                reason = f"{processes_text(lost)}: no heartbeat for {timeout:g} s"
                if not self.me:
                    self.client.key_value_set("r1jax/heartbeat/0", f"{ABORTS}{reason}", allow_overwrite=True)
                    time.sleep(2 * self.interval)
                abort(reason)
            if self.ended.wait(self.interval):
                return

    def end(self, code: int, error: BaseException | None) -> None:
        """Ends this process's part of the run: with all others if there is no error, else aborting them too."""
        if error is None or isinstance(error, Preempted):
            gather_values("the end of the run", None)  # waits for all processes
            self.ended.set()
            self.thread.join()
            jax.distributed.shutdown()
            return
        if isinstance(error, jax.errors.JaxRuntimeError):  # most likely another process is lost: `watch` will name it
            time.sleep(self.heartbeat_timeout + 2 * self.interval)
        self.failure = f"{FAILED}{code} {' '.join(str(error).split())[:500] or type(error).__name__}"
        time.sleep(4 * self.interval)
        with contextlib.suppress(OSError):
            sys.stderr.flush()
            sys.stdout.flush()
        os._exit(code)  # without JAX's exit handler, which waits for the other processes


def abort(reason: str, code: int = 1) -> NoReturn:
    """Exits at once, whatever other threads are waiting for."""
    sys.stderr.write(f"r1jax: {reason}; {RESUME}\n")
    sys.stderr.flush()
    os._exit(code)
