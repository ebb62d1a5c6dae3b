"""What people drop into the folder: every kind of picture, and what is none."""

import os
import shutil
import struct
import tempfile
import time
import warnings
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_cam import assert_same_pixels, scene

STATUS = Path("/proc/self/status")
only_linux = pytest.mark.skipif(not STATUS.exists(), reason="memory is read from /proc")


def encoded(kind, picture=None, **options):
    """A picture, the scene by default, as the bytes of a file of this kind."""
    (picture or scene()).save(file := BytesIO(), kind, **options)
    return file.getvalue()


def peak(function, *arguments):
    """What a call returns, and the MB that it took at its peak. A ValueError counts
    as what it returns."""
    def used(key):
        lines = STATUS.read_text(encoding="utf8").splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(key)) / 1024
    Path("/proc/self/clear_refs").write_text("5", encoding="utf8")
    before = used("VmRSS")
    try:
        result = function(*arguments)
    except ValueError as error:
        result = error
    return result, used("VmHWM") - before


# ------------------------------------------------------------- kinds of pictures


def ycck():
    """Bytes of a JPEG of the scene as Photoshop saves CMYK: Y, Cb, Cr and black."""
    ink = np.asarray(scene("CMYK"))
    luma = np.asarray(Image.fromarray(np.ascontiguousarray(ink[..., :3])).convert("YCbCr"))
    stored = np.dstack([luma, 255 - ink[..., 3:]])
    content = bytearray(encoded("JPEG", Image.frombytes("CMYK", (40, 24), bytes(255 - stored)),
                                quality=95, subsampling=0))
    content[content.index(b"Adobe") + 11] = 2
    return bytes(content)


@pytest.mark.parametrize(("kind", "mode", "options", "tolerance"), [
    ("JPEG", "RGB", {"progressive": True, "quality": 95, "subsampling": 0}, 8),
    ("JPEG", "L", {"quality": 95}, 8),
    ("JPEG", "CMYK", {"quality": 95, "subsampling": 0}, 8),
    ("PNG", "1", {}, 0), ("PNG", "P", {}, 0), ("PNG", "LA", {}, 0),
    ("BMP", "1", {}, 0), ("BMP", "L", {}, 0), ("BMP", "P", {}, 0), ("BMP", "RGBA", {}, 0),
    ("GIF", "L", {}, 0), ("GIF", "RGBA", {}, 0),
    ("TIFF", "1", {"compression": "group4"}, 0), ("TIFF", "P", {}, 0), ("TIFF", "LA", {}, 0),
    ("TIFF", "RGBA", {}, 0), ("TIFF", "CMYK", {}, 1),
    ("TIFF", "RGB", {"compression": "tiff_lzw"}, 0),
    ("TIFF", "RGB", {"compression": "jpeg", "quality": 95}, 8)])
def test_reads_every_mode(notebook, tmp_path, kind, mode, options, tolerance):
    path, picture = tmp_path / "picture", scene(mode)
    path.write_bytes(encoded(kind, picture, **options))
    assert_same_pixels(notebook.read_image(path), np.asarray(picture.convert("RGB")), tolerance)


def test_reads_ycck(notebook, tmp_path):
    (tmp_path / "print.jpg").write_bytes(ycck())
    upright = np.asarray(Image.open(tmp_path / "print.jpg").convert("RGB"))
    assert_same_pixels(upright, np.asarray(scene()), 8)
    assert_same_pixels(notebook.read_image(tmp_path / "print.jpg"), upright, 8)


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("background", ["white", (255, 255, 255, 0)])
def test_reads_the_first_of_many_frames(notebook, tmp_path, kind, background):
    paper = Image.new("RGBA", (40, 24), background)
    paper.paste("red", (3, 4, 20, 15))
    content = encoded(kind, paper, save_all=True, lossless=True, duration=40,
                      append_images=[Image.new("RGBA", (40, 24), "blue")])
    (tmp_path / "film").write_bytes(content)
    expected = Image.new("RGB", (40, 24), "white")
    expected.paste("red", (3, 4, 20, 15))
    assert_same_pixels(notebook.read_image(tmp_path / "film"), np.asarray(expected))


