"""Random damage: whatever comes in, out comes a right answer or a ValueError."""

import struct
import zlib
from io import BytesIO

import numpy as np
import pytest
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from PIL import Image

pytestmark = pytest.mark.filterwarnings(  # the exception is of Keras with NumPy 2
    "error", "ignore:__array__ implementation:DeprecationWarning")
TRIED = {}


@pytest.fixture(scope="module", autouse=True)
def count(request):
    """Print at the end how many inputs each test tried."""
    yield
    with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        print("\nfuzzed inputs:", ", ".join(f"{name} {n:,}" for name, n in TRIED.items()),
              f"(together {sum(TRIED.values()):,})")


def tried(name):
    TRIED[name] = TRIED.get(name, 0) + 1


# ------------------------------------------------------------------ damaged files


def seeds():
    """Small files of every kind, made of a real photo."""
    with Image.open(ROOT / "images" / "koala.jpg") as photo:
        small = photo.convert("RGB").resize((40, 30))
    cutout, exif = small.copy(), Image.Exif()
    cutout.putalpha(Image.linear_gradient("L").resize(small.size))
    exif[0x0112], exif[0x010E] = 6, "a koala"
    film = {"save_all": True, "append_images": [small.rotate(90)], "duration": 40}
    deep = Image.fromarray(np.asarray(small.convert("L")).astype("uint16") * 257)
    kinds = [
        ("JPEG", small, {"exif": exif}), ("JPEG", small, {"progressive": True}),
        ("JPEG", small.convert("CMYK"), {}), ("JPEG", small.convert("L"), {}),
        ("PNG", small, {"exif": exif}), ("PNG", cutout, {"exif": exif}), ("PNG", deep, {}),
        ("PNG", small.convert("P"), {"transparency": 3}), ("PNG", cutout, film),
        ("WEBP", small, {"exif": exif}), ("WEBP", cutout, {"lossless": True}),
        ("WEBP", cutout, film), ("GIF", small, film), ("GIF", cutout, {}),
        ("TIFF", small, {}), ("TIFF", cutout, {"compression": "tiff_lzw"}),
        ("TIFF", small, {"compression": "tiff_adobe_deflate"}), ("TIFF", deep, {}),
        ("TIFF", small, {"compression": "jpeg"}), ("BMP", small, {}), ("BMP", cutout, {}),
        ("BMP", small.convert("P"), {})]
    for kind, picture, options in kinds:
        picture.save(file := BytesIO(), kind, **options)
        yield file.getvalue()


SEEDS = list(seeds())
BYTES = st.sampled_from([0, 1, 0x7F, 0x80, 0xFE, 0xFF]) | st.integers(0, 255)
CHUNKS = st.sampled_from([b"tRNS", b"eXIf", b"iCCP", b"acTL", b"fdAT", b"PLTE", b"IHDR", b"IDAT"])


def repaired(content):
    """A PNG with the right check sums, so that damage inside a chunk is looked at."""
    content, start = bytearray(content), 8
    while content[:4] == b"\x89PNG" and start + 12 <= len(content):
        end = start + 8 + struct.unpack(">I", content[start:start + 4])[0]
        if end + 4 > len(content):
            break
        content[end:end + 4] = struct.pack(">I", zlib.crc32(content[start + 4:end]))
        start = end + 4
    return bytes(content)


@st.composite
def damaged(draw):
    """Bytes of a picture file after some accidents, most of them near its header."""
    content = bytearray(draw(st.sampled_from(SEEDS)))
    for _ in range(draw(st.integers(1, 6))):
        size = max(1, len(content))
        place = draw(st.integers(0, min(64, size - 1)) | st.integers(0, size - 1))
        length = draw(st.integers(1, 40))
        match draw(st.sampled_from("change change bit cut drop twice splice insert".split())):
            case "change":
                content[place:place + 1] = bytes([draw(BYTES)])
            case "bit":
                content[place:place + 1] = bytes([(content or b"\0")[place] ^ 1 << draw(st.integers(0, 7))])
            case "cut":
                del content[draw(st.integers(0, size - 1)):]
            case "drop":
                del content[place:place + length]
            case "twice":
                content[place:place] = content[place:place + length]
            case "splice":
                other = draw(st.sampled_from(SEEDS))
                content[place:] = other[min(place, len(other)):]
            case "insert":
                data = draw(st.binary(max_size=40))
                content[place:place] = struct.pack(">I", len(data)) + draw(CHUNKS) + data + b"....."
    return repaired(content) if draw(st.booleans()) else bytes(content)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz")


