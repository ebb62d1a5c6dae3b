"""The numbers in the texts are those of tests/evaluation.txt, and they still hold."""

import os
import re

import numpy as np
import pytest
from conftest import ROOT, part
from evaluate_localization import RULES, read_boxes

ROWS = {}  # name: numbers of all rows of that name
for line in (ROOT / "tests/evaluation.txt").read_text("utf8").splitlines():
    row = ROWS.setdefault(re.split("  | -?[0-9]", line)[0], [])
    row += map(float, re.findall(r"-?\d\.\d{3}", line))
TABLE = [x for name in RULES for x in ROWS[name][:9]]
FINER, GRABCUT = ROWS["finer - coarse"][:3], ROWS["find_box - finer"]
STEPS = ROWS["coarse - original"][:3] + FINER + GRABCUT + ROWS["centered"][:1]
HIDING = [ROWS["logit falls without them"][i] for i in (4, 5, 7, 6)]
HIDING += ROWS["brightest beat center"][1:] + ROWS["logit rises"][5:6]
PLACES = (TABLE + FINER + GRABCUT[3:6] + GRABCUT[:3], TABLE + STEPS, HIDING)


def test_texts_tell_the_measured_numbers():
    texts = [(ROOT / "README.md").read_text("utf8"), *(c.source for c in part(2, 3))]
    places = r"(?s)(?<=\| \| IoU).*?(?=## Speed|The boxes of)|(?<=On the 287).*?\n\n"
    for found, measured in zip(re.findall(places, "".join(texts)), PLACES, strict=True):
        plain = re.sub(r"\]\(.*?\)|!\[.*|0\.[57]\b|80 ?%", "", found.replace("−", "-"))
        told = re.findall(r"-?\b\d+\.\d+|\d+ ?%", plain)
        for number, x in zip(told, measured, strict=True):
            error = float(number.strip(" %")) - x * (100 if "%" in number else 1)
            assert abs(error) <= 0.5001 / 10 ** len(number.partition(".")[2])


@pytest.mark.skipif("CAM_TEST_PHOTOS" not in os.environ, reason="no photos with boxes")
def test_find_box_is_as_good_as_measured(notebook):
    folder, best = ROOT / os.environ["CAM_TEST_PHOTOS"], []
    for (name, c), boxes in read_boxes(folder / "boxes.csv").items():
        found = notebook.find_box(folder / "images" / name, c)
        best.append(max(notebook.iou(found, box) for box in boxes))
    measured = [*np.mean(np.greater_equal.outer(best, (0.5, 0.7)), 0), np.mean(best)]
    assert measured == pytest.approx(ROWS["find_box"][:9:3], abs=0.01)
    assert measured[0] >= 0.655 and measured[2] >= 0.580
