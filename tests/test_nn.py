"""Losses, normalizations, initializers and layers against NumPy."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import graphc as gx
from graphc import nn
from graphc.errors import GraphTypeError, IndexOutOfRangeError, ShapeError
from graphc.graph import Graph, GraphKeys
from graphc.nn import initializers, layers

DEVICES = ("reference", "cpu")
Array = np.ndarray[Any, Any]


@pytest.fixture(autouse=True)
def graph() -> Iterator[Graph]:
    with Graph(seed=3).as_default() as made:
        yield made


def _draw(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape)


def _probabilities(*shape: int, seed: int = 0) -> Array:
    e = np.exp(_draw(*shape, seed=seed))
    return e / e.sum(-1, keepdims=True)


def _log_softmax(z: Array) -> Array:
    shifted = z - z.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def _normalized(x: Array) -> Array:
    return x / np.sqrt((x * x).sum(-1, keepdims=True))


def _huber(y: Array, p: Array) -> Array:
    d = np.abs(p - y)
    return np.where(d <= 0.5, d * d / 2, 0.5 * (d - 0.25))


def _smooth_l1(y: Array, p: Array) -> Array:
    d = np.abs(p - y)
    return np.where(d <= 0.25, 2 * d * d, d - 0.125)


BINARY = np.array([[0.0, 1, 1], [1, 0, 1]])
X, Y = _draw(2, 3), _draw(2, 3, seed=1)
CLASSES = np.array([2, 0])

Loss = tuple[Callable[..., Any], tuple[Array, ...], Callable[..., Any], int]
# function, operands, the same in NumPy, position of the operand to differentiate by
LOSSES: dict[str, Loss] = {
    "softmax": (
        nn.softmax_cross_entropy_with_logits,
        (_probabilities(2, 3), X),
        lambda p, z: -(p * _log_softmax(z)).sum(-1),
        1,
    ),
    "sparse": (
        nn.sparse_softmax_cross_entropy_with_logits,
        (CLASSES, X),
        lambda c, z: -_log_softmax(z)[np.arange(2), c.astype(int)],
        1,
    ),
    "sigmoid": (
        nn.sigmoid_cross_entropy_with_logits,
        (BINARY, X),
        lambda y, x: -y * np.log(1 / (1 + np.exp(-x))) - (1 - y) * np.log(1 / (1 + np.exp(x))),
        1,
    ),
    "weighted": (
        lambda y, x: nn.weighted_cross_entropy_with_logits(y, x, 3.0),
        (BINARY, X),
        lambda y, x: 3 * y * np.log(1 + np.exp(-x)) + (1 - y) * np.log(1 + np.exp(x)),
        1,
    ),
    "hinge": (
        lambda y, x: nn.hinge_loss(y, x, reduction="none"),
        (BINARY, X),
        lambda y, x: np.maximum(1 - (2 * y - 1) * x, 0),
        1,
    ),
    "log": (
        nn.log_loss,
        (BINARY, _probabilities(2, 3)),
        lambda y, p: np.mean(-y * np.log(p + 1e-7) - (1 - y) * np.log(1 - p + 1e-7)),
        1,
    ),
    "l2": (nn.l2_loss, (X,), lambda x: (x * x).sum() / 2, 0),
    "mse": (nn.mean_squared_error, (Y, X), lambda y, p: ((y - p) ** 2).mean(), 1),
    "mse_weighted": (
        lambda y, p: nn.mean_squared_error(y, p, weights=np.array([1.0, 0, 2]), reduction="sum"),
        (Y, X),
        lambda y, p: (np.array([1.0, 0, 2]) * (y - p) ** 2).sum(),
        1,
    ),
    "l1": (nn.absolute_difference, (Y, X), lambda y, p: np.abs(y - p).mean(), 1),
    "huber": (
        lambda y, p: nn.huber_loss(y, p, delta=0.5, reduction="none"),
        (Y, X),
        _huber,
        1,
    ),
    "smooth_l1": (
        lambda y, p: nn.smooth_l1_loss(y, p, sigma=2.0, reduction="none"),
        (Y, X),
        _smooth_l1,
        1,
    ),
    "kl": (
        nn.kl_divergence,
        (_probabilities(2, 3), _probabilities(2, 3, seed=1)),
        lambda p, q: (p * np.log(p / q)).sum(-1),
        1,
    ),
    "cosine": (
        nn.cosine_distance,
        (Y, X),
        lambda y, p: 1 - (_normalized(y) * _normalized(p)).sum(-1),
        1,
    ),
    "contrastive": (
        lambda a, b: nn.contrastive_loss(np.array([1, 0]), a, b, 3.0, reduction="none"),
        (Y, X),
        lambda a, b: np.where(
            [True, False],
            ((a - b) ** 2).sum(-1),
            np.maximum(3 - np.sqrt(((a - b) ** 2).sum(-1)), 0) ** 2,
        ),
        1,
    ),
    "triplet": (
        lambda a, p, n: nn.triplet_loss(a, p, n, 2.0, reduction="none"),
        (X, Y, _draw(2, 3, seed=2)),
        lambda a, p, n: np.maximum(((a - p) ** 2).sum(-1) - ((a - n) ** 2).sum(-1) + 2, 0),
        0,
    ),
    "total_variation": (
        nn.total_variation,
        (_draw(2, 4, 3, 2),),
        lambda x: (
            np.abs(np.diff(x, axis=1)).sum((1, 2, 3)) + np.abs(np.diff(x, axis=2)).sum((1, 2, 3))
        ),
        0,
    ),
}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("case", LOSSES)
def test_loss_and_gradient(case: str, device: str) -> None:
    function, arrays, numpy, at = LOSSES[case]
    operands = [gx.constant(a) for a in arrays]
    loss = function(*operands)
    (g,) = gx.gradients(loss, [operands[at]])
    with gx.Session(device=device) as session:
        value, gradient = session.run([loss, g])
    np.testing.assert_allclose(value, numpy(*arrays), rtol=1e-10, atol=1e-12)
    direction = _draw(*arrays[at].shape, seed=9)
    shifted = [
        np.sum(numpy(*[a + h * direction if i == at else a for i, a in enumerate(arrays)]))
        for h in (1e-6, -1e-6)
    ]
    slope = (shifted[0] - shifted[1]) / 2e-6
    assert (gradient * direction).sum() == pytest.approx(slope, rel=1e-6, abs=1e-8)


@pytest.mark.parametrize("device", DEVICES)
def test_losses_are_finite_for_large_logits(device: str) -> None:
    z = gx.constant(np.array([[1000.0, -1000.0]], np.float32))
    losses = [
        nn.sparse_softmax_cross_entropy_with_logits(gx.constant([1]), z),
        nn.sparse_softmax_cross_entropy_with_logits(gx.constant([0]), z),
        nn.sigmoid_cross_entropy_with_logits(np.array([[0, 0]], np.float32), z),
    ]
    (g,) = gx.gradients(losses[0], [z])
    with gx.Session(device=device) as session:
        *values, gradient = session.run([*losses, g])
    np.testing.assert_array_equal(values[0], [2000])
    np.testing.assert_array_equal(values[1], [0])
    np.testing.assert_array_equal(values[2], [[1000, 0]])
    np.testing.assert_array_equal(gradient, [[1, -1]])


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("bad", [-1, 3])
def test_a_label_out_of_range_is_an_error_when_run(bad: int, device: str) -> None:
    labels = gx.placeholder("i32", (None,))
    loss = nn.sparse_softmax_cross_entropy_with_logits(labels, gx.constant(X))
    with gx.Session(device=device) as session:
        session.run(loss, {labels: [0, 2]})
        with pytest.raises(IndexOutOfRangeError, match=f"index {bad} is out of range"):
            session.run(loss, {labels: [0, bad]})


def test_losses_refuse_shapes_that_fit_only_by_broadcasting() -> None:
    with pytest.raises(ShapeError, match="differ in rank"):
        nn.mean_squared_error(gx.constant(np.ones(4)), gx.constant(np.ones((4, 1))))
    with pytest.raises(ShapeError, match="one axis less"):
        nn.sparse_softmax_cross_entropy_with_logits(gx.constant([[1]]), gx.constant([[1.0]]))
    with pytest.raises(GraphTypeError, match="'median'"):
        nn.mean_squared_error(gx.constant([1.0]), gx.constant([2.0]), reduction="median")


# ---- normalization -----------------------------------------------------------------------------


def _batch_norm(axis: int) -> tuple[Any, ...]:
    x = gx.placeholder("f64", (None, 4, 3), name="x")
    training = gx.placeholder("bool", (), name="training")
    size = (x.dims[axis],)
    mean = gx.Variable(np.zeros(size), name="mean", trainable=False)
    variance = gx.Variable(np.ones(size), name="variance", trainable=False)
    scale = gx.constant(np.arange(1.0, 1 + size[0]))
    offset = gx.constant(np.arange(size[0]) - 0.5)
    return x, training, scale, offset, mean, variance


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("axis", [-1, 1])
@pytest.mark.parametrize("static", [True, False])
def test_batch_norm_in_both_modes(graph: Graph, axis: int, static: bool, device: str) -> None:
    x, training, scale, offset, mean, variance = _batch_norm(axis)
    options = {"momentum": 0.9, "epsilon": 1e-3, "axis": axis}
    mode: Any = True if static else training
    learned = nn.batch_norm(x, scale, offset, mean, variance, mode, **options)
    assert graph.get_collection(GraphKeys.UPDATE_OPS) == [u.node for u in learned.updates]
    frozen = nn.batch_norm(x, scale, offset, mean, variance, False, **options)
    assert frozen.updates == []
    assert len(graph.get_collection(GraphKeys.UPDATE_OPS)) == 2
    axes = (0, 1) if axis == -1 else (0, 2)
    spread = (1, 1, 3) if axis == -1 else (1, 4, 1)
    m, v = np.zeros(spread), np.ones(spread)
    factor, shift = (np.arange(1.0, 1 + m.size) for _ in range(2))
    factor, shift = factor.reshape(spread), (shift - 1.5).reshape(spread)
    feeds = {} if static else {training: True}
    with gx.Session(device=device) as session:
        session.run(gx.global_variables_initializer())
        for step in range(3):
            value = _draw(6, 4, 3, seed=step) * 2 + 1
            y, *_ = session.run([learned.output, *learned.updates], {x: value, **feeds})
            centre = value.mean(axes, keepdims=True)
            spreads = value.var(axes, keepdims=True)
            expected = (value - centre) / np.sqrt(spreads + 1e-3) * factor + shift
            np.testing.assert_allclose(y, expected, rtol=1e-9, atol=1e-12)
            m = 0.9 * m + 0.1 * centre
            v = 0.9 * v + 0.1 * spreads
        np.testing.assert_allclose(session.run(mean), m.reshape(-1), rtol=1e-9)
        np.testing.assert_allclose(session.run(variance), v.reshape(-1), rtol=1e-9)
        expected = (value - m) / np.sqrt(v + 1e-3) * factor + shift
        np.testing.assert_allclose(
            session.run(frozen.output, {x: value}), expected, rtol=1e-9, atol=1e-12
        )
        if not static:
            off = {x: value, training: False}
            y, *_ = session.run([learned.output, *learned.updates], off)
            np.testing.assert_allclose(y, expected, rtol=1e-9, atol=1e-12)
            np.testing.assert_allclose(session.run(mean), m.reshape(-1), rtol=1e-9)


def _group_norm(x: Array) -> Array:
    split = x.reshape(2, 3, 4, 2, 3)
    centred = split - split.mean((1, 2, 4), keepdims=True)
    return (centred / np.sqrt(split.var((1, 2, 4), keepdims=True) + 1e-5)).reshape(x.shape)


NORMS: dict[str, tuple[Callable[[Any], Any], Callable[[Array], Array]]] = {
    "layer": (
        lambda x: nn.layer_norm(x, 2.0, 1.0),
        lambda x: (
            (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5) * 2 + 1
        ),
    ),
    "rms": (
        nn.rms_norm,
        lambda x: x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-6),
    ),
    "instance": (
        nn.instance_norm,
        lambda x: (
            (x - x.mean((1, 2), keepdims=True)) / np.sqrt(x.var((1, 2), keepdims=True) + 1e-5)
        ),
    ),
    "group": (lambda x: nn.group_norm(x, 2), _group_norm),
}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("case", NORMS)
def test_norm(case: str, device: str) -> None:
    function, numpy = NORMS[case]
    value = _draw(2, 3, 4, 6)
    with gx.Session(device=device) as session:
        got = session.run(function(gx.constant(value)))
    np.testing.assert_allclose(got, numpy(value), rtol=1e-9, atol=1e-12)


# ---- initializers ------------------------------------------------------------------------------

SHAPE = (5, 5, 20, 30)
SCALED = {
    "glorot_uniform": 2 / (25 * 50),
    "glorot_normal": 2 / (25 * 50),
    "he_uniform": 2 / (25 * 20),
    "he_normal": 2 / (25 * 20),
    "lecun_uniform": 1 / (25 * 20),
    "lecun_normal": 1 / (25 * 20),
}


@pytest.mark.parametrize("case", SCALED)
def test_initializer_has_its_variance(case: str) -> None:
    value = gx.Session().run(getattr(initializers, case)(seed=5)(SHAPE))
    assert value.dtype == np.float32
    assert abs(value.mean()) < 4 * math.sqrt(SCALED[case] / value.size)
    assert value.var() == pytest.approx(SCALED[case], rel=0.05)
    if case.endswith("uniform"):
        assert np.abs(value).max() <= math.sqrt(3 * SCALED[case]) * 1.000001


def test_plain_initializers() -> None:
    session = gx.Session()
    np.testing.assert_array_equal(session.run(initializers.zeros()((2, 3))), np.zeros((2, 3)))
    np.testing.assert_array_equal(session.run(initializers.ones()((2,), "f64")), np.ones(2))
    np.testing.assert_array_equal(session.run(initializers.constant([1, 2])((2,))), [1, 2])
    np.testing.assert_array_equal(session.run(initializers.identity(2.0)((2, 3))), 2 * np.eye(2, 3))
    drawn = session.run(initializers.truncated_normal(1.0, 0.5, seed=1)((1000,)))
    assert np.abs(drawn - 1).max() <= 1.0
    q = session.run(initializers.orthogonal(seed=1)((6, 4)))
    np.testing.assert_allclose(q.T @ q, np.eye(4), atol=1e-6)
    wide = session.run(initializers.orthogonal(2.0, seed=1)((2, 2, 8)))
    np.testing.assert_allclose(wide.reshape(4, 8) @ wide.reshape(4, 8).T, 4 * np.eye(4), atol=1e-5)
    with pytest.raises(ShapeError, match=r"shape \(2,\) for shape \(3,\)"):
        initializers.constant([1, 2])((3,))
    with pytest.raises(ShapeError, match="not a matrix"):
        initializers.identity()((2, 2, 2))


def test_seeds_decide_the_values() -> None:
    made = [initializers.he_normal(seed=s)((4, 4)) for s in (7, 7, 8)]
    first, same, other = (gx.Session().run(t) for t in made)
    np.testing.assert_array_equal(first, same)
    assert (first != other).all()


# ---- layers ------------------------------------------------------------------------------------


@pytest.mark.parametrize("device", DEVICES)
def test_layers_make_named_variables_and_compute(graph: Graph, device: str) -> None:
    x = gx.placeholder("f32", (None, 6, 6, 2), name="x")
    h = layers.conv2d(x, 3, 3, activation=nn.relu, name="conv")
    h = layers.batch_normalization(h, training=False, name="bn")
    h = layers.max_pool2d(h, 2)
    y = layers.dense(layers.flatten(h), 5, name="fc", lr_mult=0.1, trainable=False)
    y = layers.layer_normalization(y, name="ln")
    names = [v.node.name for v in gx.global_variables()]
    assert names[:4] == ["conv/kernel", "conv/bias", "bn/gamma", "bn/beta"]
    assert names[4:6] == ["bn/moving_mean", "bn/moving_variance"]
    assert names[6:] == ["fc/kernel", "fc/bias", "ln/gamma", "ln/beta"]
    kernel = gx.global_variables()[6]
    assert kernel.lr_mult == 0.1
    assert not kernel.trainable
    assert tuple(kernel.dims) == (12, 5)
    with gx.Session(device=device) as session:
        session.run(gx.global_variables_initializer())
        value = _draw(3, 6, 6, 2).astype(np.float32)
        w, f = session.run([gx.global_variables()[0], kernel])
        got = session.run(y, {x: value})
    conv = np.zeros((3, 4, 4, 3))
    for i in range(3):
        for j in range(3):
            conv += value[:, i : i + 4, j : j + 4] @ w[i, j]
    conv = np.maximum(conv, 0) / math.sqrt(1 + 1e-3)
    pooled = conv.reshape(3, 2, 2, 2, 2, 3).max((2, 4)).reshape(3, 12)
    z = pooled @ f
    expected = (z - z.mean(-1, keepdims=True)) / np.sqrt(z.var(-1, keepdims=True) + 1e-5)
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


def test_a_layer_needs_known_features() -> None:
    with pytest.raises(ShapeError, match="size of axis -1"):
        layers.dense(gx.placeholder("f32", (None, None)), 3)
