"""A saved model checked, fed with noise: `graphc debug model.graphc`.

Imports: export.model, debug.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from graphc.debug.report import Report
from graphc.debug.stages import check
from graphc.dims import Dim, dim_text, evaluate
from graphc.errors import GraphError, GraphTypeError
from graphc.export.model import load_graph
from graphc.node import Tensor

Array = np.ndarray[Any, Any]


def check_model(
    path: str | os.PathLike[str],
    size: int = 3,
    sizes: Mapping[str, int] | None = None,
    gradients: bool = False,
    seed: int = 0,
) -> dict[str, Report]:
    """A report for each signature of a saved model, whose inputs are fed noise.

    size   of dimensions that the model leaves open, but for those named in `sizes`
    Floats are normally distributed; integers are 0 or 1, so that they can be positions.
    Raises CheckpointError for a broken file, GraphError for a model without signatures.
    """
    model = load_graph(path, device="reference")
    try:
        if not model.signatures:
            raise GraphError(f"{os.fspath(path)!r} has no signatures: there is nothing to feed")
        rng = np.random.default_rng(seed)
        reports = {}
        for name, signature in model.signatures.items():
            inputs = [model.graph.get_tensor_by_name(t) for t in signature.inputs.values()]
            feeds = {t: _noise(t, size, sizes or {}, rng) for t in inputs}
            fetches = list(signature.outputs.values())
            reports[name] = check(fetches, feeds, model.session, gradients)
        return reports
    finally:
        model.close()


def _noise(t: Tensor, size: int, sizes: Mapping[str, int], rng: np.random.Generator) -> Array:
    if t.type.shape is None:
        raise GraphTypeError(f"input {t.node.name!r} has unknown rank: check it in Python")
    shape = [_size(d, size, sizes) if isinstance(d, Dim) else d for d in t.type.shape]
    if t.dtype.is_float:
        return rng.standard_normal(shape).astype(t.dtype.numpy)
    return rng.integers(0, 2, shape).astype(t.dtype.numpy)


def _size(d: Dim, size: int, sizes: Mapping[str, int]) -> int:
    text = dim_text(d)
    if text in sizes:
        return sizes[text]
    atoms = {a for monomial, _ in d.terms for a in monomial}
    return evaluate(d, {a: sizes.get(a.name, size) for a in atoms})
