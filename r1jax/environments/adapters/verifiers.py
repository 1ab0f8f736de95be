"""Tasksets and environments of verifiers 0.4, `verifiers.v1` (the extra `verifiers`)."""

import asyncio
import json
import zlib
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from functools import cache
from typing import Any

from r1jax.environments.adapters import check_question, load_package
from r1jax.errors import UsageError
from r1jax.types import Problem, Step


@cache
def load(config: str) -> Any:
    """The environment of a config in JSON; one object serves all episodes, as in verifiers' own server."""
    vf = load_package("verifiers.v1", "verifiers")
    time_out_elsewhere(vf.utils.score)
    return vf.load_environment(vf.resolve_env_config(json.loads(config)))


def time_out_elsewhere(score: Any) -> None:
    """Turns off the alarms of `verify_boxed_math_answer`: only a main thread has them, and in others it would return 0.

    What takes too long is interrupted after `EngineConfig.environment_timeout`.
    """
    parse, verify = score.parse, score.verify
    score.parse = lambda *args, parsing_timeout, **rest: parse(*args, parsing_timeout=None, **rest)
    score.verify = lambda *args, timeout_seconds, **rest: verify(*args, timeout_seconds=None, **rest)


class VerifiersEnvironment:
    """The environment and the task that its problem names. The reward is the episode's, with the last turn.

    The environment's `run` goes on until it asks its agent for a turn, and waits there for `step`. The policy is its
    only agent. What needs more than messages (tools, stop conditions, a runtime) is refused with UsageError.

    An episode has an event loop of its own, which takes three file descriptors. Each turn runs it in another thread:
    rewards can't use signals, as math-verify's timeouts do.
    """

    loop: asyncio.AbstractEventLoop | None = None

    def reset(self, problem: Problem, seed: int) -> None:
        check_question(problem, self.begin(**json.loads(problem.answer)))

    def begin(self, config: dict[str, Any], task: dict[str, Any]) -> str:
        """Runs the environment until it asks for the first turn; returns the question."""
        environment = load(json.dumps(config))
        kind = type(environment.taskset).task_type()
        made = kind(kind.data_type().model_validate(task), environment.config.taskset.task)
        self.asked: asyncio.Queue[str | None] = asyncio.Queue()
        self.said: asyncio.Queue[str] = asyncio.Queue()
        self.loop = asyncio.new_event_loop()
        self.episode = self.loop.create_task(play(environment, made, self.asked, self.said))
        question = self.loop.run_until_complete(self.asked.get())
        if question is None:
            raise UsageError(f"{config} asks its agent nothing: the reward is {self.episode.result()}")
        return question

    def step(self, turn: str) -> Step:
        assert self.loop is not None
        self.said.put_nowait(turn)
        observation = self.loop.run_until_complete(self.asked.get())
        return Step(observation) if observation is not None else Step(done=True, reward=self.episode.result())

    def __del__(self) -> None:
        if self.loop is not None:
            self.episode.cancel()
            self.loop.run_until_complete(asyncio.gather(self.episode, return_exceptions=True))
            self.loop.close()


async def play(environment: Any, task: Any, asked: asyncio.Queue[str | None], said: asyncio.Queue[str]) -> float:
    """An episode; returns its reward. Behind its last question is None."""
    vf = load_package("verifiers.v1", "verifiers")
    seats: list[Seat] = []

    def sit(name: str, config: Any) -> Seat:
        seats.append(Seat(vf, vf.AgentInfo(config=config, name=name), asked, said))
        return seats[-1]

    try:
        agents = vf.Agents(environment.config, sit)
        if len(seats) != 1 or environment.taskset.toolsets(environment.taskset.config):
            names = [seat.info.name for seat in seats]
            raise UsageError(f"the environment has the agents {names}, expected one, and no tools of its taskset")
        await environment.setup(agents)
        await environment.run(task, agents)
        [trace] = seats[0].traces
        episode = vf.Episode(env=vf.EnvInfo(id=environment.config.env_id), task=trace.task, traces=[trace])
        await environment.finalize(task, episode)
        return trace.reward
    finally:
        asked.put_nowait(None)


