"""Fooling a trained net: the fast gradient sign method (Goodfellow, Shlens and Szegedy, 2015).

A small step along the sign of the loss's gradient by the image changes what the net sees, while the
same step in a random direction hardly does.
"""

from __future__ import annotations

import lenet
import numpy as np

import graphc as gx


def main(epsilon: float = 0.15, epochs: int = 12) -> tuple[float, float, float]:
    """Accuracy on test images: untouched, with random noise, and with adversarial noise."""
    x, y, test_x, test_y = lenet.digits()
    with gx.Graph(seed=0).as_default():
        net = lenet.build()
        step = gx.train.Adam(2e-3).minimize(net.loss)
        (gradient,) = gx.gradients(net.loss, [net.images])
        attacked = net.images + epsilon * gx.sign(gradient)

        with gx.Session() as session:
            session.run(gx.global_variables_initializer())
            lenet.fit(session, net, step, x, y, epochs)

            def accuracy(images: np.ndarray) -> float:
                feeds = {net.images: images, net.labels: test_y}
                return float(session.run(net.accuracy, feeds))

            noise = np.random.default_rng(1).choice([-epsilon, epsilon], test_x.shape)
            adversarial = session.run(attacked, {net.images: test_x, net.labels: test_y})
            return accuracy(test_x), accuracy(test_x + noise), accuracy(adversarial)


if __name__ == "__main__":
    clean, noisy, fooled = main()
    print(f"accuracy {clean:.3f}; with noise {noisy:.3f}; with adversarial noise {fooled:.3f}")
