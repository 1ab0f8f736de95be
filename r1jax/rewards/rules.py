"""Rule-based rewards (R1, section 2.2.2). A reward is a function of a sample, and None where it doesn't apply."""

import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, pstdev
from typing import Any, Protocol, TypeVar, runtime_checkable

from r1jax.errors import RunError, UsageError
from r1jax.rewards.words import Words, is_empty, read_words
from r1jax.types import ROUNDING, Sample

RewardFunction = Callable[[Sample], float | None]
F = TypeVar("F", bound=RewardFunction)
DEVIATION_EPSILON = 1e-6  # matters only for deviations of about this size


@runtime_checkable
class Grader(Protocol):
    """A reward that grades many samples at once, such as a verifier with processes of its own; None: it failed."""

    def grade(self, samples: Sequence[Sample]) -> list[float | None]: ...


@dataclass(frozen=True)
class Reward:
    """A term of the total reward.

    Attributes:
      function: (Sample) -> float, or None where it does not apply; or a verifier, which grades many at once.
      weight: of its value in the total; with 0 it is only logged.
      sources: grades samples of these sources; None: of all.
      normalise: scales each group's values to mean 0 and deviation 1 before weighting.
    """

    function: RewardFunction | Grader
    weight: float
    sources: tuple[str, ...] | None = None
    normalise: bool = False

    def grade(self, samples: Sequence[Sample]) -> list[float | None]:
        """Unweighted values; None for samples of other sources, and where the function returns None."""
        indices = [i for i, s in enumerate(samples) if self.applies(s)]
        own = [samples[i] for i in indices]
        if isinstance(self.function, Grader):
            graded = [number(value, s) for value, s in zip(self.function.grade(own), own, strict=True)]
        else:
            graded = [evaluate(self.function, s) for s in own]
        values = dict(zip(indices, graded, strict=True))
        return [values.get(i) for i in range(len(samples))]

    def applies(self, sample: Sample) -> bool:
        """Whether the sample is from one of `sources`."""
        return self.sources is None or sample.problem.source in self.sources

    def verifies(self, sample: Sample) -> bool:
        """Whether a verifier grades the sample, whose None is a failure; a function's None says "does not apply"."""
        if isinstance(self.function, BySource):
            return any(reward.verifies(sample) for reward in self.function.rewards)
        return self.applies(sample) and isinstance(self.function, Grader)

    def terms(self, values: Sequence[float | None], valid: Sequence[bool]) -> list[float]:
        """What a group's values add to its totals: weight * value, 0 for None.

        With `normalise`, value is (value - mean) / standard deviation, so that terms have one scale (GDPO, arXiv
        2601.05242, without its second normalisation, over the batch). The statistics are of the `valid` samples with a
        value, and differences within `ROUNDING` give 0.
        """
        applicable = [value for value, is_valid in zip(values, valid, strict=True) if value is not None and is_valid]
        centre, scale = 0.0, 1.0
        if self.normalise and applicable:
            differ = max(applicable) - min(applicable) > ROUNDING
            centre, scale = mean(applicable), pstdev(applicable) + DEVIATION_EPSILON if differ else math.inf
        return [0.0 if value is None else self.weight * ((value - centre) / scale) for value in values]

    def answer(self, sample: Sample) -> str | None:
        """The sample's answer as the function reads it, None without one. Equal answers are one vote."""
        return getattr(self.function, "answer", read_answer)(sample)

    @property
    def failures(self) -> Mapping[str, int]:
        """Failures of the verifier since it was made, by kind; a plain function has none."""
        return getattr(self.function, "failures", {})

    @property
    def learned(self) -> tuple[Any, ...]:
        """The directories of its reward models; empty for a rule."""
        if isinstance(self.function, BySource):
            return tuple(path for reward in self.function.rewards for path in reward.learned)
        return (self.function.checkpoint,) if hasattr(self.function, "checkpoint") else ()

    @property
    def settings(self) -> dict[str, Any]:
        """The fields that a stage's config record keeps."""
        return {"weight": self.weight, "sources": self.sources, "normalise": self.normalise}

    @property
    def notice(self) -> str:
        """A line for the run's log, such as a sandbox's isolation; "" for none."""
        return getattr(self.function, "notice", "")

    @property
    def overlaps(self) -> bool:
        """Whether it can grade during the rollout; False for a function that needs the devices itself."""
        return getattr(self.function, "overlaps", True)


FORMAT = re.compile(r"\s*<think>(?P<thinking>.*)</think>\s*<answer>(?P<answer>.*)</answer>\s*", re.DOTALL)
ANSWER_WORDS, ANSWER_LETTERS = 3, 40
NEUTRAL_PER_WORD = 60  # of numbers, variables and signs in reasoning; pages of formulas have up to 50
TAGS = ("<think>", "</think>", "<answer>", "</answer>")


