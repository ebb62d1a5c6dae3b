"""Parts III and IV: what the notebook says of maps is so, and its explorer works."""

import re
from base64 import b64decode
from datetime import datetime
from io import BytesIO

import keras
import nbformat
import numpy as np
import pytest
from bs4 import BeautifulSoup
from conftest import NOTEBOOK, ROOT, printed
from keras import layers
from PIL import Image
from scipy.special import softmax
from traitlets.utils.bunch import Bunch

IMAGES = ROOT / "images"
BOOK = nbformat.read(NOTEBOOK, 4)
PROSE = "\n".join(cell.source for cell in BOOK.cells if cell.cell_type == "markdown")


# ------------------------------------------------------------------ the whole file


def test_stored_file_holds_pictures_and_no_widgets():
    outputs = [output.data for cell in BOOK.cells for output in cell.get("outputs", [])
               if "data" in output]
    assert not [kind for data in outputs for kind in data if "widget" in kind]
    assert "widgets" not in BOOK.metadata
    assert sum("image/jpeg" in data for data in outputs) > 10


def test_contents_name_every_section():
    headings = dict(re.findall(r'<a id="(\w+)"></a>\n## (.+)', PROSE))
    numbers = [heading.partition(".")[0] for heading in headings.values()]
    assert numbers[:-1] == [str(number) for number in range(1, len(headings))]
    contents = re.findall(r"\[([^\]]+)\]\(#(\w+)\)", PROSE.partition("**Credits.**")[0])
    assert {place for _, place in contents} == set(headings)
    for title, place in contents:
        assert headings[place].startswith(title)
    for number, place in re.findall(r"\[section (\d+)\]\(#(\w+)\)", PROSE):
        assert headings[place].startswith(f"{number}. ")


def test_code_in_the_answers_of_the_exercises_runs(notebook):
    answers = re.findall(r"<details>(.*?)</details>", PROSE, re.S)
    assert len(answers) >= 6
    codes = [code for answer in answers for code in re.findall(r"`([^`]+)`", answer)]
    assert codes
    for code in codes:
        assert eval(code, dict(vars(notebook))) != []
    assert not notebook.plt.get_fignums()


# ------------------------------------------------- Part III: can you trust it?


@pytest.mark.parametrize(("score", "derivative"), [
    (lambda f: (3 * f).sum(), lambda f: np.full(f.shape, 3.0)),
    (lambda f: (f**2).sum(), lambda f: 2 * f),
    (lambda f: np.sin(f).prod(), lambda f: np.sin(f).prod() / np.tan(f))])
def test_slope_is_the_derivative(notebook, score, derivative):
    features = np.random.default_rng(0).uniform(0.5, 2, (2, 3, 4)).astype("float32")
    before = features.copy()
    for place in np.ndindex(features.shape):
        expected = derivative(features.astype(float))[place]
        assert notebook.slope(score, features, place) == pytest.approx(expected, rel=1e-4)
    np.testing.assert_array_equal(features, before)


def test_nothing_hidden_leaves_the_logit(notebook):
    h, w, scene = notebook.h, notebook.w, notebook.scene
    nothing, everything = np.zeros((h, w)), np.ones((h, w))
    a, b, c = notebook.logits_without([nothing, everything, nothing])
    logit = notebook.forward([scene])[1][0, notebook.dog]
    assert a == pytest.approx(logit, rel=1e-4) == c
    blank = scene._replace(view=np.empty_like(scene.view))
    blank.view[:] = scene.view.mean((0, 1)).astype("uint8")
    assert b == pytest.approx(notebook.forward([blank])[1][0, notebook.dog], rel=1e-3)


@pytest.mark.parametrize("cell", [(0, 0), (3, 2), (6, 6)])
def test_hiding_a_cell_paints_over_its_square_only(notebook, monkeypatch, cell):
    views, forward = [], notebook.forward
    spy = lambda photos: views.extend(photo.view for photo in photos) or forward(photos)
    monkeypatch.setattr(notebook, "forward", spy)
    mask = np.zeros((notebook.h, notebook.w))
    mask[cell] = 1
    notebook.logits_without([mask])
    rows, columns = np.divide(notebook.scene.view.shape[:2], mask.shape).astype(int)
    y, x = cell[0] * rows, cell[1] * columns
    left = views[0].astype(int) - notebook.scene.view
    assert np.ptp(views[0][y:y + rows, x:x + columns], axis=(0, 1)).max() == 0
    left[y:y + rows, x:x + columns] = 0
    assert not left.any()


