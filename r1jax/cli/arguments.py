"""The types of command-line arguments, and the arguments that several commands share."""

import argparse
from collections.abc import Callable
from typing import Any


def checked(kind: Callable[[str], Any], accepts: Callable[[Any], bool], expected: str) -> Callable[[str], Any]:
    """An argparse type: a value of `kind` that `accepts` holds for, described by `expected` in the error."""

    def parse(text: str) -> Any:
        value = kind(text)
        if not accepts(value):
            raise argparse.ArgumentTypeError(f"is '{text}', expected {expected}")
        return value

    parse.__name__ = kind.__name__  # argparse says "invalid int value"
    return parse


positive_int = checked(int, lambda n: n >= 1, "1 or more")
non_negative_int = checked(int, lambda n: n >= 0, "0 or more")
non_negative = checked(float, lambda x: x >= 0, "0 or more")
fraction = checked(float, lambda x: 0 <= x <= 1, "0 to 1")
positive_fraction = checked(float, lambda x: 0 < x <= 1, "more than 0, up to 1")
nonempty = checked(str, bool, "some text")
seed = checked(int, lambda n: 0 <= n < 2**32, f"0 to {2**32 - 1}")


def add_checkpoint(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="a stage's directory, or one step in it")


def add_seed(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seed", type=seed, default=0, metavar="N", help="default 0")


def add_environment(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--environment", metavar="MODULE:NAME", help="makes what answers the policy's turns, such as a tool environment"
    )
    add("--max_turns", type=positive_int, default=8, metavar="N", help="turns with it (default 8)")


def add_speculative(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--speculative", action="store_true", help="draft by multi-token prediction; same tokens")
