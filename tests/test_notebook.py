"""The notebook as a whole: what it stores, prints, saves, and lets its reader do."""

import csv
import re

import nbformat
import numpy as np
from conftest import NOTEBOOK, part
from evaluate_localization import read_boxes
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
    return list(outputs(nbformat.read(NOTEBOOK, 4).cells))


def test_it_runs_without_the_internet_and_prints_what_is_stored(clean_run):
    ran = list(outputs(clean_run.result()))[1:]
    for (source, old, drawn), (_, new, drawn_now) in zip(stored(), ran):
        if not any(words in source for words in OF_THE_DAY):
            assert re.split(NUMBER, new) == re.split(NUMBER, old)
            numbers = [np.float64(re.findall(NUMBER, text)) for text in (new, old)]
            np.testing.assert_allclose(*numbers, rtol=0.1)
            assert len(drawn) == len(drawn_now)


def test_each_cell_says_and_draws_the_same_again_after_everything_else(clean_run):
    _, *first = outputs(clean_run.result())
    again = [first.pop() for cell in part(0, 1, 2, 3) if cell.cell_type == "code"]
    assert first[: len(again)] == again


def test_it_is_stored_clean_after_one_run_in_order():
    book = nbformat.read(NOTEBOOK, 4)
    nbformat.validate(book)
    cells = [cell for cell in book.cells if cell.cell_type == "code"]
    counts = [
        cell.execution_count for cell in cells if "skip" not in str(cell.metadata)
    ]
    assert counts == list(range(1, len(counts) + 1))
    found = str([cell.outputs for cell in cells])
    assert not re.search("/tmp/|/home/|'stderr'|'ename'", found)


def test_a_folder_of_ones_own_becomes_pictures_and_tables(runs):
    folder, saved, job, _ = runs
    said = list(outputs(job.result()))
    drawn, comes = ([len(pictures) for *_, pictures in x] for x in (said, stored()))
    in_three_parts = sum(cell.cell_type == "code" for cell in part(0, 1, 2, 3))
    assert drawn[:in_three_parts] == comes[:in_three_parts]
    assert "0 of 0 files in /" in str(said) and "There is no photo in " in said[-1][1]
    with (saved / "results.csv").open(encoding="utf8", newline="") as file:
        rows = {row["photo"]: row for row in csv.DictReader(file)}
    assert ",".join(rows["a.jpg"]) == "photo,class_index,label,probability,logit,error"
    assert sorted(rows) == sorted(p.name for p in folder.iterdir() if p.suffix)
    for name in ("broken.jpg", "nowhere.jpg"):
        reason = f"{name} cannot be read: .*(truncated|No such)"
        assert re.match(reason, rows.pop(name)["error"])
    sizes = {name: Image.open(folder / name).size for name in rows}
    sizes["gedreht 1.JPG"] = 1200, 900
    pictures = {p.name: Image.open(p).size for p in saved.glob("*_cam.png")}
    names = [x if "a." in x else x[:-4] for x in sizes]  # of one stem: the whole name
    assert pictures == {f"{x}_cam.png": size for x, size in zip(names, sizes.values())}
    boxes = read_boxes(saved / "boxes.csv")
    assert {name for name, _ in boxes} == set(rows)
    for (name, c), [(x0, y0, x1, y1)] in boxes.items():
        assert (rows[name]["label"], c) == ("koala", int(rows[name]["class_index"]))
        width, height = sizes[name]
        assert 0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height


def test_part_one_runs_with_resnet50_which_is_fed_as_it_was_trained(runs):
    runs[-1].result()


def test_the_exported_network_gives_the_same_maps_over_a_folder(notebook, monkeypatch):
    monkeypatch.setattr(notebook, "model", notebook.exported)
    table = notebook.localize_folder(notebook.list_photos())
    assert type(notebook.exported).__name__ == "SimpleNamespace" and len(table) == 10
    for ours, theirs in zip(notebook.results["cam"], table["cam"], strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-3 * np.ptp(ours))
