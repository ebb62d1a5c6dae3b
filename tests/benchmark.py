"""Compare the notebook's maps with what else one would use: time and memory.

    python -m venv .venv && . .venv/bin/activate
    pip install -r requirements.txt -r tests/benchmark-requirements.txt
    python tests/benchmark.py [--repeats 7] [--memory] [--plot FILE]

Prints one table of ratios to ours, the parts of our own time, how cost grows, and
whether each target is met; saves one plot. All rows take ResNet-50 with random
weights: Keras's, or torchvision's. Each row lives in a process of its own that waits
without spinning; the processes take turns. What cannot run is a row with the reason.
"""
import argparse
import ast
import contextlib
import functools
import importlib.metadata
import io
import itertools
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter, namedtuple
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from types import ModuleType

import cv2
import numpy as np
from PIL import Image as Picture

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOK = ROOT / "cam_localization.ipynb"
OWN_PHOTOS = sorted(map(str, (ROOT / "images").glob("*.jpg")))
SIDE, BATCH = 224, 16
PARTS = "decode", "resize", "forward", "weight", "zoom"
CORES = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count()
SETTINGS = {"OMP_WAIT_POLICY": "PASSIVE", "MPLBACKEND": "agg", "NPROC": str(CORES),
            "OMP_NUM_THREADS": str(CORES), "TF_NUM_INTRAOP_THREADS": str(CORES),
            "TF_NUM_INTEROP_THREADS": str(CORES), "TF_CPP_MIN_LOG_LEVEL": "3",
            "CAM_NETWORK": "models/efficientnet_lite0.keras"}


# ---- Photos ----------------------------------------------------------------------

def write_photo(source, megapixels, target):
    """Write a picture file at a size in megapixels, in the format of the target."""
    image = cv2.imread(str(source))
    scale = (megapixels * 1e6 / image.shape[0] / image.shape[1]) ** 0.5
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    cv2.imwrite(str(target), cv2.resize(image, None, fx=scale, fy=scale,
                                        interpolation=method))
    return str(target)


def write_folder(folder, count):
    """Paths of `count` photos of mixed sizes (0.1 to 2 megapixels) and formats."""
    rng = np.random.default_rng(0)
    sizes = rng.permutation(np.resize((0.1, 0.3, 0.8, 2), count))
    kinds = rng.permutation(np.resize(("png", "webp", *["jpg"] * 6), count))
    return [write_photo(OWN_PHOTOS[i % len(OWN_PHOTOS)], size, folder / f"{i:02}.{kind}")
            for i, (size, kind) in enumerate(zip(sizes, kinds))]


def read(path):
    """uint8 RGB array (H, W, 3) of a picture file, as the peers read it."""
    with Picture.open(path) as picture:
        return np.asarray(picture.convert("RGB"))


def to_view(image):
    """The image at the network's input size."""
    return cv2.resize(image, (SIDE, SIDE), interpolation=cv2.INTER_AREA)


# ---- What is measured; each class or function runs in a process of its own ----------

class Method:
    """A way from photos to heat maps. run: uint8 views (N, 224, 224, 3) -> maps;
    batch: how many views it takes at once; precision: of OpenVINO's numbers."""

    def __init__(self, run, batch=BATCH, precision=None):
        self.run, self.batch, self.precision = run, batch, precision

    def get_ready(self, path, paths):
        """Take the path of the single photo, and those of the folder; warm up."""
        self.path, self.image = path, read(path)
        if self.batch > 1:
            self.folder(paths[:self.batch])
        self.one()

    def one(self):
        self.run(to_view(self.image)[None])

    def folder(self, paths):
        for start in range(0, len(paths), self.batch):
            images = map(read, paths[start:start + self.batch])
            self.run(np.stack([to_view(image) for image in images]))


class Bare(Method):
    """Only a forward pass: the views are ready before the clock starts."""

    def get_ready(self, path, paths):
        self.view = to_view(read(path))[None]
        self.views = {path: to_view(read(path)) for path in paths}
        super().get_ready(path, paths)

    def one(self):
        self.run(self.view)

    def folder(self, paths):
        views = np.stack([self.views[path] for path in paths])
        for start in range(0, len(views), self.batch):
            self.run(views[start:start + self.batch])


