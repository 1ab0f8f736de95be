"""Errors that the command line shows as one line instead of a traceback."""


class UsageError(Exception):
    """An invalid command, config or input. The command line exits with 2."""


class RunError(Exception):
    """A failure outside the config, such as a full disk or a damaged checkpoint. The command line exits with 1."""


class Preempted(Exception):  # noqa: N818, a request and not an error
    """The run was asked to stop and has saved its progress. The command line exits with 75."""
