"""Part II: IoU, better maps and boxes, and the command that measures them."""
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import evaluate_localization as evaluate

edge = st.integers(0, 60)
box = st.tuples(edge, edge, edge, edge).map(
    lambda e: (min(e[0], e[2]), min(e[1], e[3]), max(e[0], e[2]), max(e[1], e[3])))


def pixels(box):
    """The set of pixels in a box, the plainest definition of its area."""
    return {(x, y) for x in range(box[0], box[2]) for y in range(box[1], box[3])}


@given(box, box)
def test_iou_counts_pixels(notebook, a, b):
    together = pixels(a) | pixels(b)
    expected = len(pixels(a) & pixels(b)) / len(together) if together else 0
    assert notebook.iou(a, b) == pytest.approx(expected)
    assert notebook.iou(a, b) == notebook.iou(b, a)
    assert notebook.iou(a, a) == (1 if pixels(a) else 0)


@pytest.mark.parametrize("wrong", [(0, 0, 1), (5, 0, 1, 1), (0, 0, np.nan, 1),
                                   (0, 0, np.inf, 1), "a box"])
def test_iou_refuses_what_is_no_box(notebook, wrong):
    with pytest.raises(ValueError):
        notebook.iou(wrong, (0, 0, 1, 1))
    with pytest.raises(ValueError):
        notebook.iou((0, 0, 1, 1), wrong)


def dog(notebook):
    photo = notebook.prepare(notebook.read_image("images/german_shepherd.jpg"))
    features, logits = notebook.forward([photo])
    return photo, features[0], logits[0]


def test_centered_map_keeps_the_ledger_and_the_probabilities(notebook):
    photo, features, logits = dog(notebook)
    bias = notebook.classifier.bias
    cams = np.stack([notebook.centered_map(features, c) for c in range(0, 1000, 50)])
    expected = (logits - logits.mean())[::50]
    means = cams.mean(axis=(1, 2)) + (bias - bias.mean())[::50]
    np.testing.assert_allclose(means, expected, atol=1e-3)
    plain = notebook.class_activation_map(features, 235) - \
        notebook.class_activation_map(features, 100)
    difference = notebook.centered_map(features, 235) - \
        notebook.centered_map(features, 100)
    np.testing.assert_allclose(difference, plain, atol=1e-3)


def test_finer_map_contains_the_plain_one(notebook):
    photo, features, _ = dog(notebook)
    network = notebook.classifier
    fine = notebook.fine_model(network.model, network.size)
    assert fine is not network.model
    finer = notebook.forward([photo], fine)[0][0]
    assert finer.shape == (14, 14, features.shape[2])
    apart = [np.abs(finer[s::2, s::2] - features).max() for s in (0, 1)]
    assert min(apart) < 1e-3 < max(apart)


def test_a_network_without_strides_keeps_its_map(notebook, use_network):
    keras = notebook.keras
    whole = keras.Sequential([
        keras.Input((32, 32, 3)), keras.layers.Conv2D(4, 3, activation="relu"),
        keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(3)])
    use_network(notebook.open_up("flat", whole))
    network = notebook.classifier
    assert notebook.fine_model(network.model, network.size) is network.model
    result = notebook.localize(np.zeros((50, 40, 3), "uint8"), 1)
    assert result.heatmap.shape == (50, 40)


def test_localize_gives_the_map_asked_for(notebook):
    plain = notebook.localize("images/koala.jpg", 105)
    centered = notebook.localize("images/koala.jpg", 105, notebook.centered_map)
    assert plain.box == centered.box and plain.logit == centered.logit
    mean = plain.cam - centered.cam
    other = (notebook.localize("images/koala.jpg", 7).cam
             - notebook.localize("images/koala.jpg", 7, notebook.centered_map).cam)
    np.testing.assert_allclose(mean, other, atol=1e-4)
    assert np.abs(mean).max() > 1e-3


@pytest.mark.parametrize("shape", [(1, 1), (1, 3000), (3000, 1), (7, 5), (400, 300)])
def test_boxes_lie_in_photos_of_any_shape(notebook, shape):
    noise = np.random.default_rng(1).integers(0, 256, (*shape, 3)).astype("uint8")
    x0, y0, x1, y1 = notebook.localize(noise).box
    assert 0 <= x0 <= x1 <= shape[1] and 0 <= y0 <= y1 <= shape[0]