def check_read(notebook, path):
    """The picture or the error that read_image gives; AssertionError for any other end."""
    try:
        image = notebook.read_image(path)
    except ValueError as error:
        assert str(error).startswith(f"{path.name}: ") and len(str(error)) > len(path.name) + 5
        return error
    assert image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3 and image.size
    return image


def test_the_seeds_are_pictures(notebook, folder):
    for content in SEEDS:
        (folder / "seed").write_bytes(content)
        assert isinstance(check_read(notebook, folder / "seed"), np.ndarray)
        assert sorted(notebook.read_image(folder / "seed").shape[:2]) == [30, 40]


@given(damaged())
@settings(max_examples=4000)
def test_damaged_files(notebook, folder, content):
    tried("damaged files")
    (folder / "damaged").write_bytes(content)
    check_read(notebook, folder / "damaged")


@given(st.binary(max_size=200))
@settings(max_examples=300)
def test_random_bytes(notebook, folder, content):
    tried("random bytes")
    (folder / "random").write_bytes(content)
    check_read(notebook, folder / "random")


# -------------------------------------------------------------------- odd arrays

ODD = st.sampled_from([np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-45, 1e-40, -1e-40, 1e-7, 1.0,
                       -1.0, 65504.0, 1e29, -1e29, 1e30, 1e38, -1e38, 1e39, 1e300])
ALIKE = st.sampled_from([0.0, 1e-45, 1e-40, -1.0, 1.0, 7.0, 1e15, 1e29, -1e29])
NUMBERS = st.floats(-100, 100) | ODD


@st.composite
def odd_arrays(draw, shape):
    """Arrays, and what is none: any type of number, any order in memory, any values."""
    if draw(st.integers(0, 9)) == 0:
        return draw(st.sampled_from([None, "heat", b"", {}, object(), [], [[1, 2], [3]], 3.5,
                                     [[["a"]]], np.array({}), np.array("x")]))
    if draw(st.integers(0, 4)) == 0:
        shape = draw(array_shapes(min_dims=0, max_dims=5, min_side=0, max_side=4))
    kind = draw(st.sampled_from(["good", "good", "alike", "odd"]))
    values = {"good": st.floats(-100, 100), "alike": ALIKE, "odd": NUMBERS}[kind]
    if kind == "alike":
        array = np.full(shape, draw(values))
    else:
        array = draw(arrays(np.float64, shape, elements=values))
    with np.errstate(all="ignore"):
        array = array.astype(draw(st.sampled_from(
            ["f8", "f4", "f4", "f2", ">f8", "longdouble", "i1", "u1", "i8", "u8", "?", "c8", "O"])))
    order = draw(st.sampled_from(["C", "F", "reversed", "sparse", "list", "read-only"]))
    if order == "F":
        array = np.asfortranarray(array)
    elif order == "reversed":
        array = array[::-1] if array.ndim else array
    elif order == "sparse" and array.ndim:
        array = np.repeat(array, 2, axis=-1)[..., ::2]
    elif order == "list":
        array = array.tolist()
    else:
        array.setflags(write=False)
    return array


def exact(array, ndim):
    """The array as float64 if it is one of real, moderate numbers with `ndim` axes."""
    try:
        array = np.asarray(array)
    except ValueError:
        return None
    if array.dtype.kind not in "fiub" or array.ndim != ndim or not array.size:
        return None
    array = array.astype("f8")
    return array if (np.abs(array) < 9.9e29).all() else None


