"""Arrays of other libraries, fed and given as `out`, and results handed on."""

from __future__ import annotations

import array
import ctypes
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import graphc as gx
from graphc import feeds, foreign
from graphc.errors import FeedTypeError, FetchTypeError

X = np.arange(6, dtype=np.float32)


class Exporter:
    """An array that speaks DLPack and nothing else, on any device it claims to be on."""

    def __init__(self, values: np.ndarray[Any, Any], device: int = 1) -> None:
        self.values = values
        self.device = device

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.device, 0

    def __dlpack__(self, **options: Any) -> Any:
        if self.device != 1:
            raise BufferError("asked for memory of another device")
        return self.values.__dlpack__(**options)


class Converter:
    """Something with `__array__`."""

    def __init__(self, values: np.ndarray[Any, Any]) -> None:
        self.values = values

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray[Any, Any]:
        return self.values


class Interface:
    """Something with `__array_interface__`."""

    def __init__(self, values: np.ndarray[Any, Any]) -> None:
        self.values = values

    @property
    def __array_interface__(self) -> dict[str, Any]:
        return self.values.__array_interface__


class Cuda:
    """What CUDA libraries without DLPack show of an array."""

    __cuda_array_interface__ = {"shape": (6,), "typestr": "<f4", "data": (0, False), "version": 3}  # noqa: RUF012


def fed(value: Any) -> Any:
    x = gx.placeholder("f32", (None,), name="x")
    return gx.Session().run(x * 2.0, {x: value})


def _read_only(a: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    view = a[:]
    view.flags.writeable = False
    return view


SHARED: dict[str, Callable[[np.ndarray[Any, Any]], Any]] = {
    "DLPack": Exporter,
    "__array__": Converter,
    "__array_interface__": Interface,
    "memoryview": memoryview,
    "ctypes": lambda a: (ctypes.c_float * a.size).from_buffer(a),
    "a read-only array": _read_only,
    "a subclass": lambda a: a.view(type("Special", (np.ndarray,), {})),
}


@pytest.mark.parametrize("name", SHARED)
def test_memory_is_shared(name: str) -> None:
    values = X.copy()
    value = SHARED[name](values)
    x = gx.placeholder("f32", (None,), name="x")
    assert np.shares_memory(feeds.convert(x, value), values)
    np.testing.assert_array_equal(fed(value), X * 2)


OTHERS: dict[str, Any] = {
    "array.array": array.array("f", X),
    "float64 through DLPack": Exporter(X.astype("f8")),
    "strided through DLPack": Exporter(np.repeat(X, 2)[::2]),
    "strided": np.repeat(X, 2)[::2],
    "reversed": X[::-1].copy()[::-1],
    "swapped bytes": X.astype(X.dtype.newbyteorder()),
    "a list": X.tolist(),
    "integers": X.astype("i2"),
    "nothing masked": np.ma.masked_array(X, mask=np.zeros(6, bool)),
}


@pytest.mark.parametrize("name", OTHERS)
def test_others_are_converted(name: str) -> None:
    np.testing.assert_array_equal(fed(OTHERS[name]), X * 2)


def test_a_matrix_and_scalars() -> None:
    m = gx.placeholder("f32", (None, None))
    k = gx.placeholder("f32", ())
    s = gx.Session()
    matrix = np.arange(4, dtype="f4").reshape(2, 2).view(np.matrix)
    for scalar in (3, 3.0, np.float32(3), np.float64(3), np.array(3), np.array(3.0)):
        made = s.run(m * k, {m: matrix, k: scalar})
        assert type(made) is np.ndarray
        np.testing.assert_array_equal(made, [[0, 3], [6, 9]])


REFUSED: dict[str, tuple[Any, str]] = {
    "CUDA": (Exporter(X, device=2), "a Exporter in CUDA memory: copy it to the host first"),
    "Metal": (Exporter(X, device=8), "a Exporter in Metal memory: copy it to the host first"),
    "unknown": (Exporter(X, device=99), "DLPack device type 99"),
    "no DLPack": (Cuda(), "a Cuda in CUDA memory: copy it to the host first"),
    "masked": (np.ma.masked_array(X, mask=[1, 0, 0, 0, 0, 0]), r"masked elements: .*\.filled"),
    "text": ("text", "which is not numeric"),
    "ragged": ([[1.0], [1.0, 2.0]], "no array"),
    "an object": (object(), "which is not numeric"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_says_why(name: str) -> None:
    value, message = REFUSED[name]
    with pytest.raises(FeedTypeError, match=message) as info:
        fed(value)
    assert "placeholder 'x'" in str(info.value)


def test_an_exporter_that_fails() -> None:
    class Failing(Converter):
        def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray[Any, Any]:
            raise RuntimeError("this tensor requires grad")

    with pytest.raises(FeedTypeError, match="requires grad"):
        fed(Failing(X))


def test_integers_that_do_not_fit_are_refused_as_ever() -> None:
    i = gx.placeholder("i32", (None,))
    s = gx.Session()
    np.testing.assert_array_equal(s.run(i + 1, {i: Exporter(np.array([1, 2]))}), [2, 3])
    for value in (Exporter(np.array([1 << 40])), array.array("q", [1 << 40])):
        with pytest.raises(FeedTypeError, match="does not fit"):
            s.run(i + 1, {i: value})
    with pytest.raises(FeedTypeError, match="float32"):
        s.run(i + 1, {i: Exporter(X)})


def test_results_can_be_handed_on() -> None:
    for n in (6, 1 << 17):
        x = gx.placeholder("f32", (None,))
        called = gx.Session().make_callable(x * 2.0, [x])
        values = np.arange(n, dtype="f4")
        kept = []
        for i in range(40):  # past the point where native code takes over
            made = called(values + i)
            taken = np.from_dlpack(made)
            assert np.shares_memory(taken, made)
            assert memoryview(made).nbytes == 4 * n
            kept.append(taken)
        for i, taken in enumerate(kept):
            np.testing.assert_array_equal(taken, (values + i) * 2)


WRITABLE: dict[str, Callable[[np.ndarray[Any, Any]], Any]] = {
    "DLPack": Exporter,
    "memoryview": memoryview,
    "array.array": lambda a: array.array("f", a),
    "__array_interface__": Interface,
    "ctypes": lambda a: (ctypes.c_float * a.size).from_buffer(a),
}


@pytest.mark.parametrize("name", WRITABLE)
def test_out_may_be_any_memory(name: str) -> None:
    x = gx.placeholder("f32", (None,))
    called = gx.Session().make_callable(x * 2.0, [x])
    target = np.zeros(6, "f4")
    out = WRITABLE[name](target)
    for _ in range(30):
        assert called(X, out=out) is out
    shared = foreign.shared_array(out)
    assert shared is not None
    np.testing.assert_array_equal(shared, X * 2)


def test_out_must_be_memory() -> None:
    x = gx.placeholder("f32", (None,))
    called = gx.Session().make_callable(x * 2.0, [x])
    for out in ([0.0] * 6, 3, "text", Exporter(X, device=2), Converter(X), bytes(24)):
        with pytest.raises(FetchTypeError, match="out="):
            called(X, out=out)
