"""The notebook as a whole: what it stores, prints, saves, and lets its reader do."""

import csv
import re
import shlex
from importlib.metadata import version

import nbformat
import numpy as np
import pytest
from conftest import NOTEBOOK, ROOT, code, part, run
from evaluate_localization import read_boxes
from packaging.requirements import Requirement
from PIL import Image

NUMBER = r"-?\d+\.\d+"
# Cells whose output is the state of the internet, a time, or rounding.
OF_THE_DAY = "forgiven =", "%timeit", "fast_maps"


def outputs(cells):
    """Source of each cell, the text of its outputs, and its pictures; code only."""
    for cell in cells:
        if cell.cell_type == "code":
            found = [o.get("data", {"text/plain": o.get("text")}) for o in cell.outputs]
            pictures = [x["image/jpeg"] for x in found if "image/jpeg" in x]
            yield cell.source, "".join(x["text/plain"] for x in found), pictures


def stored():
    """Outputs that the notebook comes with."""
    return list(outputs(nbformat.read(NOTEBOOK, 4).cells))


def test_it_runs_without_the_internet_and_prints_what_is_stored(clean_run):
    for (source, old, drawn), (_, new, drawn_now) in zip(
        stored(), list(outputs(clean_run.result()))[1:]
    ):
        if not any(words in source for words in OF_THE_DAY):
            assert re.split(NUMBER, new) == re.split(NUMBER, old)
            numbers = [np.float64(re.findall(NUMBER, text)) for text in (new, old)]
            np.testing.assert_allclose(*numbers, rtol=0.1)
            assert len(drawn) == len(drawn_now)


def test_each_cell_says_and_draws_the_same_again_after_everything_else(clean_run):
    first = list(outputs(clean_run.result()))
    again = [first.pop() for cell in part(0, 1, 2, 3) if cell.cell_type == "code"]
    for before, after in zip(first[1:], again):
        assert before == after


def test_it_is_stored_clean_after_one_run_in_order():
    book = nbformat.read(NOTEBOOK, 4)
    nbformat.validate(book)
    assert set(book.metadata) == {"kernelspec", "language_info"}
    cells = [cell for cell in book.cells if cell.cell_type == "code"]
    run_cells = [c for c in cells if "skip-execution" not in c.metadata.get("tags", [])]
    counts = [cell.execution_count for cell in run_cells]
    assert counts == list(range(1, len(counts) + 1))
    assert all(set(cell.metadata) <= {"tags"} for cell in book.cells)
    found = [output for cell in cells for output in cell.outputs]
    assert not any(o.get("name") == "stderr" or "ename" in o for o in found)
    assert "/tmp/" not in str(found) and "/home/" not in str(found)


RESNET50 = """import keras
build = keras.applications.ResNet50
keras.applications.ResNet50 = lambda weights, **options: build(weights=None, **options)
"""
CHECK = """entry = classifier.get_layer("conv1_pad").input
[entered] = keras.Model(classifier.inputs, entry).predict_on_batch(view[None])
expected = view[..., ::-1] - np.array([103.939, 116.779, 123.68])
np.testing.assert_allclose(entered, expected, atol=1e-3)
assert W.shape == (2048, 1000) and features.shape == (7, 7, 2048)
assert localize(image).cam.shape == (7, 7)"""


@pytest.fixture(scope="module", autouse=True)
def runs(tmp_path_factory, pool, clean_run):
    """Runs with photos of one's own, without any, and with ResNet-50, begun early."""
    own, empty = (tmp_path_factory.mktemp(name) for name in ("Fotos für Zoë", "empty"))
    koala = Image.open(ROOT / "images/koala.jpg")
    for suffix in "jpg", "png":
        koala.save(own / f"a.{suffix}")
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = koala.resize((1200, 900)).rotate(90, expand=True)
    turned.save(own / "gedreht 1.JPG", exif=exif)
    koala.resize((4000, 3000)).save(own / "$large$ 大.png", compress_level=1)
    (own / "broken.jpg").write_bytes((own / "a.jpg").read_bytes()[:9999])
    (own / "nowhere.jpg").symlink_to(own / "nothing")
    (own / "subfolder").mkdir()
    cells, saved = part(0, 1, 2, 3), own.parent / "results é"
    explorer = [cell for cell in part(4) if "def explore" in cell.source]
    explorer[0].metadata.pop("tags")
    save = {"CAM_SAVE": saved, "MPLBACKEND": "agg"}
    check = [code(RESNET50), *part(0, 1), code(CHECK)]
    says = [*cells, *explorer, code("explore(None, '')")]
    return {
        "own": (own, saved, pool.submit(run, cells, CAM_IMAGES=own, **save)),
        "empty": pool.submit(run, says, CAM_IMAGES=empty),
        "resnet": pool.submit(run, check, CAM_NETWORK="resnet50"),
    }


