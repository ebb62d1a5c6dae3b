"""Networks of every kind: each is opened, refined or refused as it should be."""

import ast
from functools import partial

import keras
import nbformat
import numpy as np
import pytest
from conftest import BUNDLED, NOTEBOOK, ROOT, run
from keras import layers
from keras.applications.mobilenet_v2 import preprocess_input
from scipy.special import expit, softmax


def dense(x, units=5, activation="softmax"):
    """A dense layer of random weights behind dropout."""
    random = keras.initializers.RandomNormal(0, 0.05, seed=1)
    layer = layers.Dense(units, activation, kernel_initializer=random)
    return layer(layers.Dropout(0.5)(x))


def head(x, *options):
    """Global average pooling and a dense layer."""
    return dense(layers.GlobalAveragePooling2D()(x), *options)


def convolution(x, use_bias=True):
    """A head as in MobileNet: a 1 x 1 convolution of the pooled maps."""
    x = layers.GlobalAveragePooling2D(keepdims=True)(x)
    x = layers.Conv2D(5, 1, use_bias=use_bias)(x)
    return layers.Softmax()(layers.Flatten()(x))


def normalized(x):
    """Pixels through a layer that has learned the mean and variance of some."""
    layer = layers.Normalization()
    layer.adapt(np.random.default_rng(0).normal(50, 2, (9, 4, 4, 3)))
    return layer(x)


def same(x):
    """Nothing in between."""
    return x


# What is in front of a trained network, at its end, and behind it.
KINDS = {
    "pooling outside": (same, same, head),
    "pooling inside": (same, layers.GlobalAveragePooling2D(), dense),
    "trained network behind scaling": (layers.Rescaling(0.5, 60), head, same),
    "logits, then softmax": (same, lambda x: head(x, 5, None), layers.Softmax()),
    "augmentation": (keras.Sequential([layers.RandomFlip()]), same, head),
    "labels": (same, same, lambda x: head(x, 4, "sigmoid")),
    "normalization": (normalized, same, head),
    "operations": (preprocess_input, same, head),
    "convolution": (same, same, convolution),
    "convolution without bias": (same, same, partial(convolution, use_bias=False)),
    "sigmoid": (same, same, lambda x: head(x, 1, "sigmoid")),
    "linear": (same, same, lambda x: head(x, 1, "linear")),
}
HALF = [("pooling outside", "mixed_float16"), ("pooling inside", "mixed_bfloat16")]


@pytest.fixture(scope="module")
def views(notebook):
    """Two photos at the networks' size."""
    paths = [ROOT / "images" / f"{name}.jpg" for name in ("koala", "bee")]
    return np.stack([notebook.read_image(p, 400)[:96, :96] for p in paths])


@pytest.fixture(scope="module")
def base():
    """The bundled network, cut behind its second layer after a stride of 16 pixels."""
    network = keras.models.load_model(ROOT / BUNDLED)
    return keras.Model(network.input, network.get_layer("block4b_dw_relu").output)


def build(base, kind, policy="float32"):
    """A network of a kind around the trained base, and one that gives its maps."""

    def copy(layer):
        return type(layer).from_config({**layer.get_config(), "dtype": policy})

    front, end, behind = KINDS[kind]
    keras.config.set_dtype_policy(policy)
    twin = keras.models.clone_model(base, clone_function=copy)
    twin.set_weights(base.get_weights())
    pixels = keras.Input((96, 96, 3))
    ready = front(pixels)
    inner = keras.Model(twin.input, end(twin.output))
    pair = [keras.Model(pixels, x) for x in (behind(inner(ready)), twin(ready))]
    keras.config.set_dtype_policy("float32")
    return pair


def expected_map(network, maps_of, views):
    """Maps of all classes, from a network's own last kernel."""
    kernel = [w for w in network.get_weights() if w.ndim > 1][-1]
    return np.float32(maps_of.predict_on_batch(views)) @ kernel.reshape(
        maps_of.output.shape[-1], -1
    )


@pytest.mark.parametrize(
    ("kind", "policy"), [*((kind, "float32") for kind in list(KINDS)[:-2]), *HALF]
)
def test_the_maps_of_any_network_add_up_to_its_scores(
    notebook, base, views, kind, policy
):
    network, maps_of = build(base, kind, policy)
    own, config = network.predict_on_batch(views), network.to_json()
    model, W, b = notebook.open_network(network)
    features, scores = notebook.forward(views, model)
    expected = expected_map(network, maps_of, views)
    step = 1e-3 if policy == "float32" else 0.02
    np.testing.assert_allclose(features @ W, expected, atol=step * np.ptp(expected))
    link = expit if kind == "labels" else partial(softmax, axis=1)
    ours = link(features.mean(axis=(1, 2)) @ W + b)
    for found in (ours, scores):
        np.testing.assert_allclose(found, np.float32(own), atol=step)
    assert network.to_json() == config
    np.testing.assert_array_equal(network.predict_on_batch(views), own)


