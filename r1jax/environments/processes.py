"""Environments in processes of their own, for those that compute in Python, where threads would hold up the engine."""

import os
import pickle
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context

from r1jax.errors import UsageError
from r1jax.types import Environment, Problem, Step

TRIES = 5  # of a turn: a process that dies fails all turns in flight


def answer(make: Callable[[], Environment], problem: Problem, seed: int, turns: tuple[str, ...], seconds: int) -> Step:
    """The step of the last turn, by an environment that has replayed the turns before. Raises TimeoutError."""

    def interrupt(*_):
        raise TimeoutError(f"the environment took more than {seconds} s")

    environment: Environment | None = None
    signal.signal(signal.SIGALRM, interrupt)
    signal.alarm(seconds)
    try:
        environment = make()
        environment.reset(problem, seed)
        return [environment.step(turn) for turn in turns][-1]
    except Exception as error:  # as text: another process may not know its type
        kind = TimeoutError if isinstance(error, TimeoutError) else RuntimeError
        raise kind(f"{type(error).__name__}: {error}") from None
    finally:
        signal.alarm(0)
        if close := getattr(environment, "close", None):
            close()


def end_with_parent() -> None:
    """Ends this process when the run is gone, though it was killed."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


class InProcesses:
    """An `Environments.make` whose environments answer in `count` processes.

    Any process answers any turn, since an environment is a function of its problem, seed and turns: earlier turns are
    played again. `make` has to be importable: a class or function of a module, not one of the experiment's own file.
    """

    def __init__(self, make: Callable[[], Environment], count: int, seconds: int = 30):
        """`seconds` bound a turn, with those before it that are played again.

        Raises UsageError for a `make` that another process can't import.
        """
        name = getattr(make, "__module__", "")
        try:
            pickle.dumps(make)
        except Exception as error:  # pickle raises many types
            raise UsageError(f"InProcesses: {make} is not importable ({error}): give a class of a module") from error
        if name.startswith("r1jax_experiment_") or name == "__main__":
            raise UsageError(f"InProcesses: {make} is of the experiment's own file: put it in a module beside it")
        self.make, self.count, self.seconds = make, count, seconds
        self.pool, self.lock = self.start(), threading.Lock()

    def start(self) -> ProcessPoolExecutor:
        return ProcessPoolExecutor(self.count, mp_context=get_context("spawn"), initializer=end_with_parent)

    def __call__(self) -> Environment:
        return _Remote(self)

    def ask(self, problem: Problem, seed: int, turns: list[str]) -> Step:
        """The last turn's step. When a process dies, all are started again, and their turns are asked again."""
        for tries_left in reversed(range(TRIES)):
            pool = self.pool
            try:
                return pool.submit(answer, self.make, problem, seed, tuple(turns), self.seconds).result()
            except BrokenProcessPool:
                if not tries_left:
                    raise
                with self.lock:
                    if self.pool is pool:  # no other thread has seen it
                        self.pool = self.start()
        raise AssertionError


class _Remote:
    def __init__(self, owner: InProcesses):
        self.owner = owner

    def reset(self, problem: Problem, seed: int) -> None:
        self.problem, self.seed, self.turns = problem, seed, list[str]()

    def step(self, turn: str) -> Step:
        self.turns.append(turn)
        return self.owner.ask(self.problem, self.seed, self.turns)
