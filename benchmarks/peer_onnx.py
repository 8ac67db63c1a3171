"""An inference workload in ONNX Runtime or OpenVINO, from NumPy arrays to NumPy arrays.

    python benchmarks/peer_onnx.py WORKLOAD --models FOLDER [--mode onnxruntime|openvino]

FOLDER holds what peer_onnx_export.py wrote.  Prints one line of JSON, as run.py does.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from timing import measure, peak_rss_mb, pin_if_single

Call = Callable[[], object]


def _array(shape: list[int]) -> np.ndarray:
    return np.random.RandomState(0).randn(*shape).astype(np.float32)


def _onnxruntime(path: Path, threads: int) -> tuple[Call, str]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(path), options, ["CPUExecutionProvider"])
    feeds = {i.name: _array(i.shape) for i in session.get_inputs()}
    return lambda: session.run(None, feeds), onnxruntime.__version__


def _openvino(path: Path, threads: int) -> tuple[Call, str]:
    import openvino

    core = openvino.Core()
    options = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": threads,
        "INFERENCE_PRECISION_HINT": "f32",
    }
    model = core.compile_model(core.read_model(path), "CPU", options)
    request = model.create_infer_request()
    feeds = [_array(list(i.shape)) for i in model.inputs]
    call = lambda: request.infer(feeds, share_inputs=True, share_outputs=True)  # noqa: E731
    return call, openvino.__version__


_RUNTIMES = {"onnxruntime": _onnxruntime, "openvino": _openvino}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("workload")
    parser.add_argument("--models", type=Path, required=True)
    parser.add_argument("--mode", choices=_RUNTIMES, default="onnxruntime")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--secs", type=float, default=4.0)
    a = parser.parse_args()
    path = a.models / f"{a.workload}.onnx"
    if not path.exists():
        raise SystemExit(f"{path} is missing: see peer_onnx_export.py")
    pin_if_single(a.threads)
    call, version = _RUNTIMES[a.mode](path, a.threads)
    found = measure(call, a.secs)
    result = {"peer": a.mode, "workload": a.workload, "threads": a.threads, "mode": "f32"}
    rest = {"version": version, "peak_rss_mb": round(peak_rss_mb(), 1)}
    print(json.dumps({**result, **found, **rest}), flush=True)


if __name__ == "__main__":
    main()
