"""The example's web service over one net in graphc, ONNX Runtime or NumPy; see web_service.py.

MODEL names the `.graphc` file; its weights also lie beside it as `.npz` and, if onnx is installed,
as `.onnx`.  BACKEND chooses who computes.
"""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "examples"))

WIDTHS = (784, 512, 512, 10)


def weights(seed: int = 0) -> list[tuple[np.ndarray, np.ndarray]]:
    """(kernel, bias) of each dense layer."""
    rng = np.random.default_rng(seed)
    pairs = itertools.pairwise(WIDTHS)
    return [
        ((rng.standard_normal((m, n)) / m**0.5).astype("f4"), np.zeros(n, "f4")) for m, n in pairs
    ]


def write_models(path: str) -> None:
    """Write the net in every form that an installed backend reads."""
    import web_service

    import graphc as gx

    layers = weights()
    with gx.Graph().as_default(), gx.Session() as session:
        images = gx.placeholder("f32", ("batch", WIDTHS[0]), name="images")
        h = images
        for i, (kernel, bias) in enumerate(layers):
            h = h @ gx.Variable(kernel) + gx.Variable(bias)
            h = gx.nn.relu(h) if i < len(layers) - 1 else h
        session.run(gx.global_variables_initializer())
        web_service.save(path, h, images, session)
    np.savez(path + ".npz", *[a for layer in layers for a in layer])
    try:
        import onnx
    except ImportError:
        return
    onnx.save(_onnx_model(layers), path + ".onnx")


def _onnx_model(layers: list[tuple[np.ndarray, np.ndarray]]) -> Any:
    from onnx import TensorProto, helper, numpy_helper

    nodes, constants, h = [], [], "images"
    for i, (kernel, bias) in enumerate(layers):
        constants += [numpy_helper.from_array(kernel, f"w{i}")]
        constants += [numpy_helper.from_array(bias, f"b{i}")]
        nodes.append(helper.make_node("Gemm", [h, f"w{i}", f"b{i}"], [f"h{i}"]))
        h = f"h{i}"
        if i < len(layers) - 1:
            nodes.append(helper.make_node("Relu", [h], [f"r{i}"]))
            h = f"r{i}"
    nodes.append(helper.make_node("Softmax", [h], ["p"], axis=-1))
    nodes.append(helper.make_node("ArgMax", ["p"], ["digit"], axis=-1, keepdims=0))
    nodes.append(helper.make_node("ReduceMax", ["p"], ["probability"], axes=[-1], keepdims=0))
    inputs = [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["n", WIDTHS[0]])]
    outputs = [
        helper.make_tensor_value_info("digit", TensorProto.INT64, ["n"]),
        helper.make_tensor_value_info("probability", TensorProto.FLOAT, ["n"]),
    ]
    graph = helper.make_graph(nodes, "mlp", inputs, outputs, constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


class OnnxRuntime:
    """The net on ONNX Runtime, one thread a call."""

    width = WIDTHS[0]

    def __init__(self, path: str) -> None:
        import onnxruntime as ort
        import web_service

        options = ort.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self.version = web_service.version(path)
        self.session = ort.InferenceSession(path + ".onnx", options)

    def predict(self, images: np.ndarray) -> Any:
        return self.session.run(["digit", "probability"], {"images": images})


class NumPy:
    """The net in NumPy."""

    width = WIDTHS[0]

    def __init__(self, path: str) -> None:
        import web_service

        self.version = web_service.version(path)
        with np.load(path + ".npz") as file:
            arrays = [file[f"arr_{i}"] for i in range(len(file.files))]
        self.layers = list(zip(arrays[::2], arrays[1::2], strict=True))

    def predict(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        h = images
        for kernel, bias in self.layers[:-1]:
            h = np.maximum(h @ kernel + bias, 0)
        kernel, bias = self.layers[-1]
        h = h @ kernel + bias
        e = np.exp(h - h.max(axis=-1, keepdims=True))
        p = e / e.sum(axis=-1, keepdims=True)
        return p.argmax(axis=-1), p.max(axis=-1)


def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    """The WSGI application of the backend that BACKEND names."""
    return _service()(environ, start_response)


_made: list[Any] = []


def _service() -> Any:
    import web_service

    if not _made:
        backends: dict[str, Callable[[str], Any]] = {
            "graphc": web_service.Loaded,
            "onnxruntime": OnnxRuntime,
            "numpy": NumPy,
        }
        service = web_service.Service(os.environ["MODEL"], backends[os.environ["BACKEND"]])
        if not _made:
            _made.append(service)
    return _made[0]