def parse_answer(response: str) -> str | None:
    """The answer of a response that is exactly `<think> … </think> <answer> … </answer>`, each tag once, else None.

    It is "" where nobody sees anything of it. Thinking may be empty, but not pretended with invisible characters.
    """
    match = FORMAT.fullmatch(response) if all(response.count(tag) == 1 for tag in TAGS) else None
    if match is None or (match["thinking"].strip() and is_empty(match["thinking"])):
        return None
    return "" if is_empty(match["answer"]) else match["answer"].strip()


def format_reward(sample: Sample) -> float:
    """1 when the response has the form of `parse_answer` and a non-empty answer, else 0."""
    return float(bool(parse_answer(sample.text)))


def accuracy_reward(sample: Sample) -> float:
    """1 when the response has the form of `parse_answer` and its whole answer is `problem.answer`, else 0."""
    answer = parse_answer(sample.text)
    return float(answer is not None and canonical(answer) == canonical(sample.problem.answer))


def read_answer(sample: Sample) -> str | None:
    """The answer as `accuracy_reward` compares it, None without one."""
    answer = parse_answer(sample.text)
    return canonical(answer) if answer else None


def answered_by(read: Callable[[Sample], str | None]) -> Callable[[F], F]:
    """Decorates a reward function that reads answers by another function than `read_answer`.

    Samples with equal answers must get equal rewards, since a majority is graded by any one of its samples.
    """

    def decorate(function: F) -> F:
        function.answer = read  # type: ignore[attr-defined]
        return function

    return decorate


def canonical(answer: str) -> str:
    """Integers without plus sign and leading zeros ("+07" is "7"); any other text unchanged."""
    return str(int(answer)) if re.fullmatch(r"[+-]?[0-9]{1,18}", answer) else answer


def language_consistency_reward(lexicons: Mapping[str, frozenset[str]]) -> RewardFunction:
    """Returns a reward in [0, 1]: the share of the reasoning's words in the problem's language (R1, section 2.3.2).

    `lexicons` maps languages to their words, letter by letter; all other words are foreign. The reward is for
    vocabularies that are known as a whole, and None for a problem in a language without a lexicon.
    """

    def reward(sample: Sample) -> float | None:
        lexicon = lexicons.get(sample.problem.language)
        if lexicon is None:
            return None
        parts = read_reasoning(sample.text, formulas=False)
        return consistency(parts, lambda words: sum(word in lexicon for word in words))

    return reward


def language_mix_reward(lexicons: Mapping[str, frozenset[str]]) -> RewardFunction:
    """Returns a reward to log: 1 when the reasoning has words of more than one language, else 0."""

    def reward(sample: Sample) -> float:
        words = {word for part in read_reasoning(sample.text, formulas=False) for word in part.words}
        return float(sum(not words.isdisjoint(lexicon) for lexicon in lexicons.values()) > 1)

    return reward


def consistency(parts: tuple[Words, Words], count: Callable[[list[str]], float]) -> float:
    """The share of words in a language, of which `count` gives the number; 0 for thinking without words.

    The parts are what was thought and what was reasoned outside, which can lower the share and not raise it. So do
    numbers and signs beyond `NEUTRAL_PER_WORD`.
    """
    thinking, outside = parts
    number, inside = len(thinking.words), count(thinking.words)
    if not number:
        return 0.0
    share = min(inside / number, (inside + count(outside.words)) / (number + len(outside.words)))
    neutral = thinking.neutral + outside.neutral
    return share * min(1.0, NEUTRAL_PER_WORD * (number + len(outside.words)) / max(neutral, 1))


def read_reasoning(response: str, formulas: bool = True) -> tuple[Words, Words]:
    """The words before </think>, or of all of an untagged response, and those behind it.

    Of what is behind, an answer of up to `ANSWER_WORDS` words, numbers and variables, with up to `ANSWER_LETTERS`
    letters in words, has no words: it may be a name.
    """
    thinking, _, outside = response.partition("</think>")
    words = read_words(outside, formulas)
    is_answer = len(words.words) + words.neutral <= ANSWER_WORDS and sum(map(len, words.words)) <= ANSWER_LETTERS
    return read_words(thinking, formulas), Words([], 0) if is_answer else words


def environment_reward(sample: Sample) -> float:
    """The sum of what an environment gave for each turn."""
    return sum(turn.reward or 0.0 for turn in sample.turns)


def length_penalty(free: int, longest: int) -> RewardFunction:
    """Returns a reward in [-1, 0]: -(tokens - free) / (longest - free), clipped (DAPO, arXiv 2503.14476, equation 13).

    `overlong_buffer` is the same at the generation limit; this one takes any lengths, and applies by source. Weight it
    less than accuracy, since short wrong outputs have no penalty.
    """
    if not 0 <= free < longest:
        raise UsageError(f"length_penalty: free is {free} and longest {longest}; expected 0 <= free < longest")
    return lambda sample: -min(max((len(sample.response_tokens) - free) / (longest - free), 0.0), 1.0)


