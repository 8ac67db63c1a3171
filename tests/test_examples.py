"""Every example runs and shows what it claims; every benchmark workload computes."""

from __future__ import annotations

import importlib
import io
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("sklearn")

import graphc as gx

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def _examples_on_the_path(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    yield


def _example(name: str) -> Any:
    return importlib.import_module(name)


def _two_layer_losses(steps: int, learning_rate: float) -> list[float]:
    """The two-layer net in NumPy, with the examples' numbers."""
    rng = np.random.default_rng(0)
    w1 = (rng.standard_normal((1000, 100)).astype("f4") / np.sqrt(1000)).astype("f8")
    w2 = (rng.standard_normal((100, 1000)).astype("f4") / np.sqrt(100)).astype("f8")
    x, y = rng.standard_normal((64, 1000)), rng.standard_normal((64, 1000))
    losses = []
    for _ in range(steps):
        h = np.maximum(x @ w1, 0)
        d = h @ w2 - y
        losses.append(float((d * d).sum(1).mean()))
        g = 2 * d / 64
        grad_h = (g @ w2.T) * (h > 0)
        w1, w2 = w1 - learning_rate * x.T @ grad_h, w2 - learning_rate * h.T @ g
    return losses


@pytest.mark.parametrize("name", ["two_layer_net_session", "two_layer_net_function"])
def test_two_layer_net_follows_numpy(name: str) -> None:
    losses = _example(name).main(steps=10)
    np.testing.assert_allclose(losses, _two_layer_losses(10, 1e-2), rtol=1e-4)


def test_logistic_regression() -> None:
    assert _example("logistic_regression").main() >= 0.96


def test_autoencoder() -> None:
    before, after = _example("autoencoder").main(epochs=10)
    assert after < before / 5


def test_lenet() -> None:
    assert _example("lenet").main(epochs=8) >= 0.95


def test_adversarial_noise_fools_where_random_noise_does_not() -> None:
    clean, noisy, fooled = _example("adversarial").main(epochs=8)
    assert clean >= 0.95
    assert noisy >= 0.85
    assert fooled < 0.5


def test_guided_backprop() -> None:
    images, plain, guided = _example("guided_backprop").main(epochs=4)
    assert plain.shape == guided.shape == images.shape
    assert np.abs(plain).max() > 0
    assert np.abs(guided).max() > 0
    assert not np.allclose(plain, guided)


def test_fine_tuning_leaves_frozen_weights_as_they_were() -> None:
    module = _example("fine_tuning")
    accuracy, before, after = module.main(epochs=8)
    assert accuracy >= 0.85
    assert set(before) == set(module.TRUNK)
    for name in before:
        assert before[name].tobytes() == after[name].tobytes()


def test_the_web_service_loses_no_request_when_its_model_is_replaced(tmp_path: Path) -> None:
    module = _example("web_service")
    path = str(tmp_path / "model")
    assert module.main(path, epochs=3) >= 0.7
    service = module.Service(path)
    images = np.random.default_rng(0).random((3, 64)).astype(np.float32)
    first = service.current.version
    answers: list[tuple[str, Any]] = []
    stop = threading.Event()

    def ask() -> None:
        while not stop.is_set():
            answers.append(_post(service, images.tobytes()))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for seed in (1, 2):
        before = service.current.version
        module.main(path, epochs=1, seed=seed)
        deadline = time.monotonic() + 60
        while service.current.version == before and time.monotonic() < deadline:
            time.sleep(0.01)
    stop.set()
    for thread in threads:
        thread.join()
    assert service.current.version != first
    assert {status for status, _ in answers} == {"200 OK"}
    assert len({str(answer["digits"]) for _, answer in answers}) > 1  # by more than one model
    assert _post(service, b"\0" * 5)[0].startswith("400")


def _post(service: Any, body: bytes) -> tuple[str, Any]:
    """The status and the answer of a WSGI application."""
    statuses: list[str] = []
    environ = {
        "REQUEST_METHOD": "POST",
        "PATH_INFO": "/predict",
        "CONTENT_LENGTH": str(len(body)),
        "wsgi.input": io.BytesIO(body),
    }
    answer = b"".join(service(environ, lambda status, headers: statuses.append(status)))
    (status,) = statuses
    return status, json.loads(answer) if status.startswith("200") else answer


@pytest.mark.parametrize("name", ["call", "call100", "chain_small", "layernorm", "cs231n", "mlp"])
def test_workloads_agree_with_the_reference(name: str) -> None:
    values = []
    for device in ("cpu", "reference"):
        with gx.Graph(seed=0).as_default(), gx.Session(device=device) as session:
            workload = importlib.import_module("workloads").WORKLOADS[name](session)
            result = workload.call()
            if result is None:  # computed into the last variable
                result = session.run(gx.global_variables()[-1])
            values.append(result[0] if isinstance(result, list) else result)
    np.testing.assert_allclose(values[0], values[1], rtol=1e-4, atol=1e-5)


def test_the_benchmark_prints_one_json_line() -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "run.py"), "call100", "--secs", "0.05"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True, cwd=ROOT)
    (line,) = done.stdout.splitlines()
    result = json.loads(line)
    assert result["peer"] == "graphc"
    assert result["workload"] == "call100"
    assert 0 < result["min_ms"] <= result["median_ms"] <= result["p90_ms"]
    assert result["reps"] > 0
