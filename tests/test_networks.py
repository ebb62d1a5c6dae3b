"""Networks of every kind: each is opened, made plain, refined or refused as it should."""

from functools import partial

import keras
import numpy as np
import pytest
from conftest import BUNDLED, ROOT, code, part, run, run_apart
from keras import layers
from keras.applications.mobilenet_v2 import preprocess_input
from scipy.special import expit, softmax


def dense(x, units=5, activation="softmax"):
    random = keras.initializers.RandomNormal(0, 0.05, seed=1)
    return layers.Dense(units, activation, True, random, random)(layers.Dropout(0.5)(x))


def head(x, *options, between=lambda x: x):
    return dense(between(layers.GlobalAveragePooling2D()(x)), *options)


def convolution(x):
    x = layers.Dropout(0.1)(layers.GlobalAveragePooling2D(keepdims=True)(x))
    x = layers.Conv2D(5, 1, bias_initializer="random_normal")(x)
    return layers.Activation("softmax")(layers.Reshape((5,))(x))


def same(x):
    return x


# What is in front of a trained network, at its end, and behind it.
RANDOM = keras.initializers.RandomUniform(0.5, 2, seed=1)
STATISTICS = {f"moving_{x}_initializer": RANDOM for x in ("mean", "variance")}
NORMALIZED = partial(head, between=layers.BatchNormalization(**STATISTICS))
KINDS = {
    "pooling outside": (same, same, head),
    "pooling inside": (same, layers.GlobalAveragePooling2D(), dense),
    "trained network behind scaling": (layers.Rescaling(0.5, 60), head, same),
    "logits, then softmax": (same, lambda x: head(x, 5, None), layers.Softmax()),
    "logits": (same, same, lambda x: head(x, 5, None)),
    "augmentation": (keras.Sequential([layers.RandomFlip()]), same, head),
    "labels": (same, same, lambda x: head(x, 4, "sigmoid")),
    "normalization": (layers.Normalization(mean=50, variance=4), same, head),
    "operations": (preprocess_input, same, head),
    "convolution": (same, same, convolution),
    "same names": (layers.Conv2D(3, 1, name="block1a_project"), same, head),
    "batch normalization": (same, same, NORMALIZED),
    "sigmoid": (same, same, lambda x: head(x, 1, "sigmoid")),
    "linear": (same, same, lambda x: head(x, 1, "linear")),
}
HALF = {"pooling outside": "mixed_float16", "pooling inside": "mixed_bfloat16"}
CASES = [*((kind, "float32") for kind in KINDS), *HALF.items()]


@pytest.fixture(scope="module")
def views(notebook):
    paths = [ROOT / "images" / f"{name}.jpg" for name in ("koala", "bee")]
    return np.stack([notebook.read_image(p, 400)[:96, :96] for p in paths])


@pytest.fixture(scope="module")
def base():
    """The bundled network, cut behind its second layer after a stride of 16 pixels."""
    network = keras.models.load_model(ROOT / BUNDLED)
    return keras.Model(network.input, network.get_layer("block4b_dw_relu").output)


def build(base, kind, policy="float32"):
    """A network of a kind around the trained base, and one that gives its maps."""
    front, end, behind = KINDS[kind]
    keras.config.set_dtype_policy(policy)
    pixels = keras.Input((96, 96, 3))

    def retyped(layer):
        return type(layer).from_config({**layer.get_config(), "dtype": policy})

    twin = keras.models.clone_model(base, keras.Input((96, 96, 3)), retyped)
    twin.set_weights(base.get_weights())
    ready = front(pixels)
    inner = keras.Model(twin.input, end(twin.output))
    pair = [keras.Model(pixels, x) for x in (behind(inner(ready)), twin(ready))]
    keras.config.set_dtype_policy("float32")
    return pair


@pytest.mark.parametrize(("kind", "policy"), CASES)
def test_a_network_made_plain_is_itself(notebook, base, views, tmp_path, kind, policy):
    network, maps_of = build(base, kind, policy)
    own, config = network.predict_on_batch(views), network.to_json()
    notebook.make_plain(network).save(tmp_path / "plain.keras")
    assert network.to_json() == config
    np.testing.assert_array_equal(network.predict_on_batch(views), own)
    plain = keras.models.load_model(tmp_path / "plain.keras")
    model, W, b = notebook.open_network(plain)
    features, scores = model.predict_on_batch(views)
    expected = np.float32(maps_of.predict_on_batch(views))
    step = 1e-3 if policy == "float32" else 0.02
    np.testing.assert_allclose(features, expected, atol=step * expected.max())
    logits, own = features.mean(axis=(1, 2)) @ W + b, np.float32(own)
    if kind in ("logits", "linear"):
        np.testing.assert_allclose(logits[:, -own.shape[1] :], own, atol=1e-3)
        own = softmax(own, axis=1) if kind == "logits" else expit(own)
    own = np.hstack([1 - own, own]) if own.shape[1] == 1 else own
    ours = softmax(logits, axis=1) if len(b) == 5 else expit(logits)
    np.testing.assert_allclose([scores, ours], [own, own], atol=step)


