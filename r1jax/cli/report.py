"""Write one self-contained HTML page of a run, or of several runs side by side."""

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("workdir", nargs="+", metavar="WORKDIR", help="the --workdir of a run; of several, for means and differences")
    add("--output", metavar="FILE", help="the page (default: WORKDIR/report.html; of several runs: ./comparison.html)")


def main(args: argparse.Namespace) -> None:
    from r1jax.paths import absolute
    from r1jax.report.comparison import write_comparison
    from r1jax.report.report import write_report

    output = absolute(args.output) if args.output else None
    if len(args.workdir) == 1:
        print(f"report: {write_report(absolute(args.workdir[0]), output)}")
    else:
        print(f"report: {write_comparison([absolute(workdir) for workdir in args.workdir], output)}")
