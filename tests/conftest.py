"""The notebook for all tests: run once in this process, or in a fresh kernel."""

import copy
import os
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import FunctionType

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
code = nbformat.v4.new_code_cell


def part(*numbers):
    """Cells of the beginning (0) and of parts I (1) to V (5), text and code."""
    parts = [[]]
    for cell in nbformat.read(NOTEBOOK, 4).cells:
        if re.search("(?m)^# Part ", cell.source):
            parts.append([])
        parts[-1].append(cell)
    return [cell for number in numbers for cell in parts[number]]


def run(cells, **environment):
    """Cells after their run in a fresh kernel; a cell's error is raised."""
    book = nbformat.read(NOTEBOOK, 4)
    book.cells = [copy.deepcopy(cell) for cell in cells if cell.cell_type == "code"]
    client = NotebookClient(book, timeout=900, resources={"metadata": {"path": ROOT}})
    changed = {"CAM_NETWORK": BUNDLED, **environment}
    client.execute(env={**os.environ, **{k: str(v) for k, v in changed.items()}})
    return book.cells


def run_apart(notebook, *words, **changed):
    """Names after the cells with any of some words ran in a changed copy of names."""
    cells = [cell.source for cell in part(1, 4) if cell.cell_type == "code"]
    source = "\n".join(c for c in cells if any(word in c for word in words))
    names = {**vars(notebook), **changed}
    FunctionType(compile(source, "cells", "exec"), names)()
    return names


@pytest.fixture(scope="session")
def pool():
    with ThreadPoolExecutor(2) as executor:
        yield executor


NO_INTERNET = """import keras
def offline(weights, input_tensor):
    raise OSError("no internet")
keras.applications.ResNet50 = offline"""


@pytest.fixture(scope="session")
def clean_run(pool):
    """A run without the internet, and parts I to III again, last cell first."""
    cells = [code(NO_INTERNET), *part(*range(6)), *part(0, 1, 2, 3)[::-1]]
    return pool.submit(run, cells, CAM_NETWORK="auto")


@pytest.fixture(scope="session")
def notebook(clean_run):
    """Module of what the notebook defines, with the small network: part I, then the
    others from the last to the second, so that none can need another one but part I."""
    plt.switch_backend("Agg")
    shell = InteractiveShell.instance()
    shell.configurables.append(InlineBackend.instance(parent=shell))
    shell.enable_matplotlib = lambda gui=None: (gui, "agg")
    shell.events.register("post_run_cell", lambda result: plt.close("all"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        patch.setenv("CAM_NETWORK", BUNDLED)
        for name in "CAM_IMAGES", "CAM_SAVE":
            patch.delenv(name, raising=False)
        for cell in part(0, 1, 5, 4, 3, 2):
            if cell.cell_type == "code" and "skip" not in str(cell.metadata):
                with capture_output():
                    shell.run_cell(cell.source).raise_error()
        yield shell.user_module
