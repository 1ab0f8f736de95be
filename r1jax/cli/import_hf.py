"""Convert a published checkpoint (Hugging Face, GGUF) to one of r1jax, on the CPU."""

import argparse

from r1jax.cli.devices import start_jax


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "source",
        metavar="SOURCE",
        help="directory with config.json, safetensors (bf16, float32, FP8) and tokenizer; .gguf file of Llama, Qwen2.5"
        " or Qwen3; or model of the Hugging Face Hub (OWNER/NAME)",
    )
    add("dest", metavar="DEST", help="the new checkpoint; repeating the command resumes an interrupted import")
    add("--revision", help="branch, tag or commit of a model of the Hub")
    add("--no-mtp", action="store_true", help="leave out the multi-token-prediction module")


def main(args: argparse.Namespace) -> None:
    from r1jax.paths import absolute
    from r1jax.runs.hugging_face import import_hf
    from r1jax.telemetry.progress import Progress

    start_jax(cpu_only=True)
    dest, mtp = absolute(args.dest), not args.no_mtp
    import_hf(args.source, dest, mtp=mtp, progress=Progress(), revision=args.revision)
