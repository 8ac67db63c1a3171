"""A trained net behind HTTP, as a WSGI application that takes new weights without a pause.

    python examples/web_service.py digits.graphc            train a net for digits and save it
    MODEL=digits.graphc gunicorn --chdir examples --workers 2 --threads 4 web_service:application

POST /predict   n images of 64 little-endian float32 numbers in [0, 1]; the answer is JSON,
                {"digits": [n], "probabilities": [n]}
GET /health     "ok" and the version of the model

A new file under the model's name is taken into use by every worker: it is loaded and compiled in
the background while requests are still answered with the old one.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

import graphc as gx

MAX_BYTES = 1 << 24
"""The longest request body."""


class Loaded:
    """A model in use: one callable that any number of threads may call, and its file's version."""

    def __init__(self, path: str) -> None:
        self.version = version(path)
        self.model = gx.load_graph(path, threads=1)  # workers share the cores already
        signature = self.model.signatures["serve"]
        graph = self.model.graph
        images = graph.get_tensor_by_name(signature.inputs["images"])
        fetches = [graph.get_tensor_by_name(signature.outputs[k]) for k in ("digit", "probability")]
        self.width = images.dims[1]
        self.predict = self.model.session.make_callable(fetches, [images])
        for n in (1, 2, 1, 1, 1, 1, 1, 1, 1, 1):  # the first request should not wait for a compiler
            self.predict(np.zeros((n, self.width), np.float32))


def version(path: str) -> str:
    """Tells one file from the one that takes its place."""
    found = os.stat(path)
    return f"{found.st_mtime_ns:x}-{found.st_ino:x}"


class Service:
    """The WSGI application for the model at `path`."""

    def __init__(self, path: str, load: Callable[[str], Any] = Loaded) -> None:
        self.path = path
        self.load = load
        self.current = load(path)
        self._loading = threading.Lock()
        self._refused = ""  # the version of a file that could not be loaded: not to be tried again

    def __call__(
        self, environ: dict[str, Any], start_response: Callable[..., Any]
    ) -> Iterable[bytes]:
        route = environ["REQUEST_METHOD"], environ["PATH_INFO"]
        if route == ("GET", "/health"):
            status, kind, body = "200 OK", "text/plain", f"ok {self.current.version}".encode()
        elif route == ("POST", "/predict"):
            status, kind, body = self._predict(environ)
        else:
            status, kind, body = "404 Not Found", "text/plain", b"POST /predict or GET /health"
        start_response(status, [("Content-Type", kind), ("Content-Length", str(len(body)))])
        return [body]

    def _predict(self, environ: dict[str, Any]) -> tuple[str, str, bytes]:
        self._look_for_a_new_model()
        current = self.current  # stays as it is until this request is answered
        length = environ.get("CONTENT_LENGTH") or "0"
        if not length.isdigit() or int(length) > MAX_BYTES:
            return "413 Content Too Large", "text/plain", b"the body is too long"
        data = environ["wsgi.input"].read(int(length))
        if not data or len(data) % (4 * current.width):
            message = f"the body is n x {current.width} float32 numbers, not {len(data)} bytes"
            return "400 Bad Request", "text/plain", message.encode()
        images = np.frombuffer(data, "<f4").reshape(-1, current.width)
        digits, probabilities = current.predict(images)
        answer = {"digits": digits.tolist(), "probabilities": probabilities.tolist()}
        return "200 OK", "application/json", json.dumps(answer).encode()

    def _look_for_a_new_model(self) -> None:
        try:
            found = version(self.path)
        except FileNotFoundError:
            return  # the model in use goes on
        if found in (self.current.version, self._refused):
            return
        if self._loading.acquire(blocking=False):
            threading.Thread(target=self._reload, args=[found], daemon=True).start()

    def _reload(self, found: str) -> None:
        try:
            self.current = self.load(self.path)
        except Exception as error:
            self._refused = found
            print(f"{self.path}: {error}; the old model stays", file=sys.stderr)
        finally:
            self._loading.release()


def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    """The service for the file named by MODEL, loaded in the worker that answers."""
    return _service()(environ, start_response)


_made: list[Service] = []
_making = threading.Lock()


def _service() -> Service:
    if not _made:
        with _making:
            if not _made:
                _made.append(Service(os.environ["MODEL"]))
    return _made[0]


# ---- a model to serve --------------------------------------------------------------------------


def save(path: str, logits: gx.Tensor, images: gx.Tensor, session: gx.Session) -> str:
    """Write a classifier with the signature that the service calls."""
    probabilities = gx.nn.softmax(logits)
    outputs = {
        "digit": gx.argmax(probabilities, axis=-1),
        "probability": gx.max(probabilities, axis=-1),
    }
    return gx.save_graph(path, session=session, signatures={"serve": ({"images": images}, outputs)})


def main(path: str = "digits.graphc", epochs: int = 20, seed: int = 0) -> float:
    """Train two dense layers on scikit-learn's digits and save them; returns the test accuracy."""
    from sklearn.datasets import load_digits

    data = load_digits()
    x, y = (data.data / 16).astype(np.float32), data.target
    with gx.Graph(seed=seed).as_default():
        images = gx.placeholder("f32", ("batch", 64), name="images")
        labels = gx.placeholder("i64", ("batch",), name="labels")
        h = gx.nn.layers.dense(images, 128, gx.nn.relu)
        logits = gx.nn.layers.dense(h, 10)
        loss = gx.mean(gx.nn.sparse_softmax_cross_entropy_with_logits(labels, logits))
        step = gx.train.Adam(3e-3).minimize(loss)
        with gx.Session() as session:
            session.run(gx.global_variables_initializer())
            for _ in range(epochs):
                for i in range(0, 1400, 50):
                    session.run(step, {images: x[i : i + 50], labels: y[i : i + 50]})
            found = session.run(gx.argmax(logits, axis=-1), {images: x[1400:]})
            save(path, logits, images, session)
    return float(np.mean(found == y[1400:]))


if __name__ == "__main__":
    print(f"test accuracy {100 * main(*sys.argv[1:2]):.1f} %")