def turned(pixels, orientation):
    """Pixels as a viewer shows them that honors an EXIF orientation from 1 to 8."""
    if orientation > 4:
        pixels = pixels.swapaxes(0, 1)
    down, right = {1: (1, 1), 2: (1, -1), 3: (-1, -1), 4: (-1, 1),
                   5: (1, 1), 6: (1, -1), 7: (-1, -1), 8: (-1, 1)}[orientation]
    return pixels[::down, ::right]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(("kind", "mode", "options"), [
    ("JPEG", "RGB", {"quality": 100, "subsampling": 0}), ("JPEG", "L", {"quality": 100}),
    ("PNG", "RGB", {}), ("PNG", "P", {}), ("PNG", "RGBA", {}), ("WEBP", "RGB", {"lossless": True}),
    ("WEBP", "RGBA", {"lossless": True}), ("TIFF", "RGB", {}), ("TIFF", "L", {}),
    ("TIFF", "RGBA", {}), ("TIFF", "RGB", {"compression": "tiff_lzw"})])
def test_turns_every_format_upright(notebook, tmp_path, kind, mode, options, orientation):
    exif, picture = Image.Exif(), scene(mode)
    exif[0x0112] = orientation
    (tmp_path / "phone").write_bytes(encoded(kind, picture, exif=exif, **options))
    upright = turned(np.asarray(picture.convert("RGB")), orientation)
    assert_same_pixels(notebook.read_image(tmp_path / "phone"), upright, 8 * (kind == "JPEG"))


@pytest.mark.parametrize("name", [
    "SCENE.PNG", "Scene.Jpeg", " leading and trailing .png", "👩‍👧.png", "e\u0301te\u0301.png",
    "semi;colon,comma.png", "100 %.png", "[1].png", "$HOME.png", "-rf.png", "new\nline.png"])
def test_reads_any_name(notebook, tmp_path, name):
    path = tmp_path / name
    path.write_bytes(encoded("PNG"))
    assert_same_pixels(notebook.read_image(path), np.asarray(scene()))
    assert notebook.list_pictures(tmp_path) == [path]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_reads_deep_gray(notebook, tmp_path, kind, orientation):
    values = np.random.default_rng(0).integers(0, 65536, (5, 7)).astype("uint16")
    exif = Image.Exif()
    exif[0x0112] = orientation
    (tmp_path / "deep").write_bytes(encoded(kind, Image.fromarray(values), exif=exif))
    expected = np.repeat(turned(values, orientation)[..., None] / 257, 3, axis=2)
    assert_same_pixels(notebook.read_image(tmp_path / "deep"), np.round(expected).astype("u1"), 1)


@pytest.mark.parametrize("mode", ["F", "I"])
def test_refuses_pixels_of_unknown_range(notebook, tmp_path, mode):
    scene("L").convert(mode).save(tmp_path / "measured.tiff")
    with pytest.raises(ValueError, match="^measured.tiff: .*16 bits"):
        notebook.read_image(tmp_path / "measured.tiff")


# ---------------------------------------------------------- very small, very large


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 5000), (5000, 1), (2, 3)])
@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_localizes_extreme_shapes(notebook, tmp_path, kind, height, width):
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), "uint8")
    (tmp_path / "strip").write_bytes(encoded(kind, Image.fromarray(pixels)))
    result = notebook.localize(tmp_path / "strip")
    x0, y0, x1, y1 = result.box
    assert 0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height
    assert result.heatmap.shape == (height, width)
    assert np.isfinite(result.heatmap).all()


@only_linux
@pytest.mark.parametrize(("mode", "kind", "megabytes"), [
    ("RGB", "JPEG", 1100), ("RGB", "PNG", 1100), ("RGBA", "PNG", 1500)])
