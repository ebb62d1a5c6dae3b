"""Measure maps and boxes against ground truth over many photos, the class given.

    python3 tests/evaluate_localization.py --images images --boxes images/boxes.csv

One line of the CSV per box: file (or image), class_index, x0, y0, x1, y1 in pixels.
Run it in the project's folder; --network is what the notebook's parameter may be.
"""

import argparse
import csv
import os
import re
import tempfile
from pathlib import Path
from types import ModuleType

import cv2
import nbformat
import numpy as np
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import capture_output
from scipy.ndimage import zoom
from tqdm import tqdm

BUNDLED = "models/efficientnet_lite0.keras"
RULES = ("centered", "original", "coarse", "finer", "coarse + GrabCut", "find_box")
STEPS = [(1, 0), (2, 1), (3, 2), (4, 2), (5, 3), (5, 1), (5, 4)]  # a rule, one before
THRESHOLDS, HIDDEN = np.arange(1, 13) / 20, 7


def run_notebook(network, also="find_box"):
    """What parts I and II define, and the functions of the section with one more."""
    os.environ |= {"CAM_NETWORK": str(network), "MPLBACKEND": "agg"}
    shell, later = InteractiveShell.instance(user_module=ModuleType("lesson")), False
    cells = nbformat.read("cam_localization.ipynb", 4).cells
    sections = np.cumsum([len(re.findall("(?m)^## ", cell.source)) for cell in cells])
    wanted = {s for s, cell in zip(sections, cells) if f"def {also}(" in cell.source}
    for section, cell in zip(sections, cells):
        later = later or "# Part III" in cell.source
        defines = re.search("(?m)^(def|import|from) ", cell.source)
        if cell.cell_type == "code" and (not later or (section in wanted and defines)):
            with capture_output():  # without magic, which sets how figures look
                shell.run_cell(re.sub("(?m)^%.*", "", cell.source)).raise_error()
    return shell.user_module


def run_plain(network):
    """The notebook with a network, or with a plain copy of one that it refuses."""
    try:
        return run_notebook(network)
    except (ValueError, AssertionError) as refusal:
        print(f"made plain, since the notebook says: {refusal}")
    n, plain = run_notebook(BUNDLED, "make_plain"), Path(tempfile.mkdtemp(), "x.keras")
    n.make_plain(n.keras.models.load_model(network, compile=False)).save(plain)
    for names in Path(network).parent.glob(f"{Path(network).stem}.txt"):
        plain.with_suffix(".txt").write_bytes(names.read_bytes())
    return run_notebook(plain)


def read_boxes(path):
    """{(file, class index): [box, ...]} in the order of the CSV."""
    truth = {}
    for row in csv.DictReader(Path(path).read_text("utf-8-sig").splitlines()):
        key = row.get("file") or row["image"], int(row["class_index"])
        box = [float(row[edge]) for edge in ("x0", "y0", "x1", "y1")]
        truth.setdefault(key, []).append(box)
    return truth


def best_of_contours(heat, overlap):
    """Best IoU of any contour of a map, at thresholds of 0.00 to 0.99 of its range."""
    scaled = (heat - heat.min()) / max(np.ptp(heat), 1e-6)
    for threshold in np.arange(0, 1, 0.01):
        mask = np.uint8(scaled >= threshold)
        contours, _ = cv2.findContours(mask, cv2.RETR_TREE, cv2.CHAIN_APPROX_SIMPLE)
        found = [(x, y, x + w, y + h) for x, y, w, h in map(cv2.boundingRect, contours)]
        yield max(map(overlap, found), default=0)


def hide(n, view, features, c, rng):
    """Claim of the ledger; the logit's fall without brightest, random, center cells."""
    cam, hidden, color = features @ n.W[:, c], [], np.uint8(view.mean(axis=(0, 1)))
    y, x = np.indices(cam.shape) - np.reshape(cam.shape, (2, 1, 1)) / 2 + 0.5
    for order in (-cam, rng.random(cam.shape), y**2 + x**2 + rng.random(cam.shape)):
        cells = np.uint8(np.argsort(order, None).argsort() < HIDDEN).reshape(cam.shape)
        mask = cv2.resize(cells, view.shape[1::-1], None, 0, 0, cv2.INTER_NEAREST)
        hidden.append(np.where(mask[..., None], color, view))
    maps = np.float32(n.model.predict_on_batch(np.stack(hidden))[0]) @ n.W[:, c]
    claim = np.sort(cam, None)[-HIDDEN:].sum() / cam.size
    return [claim, *(cam.mean() - maps.mean(axis=(1, 2)))]


