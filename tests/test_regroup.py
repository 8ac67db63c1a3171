"""Groups joined and values computed anew: how many sweeps are left, and that they are right."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import graphc as gx
from graphc import nn
from graphc.compiler import plan_cpu
from graphc.ops.normalized import scaled_deviation, variance
from graphc.passes.resolve_state import resolve_state
from graphc.passes.specialise import bind_ranks, specialise, substitution

DEVICES = ("reference", "cpu")
Array = np.ndarray[Any, Any]


def labels(fetches: list[gx.Tensor], feeds: list[gx.Tensor]) -> list[str]:
    """The steps of the plan of some fetches."""
    program = resolve_state(fetches, (), feeds)
    bound = bind_ranks(program, [len(t.dims) for t in program.inputs])
    plan, _ = plan_cpu(specialise(bound, substitution([], ())))
    return [step.label for step in plan.steps]


def normalized(x: gx.Tensor) -> gx.Tensor:
    channels = x.dims[-1:]
    mean, spread = (gx.Variable(np.ones(channels), trainable=False) for _ in range(2))
    scale = gx.constant(np.arange(1.0, 1 + channels[0]).astype(x.dtype.numpy))
    y: gx.Tensor = nn.batch_norm(x, scale, None, mean, spread, True).output
    return y


def test_the_gradient_of_batch_normalization_takes_two_sweeps() -> None:
    x, g = (gx.placeholder("f32", (None, 64, 64, 8)) for _ in range(2))
    y = normalized(x)
    (dx,) = gx.gradients(y, x, grad_ys=g)
    chunked = [s for s in labels([dx], [x, g]) if not s.endswith("combined")]
    # the mean, the variance, both sums of the gradient, and the gradient itself
    assert len(chunked) == 4
    assert sum(s.endswith("by chunks") for s in chunked) == 3


def test_sums_of_an_array_and_of_its_products_share_a_sweep() -> None:
    x, w = (gx.placeholder("f32", (300, 512, 8)) for _ in range(2))
    product = x * w
    fetches = [gx.sum(x, axis=(0, 1)), gx.sum(product, axis=(0, 1)), gx.max(w, axis=(0, 1))]
    assert len(labels(fetches, [x, w])) == 2  # one by chunks, and the chunks combined
    after = gx.sum(w * fetches[1], axis=(0, 1))  # needs a sum first: a sweep of its own
    assert len(labels([*fetches, after], [x, w])) == 4


def test_softmax_cross_entropy_and_its_gradient_are_one_sweep() -> None:
    x = gx.placeholder("f32", (None, 300), name="x")
    y = gx.placeholder("i64", x.dims[:1], name="y")
    loss = gx.mean(nn.sparse_softmax_cross_entropy_with_logits(y, x))
    (dx,) = gx.gradients(loss, [x])
    large = [s for s in labels([loss, dx], [x, y]) if "exp" in s or "where" in s]
    assert len(large) == 1
    rng = np.random.default_rng(2)
    feeds = {x: rng.normal(0, 3, (37, 300)).astype("f4"), y: rng.integers(0, 300, 37)}
    with gx.Session() as session, gx.Session(device="reference") as reference:
        got = session.run([loss, dx], feeds)
        for a, b in zip(got, reference.run([loss, dx], feeds), strict=True):
            np.testing.assert_allclose(a, b, 1e-5, 1e-7)


def test_a_group_joins_what_reads_it_only_where_nothing_between_needs_it() -> None:
    """The cumulative sum needs the exponentials, and the last sweep needs both."""
    x = gx.placeholder("f32", (None, 48), name="x")
    e = gx.exp(x - gx.max(x, axis=1, keepdims=True))
    share = e / gx.sum(e, axis=1, keepdims=True)
    running = gx.cumsum(share, axis=1)
    shifted = share * running + gx.sum(share * running, axis=1, keepdims=True)
    assert len(labels([shifted], [x])) == 3
    value = np.random.default_rng(4).normal(size=(9, 48)).astype("f4")
    with gx.Session() as session, gx.Session(device="reference") as reference:
        got, want = session.run(shifted, {x: value}), reference.run(shifted, {x: value})
    np.testing.assert_allclose(got, want, 1e-5, 1e-6)


def test_a_cheap_value_of_what_is_stored_anyway_is_not_stored() -> None:
    x = gx.placeholder("f32", (None, 32))
    top = gx.cumsum(x, axis=1)
    centred = top - 0.5
    rows = gx.cumsum(gx.exp(centred), axis=0)
    fetches = [rows, gx.sum(gx.tanh(centred) * rows, axis=1)]
    values = np.random.default_rng(0).standard_normal((7, 32)).astype("f4")
    with gx.Session() as session:
        got = session.run(fetches, {x: values})
    moved = values.cumsum(1) - np.float32(0.5)
    expected = np.exp(moved).cumsum(0)
    np.testing.assert_allclose(got[0], expected, rtol=1e-5)
    np.testing.assert_allclose(got[1], (np.tanh(moved) * expected).sum(1), rtol=1e-4, atol=1e-3)


# ---- the operators of normalizations -----------------------------------------------------------


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("axes", [(0, 2), (1,), (0, 1, 2)], ids=str)
def test_variance_and_scaled_deviation(axes: tuple[int, ...], device: str) -> None:
    rng = np.random.default_rng(1)
    values, weights = rng.standard_normal((2, 4, 3, 5))
    kept = tuple(d for a, d in enumerate(values.shape) if a not in axes)
    centre, factor = rng.standard_normal((2, *kept))
    x, c, f = gx.placeholder("f64", (None, 3, 5)), gx.constant(centre), gx.constant(factor)
    spread = variance(x, axes)
    y = scaled_deviation(x, c, f, axes)
    fetches = [spread, y, *gx.gradients(y, [x, c, f], grad_ys=gx.constant(weights))]
    with gx.Session(device=device) as session:
        got = session.run(fetches, {x: values})
    deviation = values - np.expand_dims(centre, axes)
    wide = np.expand_dims(factor, axes)
    expected = [
        values.var(axes),
        deviation * wide,
        weights * wide,
        -(weights * wide).sum(axes),
        (weights * deviation).sum(axes),
    ]
    for a, b in zip(got, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("device", DEVICES)
def test_batch_normalization_has_gradients_of_order_one_and_two(device: str) -> None:
    rng = np.random.default_rng(2)
    values, weights = rng.standard_normal((2, 6, 4, 3))
    x, w = gx.placeholder("f64", (None, 4, 3)), gx.constant(weights)
    loss = gx.sum(gx.square(normalized(x)) * w)
    (first,) = gx.gradients(loss, x)
    (second,) = gx.gradients(gx.sum(first * gx.constant(weights[::-1].copy())), x)
    direction = rng.standard_normal(values.shape)
    with gx.Session(device=device) as session:
        session.run(gx.global_variables_initializer())

        def at(move: float, *fetches: gx.Tensor) -> list[Array]:
            found: list[Array] = session.run(list(fetches), {x: values + move * direction})
            return found

        slopes = at(0, first, second)
        ahead, behind = at(1e-5, loss, first), at(-1e-5, loss, first)
    rise = (ahead[0] - behind[0]) / 2e-5
    np.testing.assert_allclose((slopes[0] * direction).sum(), rise, rtol=1e-6)
    bend = ((ahead[1] - behind[1]) * weights[::-1]).sum() / 2e-5
    np.testing.assert_allclose((slopes[1] * direction).sum(), bend, rtol=1e-6)
