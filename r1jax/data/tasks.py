"""What a stage has to know of a task."""

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from etils import epath

from r1jax.data.published_tokenizer import PublishedTokenizer, load_tokenizer
from r1jax.data.sources import Source
from r1jax.data.tokenizer import Tokenizer
from r1jax.data.toy import running_sum
from r1jax.errors import UsageError
from r1jax.parallel.hosts import is_main_process
from r1jax.types import Problem


@dataclass(frozen=True)
class Task:
    name: str
    tokenizer: Tokenizer
    prompt: Callable[[str], str]  # a question in the dialogue template
    problems: Callable[[str, int], Iterator[Problem]]  # (split, seed) -> a generator's endless stream, or a file's
    lexicons: Mapping[str, frozenset[str]] = field(default_factory=dict)  # each language's words, where it has a list
    corpus: str = ""  # seqio task of the base model's documents, where the base is made here
    prompts: str = ""  # seqio task of the RL problems; others are asked for by their sources (data/feeds.py)

    def held_out(self, count: int, seed: int) -> list[Problem]:
        """`count` problems, or all where a file has fewer."""
        return list(itertools.islice(self.problems("test", seed), count))

    def save_tokenizer(self, stage: epath.Path) -> None:
        """Puts a published tokenizer beside a stage's checkpoints; one of ours is found by the task's name."""
        if isinstance(self.tokenizer, PublishedTokenizer) and is_main_process():
            (stage / "tokenizer").mkdir(exist_ok=True)
            self.tokenizer.save(stage / "tokenizer")


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


R1_ZERO = """\
A user and an assistant talk. The user asks a question, and the assistant solves it. The assistant first reasons about \
the question in its mind, and then gives the user the answer. The reasoning stands within <think> </think> tags and \
the answer within <answer> </answer> tags: <think> the reasoning </think> <answer> the answer </answer>.
User: {question}
Assistant:"""


def r1_zero_prompt(question: str) -> str:
    """R1-Zero's dialogue (R1, table 1): it asks for a form, and says nothing of how to reason."""
    return R1_ZERO.format(question=question)


def text_task(
    name: str, tokenizer_directory: epath.Path, problems: Callable[[str, int], Iterator[Problem]] | None = None
) -> Task:
    """Problems in plain text, asked in R1-Zero's dialogue of a model with a published tokenizer.

    `problems` is a source's; None: the generator's that is called `name`. Raises UsageError when the directory has no
    tokenizer, or one whose first token can't be written in a text.
    """
    tokenizer = load_tokenizer(tokenizer_directory)
    if tokenizer is None:
        raise UsageError(f"{tokenizer_directory} has no tokenizer.json: set the directory of a published tokenizer")
    begin = tokenizer.bos if tokenizer.begins_with_bos else ""
    if begin and tokenizer.encode(begin + r1_zero_prompt(""))[0] != tokenizer.bos_id:
        raise UsageError(f"{tokenizer_directory}: '{begin}' in a text is not its token: set one with a tokenizer.json")
    return Task(name, tokenizer, lambda question: begin + r1_zero_prompt(question), problems or Source(name).problems)


def get_task(name: str) -> Task:
    if name not in TASKS:
        raise UsageError(f"no task '{name}': there are {', '.join(sorted(TASKS))}")
    return TASKS[name]
