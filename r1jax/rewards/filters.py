"""Filters of rejection sampling (R1, section 2.3.3). Dropped samples are counted by the filter's name."""

from collections.abc import Callable, Mapping, Sequence

from r1jax.config import RejectionConfig
from r1jax.rewards.rules import repetition_penalty
from r1jax.types import Sample

NGRAM = 4  # tokens


def make_filters(config: RejectionConfig) -> dict[str, Callable[[Sample], bool]]:
    """Filters in order; the first that returns True drops a sample. They read the rewards named here, if present."""
    repeats = repetition_penalty(NGRAM)
    longest = config.longest or config.sampling.max_new_tokens
    return {
        "unfinished": lambda s: not s.finished,
        "wrong": lambda s: s.rewards.get("accuracy", 1.0) != 1.0,  # None: the verifier failed
        "malformed": lambda s: below(s.rewards.get("format"), 1.0),
        "mixed_language": lambda s: below(s.rewards.get("language"), config.language),
        "too_long": lambda s: len(s.response_tokens) > longest,
        "repetitive": lambda s: -(repeats(s) or 0.0) > config.repetition,
        "long_paragraph": lambda s: any(len(p.split()) > config.paragraph_words for p in s.text.split("\n\n")),
        "code_block": lambda s: not config.code_blocks and "```" in s.text,
    }


def below(value: float | None, least: float) -> bool:
    """Whether a reward is less than `least`; False for None."""
    return value is not None and value < least


def choose(
    samples: Sequence[Sample], filters: Mapping[str, Callable[[Sample], bool]], config: RejectionConfig
) -> tuple[list[int], dict[str, int]]:
    """Returns the indices of the samples of one question to keep, and the dropped samples' counts by reason.

    Of the samples that pass the filters, one of each text is kept, and of these the first or the shortest
    `config.keep`.
    """
    dropped = dict.fromkeys([*filters, "duplicate", "beyond_keep"], 0)
    kept: list[int] = []
    for i, sample in enumerate(samples):
        reason = next((name for name, drops in filters.items() if drops(sample)), None)
        if reason is None and sample.text in {samples[k].text for k in kept}:
            reason = "duplicate"
        if reason is None:
            kept.append(i)
        else:
            dropped[reason] += 1
    if config.choose == "shortest":
        kept.sort(key=lambda i: len(samples[i].response_tokens))
    dropped["beyond_keep"] = max(0, len(kept) - config.keep)
    return sorted(kept[: config.keep]), dropped
