"""Environments of OpenEnv, in this process or behind a server (the extra `openenv`)."""

import json
from collections.abc import Callable, Iterator
from typing import Any

from r1jax.environments.adapters import check_question, draw_seeds, load_package
from r1jax.types import Problem, Step

Make = Callable[[], Any]


def as_json(observation: Any) -> str:
    """All fields of an observation, except those that a `Step` has."""
    fields = observation if isinstance(observation, dict) else observation.model_dump(mode="json")
    return json.dumps({name: fields[name] for name in fields if name not in ("done", "reward", "metadata")})


def seeds(split: str, seed: int) -> Iterator[dict[str, Any]]:
    """Arguments of `reset` for environments that are drawn by a seed."""
    return ({"seed": number} for number in draw_seeds(split, seed))


class OpenEnvEnvironment:
    """An environment whose `reset` gets what `Problem.answer` keeps. Rewards are those of its steps.

    Args:
      make: makes an environment: an `Environment`, or a client as `GenericEnvClient(base_url=…).sync()`.
      act: the action that a turn stands for. A turn that it refuses with ValueError is answered with the error.
      read: the text of an observation.
    """

    def __init__(self, make: Make, act: Callable[[str], Any], read: Callable[[Any], str] = as_json):
        self.environment, self.act, self.read = make(), act, read
        self.result_type = load_package("openenv.core.client_types", "openenv").StepResult

    def reset(self, problem: Problem, seed: int) -> None:
        check_question(problem, self.begin(json.loads(problem.answer)))

    def begin(self, arguments: dict[str, Any]) -> str:
        """Resets the environment; returns its first observation."""
        return self.read(self.observation(self.environment.reset(**arguments)))

    def observation(self, result: Any) -> Any:
        """A client's result has an observation; an environment's result is one."""
        return result.observation if isinstance(result, self.result_type) else result

    def step(self, turn: str) -> Step:
        try:
            action = self.act(turn)
        except ValueError as error:
            return Step(f"Invalid action: {error}")
        result = self.environment.step(action)
        return Step(self.read(self.observation(result)), result.done, result.reward)

    def close(self) -> None:
        self.environment.close()


def problems(
    make: Make,
    read: Callable[[Any], str] = as_json,
    resets: Callable[[str, int], Iterator[dict[str, Any]]] = seeds,
) -> Callable[[str, int], Iterator[Problem]]:
    """A problem for each of the `resets` of a split and a seed, which are arguments of `reset` that JSON can hold.

    Raises UsageError, while drawing, without OpenEnv.
    """

    def draw(split: str, seed: int) -> Iterator[Problem]:
        for place, arguments in enumerate(resets(split, seed)):
            opened = OpenEnvEnvironment(make, str, read)
            question = opened.begin(arguments)
            opened.environment.close()
            yield Problem(place, question, json.dumps(arguments), "en", "openenv")

    return draw
