"""The explorer in JupyterLab and Chromium, used as a person uses it."""

import base64
import io
import os
import re
import shutil
import socket
import subprocess
import sys

import nbformat
import numpy as np
import pytest
from conftest import BUNDLED, NOTEBOOK, ROOT, part
from PIL import Image
from playwright.sync_api import expect, sync_playwright

ERRORS = '[data-mime-type$="jupyter.error"], [data-mime-type$="jupyter.stderr"]'
PIXELS = """async image => {
    await image.decode();
    const canvas = document.createElement("canvas");
    [canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
    canvas.getContext("2d").drawImage(image, 0, 0);
    return canvas.toDataURL().split(",")[1];
}"""


@pytest.fixture
def address(tmp_path):
    """Of a JupyterLab, for a new user, with the cells of part I and the explorer."""
    cells, explorer = part(1), part(4)
    last = max(n for n, cell in enumerate(explorer) if "widgets." in cell.source)
    book = nbformat.read(NOTEBOOK, 4)
    book.cells = cells + explorer[: last + 1]
    nbformat.write(book, tmp_path / NOTEBOOK.name)
    for folder in "images", "models":
        shutil.copytree(ROOT / folder, tmp_path / folder)
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    options = f"--no-browser --allow-root --ip=127.0.0.1 --port={port} --port-retries=0"
    command = [sys.executable, "-m", "jupyterlab", *options.split()]
    homes = {f"JUPYTER_{x}_DIR": f"{tmp_path}/.{x}" for x in ("CONFIG", "DATA")}
    environment = {**os.environ, **homes, "CAM_NETWORK": BUNDLED}
    environment.pop("MPLBACKEND", None)
    command += ["--IdentityProvider.token=", "--ServerApp.password="]
    with open(tmp_path / "lab.log", "w") as log:
        lab = subprocess.Popen(
            command, cwd=tmp_path, env=environment, stdout=log, stderr=log
        )
    yield f"http://127.0.0.1:{port}/lab/tree/{NOTEBOOK.name}"
    lab.terminate()
    lab.wait(60)


@pytest.fixture
def page(address):
    """Of Chromium, with the notebook; a failed test leaves a screenshot of it."""
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=shutil.which("chromium"))
        page = chromium.new_page(viewport={"width": 1280, "height": 1000})
        yield page
        chromium.close()


def halves(picture):
    """The photo and the heat beside it, as the browser shows them."""
    png = base64.b64decode(picture.evaluate(PIXELS))
    return np.hsplit(np.array(Image.open(io.BytesIO(png)).convert("RGB"), float), 2)
