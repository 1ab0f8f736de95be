"""Equality of two LaTeX answers by math-verify, which is slow and may never return: run it in `workers.py` only.

The only file that imports math-verify and sympy.
"""

import logging
import re
from functools import lru_cache
from typing import Any

from latex2sympy2_extended import NormalizationConfig
from math_verify import LatexExtractionConfig, parse, verify

from r1jax.rewards.answers import Answer, decide

logging.disable(logging.WARNING)  # silences its warning that its own time limit (signal.alarm) is off

LATEX = LatexExtractionConfig(
    try_extract_without_anchor=False,  # the whole text must be the answer, not a part of it
    boxed_match_priority=0,
    normalization_config=NormalizationConfig(
        units=False,  # its units include "t" and "c", so that "2t" would equal 2
        malformed_operators=True,
        nits=True,
        boxed="last",
    ),
)
IMAGINARY = re.compile(r"\\[a-zA-Z]+|(?<=[0-9)}])i|(?<=[A-Za-z])i(?![A-Za-z])")


@lru_cache(maxsize=1000)  # gold answers recur within a group and in each epoch
def parsed(answer: str) -> list[Any]:
    """A sympy object, if the answer parses, and the normalised text. Nothing is evaluated as Python."""
    apart = IMAGINARY.sub(lambda match: match[0] if match[0] != "i" else " i ", answer)
    boxed = rf"\boxed{{{apart}}}"  # math-verify reads bi as two symbols, b i as a complex number
    return parse(boxed, [LATEX], extraction_mode="first_match", parsing_timeout=None)


def equal(pair: list[dict[str, Any]]) -> bool:
    """Whether the first answer of two is the second, the gold answer."""
    answer, gold = (Answer(**parts) for parts in pair)
    return bool(decide(answer, gold, equal_in_algebra))


def equal_in_algebra(answer: str, gold: str) -> bool:
    """Whether two expressions, relations or sets are equal."""
    return bool(
        verify(parsed(gold), parsed(answer), timeout_seconds=None, allow_set_relation_comp=True, raise_on_error=True)
    )


equal_in_algebra(r"\frac{1}{2}", "x + 1")  # the first parse builds tables, which no item's time limit should include