class Scaling(keras.Model):
    def predict_step(self, data):
        return self(keras.ops.cast(data[0], "float32") / 255)


REFUSED = {
    "Dense -> Dropout -> Dense": {"end": lambda x: dense(head(x, 8, "relu"), 2)},
    "Flatten": {"end": lambda x: dense(layers.Flatten()(x))},
    "GlobalMaxPooling2D": {"end": lambda x: dense(layers.GlobalMaxPooling2D()(x))},
    "LayerNorm": {"end": partial(head, between=layers.LayerNormalization())},
    "CenterCrop": {"front": layers.CenterCrop(24, 24)},
    "1 inputs and 2 outputs": {"end": lambda x: [head(x), head(x)]},
    "32, 32, 1": {"channels": 1},
    "predict": {"kind": Scaling},
}


def small(front=same, end=head, channels=3, kind=keras.Model, side=32):
    pixels = keras.Input((side, side, channels))
    return kind(pixels, end(layers.Conv2D(8, 3, 2, activation="relu")(front(pixels))))


@pytest.mark.parametrize("words", REFUSED)
def test_what_has_no_map_is_refused_by_name(notebook, words):
    with pytest.raises(ValueError, match="section 25"):
        notebook.open_network(small(**REFUSED[words]))
    with pytest.raises(ValueError, match=words):
        notebook.make_plain(small(**REFUSED[words]))


def test_after_the_four_names_are_given_anew_no_answer_is_a_mixture(
    notebook, views, monkeypatch
):
    photo, network = views[0], small(end=lambda x: head(x, 3))
    before = repr(notebook.localize(photo)), notebook.find_box(photo)
    with monkeypatch.context() as patch:
        opened = *notebook.open_network(network), ["cat", "dog", "bird"]
        for name, value in zip(["model", "W", "b", "labels"], opened):
            patch.setattr(notebook, name, value)
        model, W, _, labels = opened
        view = notebook.view_of(photo)[None]
        [scores], r = network.predict_on_batch(view), notebook.localize(photo)
        assert r.label == labels[scores.argmax()] and r.cam.shape == (15, 15)
        assert r.probability == pytest.approx(scores.max(), rel=1e-3)
        cam = notebook.finer(model).predict_on_batch(view)[0][0] @ W[:, r.class_index]
        np.testing.assert_allclose(notebook.finer_cam(photo), cam, rtol=1e-5)
        _, mask = notebook.follow_colors(view[0], cam)
        box = np.array(notebook.cam_to_box(mask)) * 96 / 176
        assert notebook.find_box(photo) == tuple(np.rint(box))
    assert (repr(notebook.localize(photo)), notebook.find_box(photo)) == before


@pytest.mark.parametrize("kind", ["bundled", "operations", "pooling inside"])
def test_every_second_cell_of_the_finer_map_is_the_old_map(notebook, base, views, kind):
    network = notebook.classifier if kind == "bundled" else build(base, kind)[0]
    plain = notebook.make_plain(network) if kind == "pooling inside" else network
    model = notebook.open_network(plain)[0]
    views = np.resize(views, (2, *model.input_shape[1:]))
    old, fine = (x.predict_on_batch(views)[0] for x in (model, notebook.finer(model)))
    assert fine.shape[1:3] == (2 * old.shape[1], 2 * old.shape[2])
    errors = [abs(fine[:, y::2, x::2] - old).max() for y in (0, 1) for x in (0, 1)]
    assert min(errors) < 1e-3 * old.max()


@pytest.fixture(scope="module", autouse=True)
def books(tmp_path_factory, pool, notebook):
    """Runs of the whole notebook with networks of one's own, begun before they count."""
    cells = [*part(*range(6)), code("len(labels), model.input_shape[1]")]
    scaling, paths = layers.Rescaling(1 / 255), tmp_path_factory.mktemp("own")
    small(scaling, lambda x: head(x, 5, "sigmoid"), side=48).save(paths / "5.keras")
    unit = small(scaling, lambda x: head(x, 1, "sigmoid"), side=64)
    nested = keras.Sequential([keras.Input((64, 64, 3)), unit])
    notebook.make_plain(nested).save(paths / "2.keras")
    sizes = {"(5, 48)": "5.keras", "(2, 64)": "2.keras"}
    return {x: pool.submit(run, cells, CAM_NETWORK=paths / sizes[x]) for x in sizes}


@pytest.mark.parametrize("shown", ["(2, 64)", "(5, 48)"])
def test_the_whole_notebook_runs_with_a_network_of_ones_own(books, shown):
    [output] = books[shown].result()[-1].outputs
    assert output.data["text/plain"] == shown


@pytest.mark.parametrize("encoding", ["utf-16", "utf-8-sig", "cp1252"])
def test_names_beside_a_network_are_read(notebook, tmp_path, encoding):
    names = "".join(f"\nnaïve {c}" for c in range(1000))
    (tmp_path / "own.txt").write_bytes(names.encode(encoding))
    own = run_apart(notebook, "names_file", network=str(tmp_path / "own.keras"))
    assert len(own["labels"]) == 1000 and own["labels"][999].endswith("ve 999")