def test_a_folder_of_ones_own_becomes_pictures_and_tables(runs):
    folder, saved, job = runs["own"]
    book = job.result()
    with (saved / "results.csv").open(encoding="utf8", newline="") as file:
        rows = {row["photo"]: row for row in csv.DictReader(file)}
    columns = ["photo", "class_index", "label", "probability", "logit", "error"]
    assert {tuple(row) for row in rows.values()} == {tuple(columns)}
    bad = ["broken.jpg", "nowhere.jpg"]
    assert sorted(rows) == sorted(p.name for p in folder.iterdir() if p.suffix)
    for name in bad:
        assert re.match(
            f"{name} cannot be read: .*(truncated|No such)", rows[name][columns[-1]]
        )
    sizes = {}
    for path in saved.glob("*_cam.png"):
        sizes[path.name] = Image.open(path).size
    koala = Image.open(folder / "a.png").size
    assert sizes == {
        "a.jpg_cam.png": koala,
        "a.png_cam.png": koala,
        "gedreht 1_cam.png": (1200, 900),
        "$large$ 大_cam.png": (4000, 3000),
    }
    boxes = read_boxes(saved / "boxes.csv")
    header = (saved / "boxes.csv").read_text("utf8").splitlines()[0]
    assert header == (ROOT / "images/boxes.csv").read_text("utf8").splitlines()[0]
    assert {name for name, _ in boxes} == set(rows) - set(bad)
    for (name, c), [(x0, y0, x1, y1)] in boxes.items():
        row = rows[name]
        assert (row["label"], row["class_index"], c) == ("koala", "105", 105)
        assert float(row["probability"]) > 0.5 and float(row["logit"]) > 5
        width, height = (1200, 900) if "1" in name else Image.open(folder / name).size
        assert 0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height
    drawn = [len(pictures) for *_, pictures in outputs(book)]
    assert drawn == [len(pictures) for *_, pictures in stored()][: len(drawn)]


def test_an_empty_folder_is_said_in_a_sentence(runs):
    book = runs["empty"].result()
    said = [text for _, text, _ in outputs(book)]
    assert any(re.search(r"0 of 0 files in .*empty\d* are photos", x) for x in said)
    assert "There is no photo in " in said[-1]


def test_part_one_runs_with_resnet50_which_is_fed_as_it_was_trained(runs):
    runs["resnet"].result()


def test_nothing_is_saved_where_no_folder_is_named(clean_run):
    assert not any("_cam" in path.name for path in ROOT.rglob("*") if path.is_file())


def test_the_exported_network_gives_the_same_maps_over_a_folder(notebook, monkeypatch):
    monkeypatch.setattr(notebook, "model", notebook.exported)
    table = notebook.localize_folder(notebook.list_photos())
    assert type(notebook.exported).__name__ == "SimpleNamespace" and len(table) == 10
    assert table["label"].equals(notebook.results["label"])
    for ours, theirs in zip(notebook.results["cam"], table["cam"], strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-3 * np.ptp(ours))


def test_readme_commands_name_what_is_there():
    readme = (ROOT / "README.md").read_text("utf8")
    commands = re.findall(r"```sh\n(.*?)\n```", readme, re.DOTALL)
    assert len(commands) >= 4
    for command in " && ".join(commands).split(" && "):
        program, *words = [w for w in shlex.split(command) if "=" not in w]
        assert program in ("python3", "pip", "jupyter", ".")
        for word in words:
            if re.search(r"\.(py|txt|ipynb|csv)$", word):
                assert (ROOT / word).is_file()


def test_requirements_allow_what_the_tests_run_on():
    for name in ("requirements.txt", "tests/requirements.txt"):
        for line in (ROOT / name).read_text("utf8").splitlines():
            if not line.startswith("#"):
                needed = Requirement(line)
                assert needed.specifier.contains(version(needed.name))
