"""Generate one answer from a checkpoint."""

import argparse
import json
import sys
from typing import TYPE_CHECKING

from r1jax.cli import arguments
from r1jax.cli.devices import load_checkpoint
from r1jax.errors import UsageError

if TYPE_CHECKING:  # imports JAX
    from r1jax.runs.policy import Policy


def add_arguments(parser: argparse.ArgumentParser) -> None:
    arguments.add_checkpoint(parser)
    prompt = parser.add_mutually_exclusive_group(required=True)
    prompt.add_argument("--prompt", metavar="TEXT", help="a question; the template of the task or tokenizer wraps it")
    prompt.add_argument("--prompt_ids", metavar="5,17,3", help="token ids, used without a template")
    add = parser.add_argument
    add("--raw", action="store_true", help="continue the text of --prompt, without a template")
    longest = "longest answer (default: all that the model's positions leave)"
    add("--max_tokens", type=arguments.positive_int, metavar="N", help=longest)
    add("--temperature", type=arguments.non_negative, default=0.0, metavar="T", help="0, the default, is greedy")
    add("--top_k", type=arguments.non_negative_int, default=0, metavar="K", help="0, the default, is off")
    add("--top_p", type=arguments.positive_fraction, default=1.0, metavar="P", help="1, the default, is off")
    add("--min_p", type=arguments.fraction, default=0.0, metavar="P", help="0, the default, is off")
    add(
        "--stop",
        type=arguments.nonempty,
        action="append",
        default=[],
        metavar="TEXT",
        help="ends the answer, or a turn",
    )
    arguments.add_seed(parser)
    add("--ignore_eos", action="store_true", help="continue after end tokens")
    arguments.add_speculative(parser)
    arguments.add_environment(parser)
    add("--json", action="store_true", help="print one line of JSON: text, ids, logprobs, finish_reason")


def main(args: argparse.Namespace) -> None:
    from rich.console import Console

    from r1jax.cli.responder import Responder
    from r1jax.config import EngineConfig, SamplingConfig
    from r1jax.rollout.engine import RolloutEngine
    from r1jax.runs.policy import load_environments
    from r1jax.telemetry.metrics import turns_row

    if args.raw and args.prompt is None:
        raise UsageError("--raw is for --prompt: --prompt_ids has no template")
    layout, policy = load_checkpoint(args.checkpoint)
    ids = read_prompt(args, policy)
    room = policy.model.max_position_embeddings - len(ids)
    if room < 1:
        raise UsageError(
            f"the prompt has {len(ids)} tokens, which leaves no room in the model's {room + len(ids)} positions"
        )
    config = EngineConfig(slots=1, steps_per_round=8, prefill_rows=1, speculative=args.speculative)
    limits = {name: getattr(args, name) for name in ("temperature", "top_k", "top_p", "min_p")}
    stop_ids = () if args.ignore_eos else policy.end_ids
    sampling = SamplingConfig(
        len(ids), args.max_tokens or room, **limits, stop=tuple(args.stop), stop_ids=stop_ids, max_turns=args.max_turns
    )
    environments = load_environments(args.environment, policy)
    try:
        engine = RolloutEngine(layout, policy.model, policy.tokenizer, config, sampling, 1, environments=environments)
    except UsageError as error:
        raise UsageError(f"{error}; --max_tokens is {sampling.max_new_tokens}") from error
    responder = Responder(engine, policy, None if args.json else Console(), args.seed)
    sample = responder.answer(ids, ignore_eos=args.ignore_eos)
    if args.json:
        fields = {"text": sample.text, "ids": sample.response_tokens, "logprobs": sample.response_logprobs}
        print(json.dumps(fields | {"finish_reason": sample.finish_reason} | turns_row(sample)))
    elif sample.finish_reason == "length":
        why = "--max_tokens" if args.max_tokens else "all that the model's positions leave"
        print(f"r1jax: the answer was cut off after {len(sample.response_tokens)} tokens ({why})", file=sys.stderr)


def read_prompt(args: argparse.Namespace, policy: "Policy") -> list[int]:
    """The prompt's token ids. Raises UsageError for an empty one, and for what has no ids."""
    if args.prompt is None:
        return parse_ids(args.prompt_ids, policy.model.vocab_size)
    ids = policy.encode(args.prompt) if args.raw else policy.ask(args.prompt)
    if not ids:
        raise UsageError("the prompt is empty: give some text with --prompt")
    return ids


def parse_ids(text: str, vocab_size: int) -> list[int]:
    try:
        ids = [int(part) for part in text.split(",")]
    except ValueError as error:
        raise UsageError(f"--prompt_ids is '{text}', expected numbers separated by commas, such as 5,17,3") from error
    if any(not 0 <= i < vocab_size for i in ids):
        raise UsageError(f"--prompt_ids is '{text}', expected ids from 0 to {vocab_size - 1}")
    return ids
