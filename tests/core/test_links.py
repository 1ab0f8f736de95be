"""Links between the project's pages: every file is there, and every heading that an anchor names."""

import re
import subprocess

import pytest

from tests.conftest import ROOT

PAGES = sorted(
    subprocess.run(["git", "ls-files", "-co", "--exclude-standard", "*.md"], cwd=ROOT, capture_output=True, text=True)
    .stdout.split()
)  # fmt: skip
GENERATED = ROOT / "docs" / "_generated"  # pages that `make docs` writes
LINK = re.compile(r"\]\(([^)\s#]*)(?:#([^)\s]+))?\)")


def without_code(text: str) -> str:
    return re.sub(r"^( *)(```+|~~~+).*?^\1\2|`[^`\n]+`", "", text, flags=re.DOTALL | re.MULTILINE)


def anchors(text: str) -> set[str]:
    """Of headings, as repositories' web pages and Sphinx name them."""
    text = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def broken(page: str, text: str) -> list[str]:
    """The links of a page, given by its path in the project, that lead nowhere."""
    found = []
    for path, anchor in LINK.findall(without_code(text)):
        if re.match(r"\w+:", path):  # the network's
            continue
        target = (ROOT / page).parent / path if path else ROOT / page
        is_generated = target.resolve().is_relative_to(GENERATED)
        there = is_generated or not path or target.exists()
        if there and anchor and not is_generated:
            there = target.suffix == ".md" and anchor in anchors(text if not path else target.read_text())
        found += [] if there else [f"{page}: {path}{'#' * bool(anchor)}{anchor}"]
    return found


def test_a_link_that_leads_nowhere_is_found():
    text = "# A title, with `code`\n[a](test_links.py) [b](none.py) [c](#a-title-with-code) [d](#b) `[e](none)`\n"
    assert broken("tests/core/page.md", text) == ["tests/core/page.md: none.py", "tests/core/page.md: #b"]
    assert not broken("tests/core/page.md", "```\n[a](none.py)\n```\n[b](https://none.example/x.md#y)\n")


@pytest.mark.parametrize("page", PAGES)
def test_the_links_of_a_page(page):
    assert not broken(page, (ROOT / page).read_text())


def test_all_pages_are_in_the_site():
    index = (ROOT / "docs" / "index.md").read_text()
    named = {f"docs/{name}.md" for name in re.findall(r"^([\w/]+)$", index, re.MULTILINE)}
    pages = {page for page in PAGES if page.startswith("docs/")}
    assert pages - {"docs/index.md", "docs/README.md"} == {name for name in named if "_generated" not in name}
