"""Models trained on a GPU and on the emulator: the same numbers as on the CPU, step by step."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest

import graphc as gx
from graphc import nn, train

Array = np.ndarray[Any, Any]
layers = nn.layers

DEVICES = ["emulated-gpu", pytest.param("gpu", marks=pytest.mark.gpu)]

TOLERANCE = 2e-4
"""Of losses and of variables, relative to the largest of an array, after a few steps: sums are
made in other orders."""

Model = Callable[[np.random.Generator], tuple[gx.Tensor, dict[gx.Tensor, Array], train.Optimizer]]


def two_layer_net(rng: np.random.Generator) -> Any:
    """The lectures' net, with its squared distance."""
    x, y = gx.placeholder("f32", (None, 40)), gx.placeholder("f32", (None, 20))
    w1 = gx.Variable(rng.normal(0, 0.2, (40, 16)).astype("f4"))
    w2 = gx.Variable(rng.normal(0, 0.2, (16, 20)).astype("f4"))
    difference = nn.relu(x @ w1) @ w2 - y
    loss = gx.mean(gx.sum(gx.square(difference), axis=1))
    feeds = {x: rng.normal(size=(9, 40)), y: rng.normal(size=(9, 20))}
    return loss, feeds, train.SGD(1e-2)


def classified(logits: gx.Tensor, x: gx.Tensor, images: Array, rng: np.random.Generator) -> Any:
    """The mean cross-entropy of logits, and what to feed."""
    labels = gx.placeholder("i64", (None,), name="labels")
    loss = gx.mean(nn.sparse_softmax_cross_entropy_with_logits(labels, logits))
    return loss, {x: images, labels: rng.integers(0, 10, len(images))}


def lenet(rng: np.random.Generator) -> Any:
    """LeNet on images of 12 x 12, with few filters."""
    x = gx.placeholder("f32", (None, 12, 12, 1))
    h = layers.max_pool2d(layers.conv2d(x, 6, 5, padding="SAME"), 2)
    h = layers.max_pool2d(layers.conv2d(h, 8, 5, padding="SAME"), 2)
    h = layers.dense(layers.flatten(h), 30, nn.relu)
    images = rng.normal(size=(5, 12, 12, 1)).astype("f4")
    return *classified(layers.dense(h, 10), x, images, rng), train.Momentum(0.05, 0.9)


def batch_norm_net(rng: np.random.Generator) -> Any:
    """Convolutions with batch normalization and a shortcut; the moving statistics move too."""
    x = gx.placeholder("f32", (None, 6, 6, 3))
    h = nn.relu(layers.batch_normalization(layers.conv2d(x, 8, 3, padding="SAME"), training=True))
    inner = layers.batch_normalization(layers.conv2d(h, 8, 3, padding="SAME"), training=True)
    h = gx.mean(nn.relu(h + inner), axis=(1, 2))
    images = rng.normal(size=(4, 6, 6, 3)).astype("f4")
    return *classified(layers.dense(h, 10), x, images, rng), train.Momentum(0.05, 0.9)


def lstm(rng: np.random.Generator) -> Any:
    """Four steps of a recurrent layer."""
    steps, batch, units = 4, 3, 8
    x = gx.placeholder("f32", (steps, batch, units))
    w, u = (gx.Variable(rng.normal(0, 0.3, (units, 4 * units)).astype("f4")) for _ in range(2))
    b = gx.Variable(np.zeros(4 * units, "f4"))
    h = c = gx.zeros((batch, units))
    outputs = []
    for t in range(steps):
        i, f, o, g = gx.split(x[t] @ w + h @ u + b, 4, axis=1)
        c = nn.sigmoid(f) * c + nn.sigmoid(i) * gx.tanh(g)
        h = nn.sigmoid(o) * gx.tanh(c)
        outputs.append(h)
    loss = gx.mean(gx.square(gx.stack(outputs) - 0.5))
    return loss, {x: rng.normal(size=(steps, batch, units))}, train.RMSProp(0.01)


def transformer_block(rng: np.random.Generator) -> Any:
    """Attention of two heads, layer normalization, GELU."""
    length, width, heads = 6, 16, 2
    x = gx.placeholder("f32", (None, length, width))

    def rows(h: gx.Tensor, units: int, activation: Any = None) -> gx.Tensor:
        flat = layers.dense(gx.reshape(h, (-1, h.shape[-1])), units, activation)
        return gx.reshape(flat, (-1, length, units))

    def normalized(h: gx.Tensor) -> gx.Tensor:
        return nn.layer_norm(
            h, gx.Variable(np.ones(width, "f4")), gx.Variable(np.zeros(width, "f4"))
        )

    parts = gx.reshape(rows(normalized(x), 3 * width), (-1, length, 3, heads, width // heads))
    q, k, v = (gx.transpose(parts[:, :, i], (0, 2, 1, 3)) for i in range(3))
    weights = nn.softmax(q @ gx.transpose(k, (0, 1, 3, 2)) * (width // heads) ** -0.5)
    mixed = gx.reshape(gx.transpose(weights @ v, (0, 2, 1, 3)), (-1, length, width))
    h = x + rows(mixed, width)
    h = h + rows(rows(normalized(h), 2 * width, nn.gelu), width)
    return gx.mean(gx.square(h)), {x: rng.normal(size=(2, length, width))}, train.SGD(0.1)


MODELS = [two_layer_net, lenet, batch_norm_net, lstm, transformer_block]


def trained(model: Model, device: str, steps: int = 3, precision: str = "f32") -> list[Array]:
    """The losses of some steps, then the variables."""
    with gx.Graph(seed=3).as_default() as graph:
        loss, feeds, optimizer = model(np.random.default_rng(0))
        updates = gx.get_collection(gx.GraphKeys.UPDATE_OPS)
        step = gx.group(optimizer.minimize(loss), *updates)
        with gx.Session(graph, device=device, precision=precision) as session:
            session.run(gx.global_variables_initializer())
            losses = [session.run([loss, step], feeds)[0] for _ in range(steps)]
            values = session.run(list(gx.global_variables()))
    return [np.array(losses), *values]


once = cache(trained)
"""The same, of one training for all tests that compare with it."""


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("model", MODELS)
def test_training_is_that_of_the_cpu(model: Model, device: str) -> None:
    found, wanted = once(model, device), once(model, "cpu")
    assert wanted[0][-1] < wanted[0][0]
    for actual, expected in zip(found, wanted, strict=True):
        largest = max(1e-2, float(np.abs(expected).max()))
        np.testing.assert_allclose(actual, expected, rtol=0, atol=TOLERANCE * largest)


@pytest.mark.parametrize("device", DEVICES)
def test_training_gives_the_same_bits_again(device: str) -> None:
    first, second = once(lenet, device), trained(lenet, device)
    assert [a.tobytes() for a in first] == [a.tobytes() for a in second]


@pytest.mark.parametrize(("precision", "error"), [("tf32", 3e-3), ("bf16", 3e-2)])
@pytest.mark.parametrize("device", DEVICES)
def test_products_may_be_rounded(device: str, precision: str, error: float) -> None:
    exact, rounded = once(lenet, device), trained(lenet, device, 2, precision)
    np.testing.assert_allclose(rounded[0], exact[0][:2], rtol=error)
