"""Initializers: functions from a shape to an initial value.

Each function here returns an initializer `f(shape, dtype="f32") -> Tensor`, to be given to a layer
or called: `gx.Variable(glorot_uniform()((784, 10)))`.  The fans of a filter [*K, I, O] are I and O
times the size of K.  Imports: ops, graph, errors.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from graphc.errors import GraphTypeError, ShapeError
from graphc.graph import get_default_graph
from graphc.node import Tensor
from graphc.ops import random
from graphc.ops.create import eye, full
from graphc.ops.define import constant as constant_tensor
from graphc.types import as_dtype

Initializer = Callable[..., Tensor]

# the standard deviation of a normal distribution cut off at two standard deviations
_TRUNCATED_STDDEV = 0.87962566103423978


def constant(value: Any = 0.0) -> Initializer:
    """`value`: a number, or an array of the shape asked for."""

    def initialize(shape: Sequence[int], dtype: Any = "f32") -> Tensor:
        if np.ndim(value) == 0:
            return full(shape, value, dtype)
        array = np.asarray(value)
        if array.shape != tuple(shape):
            raise ShapeError(f"an initial value of shape {array.shape} for shape {tuple(shape)}")
        return constant_tensor(array, dtype)

    return initialize


def zeros() -> Initializer:
    """Zeros."""
    return constant(0.0)


def ones() -> Initializer:
    """Ones."""
    return constant(1.0)


def uniform(low: float = -0.05, high: float = 0.05, seed: int | None = None) -> Initializer:
    """Uniform in [low, high)."""

    def initialize(shape: Sequence[int], dtype: Any = "f32") -> Tensor:
        return random.uniform(shape, low, high, dtype=dtype, seed=seed)

    return initialize


def normal(mean: float = 0.0, stddev: float = 0.05, seed: int | None = None) -> Initializer:
    """Normal with the given mean and standard deviation."""

    def initialize(shape: Sequence[int], dtype: Any = "f32") -> Tensor:
        return random.normal(shape, mean, stddev, dtype=dtype, seed=seed)

    return initialize


def truncated_normal(
    mean: float = 0.0, stddev: float = 0.05, seed: int | None = None
) -> Initializer:
    """Normal, with values beyond two standard deviations drawn again."""

    def initialize(shape: Sequence[int], dtype: Any = "f32") -> Tensor:
        return random.truncated_normal(shape, mean, stddev, dtype=dtype, seed=seed)

    return initialize


# ---- scaled to the fans ------------------------------------------------------------------------


def fans(shape: Sequence[int]) -> tuple[float, float]:
    """(inputs per output, outputs per input) of a weight of this shape."""
    if not shape:
        return 1.0, 1.0
    if len(shape) == 1:
        return float(shape[0]), float(shape[0])
    field = math.prod(shape[:-2])
    return float(field * shape[-2]), float(field * shape[-1])


def variance_scaling(
    scale: float = 1.0,
    mode: str = "fan_in",
    distribution: str = "truncated_normal",
    seed: int | None = None,
) -> Initializer:
    """Mean 0 and variance scale / n, where n is the 'fan_in', 'fan_out' or 'fan_avg'.

    distribution  'uniform', 'normal' or 'truncated_normal'
    """
    if mode not in ("fan_in", "fan_out", "fan_avg"):
        raise GraphTypeError(f"mode is 'fan_in', 'fan_out' or 'fan_avg', not {mode!r}")
    if distribution not in ("uniform", "normal", "truncated_normal"):
        raise GraphTypeError(f"no distribution is called {distribution!r}")

    def initialize(shape: Sequence[int], dtype: Any = "f32") -> Tensor:
        inputs, outputs = fans(shape)
        count = {"fan_in": inputs, "fan_out": outputs, "fan_avg": (inputs + outputs) / 2}[mode]
        stddev = math.sqrt(scale / max(count, 1.0))
        if distribution == "uniform":
            limit = stddev * math.sqrt(3.0)
            return uniform(-limit, limit, seed)(shape, dtype)
        if distribution == "normal":
            return normal(0.0, stddev, seed)(shape, dtype)
        return truncated_normal(0.0, stddev / _TRUNCATED_STDDEV, seed)(shape, dtype)

    return initialize


def glorot_uniform(seed: int | None = None) -> Initializer:
    """Uniform, variance 2 / (fan_in + fan_out) (Glorot and Bengio, 2010); also called Xavier."""
    return variance_scaling(1.0, "fan_avg", "uniform", seed)


def glorot_normal(seed: int | None = None) -> Initializer:
    """Truncated normal, variance 2 / (fan_in + fan_out)."""
    return variance_scaling(1.0, "fan_avg", "truncated_normal", seed)


def he_uniform(seed: int | None = None) -> Initializer:
    """Uniform, variance 2 / fan_in (He et al., 2015)."""
    return variance_scaling(2.0, "fan_in", "uniform", seed)


def he_normal(seed: int | None = None) -> Initializer:
    """Truncated normal, variance 2 / fan_in."""
    return variance_scaling(2.0, "fan_in", "truncated_normal", seed)


def lecun_uniform(seed: int | None = None) -> Initializer:
    """Uniform, variance 1 / fan_in (LeCun et al., 1998)."""
    return variance_scaling(1.0, "fan_in", "uniform", seed)


def lecun_normal(seed: int | None = None) -> Initializer:
    """Truncated normal, variance 1 / fan_in."""
    return variance_scaling(1.0, "fan_in", "truncated_normal", seed)


# ---- structured --------------------------------------------------------------------------------


def orthogonal(gain: float = 1.0, seed: int | None = None) -> Initializer:
    """A random matrix with orthonormal rows or columns, times `gain` (Saxe et al., 2014).

    All axes but the last are taken together as rows.  Drawn when the graph is built: from `seed`,
    or from the graph's seed and the number of nodes so far.
    """

    def initialize(shape: Sequence[int], dtype: Any = "f32") -> Tensor:
        if len(shape) < 2:
            raise ShapeError(f"orthogonal: shape {tuple(shape)} has fewer than two axes")
        graph = get_default_graph()
        entropy: Any = seed
        if entropy is None and graph.seed is not None:
            entropy = (graph.seed, graph.nodes_made)
        rows, columns = math.prod(shape[:-1]), shape[-1]
        tall = max(rows, columns), min(rows, columns)
        q, r = np.linalg.qr(np.random.default_rng(entropy).standard_normal(tall))
        q = q * np.where(np.diag(r) < 0, -1.0, 1.0)  # makes the distribution uniform
        value = q if rows >= columns else q.T
        array = (gain * value.reshape(tuple(shape))).astype(as_dtype(dtype).numpy)
        return constant_tensor(array)

    return initialize


def identity(gain: float = 1.0) -> Initializer:
    """The identity matrix times `gain`."""

    def initialize(shape: Sequence[int], dtype: Any = "f32") -> Tensor:
        if len(shape) != 2:
            raise ShapeError(f"identity: shape {tuple(shape)} is not a matrix's")
        one = eye(shape[0], shape[1], dtype=dtype)
        return one if gain == 1.0 else one * gain

    return initialize


xavier_uniform = glorot_uniform
xavier_normal = glorot_normal

__all__ = [
    "Initializer",
    "constant",
    "fans",
    "glorot_normal",
    "glorot_uniform",
    "he_normal",
    "he_uniform",
    "identity",
    "lecun_normal",
    "lecun_uniform",
    "normal",
    "ones",
    "orthogonal",
    "truncated_normal",
    "uniform",
    "variance_scaling",
    "xavier_normal",
    "xavier_uniform",
    "zeros",
]
