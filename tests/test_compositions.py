"""Compositions judged by plain NumPy: positions known at run time, activations, images."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import graphc as gx
from graphc import nn
from graphc.errors import IndexOutOfRangeError

DEVICES = ("reference", "cpu")


def run(fetches: Any, device: str, feeds: Any = None) -> Any:
    with gx.Session(device=device) as session:
        return session.run(fetches, feeds)


# ---- positions known at run time ---------------------------------------------------------------


@pytest.mark.parametrize("device", DEVICES)
def test_slice_at_a_position_fed_at_run_time(device: str) -> None:
    values = np.arange(20.0, dtype="f4").reshape(4, 5)
    x, begin = gx.placeholder("f32", (None, None)), gx.placeholder("i64", (2,))
    y = gx.slice(x, begin, [2, 3])
    slope = gx.gradients(gx.sum(y), x)[0]
    got, found = run([y, slope], device, {x: values, begin: np.array([1, 2])})
    np.testing.assert_array_equal(got, values[1:3, 2:5])
    assert found.sum() == 6
    assert found[1:3, 2:5].all()
    with pytest.raises(IndexOutOfRangeError):
        run(y, device, {x: values, begin: np.array([3, 2])})
    fixed = run(gx.slice(x, [1, 2], [-1, 2]), device, {x: values})
    np.testing.assert_array_equal(fixed, values[1:, 2:4])


@pytest.mark.parametrize("device", DEVICES)
def test_gather_nd_and_scatter_nd(device: str) -> None:
    values = np.arange(12.0, dtype="f4").reshape(3, 4)
    where = np.array([[0, 1], [2, 3], [0, 1]])
    x, index = gx.placeholder("f32", (None, None)), gx.placeholder("i64", (None, 2))
    y = gx.gather_nd(x, index)
    rows = gx.gather_nd(x, gx.constant([[2], [0]]))
    back = gx.scatter_nd(index, y, (3, 4))
    slope = gx.gradients(y, x)[0]
    got = run([y, rows, back, slope], device, {x: values, index: where})
    wanted, counts = np.zeros((3, 4)), np.zeros((3, 4))
    np.add.at(wanted, tuple(where.T), values[tuple(where.T)])
    np.add.at(counts, tuple(where.T), 1)
    np.testing.assert_array_equal(got[0], values[tuple(where.T)])
    np.testing.assert_array_equal(got[1], values[[2, 0]])
    np.testing.assert_array_equal(got[2], wanted)
    np.testing.assert_array_equal(got[3], counts)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("axis", [0, 1, -1])
def test_put_along_axis(axis: int, device: str) -> None:
    values = np.arange(6.0, dtype="f4").reshape(2, 3)
    index = np.array([[1, 0, 1]]) if axis == 0 else np.array([[2, 0], [1, -1]])
    put = np.full(index.shape, 9, "f4")
    x, at = gx.placeholder("f32", (None, None)), gx.placeholder("i64", (None, None))
    given = gx.placeholder("f32", (None, None))
    replaced = gx.put_along_axis(x, at, given, axis)
    added = gx.put_along_axis(x, at, given, axis, "add")
    slopes = gx.gradients(gx.sum(replaced), [x, given])
    feeds = {x: values, at: index, given: put}
    got, total, found = run([replaced, added, slopes], device, feeds)
    wanted, untouched = values.copy(), np.ones_like(values)
    np.put_along_axis(wanted, index, put, axis)
    np.put_along_axis(untouched, index, np.zeros_like(put), axis)
    np.testing.assert_array_equal(got, wanted)
    np.testing.assert_array_equal(total, values + 9 * (1 - untouched))
    np.testing.assert_array_equal(found[0], untouched)
    np.testing.assert_array_equal(found[1], np.ones_like(put))


# ---- activations -------------------------------------------------------------------------------


@pytest.mark.parametrize("device", DEVICES)
def test_composed_activations(device: str) -> None:
    values = np.array([-3.0, -0.5, 0.0, 0.25, 0.5, 2.0])
    x = gx.placeholder("f64", (None,))
    slope = gx.placeholder("f64", ())
    fetches = [
        nn.celu(x, 2.0),
        nn.prelu(x, slope),
        nn.crelu(x),
        nn.hard_tanh(x),
        nn.hard_shrink(x),
        nn.soft_shrink(x),
        nn.glu(gx.reshape(x, (3, 2))),
    ]
    got = run(fetches, device, {x: values, slope: np.array(0.1)})
    halves = values.reshape(3, 2)
    wanted = [
        np.where(values > 0, values, 2 * np.expm1(values / 2)),
        np.where(values > 0, values, 0.1 * values),
        np.maximum(np.concatenate([values, -values]), 0),
        np.clip(values, -1, 1),
        np.where(np.abs(values) > 0.5, values, 0),
        np.sign(values) * np.maximum(np.abs(values) - 0.5, 0),
        halves[:, :1] / (1 + np.exp(-halves[:, 1:])),
    ]
    for ours, theirs in zip(got, wanted, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-12)


# ---- images ------------------------------------------------------------------------------------


def cells(size: int, count: int) -> list[slice]:
    return [slice(i * size // count, -(-(i + 1) * size // count)) for i in range(count)]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("known", [True, False], ids=["known", "unknown"])
@pytest.mark.parametrize("counts", [(3, 2), (7, 5), (1, None), (4, 6)])
def test_adaptive_pools(counts: tuple[int, int | None], known: bool, device: str) -> None:
    values = np.random.default_rng(0).permutation(np.arange(140.0)).reshape(2, 7, 5, 2)
    x = gx.placeholder("f64", values.shape if known else (None,) * 4)
    mean = nn.adaptive_avg_pool(x, counts)
    largest = nn.adaptive_max_pool(gx.transpose(x, (0, 3, 1, 2)), counts, "NCHW")
    fetches = [mean, largest, gx.gradients(mean, x)[0], gx.gradients(largest, x)[0]]
    got = run(fetches, device, {x: values})
    rows, columns = cells(7, counts[0]), cells(5, counts[1] or 5)
    blocks = [[values[:, r, c] for c in columns] for r in rows]
    means = np.stack([np.stack([b.mean((1, 2)) for b in row], 1) for row in blocks], 1)
    tops = np.stack([np.stack([b.max((1, 2)) for b in row], -1) for row in blocks], -2)
    np.testing.assert_allclose(got[0], means, rtol=1e-12)
    np.testing.assert_array_equal(got[1], tops)
    for slope in got[2:]:
        np.testing.assert_allclose(slope.sum(), means.size, rtol=1e-12)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("channels", [1, 6, 37])
@pytest.mark.parametrize("beta", [0.5, 0.75, 0.6])
def test_local_response_normalization(beta: float, channels: int, device: str) -> None:
    values = np.random.default_rng(0).standard_normal((2, 3, 1, channels))
    x = gx.placeholder("f64", (None, None, None, channels))
    y = nn.local_response_normalization(x, 2, 1.5, 0.3, beta)
    got, slope = run([y, gx.gradients(y, x)[0]], device, {x: values})

    def expected(values: Any) -> Any:
        padded = np.pad(values**2, ((0, 0), (0, 0), (0, 0), (2, 2)))
        total = sum(padded[..., i : i + channels] for i in range(5))
        return values / (1.5 + 0.3 * total) ** beta

    np.testing.assert_allclose(got, expected(values), rtol=1e-12)
    for c in range(0, channels, 5):
        step = 1e-5 * (np.arange(channels) == c)
        rise = (expected(values + step) - expected(values - step)).sum(-1) / 2e-5
        np.testing.assert_allclose(slope[..., c], rise, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("known", [True, False], ids=["known", "unknown"])
def test_depth_to_space_and_back(known: bool, device: str) -> None:
    values = np.arange(48.0, dtype="f4").reshape(1, 2, 2, 12)
    x = gx.placeholder("f32", values.shape if known else (None,) * 4)
    y = nn.depth_to_space(x, 2)
    first = gx.transpose(x, (0, 3, 1, 2))
    other = gx.transpose(nn.depth_to_space(first, 2, "NCHW"), (0, 2, 3, 1))
    got = run([y, nn.space_to_depth(y, 2), other], device, {x: values})
    assert got[0].shape == (1, 4, 4, 3)
    np.testing.assert_array_equal(got[0][0, :2, :2].reshape(-1), values[0, 0, 0])
    np.testing.assert_array_equal(got[1], values)
    np.testing.assert_array_equal(got[2], got[0])
