"""Files from strangers: networks, class names and file names that want to do harm."""

import csv
import html.parser
import io
import json
import os
import pickle
import shutil
import stat
import sys
import zipfile
from base64 import b64encode
from pathlib import Path

import h5py
import keras
import numpy as np
import pytest
from conftest import BUNDLED, NOTEBOOK, ROOT, printed
from keras import layers
from PIL import Image
from test_cam import GAP, network
from test_files import only_linux, peak

PARTS = "config.json", "metadata.json", "model.weights.h5"


# ----------------------------------------------------- networks that want to do harm


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """Path of an honest network with a layer "hole" for others to fill."""
    path = tmp_path_factory.mktemp("good") / "good.keras"
    network(layers.Activation("linear", name="hole"), GAP(), layers.Dense(5)).save(path)
    return path


def forge(good, path, change=lambda config: None, parts=(), leave_out=()):
    """Write a copy of an honest network with another configuration and other parts."""
    with zipfile.ZipFile(good) as archive:
        content = {name: archive.read(name) for name in archive.namelist()}
    config = json.loads(content["config.json"])
    config = config if (changed := change(config)) is None else changed
    content |= {"config.json": json.dumps(config).encode(), **dict(parts)}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in content.items():
            if name not in leave_out:
                archive.writestr(name, data)
    return path


def hole(config):
    """The configuration of the layer to fill."""
    return next(layer for layer in config["config"]["layers"] if layer["config"]["name"] == "hole")


def layer(module, class_name, registered_name=None, /, **options):
    """Change that puts another layer into the hole."""
    def change(config):
        hole(config).update(module=module, class_name=class_name, registered_name=registered_name,
                            config={"name": "hole", **options})
    return change


def function(module, name):
    return {"module": module, "class_name": "function", "config": name, "registered_name": name}


def call(module, name, **arguments):
    """Change that puts a Lambda layer into the hole that calls a function by its name."""
    return layer("keras.layers", "Lambda", function=function(module, name), arguments=arguments,
                 output_shape=[7, 11, 8])


def code(trace):
    """Python code, as a Lambda layer stores it, that leaves a trace when it is run."""
    import marshal
    spy = eval(f"lambda x: (open({str(trace)!r}, 'w').close(), x)[1]")
    return {"class_name": "__lambda__", "config": {
        "code": b64encode(marshal.dumps(spy.__code__)).decode(), "defaults": None, "closure": None}}


class Bomb:
    """What pickle would run when it loads this object."""

    def __init__(self, trace):
        self.trace = str(trace)

    def __reduce__(self):
        return os.system, ("touch " + self.trace,)


def nested(trace):
    """Change that hides code in a layer of a layer, in the way of older files."""
    return layer("keras.layers", "TimeDistributed", layer={
        "class_name": "Lambda", "config": {"name": "inner", "function": code(trace)}})


def compiled(trace):
    """Change that hides code in what a layer would be compiled with."""
    def change(config):
        hole(config)["compile_config"] = {"loss": code(trace)}
    return change


