"""Guided backpropagation (Springenberg et al., 2015): which pixels speak for the class chosen?

The gradient of ReLU is replaced inside `gradient_override`: it lets a gradient through only where
both the activation and the gradient itself are positive.
"""

from __future__ import annotations

import lenet
import numpy as np

import graphc as gx


def guided_relu(y, g, x):
    """The gradient rule: (output, cotangent, input) -> cotangents of the inputs."""
    return [gx.where(gx.greater(y, 0), gx.maximum(g, 0), 0)]


def main(epochs: int = 12) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(images, plain gradients, guided gradients) of the ten first test images."""
    x, y, test_x, _ = lenet.digits()
    images = test_x[:10]
    with gx.Graph(seed=0).as_default() as graph:
        net = lenet.build()
        step = gx.train.Adam(2e-3).minimize(net.loss)
        plain = class_gradient(net)
        trained = gx.trainable_variables()
        with gx.Session() as session:
            session.run(gx.global_variables_initializer())
            lenet.fit(session, net, step, x, y, epochs)
            weights = [session.get_value(v) for v in trained]
            plain_value = session.run(plain, {net.images: images})

    # the same net once more, with the other rule
    with gx.Graph().as_default() as graph:
        with graph.gradient_override({"relu": guided_relu}):
            net = lenet.build()
        guided = class_gradient(net)
        with gx.Session() as session:
            for v, value in zip(gx.trainable_variables(), weights, strict=True):
                session.set_value(v, value)
            guided_value = session.run(guided, {net.images: images})
    return images, plain_value, guided_value


def class_gradient(net: lenet.LeNet):
    """The gradient of each image's highest logit by its pixels."""
    (gradient,) = gx.gradients(gx.max(net.logits, axis=-1), [net.images])
    return gradient


if __name__ == "__main__":
    _, ordinary, positive = main()
    print(f"gradient magnitude: plain {np.abs(ordinary).mean():.4f}", end=", ")
    print(f"guided {np.abs(positive).mean():.4f}")
