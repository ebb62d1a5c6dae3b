"""Tests of the notebook as people run it: in other orders and places, at once, at scale."""

import hashlib
import itertools
import json
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import threading

import keras
import nbformat
import numpy as np
import papermill
import pytest
from conftest import BUNDLED, NOTEBOOK, ROOT, part, position, printed, run_book
from PIL import Image, ImageOps
from test_download import FILE, server, weights  # noqa: F401 (fixtures)

BOOK = nbformat.read(NOTEBOOK, 4)
CODE = [cell for cell in BOOK.cells if cell.cell_type == "code"]


def run_cells(cells):
    """Run copies of code cells in a fresh kernel; returns these with their outputs."""
    copies = [nbformat.v4.new_code_cell(cell.source) for cell in cells]
    return run_book(nbformat.v4.new_notebook(cells=copies, metadata=BOOK.metadata)).cells


def complaints(cells):
    """What cells wrote to the error channel."""
    return [output.text for cell in cells for output in cell.outputs
            if output.output_type == "stream" and output.name == "stderr"]


@pytest.fixture
def few(tmp_path):
    """Folder with two photos."""
    folder = tmp_path / "few"
    folder.mkdir()
    for name in ("chelsea.jpg", "koala.jpg"):
        shutil.copy(ROOT / "images" / name, folder)
    return folder


def test_every_cell_may_run_twice_and_again_from_the_middle(monkeypatch, few):
    monkeypatch.setenv("CAM_IMAGES", str(few))
    middle = position(CODE, "find_boxes, truth = paper_boxes")
    cells = run_cells([cell for cell in CODE for _ in (1, 2)] + CODE[middle:])
    assert not complaints(cells)
    firsts, seconds = cells[:2 * len(CODE):2], cells[1:2 * len(CODE):2]
    thirds = cells[2 * len(CODE):]
    for text in ("asked = judge", "twice = judge", "channels swapped"):
        index = position(CODE, text)
        lines = printed(firsts[index])
        assert lines == printed(seconds[index]) == printed(thirds[index - middle])


def test_papermill_sets_the_parameters(tmp_path, few):
    """Also: max_figures bounds the gallery, and the table has all photos."""
    parameters = {"network": BUNDLED, "image_folder": str(few), "max_figures": 1,
                  "save_folder": str(tmp_path / "out")}
    nbformat.write(part(nbformat.read(NOTEBOOK, 4), "header ="), tmp_path / "start.ipynb")
    book = papermill.execute_notebook(
        str(tmp_path / "start.ipynb"), str(tmp_path / "run.ipynb"), parameters, cwd=str(ROOT),
        progress_bar=False, log_output=False)
    cells = {cell.id: cell for cell in book.cells}
    gallery, rows = (cells[CODE[position(CODE, text)].id]
                     for text in ("found, failures", "header ="))
    [figure] = [o for o in gallery.outputs if "image/jpeg" in o.get("data", {})]
    assert "chelsea.jpg" in figure.metadata["image/jpeg"]["alt"]
    assert "koala.jpg" not in figure.metadata["image/jpeg"]["alt"]
    assert "koala.jpg" in printed(rows) and "max_figures can be raised" in printed(rows)
    table = (tmp_path / "out" / "results.csv").read_text(encoding="utf8")
    assert [line.split(",")[0] for line in table.splitlines()] == [
        "file", "chelsea.jpg", "koala.jpg"]
    assert (tmp_path / "out" / "gallery_1.jpg").exists()


