"""What a stage has to know of a task."""

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from r1jax.data import running_sum
from r1jax.data.tokenizer import Tokenizer
from r1jax.errors import UsageError
from r1jax.types import Problem


@dataclass(frozen=True)
class Task:
    name: str
    tokenizer: Tokenizer
    prompt: Callable[[str], str]  # a question in the dialogue template
    problems: Callable[[str, int], Iterator[Problem]]  # (split, seed) -> endless stream
    lexicons: Mapping[str, frozenset[str]]  # each language's words
    corpus: str  # seqio task of the base model's documents
    prompts: str  # seqio task of the RL problems

    def held_out(self, count: int, seed: int) -> list[Problem]:
        return list(itertools.islice(self.problems("test", seed), count))


TASKS = {
    "running_sum": Task(
        name="running_sum",
        tokenizer=running_sum.TOKENIZER,
        prompt=running_sum.prompt,
        problems=running_sum.problems,
        lexicons=running_sum.LANGUAGES,
        corpus="running_sum_corpus",
        prompts="running_sum_problems",
    )
}


def get_task(name: str) -> Task:
    if name not in TASKS:
        raise UsageError(f"no task '{name}': there are {', '.join(sorted(TASKS))}")
    return TASKS[name]
