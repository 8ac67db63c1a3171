"""Fine-tuning: features learned on the digits 0-4 are kept for the digits 5-9.

The convolutions are frozen with `lr_mult=0`, so the optimizer makes no update for them; the dense
layers are trained anew.
"""

from __future__ import annotations

import lenet
import numpy as np

import graphc as gx

TRUNK = ("conv1/kernel", "conv1/bias", "conv2/kernel", "conv2/bias")


def main(epochs: int = 10) -> tuple[float, dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Test accuracy on 5-9, and the convolutions' weights before and after fine-tuning."""
    x, y, test_x, test_y = lenet.digits()

    with gx.Graph(seed=0).as_default():
        net = lenet.build(classes=5)
        step = gx.train.Adam(2e-3).minimize(net.loss)
        with gx.Session() as session:
            session.run(gx.global_variables_initializer())
            lenet.fit(session, net, step, x[y < 5], y[y < 5], epochs)
            pretrained = {n: session.run(n) for n in TRUNK}

    with gx.Graph(seed=1).as_default():
        net = lenet.build(classes=5, trunk_lr_mult=0)
        step = gx.train.Adam(2e-3).minimize(net.loss)
        trunk = {v.op.name: v for v in gx.global_variables() if v.op.name in TRUNK}
        with gx.Session() as session:
            session.run(gx.global_variables_initializer())
            for name, variable in trunk.items():
                variable.load(pretrained[name], session)
            lenet.fit(session, net, step, x[y >= 5], y[y >= 5] - 5, epochs)
            tuned = {n: session.run(n) for n in TRUNK}
            held_out = test_y >= 5
            feeds = {net.images: test_x[held_out], net.labels: test_y[held_out] - 5}
            return float(session.run(net.accuracy, feeds)), pretrained, tuned


if __name__ == "__main__":
    accuracy, before, after = main()
    same = all(np.array_equal(before[n], after[n]) for n in TRUNK)
    print(f"test accuracy on 5-9: {100 * accuracy:.1f} %; convolutions unchanged: {same}")
