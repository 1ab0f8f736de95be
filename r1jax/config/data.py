"""Inputs of a run: files, generators, other runs."""

import json
from dataclasses import dataclass, field

from r1jax.config.checks import require_choice, require_positive, require_types


@dataclass(frozen=True)
class DemonstrationsConfig:
    """A file of demonstrations, a JSON object a line.

    Attributes:
      path: the file.
      question, summary: their columns.
      reasoning: its column; None: responses are the summary alone, without tags.
    """

    path: str
    question: str = "question"
    reasoning: str | None = "reasoning"
    summary: str = "summary"

    def __post_init__(self) -> None:
        require_types(self)


@dataclass(frozen=True)
class PreferenceFileConfig:
    """A file of preferences, a JSON object a line: pairs of responses, or single responses that are safe or not.

    Attributes:
      path: the file.
      question: its column.
      chosen, rejected: the columns of pairs.
      response, safe: the columns of single responses; safe is true or false.
    """

    path: str
    question: str = "question"
    chosen: str = "chosen"
    rejected: str = "rejected"
    response: str = "response"
    safe: str = "safe"

    def __post_init__(self) -> None:
        require_types(self)


@dataclass(frozen=True)
class FinishedRunConfig:
    """Another run, whose stages are inputs.

    Attributes:
      path: its workdir.
    """

    path: str

    def __post_init__(self) -> None:
        require_types(self)


@dataclass(frozen=True)
class ExamplesConfig:
    """How much is made of data that a generator writes.

    Attributes:
      examples: their number.
    """

    examples: int

    def __post_init__(self) -> None:
        require_types(self)
        require_positive(self, "examples")


@dataclass(frozen=True)
class JsonlConfig:
    """A file of problems, a JSON object a line; `gin_configs/data/` has the columns of published ones.

    Attributes:
      path: the file.
      question: the column of the question.
      answer: the column that has the answer.
      answer_form: "plain": the whole column; "hashes": what follows its last ####; "boxed": in its last \\boxed{}.
      language: that the questions are asked in.
    """

    path: str
    question: str = "question"
    answer: str = "answer"
    answer_form: str = "plain"
    language: str = "en"

    def __post_init__(self) -> None:
        require_types(self)
        require_choice(self, "answer_form", ("plain", "hashes", "boxed"))


@dataclass(frozen=True)
class PromptConfig:
    """How a published model is asked. Checkpoints keep it, so that `generate`, `chat` and `eval` ask alike.

    Attributes:
      template: "dialogue", R1-Zero's (data/tasks.py); "chat", the tokenizer's own; "plain", the question alone.
      question: the text of a question in the template; {question} stands for the problem's own.
      system: with "chat", a message that precedes the question; "" for none.
      answer: where rewards find the answer of a response: "marked", in <answer> tags, in a LaTeX box or after ####;
        "last_number", the last number in it.
    """

    template: str = "dialogue"
    question: str = "{question}"
    system: str = ""
    answer: str = "marked"

    def __post_init__(self) -> None:
        require_types(self)
        require_choice(self, "template", ("dialogue", "chat", "plain"))
        require_choice(self, "answer", ("marked", "last_number"))
        if "{question}" not in self.question:
            raise ValueError(f"question is {self.question!r}, expected text with {{question}} in it")
        if self.system and self.template != "chat":
            raise ValueError(f"system is {self.system!r}, but template '{self.template}' has none: set 'chat'")


@dataclass(frozen=True)
class ReasoningGymConfig:
    """Problems of one generator of reasoning-gym.

    Attributes:
      dataset: its name there, such as "chain_sum".
      settings: fields of its config, such as {"max_terms": 3}; the library has defaults for the others.
    """

    dataset: str
    settings: dict = field(default_factory=dict)

    def __post_init__(self) -> None:
        require_types(self)
        try:
            is_json = json.loads(json.dumps(self.settings)) == self.settings
        except (TypeError, ValueError):
            is_json = False
        if not is_json:  # they travel to other processes
            raise ValueError(f"settings is {self.settings}, expected values of JSON (lists instead of tuples)")


@dataclass(frozen=True)
class GeneratedConfig:
    """Problems that generators draw, as many of each; train and held-out ones never overlap.

    Attributes:
      names: of this project's generators, such as "countdown" (data/sources.py).
      datasets: configs of reasoning-gym's; gin lists them as @SCOPE/ReasoningGymConfig().
    """

    names: tuple[str, ...] = ()
    datasets: tuple[ReasoningGymConfig, ...] = ()

    def __post_init__(self) -> None:
        require_types(self)
        if not self.names and not self.datasets:
            raise ValueError("names and datasets are (), expected one generator or more")


@dataclass(frozen=True)
class RewardConfig:
    """Weights of an experiment's rewards; accuracy has weight 1.

    Attributes:
      format_weight: of the format reward (R1-Zero, section 2.2.2: the same as accuracy's). 0 where the prompt asks for
        no tags: an imported base is then not graded by them, and demonstrations need none.
    """

    format_weight: float = 1.0

    def __post_init__(self) -> None:
        require_types(self)
