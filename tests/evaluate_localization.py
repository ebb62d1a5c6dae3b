"""Measure localization against ground-truth boxes, the class given.

    python3 tests/evaluate_localization.py --images images --boxes images/boxes.csv

One line of the CSV per box: file (or image), class_index, x0, y0, x1, y1 in pixels.
Run it in the project's folder; --network is what the notebook's parameter may be.
"""

import argparse
import csv
import json
import os
import time
from collections import defaultdict
from pathlib import Path
from types import ModuleType, SimpleNamespace

import cv2
import numpy as np
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import capture_output
from scipy.ndimage import zoom


def run_notebook(network, also="find_box"):
    """What parts I and II of the notebook define, and the cell of one more function."""
    os.environ |= {"CAM_NETWORK": str(network), "MPLBACKEND": "agg"}
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    shell = InteractiveShell.instance(user_module=ModuleType("lesson"))
    in_time = True
    for cell in json.loads(Path("cam_localization.ipynb").read_bytes())["cells"]:
        source = "".join(cell["source"])
        in_time = in_time and "# Part III" not in source
        if cell["cell_type"] == "code" and (in_time or f"def {also}(" in source):
            with capture_output():
                shell.run_cell(source).raise_error()
    return SimpleNamespace(**shell.user_ns)


def read_boxes(path):
    """{(file, class index): [box, ...]} in the order of the CSV."""
    truth = defaultdict(list)
    with open(path, newline="", encoding="utf8") as file:
        for row in csv.DictReader(file):
            key = row.get("file") or row["image"], int(row["class_index"])
            truth[key].append([float(row[edge]) for edge in ("x0", "y0", "x1", "y1")])
    return truth


def apply_rules(n, view, c):
    """Yield the title of a rule, its box, and what gives its score map (or None)."""
    yield "centered box of 80 %", np.outer((0.1, 0.9), n.input_size[::-1]).ravel(), None
    cam = n.localize(view, c).cam
    plain = zoom(cam, np.divide(n.input_size, cam.shape), order=1)
    yield "original pipeline", n.cam_to_box(plain), lambda: plain
    aligned = n.upsample(n.localize(view, c).cam, *n.input_size)
    yield "paper's rule", n.cam_to_box(aligned), lambda: aligned
    box, size = n.find_box(view, c), view.shape[1::-1]
    yield "find_box", box, lambda: cv2.resize(n.box_stages(view, c)[0], size)


def best_per_threshold(n, heat, boxes):
    """Best IoU of any contour of a map with any box, at thresholds of 0.00 to 0.99."""
    scaled = (heat - heat.min()) / max(np.ptp(heat), 1e-6)
    for threshold in np.arange(0, 1, 0.01):
        mask = np.uint8(scaled >= threshold)
        contours, _ = cv2.findContours(mask, cv2.RETR_TREE, cv2.CHAIN_APPROX_SIMPLE)
        found = [(x, y, x + w, y + h) for x, y, w, h in map(cv2.boundingRect, contours)]
        yield max((n.iou(a, b) for a in found for b in boxes), default=0)


def reached(ious):
    """Whether IoUs reach 0.3, 0.5 and 0.7, along a new last axis."""
    return np.array(ious)[..., None] >= (0.3, 0.5, 0.7)


def print_table(ious, best, seconds):
    """Rules, with MaxBoxAccV2 of Choe et al. 2020; gains with 95 % paired bootstrap."""
    print(f"{'':20} IoU>0.3     0.5     0.7    mean MaxBoxAccV2    time")
    table = {title: np.column_stack([reached(x), x]) for title, x in ious.items()}
    for title, columns in table.items():
        cells = "".join(f"{cell:8.3f}" for cell in columns.mean(axis=0))
        levels = reached(best[title]).mean(axis=0).max(axis=0) if best[title] else []
        cells += f"{np.mean(levels):12.3f}" if best[title] else f"{'-':>12}"
        ratio = np.median(seconds[title]) / np.median(seconds["original pipeline"])
        print(f"{title:20}{cells}{ratio:8.2f}")
    for other in ("original pipeline", "paper's rule"):
        gain = (table["find_box"] - table[other])[:, [1, 3]]
        drawn = np.random.default_rng(0).integers(0, len(gain), (10000, len(gain)))
        bounds = np.percentile(gain[drawn].mean(axis=1), (2.5, 97.5), axis=0)
        for title, *numbers in zip(("IoU>0.5", "mean"), gain.mean(axis=0), *bounds):
            print(f"find_box - {other}, {title}:", np.round(numbers, 3))


def main():
    """Run all rules at the network's size: stretching both boxes keeps their IoU."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--network", default="auto")
    parser.add_argument("--images", default="images")
    parser.add_argument("--boxes", default="images/boxes.csv")
    options = parser.parse_args()
    n, truth = run_notebook(options.network), read_boxes(options.boxes)
    seconds, ious, best = (defaultdict(list) for _ in range(3))
    for (file, c), boxes in truth.items():
        image = n.read_image(Path(options.images, file))
        view = n.view_of(image)
        boxes = boxes * np.tile(np.divide(view.shape[1::-1], image.shape[1::-1]), 2)
        start = time.perf_counter()
        for title, box, score_map in apply_rules(n, view, c):
            seconds[title].append(time.perf_counter() - start)
            ious[title].append(max(n.iou(box, drawn) for drawn in boxes))
            if score_map:
                best[title].append([*best_per_threshold(n, score_map(), boxes)])
            start = time.perf_counter()
    print(f"{n.classifier.name}: {len(truth)} pairs of photo and class")
    print_table(ious, best, seconds)


if __name__ == "__main__":
    main()
