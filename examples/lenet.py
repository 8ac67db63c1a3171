"""A small LeNet for scikit-learn's 8x8 digits, shared by the examples that need a trained net."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import graphc as gx


@dataclass
class LeNet:
    """The tensors of the net, in the graph it was built in."""

    images: Any
    labels: Any
    logits: Any
    loss: Any
    accuracy: Any


def digits() -> tuple[Any, Any, Any, Any]:
    """(training images, labels, test images, labels); images are [n,8,8,1] in [0,1]."""
    data = load_digits()
    images = (data.images / 16).astype(np.float32)[..., None]
    x, test_x, y, test_y = train_test_split(
        images, data.target, test_size=0.2, stratify=data.target, random_state=0
    )
    return x, y, test_x, test_y


def build(classes: int = 10, trunk_lr_mult: float = 1.0) -> LeNet:
    """Two convolutions with ReLU and pooling (the trunk), and two dense layers.

    trunk_lr_mult multiplies the learning rate of the convolutions; 0 freezes them.
    """
    layers = gx.nn.layers
    conv = {"padding": "SAME", "activation": gx.nn.relu, "lr_mult": trunk_lr_mult}
    images = gx.placeholder("f32", ("batch", 8, 8, 1), name="images")
    labels = gx.placeholder("i64", ("batch",), name="labels")
    h = layers.max_pool2d(layers.conv2d(images, 16, 3, name="conv1", **conv))
    h = layers.max_pool2d(layers.conv2d(h, 32, 3, name="conv2", **conv))
    h = layers.dense(layers.flatten(h), 64, gx.nn.relu, name="fc1")
    logits = layers.dense(h, classes, name="fc2")
    losses = gx.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
    hits = gx.equal(gx.argmax(logits, axis=-1), labels)
    return LeNet(images, labels, logits, gx.mean(losses), gx.mean(gx.astype(hits, "f32")))


def fit(session: Any, net: LeNet, step: Any, images: Any, labels: Any, epochs: int) -> None:
    """Run the training step over batches of 64 in random order."""
    rng = np.random.default_rng(0)
    for _ in range(epochs):
        order = rng.permutation(len(images))
        for chosen in np.array_split(order, max(len(images) // 64, 1)):
            session.run(step, {net.images: images[chosen], net.labels: labels[chosen]})


def main(epochs: int = 12) -> float:
    """Train; returns the test accuracy."""
    x, y, test_x, test_y = digits()
    with gx.Graph(seed=0).as_default():
        net = build()
        step = gx.train.Adam(2e-3).minimize(net.loss)
        with gx.Session() as session:
            session.run(gx.global_variables_initializer())
            fit(session, net, step, x, y, epochs)
            return float(session.run(net.accuracy, {net.images: test_x, net.labels: test_y}))


if __name__ == "__main__":
    print(f"test accuracy {100 * main():.2f} %")
