"""The notebook in a real browser: run in JupyterLab, and read as an exported page.

These tests need Chromium (Debian: apt-get install chromium; elsewhere: playwright
install chromium). Without it they are skipped, except where the environment variable
CI is "true": there they fail. When one fails, tests/screenshots/ keeps what it saw.
"""

import os
import re
import shutil
import socket
import subprocess
import sys
import time
from io import BytesIO
from urllib.request import urlopen

import nbformat
import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe
from conftest import NOTEBOOK, ROOT
from nbconvert import HTMLExporter
from PIL import Image
from playwright.sync_api import Error, expect, sync_playwright

pytestmark = pytest.mark.usefixtures("chromium")  # conftest.py takes the screenshots
PHOTOS = sorted(path.name for path in (ROOT / "images").glob("*.jpg"))
expect.set_options(timeout=60_000)


@pytest.fixture(scope="module")
def chromium():
    """A headless Chromium: the system's, else the one that Playwright installed."""
    names = "chromium", "chromium-browser", "google-chrome"
    found = next(filter(None, map(shutil.which, names)), None)
    with sync_playwright() as playwright:
        try:
            browser = playwright.chromium.launch(executable_path=found)
        except Error as error:
            missing = pytest.fail if os.environ.get("CI") == "true" else pytest.skip
            missing(f"no Chromium: {error}")
        yield browser
        browser.close()


# ------------------------------------------------------------------- JupyterLab


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A copy of the notebook and of what it needs."""
    folder = tmp_path_factory.mktemp("project")
    shutil.copy(NOTEBOOK, folder)
    for name in ("images", "models"):
        shutil.copytree(ROOT / name, folder / name)
    return folder


@pytest.fixture(scope="module")
def server(project, tmp_path_factory):
    """Address of a JupyterLab that serves the project with a new user's settings."""
    home = tmp_path_factory.mktemp("home")
    environment = {**os.environ, "JUPYTER_CONFIG_DIR": str(home / "config"),
                   "JUPYTER_DATA_DIR": str(home / "data")}
    environment.pop("MPLBACKEND", None)
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root",
               "--ip=127.0.0.1", f"--port={port}", "--ServerApp.port_retries=0",
               "--IdentityProvider.token=", "--ServerApp.password="]
    log, address = home / "log", f"http://127.0.0.1:{port}"
    with open(log, "w") as file:
        lab = subprocess.Popen(command, cwd=project, env=environment,
                               stdout=file, stderr=subprocess.STDOUT)
    try:
        for _ in range(300):
            try:
                urlopen(f"{address}/api").close()
                break
            except OSError:
                assert lab.poll() is None, log.read_text()
                time.sleep(0.2)
        yield address
    finally:
        lab.terminate()
        lab.wait(60)


def waiting(lab):
    """The [*] of the cells that run or wait for it."""
    return lab.locator(".jp-CodeCell .jp-InputPrompt", has_text="[*]")


@pytest.fixture(scope="module")
def lab(chromium, server):
    """A page of JupyterLab in which all cells of the notebook have been run."""
    page = chromium.new_page(viewport={"width": 1280, "height": 1000})
    page.goto(f"{server}/lab/tree/{NOTEBOOK.name}", timeout=120_000)
    expect(page.get_by_text("| Idle")).to_be_visible(timeout=120_000)
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
    expect(waiting(page)).not_to_have_count(0)
    expect(waiting(page)).to_have_count(0, timeout=600_000)
    yield page
    page.close()


def code_cell(lab, text):
    """The code cell whose source or output contains a text."""
    return lab.locator(".jp-CodeCell", has_text=text).first


def test_every_cell_runs_without_error(lab):
    wrong = '[data-mime-type$="jupyter.error"], [data-mime-type$="jupyter.stderr"]'
    assert lab.locator(wrong).all_text_contents() == []
    cells = sum(cell.cell_type == "code" for cell in nbformat.read(NOTEBOOK, 4).cells)
    prompts = lab.locator(".jp-CodeCell .jp-InputPrompt").all_text_contents()
    assert prompts == [f"[{n}]:" for n in range(1, cells + 1)]


def test_gallery_and_table_show_every_photo(lab):
    gallery = code_cell(lab, "localize_folder(image_folder)").locator("img")
    assert gallery.evaluate_all("all => all.every(img => img.naturalWidth > 900)")
    table = code_cell(lab, 'header = "file"').locator(".jp-OutputArea-output")
    expect(table).to_contain_text(re.compile(".*".join(map(re.escape, PHOTOS)), re.S))


