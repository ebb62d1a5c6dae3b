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
from pathlib import Path
from statistics import median

import cv2
import matplotlib.pyplot as plt
import numpy as np
import psutil
from evaluate_localization import run_notebook
from scipy.ndimage import zoom

SIZE, THREADS, BATCH, PHOTOS = (224, 224), "2", 16, 32
OWN_PHOTOS = sorted(map(str, Path("images").glob("*.jpg")))
OURS, EXPORTED, BOX = "ours (TensorFlow)", "ours, exported (OpenVINO)", "find_box"
state = {}


def ours(row, file, view):
    """What is timed of the notebook's own functions."""
    n = run_notebook(file, "export")
    model = n.export(f"{file}_exported") if row == EXPORTED else n.model
    views = [*view] * BATCH
    [features], [scores] = n.forward(view, model)
    return {
        "run": lambda: n.upsample(n.localize(view[0], model=model).cam, *SIZE),
        "read": lambda *paths: [n.view_of(n.load(path)) for path in paths],
        "pass": lambda: model.predict_on_batch(view),
        "finish": lambda: n.upsample(n.explain(features, scores).cam, *SIZE),
        "batches": lambda: [n.forward(views, model) for _ in range(PHOTOS // BATCH)],
        "folder": lambda *paths: [*n.localize_folder(paths, model)],
    }


def find_box(row, file, view):
    """The notebook's box; weights that make a spot give GrabCut something to decide."""
    n = run_notebook(file)
    [maps], _ = n.forward(view, n.sharp_model)
    y, x = np.ogrid[-1 : 1 : len(maps) * 1j, -1 : 1 : len(maps) * 1j]
    spot = 1.2 * np.exp(-(x**2 + y**2) / 0.6) - 0.2
    n.W[:] = 0
    n.W[:, 0] = np.linalg.lstsq(np.float64(maps.reshape(-1, len(n.W))), spot.ravel())[0]
    mask = np.uint8([0, 2, 3, 1])[n.box_stages(view[0], 0)[1]]
    small = cv2.resize(view[0], mask.shape, interpolation=cv2.INTER_AREA)
    cut = [small, mask, None, *np.zeros((2, 1, 65)), 1, cv2.GC_INIT_WITH_MASK]
    return {
        "run": lambda: n.find_box(view[0], 0),
        "finer network": lambda: n.forward(view, n.sharp_model),
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
    if row == "tf-keras-vis GradCAM":
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
    if row == "pytorch-grad-cam GradCAM":
        from pytorch_grad_cam import GradCAM

        return {"run": partial(GradCAM(network, [network.layer4[-1]]), pixels, None)}
    if row == "torchcam CAM":
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
KERAS = "original tutorial", "keras.io Grad-CAM", "tf-keras-vis GradCAM"
BUILDERS = {OURS: ours, EXPORTED: ours, BOX: find_box}
BUILDERS |= dict.fromkeys((*KERAS, "tf-explain GradCAM"), keras_peer)
TORCH = "pytorch-grad-cam GradCAM", "torchcam CAM", ONNX
BUILDERS |= dict.fromkeys(TORCH, torch_peer)
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


def report(s, failures, small, large):
    """Print the ratio of each row to ours, draw them, print all else with its target."""
    ratios = {row: s[job] / s[OURS, "run"] for row, job in ROWS.items() if job in s}
    for row, (worker, _) in ROWS.items():
        print(f"{row:36}", f"{ratios[row]:7.2f}" if row in ratios else failures[worker])
    fig, ax = plt.subplots(figsize=(8, 4.5), layout="constrained")
    ax.bar_label(ax.barh([*ratios], [*ratios.values()], color="0.6"), fmt=" {:.2g}")
    ax.set(xscale="log", xlabel="time as a ratio to ours, log scale; shorter is faster")
    ax.invert_yaxis()
    ax.margins(x=0.1)
    fig.savefig(".github/benchmark.png")
    print(f"{'':46} measured  target")
    line = "{:46} {:8.2f}  {}".format
    if BOX not in failures:
        print(line("find_box / bare pass", ratios[BOX] / ratios[BARE], "2.5"))
        for part in ("finer network", "GrabCut"):
            print(line(f"{part} / bare pass", s[BOX, part] / s[OURS, "pass"], ""))
    if EXPORTED not in failures:
        print(line("exported / bare", ratios[EXPORTED] / ratios[OPENVINO], "1.15"))
    for row in (x for x in (OURS, EXPORTED) if x not in failures):
        one, twelve = (s[(row, "folder", *paths)] for paths in (small, large))
        for megapixels, took in {1: one, 12: twelve}.items():
            print(line(f"{row}: photos a second, {megapixels} MP", PHOTOS / took, ""))
        print(line(f"{row}: 12 MP / 1 MP", twelve / one, "1.6"))
        together = s[row, "batches"] + s[(OURS, "read", *small)]
        print(line(f"{row}: folder / its parts", one / together, "1.1"))
    beside = median(s[OURS, "read", p] for p in OWN_PHOTOS) + s[OURS, "finish"]
    print(line("all beside the pass / pass", beside / s[OURS, "pass"], "0.10"))


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
        small, large = ([*write_photos(folder, size)] for size in (1, 12))
        plan = [*ROWS.values(), (BOX, "finer network"), (BOX, "GrabCut")]
        for row in (OURS, EXPORTED):
            plan += [(row, "folder", *small), (row, "folder", *large), (row, "batches")]
        plan += [(OURS, "finish"), (OURS, "read", *small)]
        plan += [(OURS, "read", path) for path in OWN_PHOTOS]
        first = [(OURS, "folder", *small[:25] * n) for n in (2, 38) if options.memory]
        s, memory, failures = take_turns(first + plan * (options.repeats + 1), file)
    print(f"ResNet-50, random weights, one photo, {THREADS} threads; ratios of medians")
    report(s, failures, small, large)
    if first:
        growth = memory[first[1]] - memory[first[0]]
        print(f"memory, from the 50th to the 1,000th photo: {growth:+.0f} MB")


if __name__ == "__main__":
    main()
