"""A test of the benchmark's behavior; nothing is asserted about seconds."""

import os
import re
import subprocess
import sys

from conftest import ROOT
from PIL import Image


def test_quick_benchmark_has_every_row_or_its_reason_and_a_plot(tmp_path):
    (tmp_path / "tf_explain").mkdir()
    broken = tmp_path / "tf_explain" / "__init__.py"
    broken.write_text("raise RuntimeError('broken on purpose')\n")
    plot = tmp_path / "plot.png"
    run = subprocess.run(
        [sys.executable, "tests/benchmark.py", "--quick", "--plot", str(plot)],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": str(tmp_path)}, text=True,
        capture_output=True)
    assert run.returncode == 0, run.stdout + run.stderr
    table = run.stdout.split("\n\n")[1].splitlines()[2:]
    rows = {line[:34].strip(): line[34:].split() for line in table}
    assert " ".join(rows["tf-explain GradCAM"]) == "RuntimeError: broken on purpose"
    ms, ratio, folder_ms, folder_ratio, memory, memory_ratio = rows["ours, tensorflow"]
    assert ratio == folder_ratio == memory_ratio == "1.00"
    for name in ("pass only: Keras predict_on_batch", "decoding only"):
        assert all(float(cell) > 0 for cell in rows[name])
    for path in (ROOT / "images").glob("*.jpg"):
        assert re.search(rf"^  {path.name} .* MP .* kB .*%$", run.stdout, re.MULTILINE)
    left_out = [name for name, cells in rows.items()
                if " ".join(cells) == "left out"]
    assert len(left_out) == len(rows) - 4 > 10
    assert len(re.findall(r"^target .*: (?:met|missed|not measured)", run.stdout,
                          re.MULTILINE)) == 10
    assert Image.open(plot).width > 600
    assert plot.stat().st_size < 80_000