def test_hiding_the_brightest_cells_first_costs_most(notebook):
    means = [np.mean(curve) for curve in notebook.curves]
    assert len(means) > 3 and means[0] < min(means[1:])
    ends = np.array(notebook.curves)[:, [0, -1]]  # nothing hidden, everything hidden
    np.testing.assert_allclose(ends, ends[:1].repeat(len(ends), axis=0), atol=1e-3)


def test_each_broken_try_is_caught_as_the_text_says(notebook):
    tries, bias = notebook.tries, notebook.b[notebook.winner]
    adds_up = {name: np.isclose(m.mean() + bias, logits[notebook.winner], rtol=1e-3)
               for name, (m, logits) in tries.items()}
    assert adds_up == {"right": True, "before the ReLU": False,
                       "channels swapped": True, "default zoom": False}
    right, swapped = (tries[name][1] for name in ("right", "channels swapped"))
    assert right.argmax() == notebook.winner != swapped.argmax()
    assert softmax(swapped).max() < softmax(right).max()


def test_maps_of_the_untrained_network_say_nothing_of_the_photo(notebook):
    (a, b), (c, d) = np.reshape(notebook.blank, (2, 2, -1))
    alike = lambda *maps: np.corrcoef(maps)[0, 1]
    assert min(alike(a, c), alike(b, d)) > 0.7 > 0.5 > alike(a, b)


def test_the_small_network_finds_disks(notebook, use_network):
    names = ["orange", "blue", "white"]
    use_network(notebook.open_up("disks", notebook.small, names))
    rng, hits, boxes = np.random.default_rng(1), 0, []
    for kind, color in [*enumerate([(230, 159, 0), (0, 114, 178), (255, 255, 255)])] * 5:
        picture = rng.integers(0, 160, (96, 96, 3), "uint8")
        x, y = rng.integers(16, 80, 2)
        ys, xs = np.ogrid[:96, :96]
        picture[(xs - x)**2 + (ys - y)**2 <= 100] = color
        result = notebook.localize(picture)
        hits += result.label == names[kind]
        boxes.append(notebook.iou(result.box, (x - 10, y - 10, x + 11, y + 11)))
    assert hits >= 14 and np.mean(boxes) > 0.5


def test_the_notebook_ends_with_the_network_it_began_with(notebook):
    assert notebook.classifier.weights is notebook.W and notebook.classifier.bias is notebook.b
    assert len(notebook.classifier.labels) == 1000


# ------------------------------------------------------------- Part IV: explorer


@pytest.fixture
def explore(notebook):
    """Function: explorer of some pictures -> its controls by name, and its picture."""
    def start(*paths):
        notebook.look.cache_clear()
        upload, controls, picture = notebook.explorer(list(paths)).children
        controls = {control.description: control for control in controls.children[:-1]}
        return {"Upload": upload, **controls}, picture
    yield start
    notebook.look.cache_clear()


@pytest.fixture
def passes(notebook, monkeypatch):
    """List that grows by the number of photos in each forward pass."""
    sizes, forward = [], notebook.forward
    monkeypatch.setattr(notebook, "forward",
                        lambda photos: sizes.append(len(photos)) or forward(photos))
    return sizes


def seen(text):
    """Text alternative and pixels of the picture in a text of HTML; its caption agrees."""
    image, caption = BeautifulSoup(text, "html.parser").find_all()
    assert (image.name, caption.name) == ("img", "p")
    assert caption.get_text() == image["alt"]
    kind, data = image["src"].split(",")
    assert kind == "data:image/jpeg;base64"
    return image["alt"], np.array(Image.open(BytesIO(b64decode(data))), int)


def upload(controls, name, content):
    """Hand a file to the upload button, as the browser does."""
    file = Bunch(name=name, type="image/jpeg", size=len(content),
                 last_modified=datetime.now(), content=memoryview(content))
    controls["Upload"].value = [file]


def test_first_photo_is_shown_with_its_winner(notebook, explore):
    controls, picture = explore(*sorted(IMAGES.glob("*.jpg")))
    assert list(controls["photo"].options) == [p.name for p in sorted(IMAGES.glob("*.jpg"))]
    winner = notebook.localize(IMAGES / "bee.jpg").label
    alt, pixels = seen(picture.value)
    assert alt.startswith(f"bee.jpg: {winner}")
    assert pixels.shape[1] > 1.5 * pixels.shape[0] > 150