CHANGES = {
    "lambda": lambda t: layer("keras.layers", "Lambda", function=code(t)),
    "output shape": lambda t: layer("keras.layers", "Lambda", output_shape=code(t),
                                    function=function("keras.ops", "abs")),
    "lambda in a layer": nested,
    "lambda to compile with": compiled,
    "lambda as activation": lambda t: layer("keras.layers", "Activation", activation=code(t)),
    "os.system": lambda t: call("os", "system", command=f"touch {t}"),
    "exec": lambda t: call("builtins", "exec"),
    "class of os": lambda t: layer("os", "system", command=f"touch {t}"),
    "Popen": lambda t: layer("subprocess", "Popen", "Popen", args=["touch", str(t)]),
    "unknown class": lambda t: layer(None, "Evil", "stranger>Evil"),
    "class beside the file": lambda t: layer("evil", "Evil"),
    "unsafe mode": lambda t: call("keras.config", "enable_unsafe_deserialization"),
    "load another file": lambda t: call("keras.models", "load_model", safe_mode=False),
    "download": lambda t: call("keras.utils", "get_file", origin="http://127.0.0.1:9/x"),
    "save a picture": lambda t: call("keras.utils", "save_img", path=str(t)),
    "draw a picture": lambda t: call("keras.visualization", "plot_image_gallery", path=str(t)),
    "draw the network": lambda t: call("keras.utils", "plot_model", to_file=str(t)),
    "activation by name": lambda t: layer("keras.layers", "Activation",
                                          activation=function("keras.utils", "plot_model")),
    "private function": lambda t: call("keras.src.utils.file_utils", "copy", dst=str(t)),
    "SavedModel": lambda t: layer("keras.layers", "TFSMLayer", filepath=str(t)),
    "torch": lambda t: layer("keras.layers", "TorchModuleWrapper",
                             module=b64encode(pickle.dumps(Bomb(t))).decode()),
    "vocabulary": lambda t: layer("keras.layers", "StringLookup", vocabulary=str(ROOT / "LICENSE")),
    "text vocabulary": lambda t: layer("keras.layers", "TextVectorization",
                                       vocabulary=str(ROOT / "LICENSE")),
    "type": lambda t: layer("keras.layers", "Activation", activation={
        "class_name": "__typespec__", "spec_name": "system", "module": "os",
        "registered_name": "system", "config": [f"touch {t}"]}),
}


@pytest.fixture
def trace(tmp_path):
    """Path of a file that only exists after harm was done."""
    yield tmp_path / "trace"
    assert not list(tmp_path.glob("trace*"))


def refusal(notebook, path):
    """Why load_network refuses a file; nothing else may happen in its folder."""
    before = {p: p.stat().st_mtime_ns for p in path.parent.rglob("*") if p.is_file()}
    with pytest.raises(ValueError, match=f"^({path.name} refused: .|{path.stem} ends in )") as caught:
        notebook.load_network(str(path))
    assert {p: p.stat().st_mtime_ns for p in path.parent.rglob("*") if p.is_file()} == before
    assert len(str(caught.value)) <= 400
    return str(caught.value)


def test_the_honest_network_is_loaded(notebook, good):
    assert notebook.load_network(str(good)).weights.shape == (8, 5)


@pytest.mark.parametrize("case", CHANGES)
def test_no_part_but_plain_layers(notebook, good, trace, case):
    path = forge(good, trace.with_name("evil.keras"), CHANGES[case](trace))
    assert "no plain layer" in refusal(notebook, path)


def test_what_safe_mode_lets_through(notebook, good, trace):
    """Keras's safe mode, at least until 3.15, calls a function that Keras exports with
    the file's own arguments; this one saves a picture."""
    change = call("keras.visualization", "plot_image_gallery", value_range=[0, 255], rows=1,
                  cols=1, path=str(trace) + ".png")

    def with_input(config):
        change(config)
        array = {"class_name": "__numpy__", "config": {"value": [[[[0, 0, 0]]]], "dtype": "float32"}}
        hole(config)["inbound_nodes"] = [{"args": [], "kwargs": {"inputs": array}}]
    refusal(notebook, forge(good, trace.with_name("evil.keras"), with_input))


def test_layers_of_strangers_stay_out_even_if_they_are_at_hand(notebook, good, trace, monkeypatch):
    """A module beside the notebook is not imported because a file asks for it."""
    (trace.parent / "evil.py").write_text(f"open({str(trace)!r}, 'w').close()")
    monkeypatch.syspath_prepend(trace.parent)
    for module in ("evil", "keras.evil"):
        refusal(notebook, forge(good, trace.with_name("evil.keras"), layer(module, "Evil")))
    assert "evil" not in sys.modules


@pytest.mark.parametrize("change", [
    lambda config: [], lambda config: {}, lambda config: {"class_name": "Sequential"},
    lambda config: config.update(config=None), lambda config: config["config"].update(layers=7),
    lambda config: hole(config)["config"].update(name="../../hole"),
    lambda config: hole(config).update(class_name=["Dense"]),
    lambda config: hole(config).update(class_name=None)])
