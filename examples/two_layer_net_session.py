"""A two-layer net in the style of TensorFlow 1: placeholders, variables, gradients, a session.

Random inputs (N=64, D=1000) are mapped to random targets through H=100 hidden units.
"""

from __future__ import annotations

import numpy as np

import graphc as gx

N, D, H = 64, 1000, 100


def main(steps: int = 50, learning_rate: float = 1e-2) -> list[float]:
    """Train; returns the loss of every step."""
    rng = np.random.default_rng(0)
    with gx.Graph().as_default():
        x = gx.placeholder("f32", (N, D), name="x")
        y = gx.placeholder("f32", (N, D), name="y")
        w1 = gx.Variable(rng.standard_normal((D, H)).astype("f4") / np.sqrt(D), name="w1")
        w2 = gx.Variable(rng.standard_normal((H, D)).astype("f4") / np.sqrt(H), name="w2")

        h = gx.maximum(x @ w1, 0)
        difference = h @ w2 - y
        loss = gx.mean(gx.sum(difference * difference, axis=1))

        grad_w1, grad_w2 = gx.gradients(loss, [w1, w2])
        new_w1 = w1.assign(w1 - learning_rate * grad_w1)
        new_w2 = w2.assign(w2 - learning_rate * grad_w2)
        updates = gx.group(new_w1, new_w2)

        with gx.Session() as session:
            session.run(gx.global_variables_initializer())
            values = {
                x: rng.standard_normal((N, D)),
                y: rng.standard_normal((N, D)),
            }
            losses = []
            for _ in range(steps):
                loss_value, _ = session.run([loss, updates], feed_dict=values)
                losses.append(float(loss_value))
    return losses


if __name__ == "__main__":
    result = main()
    print(f"loss {result[0]:.1f} -> {result[-1]:.1f}")
