"""Tasks: a tokenizer, a prompt template and a source of problems, as stages need them."""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from etils import epath

from r1jax.config import PromptConfig
from r1jax.data.published_tokenizer import PublishedTokenizer, load_tokenizer
from r1jax.data.sources import Source
from r1jax.data.tokenizer import Tokenizer
from r1jax.data.toy import episodes, running_sum
from r1jax.errors import UsageError
from r1jax.parallel.hosts import is_main_process
from r1jax.types import Environment, Environments, Problem


@dataclass(frozen=True)
class Task:
    name: str
    tokenizer: Tokenizer
    prompt: Callable[[str], str]  # a question in the dialogue template
    problems: Callable[[str, int], Iterator[Problem]]  # (split, seed) -> the problems of `Source.problems`
    lexicons: Mapping[str, frozenset[str]] = field(default_factory=dict)  # words of each language
    corpus: str = ""  # seqio task of the base model's documents; "" for a published base
    prompts: str = ""  # seqio task of the RL problems; "" when they are `Records` of sources (data/feeds.py)
    template: PromptConfig | None = None  # how `prompt` asks; None: in the words of a task in TASKS
    validation: Sequence[Problem] = ()  # held-out problems between the steps of RL
    environments: Environments | None = None  # what answers the policy between its turns; None: it has one turn

    def held_out(self, count: int, seed: int) -> list[Problem]:
        """The first `count` problems of the test split, or all of a file that has fewer."""
        return list(itertools.islice(self.problems("test", seed), count))

    def save_tokenizer(self, stage: epath.Path) -> None:
        """Saves a published tokenizer with the stage's checkpoints; tasks in TASKS are loaded by name instead."""
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
} | {
    name: Task(name, episodes.TOKENIZER, episodes.prompt, problems, corpus=f"{name}_corpus", prompts=f"{name}_problems")
    for name, problems in {"tool_sums": episodes.sums, "higher_lower": episodes.games}.items()
}


DIALOGUE = PromptConfig()
R1_ZERO = """\
A user and an assistant talk. The user asks a question, and the assistant solves it. The assistant first reasons about \
the question in its mind, and then gives the user the answer. The reasoning stands within <think> </think> tags and \
the answer within <answer> </answer> tags: <think> the reasoning </think> <answer> the answer </answer>.
User: {question}
Assistant:"""


def r1_zero_prompt(question: str) -> str:
    """The question in a paraphrase of R1-Zero's template (R1, table 1), which asks for tags, not for a way to reason.

    As in the paper, the text names both roles, the order of thinking and answering, and the tags. The wording differs,
    each turn has a line of its own, and the example of the form has other placeholders.
    """
    return R1_ZERO.format(question=question)


def text_task(
    name: str,
    tokenizer_directory: epath.Path,
    problems: Callable[[str, int], Iterator[Problem]] | None = None,
    template: PromptConfig = DIALOGUE,
    *,
    environment: Callable[[], Environment] | None = None,
    tools: Sequence[dict] = (),
) -> Task:
    """A task in plain text with a published tokenizer.

    `problems` defaults to the generator called `name`. `environment` makes what answers a sample between its turns; a
    chat template shows `tools`, the JSON schemas of functions (environments/tools.py).

    Raises UsageError when the directory has no tokenizer, one that doesn't encode its begin token from text, or one
    without the chat template that `template` asks for.
    """
    tokenizer = load_tokenizer(tokenizer_directory)
    if tokenizer is None:
        raise UsageError(f"{tokenizer_directory} has no tokenizer.json: set tokenizer_directory to one that has")
    begin, ids = "".join(tokenizer.begin), tokenizer.begin_ids
    if tokenizer.encode(begin + r1_zero_prompt(""))[: len(ids)] != ids:
        raise UsageError(f"{tokenizer_directory}: '{begin}' isn't encoded as bos_token: use one with a tokenizer.json")

    def prompt(question: str) -> str:
        text = template.question.replace("{question}", question)
        if template.template == "chat":
            messages = chat_messages(template, [{"role": "user", "content": question}])
            return tokenizer.chat(messages, tools=list(tools) or None)
        return begin + (r1_zero_prompt(text) if template.template == "dialogue" else text)

    prompt("")  # raises when the tokenizer has no chat template
    environments = None if environment is None else Environments(environment, observation_encoder(tokenizer, template))
    return Task(
        name, tokenizer, prompt, problems or Source(name).problems, template=template, environments=environments
    )


def observation_encoder(tokenizer: PublishedTokenizer, template: PromptConfig) -> Callable[[str], list[int]]:
    """Encodes what an environment says; in a chat template as a tool's message, behind which the policy goes on.

    The template's own text between two turns is found by rendering a conversation with marks in it.
    """
    if template.template != "chat":
        return tokenizer.encode_plain
    said, observed = "said-by-the-policy", "observed-by-the-policy"
    roles = {"user": "?", "assistant": said, "tool": observed}
    text = tokenizer.chat([{"role": role, "content": content} for role, content in roles.items()])
    if said not in text or observed not in text.partition(said)[2]:
        raise UsageError(
            "the chat template leaves out messages of the role 'tool': set PromptConfig.template = 'plain'"
        )
    before, _, after = text.partition(said)[2].partition(observed)
    for end in (tokenizer.decode([i]) for i in tokenizer.eos_ids):  # drawn by the policy
        if before.startswith(end):
            before = before.removeprefix(end)
            break
    before_ids, after_ids = tokenizer.encode(before), tokenizer.encode(after)
    return lambda observation: [*before_ids, *tokenizer.encode_plain(observation), *after_ids]


def chat_messages(template: PromptConfig, messages: Sequence[dict[str, str]]) -> list[dict[str, str]]:
    """The messages as `template` words them: the system's first, each of the user's in `template.question`."""
    system = [{"role": "system", "content": template.system}] if template.system else []
    worded = [
        message | {"content": template.question.replace("{question}", message["content"])}
        if message["role"] == "user"
        else message
        for message in messages
    ]
    return system + worded
