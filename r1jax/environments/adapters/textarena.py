"""Games for one player of TextArena (the extra `textarena`)."""

import json
import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from r1jax.environments.adapters import check_question, draw_seeds, load_package
from r1jax.errors import UsageError
from r1jax.types import Problem, Step

LOCK = threading.Lock()  # games draw from the random numbers of the whole process
NOTHING = "Your move."  # the observation where a game says nothing


class TextArenaEnvironment:
    """The game that its problem names. The reward is the game's, with the last turn.

    Observations are what the game says since the last turn, not the transcript that TextArena's wrappers repeat.
    """

    def reset(self, problem: Problem, seed: int) -> None:
        check_question(problem, self.begin(**json.loads(problem.answer)))

    def begin(self, game: str, seed: int, options: dict[str, Any]) -> str:
        """Starts a game; returns its first observation."""
        package = load_package("textarena", "textarena")
        self.random = random.Random(seed).getstate()
        with self.randomness():
            self.game = package.make(game, **options)
            self.game.reset(num_players=1, seed=seed)
        if not isinstance(self.game.state, package.SinglePlayerState):
            raise UsageError(f"'{game}' is a game for several players, expected one for a single player")
        self.own = package.ObservationType.PLAYER_ACTION
        return self.observe()

    def step(self, turn: str) -> Step:
        with self.randomness():
            done, _ = self.game.step(turn)
        if not done:
            return Step(self.observe() or NOTHING)
        rewards, info = self.game.close()
        return Step("\n".join(filter(None, (self.observe(), info[0].get("reason")))), done=True, reward=rewards[0])

    def observe(self) -> str:
        said = self.game.state.get_current_player_observation()
        return "\n".join(str(text).strip() for _, text, kind in said if kind != self.own)

    @contextmanager
    def randomness(self) -> Iterator[None]:
        """Gives the game random numbers that the games in other threads don't draw from."""
        with LOCK:
            outside = random.getstate()
            random.setstate(self.random)
            try:
                yield
            finally:
                self.random = random.getstate()
                random.setstate(outside)


def problems(game: str, **options: Any) -> Callable[[str, int], Iterator[Problem]]:
    """Endless problems of a game such as 'Mastermind-v0'; `options` are its constructor's.

    Raises UsageError, while drawing, without TextArena and for a game of several players.
    """

    def draw(split: str, seed: int) -> Iterator[Problem]:
        for place, number in enumerate(draw_seeds(split, seed)):
            answer: dict[str, Any] = {"game": game, "seed": number, "options": options}
            yield Problem(place, TextArenaEnvironment().begin(**answer), json.dumps(answer), "en", "textarena")

    return draw
