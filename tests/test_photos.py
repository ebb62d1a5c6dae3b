"""Photos that people have: each is read as it looks, or refused by its name."""

import base64
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image

KINDS = ["AVIF", "WEBP", "GIF", "BMP", "TIFF", "PNG", "MPO", "JPEG"]
HEIC = base64.b85decode(  # the scene as a phone stores it
    "c-muNV30{GsVvAy%}izhg51nBLl8SRGck>UfiWyMwIq=N0u(b+a*CjAhJwuG5(YG&l$nzcHpIn&fe{"
    "FSfUycf1A!_KD`#frrGa@MQBfc#l?lqrC`&d3G5HEIOLE~#u4NV!6#(h&nFY!DK)M2`%$boHBs2l6N"
    "bUo}pT9qTFfi~lCjfOwI56@s{{IhBzzkBs3_^0dm>d#;lG;v;jA$|o6dGBlz4Fvtm&YW<!vPXH0U|g"
    "Yl7Q;jT^J7*ZBTLmS|gmCpHq~VoKpc5=4D`O01Am@78j&K{pJA00tJ~BnIHjX4i2Dc4C0vuxv<~^h6"
    "qa|6Eh2tshgXU2nsz#4aW774c}{8&Hw*c*#0j&>i_y9d;fozU0b*9Z2iL{=RR8i02Vb=y8"
)


def scene(width=64, height=64):
    picture = Image.new("RGB", (width, height), "red")
    picture.paste("blue", (width // 2, 0, width, height))
    return picture


def assert_looks_like(image, picture):
    expected = np.array(picture)
    assert image.dtype == np.uint8 and image.shape == expected.shape
    assert (abs(image.astype(int) - expected).max(axis=2) > 12).mean() < 0.07


@pytest.mark.parametrize("orientation", range(1, 9))
def test_photos_of_every_orientation_are_read_upright(notebook, tmp_path, orientation):
    upright, exif = scene(80, 48), Image.Exif()
    upright.paste("white", (0, 0, 40, 24))
    exif[0x0112] = orientation
    turn = [None, 0, 3, 1, 5, 2, 6, 4][orientation - 1]  # of Image.Transpose
    stored = upright if turn is None else upright.transpose(turn)
    stored.save(tmp_path / "x.jpg", exif=exif, quality=95, subsampling=0)
    assert_looks_like(notebook.read_image(tmp_path / "x.jpg"), upright)


@pytest.mark.parametrize("longest", [None, 60])
def test_a_cut_out_lies_on_white_paper_without_a_fringe(notebook, tmp_path, longest):
    cut_out = np.zeros((200, 200, 4), "uint8")
    cut_out[50:150, 50:150] = 255, 0, 0, 255
    Image.fromarray(cut_out).save(tmp_path / "cut_out.png")
    image = notebook.read_image(tmp_path / "cut_out.png", longest)
    assert (image[0, 0] == 255).all() and image[..., 0].min() > 250
    assert image[len(image) // 2, len(image) // 2].tolist() == [255, 0, 0]


@pytest.mark.parametrize("kind", ["uint16", "int32", "float32"])
@pytest.mark.parametrize("most", [1, 255, 1023, 65535])
def test_a_deep_picture_is_scaled_by_its_range(notebook, tmp_path, kind, most):
    gray = np.linspace(0, most, 6400).reshape(80, 80).astype(kind)
    Image.fromarray(gray).save(tmp_path / "deep.tif")
    image = notebook.read_image(tmp_path / "deep.tif")
    expected = gray[..., None] / most * np.full(3, 255)
    np.testing.assert_allclose(image, expected, atol=1.5)


def test_a_photo_of_200_megapixels_is_read_without_a_fright(notebook, tmp_path):
    Image.new("L", (20000, 10000), 99).save(tmp_path / "large.jpg")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        image = notebook.load(tmp_path / "large.jpg")
    assert max(image.shape) < 3000 and abs(image.astype(int) - 99).max() < 3


def test_an_array_that_is_no_photo_is_refused_by_its_shape(notebook):
    gray, four = np.zeros((9, 9), "uint8"), np.zeros((9, 9, 4), "uint8")
    for array in (gray, four, np.zeros((9, 9, 3)), Image.fromarray(gray)):
        with pytest.raises(ValueError, match=r"\(H, W, 3\) uint8, not \(9, 9"):
            notebook.localize(array)


@pytest.mark.parametrize("name", ["x.heic", "x.HEIC", "IMG_1.JPG"])
def test_heic_is_read_whatever_its_name(notebook, tmp_path, name):
    (tmp_path / name).write_bytes(zlib.decompress(HEIC))
    assert_looks_like(notebook.read_image(tmp_path / name), scene())


@pytest.mark.parametrize("kind", KINDS)
def test_photos_of_every_kind_are_read(notebook, tmp_path, kind):
    many = {"save_all": True} if kind in ("GIF", "MPO") else {}
    many |= {"exif": b"Exif\0\0rubbish"} if kind in ("JPEG", "PNG", "WEBP") else {}
    more = [Image.new("RGB", (64, 64), "lime")]
    scene().save(tmp_path / "photo", kind, append_images=more, **many)
    assert_looks_like(notebook.read_image(tmp_path / "photo"), scene())