def test_hundred_megapixels(notebook, tmp_path, mode, kind, megabytes):
    """The array has 300 MB. Pillow's pixels have four bytes, and it hands them over by
    way of a copy; on white paper there are two pictures for a while."""
    paper = Image.new(mode, (10_000, 10_000), (90, 60, 30, 0)[:len(mode)])
    paper.paste("blue", (2000, 3000, 6000, 7000))
    paper.save(tmp_path / "large", kind, compress_level=1)
    del paper
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result, taken = peak(notebook.localize, tmp_path / "large")
    print(f"{mode} {kind}: {taken:.0f} MB")
    assert (result.photo.height, result.photo.width) == (10_000, 10_000)
    corner = [255, 255, 255] if mode == "RGBA" else [90, 60, 30]
    np.testing.assert_allclose(result.photo.view[5, 5], corner, atol=2)
    assert taken < megabytes


# ---------------------------------------------------------------- what is no picture

NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 64, 4), "uint8"))
CUTS = {name: encoded(kind, NOISE.convert(mode), **options) for name, kind, mode, options in [
    ("cut.jpg", "JPEG", "RGB", {}), ("progressive.jpg", "JPEG", "RGB", {"progressive": True}),
    ("cut.png", "PNG", "RGB", {}), ("alpha.png", "PNG", "RGBA", {}),
    ("cut.webp", "WEBP", "RGB", {}), ("alpha.webp", "WEBP", "RGBA", {}),
    ("cut.gif", "GIF", "RGB", {}), ("cut.bmp", "BMP", "RGB", {}), ("alpha.bmp", "BMP", "RGBA", {}),
    ("cut.tiff", "TIFF", "RGB", {}), ("alpha.tiff", "TIFF", "RGBA", {}),
    ("lzw.tiff", "TIFF", "RGB", {"compression": "tiff_lzw"})]}


@pytest.mark.parametrize("part", [0.01, 0.1, 0.5, 0.9])
@pytest.mark.parametrize("name", CUTS)
def test_truncated_pictures_are_refused_in_silence(notebook, tmp_path, capfd, name, part):
    (tmp_path / name).write_bytes(CUTS[name][:int(len(CUTS[name]) * part)])
    with warnings.catch_warnings(), pytest.raises(ValueError, match=rf"^{name}: \w+"):
        warnings.simplefilter("error")
        notebook.read_image(tmp_path / name)
    assert capfd.readouterr() == ("", "")


