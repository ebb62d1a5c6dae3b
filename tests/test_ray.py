"""The notebook's functions on a cluster of Ray."""

import os
import shutil
import sys
import tempfile
import threading
import time
from collections import Counter

import numpy as np
import psutil
import pytest
import ray
from conftest import ROOT
from PIL import Image
from pyarrow import parquet


@pytest.fixture
def cluster(monkeypatch):
    """Ray on this machine alone, which reports to nobody."""
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    session = tempfile.mkdtemp(prefix="ray", dir="/tmp")  # short, for names of sockets
    options = {"include_dashboard": False, "log_to_driver": False}
    options |= {"_node_ip_address": "127.0.0.1", "object_store_memory": 2**28}
    ray.init(logging_level="error", _temp_dir=session, **options)
    yield
    ray.shutdown()
    shutil.rmtree(session)


def kill_a_worker(killed):
    """Kill the first process that localizes a batch, a moment after it began."""
    while not killed:
        for process in psutil.Process().children(recursive=True):
            if "MapWorker(" in " ".join(process.cmdline()):
                time.sleep(0.5)
                process.kill()
                killed.append(process)
        time.sleep(0.05)


def test_a_killed_worker_loses_no_row_and_doubles_none(notebook, cluster, tmp_path):
    for number in range(30):
        name = ["bee", "koala", "bison"][number % 3]
        content = (ROOT / "images" / f"{name}.jpg").read_bytes()
        (tmp_path / f"{number:02} é.jpg").write_bytes(
            content[: 99 if number < 3 else None]
        )
    paths, killed = sorted(tmp_path.iterdir()), []
    threading.Thread(target=kill_a_worker, args=(killed,), daemon=True).start()
    notebook.localize_many(paths, str(tmp_path / "rows"))
    assert killed
    rows = parquet.read_table(tmp_path / "rows").sort_by("photo").to_pylist()
    assert [row["photo"] for row in rows] == list(map(str, paths))
    for row, r in zip(rows, notebook.localize_folder(paths).itertuples(), strict=True):
        assert row["error"] == r.error
        if not r.error:
            assert row["label"] == r.label
            assert row["probability"] == pytest.approx(r.probability, abs=1e-3)
    assert sum(row["error"] != "" for row in rows) == 3


class Counted:
    """A network that answers at once, and notes in a file where it was unpacked."""

    input_shape = (None, 224, 224, 3)

    def __init__(self, log, unpacked=True):
        self.log = log
        if unpacked:
            with open(log, "a") as file:
                file.write(f"{os.getpid()}\n")

    def __reduce__(self):
        return Counted, (self.log,)

    def predict_on_batch(self, views):
        return np.zeros((1, 7, 7, 1280)), np.ones((1, 1000))


def test_each_worker_unpacks_the_network_once(notebook, cluster, tmp_path, monkeypatch):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    monkeypatch.setattr(notebook, "model", Counted(str(tmp_path / "log"), False))
    paths = [tmp_path / "none.png"] * 100 + [tmp_path / "a.png"] * 1900
    notebook.localize_many(paths, str(tmp_path / "rows"), workers=2)
    assert parquet.read_table(tmp_path / "rows").num_rows == 2000
    unpacked = Counter((tmp_path / "log").read_text().split())
    print(unpacked, os.getpid())
    assert len(unpacked) == 2 and set(unpacked.values()) == {1}
