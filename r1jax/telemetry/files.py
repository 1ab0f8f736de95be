"""Files that are there whole or not at all, and files that grow; of several processes, the first alone writes them."""

import fsspec
from etils import epath

from r1jax.parallel.hosts import is_main_process
from r1jax.paths import in_bucket


def write_whole(path: epath.Path, text: str) -> None:
    """Writes beside `path` and renames: a kill at any moment leaves the old file or the new one."""
    if not is_main_process():
        return
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text)
    partial.replace(path)


def append(path: epath.Path, text: str) -> None:
    """Adds to a file. A bucket's objects can't grow: what is new is put beside one, and composed with it there."""
    if not is_main_process():
        return
    if not in_bucket(path):
        with path.open("a") as file:
            file.write(text)
        return
    new = path.with_name(path.name + ".new")
    new.write_text(text)
    fsspec.filesystem("gcs").merge(str(path), [str(path), str(new)])
    new.unlink()
