"""The command line in this process, for commands that fail or end early; `small_run.r1jax` has a process of its own."""

from r1jax.cli.main import main


def command(capsys, *arguments: str) -> tuple[int, str, str]:
    """(exit status, stdout, stderr)."""
    try:
        status = main(list(arguments))
    except SystemExit as end:  # argparse
        status = int(end.code or 0)
    out, err = capsys.readouterr()
    return status, out, err
