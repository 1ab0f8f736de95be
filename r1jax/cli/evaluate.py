"""Compute a checkpoint's pass@k and cons@k, by the papers' protocol."""

import argparse

from r1jax.cli.arguments import (
    add_checkpoint,
    add_environment,
    add_seed,
    non_negative,
    nonempty,
    positive_fraction,
    positive_int,
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_checkpoint(parser)
    add = parser.add_argument
    task = "running_sum, countdown, reasoning_gym:DATASET; of a --file: plain, gsm8k, math, math_500 or aime"
    add("--task", required=True, metavar="TASK", help=task)
    add("--file", metavar="FILE", help="problems, one JSON object per line, with the task's columns")
    asked = "how (default: as in training; for an imported checkpoint its chat template, if it has one, else dialogue)"
    add("--prompt", choices=("dialogue", "chat", "plain"), help=asked)
    add("--answer", choices=("marked", "last_number"), help="where an answer is: in tags, a box or after ####, or last")
    add("--problems", type=positive_int, default=256, metavar="N", help="at most (default 256)")
    add("--samples", type=positive_int, metavar="N", help="per problem (default 8, or K)")
    add("--k", type=positive_int, metavar="K", help="of pass@k, in addition to 1, 2, 4, … (default 8)")
    add("--temperature", type=non_negative, default=0.6, metavar="T", help="default 0.6")
    add("--top_p", type=positive_fraction, default=0.95, metavar="P", help="default 0.95; 1 is off")
    longest = "longest output (default 32768, or what fits the model's positions)"
    add("--max_tokens", type=positive_int, metavar="N", help=longest)
    add("--slots", type=positive_int, metavar="N", help="outputs generated at once; more take more memory")
    add("--out", metavar="DIR", help="write evaluation.json, .md and .svg and samples.jsonl to this directory")
    add("--stop", type=nonempty, action="append", default=[], metavar="TEXT", help="ends a response, or a turn")
    add_environment(parser)
    add_seed(parser)


def main(args: argparse.Namespace) -> None:
    from r1jax.cli.evaluation import evaluate

    evaluate(args)
