"""Rule-based rewards (R1, section 2.2.2). A reward is a plain function of a sample; None: it does not apply to it."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

from r1jax.types import Sample

RewardFunction = Callable[[Sample], float | None]


@runtime_checkable
class Grader(Protocol):
    """A reward that is quicker on many samples at once, such as one with processes of its own."""

    overlaps: bool  # whether it may grade while the devices draw; not, when it needs them itself

    def grade(self, samples: Sequence[Sample]) -> list[float | None]: ...


@dataclass(frozen=True)
class Reward:
    """A term of the total reward. Weight 0 only watches."""

    function: RewardFunction | Grader
    weight: float

    def grade(self, samples: Sequence[Sample]) -> list[float | None]:
        """Unweighted."""
        if isinstance(self.function, Grader):
            return self.function.grade(samples)
        return [self.function(sample) for sample in samples]

    @property
    def overlaps(self) -> bool:
        """Whether it may grade while the devices draw other outputs."""
        return not isinstance(self.function, Grader) or self.function.overlaps


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


def canonical(answer: str) -> str:
    """Integers without sign noise and leading zeros ("+07" is "7"); anything else as it stands."""
    return str(int(answer)) if re.fullmatch(r"[+-]?[0-9]{1,18}", answer) else answer


def language_consistency_reward(lexicons: Mapping[str, frozenset[str]]) -> RewardFunction:
    """Words of the problem's language / words of any language, in the thinking (R1, section 2.3.2); 0 without such.

    `lexicons` holds each language's words; words in none of them (numbers, names) don't count.
    """

    def reward(sample: Sample) -> float:
        counts = language_words(sample.text, lexicons)
        return counts[sample.problem.language] / max(sum(counts.values()), 1)

    return reward


def language_mix_reward(lexicons: Mapping[str, frozenset[str]]) -> RewardFunction:
    """1 when the thinking has words of more than one language, else 0: a measure to watch."""

    def reward(sample: Sample) -> float:
        return float(sum(count > 0 for count in language_words(sample.text, lexicons).values()) > 1)

    return reward


def language_words(response: str, lexicons: Mapping[str, frozenset[str]]) -> dict[str, int]:
    """How many words of each language the thinking has: what stands before </think>, or all of an untagged response."""
    words = response.split("</think>")[0].split()
    return {language: sum(word in lexicon for word in words) for language, lexicon in lexicons.items()}


def grade(rewards: Mapping[str, Reward], samples: Sequence[Sample]) -> list[Sample]:
    """The samples with each reward's own value, unweighted, by name."""
    columns = {name: reward.grade(samples) for name, reward in rewards.items()}
    return [replace(s, rewards={name: column[i] for name, column in columns.items()}) for i, s in enumerate(samples)]


def total(rewards: Mapping[str, Reward], values: Mapping[str, float | None]) -> float:
    """The weighted sum that RL maximises; what does not apply adds nothing."""
    return sum(reward.weight * (values[name] or 0.0) for name, reward in rewards.items())


def unverified(rewards: Mapping[str, Reward], samples: Sequence[Sample]) -> list[bool]:
    """Whether a verifier that counts failed on a sample of a group: it has no value, though others of the group do."""
    verifiers = [
        name
        for name, reward in rewards.items()
        if reward.weight and isinstance(reward.function, Grader) and any(s.rewards[name] is not None for s in samples)
    ]
    return [any(sample.rewards[name] is None for name in verifiers) for sample in samples]


def totals(rewards, samples):
    return [total(rewards, s.rewards) for s in samples]


def failure_counts(rewards):
    return {}