def may_be_refused(array):
    """The limit is 1e30 in float32: numbers at the limit may fall on either side."""
    with np.errstate(all="ignore"):
        return (np.abs(np.asarray(array, "f8")) > 9.9e29).any()


SHAPES2 = array_shapes(min_dims=2, max_dims=2, max_side=9)


@pytest.fixture(scope="class")
def tiny(notebook):
    """The notebook with a network of 4 feature maps and 3 classes; it has no layers."""
    rng = np.random.default_rng(0)
    weights, bias = rng.normal(size=(4, 3)).astype("f4"), np.zeros(3, "f4")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(notebook, "classifier", notebook.Network(
            "tiny", None, weights, bias, list("abc"), (8, 8)))
        yield notebook


class TestMaps:
    @pytest.mark.parametrize("name", ["class_activation_map", "centered_map"])
    @given(data=st.data())
    @settings(max_examples=800)
    def test_maps(self, tiny, name, data):
        tried("features")
        side = st.integers(1, 4)
        features = data.draw(odd_arrays((data.draw(side), data.draw(side), 4)))
        weights = tiny.classifier.weights.astype("f8")
        weights = weights - (weights.mean(1, keepdims=True) if name == "centered_map" else 0)
        good = exact(features, 3)
        try:
            cam = getattr(tiny, name)(features, 1)
        except ValueError as error:
            assert "features" in str(error)
            assert good is None or good.shape[2] != 4
            return
        assert good is not None or np.abs(np.asarray(features, "f8")).max() < 1.01e30
        assert cam.dtype == np.float32 and cam.shape == np.shape(features)[:2]
        expected = np.asarray(features, "f8") @ weights[:, 1]
        scale = np.abs(np.asarray(features, "f8")).sum(-1) * np.abs(tiny.classifier.weights).max()
        assert (np.abs(cam - expected) <= 1e-5 * scale + 1e-44).all()


    @given(st.one_of(st.integers(-5, 5), st.floats(), st.text(max_size=2), st.none(), st.booleans(),
                     st.sampled_from([np.int64(1), np.uint8(2), np.array([1]), np.array(1), [0], 10**30])))
    @settings(max_examples=200)
    def test_classes(self, tiny, index):
        tried("classes")
        features = np.ones((2, 2, 4), "f4")
        try:
            cam = tiny.class_activation_map(features, index)
        except ValueError as error:
            assert "class_index" in str(error)
        else:
            assert index in (0, 1, 2) and cam.shape == (2, 2)


@given(st.data(), SHAPES2, st.integers(1, 40), st.integers(1, 40))
@settings(max_examples=800)
def test_enlarging(notebook, data, shape, height, width):
    tried("maps to enlarge")
    cam = data.draw(odd_arrays(shape))
    try:
        heatmap = notebook.upsample(cam, height, width)
    except ValueError as error:
        assert "cam" in str(error) and exact(cam, 2) is None
        return
    cam = np.asarray(cam, "f8")
    assert heatmap.dtype == np.float32 and heatmap.shape == (height, width)
    largest = np.abs(cam).max()
    assert largest < 1.01e30 and np.abs(heatmap).max() <= 2 * largest + 1e-44
    assert abs(heatmap.mean(dtype=float) - cam.mean()) <= 1e-5 * largest + 1e-44


@given(st.data(), SHAPES2, st.floats(0, 1, exclude_max=True) | st.floats())
@settings(max_examples=800)
def test_boxes(notebook, data, shape, threshold):
    tried("maps to box")
    heatmap = data.draw(odd_arrays(shape))
    try:
        x0, y0, x1, y1 = notebook.cam_to_box(heatmap, threshold)
    except ValueError as error:
        assert "heatmap" in str(error) and exact(heatmap, 2) is None or \
            "threshold" in str(error) and not 0 <= threshold < 1
        return
    assert 0 <= threshold < 1
    heatmap = np.asarray(heatmap, "f8").astype("f4")
    height, width = heatmap.shape
    assert 0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height
    if heatmap.max() <= 0 or heatmap.min() == heatmap.max():
        assert (x0, y0, x1, y1) == (0, 0, width, height)
    for edge in (heatmap[y0:y1, x0], heatmap[y0:y1, x1 - 1], heatmap[y0, x0:x1], heatmap[y1 - 1, x0:x1]):
        assert heatmap.max() <= 0 or edge.max() >= threshold * heatmap.max() * (1 - 1e-6)