SCRIPT = """
import json, sys
from IPython.core.interactiveshell import InteractiveShell
shell = InteractiveShell.instance()
for cell in json.load(open(sys.argv[1])):
    shell.run_cell(cell).raise_error()
print("network:", shell.user_ns["classifier"].name)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="permissions are Linux's here")
def test_runs_where_nothing_can_be_written(tmp_path, few):
    """Project and home without write permission, which root has to give up first."""
    project, home = tmp_path / "project", tmp_path / "home"
    project.mkdir(), home.mkdir()
    for name in ("images", "models"):
        shutil.copytree(ROOT / name, project / name)
    sources = tmp_path / "cells.json"
    cells = part(nbformat.read(NOTEBOOK, 4), "header =").cells
    sources.write_text(json.dumps([cell.source for cell in cells]))
    folders = [project, home, project / "images", project / "models"]
    for folder in folders:
        folder.chmod(0o555)
    caps = "-dac_override,-dac_read_search"
    drop = [] if os.geteuid() else ["setpriv", "--bounding-set", caps, "--inh-caps", caps]
    test = subprocess.run([*drop, "touch", project / "new"], capture_output=True)
    assert test.returncode != 0, "the folder can be written: this would test nothing"
    environment = {**os.environ, "HOME": str(home), "CAM_NETWORK": BUNDLED,
                   "CAM_IMAGES": str(few), "MPLCONFIGDIR": str(tmp_path),
                   "IPYTHONDIR": str(tmp_path / "ipython")}
    run = subprocess.run([*drop, sys.executable, "-c", SCRIPT, sources], cwd=project,
                         env=environment, capture_output=True, text=True, timeout=300)
    for folder in folders:
        folder.chmod(0o755)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "network: efficientnet_lite0" in run.stdout and "2 photos" in run.stdout


PATCH = """
import keras
from keras.src.applications import resnet
resnet.BASE_WEIGHTS_PATH = {address!r}
resnet.WEIGHTS_HASHES["resnet50"] = ({digest!r}, {digest!r})
"""


def test_two_notebooks_share_one_cache(server, tmp_path):  # noqa: F811
    """Both go on, at least one has ResNet-50, and the next run has it for sure."""
    server.fault = "slow"
    patch = PATCH.format(address=server.address,
                         digest=hashlib.md5(server.content).hexdigest())
    load = position(CODE, "classifier = load_network(network)")
    sources = tmp_path / "cells.json"
    sources.write_text(json.dumps([CODE[0].source, patch,
                                   *(cell.source for cell in CODE[1:load + 1])]))
    environment = {**os.environ, "CAM_NETWORK": "auto"}
    start = lambda: subprocess.Popen([sys.executable, "-c", SCRIPT, sources], cwd=ROOT,
                                     env=environment, stdout=subprocess.PIPE,
                                     stderr=subprocess.STDOUT, text=True)
    texts = [run.communicate(timeout=300)[0] for run in (start(), start())]
    names = [text.split("network: ")[-1].strip() for text in texts]
    assert "ResNet-50" in names, texts
    assert set(names) <= {"ResNet-50", "efficientnet_lite0"}, texts
    assert start().communicate(timeout=300)[0].endswith("network: ResNet-50\n")
    assert (tmp_path / FILE).read_bytes() == server.content


def test_an_interrupt_of_the_download_leaves_nothing_behind(notebook, server):  # noqa: F811
    server.fault = "silent"
    timer = threading.Timer(1, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        notebook.load_resnet50()
    assert socket.getdefaulttimeout() is None


@pytest.fixture
def tiny(notebook, use_network):
    """A small untrained network for 32 x 32 pixels in place of the notebook's."""
    whole = keras.Sequential([
        keras.Input((32, 32, 3)), keras.layers.Rescaling(1 / 255),
        keras.layers.Conv2D(8, 3, 2, "same", activation="relu"),
        keras.layers.Conv2D(8, 3, 2, "same", activation="relu"),
        keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(4)])
    network = notebook.open_up("tiny", whole)
    use_network(network)
    return network


def fill(folder, count):
    """Write `count` files, every tenth of them no picture; returns the names of these."""
    rng, bad = np.random.default_rng(0), set()
    for number in range(count):
        path = folder / f"{number:04}.{('jpg', 'png', 'bmp', 'gif')[number % 4]}"
        if number % 10 == 3:
            path.write_bytes((b"", b"<html>", b"\xff\xd8\xff\xe0 cut off")[number % 3])
            bad.add(path.name)
        else:
            height, width = rng.integers(1, 120, 2)
            Image.fromarray(rng.integers(0, 256, (height, width, 3), "uint8")).save(path)
    return bad


def test_an_interrupt_of_the_folder_run_can_be_repeated(notebook, tiny, tmp_path):
    """It comes while a file is read and the error channel is silent. (Within C code of
    other libraries, an interrupt can become a SystemError.)"""
    bad, turn = fill(tmp_path, 40), ImageOps.exif_transpose

    def interrupted(picture, **options):
        if next(number) == 20:
            signal.raise_signal(signal.SIGINT)
        turn(picture, **options)
    number = itertools.count()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ImageOps, "exif_transpose", interrupted)
        with pytest.raises(KeyboardInterrupt):
            list(notebook.localize_folder(tmp_path))
    outcomes = {path.name: outcome for path, outcome in notebook.localize_folder(tmp_path)}
    assert len(outcomes) == 40
    assert {n for n, o in outcomes.items() if isinstance(o, ValueError)} == bad


def test_five_thousand_files_in_flat_memory(notebook, tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(notebook, "find_boxes", notebook.paper_boxes)
    bad, memory, failed, seen = fill(tmp_path, 5000), {}, set(), set()
    for count, (path, outcome) in enumerate(notebook.localize_folder(tmp_path), 1):
        memory[count] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        seen.add(path.name)
        if isinstance(outcome, ValueError):
            assert path.name in str(outcome)
            failed.add(path.name)
    assert len(seen) == count == 5000 and failed == bad
    assert memory[5000] - memory[500] < 100_000