def test_a_new_file_is_found_by_the_next_run(lab, project):
    shutil.copy(project / "images" / "koala.jpg", project / "images" / "my koala.jpg")
    code_cell(lab, "localize_folder(image_folder)").locator(".jp-InputPrompt").click()
    for _ in range(3):  # the gallery, the text below it, the table
        lab.keyboard.press("Shift+Enter")
    table = code_cell(lab, 'header = "file"').locator(".jp-OutputArea-output")
    expect(table).to_contain_text(re.compile(r"my koala\.jpg\s+koala"))


@pytest.fixture
def explorer(lab):
    """The controls of the explorer with their first settings, and their picture."""
    box = lab.locator(".widget-vbox", has=lab.locator(".widget-interact"))
    box.get_by_label("class").fill("")
    box.get_by_label("class").press("Enter")
    for photo, name in ("bison.jpg", "bison"), ("german_shepherd.jpg", "German shepherd"):
        box.get_by_label("photo", exact=True).select_option(photo)
        expect(picture(box)).to_have_attribute("alt", re.compile(f"^{photo}: {name}"))
    return box


def picture(explorer):
    """The picture below the controls."""
    return explorer.locator(".widget-html img")


def redrawn(lab, explorer, act):
    """Milliseconds from an action until the browser shows another picture for it."""
    lab.evaluate("""() => {
        const image = () => document.querySelector(".widget-vbox .widget-html img");
        const before = image().src, start = performance.now();
        window.redrawn = new Promise(done => {
            const look = () => image()?.src !== before && image().complete
                ? done(performance.now() - start) : requestAnimationFrame(look);
            look();
        });
    }""")
    act()
    return lab.evaluate("Promise.race([window.redrawn, new Promise("
                        "done => setTimeout(done, 60_000, NaN))])")


def test_choosing_a_photo_shows_it_with_its_class(explorer):
    expect(picture(explorer)).to_have_count(1)
    explorer.get_by_label("photo", exact=True).select_option("koala.jpg")
    expect(picture(explorer)).to_have_attribute("alt", re.compile("^koala.jpg: koala"))
    expect(explorer).to_contain_text("koala.jpg: koala, logit")
    assert picture(explorer).evaluate("img => img.naturalWidth") > 400


def test_picture_follows_every_control_at_once(lab, explorer, record_property):
    slider = lambda name: explorer.locator(".widget-slider", has_text=name).get_by_role("slider")
    moves = {"threshold": lambda: slider("threshold").press("ArrowRight"),
             "opacity": lambda: slider("opacity").press("ArrowRight"),
             "centered": lambda: explorer.get_by_label("centered").click()}
    seen, times = {picture(explorer).get_attribute("src")}, {}
    for name, move in moves.items():
        times[name] = [redrawn(lab, explorer, move) for _ in range(6)]
        seen.add(picture(explorer).get_attribute("src"))
    everything = sum(times.values(), [])
    record_property("explorer, milliseconds until redrawn",
                    f"median {np.median(everything):.0f}, at most {max(everything):.0f}")
    assert np.isfinite(everything).all() and len(seen) >= 3


def test_class_is_found_by_its_name(explorer):
    field = explorer.get_by_label("class")
    field.fill("malinois")
    field.press("Enter")
    expect(picture(explorer)).to_have_attribute("alt", re.compile("shepherd.jpg: malinois"))
    field.fill("no such thing")
    field.press("Enter")
    expect(explorer).to_contain_text("'no such thing' is not in list")


def test_map_can_be_centered(explorer):
    plain = picture(explorer).get_attribute("src")
    explorer.get_by_label("centered").check()
    expect(picture(explorer)).not_to_have_attribute("src", plain)
    explorer.get_by_label("centered").uncheck()
    expect(picture(explorer)).to_have_attribute("src", plain)


def upload(lab, explorer, name, content):
    """Choose a file of this name and content for the upload button."""
    with lab.expect_file_chooser() as chooser:
        explorer.get_by_role("button", name="Upload").click()
    file = {"name": name, "mimeType": "image/jpeg", "buffer": content}
    chooser.value.set_files(file)


def test_an_uploaded_photo_is_shown(lab, explorer):
    photo = Image.open(ROOT / "images" / "scarlet_macaw.jpg")
    photo.resize((600, 400)).save(file := BytesIO(), "JPEG")
    upload(lab, explorer, "my parrot.jpg", file.getvalue())
    expect(picture(explorer)).to_have_attribute("alt", re.compile("^my parrot.jpg: macaw"))
    expect(explorer.get_by_label("photo", exact=True)).to_have_value("my parrot.jpg")