def test_nonsense_is_refused(notebook, good, trace, change):
    refusal(notebook, forge(good, trace.with_name("evil.keras"), change))


def test_deep_nesting_is_refused(notebook, good, trace):
    deep = b"[" * 200_000 + b"]" * 200_000
    refusal(notebook, forge(good, trace.with_name("evil.keras"), parts={"config.json": deep}))


# ------------------------------------------------------------- archives and weights


@pytest.mark.parametrize("name", [
    "../trace", "../../trace", "/tmp/trace_of_a_network", "assets/../../trace", "..\\trace",
    "assets/vocabulary.txt", "model.weights.npz", "evil.py"])
def test_other_parts_are_refused(notebook, good, trace, name):
    path = forge(good, trace.with_name("evil.keras"), parts={name: b"harm"})
    assert "must hold only" in refusal(notebook, path)
    assert not Path("/tmp/trace_of_a_network").exists()


@pytest.mark.parametrize("part", PARTS)
def test_links_in_the_archive_are_not_followed(notebook, good, trace, part):
    """The archive says that a part is a link to a file of this machine."""
    with zipfile.ZipFile(good) as archive:
        content = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path := trace.with_name("evil.keras"), "w") as archive:
        for name, data in content.items():
            info = zipfile.ZipInfo(name)
            if name == part:
                info.external_attr, data = (stat.S_IFLNK | 0o777) << 16, str(good).encode()
            archive.writestr(info, data)
    if part == "metadata.json":  # which nobody reads
        assert notebook.load_network(str(path)).weights.shape == (8, 5)
    else:
        refusal(notebook, path)


@pytest.mark.parametrize("part", PARTS)
def test_missing_and_double_parts_are_refused(notebook, good, trace, part):
    path = trace.with_name("evil.keras")
    assert "must hold only" in refusal(notebook, forge(good, path, leave_out=[part]))
    with pytest.warns(UserWarning, match="Duplicate"), zipfile.ZipFile(
            forge(good, path), "a") as archive:
        archive.writestr(part, b"{}")
    assert "must hold only" in refusal(notebook, path)


@pytest.mark.parametrize("part", PARTS)
def test_zip_bombs_are_refused(notebook, good, trace, part):
    path = forge(good, trace.with_name("bomb.keras"), parts={part: bytes(2**28)})
    assert path.stat().st_size < 2**20
    assert "honest size" in refusal(notebook, path)


@only_linux
@pytest.mark.parametrize("units", [10**7, 2**31, 10**15, -1])
def test_huge_weights_are_refused_before_memory_is_taken(notebook, good, trace, units):
    """10**7 units take 320 MB, which a file of 40 kB cannot hold."""
    def change(config):
        config["config"]["layers"][-1]["config"]["units"] = units
    path = forge(good, trace.with_name("bomb.keras"), change)
    reason, taken = peak(refusal, notebook, path)
    assert isinstance(reason, str) and taken < 200


def weights(good, change):
    """Bytes of the weights of an honest network after a change to their HDF5 file."""
    with zipfile.ZipFile(good) as archive:
        buffer = io.BytesIO(archive.read("model.weights.h5"))
    with h5py.File(buffer, "r+") as file:
        path = next(name for name in paths(file) if file[name].shape == (8, 5))
        change(file, path)
    return buffer.getvalue()


def paths(file):
    """Names of all data sets in an HDF5 file."""
    names = []
    file.visititems(lambda name, item: names.append(name) if isinstance(item, h5py.Dataset) else None)
    return names


def external_link(file, name, secret):
    del file[name]
    file[name] = h5py.ExternalLink(str(secret), "numbers")


def soft_link(file, name, secret):
    del file[name]
    file[name] = h5py.SoftLink("/elsewhere")


def external_data(file, name, secret):
    del file[name]
    file.create_dataset(name, (8, 5), "f4", external=[(str(secret), 0, 160)])


def virtual_data(file, name, secret):
    del file[name]
    layout = h5py.VirtualLayout((8, 5), "f4")
    layout[:] = h5py.VirtualSource(str(secret), "numbers", (8, 5), "f4")
    file.create_virtual_dataset(name, layout)


