"""Write one self-contained HTML page of a run."""

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("workdir", metavar="WORKDIR", help="the --workdir of a run")


def main(args: argparse.Namespace) -> None:
    from r1jax.paths import absolute
    from r1jax.report.report import write_report

    print(f"report: {write_report(absolute(args.workdir))}")
