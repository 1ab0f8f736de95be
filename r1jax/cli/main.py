"""The command line, `python -m r1jax COMMAND`: its parser, exit statuses and error lines.

Each command is a module of this package with `add_arguments(parser)` and `main(args)`; its docstring is the help text.
These modules import JAX inside `main` only, so that `--help` is quick.

Exit status: 0 on success, 1 on failure, 2 on a usage or config error, 75 when stopped where the same command resumes,
130 on Ctrl-C.
"""

import argparse
import sys
import traceback
from collections.abc import Sequence
from typing import NoReturn

from r1jax.cli import bench, chat, evaluate, experiments, export_hf, generate, import_hf, report, run
from r1jax.cli.devices import use_gcsfs
from r1jax.errors import Preempted, RunError, UsageError

COMMANDS = {
    "run": run, "experiments": experiments, "eval": evaluate, "generate": generate, "chat": chat, "report": report,
    "bench": bench, "import-hf": import_hf, "export-hf": export_hf,
}  # fmt: skip
TEMPORARY_FAILURE = 75  # os.EX_TEMPFAIL, which Windows lacks


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit status; an error is one line on stderr."""
    args = make_parser().parse_args(argv)
    use_gcsfs()
    status, error = 0, None
    try:
        args.command(args)
    except (Exception, KeyboardInterrupt) as raised:
        if args.debug and not args.hosts and not isinstance(raised, KeyboardInterrupt | Preempted):
            raise
        if args.debug:
            traceback.print_exception(raised)
        status, line = explain(raised)
        error = raised
        print(f"r1jax: {line}", file=sys.stderr)
    if args.hosts:
        args.hosts.end(status, error)
    return status


def explain(error: BaseException) -> tuple[int, str]:
    """The exit status and the error line of an exception."""
    if isinstance(error, UsageError | RunError):
        return (2 if isinstance(error, UsageError) else 1), str(error)
    if isinstance(error, Preempted):
        return TEMPORARY_FAILURE, f"{error}: rerun the same command to resume"
    if isinstance(error, KeyboardInterrupt):
        return 130, "interrupted; the same command resumes a run from its last checkpoint"
    return 1, f"{type(error).__name__}: {str(error)[:500]} (--debug shows the traceback)"


class Parser(argparse.ArgumentParser):
    """Its errors are one line, as all others."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message} ({self.prog} --help shows the usage)\n")


def make_parser() -> argparse.ArgumentParser:
    parser = Parser(prog="r1jax", description="The DeepSeek-R1 recipe in JAX.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, help: str, command) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=help, description=help)
        sub.add_argument("--debug", action="store_true", help="show the traceback of an error")
        sub.set_defaults(command=command, hosts=None)
        return sub

    for name, module in COMMANDS.items():
        module.add_arguments(add(name, module.__doc__ or "", module.main))
    return parser
