"""Logistic regression on scikit-learn's breast-cancer data, with weight decay."""

from __future__ import annotations

import numpy as np
from sklearn.datasets import load_breast_cancer
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler

import graphc as gx


def main(steps: int = 300) -> float:
    """Train on 80 % of the data; returns the accuracy on the rest."""
    features, labels = load_breast_cancer(return_X_y=True)
    x_train, x_test, y_train, y_test = train_test_split(
        features, labels, test_size=0.2, stratify=labels, random_state=0
    )
    scaler = StandardScaler().fit(x_train)

    with gx.Graph().as_default():
        x = gx.placeholder("f32", ("batch", features.shape[1]), name="x")
        y = gx.placeholder("f32", ("batch",), name="y")
        w = gx.Variable(np.zeros(features.shape[1], np.float32), name="w")
        b = gx.Variable(0.0, name="b")

        logits = x @ w + b
        losses = gx.nn.sigmoid_cross_entropy_with_logits(labels=y, logits=logits)
        loss = gx.mean(losses) + 1e-3 * gx.nn.l2_loss(w)
        step = gx.train.Momentum(0.1, 0.9).minimize(loss)
        right = gx.equal(gx.greater(logits, 0), gx.greater(y, 0.5))
        accuracy = gx.mean(gx.astype(right, "f32"))

        with gx.Session() as session:
            session.run(gx.global_variables_initializer())
            for _ in range(steps):
                session.run(step, {x: scaler.transform(x_train), y: y_train})
            return float(session.run(accuracy, {x: scaler.transform(x_test), y: y_test}))


if __name__ == "__main__":
    print(f"test accuracy {100 * main():.1f} %")
