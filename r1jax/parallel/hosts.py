"""Several processes as one run: their start, what they say to each other, and what happens when one is gone.

Every process does the same things in the same order on one mesh, and process 0 alone writes files. Beside the devices'
collectives they exchange small JSON values, through the key-value store of JAX's coordinator, which process 0 holds.
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

GONE_SECONDS = 30.0  # without a sign of life: the others end
BARRIER_SECONDS = 1800.0  # for those that are alive: records are made, or verifiers are slow, while others wait
FAILED = "failed with "  # a sign of life that is the last: the exit status and the reason follow
LEAVES = "leaves as "  # process 0's last, when another one is gone: the reason follows
GOES_ON = "the same command, on all hosts, goes on from the last checkpoint"

PR_SET_PDEATHSIG = 1  # linux/prctl.h

_exchanges, _checks = itertools.count(), itertools.count()  # alike on all processes, which do the same in one order
_told_to_stop = threading.Event()


def start_hosts(
    coordinator: str | None, processes: int | None, process_id: int | None, *, heartbeat_timeout: float = GONE_SECONDS
) -> "Hosts | None":
    """Joins the other processes of the run; None: there is this one alone. Comes before any other use of JAX.

    TPU pods, GKE, Slurm and Open MPI are known by JAX; elsewhere all three arguments say who there is. Raises
    UsageError for arguments that don't fit, RunError when the processes don't come together.
    """
    given = {"--coordinator": coordinator, "--processes": processes, "--process_id": process_id}
    missing = [flag for flag, value in given.items() if value is None]
    if 0 < len(missing) < 3 and processes != 1:
        raise UsageError(
            f"{', '.join(missing)} not given: --coordinator HOST:PORT, --processes and --process_id go together"
        )
    if processes is not None and process_id is not None and not 0 <= process_id < processes:
        raise UsageError(f"--process_id is {process_id}, expected 0 to {processes - 1}")
    if processes == 1 or not (coordinator or in_cluster()):
        return None
    supervise()
    try:
        jax.distributed.initialize(
            coordinator,
            processes,
            process_id,
            initialization_timeout=900,  # hosts are started one by one where some did not answer at first
            heartbeat_timeout_seconds=round(3 * heartbeat_timeout),  # ours speaks first, and says who
            shutdown_timeout_seconds=round(heartbeat_timeout),
        )
    except (RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        raise RunError(
            f"the processes did not come together: {reason}. --coordinator HOST:PORT, --processes and --process_id say"
            " who there is; --processes 1 is this one alone"
        ) from error
    if jax.default_backend() == "cpu":
        # CPU's programs are cached for process 0 alone. It would come to a collective while others still compile, and
        # gloo waits for 30 s.
        jax.config.update("jax_enable_compilation_cache", False)
    return Hosts(heartbeat_timeout)


def in_cluster() -> bool:
    """Whether JAX knows a cluster that this process is in."""
    from jax._src.clusters import ClusterEnv  # what jax.distributed.initialize asks; it can only be asked by starting

    return any(env.is_env_present() for env in ClusterEnv._cluster_types if not env.opt_in_only_method)


def supervise() -> None:
    """Goes on in a child, for whose end this process waits.

    JAX aborts a process whose coordinator is gone, and Python has no say in it: who stands outside can still tell what
    happened, and end as after any other failure.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if not child:
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # Linux: nobody is left behind
        return
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal tells both
    signal.signal(signal.SIGTERM, lambda number, _: os.kill(child, number))
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status == -signal.SIGABRT:
        leave("JAX aborted this process (see above): most likely process 0, which the others talk through, is gone")
    if status < 0:
        if -status != signal.SIGKILL:  # which is never caught
            signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    os._exit(status)


def is_main_process() -> bool:
    """Whether this process writes the run's files."""
    return not jax.distributed.is_initialized() or jax.process_index() == 0


def owns(place: int) -> bool:
    """Whether the work at `place` is this process's share."""
    return place % jax.process_count() == jax.process_index()


def gather_values(name: str, value: Any, seconds: float = BARRIER_SECONDS) -> list[Any]:
    """The JSON values that all processes have for `name`, by process: a barrier too.

    Raises RunError, with those that are missing, when not all came within `seconds`.
    """
    if jax.process_count() == 1:
        return [value]
    number = next(_exchanges)
    client, folder, me = key_value_store(), f"r1jax/exchange/{number}/", jax.process_index()
    client.key_value_set(f"{folder}{me}", json.dumps(value))
    try:
        client.wait_at_barrier(f"r1jax/{number}/{name}", int(1000 * seconds))
    except jax.errors.JaxRuntimeError as error:
        if "DEADLINE_EXCEEDED" not in str(error):
            raise
        came = {int(key.rsplit("/", 1)[1]) for key, _ in client.key_value_dir_get(folder)}
        raise RunError(
            f"{name}: {processes_text(set(range(jax.process_count())) - came)} did not come within {seconds:g} s;"
            f" {GOES_ON}"
        ) from error
    values = {int(key.rsplit("/", 1)[1]): json.loads(text) for key, text in client.key_value_dir_get(folder)}
    if number:  # who is here has read what was exchanged before
        client.key_value_delete(f"r1jax/exchange/{number - 1}/{me}")
    return [values[process] for process in range(jax.process_count())]


def barrier(name: str, seconds: float = BARRIER_SECONDS) -> None:
    """No process goes on before all are here. Raises RunError with those that are missing."""
    gather_values(name, None, seconds)


