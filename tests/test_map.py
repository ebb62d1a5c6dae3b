"""The class activation map: what it adds up to, where it lies, and its box."""

import os
from pathlib import Path
from types import SimpleNamespace

import keras
import matplotlib.pyplot as plt
import numpy as np
import pytest
from conftest import ROOT
from evaluate_localization import read_boxes
from PIL import Image
from scipy.ndimage import center_of_mass, find_objects, label, zoom

RESNET50 = os.environ.get("CAM_TEST_RESNET50")
RNG = np.random.default_rng(0)


def photo_of(notebook, name):
    """One of the photos that come along."""
    return notebook.read_image(ROOT / "images" / f"{name}.jpg")


@pytest.fixture(scope="module")
def street(notebook):
    """The photo of a dog and a bicycle, its features, the network's own scores, and its
    last layers up to the logits as Keras computes them."""
    photo = photo_of(notebook, "dog_bicycle")
    views = notebook.view_of(photo)[None]
    features, _ = notebook.model.predict_on_batch(views)
    [scores] = notebook.classifier.predict_on_batch(views)
    layers = [keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(len(scores))]
    head = keras.Sequential([keras.Input(features.shape[1:]), *layers])
    head.set_weights(notebook.classifier.get_weights()[-2:])
    return photo, features, scores, head


@pytest.mark.parametrize("c", [0, 235, 671, 999])
def test_mean_of_the_map_plus_bias_is_the_networks_logit(notebook, street, c):
    photo, features, scores, head = street
    r = notebook.localize(photo, c)
    logit = head.predict_on_batch(features)[0, c]
    found = [r.logit, r.cam.mean() + notebook.b[c]]
    np.testing.assert_allclose(found, [logit, logit], atol=1e-4)
    assert r.probability == pytest.approx(scores[c], rel=1e-3)


@pytest.mark.parametrize("shape", [(7, 7), (1, 1), (14, 9)])
@pytest.mark.parametrize("size", [(224, 224), (301, 203), (40, 1023)])
def test_the_map_at_full_resolution_keeps_its_mean(notebook, shape, size):
    cam = RNG.normal(3, 9, shape)
    heat = notebook.upsample(cam, *size)
    assert heat.shape == size and heat.dtype == np.float32
    assert heat.mean() == pytest.approx(cam.mean(), abs=1e-3 * (np.ptp(cam) + 1))


@pytest.mark.parametrize("cell", [(1, 1), (3, 5), (5, 2)])
@pytest.mark.parametrize("size", [(224, 224), (301, 203), (60, 1000)])
def test_the_heat_of_a_cell_is_centered_on_its_square(notebook, cell, size):
    cam = np.zeros((7, 7))
    cam[cell] = 1
    heat = notebook.upsample(cam, *size)
    middle = (np.array(cell) + 0.5) * size / np.array(7) - 0.5
    np.testing.assert_allclose(center_of_mass(heat - heat.min()), middle, atol=0.1)


def test_on_one_scale_what_is_absent_stays_dark(notebook):
    photo = photo_of(notebook, "german_shepherd")
    notebook.show_cam(photo, "German shepherd", "bee")
    pictures = [ax.images[0].get_array() for ax in plt.gcf().axes[:3]]
    np.testing.assert_array_equal(pictures[0], photo)
    present, absent = (np.ptp(p, axis=2).mean() for p in pictures[1:])
    assert absent < present / 4


def test_an_overlay_has_the_photos_size_and_an_absent_class_stays_dark(notebook):
    photo = photo_of(notebook, "german_shepherd")
    cams = [notebook.localize(photo, name).cam for name in ("German shepherd", "bee")]
    overlays = [notebook.overlay(photo, cam) for cam in (*cams, -np.ones((7, 7)))]
    for picture in overlays:
        assert picture.shape == photo.shape and picture.dtype == np.uint8
    present, absent, negative = (np.ptp(x, axis=2).mean() for x in overlays)
    assert negative < 5 and absent < present / 4


@pytest.mark.parametrize("cell", [(0, 0), (3, 2), (6, 6)])
def test_without_a_cell_the_logit_falls_by_its_share(notebook, street, cell):
    photo, features, _, head = street
    without = features.copy()
    without[0][cell] = 0
    falls = (head.predict_on_batch(features) - head.predict_on_batch(without))[0]
    for c in (235, 671):
        cam = notebook.localize(photo, c).cam
        assert falls[c] == pytest.approx(cam[cell] / cam.size, abs=1e-4)


@pytest.mark.parametrize("target", [None, 235, np.int64(235), "man SHEP"])
def test_a_class_is_asked_for_by_index_name_or_a_part_of_it(notebook, target):
    result = notebook.localize(photo_of(notebook, "german_shepherd"), target)
    assert result.label == notebook.labels[result.class_index] == "German shepherd"


def test_a_whole_name_goes_before_its_part_in_others(notebook):
    assert notebook.localize(photo_of(notebook, "koala"), "tiger").class_index == 292


