"""Files that are there whole or not at all; of several processes, the first alone writes them."""

from etils import epath

from r1jax.parallel.hosts import is_writer


def write_whole(path: epath.Path, text: str) -> None:
    """Writes beside `path` and renames: a kill at any moment leaves the old file or the new one."""
    if not is_writer():
        return
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text)
    partial.replace(path)
