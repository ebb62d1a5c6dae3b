"""The notebook as a whole: what it stores, prints, and lets its reader do."""

import re
import shlex
from importlib.metadata import version

import nbformat
import numpy as np
import pytest
from conftest import NOTEBOOK, ROOT, part, run_here
from packaging.requirements import Requirement
from PIL import Image

README = (ROOT / "README.md").read_text("utf8")
NUMBER = r"-?\d+\.\d+"
# Cells whose output is the state of the internet or a time.
OF_THE_DAY = "load_network(network)", "%timeit"


def outputs(cells):
    """Source of each cell and the text of its outputs; code only."""
    for cell in cells:
        if cell.cell_type == "code":
            texts = [
                o.text if o.output_type == "stream" else o.data["text/plain"]
                for o in cell.outputs
            ]
            yield cell.source, "".join(texts)


def test_it_runs_without_the_internet_and_prints_what_is_stored(clean_run):
    stored = outputs(nbformat.read(NOTEBOOK, 4).cells)
    for (source, old), (_, new) in zip(stored, outputs(clean_run.result().cells)):
        if not any(words in source for words in OF_THE_DAY):
            assert re.split(NUMBER, new) == re.split(NUMBER, old)
            numbers = [np.float64(re.findall(NUMBER, text)) for text in (new, old)]
            np.testing.assert_allclose(*numbers, rtol=0.1)


def test_it_is_stored_clean_after_one_run_in_order():
    book = nbformat.read(NOTEBOOK, 4)
    nbformat.validate(book)
    assert set(book.metadata) == {"kernelspec", "language_info"}
    code = [cell for cell in book.cells if cell.cell_type == "code"]
    run_cells = [c for c in code if "skip-execution" not in c.metadata.get("tags", [])]
    counts = [cell.execution_count for cell in run_cells]
    assert counts == list(range(1, len(counts) + 1))
    assert all(set(cell.metadata) <= {"tags"} for cell in book.cells)
    found = [output for cell in code for output in cell.outputs]
    assert not any(o.get("name") == "stderr" or "ename" in o for o in found)
    assert "/tmp/" not in str(found) and "/home/" not in str(found)


def test_part_one_says_the_same_again_after_everything_else(notebook):
    assert run_here(part(0) + part(1)) == notebook.part_one_said


def test_a_large_folder_is_listed_drawn_in_part_and_saved(
    notebook, tmp_path, monkeypatch, capsys
):
    for number in range(80):
        file = tmp_path / f"{number:03}.jpg"
        file.write_bytes((ROOT / "images" / "bee.jpg").read_bytes())
        if number % 10 == 3:
            file.write_bytes(b"no photo")
    monkeypatch.setattr(notebook, "image_folder", str(tmp_path))
    saved = tmp_path / "saved"
    saved.mkdir()
    monkeypatch.setattr(notebook, "save_folder", str(saved))
    Image.open(ROOT / "images" / "koala.jpg").save(tmp_path / "dropped.png")
    results = dict(notebook.localize_folder(notebook.list_photos()))
    notebook.show_folder(results, most=4)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 81 and sum("cannot be read" in x for x in lines) == 8
    assert "koala" in next(x for x in lines if x.startswith("dropped.png"))
    with Image.open(saved / "maps.png") as picture:
        assert picture.width > 800 and picture.height < picture.width


def test_the_explorer_finds_classes_by_parts_of_their_names(notebook):
    path = ROOT / "images" / "dog_bicycle.jpg"
    winner, words = notebook.explore(path)
    other, other_words = notebook.explore(path, "MOUNTAIN bik")
    assert "German shepherd" in words and "mountain bike" in other_words
    assert winner.shape == other.shape and (winner != other).any()
    with pytest.raises(ValueError, match="0 classes match"):
        notebook.explore(path, "no such class")


def test_the_exported_network_gives_the_same_maps_over_a_folder(notebook):
    paths = notebook.list_photos()
    ours = notebook.localize_folder(paths)
    for (path, a), (other, b) in zip(
        ours, notebook.localize_folder(paths, notebook.exported)
    ):
        assert path == other and a.label == b.label
        np.testing.assert_allclose(a.cam, b.cam, atol=1e-3 * np.ptp(a.cam))


def test_readme_commands_name_what_is_there():
    commands = re.findall(r"```sh\n(.*?)\n```", README, re.DOTALL)
    assert len(commands) >= 4
    for command in " && ".join(commands).split(" && "):
        program, *words = shlex.split(command)
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
