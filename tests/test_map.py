"""The class activation map: what it adds up to, where it lies, and its box."""

import os

import keras
import matplotlib.pyplot as plt
import numpy as np
import pytest
from conftest import ROOT
from evaluate_localization import read_boxes
from PIL import Image
from scipy.ndimage import center_of_mass, find_objects, label

RESNET50 = os.environ.get("CAM_TEST_RESNET50")
RNG = np.random.default_rng(0)


def photo_of(notebook, name):
    return notebook.read_image(ROOT / "images" / f"{name}.jpg")


@pytest.mark.parametrize("c", [0, 235, 671, 999])
def test_the_map_is_a_ledger_of_the_networks_own_logit(notebook, c):
    photo = photo_of(notebook, "dog_bicycle")
    views, r = notebook.view_of(photo)[None], notebook.localize(photo, c)
    features, _ = notebook.model.predict_on_batch(views)
    layers = [keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(1000)]
    head = keras.Sequential([keras.Input(features.shape[1:]), *layers])
    head.set_weights(notebook.classifier.get_weights()[-2:])
    logit = head.predict_on_batch(features)[0, c]
    found = [r.logit, r.cam.mean() + notebook.b[c]]
    np.testing.assert_allclose(found, [logit, logit], atol=1e-4)
    scores = notebook.classifier.predict_on_batch(views)
    assert r.probability == pytest.approx(scores[0, c], rel=1e-3)
    features[0, 3, 2] = 0
    fall = logit - head.predict_on_batch(features)[0, c]
    assert fall == pytest.approx(r.cam[3, 2] / r.cam.size, abs=1e-4)


@pytest.mark.parametrize("cell", [(1, 1), (3, 5), (5, 2)])
@pytest.mark.parametrize("size", [(224, 224), (301, 203), (60, 1000)])
def test_heat_is_centered_on_its_cell_and_keeps_its_mean(notebook, cell, size):
    cam = np.zeros((7, 7))
    cam[cell] = 1
    heat = notebook.upsample(cam, *size)
    middle = (np.array(cell) + 0.5) * size / np.array(7) - 0.5
    np.testing.assert_allclose(center_of_mass(heat - heat.min()), middle, atol=0.1)
    assert heat.shape == size and heat.dtype == np.float32
    assert heat.mean() == pytest.approx(cam.mean(), abs=2e-3)


def test_on_one_scale_what_is_absent_stays_dark(notebook):
    photo, names = photo_of(notebook, "german_shepherd"), ("German shepherd", "bee")
    notebook.show_cam(photo, *names)
    first, *shown = [ax.images[0].get_array() for ax in plt.gcf().axes[:3]]
    np.testing.assert_array_equal(first, photo)
    cams = [notebook.localize(photo, name).cam for name in names]
    saved = [notebook.overlay(photo, cam) for cam in (*cams, -np.ones((7, 7)))]
    for present, absent, *negative in (shown, saved):
        assert present.shape == photo.shape and present.dtype == np.uint8
        assert np.ptp(absent, axis=2).mean() < np.ptp(present, axis=2).mean() / 4
    assert np.ptp(*negative, axis=2).mean() < 5


@pytest.mark.parametrize(
    ("name", "target", "c"),
    [*(("german_shepherd", x, 235) for x in (None, np.int64(235), "man SHEP"))]
    + [("koala", "tiger", 292)],  # a whole name, though it is a part of others too
)
def test_a_class_is_asked_for_by_index_name_or_a_part_of_it(notebook, name, target, c):
    r = notebook.localize(photo_of(notebook, name), target)
    assert (r.class_index, r.label) == (c, notebook.labels[c])
    assert repr(r) == f"{r.label}: {r.probability:.1%}, logit {r.logit:.2f}"


@pytest.mark.parametrize("target", ["unicorn", "retriever"])
def test_a_class_that_is_not_clear_says_how_many_match(notebook, target):
    count = sum(target in name.lower() for name in notebook.labels)
    with pytest.raises(ValueError, match=rf"\b{count} class.*{target}"):
        notebook.localize(photo_of(notebook, "koala"), target)


def test_the_box_frames_the_largest_region_above_the_threshold(notebook):
    for threshold in RNG.uniform(0.1, 0.9, 200):
        heat = RNG.normal(size=RNG.integers(2, 12, 2)) + 0.5
        regions, _ = label(heat > threshold * heat.max(), np.ones((3, 3)))  # by SciPy
        sizes = np.bincount(regions[regions > 0])[1:]
        found = notebook.cam_to_box(heat, threshold)
        boxes = [(x.start, y.start, x.stop, y.stop) for y, x in find_objects(regions)]
        assert found in [b for b, n in zip(boxes, sizes) if n == sizes.max()]
    for value in (0, -1):
        assert notebook.cam_to_box(np.full((5, 8), value)) == (0, 0, 8, 5)


def test_iou_counts_pixels(notebook):
    for corners in RNG.integers(0, 9, (300, 2, 2, 2)):
        boxes = np.sort(corners, axis=1).reshape(2, 4)
        a, b = painted = np.zeros((2, 9, 9), bool)
        for picture, (x0, y0, x1, y1) in zip(painted, boxes, strict=True):
            picture[y0:y1, x0:x1] = True
        expected = (a & b).sum() / max(1, (a | b).sum())
        assert notebook.iou(*boxes) == pytest.approx(expected)


def test_the_box_of_a_large_photo_is_in_its_own_pixels(notebook, tmp_path):
    photo, exif = Image.fromarray(photo_of(notebook, "koala")), Image.Exif()
    exif[0x0112] = 6
    turned = photo.resize((photo.width * 4, photo.height * 4)).rotate(90, expand=True)
    turned.save(tmp_path / "large.jpg", exif=exif, quality=95)
    box = np.divide(notebook.find_box(tmp_path / "large.jpg"), 4)
    assert notebook.iou(box, notebook.find_box(np.array(photo))) > 0.7


@pytest.mark.skipif(not RESNET50, reason="CAM_TEST_RESNET50 names no network")
def test_resnet50_knows_the_photos_and_looks_at_the_objects(notebook, monkeypatch):
    opened = notebook.open_network(keras.models.load_model(RESNET50))
    for name, value in zip(["model", "W", "b"], opened):
        monkeypatch.setattr(notebook, name, value)
    hits, right = [], set()
    for (name, c), boxes in read_boxes(ROOT / "images/boxes.csv").items():
        photo = notebook.read_image(ROOT / "images" / name)
        if notebook.localize(photo).class_index == c:
            right.add(name)
        heat = notebook.upsample(notebook.localize(photo, c).cam, *photo.shape[:2])
        y, x = np.unravel_index(heat.argmax(), heat.shape)
        hits.append(any(x0 <= x < x1 and y0 <= y < y1 for x0, y0, x1, y1 in boxes))
    assert len(right) >= 7 and len(hits) == 11 and sum(hits) >= 10