class Decoding(Method):
    """Picture files to arrays, nothing else."""

    def __init__(self):
        super().__init__(run=None)

    def one(self):
        read(self.path)

    def folder(self, paths):
        for path in paths:
            read(path)


def load_notebook():
    """Module of what the notebook's cells define, without what they compute."""
    module = sys.modules["notebook_cells"] = ModuleType("notebook_cells")
    for cell in json.loads(NOTEBOOK.read_text("utf8"))["cells"]:
        if cell["cell_type"] == "code":
            tree = ast.parse("".join(cell["source"]))
            if "parameters" not in cell["metadata"].get("tags", []):
                tree.body = list(filter(defines, tree.body))
            exec(compile(tree, NOTEBOOK.name, "exec"), vars(module))
    return module


def defines(node):
    """Whether a statement imports, defines, or sets a constant, an option or a memo."""
    if isinstance(node, (ast.With, ast.If)):
        return all(map(defines, node.body))
    if isinstance(node, ast.Assign):
        [target] = node.targets if len(node.targets) == 1 else [None]
        return isinstance(target, ast.Attribute) or isinstance(target, ast.Name) and (
            target.id[0].isupper() or ast.unparse(node.value) == "{}")
    return isinstance(node, (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef))


def keras_resnet50(classes=1000, **options):
    """Keras's ResNet-50 with random weights, which takes raw RGB pixels."""
    import keras
    keras.utils.set_random_seed(0)
    resnet = keras.applications.resnet
    pixels = resnet.preprocess_input(keras.Input((None, None, 3)))
    return resnet.ResNet50(weights=None, input_tensor=pixels, classes=classes,
                           **options)


