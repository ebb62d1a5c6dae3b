"""Tests of getting ResNet-50: Keras's real download, from a server on this machine."""

import hashlib
import socket
import threading
import time
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import h5py
import keras
import numpy as np
import pytest
from keras.src.applications import resnet
from keras.src.backend import config
from keras.src.legacy.saving import legacy_h5_format

FILE = "models/resnet50_weights_tf_dim_ordering_tf_kernels.h5"


class Server(ThreadingHTTPServer):
    """Server of one file, `content`, that fails in the way that `fault` says."""

    daemon_threads = True
    content, fault, requests = b"", None, 0

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.stopped = threading.Event()
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def address(self):
        return f"http://127.0.0.1:{self.server_port}/"

    def handle_error(self, *arguments):
        """A client that has given up is no error of the server."""

    def stop(self):
        self.stopped.set()
        self.shutdown()
        self.server_close()


class Handler(BaseHTTPRequestHandler):
    """Answers of a Server."""

    def do_GET(self):
        fault, content = self.server.fault, self.server.content
        self.server.requests += 1
        if fault == "silent":
            self.server.stopped.wait()
        elif isinstance(fault, int):
            self.send_error(fault)
        else:
            self.send_response(200)
            self.send_header("Content-Length", len(content))
            self.end_headers()
            if fault == "silent after headers":
                self.server.stopped.wait()
            content = content[:len(content) // 2] if fault == "truncated" else content
            for part in np.array_split(np.frombuffer(content, "uint8"), 30):
                self.wfile.write(part.tobytes())
                time.sleep(0.1 if fault == "slow" else 0)

    def log_message(self, *arguments):
        """Keep the tests' output clean."""


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Weights of a ResNet-50 with random numbers, and the bytes of their .h5 file."""
    model = keras.applications.ResNet50(weights=None)
    path = tmp_path_factory.mktemp("weights") / "resnet50.h5"
    with h5py.File(path, "w") as file:
        legacy_h5_format.save_weights_to_hdf5_group(file, model)
    return model.get_weights(), path.read_bytes()


@pytest.fixture
def server(notebook, weights, monkeypatch, tmp_path):
    """A Server of good weights; Keras asks it for ResNet-50 and has an empty cache."""
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(config, "_KERAS_DIR", str(tmp_path))
    monkeypatch.setattr(notebook.tempfile, "gettempdir", lambda: str(tmp_path / "other"))
    server = Server()
    server.content = weights[1]
    digest = hashlib.md5(weights[1]).hexdigest()
    monkeypatch.setattr(resnet, "BASE_WEIGHTS_PATH", server.address)
    monkeypatch.setitem(resnet.WEIGHTS_HASHES, "resnet50", (digest, digest))
    yield server
    server.stop()
    for thread in threading.enumerate():  # downloads that nobody waits for any more
        if thread.name.endswith("(build)"):
            thread.join(30)
            assert not thread.is_alive()


def break_server(server, fault, home):
    """Let the server, or what Keras has in its cache, fail in the way that is named."""
    if fault == "damaged cache":
        (home / "models").mkdir()
        (home / FILE).write_bytes(server.content[:1000])
    if fault in ("dead", "damaged cache"):
        server.stop()
    elif fault == "wrong file":
        server.content = b"<html>Log in to the guest network</html>" * 1000
    else:
        server.fault = fault


FAULTS = [404, 503, "truncated", "wrong file", "dead", "damaged cache", "silent",
          "silent after headers"]


def test_served_weights_are_used_and_kept(notebook, server, weights, capsys):
    for run in ("download", "cache"):
        network = notebook.load_network("auto")
        assert network.name == "ResNet-50"
        assert network.labels[235] == "German shepherd"
        np.testing.assert_array_equal(network.weights, weights[0][-2])
        np.testing.assert_array_equal(network.bias, weights[0][-1])
        output = capsys.readouterr().out
        assert ("Downloading" in output and "/step" in output) == (run == "download")
        assert server.requests == 1
    assert socket.getdefaulttimeout() is None


@pytest.mark.parametrize("fault", FAULTS)
def test_auto_takes_the_bundled_network(notebook, server, tmp_path, capsys, fault):
    break_server(server, fault, tmp_path)
    start = time.monotonic()
    network = notebook.load_network("auto")
    assert time.monotonic() - start < 25
    assert network.name == "efficientnet_lite0"
    assert network.labels[235] == "German shepherd"
    lines = [line for line in capsys.readouterr().out.splitlines() if "bundled" in line]
    assert len(lines) == 1 and "No ResNet-50 (" in lines[0] and "internet" in lines[0]
    assert socket.getdefaulttimeout() is None


@pytest.mark.parametrize("fault", FAULTS)
def test_resnet50_or_an_error_with_the_remedy(notebook, server, tmp_path, monkeypatch, fault):
    hurry = partial(notebook.load_resnet50, patience=4)
    monkeypatch.setattr(notebook, "load_resnet50", hurry)
    break_server(server, fault, tmp_path)
    start = time.monotonic()
    with pytest.raises(OSError, match="ResNet-50 cannot be had: .*connect to the internet"):
        notebook.load_network("resnet50")
    assert time.monotonic() - start < 15
    assert socket.getdefaulttimeout() is None


def test_the_remedy_helps(notebook, server, weights, tmp_path):
    break_server(server, "wrong file", tmp_path)
    with pytest.raises(OSError):
        notebook.load_network("resnet50")
    server.content = weights[1]
    assert notebook.load_network("resnet50").name == "ResNet-50"
