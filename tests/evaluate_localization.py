"""Measure localization against ground-truth boxes, the class given.

    python tests/evaluate_localization.py --network auto --images images \\
        --boxes images/boxes.csv [--csv per_photo.csv]

The CSV of boxes has the columns class_index, x0, y0, x1, y1 (pixels, ends exclusive)
and a file name in its first column, one line per box. A photo with several boxes of a
class is found if its predicted box meets any of them. Prints one table: accuracy at
IoU 0.3, 0.5 and 0.7, mean IoU, MaxBoxAccV2, and the time per photo as a ratio to the
original pipeline. All methods use the notebook's own functions.
"""
import argparse
import csv
import os
import sys
import time
from collections import defaultdict
from pathlib import Path

import cv2
import numpy as np
from scipy.ndimage import zoom

LEVELS = 0.3, 0.5, 0.7
THRESHOLDS = np.arange(0, 1, 0.01)


def load_notebook(network):
    """Names that the notebook defines, run with `network`."""
    from IPython.core.interactiveshell import InteractiveShell
    from IPython.utils.capture import capture_output
    os.environ["CAM_NETWORK"] = network
    os.environ.setdefault("MPLBACKEND", "Agg")
    here = os.getcwd()
    os.chdir(Path(__file__).parents[1])
    shell = InteractiveShell.instance()
    with capture_output():
        shell.safe_execfile_ipy("cam_localization.ipynb", raise_exceptions=True)
    os.chdir(here)
    return shell.user_ns


def read_boxes(path):
    """{(file, class index): [box, ...]} of a CSV file, in the file's order."""
    truth = defaultdict(list)
    with open(path, newline="", encoding="utf8") as file:
        for row in csv.DictReader(file):
            name = row.get("file") or row["image"]
            box = tuple(float(row[edge]) for edge in ("x0", "y0", "x1", "y1"))
            truth[name, int(row["class_index"])].append(box)
    return truth


def pairwise_iou(boxes, others):
    """IoU of every box with every other: (n, 4) and (m, 4) -> (n, m)."""
    boxes, others = np.asarray(boxes, float), np.asarray(others, float)
    low = np.maximum(boxes[:, None, :2], others[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], others[None, :, 2:])
    shared = np.clip(high - low, 0, None).prod(axis=-1)
    areas = [(b[:, 2:] - b[:, :2]).prod(axis=-1) for b in (boxes, others)]
    return shared / (areas[0][:, None] + areas[1][None] - shared)


def best_iou_per_threshold(heatmap, truth, thresholds=THRESHOLDS):
    """Best IoU of any contour's box with any true box, at each threshold.

    heatmap: (H, W), scaled to 0..1 by its own minimum and maximum (a flat map becomes
    0 and is one region at threshold 0). truth: (n, 4) boxes in its pixels.
    """
    spread = np.ptp(heatmap)
    scaled = (heatmap - heatmap.min()) / (spread if spread > 0 else 1)
    best = []
    for threshold in thresholds:
        mask = (scaled >= threshold).astype("uint8")
        contours, _ = cv2.findContours(mask, cv2.RETR_TREE, cv2.CHAIN_APPROX_SIMPLE)
        boxes = [(x, y, x + w, y + h) for x, y, w, h in map(cv2.boundingRect, contours)]
        best.append(pairwise_iou(boxes, truth).max() if boxes else 0.0)
    return np.array(best)


def max_box_acc_v2(best):
    """MaxBoxAccV2, 0..1 (Choe et al. 2020, arXiv 2001.07437).

    best: (photos, thresholds), from `best_iou_per_threshold`. For each IoU level the
    threshold that suits the whole set best counts; the mean over 0.3, 0.5 and 0.7.
    """
    best = np.asarray(best)
    return float(np.mean([(best >= level).mean(axis=0).max() for level in LEVELS]))


def summary(ious):
    """Accuracy at each IoU level and the mean IoU, 0..1."""
    ious = np.asarray(ious)
    return [float((ious >= level).mean()) for level in LEVELS] + [float(ious.mean())]


