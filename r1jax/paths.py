"""Paths of workdirs and checkpoints, local or in a bucket (gs://)."""

import json
from typing import Any

from etils import epath

from r1jax.errors import RunError


def in_bucket(path: epath.Path | str) -> bool:
    return "://" in str(path)


def absolute(path: epath.Path | str) -> epath.Path:
    """The absolute path; a path in a bucket is returned as it is, since epath doesn't treat it as absolute."""
    path = epath.Path(path)
    return path if in_bucket(path) else path.absolute()


def read_json(path: epath.Path) -> Any:
    """The value in a file. Raises RunError, which names the file, when it can't be read."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise RunError(f"{path} can't be read: {error}") from error
