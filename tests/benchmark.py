"""Compare the notebook's maps with what else one would use, in time and memory.

    pip install -r requirements.txt -r tests/benchmark-requirements.txt
    python3 tests/benchmark.py [--repeats 7] [--memory]

Run it in the project's folder with 10 GB of memory. Each row lives in a process of
its own that waits without spinning; all take turns on one photo at the network's size.
"""

import argparse
import copy
import os
import tempfile
import time
from collections import defaultdict
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from multiprocessing.pool import ThreadPool
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from unittest.mock import patch

import cv2
import matplotlib.pyplot as plt
import nbformat
import numpy as np
import psutil
from evaluate_localization import run_notebook
from IPython.core.interactiveshell import InteractiveShell
from scipy.ndimage import zoom

SIZE, THREADS, BATCH, PHOTOS = (224, 224), "2", 16, 32
NOTEBOOK = "cam_localization.ipynb"
OWN_PHOTOS = sorted(map(str, Path("images").glob("*.jpg")))
OURS, EXPORTED, BOX = "ours (TensorFlow)", "ours, exported (OpenVINO)", "find_box"
state = {}


def ours(row, file, view):
    """What is timed of the notebook's own functions."""
    n = run_notebook(file)
    bare = partial(n.model.predict_on_batch, view)
    if row == EXPORTED:
        cells = [cell.source for cell in nbformat.read(NOTEBOOK, 4).cells]
        [export] = [x for x in cells if "exported = SimpleNamespace" in x]
        InteractiveShell.instance().run_cell(export).raise_error()
        n.model, bare = n.exported, partial(n.fast, np.float32(view))
    answer = [*n.model.predict_on_batch(view)]
    stored = SimpleNamespace(predict_on_batch=lambda views: answer)
    stored.input_shape = n.model.input_shape

    def passes(size):
        for _ in range(PHOTOS // size):
            n.model.predict_on_batch(np.repeat(view, size, axis=0))

    def read(threads, *paths):
        with ThreadPool(threads) as pool:
            pool.map(lambda path: n.view_of(n.load(path)), paths, 1)

    def folder(*paths):
        assert n.localize_folder([*map(Path, paths)])["logit"].notna().all()

    def beside(path):
        with patch.object(n, "model", stored):
            n.upsample(n.row_of(Path(path))["cam"], *SIZE)

    own = {"run": lambda: n.upsample(n.localize(view[0]).cam, *SIZE), "pass": bare}
    return own | {"passes": passes, "read": read, "folder": folder, "beside": beside}


def find_box(row, file, view):
    """The notebook's box; weights that make a spot give GrabCut something to decide."""
    n = run_notebook(file)
    fine = n.finer(n.model)
    assert fine is not n.model, "no finer network"
    [maps], _ = fine.predict_on_batch(view)
    y, x = np.ogrid[-1 : 1 : len(maps) * 1j, -1 : 1 : len(maps) * 1j]
    spot = 1.2 * np.exp(-(x**2 + y**2) / 0.6) - 0.2
    n.W[:] = 0
    n.W[:, 0] = np.linalg.lstsq(np.float64(maps.reshape(-1, len(n.W))), spot.ravel())[0]
    mask = np.uint8([0, 2, 3, 1])[n.follow_colors(view[0], n.finer_cam(view[0], 0))[0]]
    small = cv2.resize(view[0], mask.shape, interpolation=cv2.INTER_AREA)
    cut = [small, mask, None, *np.zeros((2, 1, 65)), 1, cv2.GC_INIT_WITH_MASK]
    return {
        "run": lambda: n.find_box(view[0], 0),
        "finer pass": lambda: fine.predict_on_batch(view),
        "GrabCut": lambda: cv2.grabCut(*copy.deepcopy(cut)),
    }


def keras_peer(row, file, view):
    """What runs another way to a map with Keras, from the view."""
    import keras
    import tensorflow as tf

    network = keras.models.load_model(file)
    weights = network.layers[-1].get_weights()[0]
    outputs = [network.layers[-2].input, network.outputs[0]]
    ends = keras.Model(network.inputs[0], outputs)

    def original():
        [maps], [scores] = ends.predict(view, verbose=0)
        return zoom(maps, (32, 32, 1), order=1) @ weights[:, scores.argmax()]

    def keras_io():
        with tf.GradientTape() as tape:
            maps, scores = ends(tf.cast(view, "float32"))
            score = scores[:, tf.argmax(scores[0])]
        alpha = tf.reduce_mean(tape.gradient(score, maps), axis=(0, 1, 2))
        heat = tf.maximum(tf.linalg.matvec(maps[0], alpha), 0).numpy()
        return cv2.resize(heat / heat.max(), SIZE)

    if row in KERAS[:2]:
        return {"run": original if row == KERAS[0] else keras_io}
    if row == KERAS[2]:
        from tf_keras_vis.gradcam import Gradcam
        from tf_keras_vis.utils.scores import CategoricalScore

        cam = Gradcam(network)
        return {"run": lambda: cam(CategoricalScore(0), np.float32(view))}
    from tf_explain.core.grad_cam import GradCAM

    explain = GradCAM().explain
    return {"run": lambda: explain((view, None), network, 0, "conv5_block3_out")}


def torch_peer(row, file, view):
    """What runs torchvision's ResNet-50, with the photo at its size."""
    import torch
    from torchvision.models import resnet50

    network = resnet50(weights=None).eval()
    pixels = torch.from_numpy(np.float32(view.transpose(0, 3, 1, 2).copy()) / 255)
    if row == TORCH[0]:
        from pytorch_grad_cam import GradCAM

        return {"run": partial(GradCAM(network, [network.layer4[-1]]), pixels, None)}
    if row == TORCH[1]:
        from torchcam.methods import CAM

        cam, enlarge = CAM(network, "layer4"), torch.nn.UpsamplingBilinear2d(SIZE)

        @torch.inference_mode()
        def run():
            scores = network(pixels)
            return enlarge(cam(scores.argmax().item(), scores)[0][:, None])

        return {"run": run}
    import onnxruntime

    torch.onnx.export(network, (pixels,), f"{file}.onnx", dynamo=False)
    session = onnxruntime.InferenceSession(f"{file}.onnx")
    inputs = {session.get_inputs()[0].name: pixels.numpy()}
    return {"run": lambda: session.run(None, inputs)}


ONNX, OPENVINO, BARE = "ONNX Runtime, bare", "OpenVINO, bare", "Keras, bare"
KERAS = "original tutorial", "keras.io Grad-CAM (eager, backward)"
KERAS += "tf-keras-vis GradCAM", "tf-explain GradCAM"
BUILDERS = {OURS: ours, EXPORTED: ours, BOX: find_box}
BUILDERS |= dict.fromkeys(KERAS, keras_peer)
TORCH = "pytorch-grad-cam GradCAM", "torchcam CAM", ONNX
BUILDERS |= dict.fromkeys(TORCH, torch_peer)
TARGETS = {KERAS[0]: "at least 50", KERAS[2]: "at least 8"}
TARGETS |= {TORCH[0]: "at least 3", TORCH[1]: "at least 1.2"}
FOLDERS = {f"{row}: folder": (row, "folder") for row in (OURS, EXPORTED)}
FOLDERS |= {f"reading alone, threads: {x}": (OURS, "read", x) for x in (1, 2)}
ROWS = {row: (row, "run") for row in BUILDERS}
ROWS |= {BARE: (OURS, "pass"), OPENVINO: (EXPORTED, "pass")}


def measure(file, row, command, *arguments):
    """Seconds (median after a first call, if short), memory; in the row's process."""
    if not state:
        for stream in (1, 2):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
        photo = cv2.imread("images/german_shepherd.jpg")[..., ::-1].copy()
        view = cv2.resize(photo, SIZE, interpolation=cv2.INTER_AREA)[None]
        state.update(BUILDERS[row](row, file, view))
    seconds = []
    while len(seconds) < 6 and sum(seconds) < 2:
        start = time.perf_counter()
        state[command](*arguments)
        seconds.append(time.perf_counter() - start)
    return median(seconds[1:] or seconds), psutil.Process().memory_info().rss / 1e6


def take_turns(jobs, file):
    """Medians of the seconds of each job, its memory, and why rows failed."""
    workers = {row: ProcessPoolExecutor(1, get_context("spawn")) for row in BUILDERS}
    seconds, memory, failures = defaultdict(list), {}, {}
    for job in jobs:
        if job[0] not in failures:
            answer = workers[job[0]].submit(measure, file, *job)
            if error := answer.exception():
                failures[job[0]] = f"{type(error).__name__}: {error}".split("\n")[0]
            else:
                took, memory[job] = answer.result()
                seconds[job].append(took)
    return {job: median(x[1:] or x) for job, x in seconds.items()}, memory, failures


def write_photos(folder, megapixels):
    """Paths of JPEG files of that size, with the noise of a sensor."""
    for number in range(PHOTOS):
        image = cv2.imread(OWN_PHOTOS[number % len(OWN_PHOTOS)])
        scale = (megapixels * 1e6 / image[..., 0].size) ** 0.5
        image = cv2.resize(image, None, fx=scale, fy=scale)
        noise = cv2.randn(np.zeros(image.shape, "int16"), 0, 5)
        path = f"{folder}/{megapixels}_{number}.jpg"
        cv2.imwrite(path, np.uint8(np.clip(image + noise, 0, 255)))
        yield path


def report(s, failures, files):
    """Print the ratio of each row to ours, draw them, print all else with its target."""
    ratios = {row: s[job] / s[OURS, "run"] for row, job in ROWS.items() if job in s}
    fig, ax = plt.subplots(figsize=(8, 4.5), layout="constrained")
    ax.bar_label(ax.barh([*ratios], [*ratios.values()], color="0.6"), fmt=" {:.2g}")
    ax.set(xscale="log", xlabel="time as a ratio to ours, log scale; shorter is faster")
    ax.invert_yaxis()
    ax.margins(x=0.1)
    fig.savefig(".github/benchmark.png")
    s, bare, exported = defaultdict(lambda: np.nan, s), s[ROWS[BARE]], ROWS[OPENVINO]
    beside = median(s[OURS, "beside", path] for path in OWN_PHOTOS)
    lines = [(row, ratios.get(row, np.nan), TARGETS.get(row, "")) for row in ROWS]
    lines += [(f"{BOX} / {BARE}", s[BOX, "run"] / bare, "at most 2.5")]
    lines += [
        (f"{x} / {BARE}", s[BOX, x] / bare, "") for x in ("finer pass", "GrabCut")
    ]
    lines += [("exported / its pass", s[EXPORTED, "run"] / s[exported], "at most 1.15")]
    lines += [("all beside the pass / pass", beside / bare, "at most 0.1")]
    for row in (OURS, EXPORTED):
        small, large = (s[(row, "folder", *paths)] for paths in files.values())
        for size in (BATCH, 1):
            parts = s[row, "passes", size] + s[(OURS, "read", 1, *files[1])]
            name = f"{row}: folder / (passes, {size} a time, + reading)"
            lines.append((name, small / parts, ""))
        lines.append((f"{row}: folder, 12 MP / 1 MP", large / small, "at most 1.6"))
    for name, job in FOLDERS.items():
        rates = {size: PHOTOS / s[(*job, *paths)] for size, paths in files.items()}
        lines += [(f"{name}, {x} MP", rates[x], "photos a second") for x in rates]
    for name, number, note in lines:
        print(f"{name:62} {number:6.2f}  {failures.get(name, note)}")


def main():
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--memory", action="store_true")
    options = parser.parse_args()
    os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS"), THREADS)
    os.environ |= {"OPENBLAS_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: int(THREADS)])
    from keras import Input, applications

    with tempfile.TemporaryDirectory() as folder:
        file = f"{folder}/resnet50.keras"
        pixels = applications.resnet.preprocess_input(Input((*SIZE, 3)))
        applications.ResNet50(weights=None, input_tensor=pixels).save(file)
        files = {size: [*write_photos(folder, size)] for size in (1, 12)}
        plan = [*ROWS.values(), (BOX, "finer pass"), (BOX, "GrabCut")]
        plan += [(*x, *paths) for x in FOLDERS.values() for paths in files.values()]
        plan += [(x, "passes", size) for x in (OURS, EXPORTED) for size in (1, BATCH)]
        plan += [(OURS, "beside", path) for path in OWN_PHOTOS]
        first = [
            (OURS, "folder", *files[1][:25] * n) for n in (2, 38) if options.memory
        ]
        s, memory, failures = take_turns(first + plan * (options.repeats + 1), file)
    print(f"ResNet-50, random weights, one photo, {THREADS} threads; ratios of medians")
    report(s, failures, files)
    if first:
        growth = memory[first[1]] - memory[first[0]]
        print(f"memory, from the 50th to the 1,000th photo: {growth:+.0f} MB")


if __name__ == "__main__":
    main()