class Methods:
    """The pipelines compared: each takes a photo and a class, and returns the box in
    pixels of the photo and the score map for MaxBoxAccV2 (None for no map)."""

    def __init__(self, names):
        self.n = names

    def whole(self, photo):
        return 0, 0, photo.width, photo.height

    def features(self, photo, model=None):
        return self.n["forward"]([photo], model)[0][0]

    def boxed(self, heatmap, photo):
        box = self.n["cam_to_box"](heatmap)
        return self.n["place"](box, heatmap.shape, self.whole(photo)), heatmap

    def center(self, photo, index):
        w, h = photo.width, photo.height
        return (0.1 * w, 0.1 * h, 0.9 * w, 0.9 * h), None

    def original(self, photo, index):
        cam = self.n["class_activation_map"](self.features(photo), index)
        size = self.n["classifier"].size
        heatmap = zoom(cam, (size[0] / cam.shape[0], size[1] / cam.shape[1]), order=1)
        return self.boxed(heatmap, photo)

    def mapped(self, photo, index, kind, model=None):
        cam = self.n[kind](self.features(photo, model), index)
        return self.boxed(self.n["upsample"](cam, *self.n["classifier"].size), photo)

    def aligned(self, photo, index):
        return self.mapped(photo, index, "class_activation_map")

    def centered(self, photo, index):
        return self.mapped(photo, index, "centered_map")

    def finer(self, photo, index):
        network = self.n["classifier"]
        fine = self.n["fine_model"](network.model, network.size)
        return self.mapped(photo, index, "centered_map", fine)

    def second(self, photo, index):
        features, _ = self.n["forward"]([photo])
        [(region, _, cam)] = self.n["closer_look"]([photo], features, [index])
        size = self.n["classifier"].size
        box = self.n["cam_to_box"](self.n["upsample"](cam, *size))
        return self.n["place"](box, size, region), self.paste(cam, region, photo)

    def ours(self, photo, index):
        features, _ = self.n["forward"]([photo])
        return self.n["look_twice"]([photo], features, [index])[0], None

    def paste(self, cam, region, photo):
        """The map of a region, laid at its place into a map of the whole photo."""
        rows, columns = self.n["classifier"].size
        scale = np.tile((columns / photo.width, rows / photo.height), 2)
        x0, y0, x1, y1 = np.rint(np.multiply(region, scale)).astype(int)
        heatmap = np.full((rows, columns), cam.min(), "float32")
        heatmap[y0:y1, x0:x1] = self.n["upsample"](cam, max(1, y1 - y0), max(1, x1 - x0))[
            :y1 - y0, :x1 - x0]
        return heatmap


ROWS = [("centered box of 80 %", "center"), ("original pipeline", "original"),
        ("+ aligned zoom", "aligned"), ("+ centered map", "centered"),
        ("+ finer map", "finer"), ("+ second look", "second"),
        ("+ colors: ours", "ours")]


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--network", default="auto")
    parser.add_argument("--images", default="images")
    parser.add_argument("--boxes", default="images/boxes.csv")
    parser.add_argument("--csv", help="write one line per photo and method")
    options = parser.parse_args(arguments)
    folder, truth = Path(options.images), read_boxes(options.boxes)
    network = options.network
    if Path(network).exists():
        network = str(Path(network).resolve())
    names = load_notebook(network)
    methods = Methods(names)
    ious, best = defaultdict(list), defaultdict(list)
    seconds, lines, unread = defaultdict(list), [], []
    progress = names["keras"].utils.Progbar(len(truth), unit_name="photo")
    for step, ((file, index), boxes) in enumerate(truth.items(), 1):
        try:
            photo = names["prepare"](names["read_image"](folder / file))
        except ValueError as error:
            unread.append(str(error))
            continue
        for title, method in ROWS:
            start = time.perf_counter()
            box, heatmap = getattr(methods, method)(photo, index)
            seconds[title].append(time.perf_counter() - start)
            ious[title].append(pairwise_iou([box], boxes).max())
            lines.append([file, index, title, *map(float, box), ious[title][-1]])
            if heatmap is not None:
                scale = np.tile((heatmap.shape[1] / photo.width,
                                 heatmap.shape[0] / photo.height), 2)
                best[title].append(best_iou_per_threshold(heatmap, boxes * scale))
        progress.update(step)
    print_table(ious, best, seconds, unread, names["classifier"].name)
    if options.csv:
        with open(options.csv, "w", newline="", encoding="utf8") as out:
            writer = csv.writer(out)
            writer.writerow("file class_index method x0 y0 x1 y1 iou".split())
            writer.writerows(lines)
    return {title: summary(values) for title, values in ious.items()}


def print_table(ious, best, seconds, unread, network):
    """One line per method; times are medians, as ratios to the original pipeline."""
    base = np.median(seconds["original pipeline"])
    print(f"\nnetwork {network}, {len(ious['original pipeline'])} photos and classes")
    print(f"{'':22}{'IoU>=.3':>8}{'>=.5':>8}{'>=.7':>8}{'mean':>8}{'MaxBoxV2':>10}{'time':>7}")
    for title, values in ious.items():
        cells = "".join(f"{value:8.3f}" for value in summary(values))
        wsol = f"{max_box_acc_v2(best[title]):10.3f}" if best[title] else f"{'':10}"
        print(f"{title:22}{cells}{wsol}{np.median(seconds[title]) / base:7.2f}")
    if unread:
        print(f"{len(unread)} photos could not be read:", *unread, sep="\n  ")


if __name__ == "__main__":
    main(sys.argv[1:])
