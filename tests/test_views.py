"""Views and merged axes against NumPy's strides: the same elements at the same addresses."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import graphc as gx
from graphc import dims
from graphc.nest import contiguous
from graphc.ops.shape import slice_axes
from graphc.passes.lower_loop import merge_axes
from graphc.passes.views import View, Views, reshaped_strides

Array = np.ndarray[Any, Any]


def numbered(shape: Sequence[int]) -> Array:
    """An array whose elements are their own positions."""
    return np.arange(math.prod(shape)).reshape(shape)


def addresses(shape: Sequence[int], strides: Sequence[Any], offset: Any = 0) -> Array:
    """The element offset of every index."""
    where = np.full(tuple(shape), offset)
    for axis, (size, stride) in enumerate(zip(shape, strides, strict=True)):
        along = [1] * len(shape)
        along[axis] = size
        where = where + (np.arange(size) * stride).reshape(along)
    return where


@st.composite
def factorizations(draw: st.DrawFn, total: int, most: int = 4) -> tuple[int, ...]:
    """A shape of `total` elements, now and then with axes of size 1."""
    shape = []
    for _ in range(draw(st.integers(0, most - 1))):
        d = draw(st.sampled_from([k for k in range(1, total + 1) if total % k == 0]))
        shape.append(d)
        total //= d
    return (*shape, total)


@st.composite
def strided(draw: st.DrawFn) -> Array:
    """A view of a numbered array: transposed, sliced with any step, broadcast."""
    x = numbered(draw(st.lists(st.integers(1, 4), min_size=1, max_size=4)))
    x = x.transpose(draw(st.permutations(range(x.ndim))))
    for axis in range(x.ndim):
        step = draw(st.sampled_from((1, 1, 1, 2, -1)))
        index: list[Any] = [slice(None)] * x.ndim
        index[axis] = slice(None, None, step)
        x = x[tuple(index)]
    if draw(st.booleans()):
        x = np.broadcast_to(x, (draw(st.integers(1, 3)), *x.shape))
    return x


def element_strides(x: Array) -> tuple[int, ...]:
    return tuple(s // x.itemsize for s in x.strides)


@pytest.mark.no_cover
@settings(max_examples=300, deadline=None)
@given(st.data())
def test_a_reshape_is_a_view_exactly_where_it_is_one_in_numpy(data: st.DataObject) -> None:
    x = data.draw(strided())
    new = data.draw(factorizations(x.size))
    reshaped = x.reshape(new)
    found = reshaped_strides(x.shape, element_strides(x), new)
    assert (found is not None) == np.shares_memory(x, reshaped)
    if found is not None:
        start = x.reshape(-1)[0]
        np.testing.assert_array_equal(addresses(new, found, start), reshaped)


def test_a_reshape_of_unknown_sizes() -> None:
    n, m = dims.symbol("n"), dims.symbol("m")
    nm = dims.mul(n, m)
    assert reshaped_strides((n, m), contiguous((n, m)), (nm,)) == (1,)
    assert reshaped_strides((nm,), (2,), (n, m)) == (dims.mul(2, m), 2)
    assert reshaped_strides((m, n), (1, m), (nm,)) is None
    assert reshaped_strides((n, m), (0, 1), (n, 1, m)) == (0, 0, 1)


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_chains_of_views_address_the_right_elements(data: st.DataObject) -> None:
    with gx.Graph().as_default():
        t = gx.placeholder("i64", tuple(data.draw(st.lists(st.integers(1, 4), max_size=3))))
        values = {id(t): numbered(t.shape)}
        chain = [t]
        for _ in range(data.draw(st.integers(1, 5))):
            t, value = step(data, t, values[id(t)])
            values[id(t)] = value
            chain.append(t)
        views = Views()
        for t in chain:  # a view may turn out to need an array: views of it are taken afterwards
            views.of(t)
        views.forget()
        view = views.of(t)
    base = values[id(view.base)]
    where = addresses(values[id(t)].shape, view.strides, view.offset)
    np.testing.assert_array_equal(base.reshape(-1)[where], values[id(t)])


def step(data: st.DataObject, t: gx.Tensor, x: Array) -> tuple[gx.Tensor, Array]:
    """One view operator, and the same in NumPy."""
    kind = data.draw(st.sampled_from(("reshape", "transpose", "slice", "broadcast_to")))
    if kind == "reshape":
        shape = data.draw(factorizations(x.size))
        return gx.reshape(t, shape), x.reshape(shape)
    if kind == "transpose":
        order = data.draw(st.permutations(range(x.ndim)))
        return gx.transpose(t, order), x.transpose(order)
    if kind == "broadcast_to":
        shape = (data.draw(st.integers(1, 3)), *x.shape)
        return gx.broadcast_to(t, shape), np.broadcast_to(x, shape)
    steps = [data.draw(st.sampled_from((1, -1))) for _ in x.shape]
    starts = [d - 1 if k < 0 else 0 for d, k in zip(x.shape, steps, strict=True)]
    sizes = [data.draw(st.integers(1, d)) for d in x.shape]
    index = tuple(
        slice(s, (s + k * n) if s + k * n >= 0 else None, k)
        for s, n, k in zip(starts, sizes, steps, strict=True)
    )
    return slice_axes(t, starts, sizes, steps), x[index]


def test_a_view_of_the_whole_array_is_told_apart() -> None:
    x = gx.placeholder("f32", (4, 6))
    assert View(x, (6, 1)).is_whole((4, 6))
    assert View(x, (1,)).is_whole((24,))
    assert View(x, (6, 0, 1)).is_whole((4, 1, 6))
    assert not View(x, (6, 1), 1).is_whole((4, 6))
    assert not View(x, (1, 6)).is_whole((6, 4))
    assert not View(x, (6, 1)).is_whole((3, 6))


# ---- merged axes -------------------------------------------------------------------------------


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_merged_axes_visit_the_same_addresses(data: st.DataObject) -> None:
    shape = tuple(data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=5)))
    red = data.draw(st.sets(st.integers(0, len(shape) - 1)))
    order = data.draw(st.permutations(range(len(shape))))
    turned = contiguous(tuple(shape[a] for a in order))
    transposed = tuple(turned[order.index(a)] for a in range(len(shape)))
    repeated = tuple(0 if data.draw(st.booleans()) else s for s in contiguous(shape))
    strides = [contiguous(shape), *data.draw(st.lists(st.sampled_from((transposed, repeated))))]
    axes = merge_axes(shape, sorted(red), strides)
    for s in strides:
        merged = addresses(axes.extents, [s[a] for a in axes.last])
        np.testing.assert_array_equal(merged.reshape(-1), addresses(shape, s).reshape(-1))
    kept = math.prod(d for a, d in enumerate(shape) if a not in red)
    assert math.prod(axes.extents[j] for j in axes.par) == kept
    assert sorted((*axes.par, *axes.red)) == list(range(len(axes.extents)))


@pytest.mark.parametrize(
    ("red", "strides", "extents"),
    [
        ((), [(12, 4, 1)], [24]),
        ((2,), [(12, 4, 1)], [6, 4]),
        ((), [(12, 4, 1), (0, 4, 1)], [2, 12]),
        ((), [(12, 4, 1), (1, 2, 6)], [2, 3, 4]),
        ((0, 1, 2), [(12, 4, 1)], [24]),
    ],
)
def test_axes_merge_wherever_every_access_allows(
    red: tuple[int, ...], strides: list[tuple[int, ...]], extents: list[int]
) -> None:
    assert merge_axes((2, 3, 4), red, strides).extents == extents
