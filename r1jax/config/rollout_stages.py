"""The stages that draw responses without training on them: evaluation, rejection sampling, preferences."""

from dataclasses import dataclass

from r1jax.config.checks import require_choice, require_positive, require_types
from r1jax.config.rollout import EngineConfig, SamplingConfig


@dataclass(frozen=True)
class _DrawConfig:
    """`samples_per_prompt` responses to each of `num_prompts` problems."""

    sampling: SamplingConfig
    engine: EngineConfig
    num_prompts: int
    samples_per_prompt: int

    def __post_init__(self) -> None:
        require_types(self)
        require_positive(self, "num_prompts", "samples_per_prompt")


@dataclass(frozen=True)
class EvaluateConfig(_DrawConfig):
    """The papers' protocol (R1, section 3): 4 to 64 samples at temperature 0.6 and top-p 0.95, of up to 32,768 tokens.

    Attributes:
      sampling, engine: see their classes; one greedy response to each prompt is drawn besides.
      num_prompts, samples_per_prompt: held-out problems, and responses to each.
      k: of pass@k, beside the powers of two up to samples_per_prompt.
    """

    k: int = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.k <= self.samples_per_prompt:
            raise ValueError(f"k is {self.k}, expected 1 to samples_per_prompt ({self.samples_per_prompt})")


@dataclass(frozen=True)
class RejectionConfig(_DrawConfig):
    """Responses of a policy that are good enough to teach (R1, section 2.3.3): what is drawn, and what is kept.

    A response is kept when it is right, ended by itself, and passes these filters.

    Attributes:
      sampling, engine: see their classes.
      num_prompts, samples_per_prompt: problems, and responses to each.
      shard_prompts: problems of a shard, the unit of resuming and of dividing the work over hosts.
      keep: responses to a problem, at most.
      choose: which of more are kept: the "first" drawn, or the "shortest".
      language: least share of words in the problem's language; that of long texts with names and code is seldom 1.
      longest: most tokens; None is max_new_tokens.
      repetition: largest share of 4-grams that occurred before; 1 is off.
      paragraph_words: most words of a paragraph.
      code_blocks: whether responses may hold blocks of code.
    """

    shard_prompts: int = 256
    keep: int = 4
    choose: str = "first"
    language: float = 0.95
    longest: int | None = None
    repetition: float = 1.0
    paragraph_words: int = 400
    code_blocks: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "shard_prompts", "keep", "paragraph_words")
        if self.longest is not None:
            require_positive(self, "longest")
        require_positive(self.sampling, "temperature", why=": samples of one prompt would be the same")
        require_choice(self, "choose", ("first", "shortest"))
        for name in ("language", "repetition"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}, expected a share from 0 to 1")


@dataclass(frozen=True)
class PreferencesConfig(_DrawConfig):
    """Rated responses of policies, which reward models learn from (R1, supplement).

    Attributes:
      sampling, engine: see their classes.
      num_prompts, samples_per_prompt: problems, and responses of each policy to each.
      pairs_per_prompt: preference pairs of a problem, at most.
      min_difference: between the ratings of a pair (R1: more than 1 of 10).
    """

    pairs_per_prompt: int = 2
    min_difference: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "pairs_per_prompt", "min_difference")
        require_positive(self.sampling, "temperature", why=": samples of one prompt would be the same")
