"""Optimizers against NumPy loops of their formulas; clipping; schedules; the global step."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import graphc as gx
from graphc import train
from graphc.errors import GradientError, GraphError, GraphTypeError
from graphc.graph import Graph, GraphKeys

DEVICES = ("reference", "cpu")
STEPS = 6
RATE = 0.1


@pytest.fixture(autouse=True)
def graph() -> Iterator[Graph]:
    with Graph(seed=1).as_default() as made:
        yield made


def _problem(dtype: str = "f8") -> tuple[Any, Any, np.ndarray[Any, Any]]:
    """A variable, a loss with a changing gradient, and the variable's start."""
    start = np.array([[1.0, -2.0, 0.5], [3.0, 0.25, -1.5]], dtype)
    v = gx.Variable(start, name="v")
    loss = gx.sum(v * v * v * v) * 0.25 + gx.sum(v)
    return v, loss, start


def _gradient(v: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return v**3 + 1


Rule = Callable[[np.ndarray[Any, Any], np.ndarray[Any, Any], dict[str, Any]], Any]


def _sgd(v: Any, g: Any, s: dict[str, Any]) -> Any:
    return v - RATE * g


def _momentum(v: Any, g: Any, s: dict[str, Any]) -> Any:
    s["a"] = 0.9 * s.get("a", 0) + g
    return v - RATE * s["a"]


def _nesterov(v: Any, g: Any, s: dict[str, Any]) -> Any:
    s["a"] = 0.9 * s.get("a", 0) + g
    return v - RATE * (g + 0.9 * s["a"])


def _adagrad(v: Any, g: Any, s: dict[str, Any]) -> Any:
    s["a"] = s.get("a", 0.1) + g * g
    return v - RATE * g / np.sqrt(s["a"])


def _adadelta(v: Any, g: Any, s: dict[str, Any]) -> Any:
    s["a"] = 0.95 * s.get("a", 0) + 0.05 * g * g
    d = g * np.sqrt(s.get("b", 0) + 1e-8) / np.sqrt(s["a"] + 1e-8)
    s["b"] = 0.95 * s.get("b", 0) + 0.05 * d * d
    return v - RATE * d


def _rmsprop(v: Any, g: Any, s: dict[str, Any]) -> Any:
    s["s"] = 0.9 * s.get("s", 1.0) + 0.1 * g * g
    return v - RATE * g / np.sqrt(s["s"] + 1e-10)


def _rmsprop_centered(v: Any, g: Any, s: dict[str, Any]) -> Any:
    s["s"] = 0.9 * s.get("s", 1.0) + 0.1 * g * g
    s["g"] = 0.9 * s.get("g", 0.0) + 0.1 * g
    s["m"] = 0.8 * s.get("m", 0.0) + RATE * g / np.sqrt(s["s"] - s["g"] ** 2 + 1e-10)
    return v - s["m"]


def _adam(v: Any, g: Any, s: dict[str, Any]) -> Any:
    s["t"] = s.get("t", 0) + 1
    s["m"] = 0.9 * s.get("m", 0) + 0.1 * g
    s["v"] = 0.999 * s.get("v", 0) + 0.001 * g * g
    rate = RATE * math.sqrt(1 - 0.999 ** s["t"]) / (1 - 0.9 ** s["t"])
    return v - rate * s["m"] / (np.sqrt(s["v"]) + 1e-8)


CASES: dict[str, tuple[Callable[[Any], train.Optimizer], Rule, float]] = {
    "sgd": (train.SGD, _sgd, 1e-12),
    "momentum": (train.Momentum, _momentum, 1e-12),
    "nesterov": (lambda r: train.Momentum(r, nesterov=True), _nesterov, 1e-12),
    "adagrad": (train.AdaGrad, _adagrad, 1e-12),
    "adadelta": (train.AdaDelta, _adadelta, 1e-12),
    "rmsprop": (train.RMSProp, _rmsprop, 1e-12),
    "rmsprop_centered": (
        lambda r: train.RMSProp(r, momentum=0.8, centered=True),
        _rmsprop_centered,
        1e-12,
    ),
    "adam": (train.Adam, _adam, 1e-12),
}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("case", CASES)
def test_optimizer_follows_its_formula(case: str, device: str) -> None:
    make, rule, tolerance = CASES[case]
    v, loss, expected = _problem()
    step = make(RATE).minimize(loss)
    state: dict[str, Any] = {}
    with gx.Session(device=device) as session:
        session.run(gx.global_variables_initializer())
        for _ in range(STEPS):
            session.run(step)
            expected = rule(expected, _gradient(expected), state)
            np.testing.assert_allclose(session.run(v), expected, rtol=tolerance)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("case", CASES)
def test_optimizer_lowers_a_loss_in_float32(case: str, device: str) -> None:
    v, loss, _ = _problem("f4")
    step = CASES[case][0](0.01).minimize(loss)
    with gx.Session(device=device) as session:
        session.run(gx.global_variables_initializer())
        first = session.run(loss)
        for _ in range(10):
            session.run(step)
        assert session.run(loss) < first
        assert session.run(v).dtype == np.float32


def test_slots_are_named_after_the_variable_and_not_trainable() -> None:
    v, loss, _ = _problem()
    optimizer = train.Adam(RATE)
    optimizer.minimize(loss)
    slot = optimizer.get_slot(v, "Adam")
    assert slot is not None
    assert slot.node.name == "v/Adam"
    assert optimizer.get_slot(v, "Momentum") is None
    assert optimizer.get_slot_names() == ["Adam", "Adam_1"]
    assert [t.node.name for t in gx.trainable_variables()] == ["v"]
    assert len(optimizer.variables()) == 4


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("rate", [RATE, "tensor"])
def test_lr_mult_scales_and_zero_freezes(rate: Any, device: str) -> None:
    start = np.ones(3, np.float32)
    frozen = gx.Variable(start, name="frozen", lr_mult=0)
    slow = gx.Variable(start, name="slow", lr_mult=0.5)
    plain = gx.Variable(start, name="plain")
    loss = gx.sum(frozen * frozen) + gx.sum(slow * slow) + gx.sum(plain * plain)
    optimizer = train.Momentum(gx.constant(RATE) if rate == "tensor" else rate)
    pairs = optimizer.compute_gradients(loss)
    assert [g is None for g, _ in pairs] == [True, False, False]
    step = optimizer.apply_gradients(pairs)
    assert optimizer.get_slot(frozen, "Momentum") is None
    with gx.Session(device=device) as session:
        session.run(gx.global_variables_initializer())
        session.run(step)
        values = session.run([frozen, slow, plain])
    np.testing.assert_array_equal(values[0], start)
    np.testing.assert_allclose(values[1], 1 - 0.5 * RATE * 2, rtol=1e-6)
    np.testing.assert_allclose(values[2], 1 - RATE * 2, rtol=1e-6)


@pytest.mark.parametrize("device", DEVICES)
def test_a_rate_that_is_a_function_of_the_step(device: str) -> None:
    v, loss, expected = _problem()
    step = train.get_or_create_global_step()
    optimizer = train.SGD(lambda s: train.exponential_decay(RATE, s, 1, 0.5))
    update = optimizer.minimize(loss, step)
    with gx.Session(device=device) as session:
        session.run(gx.global_variables_initializer())
        for i in range(3):
            assert session.run(step) == i
            session.run(update)
            expected = expected - RATE * 0.5**i * _gradient(expected)
            np.testing.assert_allclose(session.run(v), expected, rtol=1e-6)
        assert session.run(step) == 3


def test_a_rate_function_without_a_step_is_an_error() -> None:
    _, loss, _ = _problem()
    with pytest.raises(GraphTypeError, match="global step"):
        train.SGD(lambda s: s).minimize(loss)


def test_one_global_step_per_graph() -> None:
    assert train.get_global_step() is None
    step = train.get_or_create_global_step()
    assert train.get_or_create_global_step() is step
    assert gx.trainable_variables() == []
    with pytest.raises(GraphError, match="already"):
        train.create_global_step()


def test_a_loss_without_variables_is_an_error() -> None:
    gx.Variable(np.ones(2), name="unused")
    with pytest.raises(GradientError, match="no variable has a gradient"):
        train.SGD(0.1).minimize(gx.sum(gx.constant([1.0, 2.0])))
    with pytest.raises(GraphTypeError, match="not a learning rate"):
        train.SGD("fast")  # type: ignore[arg-type]


@pytest.mark.parametrize("device", DEVICES)
def test_update_ops_run_only_when_asked(graph: Graph, device: str) -> None:
    v, loss, _ = _problem()
    count = gx.Variable(np.zeros((), np.float32), name="count", trainable=False)
    graph.add_to_collection(GraphKeys.UPDATE_OPS, count.assign_add(1.0).node)
    alone = train.SGD(0.01).minimize(loss)
    with graph.control_dependencies(graph.get_collection(GraphKeys.UPDATE_OPS)):
        both = train.Momentum(0.01).minimize(loss)
    with gx.Session(device=device) as session:
        session.run(gx.global_variables_initializer())
        assert session.run(count) == 0  # initializing the slots did not run the update
        session.run(alone)
        assert session.run(count) == 0
        session.run(both)
        assert session.run(count) == 1
        assert session.run(v).shape == (2, 3)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("counted", [False, True])
def test_moving_average(counted: bool, device: str) -> None:
    v = gx.Variable(np.array([1.0, 2.0]), name="v")
    n = gx.placeholder("i64", (), name="n")
    averages = train.ExponentialMovingAverage(0.9, n if counted else None)
    update = averages.apply()
    shadow = averages.average(v)
    assert shadow is not None
    assert shadow.node.name == "v/ExponentialMovingAverage"
    assert [t.node.name for t in gx.trainable_variables()] == ["v"]
    assert averages.average(gx.constant(1.0)) is None
    with pytest.raises(GraphTypeError, match="averaged already"):
        averages.apply([v])
    grow = v.assign_add(1.0)
    expected, value = np.array([1.0, 2.0]), np.array([1.0, 2.0])
    with gx.Session(device=device) as session:
        session.run(gx.global_variables_initializer())
        for i in range(4):
            session.run(grow)
            value = value + 1
            session.run(update, {n: i} if counted else {})
            decay = min(0.9, (1 + i) / (10 + i)) if counted else 0.9
            expected = expected - (1 - decay) * (expected - value)
            np.testing.assert_allclose(session.run(shadow), expected, rtol=1e-6)


def test_one_optimizer_serves_several_graphs() -> None:
    optimizer = train.Adam(RATE)
    for _ in range(2):
        with Graph().as_default():
            v, loss, start = _problem()
            step = optimizer.minimize(loss)
            with gx.Session() as session:
                session.run(gx.global_variables_initializer())
                session.run(step)
                assert (session.run(v) != start).all()


# ---- clipping ----------------------------------------------------------------------------------


@pytest.mark.parametrize("device", DEVICES)
def test_clipping(device: str) -> None:
    a = np.array([3.0, 4.0], np.float32)
    b = np.array([[12.0]], np.float32)
    with gx.Session(device=device) as session:
        x, y = gx.constant(a), gx.constant(b)
        assert session.run(train.global_norm([x, None, y])) == pytest.approx(13)
        (ca, none, cb), norm = train.clip_by_global_norm([x, None, y], 6.5)
        assert none is None
        got_a, got_b, got = session.run([ca, cb, norm])
        np.testing.assert_allclose(got_a, a / 2, rtol=1e-6)
        np.testing.assert_allclose(got_b, b / 2, rtol=1e-6)
        assert got == pytest.approx(13)
        (same,), _ = train.clip_by_global_norm([x], 10.0)
        np.testing.assert_allclose(session.run(same), a, rtol=1e-6)
        np.testing.assert_allclose(session.run(train.clip_by_norm(x, 1.0)), a / 5, rtol=1e-6)
        np.testing.assert_allclose(session.run(train.clip_by_norm(x, 9.0)), a, rtol=1e-6)
        zero = session.run(train.clip_by_norm(gx.constant(a * 0), 1.0))
        np.testing.assert_array_equal(zero, a * 0)
        low = session.run(train.clip_by_value(x, 0.0, 3.5))
        np.testing.assert_array_equal(low, np.array([3, 3.5], np.float32))
        bad = gx.constant(np.array([np.inf, 1], np.float32))
        assert np.isnan(session.run(train.clip_by_global_norm([bad], 1.0)[0][0])).all()


# ---- schedules ---------------------------------------------------------------------------------

STEP_VALUES = (0, 1, 5, 9, 10, 11, 25, 40)


def _polynomial(s: float, cycle: bool) -> float:
    n = 10 * max(1, math.ceil(s / 10)) if cycle else 10
    s = s if cycle else min(s, 10)
    return (1 - 0.1) * (1 - s / n) ** 2 + 0.1


SCHEDULES: dict[str, tuple[Callable[[Any], Any], Callable[[float], float]]] = {
    "exponential": (
        lambda s: train.exponential_decay(0.5, s, 10, 0.9),
        lambda s: 0.5 * 0.9 ** (s / 10),
    ),
    "staircase": (
        lambda s: train.exponential_decay(0.5, s, 10, 0.9, staircase=True),
        lambda s: 0.5 * 0.9 ** (s // 10),
    ),
    "natural": (
        lambda s: train.natural_exp_decay(0.5, s, 10, 0.7),
        lambda s: 0.5 * math.exp(-0.7 * s / 10),
    ),
    "inverse_time": (
        lambda s: train.inverse_time_decay(0.5, s, 10, 0.7),
        lambda s: 0.5 / (1 + 0.7 * s / 10),
    ),
    "polynomial": (
        lambda s: train.polynomial_decay(1.0, s, 10, 0.1, 2.0),
        lambda s: _polynomial(s, False),
    ),
    "polynomial_cycle": (
        lambda s: train.polynomial_decay(1.0, s, 10, 0.1, 2.0, cycle=True),
        lambda s: _polynomial(s, True),
    ),
    "piecewise": (
        lambda s: train.piecewise_constant(s, [5, 10], [1.0, 0.5, 0.25]),
        lambda s: 1.0 if s <= 5 else 0.5 if s <= 10 else 0.25,
    ),
    "step": (lambda s: train.step_decay(0.5, s, 10), lambda s: 0.5 * 0.1 ** (s // 10)),
    "multistep": (
        lambda s: train.multistep_decay(0.5, s, [5, 25], 0.1),
        lambda s: 0.5 * 0.1 ** ((s >= 5) + (s >= 25)),
    ),
    "inv": (
        lambda s: train.inverse_decay(0.01, s, 1e-2, 0.75),
        lambda s: 0.01 * (1 + 1e-2 * s) ** -0.75,
    ),
    "sigmoid": (
        lambda s: train.sigmoid_decay(0.5, s, -0.2, 10),
        lambda s: 0.5 / (1 + math.exp(0.2 * (s - 10))),
    ),
    "cosine": (
        lambda s: train.cosine_decay(0.5, s, 10, 0.2),
        lambda s: 0.5 * (0.8 * 0.5 * (1 + math.cos(math.pi * min(s, 10) / 10)) + 0.2),
    ),
    "warm_up": (
        lambda s: train.warm_up(train.step_decay(0.5, s, 20), s, 10, 0.1),
        lambda s: 0.1 + (0.5 * 0.1 ** (s // 20) - 0.1) * min(s / 10, 1),
    ),
}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("case", SCHEDULES)
def test_schedule(case: str, device: str) -> None:
    make, expected = SCHEDULES[case]
    step = gx.placeholder("i64", (), name="step")
    rate = make(step)
    with gx.Session(device=device) as session:
        got = [float(session.run(rate, {step: s})) for s in STEP_VALUES]
    np.testing.assert_allclose(got, [expected(s) for s in STEP_VALUES], rtol=2e-5)


def test_piecewise_constant_refuses_what_has_no_meaning() -> None:
    with pytest.raises(GraphTypeError, match="2 values for 2 boundaries"):
        train.piecewise_constant(gx.constant(1), [1, 2], [0.1, 0.2])
    with pytest.raises(GraphTypeError, match="not in order"):
        train.piecewise_constant(gx.constant(1), [2, 1], [0.1, 0.2, 0.3])
