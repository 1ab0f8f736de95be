"""An environment that ends its process. The module imports little, since each process imports it."""

import os
import time
from pathlib import Path

from r1jax.types import Problem, Step


class EndsItsProcess:
    """Ends its process the first time that it is asked, if no file is named `problem.answer`; and can't be closed."""

    def reset(self, problem: Problem, seed: int) -> None:
        self.path = Path(problem.answer)

    def step(self, turn: str) -> Step:
        if turn == "loop":
            while True:
                pass
        if turn == "sleep":
            time.sleep(1000)
        if turn == "slow":
            raise TimeoutError("slow")
        if turn == "exit":
            raise SystemExit(3)
        if not self.path.exists():
            self.path.touch()
            os._exit(1)
        return Step(turn)

    def close(self) -> None:
        raise SystemExit("can't be closed")


class MakesThem:
    """Makes them by being called."""

    def __call__(self) -> EndsItsProcess:
        return EndsItsProcess()