def repetition_penalty(n: int) -> RewardFunction:
    """Returns a reward in (-1, 0]: distinct n-grams of tokens / all n-grams - 1, and 0 below n tokens.

    It is open-r1's form of the repetition penalty in arXiv 2502.03373, appendix C.2, on tokens instead of words.
    """
    if n < 1:
        raise UsageError(f"repetition_penalty: n is {n}; expected 1 or more")

    def penalty(sample: Sample) -> float:
        tokens = sample.response_tokens
        ngrams = list(zip(*(tokens[i:] for i in range(n)), strict=False))
        return len(set(ngrams)) / len(ngrams) - 1 if ngrams else 0.0

    return penalty


def evaluate(function: RewardFunction, sample: Sample) -> float | None:
    """The function's value of a sample. Raises RunError, with the sample, when it raises."""
    try:
        value = function(sample)
    except (UsageError, RunError):
        raise
    except Exception as error:  # a fork's function may raise anything
        raise RunError(f"it raised {type(error).__name__} on {_place(sample)}: {error}") from error
    return number(value, sample)


def number(value: Any, sample: Sample) -> float | None:
    """A value as a float, from any library's scalars. Raises RunError, with the sample, for anything but a number."""
    try:
        found = None if value is None else float(value)
    except (TypeError, ValueError) as error:
        raise RunError(f"its value on {_place(sample)} is {value!r:.100}, expected a number or None") from error
    if found is not None and not math.isfinite(found):
        raise RunError(f"its value on {_place(sample)} is {found}, expected a finite number or None")
    return found


def _place(sample: Sample) -> str:
    return f"problem {sample.problem.id}, sample {sample.index} ({sample.text[:60]!r})"


def grade(rewards: Mapping[str, Reward], samples: Sequence[Sample]) -> None:
    """Adds the unweighted values of `rewards` to each sample's, by name; None where one doesn't apply or fails.

    Raises RunError that names the reward and the sample when a reward raises or is not a finite number.
    """
    columns: dict[str, list[float | None]] = {}
    for name, reward in rewards.items():
        try:
            columns[name] = reward.grade(samples)
        except RunError as error:
            raise RunError(f"reward '{name}': {error}") from error
    for i, sample in enumerate(samples):
        sample.rewards = {**sample.rewards, **{name: column[i] for name, column in columns.items()}}


def totals(rewards: Mapping[str, Reward], samples: Sequence[Sample], valid: Sequence[bool] = ()) -> list[float]:
    """Each sample's weighted sum of rewards, for one group; `valid` marks the samples of its statistics ((): all)."""
    valid = valid or [True] * len(samples)
    terms = [reward.terms([sample.rewards[name] for sample in samples], valid) for name, reward in rewards.items()]
    return [sum(term[i] for term in terms) for i in range(len(samples))]


def learned_inputs(rewards: Mapping[str, Reward]) -> dict[str, Any]:
    """The directories of the rewards' models, by the names of a stage's inputs."""
    named = {name: reward.learned for name, reward in rewards.items()}
    return {name if len(paths) == 1 else f"{name}.{i}": p for name, paths in named.items() for i, p in enumerate(paths)}


def failure_counts(rewards: Mapping[str, Reward]) -> dict[str, float]:
    """Failures of all verifiers since they were made, for the log: {"accuracy_timeouts": 2.0}."""
    return {f"{name}_{kind}": float(n) for name, reward in rewards.items() for kind, n in reward.failures.items()}


def unverified(rewards: Mapping[str, Reward], samples: Sequence[Sample]) -> list[bool]:
    """For each sample, whether a verifier (a `Grader` with a weight) that applies to it failed."""
    weighted = {name: reward for name, reward in rewards.items() if reward.weight}
    return [any(s.rewards[name] is None and r.verifies(s) for name, r in weighted.items()) for s in samples]


def ungraded(rewards: Mapping[str, Reward], samples: Sequence[Sample]) -> list[bool]:
    """For each sample, whether it has no value of any reward with a weight."""
    weighted = [name for name, reward in rewards.items() if reward.weight]
    return [bool(weighted) and all(s.rewards[name] is None for name in weighted) for s in samples]


class BySource:
    """Grades each sample by the function of its source; None for other sources."""

    def __init__(self, functions: Mapping[str, RewardFunction | Grader]):
        self.rewards = [Reward(function, 1.0, sources=(source,)) for source, function in functions.items()]
        self.overlaps = all(reward.overlaps for reward in self.rewards)

    @property
    def notice(self) -> str:
        return "; ".join(reward.notice for reward in self.rewards if reward.notice)

    @property
    def failures(self) -> Counter[str]:
        total: Counter[str] = Counter()
        for reward in self.rewards:
            total.update(reward.failures)  # keeps kinds that have not occurred, where a sum drops them
        return total

    def answer(self, sample: Sample) -> str | None:
        return next((reward.answer(sample) for reward in self.rewards if reward.applies(sample)), None)

    def grade(self, samples: Sequence[Sample]) -> list[float | None]:
        columns = [reward.grade(samples) for reward in self.rewards]
        return [next((value for value in values if value is not None), None) for values in zip(*columns, strict=True)]


def by_source(functions: Mapping[str, RewardFunction | Grader], weight: float) -> Reward:
    """One reward, such as "accuracy", with a function for each source; it doesn't apply to other sources."""
    return Reward(BySource(functions), weight, sources=tuple(functions))
