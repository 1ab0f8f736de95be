"""Chat with a checkpoint in the terminal; its reasoning is dimmed."""

import argparse
import sys
from collections.abc import Iterator

from r1jax.cli import arguments
from r1jax.cli.devices import load_checkpoint
from r1jax.errors import UsageError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    arguments.add_checkpoint(parser)
    add = parser.add_argument
    add("--max_tokens", type=arguments.positive_int, default=512, metavar="N", help="longest answer (default 512)")
    add("--context", type=arguments.positive_int, default=4096, metavar="N", help="tokens of all turns (default 4096)")
    add("--temperature", type=arguments.non_negative, default=0.6, metavar="T", help="default 0.6; 0 is greedy")
    add("--top_p", type=arguments.positive_fraction, default=0.95, metavar="P", help="default 0.95; 1 is off")
    arguments.add_speculative(parser)
    arguments.add_environment(parser)
    arguments.add_seed(parser)


def main(args: argparse.Namespace) -> None:
    from rich.console import Console

    from r1jax.cli.responder import Responder
    from r1jax.config import EngineConfig, SamplingConfig
    from r1jax.rollout.engine import RolloutEngine
    from r1jax.runs.policy import load_environments

    layout, policy = load_checkpoint(args.checkpoint)
    if policy.tokenizer is None:
        raise UsageError(f"{args.checkpoint} has no tokenizer: `generate --prompt_ids` takes ids")
    context = min(args.context, policy.model.max_position_embeddings)
    if context <= args.max_tokens:
        raise UsageError(f"--max_tokens is {args.max_tokens}, expected less than the context ({context} tokens)")
    console = Console()
    is_terminal = sys.stdin is not None and sys.stdin.isatty()
    if is_terminal:
        no_memory = "" if policy.keeps_turns else "; each question is answered on its own"
        console.print(f"{args.checkpoint}: /clear starts over, Ctrl-D ends{no_memory}", style="dim", highlight=False)
    config = EngineConfig(slots=1, steps_per_round=4, prefill_rows=1, speculative=args.speculative)
    limits = (context - args.max_tokens, args.max_tokens)
    sampling = SamplingConfig(*limits, temperature=args.temperature, top_p=args.top_p, max_turns=args.max_turns)
    environments = load_environments(args.environment, policy)
    engine = RolloutEngine(layout, policy.model, policy.tokenizer, config, sampling, 1, environments=environments)
    responder = Responder(engine, policy, console, args.seed)
    responder.chat(typed_lines() if is_terminal else (line.rstrip("\n") for line in sys.stdin or ()))


def typed_lines() -> Iterator[str]:
    """The lines that the user types, until Ctrl-D or Ctrl-C."""
    while True:
        try:
            yield input("> ")
        except (EOFError, KeyboardInterrupt):
            print()
            return
