"""Small numerical functions of NumPy and TensorFlow that are a few operators each.

Imports: ops.define, ops.arithmetic, ops.create, ops.einsum, ops.index, ops.join, ops.logic,
ops.math, ops.reduce, ops.shape, ops.sizes, ops.diagonal, ops.state, dims, types.
"""

from __future__ import annotations

import builtins
import math
from collections.abc import Sequence
from typing import Any

from graphc import dims
from graphc.errors import GraphTypeError, ShapeError
from graphc.node import Tensor
from graphc.ops.arithmetic import (
    add,
    astype,
    divide,
    equal,
    less,
    less_equal,
    multiply,
    negative,
    not_equal,
    subtract,
    where,
)
from graphc.ops.create import iota
from graphc.ops.define import as_tensor, as_tensors, floated, normalize_axis, promoted
from graphc.ops.diagonal import diagonal
from graphc.ops.index import getitem
from graphc.ops.join import concat, stack
from graphc.ops.linalg import matmul
from graphc.ops.math import log, log1p, logaddexp, sqrt
from graphc.ops.reduce import max, mean, min, sum
from graphc.ops.shape import broadcast_like, expand_dims, matrix_transpose, reshape
from graphc.ops.state import ensure_shape
from graphc.types import int64

# ---- elementwise -------------------------------------------------------------------------------


def deg2rad(x: Any) -> Tensor:
    """Degrees as radians."""
    return multiply(floated(as_tensor(x)), math.pi / 180)


def rad2deg(x: Any) -> Tensor:
    """Radians as degrees."""
    return multiply(floated(as_tensor(x)), 180 / math.pi)


radians, degrees = deg2rad, rad2deg


def heaviside(x: Any, at_zero: Any) -> Tensor:
    """0 where x < 0, `at_zero` where x is 0, 1 where x > 0; NaN stays."""
    x, value = promoted("heaviside", [floated(t) for t in as_tensors(x, at_zero)])
    return where(less(x, 0), 0, where(equal(x, 0), value, where(equal(x, x), 1, x)))


def logaddexp2(x: Any, y: Any) -> Tensor:
    """log2(2**x + 2**y), without overflow."""
    x, y = promoted("logaddexp2", [floated(t) for t in as_tensors(x, y)])
    scale = math.log(2.0)
    return divide(logaddexp(multiply(x, scale), multiply(y, scale)), scale)


def logit(p: Any) -> Tensor:
    """log(p / (1 - p)), the inverse of the sigmoid."""
    p = floated(as_tensor(p))
    return subtract(log(p), log1p(negative(p)))


# ---- sums --------------------------------------------------------------------------------------


def add_n(xs: Sequence[Any]) -> Tensor:
    """The sum of a list of tensors, which broadcast."""
    tensors = list(as_tensors(*xs))
    if not tensors:
        raise ShapeError("add_n: no tensors")
    while len(tensors) > 1:
        # pairwise, so that the sum is balanced however long the list
        pairs = [add(a, b) for a, b in zip(tensors[::2], tensors[1::2], strict=False)]
        tensors = [*pairs, *tensors[2 * len(pairs) :]]
    return tensors[0]


def count_nonzero(x: Any, axis: Any = None, keepdims: bool = False) -> Tensor:
    """How many elements over `axis` are not 0, as int64."""
    return sum(astype(not_equal(as_tensor(x), 0), int64), axis=axis, keepdims=keepdims)


def ptp(x: Any, axis: Any = None, keepdims: bool = False) -> Tensor:
    """The largest element over `axis` less the smallest."""
    return subtract(max(x, axis=axis, keepdims=keepdims), min(x, axis=axis, keepdims=keepdims))


def average(x: Any, axis: Any = None, weights: Any = None, keepdims: bool = False) -> Tensor:
    """The mean over `axis`, weighted by `weights` of x's shape (or of the size of one `axis`)."""
    if weights is None:
        return mean(x, axis=axis, keepdims=keepdims)
    x, w = promoted("average", [floated(t) for t in as_tensors(x, weights)])
    if isinstance(axis, int) and len(w.dims) == 1:
        a = normalize_axis(axis, len(x.dims))
        w = reshape(w, (-1, *(1,) * (len(x.dims) - 1 - a)))
    total = sum(broadcast_like(w, x), axis=axis, keepdims=keepdims)
    return divide(sum(x * w, axis=axis, keepdims=keepdims), total)


# ---- along an axis -----------------------------------------------------------------------------


def _along(axis: int, part: slice) -> tuple[slice, ...]:
    return (*(slice(None),) * axis, part)


def diff(x: Any, n: int = 1, axis: int = -1, prepend: Any = None, append: Any = None) -> Tensor:
    """The n-th differences of neighbours along `axis`, after the optional parts are joined on."""
    if n < 0:
        raise GraphTypeError(f"diff: the order is not negative, not {n}")
    y = as_tensor(x)
    a = normalize_axis(axis, len(y.dims))
    if n == 0:
        return y
    parts = [p for p in (prepend, y, append) if p is not None]
    if len(parts) > 1:
        y = concat(parts, a)
    for _ in range(n):
        later, earlier = getitem(y, _along(a, slice(1, None))), getitem(y, _along(a, slice(-1)))
        y = not_equal(later, earlier) if y.dtype.is_bool else subtract(later, earlier)
    return y


