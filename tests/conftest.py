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
from PIL import Image

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


RESNET = """import keras
build = keras.applications.ResNet50
keras.applications.ResNet50 = lambda weights, **options: build(weights=None, **options)
"""
CHECK = """entry = classifier.get_layer("conv1_pad").input
[entered] = keras.Model(classifier.inputs, entry).predict_on_batch(view[None])
expected = view[..., ::-1] - np.array([103.939, 116.779, 123.68])
np.testing.assert_allclose(entered, expected, atol=1e-3)
assert W.shape == (2048, 1000) and features.shape == (7, 7, 2048)
assert finer(model).output_shape[0][1:] == (14, 14, 2048)"""


@pytest.fixture(scope="session")
def runs(tmp_path_factory, pool, clean_run):
    """Runs with photos of one's own, then without any, and with ResNet-50."""
    own, saved = (tmp_path_factory.mktemp("run") / x for x in ("Zoës $x$", "results é"))
    koala, exif = Image.open(ROOT / "images/koala.jpg"), Image.Exif()
    exif[0x0112] = 6
    (own / "subfolder").mkdir(parents=True)
    for suffix in "jpg", "png":
        koala.save(own / f"a.{suffix}")
    turned = koala.resize((1200, 900)).rotate(90, expand=True)
    turned.save(own / "gedreht 1.JPG", exif=exif)
    koala.resize((4000, 3000)).save(own / "$large$ 大.png", compress_level=1)
    (own / "broken.jpg").write_bytes((own / "a.jpg").read_bytes()[:9999])
    (own / "nowhere.jpg").symlink_to(own / "nothing")
    cells = part(0, 1, 2, 3)
    empty = code("image_folder, save_folder = tempfile.mkdtemp('empty'), None")
    explorer = [code(x.source) for x in part(4) if "def explore" in x.source]
    again = [cell for cell in cells if "save_folder = " not in cell.source] + explorer
    photos = [*cells, empty, *again, code("explore(None, '')")]
    save = {"CAM_IMAGES": own, "CAM_SAVE": saved, "MPLBACKEND": "agg"}
    finer = [x for x in part(2) if re.search("def (unstrided|finer)", x.source)]
    resnet = [code(RESNET), *part(0, 1), *finer, code(CHECK)]
    strict = {"CAM_NETWORK": "resnet50"}
    jobs = [pool.submit(run, photos, **save), pool.submit(run, resnet, **strict)]
    return own, saved, *jobs


@pytest.fixture(scope="session", autouse=True)
def early(request):
    """Begins the runs in fresh kernels with the first test, where a test needs them."""
    if any("runs" in item.fixturenames for item in request.session.items):
        request.getfixturevalue("runs")


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
