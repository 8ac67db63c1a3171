"""Tensors as Python objects: array methods, attributes, and what they refuse."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import graphc as gx
from graphc.errors import GraphTypeError
from graphc.node import METHODS, OPERATORS

X = np.arange(24, dtype=np.float64).reshape(2, 3, 4) / 7 - 1

CALLS: dict[str, list[tuple[Any, ...]]] = {
    "all": [(), (1,)],
    "any": [(), (1,)],
    "argmax": [(), (2,)],
    "argmin": [(), (2,)],
    "astype": [("f4",)],
    "clip": [(-0.5, 0.5)],
    "cumprod": [(1,)],
    "cumsum": [(1,)],
    "diagonal": [],
    "dot": [(np.ones((4, 2)),)],
    "flatten": [()],
    "max": [(), (0,)],
    "mean": [(), (0,)],
    "min": [(), (0,)],
    "prod": [(), (0,)],
    "ravel": [()],
    "repeat": [(2,), (2, 1)],
    "reshape": [(6, 4), ((6, -1),), (-1,)],
    "round": [()],
    "squeeze": [()],
    "std": [(), (0,)],
    "sum": [(), (0,)],
    "swapaxes": [(0, 2), (-1, 1)],
    "take": [(np.array([5, 1]),), (np.array([1, 0]), 1)],
    "trace": [],
    "transpose": [(), (1, 0, 2), ((2, 0, 1),)],
    "var": [(), (0,)],
}
"""By method: the arguments to try on a rank-3 array."""


def test_every_method_is_tried() -> None:
    assert {*CALLS, "expand_dims"} == set(METHODS)


@pytest.mark.parametrize("device", ["reference", "cpu"])
def test_methods_are_those_of_arrays(device: str) -> None:
    x = gx.placeholder("f64", X.shape)
    wanted, fetched = [], []
    for name, calls in CALLS.items():
        for arguments in calls:
            wanted.append(np.asarray(getattr(X, name)(*arguments)))
            fetched.append(getattr(x, name)(*arguments))
    with gx.Session(device=device) as session:
        found = session.run(fetched, {x: X})
    for w, f, t in zip(wanted, found, fetched, strict=True):
        np.testing.assert_allclose(f, w, rtol=1e-6, err_msg=t.name)
        assert np.shape(f) == w.shape, t.name


@pytest.mark.parametrize("device", ["reference", "cpu"])
def test_methods_of_matrices(device: str) -> None:
    m = X[0]
    x = gx.placeholder("f64", (3, None))
    with gx.Session(device=device) as session:
        t, d, total, wide = session.run([x.T, x.diagonal(), x.trace(), x.expand_dims(1)], {x: m})
    np.testing.assert_array_equal(t, m.T)
    np.testing.assert_array_equal(d, m.diagonal())
    np.testing.assert_allclose(total, m.trace())
    np.testing.assert_array_equal(wide, m[:, None])


def test_functions_of_lower_layers_are_not_methods() -> None:
    x = gx.placeholder("f32", (2, 3))
    for name in set(OPERATORS) - set(METHODS):
        with pytest.raises(AttributeError, match=f"^a tensor has no attribute '{name}'$"):
            getattr(x, name)
    assert set(METHODS) <= set(dir(x))


def test_shape_attributes() -> None:
    x = gx.placeholder("f32", (None, "time", 3))
    assert x.shape == x.get_shape() == (None, "time", 3)
    assert x.ndim == 3
    assert x.T.shape == (3, "time", None)
    assert +x is x


@pytest.mark.parametrize("convert", [bool, int, float, len, np.asarray, lambda t: [0][t]])
def test_a_tensor_has_no_value_yet(convert: Any) -> None:
    with pytest.raises(GraphTypeError):
        convert(gx.placeholder("f32", ()))
