"""Files that are there whole or not at all."""

from etils import epath


def write_whole(path: epath.Path, text: str) -> None:
    """Writes beside `path` and renames: a kill at any moment leaves the old file or the new one."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text)
    partial.replace(path)
