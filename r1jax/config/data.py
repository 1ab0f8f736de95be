"""Inputs of a run: files, generators, other runs."""

from dataclasses import dataclass

from r1jax.config.checks import require_choice, require_positive, require_types


@dataclass(frozen=True)
class DemonstrationsConfig:
    """A file of demonstrations, a JSON object a line."""

    path: str
    question: str = "question"  # the columns
    reasoning: str = "reasoning"
    summary: str = "summary"

    def __post_init__(self) -> None:
        require_types(self)


@dataclass(frozen=True)
class FinishedRunConfig:
    """Another run, whose stages are inputs."""

    path: str  # its workdir

    def __post_init__(self) -> None:
        require_types(self)


@dataclass(frozen=True)
class ExamplesConfig:
    """How much is made of data that a generator writes."""

    examples: int

    def __post_init__(self) -> None:
        require_types(self)
        require_positive(self, "examples")


@dataclass(frozen=True)
class JsonlConfig:
    """A file of problems, a JSON object a line; `gin_configs/data/` has the columns of published ones."""

    path: str
    question: str = "question"  # the column of the question
    answer: str = "answer"  # the column that has the answer
    answer_form: str = "plain"  # the whole column; "hashes": what follows its last ####; "boxed": in its last \boxed{}
    language: str = "en"

    def __post_init__(self) -> None:
        require_types(self)
        require_choice(self, "answer_form", ("plain", "hashes", "boxed"))


@dataclass(frozen=True)
class RewardConfig:
    """Weights of an experiment's rewards; accuracy has weight 1.

    Attributes:
      format_weight: of the format reward (R1-Zero, section 2.2.2: the same as accuracy's).
    """

    format_weight: float = 1.0

    def __post_init__(self) -> None:
        require_types(self)