class Ours(Method):
    """The notebook's own functions, with the box rule of that name."""

    def __init__(self, rule="paper_boxes"):
        super().__init__(run=None)
        self.rule, self.n, self.networks = rule, load_notebook(), {}
        self.n.find_boxes = getattr(self.n, rule)
        self.take_classes(1000)

    def take_classes(self, classes):
        """Make a ResNet-50 with that many classes the notebook's network."""
        if classes not in self.networks:
            network = self.n.open_up("ResNet-50", keras_resnet50(classes))
            self.networks[classes] = network
        self.n.classifier = self.networks[classes]

    def get_ready(self, path, paths):
        super().get_ready(path, paths)
        if compiled := getattr(self.n.classifier.model, "ov_compiled_model", None):
            self.precision = precision_of(compiled)

    def one(self):
        photo = self.n.prepare(self.image)
        features, logits = self.n.forward([photo])
        winner = int(logits[0].argmax())
        self.n.upsample(self.n.class_activation_map(features[0], winner), SIDE, SIDE)
        if self.rule == "look_twice":
            self.n.look_twice([photo], features, [winner])

    def folder(self, paths):
        for _ in self.n.localize_folder([Path(path) for path in paths]):
            pass

    def localize(self, path):
        self.n.localize(path)

    def classes(self, classes):
        self.take_classes(classes)
        self.one()

    def parts(self, path):
        """Seconds of each part of one run: file -> heat map of 224 x 224 pixels."""
        clock, n = [time.perf_counter()], self.n

        def tick(value):
            clock.append(time.perf_counter())
            return value
        photo = tick(n.prepare(tick(n.read_image(path))))
        features, logits = tick(n.forward([photo]))
        cam = tick(n.class_activation_map(features[0], int(logits[0].argmax())))
        tick(n.upsample(cam, SIDE, SIDE))
        return dict(zip(PARTS, np.diff(clock).tolist()))

    def traces(self):
        """How often TensorFlow traces the network anew for photos of five new sizes."""
        count = self.n.classifier.model.predict_function.experimental_get_tracing_count
        before = count()
        for side in range(200, 500, 60):
            self.n.localize(self.image[:side])
        return count() - before

    def growth(self, paths, count):
        """MB by which memory grows from the 50th to the last of `count` photos."""
        queue = [Path(path) for path in itertools.islice(itertools.cycle(paths), count)]
        for number, _ in enumerate(self.n.localize_folder(queue), 1):
            if number == min(50, count // 2):
                before = resident()
        return resident() - before

    def large(self, path):
        """MB above the idle process that a photo takes, localized and drawn."""
        idle = resident()
        self.n.show_cam(self.n.localize(path))
        return peak() - idle


def original():
    """The tutorial that all began with: enlarge 2,048 maps, then weigh them."""
    import keras
    from scipy.ndimage import zoom
    whole = keras_resnet50()
    gap = whole.layers[-2]
    model = keras.Model(whole.inputs[0], [gap.input, whole.output])
    weights = whole.layers[-1].get_weights()[0]

    def run(views):
        features, scores = model.predict(views, verbose=0)
        large = zoom(features[0], (SIDE / 7, SIDE / 7, 1), order=1)
        return large.reshape(-1, large.shape[2]) @ weights[:, scores[0].argmax()]
    return Method(run, batch=1)


def keras_io():
    """Grad-CAM as keras.io describes it; its two-output model is built only once."""
    import keras
    import tensorflow as tf
    whole = keras_resnet50(classifier_activation=None)
    model = keras.Model(whole.inputs[0], [whole.layers[-2].input, whole.output])

    def run(views):
        with tf.GradientTape() as tape:
            features, scores = model(tf.cast(views, "float32"))
            score = scores[:, tf.argmax(scores[0])]
        weights = tf.reduce_mean(tape.gradient(score, features), axis=(0, 1, 2))
        heat = tf.nn.relu(tf.linalg.matvec(features[0], weights))
        heat = (heat / tf.reduce_max(heat)).numpy()
        return cv2.resize(heat, (SIDE, SIDE))
    return Method(run, batch=1)


def tf_keras_vis():
    from tf_keras_vis.gradcam import Gradcam
    from tf_keras_vis.utils.model_modifiers import ReplaceToLinear
    from tf_keras_vis.utils.scores import CategoricalScore
    model = keras_resnet50()
    cam = Gradcam(model, model_modifier=ReplaceToLinear())
    layer = model.layers[-2].input._keras_history.operation.name
    return Method(lambda views: cam(
        CategoricalScore([0] * len(views)), views.astype("float32"),
        penultimate_layer=layer, seek_penultimate_conv_layer=False))


def tf_explain():
    from tf_explain.core.grad_cam import GradCAM
    model, cam = keras_resnet50(), GradCAM()
    layer = model.layers[-2].input._keras_history.operation.name
    return Method(lambda views: cam.explain((views, None), model, 0, layer), batch=1)


def torch_resnet50():
    """torchvision's ResNet-50 and a function from uint8 views to its input."""
    import torch
    from torchvision.models import resnet50
    mean, deviation = torch.tensor(((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))

    def to_input(views):
        pixels = (torch.from_numpy(views) / 255 - mean) / deviation
        return pixels.permute(0, 3, 1, 2).contiguous()
    return resnet50(weights=None).eval(), to_input


def pytorch_grad_cam(kind):
    import pytorch_grad_cam
    model, to_input = torch_resnet50()
    cam = getattr(pytorch_grad_cam, kind)(model, target_layers=[model.layer4[-1]])
    return Method(lambda views: cam(input_tensor=to_input(views), targets=None))


def torchcam(kind):
    import torch
    from torchcam import methods
    model, to_input = torch_resnet50()
    cam = getattr(methods, kind)(model, target_layer=model.layer4)

    def run(views):
        with torch.inference_mode() if kind == "CAM" else contextlib.nullcontext():
            scores = model(to_input(views))
        [maps] = cam(scores.argmax(1).tolist(), scores)
        return torch.nn.functional.interpolate(maps[:, None], (SIDE, SIDE),
                                               mode="bilinear").numpy()
    return Method(run)


def keras_predict():
    model = keras_resnet50()
    return Bare(lambda views: model.predict(views, verbose=0), batch=1)


def keras_pass():
    return Bare(keras_resnet50().predict_on_batch)


def export_onnx(path):
    import torch
    model, to_input = torch_resnet50()
    pixels = to_input(np.zeros((1, SIDE, SIDE, 3), "uint8"))
    torch.onnx.export(model, (pixels,), path, dynamo=False, input_names=["pixels"],
                      dynamic_axes={"pixels": {0: "photos"}})


def export_openvino(path):
    keras_resnet50().export(path, format="openvino", verbose=False)


def elsewhere(function, *arguments):
    """Call a function in a process of its own, which its memory ends with."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def onnx_pass():
    import onnxruntime
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = CORES
    with tempfile.TemporaryDirectory() as folder:
        elsewhere(export_onnx, path := str(Path(folder, "resnet50.onnx")))
        session = onnxruntime.InferenceSession(path, options)
    return Bare(lambda views: session.run(None, {"pixels": np.ascontiguousarray(
        views.transpose(0, 3, 1, 2), "float32")}))


def precision_of(compiled):
    """Name of the precision that a compiled OpenVINO model calculates in."""
    return compiled.get_property("INFERENCE_PRECISION_HINT").to_string()


def openvino_pass(precision):
    import openvino
    core = openvino.Core()
    if precision == "bf16" and "BF16" not in core.get_property(
            "CPU", "OPTIMIZATION_CAPABILITIES"):
        raise ValueError("this processor has no bfloat16")
    with tempfile.TemporaryDirectory() as folder:
        elsewhere(export_openvino, path := str(Path(folder, "resnet50.xml")))
        model = core.compile_model(path, "CPU", {
            "INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": CORES})
    return Bare(lambda views: model(views.astype("float32")),
                precision=precision_of(model))


class Stopwatch:
    """Seconds by part; what a part calls that is a part itself counts there only."""

    def __init__(self):
        self.seconds, self.parts = Counter(), ["other"]
        self.since = time.perf_counter()

    def turn(self):
        now = time.perf_counter()
        self.seconds[self.parts[-1]] += now - self.since
        self.since = now

    @contextlib.contextmanager
    def part(self, name):
        self.turn()
        self.parts.append(name)
        try:
            yield
        finally:
            self.turn()
            self.parts.pop()

    def watch(self, name, function):
        @functools.wraps(function)
        def watched(*arguments, **options):
            with self.part(name):
                return function(*arguments, **options)
        watched.watched = True
        return watched


class Notebook:
    """A whole run of the notebook, with the bundled network."""
    functions = {"load": ["load_network"], "read": ["read_image", "prepare"],
                 "forward": ["forward"], "zoom": ["upsample", "zoom"],
                 "weight": ["class_activation_map", "centered_map", "evidence_map"],
                 "box": ["cam_to_box", "follow_colors", "look_twice", "paper_boxes"],
                 "draw": ["show", "encode", "show_cells", "draw_panel", "show_panels"]}

    def get_ready(self, path, paths):
        pass

    def whole(self):
        """Seconds of each part."""
        from IPython.core.interactiveshell import InteractiveShell
        clock, shell, imported = Stopwatch(), InteractiveShell.instance(), False
        for cell in json.loads(NOTEBOOK.read_text("utf8"))["cells"]:
            if cell["cell_type"] == "code":
                imported |= "parameters" in cell["metadata"].get("tags", [])
                with clock.part("other" if imported else "import"):
                    shell.run_cell("".join(cell["source"])).raise_error()
                self.watch(clock, shell.user_ns)
        clock.turn()
        return dict(clock.seconds)

    def watch(self, clock, names):
        """Let the clock see the functions that the cells so far have defined."""
        places = [(names, name, part) for part, functions in self.functions.items()
                  for name in functions if name in names]
        if "plt" in names:
            places += [(names["keras"].Model, "predict_on_batch", "forward"),
                       (names["plt"], "subplots", "draw"),
                       (names["plt"].Figure, "savefig", "draw")]
        for place, name, part in places:
            get, put = (dict.get, dict.__setitem__) if place is names else (
                getattr, setattr)
            if not hasattr(function := get(place, name), "watched"):
                put(place, name, clock.watch(part, function))


Row = namedtuple("Row", "name build backend", defaults=("tensorflow",))
OURS = "ours, tensorflow"
ROWS = [
    Row(OURS, Ours),
    *(Row(f"ours, {name}", Ours, name) for name in ("jax", "torch", "openvino")),
    Row("ours with a second look", functools.partial(Ours, "look_twice")),
    Row("original tutorial", original),
    Row("Grad-CAM as on keras.io", keras_io),
    Row("tf-keras-vis GradCAM", tf_keras_vis),
    Row("tf-explain GradCAM", tf_explain),
    Row("pytorch-grad-cam GradCAM", functools.partial(pytorch_grad_cam, "GradCAM")),
    Row("pytorch-grad-cam EigenCAM", functools.partial(pytorch_grad_cam, "EigenCAM")),
    Row("torchcam CAM", functools.partial(torchcam, "CAM")),
    Row("torchcam GradCAM", functools.partial(torchcam, "GradCAM")),
    Row("pass only: Keras predict", keras_predict),
    Row("pass only: Keras predict_on_batch", keras_pass),
    Row("pass only: ONNX Runtime", onnx_pass),
    Row("pass only: OpenVINO float32", functools.partial(openvino_pass, "f32")),
    Row("pass only: OpenVINO bfloat16", functools.partial(openvino_pass, "bf16")),
    Row("decoding only", Decoding),
]
PEERS = [row.name for row in ROWS if not row.name.startswith(("ours", "pass", "deco"))]
QUICK = "tf-explain GradCAM", "pass only: Keras predict_on_batch", "decoding only"
HIDDEN = [Row("notebook", Notebook)]


# ---- A process per row -------------------------------------------------------------

def resident():
    """Memory of this process, MB."""
    import psutil
    return psutil.Process().memory_info().rss / 1e6


def peak():
    """The most memory that this process has had so far, MB."""
    status = Path("/proc/self/status")
    if status.exists():
        [line] = [x for x in status.read_text().splitlines() if x.startswith("VmHWM")]
        return int(line.split()[1]) * 1024 / 1e6
    import resource
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def serve(name, path, *paths):
    """Answer commands on the input, a JSON list of a method's name and arguments per
    line, by a JSON dict per line; end at the first error."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)

    def send(**reply):
        print(json.dumps(reply), file=answers, flush=True)
    try:
        method = next(row for row in ROWS + HIDDEN if row.name == name).build()
        method.get_ready(path, paths)
        send()
        for line in sys.stdin:
            command, *arguments = json.loads(line)
            start = time.perf_counter()
            value = getattr(method, command)(*arguments)
            send(seconds=time.perf_counter() - start, value=value, peak=peak(),
                 precision=getattr(method, "precision", None))
    except Exception as error:
        reason = (str(error).strip() or "no message").splitlines()[0]
        send(error=f"{type(error).__name__}: {reason}")


class Failure(Exception):
    """Why there is no number."""


class Worker:
    """The process of a row. path: of the single photo; paths: of the folder."""

    def __init__(self, row, path, paths):
        environment = {**os.environ, **SETTINGS, "KERAS_BACKEND": row.backend}
        self.process = subprocess.Popen(
            [sys.executable, __file__, "--worker", row.name, path, *paths], cwd=ROOT,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            text=True, env=environment)
        self.ready = False

    def ask(self, *command):
        """The answer to a command: dict of seconds, value, peak (MB), precision."""
        if not self.ready:
            self.answer()
            self.ready = True
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(json.dumps(command) + "\n")
            self.process.stdin.flush()
        return self.answer()

    def answer(self):
        if not (line := self.process.stdout.readline()):
            raise Failure(f"its process ended with code {self.process.wait()}")
        if "error" in (reply := json.loads(line)):
            raise Failure(reply["error"])
        return reply

    def __enter__(self):
        return self

    def __exit__(self, *_):
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        self.process.wait()


# ---- Measuring ---------------------------------------------------------------------

class Result:
    """Seconds per photo of a row and of ours in the same rounds, for "one" photo and
    the "folder"; peak memory in MB; or the reason why there are none."""

    def __init__(self, reason=None):
        self.reason, self.peak, self.precision = reason, None, None
        self.own, self.ours = ({"one": [], "folder": []} for _ in range(2))

    def seconds(self, kind):
        return statistics.median(self.own[kind])

    def ratio(self, kind):
        return self.seconds(kind) / statistics.median(self.ours[kind])

    def take_turn(self, worker, kind, paths):
        """Seconds per photo, which are added to `own`. One photo: the median of up to
        three runs, after one that warms the caches; a slow row runs once."""
        if kind == "folder":
            reply = worker.ask("folder", paths)
            seconds = reply["seconds"] / len(paths)
        else:
            replies = [worker.ask("one")]
            if replies[0]["seconds"] < 1:
                replies = [worker.ask("one") for _ in range(3)]
            reply = replies[-1]
            seconds = statistics.median(r["seconds"] for r in replies)
        self.own[kind].append(seconds)
        self.peak, self.precision = reply["peak"], reply["precision"]
        time.sleep(0.05)
        return seconds

    def share(self, paths, turn, limit=5):
        """All paths, or so many as take about `limit` seconds: others in each turn."""
        step = min(16, max(1, round(len(paths) * self.seconds("one") / limit)))
        return paths[turn % step::step]


def compare(rows, path, paths, repeats, ours, base):
    """{name: Result} of rows that take turns with the worker `ours`, whose own times
    are added to the Result `base`."""
    results = {row.name: Result() for row in rows}
    with contextlib.ExitStack() as stack:
        workers = {row.name: stack.enter_context(Worker(row, path, paths))
                   for row in rows}
        for kind, turn in itertools.product(("one", "folder"), range(repeats)):
            own = base.take_turn(ours, kind, paths)
            for name, result in results.items():
                if not result.reason:
                    try:
                        some = result.share(paths, turn) if (
                            kind == "folder" and name in PEERS) else paths
                        result.take_turn(workers[name], kind, some)
                        result.ours[kind].append(own)
                    except Failure as failure:
                        result.reason = str(failure)
            print(f"{kind}, round {turn + 1} of {repeats}: {', '.join(results)}",
                  file=sys.stderr)
    return results


def grow(ours, command, choices, repeats):
    """{choice: seconds}, medians of commands that take turns."""
    seconds = {choice: [] for choice in choices}
    for turn in range(repeats + 1):
        for choice, argument in choices.items():
            reply = ours.ask(command, argument)
            if turn:
                seconds[choice].append(reply["seconds"])
    return {choice: statistics.median(values) for choice, values in seconds.items()}


def take_apart(ours, paths, repeats):
    """{path: {part: seconds}}, medians of runs over files that take turns."""
    runs = [[ours.ask("parts", path)["value"] for path in paths] for _ in range(repeats)]
    return {path: {part: statistics.median(run[part] for run in each) for part in PARTS}
            for path, each in zip(paths, zip(*runs))}


# ---- Reporting ---------------------------------------------------------------------

def print_table(results):
    """One line per row, times and memory as ratios to ours."""
    print(f"{'':34}{'one photo':>16}{'folder, a photo':>18}{'memory':>15}")
    print(f"{'':34}{'ms':>9}{'ratio':>7}{'ms':>11}{'ratio':>7}{'MB':>8}{'ratio':>7}")
    for name, result in results.items():
        if result.reason:
            print(f"{name:34}  {result.reason[:100]}")
            continue
        cells = [f"{1000 * result.seconds(kind):{width}.1f}{result.ratio(kind):7.2f}"
                 for kind, width in (("one", 9), ("folder", 11))]
        print(f"{name:34}{cells[0]}{cells[1]}{result.peak:8.0f}"
              f"{result.peak / results[OURS].peak:7.2f}")


def print_parts(title, seconds, whole):
    print(f"\n{title}")
    for part, value in seconds.items():
        print(f"  {part:10}{value:10.4f} s{value / whole:9.1%}")


def beside(seconds):
    """What lies beside the forward pass, as a share of it, from seconds by part."""
    return sum(seconds.values()) / seconds["forward"] - 1


def print_shares(parts):
    """What lies beside the forward pass, as a share of it, for each file."""
    print("\nAll beside the forward pass, as a share of it")
    for path, seconds in parts.items():
        with Picture.open(path) as picture:
            pixels = math.prod(picture.size) / 1e6
        size = Path(path).stat().st_size / 1000
        print(f"  {Path(path).name:24}{pixels:6.2f} MP{size:6.0f} kB{beside(seconds):9.1%}")


def draw(results, path):
    """Bars of the times as ratios to ours, on a logarithmic scale."""
    import matplotlib
    matplotlib.use("agg")
    import matplotlib.pyplot as plt
    shown = {name: result for name, result in results.items()
             if not result.reason and name != "decoding only"}
    size = 8, 0.8 + 0.42 * len(shown)
    figure, ax = plt.subplots(figsize=size, layout="constrained")
    places = np.arange(len(shown))
    for kind, shift, color, label in (("one", -0.2, "0.25", "one photo"),
                                      ("folder", 0.2, "0.7", "a folder, per photo")):
        ratios = [result.ratio(kind) for result in shown.values()]
        bars = ax.barh(places + shift, ratios, 0.4, color=color, label=label)
        ax.bar_label(bars, [f" {r:.2f}" if r < 10 else f" {r:.0f}" for r in ratios],
                     fontsize=7)
    ax.axvline(1, color="black", lw=1, zorder=0)
    ax.set(yticks=places, yticklabels=shown, ylim=(len(shown) - 0.5, -0.5),
           xscale="log", xlabel="time as a ratio to ours, log scale; shorter is faster")
    ax.xaxis.set_major_formatter("{x:g}")
    ax.margins(x=0.1)
    ax.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside upper right", ncols=2, frameon=False)
    figure.savefig(drawn := io.BytesIO(), dpi=100)
    Picture.open(drawn).convert("L").save(path, optimize=True)


class Targets:
    """Prints whether a target is met."""

    def __init__(self, results):
        self.results = results

    def check(self, title, value, bound, least=False, unit=""):
        met = value >= bound if least else value <= bound
        side, outcome = "at least" if least else "at most", "met" if met else "missed"
        print(f"target {title}: {value:.3g}{unit}, {side} {bound:g}{unit}: {outcome}")

    def ratio(self, title, name, bound, least=True):
        result = self.results[name]
        if result.reason:
            print(f"target {title}: not measured: {name}: {result.reason[:100]}")
        else:
            ratio = result.ratio("one")
            self.check(title, ratio if least else 1 / ratio, bound, least)

    def total(self, title, name, kind, bound, *others):
        """Whether a row takes at most `bound` times as long as others together."""
        for reason in filter(None, (self.results[n].reason for n in (name, *others))):
            return print(f"target {title}: not measured: {reason[:100]}")
        together = sum(self.results[other].seconds(kind) for other in others)
        self.check(title, self.results[name].seconds(kind) / together, bound)


def report_targets(results, parts, traces):
    """Compare what was measured with what was promised."""
    targets = Targets(results)
    targets.ratio("original tutorial / ours", "original tutorial", 50)
    targets.ratio("pytorch-grad-cam / ours", "pytorch-grad-cam GradCAM", 3)
    targets.ratio("tf-keras-vis / ours", "tf-keras-vis GradCAM", 8)
    targets.ratio("tf-explain / ours", "tf-explain GradCAM", 8)
    targets.ratio("ours / torchcam CAM", "torchcam CAM", 1.25, least=False)
    first, *others = map(beside, parts.values())
    targets.check("beside the forward pass, 0.8 megapixels", first, 0.1)
    targets.check("beside the forward pass, median of our photos",
                  statistics.median(others), 0.1)
    targets.total("folder / (Keras's passes + decoding)", OURS, "folder", 1.15,
                  "pass only: Keras predict_on_batch", "decoding only")
    precision = results["ours, openvino"].precision
    name = "bfloat16" if precision == "bf16" else "float32"
    targets.total(f"ours / OpenVINO's own pass, both {name}", "ours, openvino", "one",
                  1.2, f"pass only: OpenVINO {name}")
    targets.check("new traces over photos of new sizes", traces, 0)


def report_growth(ours, folder, paths, options, repeats):
    """Print how the cost grows with photos, pixels and classes."""
    source, quick = ROOT / "images" / "german_shepherd.jpg", options.quick
    numbers = [n for n in (1, 4, 16, 64) if n <= len(paths)]
    sizes = (0.2, 3) if quick else (0.2, 3, 12, 50)
    classes = (1000,) if quick else (10, 1000, 20000)
    photos = {size: elsewhere(write_photo, source, size, folder / f"{size}MP.jpg")
              for size in sizes}
    print("\nHow cost grows: time as a ratio to the first column's")
    for title, command, choices in (
            ("photos", "folder", {number: paths[:number] for number in numbers}),
            ("megapixels", "localize", photos),
            ("classes", "classes", {number: number for number in classes})):
        seconds = grow(ours, command, choices, min(repeats, 5))
        first = next(iter(seconds.values()))
        print(f"  {title:11}", *(f"{choice:>8}: {value / first:<6.2f}"
                                 for choice, value in seconds.items()))


def report_memory(folder, path, paths):
    """Print how memory grows over 1,000 photos, and what a very large one takes."""
    large = elsewhere(write_photo, path, 100, folder / "large.jpg")
    targets = Targets({})
    with Worker(ROWS[0], path, paths) as ours:
        ours.ask("folder", paths)
        above = ours.ask("large", large)["value"]
        targets.check("a photo of 100 megapixels, above idle", above, 2000, unit=" MB")
    with Worker(ROWS[0], path, paths) as ours:
        growth = ours.ask("growth", paths, 1000)["value"]
        targets.check("growth from the 50th photo to the 1,000th", growth, 100,
                      unit=" MB")


def report_machine(repeats, photos):
    """Print what the numbers of the table mean, and what they were measured with."""
    names = ("keras", "tensorflow", "jax", "torch", "openvino", "onnxruntime", "numpy",
             "tf-keras-vis", "tf-explain", "grad-cam", "torchcam")
    versions = {package.metadata["Name"]: package.version
                for package in importlib.metadata.distributions()}
    print(f"""\
ResNet-50 with random weights, 224 x 224 pixels, float32 unless stated otherwise.
Medians of {repeats} rounds; in each, all rows of a group of six take turns with ours.
One photo: 0.8 megapixels, from decoded pixels to a heat map of 224 x 224.
Folder: {photos} files of 0.1 to 2 megapixels, {BATCH} at once where a row can;
  of slow rows another part of the files in each round.
Pass only: decoding and resizing are not counted.
Memory: the peak of the row's process, libraries and network included.
{CORES} threads in every row, OMP_WAIT_POLICY=PASSIVE
Python {platform.python_version()}, {platform.system()}, {platform.machine()}""")
    print(*(f"{name} {versions[name]}" for name in names if name in versions),
          sep=", ")
    report_load("before")


def report_load(when):
    """Print how busy the machine is, with this benchmark and all else."""
    if hasattr(os, "getloadavg"):
        load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
        print(f"load average of the machine {when} (1, 5, 15 minutes): {load}")


def run(options, folder):
    """Measure and report all; returns the exit code."""
    repeats = options.repeats or (1 if options.quick else 7)
    path = write_photo(ROOT / "images" / "german_shepherd.jpg", 0.8,
                       folder / "ordinary.jpg")
    paths = write_folder(folder, 8 if options.quick else options.photos)
    report_machine(repeats, len(paths))
    asked = options.rows or (QUICK if options.quick else [""])
    rows = [row for row in ROWS[1:] if any(text in row.name for text in asked)]
    results = {row.name: Result("left out") for row in ROWS}
    base = results[OURS] = Result()
    base.ours = base.own
    with Worker(ROWS[0], path, paths) as ours:
        for start in range(0, len(rows), 5):
            wave = rows[start:start + 5]
            results.update(compare(wave, path, paths, repeats, ours, base))
        report_load("after")
        print()
        print_table(results)
        draw(results, options.plot)
        parts = take_apart(ours, [path, *OWN_PHOTOS], 2 * repeats)
        print_parts("Parts of one run, as shares of the forward pass", parts[path],
                    parts[path]["forward"])
        print_shares(parts)
        traces = ours.ask("traces")["value"]
        report_growth(ours, folder, paths, options, repeats)
    if not options.quick:
        report_notebook(path, paths)
    print()
    report_targets(results, parts, traces)
    if options.memory:
        report_memory(folder, path, paths)
    return 0


def report_notebook(path, paths):
    """Print the time of a whole run of the notebook by part."""
    try:
        with Worker(HIDDEN[0], path, paths) as notebook:
            seconds = notebook.ask("whole")["value"]
    except Failure as failure:
        print(f"\nThe whole notebook: {failure}")
    else:
        print_parts("The whole notebook with the bundled network", seconds,
                    sum(seconds.values()))


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repeats", type=int, help="rounds; 7 by default")
    parser.add_argument("--photos", type=int, default=64, help="size of the folder")
    parser.add_argument("--quick", action="store_true", help="few rows and photos")
    parser.add_argument("--rows", nargs="+", help="only rows with these texts in their "
                        "names, beside ours")
    parser.add_argument("--memory", action="store_true",
                        help="also 1,000 photos, and one of 100 megapixels")
    parser.add_argument("--plot", default=ROOT / ".github" / "benchmark.png",
                        help="picture file to write, by default .github/benchmark.png")
    parser.add_argument("--worker", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.worker:
        return serve(*options.worker)
    try:
        with tempfile.TemporaryDirectory() as folder:
            return run(options, Path(folder))
    except Failure as failure:
        print(f"ours does not run: {failure}")
        return 1


if __name__ == "__main__":
    sys.exit(main())
