"""Getting ResNet-50: Keras's own download, from a server on this machine."""

import hashlib
import inspect
import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor, wait
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import h5py
import keras
import numpy as np
import pytest
from conftest import run_apart
from keras.src.backend import config
from keras.src.legacy.saving import legacy_h5_format

RESNET = inspect.getmodule(keras.applications.ResNet50)
TROUBLES = {  # and the words that must name them
    "404": "404",
    "cut off": "retrieval incomplete",
    "wrong file": "corrupted file",
    "refused": "refused",
    "silent": "TimeoutError",
}


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        trouble, content = self.server.trouble, self.server.content
        self.server.asked.append(self.path)
        if trouble == "silent":
            time.sleep(18)
        self.send_response(404 if trouble == "404" else 200)
        self.send_header("Content-Length", len(content))
        self.end_headers()
        sent = {"cut off": content[:999], "wrong file": content[::-1]}
        self.wfile.write(sent.get(trouble, content))


@pytest.fixture
def server(tmp_path, monkeypatch, request):
    """Server of random weights for a shallow ResNet; Keras's cache is empty."""
    monkeypatch.setattr(RESNET, "stack_residual_blocks_v1", lambda x, *_, **__: x)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.trouble = trouble = getattr(request, "param", None)
    server.asked, path = [], tmp_path / "h5"
    server.network = keras.applications.ResNet50(weights=None)
    with h5py.File(path, "w") as file:
        legacy_h5_format.save_weights_to_hdf5_group(file, server.network)
    server.content = path.read_bytes()
    hashes = hashlib.md5(server.content).hexdigest(), ""
    monkeypatch.setitem(RESNET.WEIGHTS_HASHES, "resnet50", hashes)
    port = 1 if trouble == "refused" else server.server_port
    monkeypatch.setattr(RESNET, "BASE_WEIGHTS_PATH", f"http://127.0.0.1:{port}/")
    monkeypatch.setattr(config, "_KERAS_DIR", str(tmp_path))
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    threading.Thread(target=server.serve_forever, args=[0.05]).start()
    yield server
    server.shutdown()
    server.server_close()


def load(notebook, network):
    words = '"input_tensor": pixels', "forgiven ="
    return run_apart(notebook, *words, network=network)["classifier"]


def test_served_weights_are_kept_and_then_not_asked_for(notebook, server, tmp_path):
    kept = tmp_path / "models/resnet50_weights_tf_dim_ordering_tf_kernels.h5"
    kept.parent.mkdir()
    kept.write_bytes(server.content[:999])  # of a run that was stopped
    first, asked = load(notebook, "auto"), len(server.asked)
    second, served = load(notebook, "resnet50"), server.network.get_weights()
    for found in (first, second):
        np.testing.assert_array_equal(found.get_weights()[-2], served[-2])
    assert kept.read_bytes() == server.content and len(server.asked) == asked > 0


@pytest.mark.parametrize(("server", "reason"), [*TROUBLES.items()], indirect=["server"])
def test_auto_names_a_trouble_that_resnet50_raises(notebook, server, reason, capsys):
    with ThreadPoolExecutor() as pool:
        start = time.monotonic()
        strict = pool.submit(load, notebook, "resnet50")
        wait([strict], 0 if server.trouble == "silent" else 20)
        assert load(notebook, "auto").name == "efficientnet_lite0"
        assert time.monotonic() - start < 20
        assert re.search(reason, repr(strict.exception(20)))
    [line] = [x for x in capsys.readouterr().out.splitlines() if "No ResNet-50" in x]
    assert re.search(reason, line)


def test_weights_in_a_cache_that_is_read_only_are_named(
    notebook, tmp_path, monkeypatch
):
    file = tmp_path / "models/resnet50_weights_tf_dim_ordering_tf_kernels.h5"
    file.parent.mkdir()
    file.touch()
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    monkeypatch.setattr("os.access", lambda *_: False)
    names = run_apart(notebook, '"input_tensor": pixels')
    assert names["request"]["weights"] == file
