"""Environments in processes of their own, for those that compute in Python, where threads would hold up the engine."""

import contextlib
import pickle
import signal
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from r1jax.errors import UsageError
from r1jax.rewards.workers import Workers
from r1jax.types import Environment, Problem, Step


def answer(request: str) -> str:
    """Plays a pickled (make, problem, seed, turns, seconds): the last step, pickled, or as text what was raised."""
    environment: Any = None
    try:
        make, problem, seed, turns, seconds = pickle.loads(bytes.fromhex(request))
        signal.alarm(20 * seconds)  # ends this process if it sleeps, and the run that would end it is gone
        environment = make()
        environment.reset(problem, seed)
        return pickle.dumps([environment.step(turn) for turn in turns][-1]).hex()
    except BaseException as error:  # an environment may raise anything
        return pickle.dumps(f"{type(error).__name__}: {error}").hex()
    finally:
        with contextlib.suppress(BaseException):  # the answer is complete; not every environment has a `close`
            environment.close()
        signal.alarm(0)


class InProcesses:
    """An `Environments.make` whose environments answer in `count` processes.

    Any process answers any turn, since an environment is a function of its problem, seed and turns: earlier turns are
    played again. `seconds` of CPU time bound a turn with its replay; `EngineConfig.environment_timeout` bounds its wall
    time, in which it also waits for a free process. Raises UsageError for a `make` that processes can't import: it has
    to be a class or function of a module, or a partial of one, not one of the experiment's own file.
    """

    def __init__(self, make: Callable[[], Environment], count: int, seconds: int = 10):
        maker = getattr(make, "func", make)
        if maker.__module__.startswith(("__main__", "r1jax_experiment_")) or "<" in getattr(maker, "__qualname__", ""):
            raise UsageError(f"InProcesses: {make} is not importable: give a class of a module beside the experiment's")
        self.make, self.seconds, self.imports = make, seconds, [maker.__module__]
        self.threads, self.own = ThreadPoolExecutor(count), threading.local()  # a worker is a thread's own

    def __call__(self) -> Environment:
        return _Remote(self)

    def ask(self, problem: Problem, seed: int, turns: tuple[str, ...]) -> Step:
        """The last turn's step, by the process of this thread."""
        if not hasattr(self.own, "worker"):  # it may use any memory
            self.own.worker = Workers(f"{__name__}:{answer.__name__}", 1, self.seconds, 1 << 40, self.imports)
        worker = self.own.worker
        request = pickle.dumps((self.make, problem, seed, turns, self.seconds)).hex()
        crashes = worker.crashes
        [reply] = worker.map([request])
        if worker.crashes > crashes:  # the process died, and has been replaced
            [reply] = worker.map([request])
        if reply is None:
            raise TimeoutError(f"the environment took more than {self.seconds} s, or its process died twice")
        step = pickle.loads(bytes.fromhex(reply))
        if isinstance(step, str):
            raise TimeoutError(step) if step.startswith(TimeoutError.__name__) else RuntimeError(step)
        return step


@dataclass
class _Remote:
    owner: InProcesses

    def reset(self, problem: Problem, seed: int) -> None:
        self.problem, self.seed, self.turns = problem, seed, list[str]()

    def step(self, turn: str) -> Step:
        self.turns.append(turn)
        return self.owner.threads.submit(self.owner.ask, self.problem, self.seed, tuple(self.turns)).result()
