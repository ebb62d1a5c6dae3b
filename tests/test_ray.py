"""The notebook's functions on a cluster of Ray."""

import shutil
import tempfile
import threading
import time

import psutil
import pytest
import ray
from conftest import ROOT
from pyarrow import parquet


@pytest.fixture
def cluster(monkeypatch):
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    session = tempfile.mkdtemp(prefix="ray", dir="/tmp")  # short, for names of sockets
    options = {"include_dashboard": False, "log_to_driver": False}
    options |= {"_node_ip_address": "127.0.0.1", "object_store_memory": 2**28}
    ray.init(logging_level="error", _temp_dir=session, **options)
    yield
    ray.shutdown()
    shutil.rmtree(session)


def kill_a_worker(killed):
    while not killed:
        for process in psutil.Process().children(recursive=True):
            if "MapWorker(" in " ".join(process.cmdline()):
                time.sleep(0.5)
                process.kill()
                killed.append(process)
        time.sleep(0.05)


def test_a_killed_worker_loses_no_row_and_doubles_none(notebook, cluster, tmp_path):
    for number in range(30):
        content = (ROOT / f"images/{['bee', 'koala'][number % 2]}.jpg").read_bytes()
        content = content[: 99 if number < 3 else None]
        (tmp_path / f"{number:02} é.jpg").write_bytes(content)
    paths, killed = sorted(tmp_path.iterdir()), []
    threading.Thread(target=kill_a_worker, args=(killed,), daemon=True).start()
    notebook.localize_many(paths, str(tmp_path / "rows"))
    rows = parquet.read_table(tmp_path / "rows").sort_by("photo").to_pylist()
    assert [row["photo"] for row in rows] == list(map(str, paths))
    for row, r in zip(rows, notebook.localize_folder(paths).itertuples(), strict=True):
        assert (row["error"], row["label"] or "") == (
            r.error,
            "" if r.error else r.label,
        )
    assert killed and sum(row["error"] != "" for row in rows) == 3
