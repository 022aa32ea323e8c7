"""The notebook of the documentation runs, in a kernel of its own, and shows what it says."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parents[1] / "docs" / "notebook.ipynb"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # what notebooks' own libraries warn of
def test_the_notebook_runs(monkeypatch, tmp_path, shared_cache):
    monkeypatch.setenv("UNLEARNBENCH_CACHE", str(shared_cache))
    book = nbformat.read(NOTEBOOK, as_version=4)
    NotebookClient(book, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    shown = {
        "".join(cell.source).splitlines()[-1]: [output for output in cell.outputs]
        for cell in book.cells
        if cell.cell_type == "code"
    }
    assert "unknown key of run 'job'; did you mean 'jobs'?" in str(shown["    print(error)"])
    assert "flat-tv × tofu-forget05 × tiny seed 0" in str(shown["plan.to_frame()"])
    assert "<table" in str(shown["results"]), "results show as a table"
    assert shown["run.exit_code"][0].data["text/plain"] == "0"
    assert shown["found.holds, found.scores"][0].data["text/plain"].startswith("(True, ")
    assert shown['ub.render(folder, out=folder / "site").page.name'][0].data["text/plain"] == "'index.html'"
