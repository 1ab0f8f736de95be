"""Paths of workdirs and checkpoints, local or in a bucket (gs://)."""

from etils import epath


def in_bucket(path: epath.Path | str) -> bool:
    return "://" in str(path)


def absolute(path: epath.Path | str) -> epath.Path:
    """The absolute path; a path in a bucket is returned as it is, since epath doesn't treat it as absolute."""
    path = epath.Path(path)
    return path if in_bucket(path) else path.absolute()
