"""ResNet-50 and AlexNet in JAX, for peer_jax.py: images are NHWC, parameters are lists of arrays.

A network is `(parameters, statistics)` and a function of both and of images, which returns logits
and, in training, the new statistics.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

Apply = Callable[[list, list, jax.Array, bool], tuple[jax.Array, list]]


def _conv(x: jax.Array, w: jax.Array, stride: int, pad: int) -> jax.Array:
    pads = [(pad, pad)] * 2
    return lax.conv_general_dilated(
        x, w, (stride, stride), pads, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def _max_pool(x: jax.Array, window: int, stride: int, pad: int = 0) -> jax.Array:
    pads = ((0, 0), (pad, pad), (pad, pad), (0, 0))
    sizes = (1, window, window, 1)
    return lax.reduce_window(x, -jnp.inf, lax.max, sizes, (1, stride, stride, 1), pads)


class _Maker:
    """Makes parameters, in the order in which a network takes them."""

    def __init__(self) -> None:
        self.rng = np.random.RandomState(0)
        self.parameters: list[Any] = []
        self.statistics: list[Any] = []

    def array(self, *shape: int) -> np.ndarray:
        scale = np.float32((2 / np.prod(shape[:-1])) ** 0.5)
        return self.rng.randn(*shape).astype(np.float32) * scale

    def conv_norm(self, inputs: int, filters: int, window: int) -> None:
        ones, zeros = np.ones(filters, np.float32), np.zeros(filters, np.float32)
        self.parameters.append((self.array(window, window, inputs, filters), ones, zeros))
        self.statistics.append((zeros.copy(), ones.copy()))

    def dense(self, inputs: int, units: int) -> None:
        self.parameters.append((self.array(inputs, units), np.zeros(units, np.float32)))

    def conv(self, inputs: int, filters: int, window: int) -> None:
        weights = self.array(window, window, inputs, filters)
        self.parameters.append((weights, np.zeros(filters, np.float32)))


_STAGES = ((64, 3), (128, 4), (256, 6), (512, 3))


def resnet50() -> tuple[list, list, Apply]:
    """ResNet-50, the stride in the 3 x 3 convolutions."""
    made = _Maker()
    made.conv_norm(3, 64, 7)
    inputs = 64
    for width, count in _STAGES:
        for block in range(count):
            if not block:
                made.conv_norm(inputs, 4 * width, 1)
            made.conv_norm(inputs, width, 1)
            made.conv_norm(width, width, 3)
            made.conv_norm(width, 4 * width, 1)
            inputs = 4 * width
    made.dense(2048, 1000)
    return made.parameters, made.statistics, _resnet50


def _resnet50(
    parameters: list, statistics: list, x: jax.Array, training: bool
) -> tuple[jax.Array, list]:
    given, found = iter(zip(parameters, statistics, strict=False)), []

    def conv_norm(x: jax.Array, window: int, stride: int = 1) -> jax.Array:
        (w, scale, offset), (mean, variance) = next(given)
        x = _conv(x, w, stride, window // 2)
        if training:
            here, spread = x.mean((0, 1, 2)), x.var((0, 1, 2))
            found.append((0.99 * mean + 0.01 * here, 0.99 * variance + 0.01 * spread))
            mean, variance = here, spread
        return (x - mean) * (lax.rsqrt(variance + 1e-3) * scale) + offset

    h = _max_pool(jax.nn.relu(conv_norm(x, 7, 2)), 3, 2, 1)
    for stage, (_, count) in enumerate(_STAGES):
        for block in range(count):
            stride = 2 if stage and not block else 1
            skip = h if block else conv_norm(h, 1, stride)
            h = jax.nn.relu(conv_norm(h, 1))
            h = jax.nn.relu(conv_norm(h, 3, stride))
            h = jax.nn.relu(conv_norm(h, 1) + skip)
    w, b = parameters[-1]
    return h.mean((1, 2)) @ w + b, found


_CONVS = ((3, 64, 11), (64, 192, 5), (192, 384, 3), (384, 256, 3), (256, 256, 3))


def alexnet() -> tuple[list, list, Apply]:
    """AlexNet in one column without normalization."""
    made = _Maker()
    for inputs, filters, window in _CONVS:
        made.conv(inputs, filters, window)
    for inputs, units in ((9216, 4096), (4096, 4096), (4096, 1000)):
        made.dense(inputs, units)
    return made.parameters, made.statistics, _alexnet


def _alexnet(
    parameters: list, statistics: list, x: jax.Array, training: bool
) -> tuple[jax.Array, list]:
    for i, (w, b) in enumerate(parameters[:5]):
        stride, pad = ((4, 2), (1, 2), (1, 1), (1, 1), (1, 1))[i]
        x = jax.nn.relu(_conv(x, w, stride, pad) + b)
        if i in (0, 1, 4):
            x = _max_pool(x, 3, 2)
    x = x.reshape(len(x), -1)
    for w, b in parameters[5:7]:
        x = jax.nn.relu(x @ w + b)
    w, b = parameters[7]
    return x @ w + b, statistics


NETWORKS: dict[str, tuple[Callable[[], tuple[list, list, Apply]], int]] = {
    "resnet50": (resnet50, 224),
    "alexnet": (alexnet, 227),
}
"""Constructor, and the side of an image."""
