"""Paths of workdirs and checkpoints, which may lie in a bucket (gs://)."""

from etils import epath


def in_bucket(path: epath.Path | str) -> bool:
    return "://" in str(path)


def absolute(path: epath.Path | str) -> epath.Path:
    """From the root, or from the bucket, of which epath knows nothing here."""
    path = epath.Path(path)
    return path if in_bucket(path) else path.absolute()
