"""The notebook for all tests: run once in this process, or in a fresh kernel."""

import copy
import os
import re
from pathlib import Path

import matplotlib.pyplot as plt
import nbformat
import pytest
from IPython.core.interactiveshell import InteractiveShell
from matplotlib_inline.config import InlineBackend
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOK = ROOT / "cam_localization.ipynb"
BUNDLED = "models/efficientnet_lite0.keras"


def part(number):
    """Cells of part I (1) to V (5) of the notebook, text and code."""
    parts = [[]]
    for cell in nbformat.read(NOTEBOOK, 4).cells:
        if cell.cell_type == "markdown" and re.search(
            "^# Part ", cell.source, re.MULTILINE
        ):
            parts.append([])
        parts[-1].append(cell)
    return parts[number]


def run(cells=None, **environment):
    """Notebook after a run of its cells in a fresh kernel; a cell's error is raised."""
    book = nbformat.read(NOTEBOOK, 4)
    book.cells = copy.deepcopy(book.cells if cells is None else cells)
    client = NotebookClient(book, timeout=900, resources={"metadata": {"path": ROOT}})
    changed = {"CAM_NETWORK": BUNDLED, **environment}
    return client.execute(env={**os.environ, **{k: str(v) for k, v in changed.items()}})


@pytest.fixture(scope="session")
def notebook():
    """Module of all that the notebook defines, after one run with the small network."""
    plt.switch_backend("Agg")
    shell = InteractiveShell.instance()
    shell.configurables.append(InlineBackend.instance(parent=shell))
    shell.events.register("post_run_cell", lambda result: plt.close("all"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        patch.setenv("CAM_NETWORK", BUNDLED)
        patch.delenv("CAM_IMAGES", raising=False)
        for cell in nbformat.read(NOTEBOOK, 4).cells:
            skipped = "skip-execution" in cell.metadata.get("tags", [])
            if cell.cell_type == "code" and not skipped:
                shell.run_cell(cell.source).raise_error()
        yield shell.user_module