@pytest.mark.parametrize("target", ["unicorn", "retriever"])
def test_a_class_that_is_not_clear_says_how_many_match(notebook, target):
    count = sum(target in name.lower() for name in notebook.labels)
    with pytest.raises(ValueError, match=rf"\b{count} class.*{target}"):
        notebook.localize(photo_of(notebook, "koala"), target)


def test_a_result_is_shown_in_one_line(notebook):
    shown = repr(notebook.localize(photo_of(notebook, "koala")))
    assert "koala: 89" in shown and "\n" not in shown and len(shown) < 60


def boxes_of_largest_regions(mask):
    """Boxes of the largest 8-connected regions of a mask, by SciPy."""
    regions, _ = label(mask, np.ones((3, 3)))
    sizes = np.bincount(regions[regions > 0])[1:]
    boxes = [(x.start, y.start, x.stop, y.stop) for y, x in find_objects(regions)]
    return [box for box, size in zip(boxes, sizes) if size == sizes.max()]


def test_the_box_frames_the_largest_region_above_the_threshold(notebook):
    for threshold in RNG.uniform(0.1, 0.9, 200):
        heat = RNG.normal(size=RNG.integers(1, 12, 2))
        if heat.max() > 0:
            boxes = boxes_of_largest_regions(heat > threshold * heat.max())
            assert notebook.cam_to_box(heat, threshold) in boxes


@pytest.mark.parametrize("value", [0, -1])
def test_where_nothing_is_positive_the_box_is_the_whole_map(notebook, value):
    assert notebook.cam_to_box(np.full((5, 8), value)) == (0, 0, 8, 5)


def test_iou_counts_pixels(notebook):
    for corners in RNG.integers(0, 9, (300, 2, 2, 2)):
        boxes = np.sort(corners, axis=1).reshape(2, 4)
        a, b = painted = np.zeros((2, 9, 9), bool)
        for picture, (x0, y0, x1, y1) in zip(painted, boxes, strict=True):
            picture[y0:y1, x0:x1] = True
        expected = (a & b).sum() / max(1, (a | b).sum())
        assert notebook.iou(*boxes) == pytest.approx(expected)


@pytest.mark.parametrize("orientation", [1, 6])
def test_the_box_of_a_large_photo_is_in_its_own_pixels(notebook, tmp_path, orientation):
    photo = Image.fromarray(photo_of(notebook, "koala"))
    large, exif = photo.resize((photo.width * 4, photo.height * 4)), Image.Exif()
    exif[0x0112] = orientation
    stored = large.rotate(90, expand=True) if orientation == 6 else large
    stored.save(tmp_path / "large.jpg", exif=exif, quality=95)
    box = notebook.find_box(tmp_path / "large.jpg")
    small_box = notebook.find_box(np.array(photo))
    assert notebook.iou(np.array(box) / 4, small_box) > 0.7


def test_without_a_class_the_box_is_of_the_plain_networks_winner(notebook, monkeypatch):
    photo, fine = photo_of(notebook, "koala"), notebook.finer(notebook.model)
    box = notebook.find_box(photo, "koala")

    def other_winner(views):
        features, scores = fine.predict_on_batch(views)
        return features, np.roll(scores, 1)

    other = SimpleNamespace(predict_on_batch=other_winner)
    monkeypatch.setattr(notebook, "finer", lambda model: other)
    assert notebook.find_box(photo) == box


@pytest.mark.skipif(not RESNET50, reason="CAM_TEST_RESNET50 names no network")
def test_resnet50_knows_the_photos_and_looks_at_the_objects(notebook, monkeypatch):
    opened = notebook.open_network(keras.models.load_model(RESNET50))
    for name, value in zip(["model", "W", "b"], opened):
        monkeypatch.setattr(notebook, name, value)
    truth, hits, right = read_boxes(ROOT / "images/boxes.csv"), 0, set()
    for (name, c), boxes in truth.items():
        photo = notebook.read_image(ROOT / "images" / name)
        if notebook.localize(photo).class_index == c:
            right.add(name)
        cam = notebook.localize(photo, c).cam
        heat = notebook.upsample(cam, *photo.shape[:2])
        y, x = np.unravel_index(heat.argmax(), heat.shape)
        hits += any(x0 <= x < x1 and y0 <= y < y1 for x0, y0, x1, y1 in boxes)
    assert len(right) >= 7 and len(truth) == 11 and hits >= 10


@pytest.mark.skipif("CAM_TEST_PHOTOS" not in os.environ, reason="no photos with boxes")
def test_boxes_are_better_than_those_of_the_plain_pipeline(notebook):
    folder, overlaps = Path(os.environ["CAM_TEST_PHOTOS"]), []
    for (name, c), boxes in read_boxes(folder / "boxes.csv").items():
        photo = notebook.read_image(folder / "images" / name)
        plain = notebook.cam_to_box(zoom(notebook.localize(photo, c).cam, 32, order=1))
        scale = np.tile(photo.shape[1::-1], 2) / 224
        found = plain * scale, notebook.find_box(photo, c)
        overlaps.append([max(notebook.iou(box, b) for b in boxes) for box in found])
    before, after = np.transpose(overlaps)
    assert (after >= 0.5).mean() - (before >= 0.5).mean() >= 0.05
    assert after.mean() - before.mean() >= 0.055
