"""Atomic writes and appends, local or in a bucket. Only the main process writes."""

from collections.abc import Iterator
from contextlib import contextmanager

import fsspec
from etils import epath

from r1jax.errors import RunError, cause_of
from r1jax.parallel.hosts import is_main_process
from r1jax.paths import in_bucket


@contextmanager
def named(path: epath.Path) -> Iterator[None]:
    """Around a write: a RunError names the file that can't be written, and why."""
    try:
        yield
    except OSError as error:
        raise RunError(f"{path} can't be written: {cause_of(error)}") from error


def write_atomically(path: epath.Path, text: str) -> None:
    """Writes to another name and renames, so that a kill at any moment leaves the old file or the new one."""
    if not is_main_process():
        return
    partial = path.with_name(path.name + ".partial")
    with named(path):
        partial.write_text(text)
        partial.replace(path)


def append(path: epath.Path, text: str) -> None:
    """Appends to a file. An object in a bucket can't grow: the text becomes another object, composed with the first."""
    if not is_main_process():
        return
    if not in_bucket(path):
        with named(path), path.open("a") as file:
            file.write(text)
        return
    new = path.with_name(path.name + ".new")
    with named(path):
        new.write_text(text)
        fsspec.filesystem("gcs").merge(str(path), [str(path), str(new)])
        new.unlink()
