"""Fixtures: the notebook, loaded once as a module, and fresh runs of it."""

import os
import re
from pathlib import Path

import nbformat
import pytest
from hypothesis import settings
from IPython.core.interactiveshell import InteractiveShell
from nbclient import NotebookClient
from traitlets.config import Config

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOK = ROOT / "cam_localization.ipynb"
SCREENSHOTS = ROOT / "tests" / "screenshots"
BUNDLED = "models/efficientnet_lite0.keras"

os.environ.update(CAM_NETWORK=BUNDLED, MPLBACKEND="agg")
for name in ("CAM_IMAGES", "JPY_SESSION_NAME", "VSCODE_PID", "COLAB_RELEASE_TAG"):
    os.environ.pop(name, None)  # the last three say that a browser shows the notebook
settings.register_profile("notebook", derandomize=True, deadline=None, max_examples=60)
settings.load_profile("notebook")


@pytest.fixture(scope="session")
def notebook():
    """The notebook's namespace after a run with the bundled network, as a module.

    Where a cell fails, every test that asks for it fails with that cell's error.
    """
    NOTEBOOK.open().close()  # IPython would only warn that there is no such file
    before = Path.cwd()
    os.chdir(ROOT)
    config = Config({"HistoryManager": {"enabled": False}})
    shell = InteractiveShell.instance(config=config)
    shell.safe_execfile_ipy(str(NOTEBOOK), raise_exceptions=True)
    yield shell.user_module
    os.chdir(before)


@pytest.fixture
def use_network(notebook, monkeypatch):
    """Function that makes a Network the notebook's classifier until the test ends."""
    return lambda network: monkeypatch.setattr(notebook, "classifier", network)


@pytest.fixture(scope="session")
def execute():
    """Function that runs the notebook in a fresh kernel and returns it with outputs.

    Keyword arguments replace parameters, as a user would edit the parameters cell.
    Texts, where there are any: as for `part`.
    """
    def run(*texts, **parameters):
        book = nbformat.read(NOTEBOOK, 4)
        if texts:
            book = part(book, *texts)
        for cell in book.cells:
            if "parameters" in cell.metadata.get("tags", []):
                cell.source += "".join(f"\n{name} = {value!r}"
                                       for name, value in parameters.items())
        return run_book(book)
    return run


def position(cells, text):
    """Position of the one among code cells that contains a text."""
    [index] = [number for number, cell in enumerate(cells) if text in cell.source]
    return index


def part(book, last, *more):
    """The notebook's code cells as far as the one that contains a text, and those that
    contain some more texts."""
    code = [cell for cell in book.cells if cell.cell_type == "code"]
    after = [code[position(code, text)] for text in more]
    book.cells = code[:position(code, last) + 1] + after
    return book


def run_book(book, folder=ROOT):
    """Run a notebook in a fresh kernel that starts in a folder; returns it with outputs."""
    resources = {"metadata": {"path": str(folder)}}
    return NotebookClient(book, timeout=600, resources=resources).execute()


def printed(cell):
    """What a code cell wrote: its text outputs, joined."""
    return "".join(output.get("text", output.get("data", {}).get("text/plain", ""))
                   for output in cell.get("outputs", [])
                   if output.output_type in ("stream", "execute_result"))


def pytest_configure(config):
    """A warning that the notebook's own code causes is an error."""
    config.addinivalue_line("filterwarnings", "error::Warning:__main__")


def pytest_terminal_summary(terminalreporter):
    """Show what tests have measured and recorded as a property."""
    for report in terminalreporter.getreports("passed"):
        for name, value in report.user_properties if report.when == "call" else ():
            terminalreporter.write_line(f"{name}: {value}")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item):
    """Keep a screenshot of each page that the browser shows when its test fails."""
    report = yield
    browser = getattr(item, "funcargs", {}).get("chromium")
    if report.failed and browser:
        pages = [page for context in browser.contexts for page in context.pages]
        for number, page in enumerate(pages):
            name = re.sub(r"\W+", "_", f"{item.name}_{report.when}_{number}")
            page.screenshot(path=SCREENSHOTS / f"{name}.png")
    return report
