"""Compare the notebook's maps with what else one would use, in time and memory.

    pip install -r requirements.txt -r tests/benchmark-requirements.txt
    python3 tests/benchmark.py [--repeats 7] [--memory]

Run it in the project's folder with 10 GB of memory. Each row lives in a process of
its own that waits without spinning; all take turns on one photo at the network's size.
"""

import argparse
import os
import tempfile
import time
from collections import defaultdict
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from statistics import median
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
OWN_PHOTOS = sorted(map(str, Path("images").glob("*.jpg")))
OURS, EXPORTED, BOX = "ours (TensorFlow)", "ours, exported (OpenVINO)", "find_box"
state = {}


def ours(row, file, view):
    """What is timed of the notebook's own functions."""
    n = run_notebook(file)
    bare = partial(n.model.predict_on_batch, view)
    if row == EXPORTED:
        cells = [x.source for x in nbformat.read("cam_localization.ipynb", 4).cells]
        [export] = [x for x in cells if "exported = SimpleNamespace" in x]
        InteractiveShell.instance().run_cell(export).raise_error()
        n.model, bare = n.exported, partial(n.fast, np.float32(view))
    predict, read = n.model.predict_on_batch, lambda path: n.view_of(n.load(path))
    answer = [*predict(view)]
    without_pass = patch.object(n.model, "predict_on_batch", lambda _: answer)
    return {
        "run": lambda: n.upsample(n.localize(view[0]).cam, *SIZE),
        "pass": bare,
        "passes": lambda k: [predict(x) for x in [view.repeat(k, 0)] * (PHOTOS // k)],
        "read": lambda threads, *paths: [*ThreadPoolExecutor(threads).map(read, paths)],
        "folder": lambda *paths: n.localize_folder([*map(Path, paths)])["cam"].map(len),
        "beside": without_pass(lambda x: n.upsample(n.row_of(Path(x))["cam"], *SIZE)),
    }


def find_box(row, file, view):
    """The notebook's box; weights that make a spot give GrabCut something to decide."""
    n = run_notebook(file)
    finer = partial(n.finer(n.model).predict_on_batch, view)
    [maps], _ = finer()
    assert len(maps) == 14, "The finer map is not finer."
    y, x = np.ogrid[-1 : 1 : len(maps) * 1j, -1 : 1 : len(maps) * 1j]
    spot = 1.2 * np.exp(-(x**2 + y**2) / 0.6) - 0.2
    n.W[:] = 0
    n.W[:, 0] = np.linalg.lstsq(np.float64(maps.reshape(-1, len(n.W))), spot.ravel())[0]
    return {"run": partial(n.find_box, view[0], 0), "finer pass": finer}


def keras_peer(row, file, view):
    """What runs another way to a map with Keras, from the view."""
    import keras
    import tensorflow as tf

    network = keras.models.load_model(file)
    weights = network.layers[-1].get_weights()[0]
    ends = keras.Model(network.inputs, [network.layers[-2].input, network.outputs[0]])

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

        return {"run": partial(Gradcam(network), CategoricalScore(0), np.float32(view))}
    from tf_explain.core.grad_cam import GradCAM

    explained = (view, None), network, 0, "conv5_block3_out"
    return {"run": partial(GradCAM().explain, *explained)}


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

    torch.onnx.export(network, pixels, f"{file}.onnx", input_names=["x"], dynamo=False)
    session = onnxruntime.InferenceSession(f"{file}.onnx")
    return {"run": partial(session.run, None, {"x": pixels.numpy()})}


ONNX, OPENVINO, BARE = "ONNX Runtime, bare", "OpenVINO, bare", "Keras, bare"
KERAS = "original tutorial", "keras.io Grad-CAM (eager, backward)"
KERAS += "tf-keras-vis GradCAM", "tf-explain GradCAM"
TORCH = "pytorch-grad-cam GradCAM", "torchcam CAM", ONNX
BUILDERS = {OURS: ours, EXPORTED: ours, BOX: find_box}
BUILDERS |= dict.fromkeys(KERAS, keras_peer) | dict.fromkeys(TORCH, torch_peer)
TARGETS = {KERAS[0]: "> 50", KERAS[2]: "> 8", TORCH[0]: "> 3", TORCH[1]: "> 1.2"}
FOLDERS = {f"{row}: folder": (row, "folder") for row in (OURS, EXPORTED)}
FOLDERS |= {"reading": (OURS, "read", 1), "reading, two threads": (OURS, "read", 2)}
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
    ax.margins(x=0.1)
    ax.invert_yaxis()
    fig.savefig(".github/benchmark.png")
    s, bare, read = defaultdict(lambda: np.nan, s), s[ROWS[BARE]], FOLDERS["reading"]
    lines = [(row, ratios.get(row, np.nan), TARGETS.get(row, "")) for row in ROWS]
    lines += [("find_box / bare pass", s[BOX, "run"] / bare, "< 2.5")]
    lines += [("its finer pass / bare pass", s[BOX, "finer pass"] / bare, "")]
    lines += [("exported / its pass", s[EXPORTED, "run"] / s[ROWS[OPENVINO]], "< 1.15")]
    beside = median(s[OURS, "beside", path] for path in OWN_PHOTOS)
    lines += [("all beside the pass / pass", beside / bare, "< 0.1")]
    for row in (OURS, EXPORTED):
        small, large = (s[(row, "folder", *paths)] for paths in files.values())
        lines += [(f"{row}: folder, 12 MP / 1 MP", large / small, "< 1.6")]
        for k in (1, BATCH):
            parts = s[row, "passes", k] + s[(*read, *files[1])]
            lines += [(f"same, 1 MP / (passes of {k} + reading)", small / parts, "")]
    for name, job in FOLDERS.items():
        rates = {size: PHOTOS / s[(*job, *paths)] for size, paths in files.items()}
        lines += [(f"{name}, {x} MP", rates[x], "photos a second") for x in rates]
    for name, number, note in lines:
        print(f"{name:46} {number:8.2f}  {failures.get(name, note)}")


def main():
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--memory", action="store_true")
    args = parser.parse_args()
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
        plan = [*ROWS.values(), (BOX, "finer pass")]
        plan += [(*x, *paths) for x in FOLDERS.values() for paths in files.values()]
        plan += [(x, "passes", size) for x in (OURS, EXPORTED) for size in (1, BATCH)]
        plan += [(OURS, "beside", path) for path in OWN_PHOTOS]
        first = [(OURS, "folder", *files[1][:25] * n) for n in (2, 38) if args.memory]
        s, memory, failures = take_turns(first + plan * (args.repeats + 1), file)
    print(f"ResNet-50, random weights, one photo, {THREADS} threads; ratios of medians")
    report(s, failures, files)
    if first:
        print(f"50th to 1,000th photo: {memory[first[1]] - memory[first[0]]:+.0f} MB")


if __name__ == "__main__":
    main()
