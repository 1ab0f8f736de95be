"""Equality of two LaTeX answers by math-verify: slow, at times endless. Runs in a worker (`workers.py`) only.

The only file that imports math-verify and sympy.
"""

import logging
from functools import lru_cache
from typing import Any

from latex2sympy2_extended import NormalizationConfig
from math_verify import LatexExtractionConfig, parse, verify

logging.disable(logging.WARNING)  # it warns that its own time limit, which needs signal.alarm, is off

LATEX = LatexExtractionConfig(
    try_extract_without_anchor=False,  # all of the answer must be the answer, not some part of it
    boxed_match_priority=0,
    normalization_config=NormalizationConfig(
        units=False,  # its list has "t" and "c": "2t" would equal 2
        malformed_operators=True,
        nits=True,
        boxed="last",
    ),
)


@lru_cache(maxsize=1000)  # gold answers come back, in a group and in each epoch
def parsed(answer: str) -> list[Any]:
    """A sympy object, where it can be read, and the normalised text. Nothing is ever evaluated as Python."""
    boxed = rf"\boxed{{{answer}}}"
    return parse(boxed, [LATEX], extraction_mode="first_match", parsing_timeout=None)


def equal(pair: tuple[str, str]) -> bool:
    """Whether an answer equals the gold answer. "x = 3" and "3" are equal, either way round."""
    answer, gold = map(parsed, pair)
    return bool(verify(gold, answer, timeout_seconds=None, allow_set_relation_comp=True, raise_on_error=True))


equal((r"\frac{1}{2}", "x + 1"))  # the first parse builds tables: no task's time limit should pay for them