def measure(n, finer_model, image, c, boxes, rng):
    """A pair's IoUs by rule, threshold and contour, its heat in the boxes, hiding."""
    view, boxes = n.view_of(image), boxes / np.tile(image.shape[1::-1], 2)

    def overlap(box, shape=view.shape):
        box = box / np.tile(shape[1::-1], 2)
        return max(n.iou(box, drawn) for drawn in boxes)

    [features], [scores] = map(np.float32, n.model.predict_on_batch(view[None]))
    finer = np.float32(finer_model.predict_on_batch(view[None])[0][0]) @ n.W[:, c]
    coarse = features @ n.W[:, c]
    maps = [zoom(coarse, np.divide(view.shape[:2], coarse.shape), order=1)]
    maps += [n.upsample(cam, *view.shape[:2]) for cam in (coarse, finer)]
    _, mask = n.follow_colors(view, coarse)
    rules = [overlap(n.cam_to_box(m), m.shape) for m in (*maps, mask)]
    rules.insert(0, overlap((0.1, 0.1, 0.9, 0.9), (1, 1)))
    rules.append(overlap(n.find_box(image, c), image.shape))
    curves = [[overlap(n.cam_to_box(m, t)) for t in THRESHOLDS] for m in maps[1:]]
    best = [[*best_of_contours(heat, overlap)] for heat in maps]
    positive, inside = np.maximum(maps[1], 0), np.zeros(view.shape[:2], bool)
    for x0, y0, x1, y1 in np.int_(boxes * np.tile(view.shape[1::-1], 2) + 0.5).clip(0):
        inside[y0:y1, x0:x1] = True
    share = positive[inside].sum() / max(positive.sum(), 1e-6)
    pointing = inside.flat[maps[1].argmax()], share, inside.mean()
    hiding = [hide(n, view, features, k, rng) for k in (c, scores.argmax())]
    return rules, curves, best, pointing, hiding


def report(rules, curves, best, pointing, hiding):
    """Print all; "original", "coarse", "finer" are maps, boxed by the paper's rule."""
    table = np.stack([rules >= 0.5, rules >= 0.7, rules], axis=-1).swapaxes(0, 1)
    gains = [(f"{RULES[i]} - {RULES[j]}", table[i] - table[j]) for i, j in STEPS]
    print(f"\n{'':30}{'IoU >= 0.5':25}{'IoU >= 0.7':25}mean IoU, 95 % bootstrap")
    for name, x in [*zip(RULES, table), *gains]:
        rng = np.random.default_rng(0)
        means = [rng.choice(x, len(x)).mean(axis=0) for _ in range(10000)]
        cells = zip(x.mean(axis=0), *np.percentile(means, (2.5, 97.5), axis=0))
        print(f"{name:28}", *(f"{m:6.3f} [{a:6.3f}, {b:6.3f}]" for m, a, b in cells))
    rows = [("\nthreshold", THRESHOLDS), *zip(RULES[2:4], (curves >= 0.5).mean(axis=0))]
    rows += [("\nMaxBoxAccV2 (Choe et al. 2020): IoU 0.3, 0.5, 0.7; their mean", [])]
    levels = [(best >= level).mean(axis=0).max(axis=-1) for level in (0.3, 0.5, 0.7)]
    rows += zip(RULES[1:4], np.transpose([*levels, np.mean(levels, axis=0)]))
    rows += [("\nmaximum in a box; heat; area", pointing.mean(axis=0))]
    for title, falls in zip(("class given", "its own answer"), hiding.swapaxes(0, 1)):
        rows += [(f"\n{title}, {HIDDEN} cells: claim; brightest, random, center", [])]
        rows += [("logit falls without them", falls.mean(axis=0))]
        rows += [("logit rises", (falls < 0).mean(axis=0))]
        rows += [("brightest beat center", [(falls[:, 1] > falls[:, 3]).mean()])]
    for title, numbers in rows:
        print(f"{title:30}", *(f"{number:6.3f}" for number in numbers))


def main():
    """Measure each pair of photo and class, and name what cannot be measured."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--network", default="auto")
    parser.add_argument("--images", default="images", type=Path)
    parser.add_argument("--boxes", default="images/boxes.csv")
    options = parser.parse_args()
    n, truth, results = run_plain(options.network), read_boxes(options.boxes), []
    finer_model, rng = n.finer(n.model), np.random.default_rng(0)
    for (file, c), boxes in tqdm(truth.items()):
        try:
            image, _ = n.read_image(options.images / file), n.labels[c]
        except Exception as error:  # noqa: BLE001, since Pillow raises many kinds
            tqdm.write(f"left out: {file}, class {c}: {error}")
        else:
            results.append(measure(n, finer_model, image, c, boxes, rng))
    files = {*options.images.rglob("*")} - {options.images / file for file, _ in truth}
    for path in sorted(filter(cv2.haveImageReader, map(str, files))):
        print(f"left out: {path} has no box")
    print(f"{options.network}: {len(results)} pairs of photo and class")
    if results:
        report(*map(np.array, zip(*results)))


if __name__ == "__main__":
    main()
