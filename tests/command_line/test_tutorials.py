"""The tutorials of docs/tutorials run from top to bottom, each in a directory of its own, as `make docs` runs them."""

import os

import pytest

from tests.conftest import ROOT

TUTORIALS = sorted((ROOT / "docs" / "tutorials").glob("*.md"))
SECONDS = 1800  # for a cell


@pytest.mark.slow
@pytest.mark.parametrize("page", TUTORIALS, ids=lambda page: page.stem)
def test_a_tutorial(page, tmp_path, monkeypatch):
    reader = pytest.importorskip("myst_nb.core.read", reason="myst-nb, of requirements-docs.txt, is not installed")
    client = pytest.importorskip("nbclient", reason="nbclient, of requirements-docs.txt, is not installed")
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    from needs import missing

    if need := missing(page):
        pytest.skip(f"needs {need}, which is not here: the page says how to get it")
    monkeypatch.delenv("XLA_FLAGS")  # optimised, on one device: figures count
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    notebook = reader.read_myst_markdown_notebook(page.read_text())
    where = {"metadata": {"path": str(tmp_path)}}
    client.NotebookClient(notebook, timeout=SECONDS, kernel_name="python3", resources=where).execute()
    outputs = [cell.outputs for cell in notebook.cells if cell.cell_type == "code"]
    assert sum(map(bool, outputs)) >= 5, "a tutorial shows what it computes"
    assert any("image/svg+xml" in output.get("data", {}) for cell in outputs for output in cell), "and a figure"


def test_there_are_six_and_each_says_what_it_needs():
    assert len(TUTORIALS) == 6
    needs = [line for page in TUTORIALS for line in page.read_text().splitlines() if line.startswith("needs: ")]
    assert needs == ["needs: checkpoints/smollm2", "needs: libtpu"]
