"""Parts of a concatenation that one group computes are stored in their places."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from test_regroup import labels

import graphc as gx
from graphc import nn

Array = np.ndarray[Any, Any]


def same(fetches: list[gx.Tensor], feeds: dict[gx.Tensor, Array]) -> list[Array]:
    """The values of native code, which are the reference's."""
    with gx.Session() as session, gx.Session(device="reference") as reference:
        got, want = session.run(fetches, feeds), reference.run(fetches, feeds)
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a, b, 1e-5, 1e-6)
    return got


def joins(fetches: list[gx.Tensor], feeds: list[gx.Tensor]) -> int:
    """How many steps copy parts."""
    return sum("concat" in label for label in labels(fetches, feeds))


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("rows", [3, None])
def test_maps_are_stored_side_by_side(axis: int, rows: int | None) -> None:
    x = gx.placeholder("f32", (rows, 5, 37), name="x")
    w = gx.constant(np.random.default_rng(0).normal(size=(5 * 37, 8)).astype("f4"))
    doubled = x * 2.0
    joined = gx.concat([doubled, gx.exp(doubled), doubled - 1.0], axis=axis)
    y = gx.reshape(joined, (-1, 5 * 37)) @ w
    assert joins([y], [x]) == 0
    value = np.random.default_rng(1).normal(size=(3, 5, 37)).astype("f4")
    same([y], {x: value})


def test_rows_with_sums_are_stored_side_by_side() -> None:
    x = gx.placeholder("f32", (None, 70), name="x")
    w = gx.constant(np.random.default_rng(0).normal(size=(140, 3)).astype("f4"))
    e = gx.exp(x - gx.max(x, axis=1, keepdims=True))
    share = e / gx.sum(e, axis=1, keepdims=True)
    y = gx.concat([share, share * x], axis=1) @ w
    assert joins([y], [x]) == 0
    same([y], {x: np.random.default_rng(1).normal(size=(9, 70)).astype("f4")})


def test_a_part_may_be_wanted_elsewhere_and_twice() -> None:
    x = gx.placeholder("f32", (None, 16), name="x")
    a, b = nn.sigmoid(x), nn.sigmoid(x) * 3.0
    joined = gx.concat([b, a, a], axis=1)
    total = gx.cumsum(joined, axis=1)
    assert joins([total, a], [x]) == 0
    same([total, a], {x: np.random.default_rng(1).normal(size=(6, 16)).astype("f4")})


def test_parts_of_several_groups_and_results_are_copied() -> None:
    x = gx.placeholder("f32", (None, 16), name="x")
    w = gx.constant(np.random.default_rng(0).normal(size=(16, 16)).astype("f4"))
    mixed = gx.cumsum(gx.concat([gx.exp(x), x @ w], axis=1), axis=1)
    fetched = gx.concat([gx.exp(x), gx.exp(x) + 1.0], axis=0)
    sliced = gx.cumsum(gx.concat([gx.exp(x)[:, :8], gx.exp(x)[:, 4:]], axis=1), axis=1)
    for y in (mixed, fetched, sliced):
        assert joins([y], [x]) == 1
        same([y], {x: np.random.default_rng(1).normal(size=(6, 16)).astype("f4")})


def test_steps_of_recurrence_share_their_kernels() -> None:
    """The gradients of gates go where the product reads them, in every step by one kernel."""
    units, steps = 24, 6
    rng = np.random.default_rng(0)
    x = gx.placeholder("f32", (4, 4 * units), name="x")
    u = gx.Variable(rng.normal(size=(units, 4 * units)).astype("f4") / 8, name="u")
    h = c = gx.zeros((4, units))
    for _ in range(steps):
        i, f, o, g = gx.split(x + h @ u, 4, axis=1)
        c = nn.sigmoid(f) * c + nn.sigmoid(i) * gx.tanh(g)
        h = nn.sigmoid(o) * gx.tanh(c)
    (gradient,) = gx.gradients(gx.sum(h), [u])
    assert joins([gradient], [x]) <= 2  # of the steps: the last, whose gates have fewer terms
    with gx.Session() as session, gx.Session(device="reference") as reference:
        feeds = {x: rng.normal(size=(4, 4 * units)).astype("f4")}
        results = []
        for s in (session, reference):
            s.run(gx.global_variables_initializer())
            results.append(s.run(gradient, feeds))
    np.testing.assert_allclose(*results, 1e-4, 1e-5)
