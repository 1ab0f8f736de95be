"""The environments of a rollout: each answers its sample in a thread, while the devices decode other samples."""

import contextlib
import ctypes
import math
import queue
import threading
import time
import zlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import jax

from r1jax.config import EngineConfig
from r1jax.parallel.hosts import gather_values, owns
from r1jax.types import Environment, Environments, Sample

POLL = 0.05  # seconds between two looks at how long environments have taken
CLOSING = 1.0  # seconds that closing an environment may hold up the engine
LONGEST_TOKEN = 256  # most characters of a token: text that can't fit is not tokenized
MOST_TEXT = 10_000  # characters that are kept of a text that nobody reads on

Place = tuple[int, int]  # the sample's group and index


@dataclass
class Answer:
    """What an environment answered, or how it failed.

    Attributes:
      text, ids: the observation; what happened, where it failed.
      reward: as in `Step`.
      reason: why the sample ends here, "" if it goes on: "stop", "length", "timeout" or "environment_error".
      seconds: that it took.
    """

    text: str = ""
    ids: Sequence[int] = ()
    reward: float | None = None
    reason: str = ""
    seconds: float = 0.0


class _GivenUp(SystemExit):
    """Raised in the thread of an environment that takes too long; threads end by it in silence."""


@dataclass
class _Job:
    """A turn that an environment of this process has to answer."""

    sample: Sample
    room: int  # tokens of an observation that fit
    thread: threading.Thread | None = None
    began: float = 0.0  # 0: it waits for a thread
    over: bool = False  # answered, or given up


@dataclass
class Episodes:
    """The environments of all samples that are under way, of which each process runs its share.

    Attributes:
      vocab_size: ids from here on are refused.
      seed: of the rollout; that of an environment is a function of it, the problem and the sample's index.
      waiting: samples whose environments have not answered, in all processes.
      seconds, failures: so far, of environments at work.
    """

    environments: Environments
    config: EngineConfig
    vocab_size: int
    seed: int
    waiting: dict[Place, Sample] = field(default_factory=dict)
    seconds: float = 0.0
    failures: int = 0

    def __post_init__(self) -> None:
        self.made: dict[Place, Environment] = {}
        self.jobs: dict[Place, _Job] = {}
        self.answered: queue.SimpleQueue[tuple[Place, Answer]] = queue.SimpleQueue()
        self.lock, self.free = threading.Lock(), threading.Semaphore(self.config.environment_threads)

    def ask(self, sample: Sample, room: int) -> None:
        """Gives the sample's last turn to its environment; `room` tokens of the answer fit."""
        place = (sample.group, sample.index)
        self.waiting[place] = sample
        if owns(sample.group):
            job = self.jobs[place] = _Job(sample, room)
            job.thread = threading.Thread(target=self.work, args=(place, job), daemon=True)
            job.thread.start()

    def work(self, place: Place, job: _Job) -> None:
        """Answers one turn, in a thread of its own."""
        self.free.acquire()
        job.began = time.monotonic()
        try:
            answer = self.answer(place, job)
        except BaseException as error:  # an environment may raise anything
            answer = Answer(" ".join(f"{type(error).__name__}: {error}".split())[:500], reason="environment_error")
        self.close(place, job, answer)

    def answer(self, place: Place, job: _Job) -> Answer:
        if place not in self.made:
            environment, sample = self.environments.make(), job.sample
            self.made[place] = environment
            position = f"{self.seed} {sample.problem.id} {sample.index}"
            environment.reset(sample.problem, zlib.crc32(position.encode()))
        step = self.made[place].step(job.sample.turns[-1].text)
        reward, said = None if step.reward is None else float(step.reward), step.observation
        if reward is not None and not math.isfinite(reward):
            raise ValueError(f"the reward is {reward}, expected a finite number")
        text = said if isinstance(said, str) else ""
        if step.done:
            return Answer(text[:MOST_TEXT], reward=reward, reason="stop")
        if len(text) > LONGEST_TOKEN * job.room:
            return Answer(text[:MOST_TEXT], reward=reward, reason="length")
        ids = self.environments.encode(text) if isinstance(said, str) else [int(i) for i in said]
        if not ids or not 0 <= min(ids) <= max(ids) < self.vocab_size:
            raise ValueError(f"the observation is {said!r:.200}, expected text or ids from 0 to {self.vocab_size - 1}")
        return Answer(text, ids, reward, "" if len(ids) <= job.room else "length")

    def close(self, place: Place, job: _Job, answer: Answer) -> bool:
        """Takes the job's answer, unless it has one: whether it had none."""
        with self.lock:
            if job.over:
                return False
            job.over = True
        self.free.release()
        answer.seconds = time.monotonic() - job.began
        self.answered.put((place, answer))
        return True

    def give_up(self) -> None:
        """Answers for environments that take too long. A loop in Python is interrupted; what blocks is left alone."""
        now, most = time.monotonic(), self.config.environment_timeout
        for place, job in list(self.jobs.items()):
            text = f"no answer within EngineConfig.environment_timeout ({most:g})"
            if job.began and now - job.began > most and self.close(place, job, Answer(text, reason="timeout")):
                assert job.thread and job.thread.ident
                ident, raised = ctypes.c_ulong(job.thread.ident), ctypes.py_object(_GivenUp)
                ctypes.pythonapi.PyThreadState_SetAsyncExc(ident, raised)

    def answers(self, *, wait: bool) -> list[tuple[Sample, Answer]]:
        """What was answered since the last call, the same in all processes; `wait` for one if there is none."""
        while self.waiting:
            shares = gather_values("what environments answered", self.collect(wait=wait))
            found = [(tuple(place), Answer(**answer)) for share in shares for place, answer in share]
            self.seconds += sum(answer.seconds for _, answer in found)
            self.failures += sum(answer.reason in ("timeout", "environment_error") for _, answer in found)
            if found or not wait:
                return [(self.waiting.pop(place), answer) for place, answer in found]
        return []

    def collect(self, *, wait: bool) -> list[tuple[Place, dict[str, Any]]]:
        """This process's answers; it waits for one for a moment at most where other processes may have one."""
        found: list[tuple[Place, dict[str, Any]]] = []
        while True:
            self.give_up()
            try:
                place, answer = self.answered.get(timeout=POLL if wait and self.jobs and not found else 0.0)
            except queue.Empty:
                if found or not wait or not self.jobs or jax.process_count() > 1:
                    return found
                continue
            del self.jobs[place]
            found.append((place, asdict(answer)))

    def end(self, sample: Sample) -> None:
        """Closes and forgets the environment of a sample that is complete; a slow one goes on in its thread."""
        close = getattr(self.made.pop((sample.group, sample.index), None), "close", None)
        if close is not None:
            thread = threading.Thread(target=quietly, args=(close,), daemon=True)
            thread.start()
            thread.join(CLOSING)


def quietly(close: Callable[[], None]) -> None:
    with contextlib.suppress(Exception):  # the sample has all that it needs
        close()
