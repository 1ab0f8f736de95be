"""Rule-based rewards (R1, section 2.2.2). A reward is a plain function of a sample; None: it does not apply to it."""

import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import mean, pstdev
from typing import Any, Protocol, TypeVar, runtime_checkable

from r1jax.errors import UsageError
from r1jax.types import Sample

RewardFunction = Callable[[Sample], float | None]
F = TypeVar("F", bound=RewardFunction)
DEVIATION_EPSILON = 1e-6  # decides only how values that differ by about as much are treated: equal ones give 0
ROUNDING = 1e-6  # values that differ by less are the same: a model's scores are float32


@runtime_checkable
class Grader(Protocol):
    """A reward that is quicker on many samples at once, such as one with processes of its own."""

    def grade(self, samples: Sequence[Sample]) -> list[float | None]: ...


@dataclass(frozen=True)
class Reward:
    """A term of the total reward. Weight 0 only watches."""

    function: RewardFunction | Grader
    weight: float
    sources: tuple[str, ...] | None = None  # it sees samples of these sources only; None: of all
    normalise: bool = False  # each group's values to mean 0 and deviation 1, before they are weighted

    def grade(self, samples: Sequence[Sample]) -> list[float | None]:
        """Unweighted, as they are logged."""
        seen = [i for i, s in enumerate(samples) if self.applies(s)]
        asked = [samples[i] for i in seen]
        graded = self.function.grade(asked) if isinstance(self.function, Grader) else map(self.function, asked)
        values = dict(zip(seen, graded, strict=True))
        return [values.get(i) for i in range(len(samples))]

    def applies(self, sample: Sample) -> bool:
        """Whether the sample is of its sources."""
        return self.sources is None or sample.problem.source in self.sources

    def terms(self, values: Sequence[float | None], counts: Sequence[bool]) -> list[float]:
        """What a group's values add to its totals; what does not apply, or count, adds to no mean.

        Normalised: (value - mean) / deviation, so that no term drowns another (GDPO, arXiv 2601.05242, without its
        second normalisation over the batch; population standard deviation). Rounding is no difference.
        """
        applicable = [value for value, counted in zip(values, counts, strict=True) if value is not None and counted]
        centre, scale = 0.0, 1.0
        if self.normalise and applicable:
            differ = max(applicable) - min(applicable) > ROUNDING
            centre, scale = mean(applicable), pstdev(applicable) + DEVIATION_EPSILON if differ else math.inf
        return [0.0 if value is None else self.weight * ((value - centre) / scale) for value in values]

    def answer(self, sample: Sample) -> str | None:
        """What the sample answers, as its function reads it; None: nothing. Equal answers are one vote."""
        return getattr(self.function, "answer", read_answer)(sample)

    @property
    def failures(self) -> Mapping[str, int]:
        """How often a verifier gave no verdict, by kind, since it was made; a plain function never fails."""
        return getattr(self.function, "failures", {})

    @property
    def learned(self) -> tuple[Any, ...]:
        """The directories of the reward models that it asks; none for a rule."""
        if isinstance(self.function, BySource):
            return tuple(path for reward in self.function.rewards for path in reward.learned)
        return (self.function.checkpoint,) if hasattr(self.function, "checkpoint") else ()

    @property
    def terms_of(self) -> dict[str, Any]:
        """What a stage's config keeps of it."""
        return {"weight": self.weight, "sources": self.sources, "normalise": self.normalise}

    @property
    def notice(self) -> str:
        """What a run has to say of it, as of the isolation that a sandbox reached."""
        return getattr(self.function, "notice", "")

    @property
    def overlaps(self) -> bool:
        """Whether it may grade while the devices draw other outputs; not, if it says that it needs them itself."""
        return getattr(self.function, "overlaps", True)


@dataclass(frozen=True)
class Parts:
    thinking: str
    answer: str


FORMAT = re.compile(r"\s*<think>(?P<thinking>.*)</think>\s*<answer>(?P<answer>.*)</answer>\s*", re.DOTALL)
TAGS = ("<think>", "</think>", "<answer>", "</answer>")


def parse(response: str) -> Parts | None:
    """Thinking and answer of a response that is exactly `<think> … </think> <answer> … </answer>`, each tag once."""
    if any(response.count(tag) != 1 for tag in TAGS):
        return None
    match = FORMAT.fullmatch(response)
    if match is None:
        return None
    return Parts(match["thinking"].strip(), match["answer"].strip())


def format_reward(sample: Sample) -> float:
    """1 when the response has the asked form and a non-empty answer, else 0."""
    parts = parse(sample.text)
    return float(parts is not None and bool(parts.answer))


def accuracy_reward(sample: Sample) -> float:
    """1 when the answer inside the right tags is the right number and nothing else, else 0."""
    parts = parse(sample.text)
    return float(parts is not None and canonical(parts.answer) == canonical(sample.problem.answer))


def read_answer(sample: Sample) -> str | None:
    """What stands inside the right tags, as `accuracy_reward` compares it; None where that is nothing."""
    parts = parse(sample.text)
    return canonical(parts.answer) if parts and parts.answer else None


def answered_by(read: Callable[[Sample], str | None]) -> Callable[[F], F]:
    """Marks a reward function with how it reads an answer, where that is not `read_answer`.

    Samples with equal answers must get equal verdicts: a majority's verdict is that of any of them.
    """

    def mark(function: F) -> F:
        function.answer = read  # type: ignore[attr-defined]
        return function

    return mark


def canonical(answer: str) -> str:
    """Integers without sign noise and leading zeros ("+07" is "7"); anything else as it stands."""
    return str(int(answer)) if re.fullmatch(r"[+-]?[0-9]{1,18}", answer) else answer


