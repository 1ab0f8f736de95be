"""A rollout that is drawn round by round, while the caller gives the devices other work between the rounds."""

from collections.abc import Callable, Generator
from typing import Generic, TypeVar

from r1jax.errors import RunError

T = TypeVar("T")


class AsyncRollout(Generic[T]):
    """Runs a generator that yields after each round that it gave the devices."""

    def __init__(self, rounds: Generator[None, None, T]):
        self.rounds: Generator[None, None, T] | None = rounds

    def advance(self) -> None:
        """Runs one round, if there is one left; `finish` raises what it raised."""
        if self.rounds is None:
            return
        try:
            next(self.rounds)
        except StopIteration as end:
            self.rounds, self.result = None, end.value
        except RunError as error:
            self.rounds, self.result = None, error

    def finish(self, before_each: Callable[[], None] = lambda: None) -> T:
        """Runs what is left, and returns the generator's value; `before_each` round may raise to stop."""
        while self.rounds is not None:
            before_each()
            self.advance()
        if isinstance(self.result, RunError):
            raise self.result
        return self.result