def broadcast_from_main(name: str, make: Callable[[], Any], seconds: float = BARRIER_SECONDS) -> Any:
    """What `make` gives on process 0, which alone calls it, as JSON. A user's error in it is raised by all."""
    if jax.process_count() == 1:
        return make()
    said: dict[str, Any] = {}
    if is_main_process():
        try:
            said = {"value": make()}
        except (UsageError, RunError) as error:
            said = {type(error).__name__: str(error)}
    said = gather_values(name, said, seconds)[0]
    for kind in (UsageError, RunError):
        if kind.__name__ in said:
            raise kind(said[kind.__name__])
    return said["value"]


@contextlib.contextmanager
def catch_sigterm() -> Iterator[None]:
    """SIGTERM is heard by `preempted` instead of ending the process; with several processes JAX hears it by itself."""
    if jax.distributed.is_initialized():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda *_: _told_to_stop.set())
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
        _told_to_stop.clear()


def preempted() -> bool:
    """Whether this process, or another of the run, was told to stop (SIGTERM, or maintenance of a TPU).

    All processes have to ask equally often: they agree on the call at which the answer is yes.
    """
    if not jax.distributed.is_initialized():
        return _told_to_stop.is_set()
    return reached_preemption_sync_point(next(_checks))


def stop_if_preempted() -> None:
    """Raises Preempted; see `preempted`."""
    if preempted():
        raise Preempted("told to stop")


def key_value_store() -> Any:
    """JAX's coordinator, as this process talks to it."""
    from jax._src import distributed  # Orbax takes it from there too: JAX has no public name for it

    return distributed.global_state.client


def processes_text(processes: set[int]) -> str:
    return ("process " if len(processes) == 1 else "processes ") + ", ".join(map(str, sorted(processes)))


class Hosts:
    """This process among the others: it gives signs of life, and ends when another one gives none.

    A collective waits forever for a process that is gone, and can't be interrupted: so this thread ends the process.
    """

    def __init__(self, heartbeat_timeout: float):
        self.heartbeat_timeout = heartbeat_timeout
        self.pause = min(2.0, heartbeat_timeout / 5)
        self.me, self.processes = jax.process_index(), jax.process_count()
        self.client, self.ended = key_value_store(), threading.Event()
        self.failure = ""
        self.thread = threading.Thread(target=self.watch, name="hosts", daemon=True)
        self.thread.start()

    def watch(self) -> None:
        """Until `end`: a sign of life, and a look at the others'."""
        signs: dict[int, tuple[str, float]] = {}
        started = time.monotonic()
        for beat in itertools.count():
            try:
                self.client.key_value_set(f"r1jax/sign/{self.me}", self.failure or str(beat), allow_overwrite=True)
                found = self.client.key_value_dir_get("r1jax/sign/")
            except jax.errors.JaxRuntimeError:
                if not (self.ended.is_set() or self.failure):
                    leave("process 0, which the others talk through, is gone")
                return
            for key, sign in found:
                process = int(key.rsplit("/", 1)[1])
                if sign.startswith(LEAVES) and not self.failure:
                    leave(sign.removeprefix(LEAVES))
                if sign != signs.get(process, ("", 0))[0]:
                    signs[process] = sign, time.monotonic()
                elif sign.startswith(FAILED) and not self.failure:  # who has the same error has had time to say so
                    if not self.me:
                        time.sleep(4 * self.pause)  # who failed can still end by itself, which needs this process
                    code, reason = sign.removeprefix(FAILED).split(" ", 1)
                    leave(f"process {process} failed: {reason}", int(code))
            heard = {process: signs.get(process, ("", started))[1] for process in range(self.processes)}
            # The others talk through process 0: it sees first who is gone, tells them, and goes last.
            patience = self.heartbeat_timeout - (0 if self.me else 2 * self.pause)
            gone = {process for process, when in heard.items() if time.monotonic() - when > patience}
            if gone - {self.me} and not self.ended.is_set():
                reason = f"{processes_text(gone)}: no sign of life for {patience:g} s"
                if not self.me:
                    self.client.key_value_set("r1jax/sign/0", f"{LEAVES}{reason}", allow_overwrite=True)
                    time.sleep(2 * self.pause)
                leave(reason)
            if self.ended.wait(self.pause):
                return

    def end(self, code: int, error: BaseException | None) -> None:
        """The end of this process's work. Without an error all end together; with one the others are told, and end."""
        if error is None or isinstance(error, Preempted):
            barrier("the end of the run")
            self.ended.set()
            self.thread.join()
            jax.distributed.shutdown()
            return
        if isinstance(error, jax.errors.JaxRuntimeError):  # most likely another process is gone: `watch` will say who
            time.sleep(self.heartbeat_timeout + 2 * self.pause)
        self.failure = f"{FAILED}{code} {' '.join(str(error).split())[:500] or type(error).__name__}"
        time.sleep(4 * self.pause)
        with contextlib.suppress(OSError):
            sys.stderr.flush()
            sys.stdout.flush()
        os._exit(code)  # JAX would wait for the others first


def leave(reason: str, code: int = 1) -> NoReturn:
    """Ends this process at once, whatever its other threads wait for."""
    sys.stderr.write(f"r1jax: {reason}; {GOES_ON}\n")
    sys.stderr.flush()
    os._exit(code)