@pytest.mark.parametrize("name", ["koala.jpg", "dog_bicycle.jpg", "camera.jpg"])
def test_a_photo_brings_its_five_likeliest_classes_first(notebook, explore, name):
    controls, picture = explore(IMAGES / "bison.jpg", IMAGES / name)
    controls["photo"].value = IMAGES / name
    _, (logits,) = notebook.forward([notebook.prepare(notebook.read_image(IMAGES / name))])
    options, labels = controls["class"].options, notebook.classifier.labels
    assert list(options[:5]) == [labels[c] for c in np.argsort(-logits)[:5]]
    assert sorted(options) == sorted(labels)
    assert seen(picture.value)[0] == f"{name}: {options[0]}, logit {logits.max():.1f}"


def test_the_class_that_is_asked_for_is_drawn(notebook, explore):
    controls, picture = explore(IMAGES / "dog_bicycle.jpg")
    controls["class"].value = "mountain bike"
    logit = notebook.localize(IMAGES / "dog_bicycle.jpg", 671).logit
    assert seen(picture.value)[0] == f"dog_bicycle.jpg: mountain bike, logit {logit:.1f}"


def test_a_class_that_there_is_not_gets_the_reason(explore):
    controls, picture = explore(IMAGES / "bison.jpg")
    controls["class"].value = "<b>unicorn"
    page = BeautifulSoup(picture.value, "html.parser")
    assert not page.find_all() and "'<b>unicorn'" in page.get_text()
    controls["class"].value = ""
    assert seen(picture.value)[0].startswith("bison.jpg: bison")


@pytest.mark.parametrize("centered", [False, True])
def test_colors_are_those_of_the_map_on_the_scale_of_the_winner(notebook, centered):
    path, index = IMAGES / "german_shepherd.jpg", 225
    name = notebook.classifier.labels[index]
    kind = notebook.centered_map if centered else notebook.class_activation_map
    cam = notebook.localize(path, index, kind).cam
    top = notebook.localize(path).cam.max()
    _, pixels = seen(notebook.explored(path, name, opacity=1, centered=centered))
    photo, heat = np.split(pixels, 2, axis=1)
    heatmap = notebook.upsample(cam, *heat.shape[:2])
    expected = notebook.plt.get_cmap("inferno")(heatmap / top)[..., :3] * 255
    assert np.median(np.abs(heat - expected)) < 6
    original = notebook.prepare(notebook.read_image(path)).thumbnail
    assert np.median(np.abs(photo - original)) < 6
    _, pale = seen(notebook.explored(path, name, opacity=0, centered=centered))
    assert np.median(np.ptp(pale[:, photo.shape[1]:], axis=2)) < 3


@pytest.mark.parametrize("threshold", [0.2, 0.5])
def test_box_of_the_explorer_is_that_of_the_paper(notebook, threshold):
    path = IMAGES / "german_shepherd.jpg"
    _, pixels = seen(notebook.explored(path, threshold=threshold, opacity=0))
    _, other = seen(notebook.explored(path, threshold=0.9, opacity=0))
    half = pixels.shape[1] // 2
    drawn = (pixels[:, half:].min(axis=2) > 245) & (other[:, half:].min(axis=2) < 230)
    result = notebook.localize(path)
    x0, y0, x1, y1 = notebook.cam_to_box(result.heatmap, threshold)
    scale = half / result.photo.width
    rows, columns = np.flatnonzero(drawn.mean(1) > 0.2), np.flatnonzero(drawn.mean(0) > 0.2)
    found = columns.min(), rows.min(), columns.max(), rows.max()
    np.testing.assert_allclose(found, np.multiply((x0, y0, x1, y1), scale), atol=6)


@pytest.mark.parametrize(("control", "value"), [
    ("threshold", 0.6), ("threshold", 0), ("opacity", 0), ("opacity", 0.9),
    ("centered", True), ("class", "malinois")])
def test_every_control_redraws_without_a_new_pass(notebook, explore, passes, control, value):
    controls, picture = explore(IMAGES / "german_shepherd.jpg")
    first, before = picture.value, controls[control].value
    assert passes == [1]
    controls[control].value = value
    assert picture.value != first and seen(picture.value)
    controls[control].value = before
    assert picture.value == first
    assert passes == [1]


