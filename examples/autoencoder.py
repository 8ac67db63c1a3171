"""An autoencoder: 64 pixels of a digit are squeezed through 8 numbers and drawn again."""

from __future__ import annotations

import numpy as np
from sklearn.datasets import load_digits

import graphc as gx


def main(epochs: int = 20, code_size: int = 8) -> tuple[float, float]:
    """Train; returns the mean squared error before and after, on images held out."""
    images = (load_digits().data / 16).astype(np.float32)
    rng = np.random.default_rng(0)
    images = images[rng.permutation(len(images))]
    train_images, test_images = images[:1437], images[1437:]

    with gx.Graph(seed=0).as_default():
        dense = gx.nn.layers.dense
        x = gx.placeholder("f32", ("batch", 64), name="images")
        hidden = dense(x, 64, gx.nn.relu, name="encoder1")
        code = dense(hidden, code_size, name="encoder2")
        hidden = dense(code, 64, gx.nn.relu, name="decoder1")
        drawn = dense(hidden, 64, gx.nn.sigmoid, name="decoder2")
        loss = gx.nn.mean_squared_error(x, drawn)
        step = gx.train.Adam(3e-3).minimize(loss)

        with gx.Session() as session:
            session.run(gx.global_variables_initializer())
            before = session.run(loss, {x: test_images})
            for _ in range(epochs):
                for batch in np.array_split(rng.permutation(train_images), 22):
                    session.run(step, {x: batch})
            after = session.run(loss, {x: test_images})
    return float(before), float(after)


if __name__ == "__main__":
    first, last = main()
    print(f"mean squared error {first:.4f} -> {last:.4f}")
