"""The notebook for all tests: run once in this process, or in a fresh kernel."""

import copy
import os
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import matplotlib.pyplot as plt
import nbformat
import pytest
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import capture_output
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


def run_here(cells):
    """What the cells print and show, after a run of them in this process."""
    shell, said = InteractiveShell.instance(), []
    for cell in cells:
        skipped = "skip-execution" in cell.metadata.get("tags", [])
        if cell.cell_type == "code" and not skipped:
            with capture_output() as captured:
                shell.run_cell(cell.source).raise_error()
            shown = [output.data["text/plain"] for output in captured.outputs]
            said.append([cell.id, captured.stdout, *shown])
    return said


@pytest.fixture(scope="session")
def pool():
    """Two places for runs in fresh kernels while other tests go on."""
    with ThreadPoolExecutor(2) as executor:
        yield executor


@pytest.fixture(scope="session")
def clean_run(pool):
    """A run of all cells with the small network, still to be waited for."""
    return pool.submit(run)


@pytest.fixture(scope="session")
def notebook(clean_run):
    """Module of what the notebook defines, with the small network: part I, then the
    others from the last to the second, so that none can need another one but part I.
    `notebook.part_one_said` is what part I said."""
    plt.switch_backend("Agg")
    shell = InteractiveShell.instance()
    shell.configurables.append(InlineBackend.instance(parent=shell))
    shell.events.register("post_run_cell", lambda result: plt.close("all"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        patch.setenv("CAM_NETWORK", BUNDLED)
        patch.delenv("CAM_IMAGES", raising=False)
        shell.user_module.part_one_said = run_here(part(0) + part(1))
        for number in (5, 4, 3, 2):
            run_here(part(number))
        yield shell.user_module
