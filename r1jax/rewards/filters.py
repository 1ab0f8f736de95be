"""Which outputs are good enough to teach (R1, section 2.3.3). A filter has the name that its drops are counted by."""

from collections.abc import Callable, Mapping, Sequence

from r1jax.config import RejectionConfig
from r1jax.rewards.rules import repetition_penalty
from r1jax.types import Sample

NGRAM = 4  # tokens


def make_filters(config: RejectionConfig) -> dict[str, Callable[[Sample], bool]]:
    """In the order in which they are asked; the first that is true drops a sample.

    They read the rewards named `accuracy`, `format` and `language`, where a sample has them.
    """
    repeats = repetition_penalty(NGRAM)
    longest = config.longest or config.max_new_tokens
    return {
        "unfinished": lambda s: not s.finished,
        "wrong": lambda s: s.rewards.get("accuracy", 1.0) != 1.0,  # nor without a verdict
        "malformed": lambda s: below(s.rewards.get("format"), 1.0),
        "mixed_language": lambda s: below(s.rewards.get("language"), config.language),
        "too_long": lambda s: len(s.tokens) > longest,
        "repetitive": lambda s: -(repeats(s) or 0.0) > config.repetition,
        "long_paragraph": lambda s: any(len(p.split()) > config.paragraph_words for p in s.text.split("\n\n")),
        "code_block": lambda s: not config.code_blocks and "```" in s.text,
    }


def below(value: float | None, least: float) -> bool:
    """Whether a reward that applies is less than `least`."""
    return value is not None and value < least


def choose(
    samples: Sequence[Sample], filters: Mapping[str, Callable[[Sample], bool]], config: RejectionConfig
) -> tuple[list[int], dict[str, int]]:
    """Places of the samples of one question that are kept, and how many were dropped by what.

    Of those that no filter drops, one of each text is kept, and `config.keep` of them: as drawn, or the shortest.
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
        kept.sort(key=lambda i: len(samples[i].tokens))
    dropped["beyond_keep"] = max(0, len(kept) - config.keep)
    return sorted(kept[: config.keep]), dropped
