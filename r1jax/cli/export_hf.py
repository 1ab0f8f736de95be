"""Convert a checkpoint to the Hugging Face format, on the CPU."""

import argparse

from r1jax.cli.arguments import add_checkpoint
from r1jax.cli.devices import start_jax


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_checkpoint(parser)
    parser.add_argument("dest", metavar="DEST", help="the new directory")


def main(args: argparse.Namespace) -> None:
    from r1jax.paths import absolute
    from r1jax.runs.hugging_face import export_hf
    from r1jax.telemetry.progress import Progress

    start_jax(cpu_only=True)
    export_hf(absolute(args.checkpoint), absolute(args.dest), progress=Progress())