def test_summary_by_hand():
    assert evaluate.summary([0.2, 0.3, 0.55, 0.95]) == pytest.approx([0.75, 0.5, 0.25, 0.5])


def test_max_box_acc_v2_by_hand():
    """Two photos, ten thresholds: a two-step map whose boxes can be read off.

    Photo 1 is 1 in an 8 x 8 square and 0.5 in the 10 x 10 around it. The truth is the
    10 x 10, so thresholds up to 0.5 give IoU 1, above it 0.64. Photo 2 is 1 in a
    4 x 4 corner and 0 elsewhere in 10 x 10; the truth is 5 x 10: threshold 0 gives
    the whole photo, IoU 0.5; every other one IoU 16/50 = 0.32.
    """
    thresholds = np.arange(0, 1, 0.1)
    first = np.zeros((20, 20))
    first[5:15, 5:15] = 0.5
    first[6:14, 6:14] = 1
    second = np.zeros((10, 10))
    second[:4, :4] = 1
    best = np.stack([
        evaluate.best_iou_per_threshold(first, [(5, 5, 15, 15)], thresholds),
        evaluate.best_iou_per_threshold(second, [(0, 0, 5, 10)], thresholds)])
    np.testing.assert_allclose(best[0], [0.25] + [1] * 5 + [0.64] * 4)
    np.testing.assert_allclose(best[1], [0.5] + [0.32] * 9)
    # IoU 0.3: both at threshold 0.1. IoU 0.5: one of two. IoU 0.7: the first only.
    assert evaluate.max_box_acc_v2(best) == pytest.approx((1 + 0.5 + 0.5) / 3)


def test_all_contours_count():
    """The smaller of two regions is the true one: one contour alone would miss it."""
    heatmap = np.zeros((20, 20))
    heatmap[:10, :10] = 1
    heatmap[15:, 15:] = 1
    best = evaluate.best_iou_per_threshold(heatmap, [(15, 15, 20, 20)], [0.5])
    assert best == pytest.approx([1])


def test_the_evaluator_prints_its_table(notebook, tmp_path, capsys, monkeypatch):
    lines = ["file,class_index,x0,y0,x1,y1", "koala.jpg,105,104,244,647,881",
             "missing.jpg,1,0,0,5,5"]
    (tmp_path / "boxes.csv").write_text("\n".join(lines))
    monkeypatch.setattr(evaluate, "load_notebook", lambda network: vars(notebook))
    table = evaluate.main(["--images", "images", "--boxes", str(tmp_path / "boxes.csv"),
                           "--csv", str(tmp_path / "out.csv")])
    printed = capsys.readouterr().out
    assert list(table) == [title for title, _ in evaluate.ROWS]
    assert all(title in printed for title in table) and "missing.jpg" in printed
    assert table["centered box of 80 %"][3] == pytest.approx(evaluate.pairwise_iou(
        [(76.8, 102.4, 691.2, 921.6)], [(104, 244, 647, 881)])[0, 0])
    written = (tmp_path / "out.csv").read_text().splitlines()
    assert len(written) == 1 + len(evaluate.ROWS)
    file, index, title, *edges, iou = written[-1].split(",")
    assert float(iou) == pytest.approx(notebook.iou(
        [float(e) for e in edges], (104, 244, 647, 881)))


def test_our_rule_beats_the_original_pipeline(notebook, use_network, monkeypatch):
    """On a real ResNet-50 and a folder of photos with boxes, where they are named."""
    network, folder = map(os.environ.get, ("CAM_TEST_RESNET50", "CAM_TEST_PHOTOS"))
    if not (network and folder):
        pytest.skip("CAM_TEST_RESNET50 and CAM_TEST_PHOTOS name no network and photos")
    use_network(notebook.load_network(network))
    rows = [row for row in evaluate.ROWS if row[1] in ("original", "ours")]
    monkeypatch.setattr(evaluate, "ROWS", rows)
    monkeypatch.setattr(evaluate, "load_notebook", lambda network: vars(notebook))
    table = evaluate.main(["--images", str(Path(folder, "images")),
                           "--boxes", str(Path(folder, "boxes.csv"))])
    ours, original = table["+ colors: ours"], table["original pipeline"]
    assert ours[1] - original[1] >= 0.09
    assert ours[3] - original[3] >= 0.055
