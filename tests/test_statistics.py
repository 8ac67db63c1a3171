"""Compositions without an operator of their own, against NumPy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from operator_checks import DEVICES

import graphc as gx
from graphc.ops import activation, create, logic, statistics

Array = np.ndarray[Any, Any]
X = np.random.default_rng(5).uniform(-3, 3, (3, 4, 5)).astype(np.float32)
HOLED = np.array([[0.0, -np.inf, np.nan], [np.inf, 1.0, -np.inf]])


def _log_total(x: Array, axis: Any = None, keepdims: bool = False) -> Array:
    result: Array = np.log(np.sum(np.exp(x), axis=axis, keepdims=keepdims))
    return result


def _share(x: Array, axis: int) -> Array:
    e = np.exp(x)
    result: Array = e / e.sum(axis=axis, keepdims=True)
    return result


def _length(x: Array, axis: Any) -> Array:
    result: Array = np.sqrt(np.sum(x * x, axis=axis, keepdims=True))
    return result


CASES: dict[str, tuple[Callable[[Any], Any], Callable[[Array], Any]]] = {
    "softmax": (statistics.softmax, lambda x: _share(x, -1)),
    "softmax_axis": (lambda x: statistics.softmax(x, 0), lambda x: _share(x, 0)),
    "log_softmax": (statistics.log_softmax, lambda x: np.log(_share(x, -1))),
    "logsumexp": (statistics.logsumexp, _log_total),
    "logsumexp_axis": (lambda x: statistics.logsumexp(x, 1), lambda x: _log_total(x, 1)),
    "logsumexp_axes": (
        lambda x: statistics.logsumexp(x, (0, 2), True),
        lambda x: _log_total(x, (0, 2), True),
    ),
    "var": (statistics.var, np.var),
    "var_axis": (
        lambda x: statistics.var(x, (0, 1), ddof=1, keepdims=True),
        lambda x: np.var(x, (0, 1), ddof=1, keepdims=True),
    ),
    "std": (lambda x: statistics.std(x, -1), lambda x: np.std(x, -1)),
    "moments": (
        lambda x: gx.add(*statistics.moments(x, 1)),
        lambda x: np.mean(x, 1) + np.var(x, 1),
    ),
    "norm": (statistics.norm, lambda x: np.linalg.norm(x.reshape(-1))),
    "norm_axis": (lambda x: statistics.norm(x, axis=1), lambda x: np.linalg.norm(x, axis=1)),
    "norm_1": (lambda x: statistics.norm(x, 1, 2), lambda x: np.linalg.norm(x, 1, axis=2)),
    "norm_inf": (
        lambda x: statistics.norm(x, np.inf, 0, True),
        lambda x: np.linalg.norm(x, np.inf, axis=0, keepdims=True),
    ),
    "norm_least": (
        lambda x: statistics.norm(x, -np.inf, 0),
        lambda x: np.linalg.norm(x, -np.inf, axis=0),
    ),
    "l2_normalize": (lambda x: statistics.l2_normalize(x, 1), lambda x: x / _length(x, 1)),
    "cumsum_flat": (statistics.cumsum, np.cumsum),
    "log_sigmoid": (activation.log_sigmoid, lambda x: -np.log1p(np.exp(-x))),
    "clip": (lambda x: logic.clip(x, -1, 1), lambda x: np.clip(x, -1, 1)),
    "clip_low": (lambda x: logic.clip(x, low=0), lambda x: np.maximum(x, 0)),
    "clip_high": (lambda x: logic.clip(x, high=0), lambda x: np.minimum(x, 0)),
    "zeros_like": (create.zeros_like, np.zeros_like),
    "ones_like": (lambda x: create.ones_like(x, "i8"), lambda x: np.ones_like(x, np.int8)),
    "full_like": (lambda x: create.full_like(x, 2.5), lambda x: np.full_like(x, 2.5)),
    "logical_and": (lambda x: logic.logical_and(x, x > 0), lambda x: np.logical_and(x, x > 0)),
    "logical_or": (lambda x: logic.logical_or(x > 1, x < 0), lambda x: (x > 1) | (x < 0)),
    "logical_xor": (lambda x: logic.logical_xor(x > 1, x > 0), lambda x: (x > 1) ^ (x > 0)),
    "logical_not": (lambda x: logic.logical_not(x > 1), lambda x: ~(x > 1)),
    "operators": (
        lambda x: ~((x > 1) | (x < 0)) & (x < 0.5) ^ True,
        lambda x: ~(~((x > 1) | (x < 0)) & (x < 0.5)),
    ),
}


@pytest.mark.parametrize("shape", [(3, 4, 5), (None, None, None), None], ids=str)
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", list(CASES))
def test_values(name: str, device: str, shape: Any) -> None:
    ours, numpy = CASES[name]
    graph = gx.Graph()
    with graph.as_default():
        x = gx.placeholder("f32", shape)
        y = ours(x)
        with gx.Session(graph, device=device) as session:
            actual = session.run(y, {x: X})
    wanted = np.asarray(numpy(X))
    assert actual.dtype == wanted.dtype
    assert actual.shape == wanted.shape
    np.testing.assert_allclose(actual, wanted, 2e-5, 2e-6)


@pytest.mark.parametrize("device", DEVICES)
def test_values_at_infinities(device: str) -> None:
    graph = gx.Graph()
    with graph.as_default():
        x = gx.placeholder("f64", (None, None))
        total = statistics.logsumexp(x, axis=1)
        share = statistics.softmax(x)
        with gx.Session(graph, device=device) as session:
            feed = np.array([[1e4, 1e4], [-np.inf, 0.0], [-np.inf, -np.inf], [np.inf, 0.0]])
            sums, shares = session.run([total, share], {x: feed})
    np.testing.assert_allclose(sums, [1e4 + np.log(2), 0, -np.inf, np.inf])
    np.testing.assert_allclose(shares[:2], [[0.5, 0.5], [0, 1]])


@pytest.mark.parametrize("equal_nan", [False, True])
@pytest.mark.parametrize("device", DEVICES)
def test_isclose(device: str, equal_nan: bool) -> None:
    near = HOLED * (1 + 1e-6)
    far = HOLED + 1e-3
    graph = gx.Graph()
    with graph.as_default():
        a, b = gx.placeholder("f64", (2, 3)), gx.placeholder("f64", (2, 3))
        close = logic.isclose(a, b, equal_nan=equal_nan)
        every = logic.allclose(a, b, equal_nan=equal_nan)
        with gx.Session(graph, device=device) as session:
            for other in (near, far, HOLED.T.reshape(2, 3)):
                found, whole = session.run([close, every], {a: HOLED, b: other})
                wanted = np.isclose(HOLED, other, equal_nan=equal_nan)
                np.testing.assert_array_equal(found, wanted)
                assert bool(whole) == wanted.all()


def test_small_integers_are_summed_wide() -> None:
    graph = gx.Graph()
    with graph.as_default():
        x = gx.constant(np.full(5, 100, np.int8))
        y = statistics.cumsum(x, 0)
        assert y.dtype.name == "i64"
        with gx.Session(graph) as session:
            np.testing.assert_array_equal(session.run(y), [100, 200, 300, 400, 500])


def test_an_unknown_norm_is_refused() -> None:
    with gx.Graph().as_default():
        x = gx.placeholder("f32", (3,))
        with pytest.raises(gx.errors.GraphTypeError, match="ord is a number or 'fro'"):
            statistics.norm(x, "nuc")
