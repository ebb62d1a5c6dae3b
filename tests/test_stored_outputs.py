"""Tests of the notebook file: is it clean, complete, and what a new run would print?"""

import re
from itertools import zip_longest

import nbformat
import pytest
from conftest import NOTEBOOK, printed, run_book
from nbclient.exceptions import CellExecutionError

BOOK = nbformat.read(NOTEBOOK, 4)
CODE = [cell for cell in BOOK.cells if cell.cell_type == "code"]
OUTPUTS = [output for cell in CODE for output in cell.outputs]
NUMBER = r"[-+]?\d+(?:,\d{3})*(?:\.\d+)?(?:e[-+]?\d+)?"


def test_file_is_valid_and_small():
    nbformat.validate(BOOK)
    assert NOTEBOOK.stat().st_size <= 2_500_000


def test_cells_have_ids_and_no_metadata_but_tags():
    ids = [cell.id for cell in BOOK.cells]
    assert len(set(ids)) == len(ids)
    assert {key for cell in BOOK.cells for key in cell.metadata} <= {"tags"}
    assert "widgets" not in BOOK.metadata


def test_every_code_cell_was_run_in_order():
    assert [cell.execution_count for cell in CODE] == list(range(1, len(CODE) + 1))


def test_nothing_failed_or_warned():
    assert not [o for o in OUTPUTS if o.output_type == "error" or o.get("name") == "stderr"]


def text_alternatives(cell):
    """Text alternatives of a code cell's pictures, "" where one is missing."""
    return [output.metadata.get(kind, {}).get("alt", "").strip()
            for output in cell.outputs for kind in output.get("data", {})
            if kind.startswith("image/")]


def test_every_stored_picture_has_a_text_alternative():
    alternatives = [alt for cell in CODE for alt in text_alternatives(cell)]
    assert alternatives and all(alternatives)


def test_every_picture_in_the_prose_has_a_text_alternative():
    pictures = 0
    for cell in BOOK.cells:
        if cell.cell_type == "markdown":
            assert not re.findall(r"<img(?![^>]*\balt=\"\w)", cell.source)
            for alt, target in re.findall(r"!\[([^\]]*)\]\(([^)\s]*)", cell.source):
                pictures += 1
                assert alt.strip(), target
                assert target.removeprefix("attachment:") in cell.get("attachments", {})
    assert pictures


def lines_to_compare(cell):
    """Lines that a cell printed, without those that differ from run to run.

    These are: what depends on the network's way here and on versions (the cell that
    loads it), run times, and progress bars.
    """
    if "load_network(network)" in cell.source:
        return []
    return [line for line in printed(cell).splitlines()
            if line and "━" not in line and not re.search("times (faster|the time)", line)]


def alike(stored, new):
    """Whether two texts have the same words, and numbers that differ by no more than
    one part in a thousand plus one unit of the last digit (small counts by none),
    since processors round differently and an edge of a box can move by a pixel."""
    if re.sub(NUMBER, "#", stored).split() != re.sub(NUMBER, "#", new).split():
        return False
    for old_number, new_number in zip(re.findall(NUMBER, stored), re.findall(NUMBER, new)):
        places = len(old_number.partition(".")[2])
        old, value = (float(n.replace(",", "")) for n in (old_number, new_number))
        unit = 1.01 * 10**-places if places or abs(old) > 20 else 0
        if abs(old - value) > 1e-3 * abs(old) + unit:
            return False
    return True


@pytest.mark.parametrize(("new", "same"), [
    ("bison 0.916, 1,024 maps", True), ("bison  0.917, 1,024 maps", True),
    ("bison 0.926, 1,024 maps", False), ("bison 0.916, 1,027 maps", False),
    ("bison 0.916, 1,025 maps", True), ("koala 0.916, 1,024 maps", False),
    ("bison -0.916, 1,024 maps", False), ("bison 0.916, 1,024", False)])
def test_comparison_sees_what_matters(new, same):
    assert alike("bison 0.916, 1,024 maps", new) == same


@pytest.fixture(scope="module")
def new_run(execute):
    """The code cells after a run in a fresh kernel."""
    return [cell for cell in execute().cells if cell.cell_type == "code"]


def test_a_new_run_prints_what_is_stored(new_run):
    compared = 0
    for cells in zip(CODE, new_run, strict=True):
        for stored, new in zip_longest(*map(lines_to_compare, cells), fillvalue=""):
            compared += 1
            assert alike(stored, new), f"stored {stored!r}, now {new!r}"
    assert compared > 10


def test_a_new_run_shows_the_stored_figures(new_run):
    for cells in zip(CODE, new_run, strict=True):
        for stored, new in zip_longest(*map(text_alternatives, cells), fillvalue=""):
            assert alike(stored, new), f"stored {stored!r}, now {new!r}"


def test_a_lone_notebook_says_what_it_misses(tmp_path):
    """As it starts where somebody has only downloaded the notebook itself."""
    with pytest.raises(CellExecutionError, match="get the whole project"):
        run_book(nbformat.read(NOTEBOOK, 4), tmp_path)