def trapezoid(y: Any, x: Any = None, dx: Any = 1.0, axis: int = -1) -> Tensor:
    """The integral of samples y along `axis` by the trapezoidal rule, at points x or dx apart."""
    y = floated(as_tensor(y))
    a = normalize_axis(axis, len(y.dims))
    steps = dx
    if x is not None:
        points = as_tensor(x)
        if len(points.dims) == 1:
            points = reshape(points, (-1, *(1,) * (len(y.dims) - 1 - a)))
            steps = diff(points, axis=0)
        else:
            steps = diff(points, axis=a - len(y.dims))
    heights = getitem(y, _along(a, slice(1, None))) + getitem(y, _along(a, slice(-1)))
    return sum(multiply(heights, steps) * 0.5, axis=a - len(y.dims))


def searchsorted(a: Any, v: Any, side: str = "left") -> Tensor:
    """Where each v would be inserted into the ascending vector a, as int64.

    The first such place for side 'left', the last for 'right'.  Every v is compared with all of a.
    """
    if side not in ("left", "right"):
        raise GraphTypeError(f"searchsorted: side is 'left' or 'right', not {side!r}")
    a, v = promoted("searchsorted", as_tensors(a, v))
    if len(a.dims) != 1:
        raise ShapeError(f"searchsorted: {a.type} is not a vector")
    before = less if side == "left" else less_equal
    return sum(astype(before(a, expand_dims(v, -1)), int64), axis=-1)


def digitize(x: Any, bins: Any, right: bool = False) -> Tensor:
    """The bin of each x, for ascending `bins`: i where bins[i-1] <= x < bins[i].

    With `right`, where bins[i-1] < x <= bins[i].
    """
    return searchsorted(bins, x, "left" if right else "right")


def sequence_mask(lengths: Any, maxlen: Any, dtype: Any = "bool") -> Tensor:
    """[..., maxlen] of whether the position is below the length."""
    n = as_tensor(lengths)
    return astype(less(iota(maxlen), expand_dims(astype(n, int64), -1)), dtype)


# ---- products ----------------------------------------------------------------------------------


def kron(a: Any, b: Any) -> Tensor:
    """The Kronecker product: blocks of b, each multiplied by an element of a."""
    a, b = promoted("kron", as_tensors(a, b))
    rank = builtins.max(len(a.dims), len(b.dims))
    left = (*(1,) * (rank - len(a.dims)), *a.dims)
    right = (*(1,) * (rank - len(b.dims)), *b.dims)
    a = reshape(a, tuple(d for n in left for d in (n, 1)))
    b = reshape(b, tuple(d for n in right for d in (1, n)))
    merged = tuple(dims.mul(m, n) for m, n in zip(left, right, strict=True))
    return reshape(multiply(a, b), merged)


def cross(a: Any, b: Any, axis: int = -1) -> Tensor:
    """The cross product of vectors of three elements along `axis`."""
    a, b = promoted("cross", as_tensors(a, b))

    def parts(x: Tensor) -> list[Tensor]:
        at = normalize_axis(axis, len(x.dims))
        if isinstance(x.dims[at], int) and x.dims[at] != 3:
            raise ShapeError(f"cross: axis {axis} of {x.type} does not have 3 elements")
        x = ensure_shape(x, (*x.dims[:at], 3, *x.dims[at + 1 :]))
        return [getitem(x, (*(slice(None),) * at, i)) for i in range(3)]

    (ax, ay, az), (bx, by, bz) = parts(a), parts(b)
    return stack([ay * bz - az * by, az * bx - ax * bz, ax * by - ay * bx], axis)


# ---- covariance --------------------------------------------------------------------------------


def cov(
    x: Any, rowvar: bool = True, ddof: int = 1, fweights: Any = None, aweights: Any = None
) -> Tensor:
    """The covariance matrix of variables in rows (in columns unless `rowvar`), as np.cov.

    fweights   how often each observation occurred; aweights: how much each counts
    """
    x = floated(as_tensor(x))
    if len(x.dims) > 2:
        raise ShapeError(f"cov: {x.type} has more than 2 axes")
    scalar = len(x.dims) < 2
    rows = reshape(x, (1, -1)) if scalar else (x if rowvar else matrix_transpose(x))
    frequency = None if fweights is None else astype(as_tensor(fweights), x.dtype)
    weight = None if aweights is None else astype(as_tensor(aweights), x.dtype)
    both = [w for w in (frequency, weight) if w is not None]
    w = both[0] if both else astype(broadcast_like(as_tensor(1), getitem(rows, 0)), x.dtype)
    if len(both) == 2:
        w = multiply(*both)
    total = sum(w)
    centred = rows - divide(sum(rows * w, axis=1, keepdims=True), total)
    lost: Any = ddof
    if weight is not None:
        lost = divide(multiply(sum(w * weight), ddof), total)
    matrix = divide(matmul(centred * w, centred, transpose_b=True), subtract(total, lost))
    one = scalar or rows.dims[0] == 1
    return reshape(matrix, ()) if one else matrix


def corrcoef(x: Any, rowvar: bool = True) -> Tensor:
    """The correlation coefficients of variables in rows (in columns unless `rowvar`)."""
    matrix = cov(x, rowvar)
    if not matrix.dims:
        return divide(matrix, matrix)
    deviation = sqrt(diagonal(matrix))
    return divide(matrix, multiply(expand_dims(deviation, 1), deviation))


__all__ = [
    "add_n",
    "average",
    "corrcoef",
    "count_nonzero",
    "cov",
    "cross",
    "deg2rad",
    "degrees",
    "diff",
    "digitize",
    "heaviside",
    "kron",
    "logaddexp2",
    "logit",
    "ptp",
    "rad2deg",
    "radians",
    "searchsorted",
    "sequence_mask",
    "trapezoid",
]