NONE = {
    "empty.jpg": b"", "page.jpg": b"<!DOCTYPE html><html><body>404</body></html>",
    "text.png": "no picture\n".encode() * 100, "zeros.jpg": bytes(4096),
    "signature.png": encoded("PNG")[:8], "other.webp": b"RIFF\4\0\0\0WAVE",
    "movie.jpg": b"\0\0\0\x18ftypmp42" + bytes(1000), "page.svg": b"<svg width='9'/>",
    "paper.pdf": b"%PDF-1.7\n", "print.jpg": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"}


def test_folder_goes_on_after_what_cannot_be_read(notebook, tmp_path):
    for name, content in NONE.items():
        (tmp_path / name).write_bytes(content)
    for name in ("a.png", "z.png"):
        (tmp_path / name).write_bytes(encoded("PNG"))
    outcomes = {path.name: o for path, o in notebook.localize_folder(tmp_path)}
    assert sorted(outcomes) == sorted([*NONE, "a.png", "z.png"])
    for name in NONE:
        assert isinstance(outcomes[name], ValueError) and str(outcomes[name])[len(name) + 2:]
        assert str(outcomes[name]).startswith(f"{name}: ")
    assert all(isinstance(outcomes[name], notebook.Localization) for name in ("a.png", "z.png"))


def test_folder_leaves_out_what_is_no_photo(notebook, tmp_path):
    for name in (".DS_Store", "._photo.jpg", ".hidden.png", "Thumbs.db", "thumbs.DB",
                 "desktop.ini", "table.csv", "TABLE.CSV"):
        (tmp_path / name).write_bytes(encoded("PNG"))
    for name in (".ipynb_checkpoints", "more", "x.jpg", "__MACOSX"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "inside.png").write_bytes(encoded("PNG"))
    (tmp_path / "photo.png").write_bytes(encoded("PNG"))
    assert notebook.list_pictures(tmp_path) == [tmp_path / "photo.png"]


def outcome_of(notebook, path):
    """What localize_folder says of a file beside a good picture."""
    (path.parent / "good.png").write_bytes(encoded("PNG"))
    outcomes = dict(notebook.localize_folder(path.parent))
    assert isinstance(outcomes.pop(path.parent / "good.png"), notebook.Localization)
    return outcomes


def test_links_that_lead_nowhere_are_named(notebook, tmp_path):
    (tmp_path / "away.jpg").symlink_to(tmp_path / "gone.jpg")
    (tmp_path / "round.jpg").symlink_to(tmp_path / "round.jpg")
    outcomes = outcome_of(notebook, tmp_path / "away.jpg")
    assert {path.name: type(o) for path, o in outcomes.items()} == {
        "away.jpg": ValueError, "round.jpg": ValueError}


def test_links_to_pictures_are_read_and_those_to_folders_left_out(notebook, tmp_path):
    (tmp_path / "photos").mkdir()
    (target := tmp_path / "photo").write_bytes(encoded("PNG"))
    (tmp_path / "photos" / "link.png").symlink_to(target)
    (tmp_path / "photos" / "up.png").symlink_to(tmp_path)
    assert [path.name for path in notebook.list_pictures(tmp_path / "photos")] == ["link.png"]
    assert_same_pixels(notebook.read_image(tmp_path / "photos" / "link.png"), np.asarray(scene()))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no named pipes")
def test_a_pipe_and_a_device_do_not_hang(notebook, tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "zero.jpg").symlink_to("/dev/zero")
    start = time.monotonic()
    outcomes = outcome_of(notebook, tmp_path / "pipe.jpg")
    assert all("not a file" in str(o) for o in outcomes.values()) and len(outcomes) == 2
    assert time.monotonic() - start < 10


@pytest.fixture
def nobody():
    """A folder that all users may enter; whoever is root becomes nobody meanwhile."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o777)
    was_root = hasattr(os, "geteuid") and os.geteuid() == 0
    yield folder, lambda: os.seteuid(65534) if was_root else None
    if was_root:
        os.seteuid(0)
    shutil.rmtree(folder)


def test_a_file_without_permission_is_named(notebook, nobody):
    folder, drop = nobody
    (folder / "secret.png").write_bytes(encoded("PNG"))
    (folder / "good.png").write_bytes(encoded("PNG"))
    (folder / "secret.png").chmod(0)
    drop()
    if os.access(folder / "secret.png", os.R_OK, effective_ids=os.access in os.supports_effective_ids):
        pytest.skip("this system lets the user read the file all the same")
    outcomes = {path.name: outcome for path, outcome in notebook.localize_folder(folder)}
    assert isinstance(outcomes["good.png"], notebook.Localization)
    assert "Permission denied" in str(outcomes["secret.png"])
    assert str(outcomes["secret.png"]).startswith("secret.png: ")


def test_a_file_that_vanishes_is_named(notebook, tmp_path):
    for name in "abc":
        (tmp_path / f"{name}.png").write_bytes(encoded("PNG"))
    outcomes = notebook.localize_folder(tmp_path, batch_size=1)
    assert isinstance(next(outcomes)[1], notebook.Localization)
    (tmp_path / "b.png").unlink()
    (_, second), (_, third) = outcomes
    assert isinstance(second, ValueError) and str(second).startswith("b.png: ")
    assert isinstance(third, notebook.Localization)


def test_a_file_that_vanishes_while_it_is_opened_is_named(notebook, tmp_path, monkeypatch):
    monkeypatch.setattr(Path, "is_file", lambda path: True)
    with pytest.raises(ValueError, match=r"^gone\.png: .*No such file"):
        notebook.read_image(tmp_path / "gone.png")


# ---------------------------------------------------------------- too large to be true


def patched(content, *patches):
    """Bytes with other bytes put at some offsets."""
    content = bytearray(content)
    for offset, new in patches:
        content[offset:offset + len(new)] = new
    return bytes(content)


def png_of(width, height, color):
    """Bytes of a PNG that announces this size; color 2 is RGB, 6 RGBA."""
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(
            ">I", zlib.crc32(kind + data))
    header = struct.pack(">IIBBBBB", width, height, 8, color, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(
        b"IDAT", zlib.compress(bytes(2**22), 9)) + chunk(b"IEND", b"")


def bombs(side=60_000):
    """Small files that announce 3,600 megapixels (WebP at most 268), by name."""
    gif, jpeg, tiff = encoded("GIF"), encoded("JPEG"), encoded("TIFF")
    little, large = struct.pack("<HH", side, side), struct.pack(">HH", side, side)
    entries = struct.unpack("<I", tiff[4:8])[0] + 2
    tags = [(entries + 12 * i, struct.pack("<HHII", tag, 4, 1, side))
            for i, tag in enumerate(struct.unpack("<" + "H10x" * 12, tiff[entries:entries + 144]))
            if tag in (256, 257, 278)]
    lossy, lossless = encoded("WEBP"), encoded("WEBP", lossless=True)
    film = encoded("WEBP", save_all=True, append_images=[scene("L")])
    canvas = struct.pack("<I", side - 1)[:3] * 2
    return {
        "bomb.png": png_of(side, side, 2), "alpha.png": png_of(side, side, 6),
        "canvas.gif": patched(gif, (6, little)),
        "bomb.gif": patched(gif, (6, little), (gif.index(b"\x2c\0\0\0\0") + 5, little)),
        "bomb.bmp": patched(encoded("BMP"), (18, struct.pack("<ii", side, side))),
        "bomb.jpg": patched(jpeg, (jpeg.index(b"\xff\xc0") + 5, large)),
        "bomb.tiff": patched(tiff, *tags),
        "lossy.webp": patched(lossy, (lossy.index(b"\x9d\x01\x2a") + 3, b"\xff\x3f" * 2)),
        "lossless.webp": patched(lossless, (lossless.index(b"VP8L") + 9, b"\xff\xff\xff\x0f")),
        "film.webp": patched(film, (film.index(b"VP8X") + 12, canvas))}


@only_linux
@pytest.mark.parametrize("name", bombs())
def test_bombs_are_refused_before_memory_is_taken(notebook, tmp_path, name):
    (tmp_path / name).write_bytes(bombs()[name])
    assert (tmp_path / name).stat().st_size < 50_000
    error, taken = peak(notebook.read_image, tmp_path / name)
    print(f"{name}: {taken:.0f} MB, {error}")
    assert isinstance(error, ValueError) and str(error).startswith(f"{name}: ")
    assert taken < 50


@only_linux
@pytest.mark.parametrize("color", [2, 6])
def test_allowed_sizes_with_too_little_content_are_refused(notebook, tmp_path, color):
    (tmp_path / "cut.png").write_bytes(png_of(15_000, 13_000, color))
    error, taken = peak(notebook.read_image, tmp_path / "cut.png")
    print(f"{taken:.0f} MB, {error}")
    assert isinstance(error, ValueError) and taken < 900


@only_linux
@pytest.mark.parametrize("length", [2**31 - 1, 2**32 - 1])
@pytest.mark.parametrize("kind", [b"IDAT", b"tEXt", b"eXIf", b"iCCP"])
def test_a_part_that_announces_gigabytes_is_not_believed(notebook, tmp_path, kind, length):
    """OpenCV 5 takes this memory, and OpenCV 4.11 crashes."""
    content = encoded("PNG", Image.fromarray(np.zeros((9, 9), "uint16")))
    part = struct.pack(">I", length) + kind + bytes(20)
    (tmp_path / "part.png").write_bytes(content[:33] + part + content[33:])
    result, taken = peak(notebook.read_image, tmp_path / "part.png")
    print(f"{taken:.0f} MB, {result}")
    assert isinstance(result, ValueError) and taken < 50


@only_linux
def test_a_film_of_gigabytes_is_not_read_into_memory(notebook, tmp_path):
    with open(tmp_path / "film.jpg", "wb") as file:
        file.truncate(3 * 2**30)
    error, taken = peak(notebook.read_image, tmp_path / "film.jpg")
    assert isinstance(error, ValueError) and str(error).startswith("film.jpg: ")
    assert taken < 50