@given(st.data())
@settings(max_examples=800)
def test_overlaps(notebook, data):
    tried("boxes")
    box_a, box_b = (data.draw(st.one_of(
        odd_arrays((4,)), st.lists(NUMBERS, min_size=4, max_size=4).map(
            lambda e: sorted(e[::2])[:1] + sorted(e[1::2])[:1] + sorted(e[::2])[1:] + sorted(e[1::2])[1:])))
        for _ in "ab")
    exacts = [exact(box, 1) for box in (box_a, box_b)]
    good = [e is not None and e.shape == (4,) and (e[2:] >= e[:2]).all() for e in exacts]
    try:
        share = notebook.iou(box_a, box_b)
    except ValueError as error:
        assert not all(good) and ("box_a" if not good[0] else "box_b") in str(error)
        return
    assert type(share) is float and 0 <= share <= 1 + 1e-12
    assert share == notebook.iou(box_b, box_a)
    area = np.prod(np.asarray(box_a, "f8")[2:] - np.asarray(box_a, "f8")[:2])
    assert notebook.iou(box_a, box_a) == (1 if area > 0 else 0)


@st.composite
def odd_images(draw):
    """uint8 RGB pictures, in any order in memory, and arrays that are none."""
    if draw(st.booleans()):
        return draw(odd_arrays((draw(st.integers(1, 4)), draw(st.integers(1, 4)), 3)))
    shape = draw(st.sampled_from([
        (5, 7, 3), (1, 1, 3), (1, 900, 3), (900, 1, 3), (0, 5, 3), (5, 0, 3), (5, 7), (5, 7, 1),
        (5, 7, 4), (5, 7, 0), (3, 5, 7), (2, 5, 7, 3), (3,)]))
    image = np.random.default_rng(0).integers(0, 256, shape).astype(
        draw(st.sampled_from(["u1", "u1", "u1", "i4", "f4", "?", "u2"])))
    return draw(st.sampled_from([image, image.T, image[::-1], image[::2], image[..., ::-1]]))


def is_photo(image):
    try:
        image = np.asarray(image)
    except ValueError:
        return False
    return image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3 and image.size > 0


@given(odd_images())
@settings(max_examples=800)
def test_pictures(notebook, image):
    tried("pictures")
    try:
        photo = notebook.prepare(image)
    except ValueError as error:
        assert "image" in str(error) and not is_photo(image)
        return
    assert is_photo(image) and (photo.height, photo.width) == image.shape[:2]
    assert photo.view.shape == (*notebook.classifier.size, 3)
    assert photo.view.dtype == photo.thumbnail.dtype == np.uint8
    assert max(photo.thumbnail.shape) <= 960


@given(odd_images(), st.sampled_from([None, 0, 235, 999, 1000, -1, 2.0, "dog", np.nan]))
@settings(max_examples=60)
def test_localizing(notebook, image, index):
    tried("pictures to localize")
    if isinstance(image, (str, bytes)):
        return
    try:
        result = notebook.localize(image, index)
    except ValueError as error:
        assert "image" in str(error) and not is_photo(image) or \
            "class_index" in str(error) and index in (1000, -1, 2.0, "dog", np.nan)
        return
    x0, y0, x1, y1 = result.box
    assert 0 <= x0 < x1 <= image.shape[1] and 0 <= y0 < y1 <= image.shape[0]
    assert np.isfinite(result.cam).all() and 0 <= result.probability <= 1


@pytest.mark.parametrize("image", [None, 7, b"bytes", [], {}, np.zeros((9, 9, 3)), object()])
def test_localize_names_what_is_no_picture(notebook, image):
    with pytest.raises(ValueError, match="image"):
        notebook.localize(image)
