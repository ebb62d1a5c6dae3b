"""The explorer in JupyterLab and Chromium, used as a person uses it."""

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import time

import nbformat
import pytest
from conftest import BUNDLED, NOTEBOOK, ROOT, part
from playwright.sync_api import Error, expect, sync_playwright

expect.set_options(timeout=60_000)


def wait_until(condition):
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        with contextlib.suppress(Error):
            if condition():
                return
        time.sleep(0.1)
    raise AssertionError("not within a minute")


@pytest.fixture
def page(tmp_path):
    """Part I and the explorer in JupyterLab, for a new user, in Chromium."""
    book = nbformat.read(NOTEBOOK, 4)
    own = ['id="own"' in cell.source for cell in part(4)].index(True)
    book.cells = part(0, 1) + part(4)[:own]
    nbformat.write(book, tmp_path / NOTEBOOK.name)
    for folder in "images", "models":
        shutil.copytree(ROOT / folder, tmp_path / folder)
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    options = f"--no-browser --allow-root --IdentityProvider.token= --port={port}"
    command = [sys.executable, "-m", "jupyterlab", *options.split(), "--ip=127.0.0.1"]
    env = {**os.environ, "CAM_NETWORK": BUNDLED, "JUPYTER_CONFIG_DIR": str(tmp_path)}
    address = f"http://127.0.0.1:{port}/lab/tree/{NOTEBOOK.name}"
    with subprocess.Popen(command, cwd=tmp_path, env=env) as lab:
        with sync_playwright() as playwright:
            chromium = shutil.which("chromium")
            page = playwright.chromium.launch(executable_path=chromium).new_page()
            page.set_default_timeout(10_000)
            wait_until(lambda: page.goto(address))
            yield page
        lab.terminate()


def test_explorer_follows_its_user(page, tmp_path):
    expect(page.get_by_text("| Idle")).to_be_visible()
    for item in "Run", "Run All Cells":
        page.get_by_role("menuitem", name=item, exact=True).click()
    controls = page.locator(".widget-interact")
    explorer = page.locator(".jp-CodeCell", has=controls)
    photo, name = (explorer.get_by_label(x, exact=True) for x in ("photo", "name"))
    errors = page.locator('[data-mime-type$="error"], [data-mime-type$="stderr"]')
    expect(explorer.locator("img").or_(errors).first).to_be_visible(timeout=300_000)

    def picture():
        return explorer.locator("img").get_attribute("src")

    seen = {"first photo": picture()}
    photo.select_option("images/koala.jpg")
    for words, message in ("", 0), ("ombat", 0), ("no such thing", 1), ("tiger", 0):
        name.fill(words)
        name.press("Enter")
        expect(explorer.get_by_text("classes match")).to_have_count(message)
        if message:
            wait_until(lambda: picture() == seen[""])
        else:
            wait_until(lambda: picture() not in seen.values())
            seen[words] = picture()
    shutil.copy(ROOT / "images/coffee.jpg", tmp_path / "images/new.jpg")
    explorer.locator(".cm-content").press("Shift+Enter")
    photo.select_option("images/new.jpg")
    wait_until(lambda: picture() not in seen.values())
    expect(controls).to_have_count(1)
    expect(errors).to_have_count(0)
