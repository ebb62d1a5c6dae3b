"""Tests of what a user installs and finds at the top of the repository."""

import ast
import re
import subprocess
import sys
from importlib.metadata import packages_distributions, requires

import nbformat
import pytest
from conftest import NOTEBOOK, ROOT

OPTIONAL = {"openvino", "ray", "pyarrow"}  # another backend of Keras; part V
JUPYTER = {"jupyter", "jupyterlab", "notebook", "ipykernel", "ipython"}
ALLOWED = {"cam_localization.ipynb", "images", "models", "tests", "requirements.txt",
           "README.md", "LICENSE"}


def imports(source):
    """Names of the modules that Python source imports, without the standard library."""
    nodes = list(ast.walk(ast.parse(source)))
    names = [alias.name for node in nodes if isinstance(node, ast.Import)
             for alias in node.names]
    names += [node.module for node in nodes if isinstance(node, ast.ImportFrom)]
    return {name.split(".")[0] for name in names} - set(sys.stdlib_module_names)


def test_requirements_are_what_the_notebook_imports():
    cells = nbformat.read(NOTEBOOK, 4).cells
    source = "\n".join(cell.source for cell in cells if cell.cell_type == "code")
    lines = (ROOT / "requirements.txt").read_text(encoding="utf8").splitlines()
    required = {re.match(r"[\w.-]*", line.strip())[0].lower() for line in lines} - {""}
    packages = packages_distributions()
    assert any(line.startswith("ipywidgets") for line in requires("jupyter"))
    for module in imports(source) - {"IPython", "ipywidgets"} - OPTIONAL:
        names = {name.lower() for name in packages.get(module, [module])}  # Python 3.10
        assert required & names, module
        required -= names
    assert "tensorflow" in required
    assert required & JUPYTER
    assert required <= {"tensorflow"} | JUPYTER


def test_top_of_the_repository_is_tidy():
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    files = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    top = {line.split("/")[0].strip('"') for line in files.stdout.splitlines()}
    assert {name for name in top if not name.startswith(".")} == ALLOWED