def test_an_upload_that_is_no_photo_gets_the_reason(lab, explorer):
    upload(lab, explorer, "x.jpg", b"no picture")
    expect(explorer.locator(".widget-html")).to_contain_text(re.compile(r"x\.jpg: is none of"))
    explorer.get_by_label("photo", exact=True).select_option("koala.jpg")
    expect(picture(explorer)).to_have_attribute("alt", re.compile("^koala.jpg: koala"))


def test_every_picture_in_jupyterlab_has_a_text_alternative_of_its_own_or_below(lab):
    texts = lab.locator(".jp-OutputArea-output img").evaluate_all("""all => all.map(
        img => img.alt || img.closest(".jp-OutputArea-child").nextSibling.textContent)""")
    assert len(texts) > 5 and min(len(text.strip()) for text in texts) > 20


def test_picture_of_the_explorer_fits_into_a_narrow_window(lab, explorer):
    lab.set_viewport_size({"width": 800, "height": 1000})
    try:
        lab.wait_for_function("document.querySelector('.widget-vbox').parentElement"
                              ".getBoundingClientRect().right < 800")
        right = picture(explorer).evaluate("img => img.getBoundingClientRect().right")
        frame = explorer.evaluate("box => box.parentElement.getBoundingClientRect().right")
        assert right <= frame + 1
    finally:
        lab.set_viewport_size({"width": 1280, "height": 1000})


# ------------------------------------------------------------- the exported page


@pytest.fixture(scope="module", params=["classic", "lab"])
def exported(request, chromium, tmp_path_factory):
    """The stored notebook as a page of HTML, in README's template and the default one.

    The page is offline: what it would fetch (MathJax and the like) is not ours.
    """
    text, _ = HTMLExporter(template_name=request.param).from_filename(NOTEBOOK)
    path = tmp_path_factory.mktemp("page") / f"{request.param}.html"
    path.write_text(text, encoding="utf8")
    context = chromium.new_context(offline=True)
    page = context.new_page()
    page.goto(path.as_uri())
    yield page
    context.close()


classic = pytest.mark.parametrize("exported", ["classic"], indirect=True)


def test_exported_page_has_all_pictures_and_no_broken_widget(exported):
    outputs = [output for cell in nbformat.read(NOTEBOOK, 4).cells
               for output in cell.get("outputs", [])]
    stored = sum("image/" in " ".join(output.get("data", ())) for output in outputs)
    widths = exported.locator("img").evaluate_all("all => all.map(img => img.naturalWidth)")
    assert len(widths) > stored > 10 and min(widths) > 100
    text = exported.locator("body").inner_text()
    for trouble in ("Error displaying widget", "widget-view", "VBox(children", "model not found"):
        assert trouble not in text


@classic
def test_every_picture_has_a_text_alternative_of_its_own(exported):
    texts = exported.locator("img").evaluate_all("all => all.map(img => img.alt.trim())")
    assert min(map(len, texts)) > 20
    assert not [text for text in texts if "No description" in text]
    assert len(set(texts)) == len(texts)


def test_links_inside_the_page_lead_somewhere(exported):
    links = exported.locator('a[href^="#"]')
    assert links.count() > 25
    assert links.evaluate_all("""all => all.map(link => link.hash.slice(1)).filter(
        id => !document.getElementById(id) && !document.getElementById(decodeURI(id)))
        """) == []


def test_headings_skip_no_level(exported):
    levels = exported.locator("h1, h2, h3, h4, h5, h6").evaluate_all(
        "all => all.map(heading => Number(heading.tagName[1]))")
    assert levels[0] == 1 and len(levels) > 25
    assert all(level <= before + 1 for before, level in zip(levels, levels[1:]))


# What the template, not the notebook, does to the page: rule of axe-core and elements.
TEMPLATE = {
    # Colors of the code (4.47 : 1 for keywords; 4.5 is asked for) and of "Out[7]:".
    "color-contrast": ".highlight span, .prompt, "
                      # Links on the gray stripes of a table (4.17 : 1).
                      "tr:nth-child(odd) td > a",
}


@classic
def test_axe_finds_no_serious_fault_of_ours(exported):
    violations = Axe().run(exported).response["violations"]
    ours = [(rule["id"], target, node["failureSummary"])
            for rule in violations if rule["impact"] in ("serious", "critical")
            for node in rule["nodes"] for target in node["target"]
            if not exported.locator(target).evaluate(
                "(element, selector) => element.matches(selector)",
                TEMPLATE.get(rule["id"], "#none"))]
    assert ours == []
