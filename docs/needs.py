"""What a tutorial needs beside the site's packages: `needs: PATH or MODULE` in its front matter."""

import re
from importlib.util import find_spec
from pathlib import Path


def missing(page: Path) -> str | None:
    """What the page needs and this machine lacks."""
    found = re.search(r"^needs: (\S+)$", page.read_text(), re.MULTILINE)
    if found and not (page.parents[2] / found[1]).exists() and ("/" in found[1] or not find_spec(found[1])):
        return found[1]
    return None
