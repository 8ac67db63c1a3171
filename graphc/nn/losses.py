"""Losses, in their numerically stable forms.

The `..._with_logits` functions and `l2_loss` are those of TensorFlow: one loss per example, no
averaging.  The others take `reduction`: 'mean', 'sum' or 'none'.  Imports: ops, graph, errors.
"""

from __future__ import annotations

from typing import Any

from graphc.errors import GraphTypeError, ShapeError
from graphc.node import Tensor
from graphc.ops.arithmetic import (
    abs,
    add,
    astype,
    equal,
    less_equal,
    maximum,
    minimum,
    multiply,
    negative,
    where,
)
from graphc.ops.create import iota
from graphc.ops.define import as_tensor, as_tensors, broadcast_shapes, normalize_axis
from graphc.ops.indexed import checked_index
from graphc.ops.math import exp, log, log1p, sqrt, square
from graphc.ops.reduce import max, mean, sum
from graphc.ops.shape import expand_dims
from graphc.ops.state import stop_gradient
from graphc.ops.statistics import l2_normalize, log_softmax
from graphc.types import int32


def _reduced(values: Tensor, reduction: str) -> Tensor:
    if reduction == "mean":
        return mean(values)
    if reduction == "sum":
        return sum(values)
    if reduction == "none":
        return values
    raise GraphTypeError(f"reduction is 'mean', 'sum' or 'none', not {reduction!r}")


def _weighted(values: Tensor, weights: Any, reduction: str) -> Tensor:
    return _reduced(values if weights is None else values * weights, reduction)


def _same_shape(what: str, a: Tensor, b: Tensor) -> None:
    """Refuse operands that would only fit by broadcasting: [n] against [n,1] is a mistake."""
    if a.type.shape is None or b.type.shape is None:
        return
    if len(a.type.shape) != len(b.type.shape):
        raise ShapeError(f"{what}: labels {a.type} and predictions {b.type} differ in rank")
    broadcast_shapes([a.type.shape, b.type.shape])


# ---- classification ----------------------------------------------------------------------------


def softmax_cross_entropy_with_logits(labels: Any, logits: Any, axis: int = -1) -> Tensor:
    """-sum(labels * log_softmax(logits)) over `axis`; labels are probabilities."""
    z = as_tensor(logits)
    p = as_tensor(labels)
    _same_shape("softmax_cross_entropy_with_logits", p, z)
    return negative(sum(astype(p, z.dtype) * log_softmax(z, axis), axis=axis))


def sparse_softmax_cross_entropy_with_logits(labels: Any, logits: Any) -> Tensor:
    """-log_softmax(logits)[..., label]: labels are integers, of the shape of logits[..., 0].

    A label outside [0, number of classes) is an IndexOutOfRangeError when run.  The chosen logit is
    found by comparison, not by a gather, so that the loss and its gradient are one loop nest.
    """
    z = as_tensor(logits)
    chosen = as_tensor(labels)
    if len(z.dims) == 0 or len(chosen.dims) != len(z.dims) - 1:
        raise ShapeError(
            "sparse_softmax_cross_entropy_with_logits: labels have one axis less than logits; "
            f"got {chosen.type} and {z.type}"
        )
    classes = z.dims[-1]
    index = astype(
        checked_index(chosen, classes, axis=len(z.dims) - 1, caller="sparse_softmax_cross_entropy"),
        int32,
    )
    hit = equal(iota(classes, int32), expand_dims(index, -1))
    shifted = z - stop_gradient(max(z, axis=-1, keepdims=True))
    return log(sum(exp(shifted), axis=-1)) - sum(where(hit, shifted, 0), axis=-1)


def sigmoid_cross_entropy_with_logits(labels: Any, logits: Any) -> Tensor:
    """max(x, 0) - x * z + log(1 + exp(-|x|)) for logits x and labels z in [0, 1]."""
    x = as_tensor(logits)
    z = as_tensor(labels)
    _same_shape("sigmoid_cross_entropy_with_logits", z, x)
    return maximum(x, 0) - x * astype(z, x.dtype) + log1p(exp(-abs(x)))


def weighted_cross_entropy_with_logits(labels: Any, logits: Any, pos_weight: Any) -> Tensor:
    """The sigmoid cross-entropy with the term of positive labels multiplied by pos_weight."""
    x = as_tensor(logits)
    z = astype(as_tensor(labels), x.dtype)
    weight = 1 + (as_tensor(pos_weight, x.dtype) - 1) * z
    return (1 - z) * x + weight * (log1p(exp(-abs(x))) + maximum(-x, 0))


def hinge_loss(labels: Any, logits: Any, weights: Any = None, reduction: str = "mean") -> Tensor:
    """max(0, 1 - y * logits) where y is -1 for label 0 and 1 for label 1."""
    x = as_tensor(logits)
    sign = 2 * astype(as_tensor(labels), x.dtype) - 1
    return _weighted(maximum(1 - sign * x, 0), weights, reduction)


def log_loss(
    labels: Any,
    predictions: Any,
    weights: Any = None,
    epsilon: float = 1e-7,
    reduction: str = "mean",
) -> Tensor:
    """-y log(p + epsilon) - (1 - y) log(1 - p + epsilon): p are probabilities, not logits."""
    p = as_tensor(predictions)
    y = astype(as_tensor(labels), p.dtype)
    values = -y * log(p + epsilon) - (1 - y) * log(1 - p + epsilon)
    return _weighted(values, weights, reduction)


