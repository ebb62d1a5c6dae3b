"""Tests of the notebook's functions on a local cluster of Ray."""

import shutil
import tempfile
import threading
import time
from pathlib import Path

import psutil
import pytest
import ray
from conftest import ROOT
from PIL import Image
from pyarrow import parquet

PHOTOS = sorted((ROOT / "images").glob("*.jpg"))
FILES, BROKEN, BATCH = 200, 20, 10


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Folder of 200 files: small copies of the project's photos, each tenth broken."""
    folder = tmp_path_factory.mktemp("many")
    photos = [Image.open(path) for path in PHOTOS]
    for number in range(FILES):
        file = folder / f"{number:03} é's.jpg"
        photo = photos[number % len(photos)].convert("RGB")
        photo.thumbnail((160 + number, 160 + number))
        photo.save(file)
        if number % (FILES // BROKEN) == 3:
            content = file.read_bytes()
            file.write_bytes(content[:len(content) // 2] if number % 4 == 1 else b"no")
    return folder


@pytest.fixture(scope="module")
def cluster(notebook):
    """Ray on this machine alone, which reports to nobody, until the tests end."""
    session = Path(tempfile.mkdtemp(prefix="ray", dir="/tmp"))  # sockets: 107 letters
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        patch.setenv("RAY_raylet_start_wait_time_s", "240")
        ray.init(num_cpus=4, include_dashboard=False, logging_level="error",
                 log_to_driver=False, object_store_memory=2**28,
                 _node_ip_address="127.0.0.1", _temp_dir=str(session))
        yield
        ray.shutdown()
    shutil.rmtree(session)


def written(folder):
    """Parquet files in a folder, the first written first."""
    return sorted(folder.glob("*.parquet"), key=lambda file: file.stat().st_mtime)


def until_half(folder, start):
    """Seconds from a time until half of the rows were written, loading included."""
    return written(folder)[FILES // BATCH // 2 - 1].stat().st_mtime - start


def actors():
    """Processes of Ray that hold a network."""
    processes = psutil.Process().children(recursive=True)
    return [p for p in processes if "MapWorker" in " ".join(p.cmdline())]


def kill_a_worker(folder, seen):
    """Kill a new worker when half of the rows are there; keep it and these files."""
    old = actors()
    while len(files := written(folder)) < FILES // BATCH // 2:
        time.sleep(0.05)
    victim = next(process for process in actors() if process not in old)
    victim.kill()
    seen.update(victim=victim, files=files)


def as_row(path, result):
    """What the notebook says of a file, as a row of the table."""
    if isinstance(result, ValueError):
        return [str(path), *[None] * 6, str(result)]
    return [str(path), result.label, pytest.approx(result.probability, abs=1e-4),
            *result.box, None]


def test_a_killed_worker_loses_no_row_and_doubles_none(
        notebook, cluster, pictures, tmp_path, record_property):
    paths = notebook.list_pictures(pictures)
    network, seen, start = notebook.classifier, {}, time.time()
    notebook.localize_many(paths[:FILES // 2], str(tmp_path / "one"), 1, BATCH)
    alone, start = until_half(tmp_path / "one", start), time.time()
    killer = threading.Thread(target=kill_a_worker, args=(tmp_path / "rows", seen))
    killer.daemon = True
    killer.start()
    notebook.localize_many(paths, str(tmp_path / "rows"), 2, BATCH)
    killer.join(60)
    gone, _ = psutil.wait_procs([seen["victim"]], 30)
    assert gone
    assert len(written(tmp_path / "rows")) > len(seen["files"])
    assert notebook.classifier is network
    table = parquet.read_table(tmp_path / "rows").sort_by("path")
    rows = [list(row.values()) for row in table.to_pylist()]
    assert rows == [as_row(*both) for both in notebook.localize_folder(paths, BATCH)]
    assert sum(row[-1] is not None for row in rows) == BROKEN
    ratio = alone / until_half(tmp_path / "rows", start)
    record_property("Ray, photos per second of two workers as a ratio to one, loading "
                    "included, while other tests run", f"{ratio:.2f}")
