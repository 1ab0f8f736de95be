"""Paths of workdirs and checkpoints, local or in a bucket (gs://), and of this project's own files."""

import json
from pathlib import Path
from typing import Any

from etils import epath

from r1jax.errors import RunError

PACKAGE = Path(__file__).resolve().parent
_IN_WHEEL = PACKAGE / "_project"  # where setup.py copies them


def project() -> Path:
    """The directory of `experiments/` and `gin_configs/`: the checkout, or in an installed wheel a part of it."""
    return _IN_WHEEL if _IN_WHEEL.is_dir() else PACKAGE.parent


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