class Seat:
    """The policy in the place of an agent of verifiers, and in that of the agent's interaction."""

    def __init__(self, vf: Any, info: Any, asked: asyncio.Queue[str | None], said: asyncio.Queue[str]):
        self.vf, self.info, self.asked, self.said = vf, info, asked, said
        self.traces: list[Any] = []

    async def run(self, task: Any, **_: Any) -> Any:
        async with self.interaction(task):
            await self.turn()
        return self.trace

    @asynccontextmanager
    async def interaction(self, task: Any, **_: Any) -> AsyncIterator["Seat"]:
        self.refuse_unsupported(task)
        record = self.vf.TraceTask(type=type(task).__name__, data=task.data, key=task.key, hash=task.hash)
        self.trace = self.vf.Trace(task=record, state=self.vf.state.state_cls(type(task))(), agent=self.info)
        self.traces.append(self.trace)
        given, invoke = {"trace": self.trace, "runtime": NoRuntime()}, self.vf.utils.decorators.invoke
        await invoke(task.setup, given)
        yield self
        self.trace.ok = True
        self.trace.stop("user_closed")
        await invoke(task.finalize, given)
        await task.score(self.trace, given["runtime"])

    async def turn(self, message: Any = None) -> Any:
        data, vf = self.trace.task.data, self.vf
        text = (data if message is None else vf.TaskData(prompt=message)).prompt_text
        system = data.system_prompt if not self.trace.nodes and data.system_prompt else ""
        self.asked.put_nowait(f"{system}\n\n{text}" if system else text)
        reply = vf.AssistantMessage(content=await self.said.get())
        before = [vf.SystemMessage(content=system)] if system else []
        for said in (*before, vf.UserMessage(content=text), reply):
            parent = len(self.trace.nodes) - 1 if self.trace.nodes else None
            self.trace.nodes.append(vf.MessageNode(parent=parent, message=said, sampled=said is reply))
        return vf.Segment(messages=[reply])

    def refuse_unsupported(self, task: Any) -> None:
        needs = {
            "tools": task.toolsets(task.config),
            "stop conditions": task.hooks("stop"),
            "interception": self.vf.utils.decorators.discover_decorated(task, "intercept"),
            "a container": task.NEEDS_CONTAINER,
            "a second rollout": self.traces,
        }
        if found := [name for name, need in needs.items() if need]:
            raise UsageError(f"{type(task).__name__} needs {', '.join(found)}, expected one rollout of messages alone")


class NoRuntime:
    """What a task's functions get for a runtime, whether they use it or not."""

    def __getattr__(self, name: str) -> Any:
        raise UsageError(f"the task uses {name} of verifiers' runtime, expected one that needs messages alone")


def problems(
    train: Mapping[str, Any], test: Mapping[str, Any] | None = None
) -> Callable[[str, int], Iterator[Problem]]:
    """The tasks of an environment's config, as verifiers' TOML has it: {"taskset": {"id": "gsm8k-v1"}}.

    Finite tasksets are shuffled by the seed. `test` is the config of split 'test'; without it all splits have the same
    tasks. Raises UsageError, while drawing, without verifiers and for what `VerifiersEnvironment` refuses.
    """

    def draw(split: str, seed: int) -> Iterator[Problem]:
        config = dict(test if test is not None and split == "test" else train)
        taskset = load(json.dumps(config)).taskset
        tasks = taskset.shuffle(zlib.crc32(f"{split}-{seed}".encode())) if taskset.bounded else taskset
        for place, task in enumerate(tasks):
            answer = {"config": config, "task": task.data.model_dump(mode="json")}
            yield Problem(place, VerifiersEnvironment().begin(**answer), json.dumps(answer), "en", "verifiers")

    return draw
