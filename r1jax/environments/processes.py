"""Environments in processes of their own, for those that compute in Python, where threads would hold up the engine."""

import signal
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context

from r1jax.types import Environment, Problem, Step

TRIES = 3  # of a turn; a process that dies takes the others' turns with it


def answer(make: Callable[[], Environment], problem: Problem, seed: int, turns: tuple[str, ...], seconds: int) -> Step:
    """The step of the last turn, by an environment that has replayed the turns before. Raises TimeoutError."""

    def interrupt(*_):
        raise TimeoutError(f"the environment took more than {seconds} s")

    signal.signal(signal.SIGALRM, interrupt)
    signal.alarm(seconds)
    try:
        environment = make()
        environment.reset(problem, seed)
        return [environment.step(turn) for turn in turns][-1]
    finally:
        signal.alarm(0)


class InProcesses:
    """An `Environments.make` whose environments answer in `count` processes.

    Any process answers any turn, since an environment is a function of its problem, seed and turns: earlier turns are
    played again. `make` has to be importable: a class or function of a module, not one of the experiment's own file.
    """

    def __init__(self, make: Callable[[], Environment], count: int, seconds: int = 30):
        """`seconds` bound a turn, with those before it that are played again."""
        self.make, self.count, self.seconds = make, count, seconds
        self.pool, self.lock = self.start(), threading.Lock()

    def start(self) -> ProcessPoolExecutor:
        return ProcessPoolExecutor(self.count, mp_context=get_context("spawn"))

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
