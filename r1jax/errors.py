"""Errors that the command line shows as one line instead of a traceback."""

import os
import re


class UsageError(Exception):
    """An invalid command, config or input. The command line exits with 2."""


class RunError(Exception):
    """A failure outside the config, such as a full disk or a damaged checkpoint. The command line exits with 1."""


def cause_of(error: BaseException) -> str:
    """The system's word for what failed, such as "No space left on device", or else the end of the error's text."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = " ".join(str(error).split())
    numbers = re.findall(r"os_error_code='(\d+)'", text)  # TensorStore's
    return os.strerror(int(numbers[-1])) if numbers else f"{type(error).__name__}: {text[-200:]}"


class Preempted(Exception):  # noqa: N818, a request and not an error
    """The run was asked to stop and has saved its progress. The command line exits with 75."""
