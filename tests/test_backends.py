"""Tests that the notebook gives the same results on other backends of Keras."""

import nbformat
import numpy as np
import pytest
from conftest import NOTEBOOK, part, printed, run_book

BACKENDS = "openvino", "torch"
MEASURE = """
photos = [prepare(read_image(path)) for path in list_pictures("images")[::3]]
features, logits = forward(photos)
classes = [int(values.argmax()) for values in logits]
measured = dict(
    logits=logits, classes=classes,
    plain=[class_activation_map(f, c) for f, c in zip(features, classes)],
    centered=[centered_map(f, c) for f, c in zip(features, classes)],
    single=localize("images/chelsea.jpg").cam,
    paper=paper_boxes(photos, features, classes),
    twice=look_twice(photos, features, classes))
"""
COMPILED = """
compiled = classifier.model.ov_compiled_model
kinds = [str(node.get_rt_info()["layerType"].astype(str))
         for node in compiled.get_runtime_model().get_ops()]
print(compiled.get_property("INFERENCE_PRECISION_HINT").to_string(),
      kinds.count("Convolution"), kinds.count("Transpose"))
"""


@pytest.fixture(scope="module")
def expected(notebook):
    """What MEASURE finds on TensorFlow."""
    assert notebook.keras.backend.backend() == "tensorflow"
    space = dict(vars(notebook))
    exec(MEASURE, space)
    return space["measured"]


@pytest.fixture(scope="module", params=BACKENDS)
def run(request, tmp_path_factory):
    """Name of a backend, the notebook run on it, and what MEASURE finds there.

    OpenVINO runs all cells, the others those as far as the box rule.
    """
    file = tmp_path_factory.mktemp("backend") / "measured.npz"
    book = nbformat.read(NOTEBOOK, 4)
    if request.param == "openvino":
        book.cells.append(nbformat.v4.new_code_cell(COMPILED))
    else:
        book = part(book, "def look_twice")
    keep = f"np.savez({str(file)!r}, **measured)"
    book.cells.append(nbformat.v4.new_code_cell(MEASURE + keep))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KERAS_BACKEND", request.param)
        patch.setenv("OMP_WAIT_POLICY", "PASSIVE")
        run_book(book)
    return request.param, book, np.load(file)


def test_maps_and_boxes_are_those_of_tensorflow(run, expected, record_property):
    _, _, measured = run
    assert measured["classes"].tolist() == expected["classes"]
    for name in ("logits", "plain", "centered", "single"):
        true = np.asarray(expected[name])
        difference = np.abs(measured[name] - true).max() / np.ptp(true)
        record_property(f"{run[0]} {name}, difference as part of the range",
                        f"{difference:.1e}")
        assert difference < 1e-3
    for name in ("paper", "twice"):
        np.testing.assert_allclose(measured[name], expected[name], atol=2)


def test_the_run_names_its_backend_and_complains_of_nothing(run):
    backend, book, _ = run
    assert any(f"on {backend}" in printed(cell) for cell in book.cells)
    outputs = [output for cell in book.cells for output in cell.get("outputs", [])]
    assert not [output.text for output in outputs if output.get("name") == "stderr"]


@pytest.mark.parametrize("run", ["openvino"], indirect=True)
def test_openvino_computes_in_float32_and_transposes_no_convolution(run):
    _, book, _ = run
    precision, convolutions, transposes = printed(book.cells[-2]).split()
    assert precision == "f32"
    assert int(convolutions) > 40 and int(transposes) < 5