def language_consistency_reward(lexicons: Mapping[str, frozenset[str]]) -> RewardFunction:
    """Words of the problem's language / words of any language, in the thinking (R1, section 2.3.2); 0 without such.

    `lexicons` holds each language's words; words in none of them (numbers, names) don't count. None for a problem in
    another language.
    """

    def reward(sample: Sample) -> float | None:
        if sample.problem.language not in lexicons:
            return None
        counts = language_words(sample.text, lexicons)
        return counts[sample.problem.language] / max(sum(counts.values()), 1)

    return reward


def language_mix_reward(lexicons: Mapping[str, frozenset[str]]) -> RewardFunction:
    """1 when the thinking has words of more than one language, else 0: a measure to watch."""

    def reward(sample: Sample) -> float:
        return float(sum(count > 0 for count in language_words(sample.text, lexicons).values()) > 1)

    return reward


def language_words(response: str, lexicons: Mapping[str, frozenset[str]]) -> dict[str, int]:
    """How many words of each language the thinking has."""
    words = read_thinking(response).split()
    return {language: sum(word in lexicon for word in words) for language, lexicon in lexicons.items()}


def read_thinking(response: str) -> str:
    """What stands before </think>, or all of an untagged response."""
    return response.partition("</think>")[0]


def length_penalty(free: int, longest: int) -> RewardFunction:
    """-(tokens - free) / (longest - free), within [-1, 0] (DAPO, arXiv 2503.14476, equation 13).

    `RLConfig.overlong_buffer` is the same at the limit of generation; this one is for any length, and by source. It
    says nothing of what is right: the shortest wrong output has none, so it must weigh less than accuracy.
    """
    if not 0 <= free < longest:
        raise UsageError(f"length_penalty: free is {free} and longest {longest}; expected 0 <= free < longest")
    return lambda sample: -min(max((len(sample.tokens) - free) / (longest - free), 0.0), 1.0)


def repetition_penalty(n: int) -> RewardFunction:
    """-(1 - different n-grams of tokens / all of them); 0 below n tokens.

    The share that open-r1 makes of the repetition penalty in arXiv 2502.03373, appendix C.2, on tokens for words.
    """
    if n < 1:
        raise UsageError(f"repetition_penalty: n is {n}; expected 1 or more")

    def penalty(sample: Sample) -> float:
        ngrams = list(zip(*(sample.tokens[i:] for i in range(n)), strict=False))
        return len(set(ngrams)) / len(ngrams) - 1 if ngrams else 0.0

    return penalty


def grade(rewards: Mapping[str, Reward], samples: Sequence[Sample]) -> list[Sample]:
    """The samples with each reward's own value, unweighted, by name."""
    columns = {name: reward.grade(samples) for name, reward in rewards.items()}
    return [replace(s, rewards={name: column[i] for name, column in columns.items()}) for i, s in enumerate(samples)]


def totals(
    rewards: Mapping[str, Reward], samples: Sequence[Sample], counts: Sequence[bool] | None = None
) -> list[float]:
    """The weighted sums that RL maximises, of the samples of one group; `counts`: those in its statistics, or all."""
    counts = [True] * len(samples) if counts is None else counts
    terms = [reward.terms([sample.rewards[name] for sample in samples], counts) for name, reward in rewards.items()]
    return [sum(term[i] for term in terms) for i in range(len(samples))]


def learned_inputs(rewards: Mapping[str, Reward]) -> dict[str, Any]:
    """The reward models that rewards ask, as inputs of a stage."""
    named = {name: reward.learned for name, reward in rewards.items()}
    return {name if len(paths) == 1 else f"{name}.{i}": p for name, paths in named.items() for i, p in enumerate(paths)}


def failure_counts(rewards: Mapping[str, Reward]) -> dict[str, float]:
    """Failures of all rewards since the start, for the log: {"accuracy_timeouts": 2.0}."""
    return {f"{name}_{kind}": float(n) for name, reward in rewards.items() for kind, n in reward.failures.items()}


def unverified(rewards: Mapping[str, Reward], samples: Sequence[Sample]) -> list[bool]:
    """Whether a verifier (a `Grader`) whose verdict counts has none for a sample that it applies to: it failed."""
    verifiers = {name: r for name, r in rewards.items() if r.weight and isinstance(r.function, Grader)}
    return [any(s.rewards[name] is None and r.applies(s) for name, r in verifiers.items()) for s in samples]


class BySource:
    """A grader for each source, under one name."""

    def __init__(self, functions: Mapping[str, RewardFunction | Grader]):
        self.rewards = [Reward(function, 1.0, sources=(source,)) for source, function in functions.items()]
        self.overlaps = all(reward.overlaps for reward in self.rewards)

    @property
    def notice(self) -> str:
        return "; ".join(reward.notice for reward in self.rewards if reward.notice)

    @property
    def failures(self) -> Counter[str]:
        return sum((Counter(reward.failures) for reward in self.rewards), Counter())

    def answer(self, sample: Sample) -> str | None:
        return next((reward.answer(sample) for reward in self.rewards if reward.applies(sample)), None)

    def grade(self, samples: Sequence[Sample]) -> list[float | None]:
        columns = [reward.grade(samples) for reward in self.rewards]
        return [next((value for value in values if value is not None), None) for values in zip(*columns, strict=True)]


def by_source(functions: Mapping[str, RewardFunction | Grader], weight: float) -> Reward:
    """One reward, "accuracy" say, that each source has its own function for; others' samples it does not apply to."""
    return Reward(BySource(functions), weight, sources=tuple(functions))