def other_shape(file, name, secret):
    del file[name]
    file.create_dataset(name, (2**20, 2**20), "f4", chunks=(1024, 1024), compression="gzip")


def pickled(file, name, secret):
    del file[name]
    file.create_dataset(name, data=np.void(pickle.dumps(Bomb(secret.with_name("trace")))))


@pytest.mark.parametrize("change", [
    external_link, soft_link, external_data, virtual_data, other_shape, pickled])
def test_weights_from_elsewhere_are_refused(notebook, good, trace, change):
    """HDF5 can point to other files of this machine, and so read them into a network."""
    with h5py.File(secret := trace.with_name("secret.h5"), "w") as file:
        file["numbers"] = np.ones((8, 5), "f4")
    evil = weights(good, lambda file, name: change(file, name, secret))
    refusal(notebook, forge(good, trace.with_name("evil.keras"), parts={"model.weights.h5": evil}))


def hdf5_network(path, trace):
    """A network in the older HDF5 format, with code in it."""
    spy = eval(f"lambda x: (open({str(trace)!r}, 'w').close(), x)[1]")
    network(layers.Lambda(spy), GAP(), layers.Dense(5)).save(path.with_suffix(".h5"))
    trace.unlink()
    return path.with_suffix(".h5").rename(path)


@pytest.mark.parametrize("name", ["evil.keras", "evil.h5", "evil.hdf5"])
def test_the_older_format_is_refused(notebook, trace, name):
    refusal(notebook, hdf5_network(trace.with_name(name), trace))


def test_pickles_are_refused(notebook, trace):
    (path := trace.with_name("evil.keras")).write_bytes(pickle.dumps(Bomb(trace)))
    refusal(notebook, path)
    path.with_suffix(".pkl").write_bytes(pickle.dumps(Bomb(trace)))
    refusal(notebook, path.with_suffix(".pkl"))


def test_folders_and_pipes_are_refused(notebook, good, trace):
    with zipfile.ZipFile(good) as archive:
        archive.extractall(folder := trace.with_name("folder.keras"))
    refusal(notebook, folder)
    refusal(notebook, folder.rename(folder.with_name("folder")))
    if hasattr(os, "mkfifo"):
        os.mkfifo(pipe := trace.with_name("pipe.keras"))
        refusal(notebook, pipe)


@pytest.mark.parametrize("address", ["hf://stranger/evil", "https://127.0.0.1:9/evil.keras"])
def test_addresses_are_not_fetched(notebook, address):
    with pytest.raises(ValueError, match="no such file"):
        notebook.load_network(address)


# ---------------------------------------------------------------- honest networks pass


@pytest.mark.parametrize("build", [
    lambda: keras.applications.MobileNetV2(weights=None, input_shape=(96, 96, 3)),
    lambda: keras.applications.EfficientNetB0(weights=None),
    lambda: keras.applications.ResNet50(weights=None, input_tensor=(
        keras.applications.resnet.preprocess_input(keras.Input((None, None, 3))))),
    lambda: network(layers.RandomFlip(), layers.BatchNormalization(), GAP(), layers.Dense(5))],
    ids=["MobileNetV2", "EfficientNetB0", "ResNet50", "augmented"])
def test_networks_of_keras_pass(notebook, tmp_path, build):
    build().save(tmp_path / "mine.keras")
    assert notebook.load_file(tmp_path / "mine.keras").count_params()


def test_a_trained_network_with_its_own_loss_passes(notebook, tmp_path):
    whole = network(GAP(), layers.Dense(5, activation="softmax"))
    whole.compile("adam", loss=lambda true, guess: keras.ops.mean(guess - true))
    whole.fit(np.zeros((2, 32, 48, 3)), np.eye(5)[:2], verbose=0)
    whole.save(tmp_path / "trained.keras")
    assert notebook.load_network(str(tmp_path / "trained.keras")).weights.shape == (8, 5)