# ---- regression --------------------------------------------------------------------------------


def l2_loss(t: Any) -> Tensor:
    """sum(t * t) / 2."""
    return multiply(sum(square(t)), 0.5)


def _difference(what: str, labels: Any, predictions: Any) -> Tensor:
    y, p = as_tensors(labels, predictions)
    _same_shape(what, y, p)
    return p - y


def mean_squared_error(
    labels: Any, predictions: Any, weights: Any = None, reduction: str = "mean"
) -> Tensor:
    """(predictions - labels)²."""
    difference = _difference("mean_squared_error", labels, predictions)
    return _weighted(square(difference), weights, reduction)


def absolute_difference(
    labels: Any, predictions: Any, weights: Any = None, reduction: str = "mean"
) -> Tensor:
    """|predictions - labels|."""
    difference = _difference("absolute_difference", labels, predictions)
    return _weighted(abs(difference), weights, reduction)


def huber_loss(
    labels: Any,
    predictions: Any,
    weights: Any = None,
    delta: float = 1.0,
    reduction: str = "mean",
) -> Tensor:
    """d²/2 for |d| <= delta, delta * (|d| - delta/2) beyond (Huber, 1964)."""
    size = abs(_difference("huber_loss", labels, predictions))
    near = minimum(size, delta)
    return _weighted(0.5 * square(near) + delta * (size - near), weights, reduction)


def smooth_l1_loss(
    labels: Any, predictions: Any, sigma: float = 1.0, reduction: str = "sum"
) -> Tensor:
    """(sigma d)²/2 for |d| <= 1/sigma², |d| - 1/(2 sigma²) beyond (Fast R-CNN, 2015)."""
    size = abs(_difference("smooth_l1_loss", labels, predictions))
    bound = 1.0 / sigma**2
    values = where(less_equal(size, bound), 0.5 * sigma**2 * square(size), size - 0.5 * bound)
    return _reduced(values, reduction)


# ---- distributions and embeddings --------------------------------------------------------------


def kl_divergence(p: Any, q: Any, axis: int = -1) -> Tensor:
    """sum(p * log(p / q)) over `axis`, with 0 log 0 = 0."""
    a, b = as_tensors(p, q)
    some = equal(a, 0)
    ratio = log(where(some, 1, a)) - log(where(some, 1, b))
    return sum(a * ratio, axis=axis)


def cosine_distance(labels: Any, predictions: Any, axis: int = -1) -> Tensor:
    """1 - the cosine of the angle between labels and predictions along `axis`."""
    y, p = as_tensors(labels, predictions)
    return 1 - sum(l2_normalize(y, axis) * l2_normalize(p, axis), axis=axis)


def contrastive_loss(
    labels: Any, anchor: Any, other: Any, margin: float = 1.0, reduction: str = "mean"
) -> Tensor:
    """y d² + (1 - y) max(margin - d, 0)² for rows at distance d; y is 1 for a pair that belongs
    together (Hadsell, Chopra and LeCun, 2006).
    """
    a, b = as_tensors(anchor, other)
    squared = sum(square(a - b), axis=-1)
    same = equal(squared, 0)
    distance = where(same, 0, sqrt(where(same, 1, squared)))
    y = astype(as_tensor(labels), a.dtype)
    apart = square(maximum(margin - distance, 0))
    return _reduced(y * squared + (1 - y) * apart, reduction)


def triplet_loss(
    anchor: Any, positive: Any, negatives: Any, margin: float = 1.0, reduction: str = "mean"
) -> Tensor:
    """max(0, |a - p|² - |a - n|² + margin) for rows (Schroff, Kalenichenko and Philbin, 2015)."""
    a, p, n = as_tensors(anchor, positive, negatives)
    near = sum(square(a - p), axis=-1)
    far = sum(square(a - n), axis=-1)
    return _reduced(maximum(near - far + margin, 0), reduction)


def total_variation(images: Any) -> Tensor:
    """The sum of |neighbour differences| of every [..., height, width, channel] image."""
    x = as_tensor(images)
    rank = len(x.dims)
    if rank < 3:
        raise ShapeError(f"total_variation: {x.type} is not a batch of images")
    height = normalize_axis(-3, rank)
    lead = (slice(None),) * height
    down = x[(*lead, slice(1, None))] - x[(*lead, slice(None, -1))]
    every = slice(None)
    right = x[(*lead, every, slice(1, None))] - x[(*lead, every, slice(None, -1))]
    axes = tuple(range(height, rank))
    return add(sum(abs(down), axis=axes), sum(abs(right), axis=axes))


__all__ = [
    "absolute_difference",
    "contrastive_loss",
    "cosine_distance",
    "hinge_loss",
    "huber_loss",
    "kl_divergence",
    "l2_loss",
    "log_loss",
    "mean_squared_error",
    "sigmoid_cross_entropy_with_logits",
    "smooth_l1_loss",
    "softmax_cross_entropy_with_logits",
    "sparse_softmax_cross_entropy_with_logits",
    "total_variation",
    "triplet_loss",
    "weighted_cross_entropy_with_logits",
]
