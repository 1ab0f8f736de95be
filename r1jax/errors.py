"""The errors that a user sees as one line instead of a traceback."""


class UsageError(Exception):
    """A command, config or input that can't work as given. The command line exits with 2."""


class RunError(Exception):
    """Something outside the config failed: a disk, a damaged checkpoint. The command line exits with 1."""


class Preempted(Exception):  # noqa: N818, a request, and no error
    """The run was told to stop, and has saved what there is. The command line exits with 75."""