def test_the_network_sees_each_photo_once(explore, passes):
    first, second = IMAGES / "koala.jpg", IMAGES / "bison.jpg"
    controls, _ = explore(first, second)
    for path in (second, first, second, first):
        controls["photo"].value = path
    assert passes == [1, 1]


def test_drawing_makes_no_figure_of_matplotlib(notebook, explore, monkeypatch):
    controls, picture = explore(IMAGES / "bison.jpg")
    monkeypatch.setattr(notebook.plt, "subplots", None)
    monkeypatch.setattr(notebook.plt, "figure", None)
    controls["opacity"].value = 0.3
    assert seen(picture.value)


def test_names_may_hold_markup(notebook, explore, use_network, tmp_path):
    names = [f'<b onclick="x">{label}</b> & $more^' for label in notebook.classifier.labels]
    use_network(notebook.classifier._replace(labels=names))
    path = tmp_path / "Tom & Jerry's $.jpg"
    path.write_bytes((IMAGES / "koala.jpg").read_bytes())
    _, picture = explore(path)
    assert seen(picture.value)[0].startswith(f"{path.name}: {names[105]}, logit")


def test_an_uploaded_photo_joins_the_list(explore, passes):
    controls, picture = explore(IMAGES / "bison.jpg")
    upload(controls, "mine.jpg", (IMAGES / "koala.jpg").read_bytes())
    assert sorted(controls["photo"].options) == ["bison.jpg", "mine.jpg"]
    assert seen(picture.value)[0].startswith("mine.jpg: koala")
    mine = controls["photo"].value
    controls["photo"].value = IMAGES / "bison.jpg"
    controls["photo"].value = mine
    controls["threshold"].value = 0.5
    assert seen(picture.value)[0].startswith("mine.jpg: koala")
    assert passes == [1, 1]


def test_an_upload_replaces_a_photo_of_the_same_name(explore):
    controls, picture = explore(IMAGES / "bee.jpg", IMAGES / "bison.jpg")
    for path, name in (("koala.jpg", "koala"), ("scarlet_macaw.jpg", "macaw")):
        upload(controls, "bison.jpg", (IMAGES / path).read_bytes())
        assert seen(picture.value)[0].startswith(f"bison.jpg: {name}")
        assert sorted(controls["photo"].options) == ["bee.jpg", "bison.jpg"]


@pytest.mark.parametrize("content", [b"", b"no picture", b"\xff\xd8\xff\xe0\x00\x10JFIF"])
def test_an_upload_that_is_no_picture_gets_the_reason(explore, content):
    controls, picture = explore(IMAGES / "bison.jpg")
    shown = picture.value
    upload(controls, "Tom & Jerry.jpg", content)
    page = BeautifulSoup(picture.value, "html.parser")
    assert not page.find_all()
    assert re.match(r"Tom & Jerry\.jpg: \w+", page.get_text())
    controls["photo"].value = IMAGES / "bison.jpg"
    assert picture.value == shown
    upload(controls, "mine.jpg", (IMAGES / "koala.jpg").read_bytes())
    assert seen(picture.value)[0].startswith("mine.jpg: koala")


# --------------------------------------------------------- the whole, for others


def test_all_parts_run_for_other_classes_and_a_single_photo(execute, tmp_path):
    keras.utils.set_random_seed(0)
    keras.Sequential([
        keras.Input((60, 80, 3)), layers.Conv2D(16, 3, 2, "same", activation="relu"),
        layers.Conv2D(32, 3, 2, "same", activation="relu"),
        layers.Conv2D(24, 3, 3, "same", activation="relu"),
        layers.GlobalAveragePooling2D(), layers.Dense(4, activation="softmax"),
    ]).save(tmp_path / "zoo.keras")
    names = ["cat", "dog", "ox & ass", "bee"]
    (tmp_path / "zoo.txt").write_text("\n".join(names), encoding="utf8")
    (folder := tmp_path / "photos").mkdir()
    (folder / "only.jpg").write_bytes((IMAGES / "coffee.jpg").read_bytes())
    book = execute(network=str(tmp_path / "zoo.keras"), image_folder=str(folder))
    assert "1 photos; 0 files" in "".join(map(printed, book.cells))
    (output,) = next(cell.outputs for cell in book.cells if "def explored" in cell.source)
    assert list(output.data) == ["text/html"]
    alt, _ = seen(output.data["text/html"])
    assert alt.startswith("only.jpg: ") and any(name in alt for name in names)