@pytest.mark.parametrize("kind", ["sigmoid", "linear"])
def test_one_unit_speaks_for_yes_and_its_negative_for_no(notebook, base, views, kind):
    network, maps_of = build(base, kind)
    own = network.predict_on_batch(views)
    model, W, _ = notebook.open_network(network)
    features, scores = notebook.forward(views, model)
    no, yes = np.moveaxis(features @ W, -1, 0)
    expected = expected_map(network, maps_of, views)[..., 0]
    for found in (2 * yes, -2 * no):
        np.testing.assert_allclose(found, expected, atol=1e-3 * np.ptp(expected))
    chance = (own if kind == "sigmoid" else expit(own))[:, 0]
    np.testing.assert_allclose(scores, np.transpose([1 - chance, chance]), atol=1e-3)


@pytest.mark.parametrize("kind", ["flat", *list(KINDS)[:3]])
def test_every_second_cell_of_the_finer_map_is_the_old_map(notebook, base, views, kind):
    network = notebook.classifier if kind == "flat" else build(base, kind)[0]
    models = notebook.open_network(network)[0], notebook.finer(network, (96, 96, 3))
    (old, _), (fine, _) = [notebook.forward(views, model) for model in models]
    assert fine.shape[1:3] == (2 * old.shape[1], 2 * old.shape[2])
    errors = [abs(fine[:, y::2, x::2] - old).max() for y in (0, 1) for x in (0, 1)]
    assert min(errors) < 1e-3 * old.max()


@pytest.mark.parametrize(
    ("channels", "end", "words"),
    [
        (3, lambda x: dense(layers.Flatten()(x)), "Flatten"),
        (3, lambda x: dense(layers.GlobalMaxPooling2D()(x)), "GlobalMaxPooling2D"),
        (3, lambda x: dense(head(x, 8, "relu")), "Dense -> Dropout -> Dense"),
        (1, head, "32, 32, 1"),
    ],
)
def test_what_has_no_map_is_refused_by_name(notebook, channels, end, words):
    pixels = keras.Input((32, 32, channels))
    maps = layers.Conv2D(8, 3, activation="relu")(pixels)
    with pytest.raises(ValueError, match=words):
        notebook.open_network(keras.Model(pixels, end(maps)))


OWN = {
    "one unit": (64, 1, "sigmoid", "float32", "cat\ndög\n".encode("utf-16")),
    "ten classes": (32, 10, "softmax", "float32", None),
    "half precision": (48, 3, "softmax", "mixed_float16", b"\xef\xbb\xbfa\nb\nc\n\n"),
}
LABELS = [["cat", "dög"], [f"class {c}" for c in range(10)], ["a", "b", "c"]]


@pytest.fixture(scope="module", autouse=True)
def books(tmp_path_factory, pool, clean_run):
    """Runs of the whole notebook with networks of one's own, begun before they count."""
    cells = nbformat.read(NOTEBOOK, 4).cells + [nbformat.v4.new_code_cell("labels")]
    started = {}
    for kind, (side, units, activation, policy, names) in OWN.items():
        path = tmp_path_factory.mktemp("own") / "own.keras"
        keras.config.set_dtype_policy(policy)
        pixels = keras.Input((side, side, 3))
        scaled = layers.Rescaling(1 / 255)(pixels)
        convs = [layers.Conv2D(8, 3, 2, "same", activation="relu") for _ in range(3)]
        end = head(keras.Sequential(convs)(scaled), units, activation)
        keras.Model(pixels, end).save(path)
        keras.config.set_dtype_policy("float32")
        if names:
            path.with_suffix(".txt").write_bytes(names)
        started[kind] = pool.submit(run, cells, CAM_NETWORK=path)
    return started


@pytest.mark.parametrize(("kind", "labels"), [*zip(OWN, LABELS)])
def test_the_whole_notebook_runs_with_a_network_of_ones_own(books, kind, labels):
    [shown] = books[kind].result().cells[-1].outputs
    assert ast.literal_eval(shown.data["text/plain"]) == labels