def two_inputs():
    """A network that compares two pictures."""
    pair = [keras.Input((32, 48, 3)) for _ in range(2)]
    return keras.Model(pair, layers.Dense(5)(GAP()(layers.Conv2D(8, 3)(layers.Add()(pair)))))


@pytest.mark.parametrize("build", [
    lambda: keras.Sequential([keras.Input((9,)), layers.Dense(5)]),
    lambda: keras.Sequential([keras.Input((9,)), layers.Embedding(99, 8),
                              layers.GlobalAveragePooling1D(), layers.Dense(5)]),
    lambda: keras.Sequential([keras.Input((32, 48, 1)), layers.Conv2D(8, 3), GAP(), layers.Dense(5)]),
    lambda: keras.Sequential([keras.Input((8, 32, 48, 3)), layers.Conv3D(8, 3),
                              layers.GlobalAveragePooling3D(), layers.Dense(5)]),
    lambda: keras.Sequential([keras.Input((3, 32, 48)), layers.Permute((2, 3, 1)),
                              layers.Conv2D(8, 3), GAP(), layers.Dense(5)]),
    lambda: keras.Sequential([keras.Input((32, 48, 3))]), two_inputs],
    ids=["table", "text", "gray", "film", "channels first", "empty", "pair"])
def test_networks_for_other_things_are_refused(notebook, tmp_path, build):
    build().save(tmp_path / "other.keras")
    with pytest.raises(ValueError, match="other (ends in|refused)"):
        notebook.load_network(str(tmp_path / "other.keras"))


# ------------------------------------------------------------------------- downloads


def test_downloads_come_from_keras_by_https_with_a_hash(notebook, monkeypatch, tmp_path):
    asked = []

    def get_file(name=None, origin=None, **options):
        asked.append((origin, options))
        raise OSError("no network in this test")
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    monkeypatch.setattr("keras.src.utils.file_utils.get_file", get_file)
    with pytest.raises(OSError, match="no network in this test"):
        notebook.load_network("resnet50")
    ((origin, options),) = asked
    assert origin.startswith("https://storage.googleapis.com/tensorflow/keras-applications/resnet/")
    assert len(options["file_hash"]) in (32, 64)


def test_the_notebook_itself_names_no_address_to_fetch_from():
    import nbformat
    for cell in nbformat.read(NOTEBOOK, 4).cells:
        assert cell.cell_type != "code" or "://" not in cell.source


# -------------------------------------------------------------- names of strangers

SPREADSHEET = ["=1+1.png", "+1.png", "-1.png", "@SUM(1).png", "\t=1.png", "\r=1.png", "\n=1.png",
               "a;=1+1.png", 'a",=1+1.png', "=cmd|' calc'!A0.png"]
SCREEN = ["line\nz.png      koala.png", "\x1b[2J\x1b[31mred.png", "\x1b]0;title\x07.png",
          "back\b\b\b.png", "c1\x9b31m.png", "\u202egnp.exe.png", "a\u2028b.png"]
HTML = ["<img src=x onerror=alert(1)>.png", "<script>alert(1)<", "&lt;b&gt;.png", "a' onx='1.png",
        'a" onload="alert(1).png', "$\\alpha^$.png", "$$ $", "%s {0} {x}.png", "`rm`.png", "_^_.png"]


def fill(folder, names):
    for name in names:
        with Image.open(ROOT / "images" / "koala.jpg") as photo:
            photo.resize((48, 32)).save(folder / name, "PNG")
        (folder / f"bad {name}".replace("bad \t", "\tbad ")).write_bytes(b"no picture")


