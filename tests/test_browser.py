"""The explorer in JupyterLab and Chromium, used as a person uses it."""

import base64
import contextlib
import io
import os
import shutil
import socket
import subprocess
import sys
import time

import nbformat
import numpy as np
import pytest
from conftest import BUNDLED, NOTEBOOK, ROOT, part
from PIL import Image
from playwright.sync_api import Error, expect, sync_playwright

expect.set_options(timeout=60_000)
BASE64 = """image => image.decode().then(() => fetch(image.src))
    .then(file => file.arrayBuffer())
    .then(bytes => btoa(new Uint8Array(bytes).reduce(
        (text, byte) => text + String.fromCharCode(byte), "")))"""


def wait_until(condition):
    """Wait for a condition; what is not there yet counts as false."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        with contextlib.suppress(Error):
            if condition():
                return
        time.sleep(0.1)
    raise AssertionError("not within a minute")


@pytest.fixture
def address(tmp_path):
    """Of JupyterLab, for a new user, with part I and the explorer in a notebook."""
    book = nbformat.read(NOTEBOOK, 4)
    own = ['id="own"' in cell.source for cell in part(4)].index(True)
    book.cells = part(1) + part(4)[:own]
    nbformat.write(book, tmp_path / NOTEBOOK.name)
    for folder in "images", "models":
        shutil.copytree(ROOT / folder, tmp_path / folder)
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    options = f"--no-browser --allow-root --IdentityProvider.token= --port={port}"
    command = [sys.executable, "-m", "jupyterlab", *options.split(), "--ip=127.0.0.1"]
    env = {**os.environ, "CAM_NETWORK": BUNDLED, "JUPYTER_CONFIG_DIR": str(tmp_path)}
    with subprocess.Popen(command, cwd=tmp_path, env=env) as lab:
        yield f"http://127.0.0.1:{port}/lab/tree/{NOTEBOOK.name}"
        lab.terminate()


@pytest.fixture
def page(address, tmp_path):
    """The notebook in Chromium; a screenshot of the end is kept for a while."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"))
        page = browser.new_page()
        page.set_default_timeout(10_000)
        wait_until(lambda: page.goto(address))
        yield page
        page.screenshot(path=tmp_path / "end.png")
        print("Screenshot:", tmp_path / "end.png")


def halves(picture):
    """The photo and the heat beside it, as the browser has them."""
    jpeg = io.BytesIO(base64.b64decode(picture.evaluate(BASE64)))
    return np.hsplit(np.array(Image.open(jpeg), float), 2)


def test_explorer_follows_its_user(page, tmp_path):
    expect(page.get_by_text("| Idle")).to_be_visible()
    for item in "Run", "Run All Cells":
        page.get_by_role("menuitem", name=item, exact=True).click()
    explorer = page.locator(".jp-CodeCell", has=page.locator(".widget-interact"))
    picture, slider = explorer.locator("img"), explorer.get_by_role("slider")
    photo, name = (explorer.get_by_label(x, exact=True) for x in ("photo", "class"))
    errors = page.locator('[data-mime-type$="error"], [data-mime-type$="stderr"]')
    color = lambda: np.ptp(halves(picture)[1], axis=2).mean()
    expect(explorer.or_(errors).first).to_be_visible(timeout=300_000)
    wait_until(lambda: errors.count() or color() > 20)
    expect(errors).to_have_count(0)

    source = shutil.copy(ROOT / "images/dog_bicycle.jpg", tmp_path / "images/new.jpg")
    slider.press("ArrowRight")
    photo.select_option("images/new.jpg")
    wait_until(lambda: halves(picture)[0].shape == (576, 768, 3))
    left, winner = halves(picture)
    assert abs(left - np.array(Image.open(source).resize((768, 576)))).mean() < 8

    name.press_sequentially("ountain BI")
    expect(explorer).to_contain_text("mountain bike: ")
    wait_until(lambda: abs(halves(picture)[1] - winner).mean() > 5)
    bicycle = halves(picture)[1]
    name.fill("no such thing")
    expect(explorer).to_contain_text("0 classes match 'no such thing'")
    assert np.array_equal(halves(picture)[1], bicycle)

    name.fill("mountain bike")
    slider.press("Home")  # no heat, so the photo in gray
    wait_until(lambda: color() < 3 and not errors.count())
