"""Gradients where rules alone go wrong: guarded branches, kinks, zeros; and what they build."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from operator_checks import DEVICES

import graphc as gx
from graphc.ops import activation, logic, math, statistics

Array = np.ndarray[Any, Any]
Function = Callable[[gx.Tensor], gx.Tensor]


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


def derivatives(
    function: Function, x: Array, device: str = "reference", shape: Any = "static"
) -> list[Array]:
    """The value, and the gradients of first and second order of its sum."""
    graph = gx.Graph()
    with graph.as_default():
        t = gx.placeholder(x.dtype, x.shape if shape == "static" else shape)
        y = function(t)
        (first,) = gx.gradients(y, t, unconnected_gradients="zero")
        (second,) = gx.gradients(first, t, unconnected_gradients="zero")
        with gx.Session(graph, device=device) as session:
            values: list[Array] = session.run([y, first, second], {t: x})
    return values


def at(*values: float) -> Array:
    return np.array(values, np.float64)


# ---- guarded idioms: where(safe, f(x), x) -------------------------------------------------------

IDIOMS: dict[str, tuple[Function, Function, Array, Array]] = {
    # the guard, the function, points outside its domain and points inside
    "sqrt": (lambda x: gx.greater(x, 0), math.sqrt, at(0, -1), at(0.25, 4)),
    "log": (lambda x: gx.greater(x, 0), math.log, at(0, -1), at(0.5, 4)),
    "reciprocal": (lambda x: gx.not_equal(x, 0), lambda x: gx.divide(1, x), at(0, -0.0), at(2, -3)),
    "power": (lambda x: gx.greater(x, 0), lambda x: math.power(x, 0.5), at(0, -1), at(0.25, 4)),
    "exp_exp": (lambda x: gx.less(x, 5), lambda x: math.exp(math.exp(x)), at(100, 1e4), at(0, 1)),
    "ratio": (
        lambda x: gx.not_equal(x, 0),
        lambda x: gx.divide(gx.subtract(gx.multiply(x, x), 1), x),
        at(0, -0.0),
        at(2, -3),
    ),
    "typed_power": (
        lambda x: gx.greater(x, 0),
        lambda x: math.power(x, gx.constant(np.float64(0.5))),
        at(0, -1),
        at(0.25, 4),
    ),
    "reused": (
        lambda x: gx.greater(x, 0),
        lambda x: gx.multiply(math.log(x), gx.add(math.log(x), math.sqrt(x))),
        at(0, -1),
        at(0.5, 4),
    ),
}


@pytest.mark.parametrize("shape", ["static", (None,), None], ids=["static", "symbolic", "unranked"])
@pytest.mark.parametrize("name", list(IDIOMS))
def test_guarded_idioms_have_finite_gradients(name: str, shape: Any, device: str) -> None:
    guard, function, outside, inside = IDIOMS[name]
    x = np.concatenate([outside, inside])
    _, first, second = derivatives(lambda t: gx.where(guard(t), function(t), t), x, device, shape)
    _, wanted_first, wanted_second = derivatives(function, inside)
    np.testing.assert_allclose(first, np.concatenate([[1, 1], wanted_first]), 1e-10)
    np.testing.assert_allclose(second, np.concatenate([[0, 0], wanted_second]), 1e-10)


@pytest.mark.parametrize("name", list(IDIOMS))
def test_guards_hold_through_broadcasting_of_the_branch(name: str, device: str) -> None:
    guard, function, outside, inside = IDIOMS[name]
    x = np.concatenate([outside, inside])
    weights = np.arange(1.0, 13.0).reshape(3, 4)

    def guarded(t: gx.Tensor) -> gx.Tensor:
        wide = gx.multiply(function(t), gx.constant(weights))  # [4] in [3, 4]
        return gx.where(guard(t), wide, 0.0)

    _, first, second = derivatives(guarded, x, device)
    _, wanted_first, wanted_second = derivatives(function, inside)
    total = weights.sum(0)[2:]
    np.testing.assert_allclose(first, np.concatenate([[0, 0], wanted_first * total]), 1e-10)
    np.testing.assert_allclose(second, np.concatenate([[0, 0], wanted_second * total]), 1e-10)


@pytest.mark.parametrize("name", list(IDIOMS))
def test_guards_wider_than_the_branch(name: str, device: str) -> None:
    _, function, outside, inside = IDIOMS[name]
    x = np.concatenate([outside, inside])
    rows = np.array([[False, False, True, True], [False, False, False, True]])

    def guarded(t: gx.Tensor) -> gx.Tensor:
        # the branch is a graph of its own, so that its cotangent is summed before a rule sees it
        return gx.where(gx.constant(rows), function(gx.multiply(t, 1.0)), 7.0)

    _, first, second = derivatives(guarded, x, device)
    _, wanted_first, wanted_second = derivatives(function, inside)
    count = rows.sum(0)[2:]
    np.testing.assert_allclose(first, np.concatenate([[0, 0], wanted_first * count]), 1e-10)
    np.testing.assert_allclose(second, np.concatenate([[0, 0], wanted_second * count]), 1e-10)


def test_guards_hold_through_views(device: str) -> None:
    def guarded(t: gx.Tensor) -> gx.Tensor:
        rooted = gx.transpose(gx.reshape(math.sqrt(t), (3, 2)))
        flat = gx.reshape(gx.broadcast_to(gx.reshape(rooted, (1, 6)), (2, 6)), (2, 6))
        keep = gx.transpose(gx.reshape(gx.greater(t, 0), (3, 2)))
        return gx.where(gx.reshape(keep, (6,)), flat, 0.0)

    x = at(0, 1, -1, 4, 0, 9)
    _, first, second = derivatives(guarded, x, device)
    inside = x > 0
    np.testing.assert_allclose(first[inside], 2 * 0.5 / np.sqrt(x[inside]))
    np.testing.assert_allclose(second[inside], -2 * 0.25 * x[inside] ** -1.5)
    assert not first[~inside].any() and not second[~inside].any()


def test_guards_hold_through_reductions(device: str) -> None:
    def guarded(t: gx.Tensor) -> gx.Tensor:
        rows = gx.sum(math.sqrt(t), axis=1)
        return gx.where(gx.greater(gx.sum(t, axis=1), 0), rows, 0.0)

    _, first, second = derivatives(guarded, np.array([[0.0, 0.0], [1.0, 4.0]]), device)
    np.testing.assert_allclose(first, [[0, 0], [0.5, 0.25]])
    np.testing.assert_allclose(second, [[0, 0], [-0.25, -0.25 / 8]])


def test_nested_guards(device: str) -> None:
    def guarded(t: gx.Tensor) -> gx.Tensor:
        inner = gx.where(gx.less(t, 5), math.exp(math.exp(t)), math.log(t))
        return gx.where(gx.greater(t, 0), gx.multiply(inner, math.sqrt(t)), t)

    _, first, second = derivatives(guarded, at(-1, 0, 1e4, 1), device)
    assert np.isfinite(first).all() and np.isfinite(second).all()
    np.testing.assert_allclose(first[:2], 1)


def test_a_graph_without_where_has_no_selects_in_its_gradient() -> None:
    graph = gx.Graph()
    with graph.as_default():
        x = gx.placeholder("f32", (3,))
        gx.gradients(math.tanh(gx.multiply(math.exp(x), x)), x)
    assert not [n for n in graph.nodes if n.op.name == "where"]


def test_an_overriding_rule_sees_the_zeros() -> None:
    def normalized(y: gx.Tensor, g: gx.Tensor, x: gx.Tensor) -> list[gx.Tensor]:
        return [gx.divide(g, gx.sum(g))]

    graph = gx.Graph()
    with graph.as_default():
        x = gx.placeholder("f64", (3,))
        with graph.gradient_override({"exp": normalized}):
            y = math.exp(x)
        (g,) = gx.gradients(gx.where(gx.greater(x, 0), y, 0.0), x)
        with gx.Session(graph, device="reference") as session:
            np.testing.assert_allclose(session.run(g, {x: at(-1, 1, 2)}), [0, 0.5, 0.5])


# ---- kinks and corners -------------------------------------------------------------------------


def test_gradients_at_kinks(device: str) -> None:
    for function, wanted in [
        (activation.relu, 0.0),
        (activation.relu6, 0.0),
        (gx.abs, 0.0),
        (math.sqrt, np.inf),
        (lambda x: math.hypot(x, x), 0.0),
        (statistics.norm, 0.0),
        (lambda x: logic.clip(x, 0.0, 1.0), 1.0),
        (lambda x: math.power(x, 1), 1.0),
        (lambda x: math.power(x, 0), 0.0),
        (lambda x: math.power(x, 1.5), 0.0),
    ]:
        _, first, _ = derivatives(function, at(0.0), device)
        assert first[0] == wanted, function


def test_power_at_corners(device: str) -> None:
    graph = gx.Graph()
    x = at(0, 0, 0, 0, -2, -2, 2, 3)
    p = at(0, 1, 2, 1.5, 2, 3, 0, -1)
    with graph.as_default():
        a, b = gx.placeholder("f64", (8,)), gx.placeholder("f64", (8,))
        y = math.power(a, b)
        fetches = [y, *gx.gradients(y, [a, b])]
        with gx.Session(graph, device=device) as session:
            value, by_base, by_exponent = session.run(fetches, {a: x, b: p})
    np.testing.assert_allclose(value, x**p)
    np.testing.assert_allclose(by_base, [0, 1, 0, 0, -4, 12, 0, -1 / 9])
    logs = [0, 0, 0, 0, 0, 0, np.log(2), np.log(3) / 3]
    np.testing.assert_allclose(by_exponent, logs)


def test_simple_exponents_become_simple_operators() -> None:
    graph = gx.Graph()
    with graph.as_default():
        x = gx.placeholder("f32", (3,))
        assert math.power(x, 2).node.op.name == "square"
        assert math.power(x, 0.5).node.op.name == "sqrt"
        assert math.power(x, -1).node.op.name == "reciprocal"
        assert math.power(x, -0.5).node.op.name == "rsqrt"
        assert math.power(x, 1) is x
        assert math.power(x, 2.5).node.op.name == "power"


def test_integers_to_negative_powers_are_refused(device: str) -> None:
    graph = gx.Graph()
    with graph.as_default():
        x = gx.placeholder("i32", (2,))
        p = gx.placeholder("i32", (2,))
        with pytest.raises(gx.errors.GraphTypeError, match="to the negative power -1"):
            math.power(x, -1)
        y = math.power(x, p)
        with gx.Session(graph, device=device) as session:
            np.testing.assert_array_equal(session.run(y, {x: [2, -3], p: [10, 3]}), [1024, -27])
            with pytest.raises(gx.errors.RunError, match="an integer to the negative power -2"):
                session.run(y, {x: [2, 3], p: [1, -2]})


@pytest.mark.parametrize("zeros", [(), (1,), (0, 3), (0, 1, 4)])
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("exclusive", [False, True])
def test_cumprod_gradient_with_zeros(
    zeros: tuple[int, ...], reverse: bool, exclusive: bool, device: str
) -> None:
    x = at(2, -1, 0.5, 3, 1.5)
    x[list(zeros)] = 0
    weights = at(1, -2, 3, 0.5, 2)

    def function(t: gx.Tensor) -> gx.Tensor:
        made = statistics.cumprod(t, 0, exclusive=exclusive, reverse=reverse)
        return gx.sum(gx.multiply(made, weights))

    _, first, _ = derivatives(function, x, device)
    np.testing.assert_allclose(first, _by_differences(function, x), 1e-6, 1e-8)


def test_cast_passes_gradients_between_floats(device: str) -> None:
    def function(t: gx.Tensor) -> gx.Tensor:
        return gx.multiply(gx.astype(gx.astype(t, "f32"), "f64"), t)

    _, first, second = derivatives(function, at(1, 2, -3), device)
    np.testing.assert_allclose(first, [2, 4, -6])
    np.testing.assert_allclose(second, [2, 2, 2])
    _, none, _ = derivatives(lambda t: gx.astype(gx.astype(t, "i32"), "f64"), at(1, 2), device)
    np.testing.assert_array_equal(none, [0, 0])


# ---- compositions ------------------------------------------------------------------------------


def _by_differences(function: Function, x: Array, step: float = 1e-6) -> Array:
    graph = gx.Graph()
    slopes = np.zeros(x.size)
    with graph.as_default():
        t = gx.placeholder(x.dtype, x.shape)
        loss = gx.sum(function(t))
        with gx.Session(graph, device="reference") as session:
            for i in range(x.size):
                move = np.zeros(x.size)
                move[i] = step
                move = move.reshape(x.shape)
                up, down = (session.run(loss, {t: x + m}) for m in (move, -move))
                slopes[i] = (up - down) / (2 * step)
    return slopes.reshape(x.shape)


WEIGHTS = np.linspace(-1.0, 2.0, 12).reshape(3, 4)

COMPOSED: dict[str, Function] = {
    "softmax": lambda x: gx.multiply(statistics.softmax(x), WEIGHTS),
    "softmax_columns": lambda x: gx.multiply(statistics.softmax(x, axis=0), WEIGHTS),
    "log_softmax": lambda x: gx.multiply(statistics.log_softmax(x), WEIGHTS),
    "logsumexp": lambda x: gx.multiply(statistics.logsumexp(x, axis=1), at(1, 2, 3)),
    "logsumexp_all": lambda x: statistics.logsumexp(gx.multiply(x, WEIGHTS)),
    "var": lambda x: gx.multiply(statistics.var(x, axis=0), at(1, 2, 3, 4)),
    "std": lambda x: gx.multiply(statistics.std(x, axis=1, ddof=1), at(1, 2, 3)),
    "norm": lambda x: gx.multiply(statistics.norm(x, axis=1), at(1, 2, 3)),
    "norm_1": lambda x: gx.multiply(statistics.norm(x, 1, axis=0), at(1, 2, 3, 4)),
    "norm_max": lambda x: statistics.norm(x, np.inf, axis=0),
    "l2_normalize": lambda x: gx.multiply(statistics.l2_normalize(x, axis=1), WEIGHTS),
    "log_sigmoid": lambda x: gx.multiply(activation.log_sigmoid(x), WEIGHTS),
}


@pytest.mark.parametrize("name", list(COMPOSED))
def test_gradients_of_compositions(name: str, device: str) -> None:
    function = COMPOSED[name]
    x = np.random.default_rng(3).uniform(-2, 2, (3, 4))
    _, first, second = derivatives(function, x, device)
    np.testing.assert_allclose(first, _by_differences(function, x), 1e-5, 1e-7)

    def slope(t: gx.Tensor) -> gx.Tensor:
        (g,) = gx.gradients(function(t), t)
        return gx.sum(g)

    np.testing.assert_allclose(second, _by_differences(slope, x), 1e-5, 1e-6)


def test_gradients_stay_finite_at_extremes(device: str) -> None:
    x = np.array([[1e4, -1e4, 0.0], [-1e4, -1e4, -1e4]])
    for function in (
        statistics.softmax,
        statistics.log_softmax,
        statistics.logsumexp,
        activation.sigmoid,
        activation.softplus,
        activation.log_sigmoid,
        activation.silu,
        activation.mish,
        activation.gelu,
        math.tanh,
        math.erf,
    ):
        value, first, second = derivatives(function, x, device)
        for array in (value, first, second):
            assert np.isfinite(array).all(), function


# ---- forward mode and products -----------------------------------------------------------------


def test_jvp_and_hessian_vector_product_agree_with_differences(device: str) -> None:
    x, v = at(0.5, -1.0, 2.0), at(1.0, 2.0, -0.5)

    def function(t: gx.Tensor) -> gx.Tensor:
        return gx.sum(gx.multiply(math.tanh(t), math.exp(t)))

    graph = gx.Graph()
    with graph.as_default():
        t = gx.placeholder("f64", (3,))
        y = gx.multiply(math.sin(t), t)
        (forward,) = gx.jvp(y, [t], [gx.constant(v)])
        (curved,) = gx.hessian_vector_product(function(t), [t], [gx.constant(v)])
        (slope,) = gx.gradients(function(t), t)
        with gx.Session(graph, device=device) as session:
            moved, product = session.run([forward, curved], {t: x})
            up, down = (session.run(slope, {t: x + s * 1e-6 * v}) for s in (1, -1))
    np.testing.assert_allclose(moved, (np.cos(x) * x + np.sin(x)) * v)
    np.testing.assert_allclose(product, (up - down) / 2e-6, 1e-6)