@pytest.fixture(scope="module")
def strange(execute, tmp_path_factory):
    """A run over files with strange names, under a network with strange labels: the
    notebook with its outputs, the folder that it saved, all names, and what of the
    project and the home folder changed."""
    folder, saved, home, nets = (tmp_path_factory.mktemp(name) for name in
                                 ("strange", "saved", "home", "nets"))
    names = SPREADSHEET + SCREEN + HTML
    fill(folder, names)
    with Image.open(ROOT / "images" / "koala.jpg") as photo:
        photo.resize((48, 32)).save(os.fsencode(folder) + b"/latin\xe9.png", "PNG")
    shutil.copy(ROOT / BUNDLED, nets / "net.keras")
    labels = [f"={i}|<b onx=1>\x1b[31m" for i in range(1000)]
    (nets / "net.txt").write_text("\n".join(labels), encoding="utf8")

    def snapshot():
        skip = (".git", "__pycache__", ".pytest_cache", ".venv", ".hypothesis")
        return {path: (path.stat().st_mtime_ns, path.stat().st_size)
                for top in (ROOT, home, folder, nets) for path in top.rglob("*")
                if path.is_file() and not any(part in skip for part in path.parts)}
    with pytest.MonkeyPatch.context() as patch:
        for name in ("HOME", "USERPROFILE"):
            patch.setenv(name, str(home))
        for name in ("KERAS_HOME", "IPYTHONDIR", "MPLCONFIGDIR", "JUPYTER_RUNTIME_DIR"):
            patch.delenv(name, raising=False)
        before = snapshot()
        book = execute(image_folder=str(folder), save_folder=str(saved),
                       network=str(nets / "net.keras"), max_figures=60)
        after = snapshot()
    changed = {path for path in before.keys() | after.keys() if before.get(path) != after.get(path)}
    return book, saved, names, {path.relative_to(home) if home in path.parents else path
                                for path in changed}


def test_no_file_outside_the_output_folder_is_written(strange):
    """Programs that the notebook starts keep settings and caches at their usual places
    in the home folder: IPython its history, Matplotlib its list of fonts, Keras its
    settings."""
    _, saved, _, changed = strange
    usual = {".ipython", ".cache", ".config", ".keras", ".local", ".jupyter"}
    assert {path for path in changed if path.parts[0] not in usual} == set()
    names = {path.name for path in saved.rglob("*")}
    assert "results.csv" in names
    assert all(name == "results.csv" or name.startswith("gallery_") for name in names)


def test_no_cell_of_the_table_is_a_formula(strange):
    _, saved, names, _ = strange
    text = (saved / "results.csv").read_text(encoding="utf8")
    rows = list(csv.reader(io.StringIO(text, newline="")))
    assert len(rows) == 1 + 2 * len(names) + 1
    assert not [cell for row in rows for cell in row if cell[:1] in tuple("=+-@\t\r\n")]
    assert {row[1][:2] for row in rows[1:] if row[1]} == {"'="}


def test_no_name_moves_the_cursor_or_forges_a_line(strange):
    book, saved, names, _ = strange
    (table,) = (printed(cell) for cell in book.cells if "probability" in printed(cell)
                and "y1" in printed(cell))
    assert len(table.splitlines()) == 1 + len(names) + 1
    (reasons,) = (printed(cell) for cell in book.cells if "cannot be read" in printed(cell))
    assert len(reasons[reasons.index("photos;"):].splitlines()) == 1 + len(names)
    for text in (table, reasons[reasons.index("photos;"):],
                 (saved / "results.csv").read_text(encoding="utf8")):
        assert not set(text) & set("\x1b\x07\b\x9b\t\u202e\u2028"), repr(text)


class Elements(html.parser.HTMLParser):
    """Tags and attributes of a page, without what is inside style and script."""

    def __init__(self, page):
        super().__init__()
        self.found = []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))


@pytest.mark.parametrize("template", ["classic", "lab", "basic"])
def test_names_stay_text_in_a_page(strange, template):
    from nbconvert import HTMLExporter
    book, _, _, _ = strange
    page, _ = HTMLExporter(template_name=template).from_notebook_node(book)
    elements = Elements(page).found
    assert sum(tag == "img" for tag, _ in elements) > 12
    for tag, attributes in elements:
        assert not [name for name in attributes if name.startswith("on")], (tag, attributes)
        assert attributes.get("src") != "x" and attributes.get("alt") != ""
    assert "alert(1)" not in "".join(
        part.split("</script>")[0] for part in page.split("<script")[1:])
    assert "&lt;img src=x onerror=alert(1)&gt;.png" in page
