"""The environments of a rollout: each answers its sample in a thread, while the devices decode other samples."""

import contextlib
import ctypes
import math
import operator
import queue
import threading
import time
import zlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from r1jax.config import EngineConfig
from r1jax.parallel.hosts import gather_values, owns
from r1jax.types import Environments, Sample

POLL = 0.05  # seconds between two checks of how long environments have taken
CLOSING = 1.0  # seconds for which closing an environment may hold up the engine
LONGEST_TOKEN = 256  # most characters of a token: text that can't fit is not tokenized
MOST_TEXT = 10_000  # characters that are kept of a text that nobody reads on

SampleKey = tuple[int, int]  # the sample's group and index


@dataclass
class Answer:
    """What an environment answered, or how it failed."""

    text: str = ""  # the observation, or what went wrong
    ids: Sequence[int] = ()  # the observation's tokens
    reward: float | None = None  # as in `Step`
    reason: str = ""  # why the sample ends here: "stop", "length", "timeout" or "environment_error"; "": it goes on
    seconds: float = 0.0  # that the environment took


@dataclass
class _Job:
    """A turn that an environment of this process has to answer."""

    sample: Sample
    room: int  # tokens of an observation that fit
    thread: int = 0  # the identifier of the thread that it runs in
    began: float = 0.0  # 0: it waits until fewer than `environment_threads` run


@dataclass
class Episodes:
    """The environments of all samples that are under way, of which each process runs its share."""

    environments: Environments
    config: EngineConfig
    vocab_size: int  # ids from here on are refused
    seed: int  # of the rollout; an environment's seed is a function of it, the problem and the sample's index

    def __post_init__(self) -> None:
        self.waiting: dict[SampleKey, Sample] = {}  # those whose environments have not answered, in all processes
        self.made: dict[SampleKey, Any] = {}  # this process's environments
        self.jobs: dict[SampleKey, _Job] = {}  # what they have to answer; whoever removes a job answers it
        self.answered: queue.SimpleQueue[tuple[SampleKey, dict[str, Any]]] = queue.SimpleQueue()
        self.free = threading.Semaphore(self.config.environment_threads)

    def ask(self, sample: Sample, room: int) -> None:
        """Gives the sample's last turn to its environment; `room` tokens of the answer fit."""
        key = (sample.group, sample.index)
        self.waiting[key] = sample
        if owns(sample.group):
            self.jobs[key] = _Job(sample, room)
            threading.Thread(target=self.work, args=(key, self.jobs[key]), daemon=True).start()

    def work(self, key: SampleKey, job: _Job) -> None:
        """Answers one turn, in a thread of its own."""
        self.free.acquire()
        job.thread = threading.get_ident()
        job.began = time.monotonic()
        try:
            answer = self.run_turn(key, job)
        except BaseException as error:  # an environment may raise anything
            reason = "timeout" if isinstance(error, TimeoutError) else "environment_error"
            answer = Answer(" ".join(f"{type(error).__name__}: {error}".split())[:500], reason=reason)
        self.deliver(key, answer)

    def run_turn(self, key: SampleKey, job: _Job) -> Answer:
        """What the sample's environment, which is made for its first turn, answers to its last one."""
        sample = job.sample
        if key not in self.made:
            self.made[key] = self.environments.make()
            self.made[key].reset(sample.problem, zlib.crc32(f"{self.seed} {sample.problem.id} {sample.index}".encode()))
        step = self.made[key].step(sample.turns[-1].text)
        reward = None if step.reward is None else float(step.reward)
        if reward is not None and not math.isfinite(reward):
            raise ValueError(f"the reward is {reward}, expected a finite number")
        observed = step.observation
        text = observed if isinstance(observed, str) else ""
        if step.done or len(text) > LONGEST_TOKEN * job.room:
            return Answer(text[:MOST_TEXT], reward=reward, reason="stop" if step.done else "length")
        ids = self.environments.encode(text) if isinstance(observed, str) else [operator.index(i) for i in observed]
        if isinstance(observed, bytes) or not ids or not 0 <= min(ids) <= max(ids) < self.vocab_size:
            raise ValueError(f"the observation is {observed!r:.200}, expected text or ids in [0, {self.vocab_size})")
        return Answer(text, ids, reward, "" if len(ids) <= job.room else "length")

    def deliver(self, key: SampleKey, answer: Answer) -> bool:
        """Answers a job, unless it has been answered: whether it had not."""
        job = self.jobs.pop(key, None)
        if job is None:
            return False
        self.free.release()
        answer.seconds = time.monotonic() - job.began
        self.answered.put((key, asdict(answer)))
        return True

    def give_up(self) -> None:
        """Answers for environments that take too long. A loop in Python is interrupted; what blocks is left alone."""
        limit = self.config.environment_timeout
        text = f"no answer within EngineConfig.environment_timeout ({limit:g})"
        for key, job in self.jobs.copy().items():
            is_late = job.began and time.monotonic() - job.began > limit
            if is_late and self.deliver(key, Answer(text, reason="timeout")):
                thread, raised = ctypes.c_ulong(job.thread), ctypes.py_object(SystemExit)  # ends a thread in silence
                ctypes.pythonapi.PyThreadState_SetAsyncExc(thread, raised)

    def answers(self, *, wait: bool) -> list[tuple[Sample, Answer]]:
        """What was answered since the last call, the same in all processes; if nothing was, `wait` a moment for it."""
        self.give_up()
        own: list[tuple[SampleKey, dict[str, Any]]] = []
        with contextlib.suppress(queue.Empty):
            while True:
                own.append(self.answered.get(timeout=POLL if wait and self.jobs and not own else 0.0))
        shares = gather_values("what environments answered", own) if self.waiting else []
        return [(self.waiting.pop(tuple(key)), Answer(**answer)) for share in shares for key, answer in share]

    def end(self, key: SampleKey, seconds: float = CLOSING) -> None:
        """Closes and forgets the environment of a sample; one that takes longer than `seconds` goes on in a thread."""

        def quietly(close: Callable[[], None]) -> None:
            with contextlib.suppress(Exception):  # the sample has all that it needs
                close()

        with contextlib.suppress(Exception):  # there may be no `close`, and to look for it may raise anything
            thread = threading.Thread(target=quietly, args=[self.made.pop(key).close], daemon=True)
            thread.start()
            thread.join(seconds)
