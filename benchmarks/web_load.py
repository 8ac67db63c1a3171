"""Requests per second of the example's web service: `python benchmarks/web_load.py`.

Needs gunicorn (pip) and wrk (the load generator).  Serves a 784-512-512-10 net with several workers
and threads on graphc and, where installed, on ONNX Runtime and on NumPy, one after another, and
prints a JSON line for each.  With `--reloads N` the model's file is replaced N times under load,
and the line says how many requests failed meanwhile.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import web_backends

HERE = Path(__file__).resolve().parent
REPORT = """
done = function(summary, latency, requests)
  local e = summary.errors
  io.write(string.format("RESULT %d %d %d %.1f %.1f %.1f %d\\n", summary.requests,
    summary.duration, e.connect + e.read + e.write + e.status + e.timeout,
    latency:percentile(50), latency:percentile(99), latency.max, e.status))
end
"""


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextlib.contextmanager
def served(backend: str, model: str, workers: int, threads: int) -> Iterator[str]:
    """The address of a running service."""
    address = f"127.0.0.1:{_free_port()}"
    command = [sys.executable, "-m", "gunicorn", "--chdir", str(HERE), "--workers", str(workers)]
    command += ["--threads", str(threads), "--bind", address, "--log-level", "warning"]
    environ = {**os.environ, "BACKEND": backend, "MODEL": model, "OPENBLAS_NUM_THREADS": "1"}
    server = subprocess.Popen([*command, "web_backends:application"], env=environ)
    try:
        for _ in range(200):
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"http://{address}/health", timeout=30).read()
                break
            time.sleep(0.1)
        yield f"http://{address}/predict"
    finally:
        server.terminate()
        server.wait(30)


def load(url: str, script: str, connections: int, seconds: float) -> subprocess.Popen[str]:
    """Start the load generator."""
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds:g}s", "-s", script, url]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def result(generator: subprocess.Popen[str]) -> dict[str, Any]:
    """Requests per second, latencies in milliseconds and failures of a finished load."""
    output, _ = generator.communicate()
    found = re.search(r"RESULT (.*)", output)
    if found is None:
        raise SystemExit(f"wrk said:\n{output}")
    requests, microseconds, failed, p50, p99, worst, _ = map(float, found.group(1).split())
    return {
        "requests_per_s": round(requests / microseconds * 1e6, 1),
        "p50_ms": p50 / 1e3,
        "p99_ms": p99 / 1e3,
        "max_ms": worst / 1e3,
        "requests": int(requests),
        "failed": int(failed),
    }


def measure(backend: str, options: argparse.Namespace, folder: str) -> dict[str, Any]:
    """One backend: warm up, then load it for the time asked."""
    model, script = f"{folder}/model", f"{folder}/post.lua"
    with served(backend, model, options.workers, options.threads) as url:
        load(url, script, options.connections, 2).communicate()
        generator = load(url, script, options.connections, options.secs)
        for _ in range(options.reloads):
            time.sleep(options.secs / (options.reloads + 1))
            shutil.copy(model, f"{model}.new")
            os.replace(f"{model}.new", model)
        return {"backend": backend, "batch": options.batch, **result(generator)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("backends", nargs="*", help="graphc, onnxruntime, numpy (default: all)")
    parser.add_argument("--secs", type=float, default=10)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--threads", type=int, default=4)
    parser.add_argument("--connections", type=int, default=8)
    parser.add_argument("--batch", type=int, default=1, help="images in a request")
    parser.add_argument("--reloads", type=int, default=0)
    options = parser.parse_args()
    if shutil.which("wrk") is None:
        raise SystemExit("the load generator wrk is not installed")
    backends = options.backends or [
        b for b in ("graphc", "onnxruntime", "numpy") if importlib.util.find_spec(b)
    ]
    with tempfile.TemporaryDirectory() as folder:
        web_backends.write_models(f"{folder}/model")
        images = np.random.default_rng(0).random((options.batch, web_backends.WIDTHS[0]))
        Path(folder, "body").write_bytes(images.astype("<f4").tobytes())
        script = f'wrk.method = "POST"\nwrk.body = io.open("{folder}/body", "rb"):read("*a")\n'
        Path(folder, "post.lua").write_text(script + REPORT)
        for backend in backends:
            print(json.dumps(measure(backend, options, folder)), flush=True)


if __name__ == "__main__":
    main()
