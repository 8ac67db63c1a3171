"""The scalar operations and reducers of the kernel IR on arrays, floats in float64.

Imports: kernel, winograd, types.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from graphc.kernel import Accumulator
from graphc.types import DType, float32
from graphc.winograd import FILTERINGS, TAPS

Array = np.ndarray[Any, Any]


def widen(x: Array) -> Array:
    """float32 as float64; anything else as it is."""
    return x.astype(np.float64) if x.dtype == np.float32 else x


def in_range(x: Array) -> Array:
    """What float32 makes of numbers it cannot hold: infinities above, steps of 2**-149 below."""
    size = np.abs(x)
    odd = (size > 3.4028234663852886e38) | ((size < 1.1754943508222875e-38) & (size > 0))
    if not odd.any():
        return x
    return np.where(odd & np.isfinite(x), x.astype(np.float32).astype(np.float64), x)


def convert(x: Array, source: DType, target: DType) -> Array:
    """The operation 'cast'."""
    if target.is_bool:
        return np.asarray(x != 0)
    if target.is_float:
        made = x.astype(np.float64)
        return in_range(made) if target is float32 else made
    if not source.is_float:
        return x.astype(target.numpy)
    info = np.iinfo(target.numpy)
    whole = np.nan_to_num(np.trunc(x), nan=0.0)
    low, high = whole <= float(info.min), whole >= float(info.max)
    inside = np.where(low | high, 0, whole).astype(target.numpy)
    result = np.where(low, target.numpy.type(info.min), inside)
    return np.where(high, target.numpy.type(info.max), result)


def _elementwise(function: Callable[[float], float]) -> Callable[[Array], Array]:
    made: Callable[[Array], Array] = np.vectorize(function, otypes=[np.float64])
    return made


def _select(condition: Array, a: Array, b: Array) -> Array:
    return np.where(condition, a, b)


def _mulhi(a: Array, b: Array) -> Array:
    return (a.astype(np.uint64) * b.astype(np.uint64) >> np.uint64(32)).astype(np.uint32)


def _divided(function: Callable[..., Array]) -> Callable[[Array, Array], Array]:
    """Integer division that a guard has made harmless: by zero it gives anything."""

    def divide(a: Array, b: Array) -> Array:
        return function(a, np.where(b == 0, b.dtype.type(1), b) if b.dtype.kind in "iu" else b)

    return divide


OPERATIONS: dict[str, Callable[..., Array]] = {
    "fma": lambda a, b, c: a * b + c,
    "select": _select,
    "not": lambda a: np.logical_not(a) if a.dtype.kind == "b" else np.invert(a),
    "mulhi": _mulhi,
    "erf": _elementwise(math.erf),
    "erfc": _elementwise(math.erfc),
    "pow": np.power,
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "floordiv": _divided(np.floor_divide),
    "mod": _divided(np.remainder),
    "fmod": _divided(np.fmod),
}

EXACT = frozenset(
    (
        *(
            "neg",
            "abs",
            "max",
            "min",
            "eq",
            "ne",
            "lt",
            "le",
            "gt",
            "ge",
            "and",
            "or",
            "xor",
            "not",
        ),
        *("shl", "shr", "mulhi", "select", "floor", "ceil", "round", "trunc", "copysign", "isnan"),
        *("isinf", "isfinite", "fmod"),
    )
)
"""Operations without rounding."""

BASIC = frozenset(("add", "sub", "mul", "div", "fma", "sqrt"))
"""Operations that are rounded once."""


def accumulated(acc: Accumulator) -> np.dtype[Any]:
    """The dtype an accumulator is kept in."""
    if acc.op.startswith("arg"):
        return np.dtype(np.int64)
    return np.dtype(np.float64) if acc.dtype.is_float else acc.dtype.numpy


REDUCE: dict[str, Callable[[Array], Array]] = {
    "sum": lambda x: x.sum(-1, dtype=x.dtype),
    "prod": lambda x: x.prod(-1, dtype=x.dtype),
    "max": lambda x: x.max(-1),
    "min": lambda x: x.min(-1),
    "any": lambda x: np.asarray(x.any(-1)),
    "all": lambda x: np.asarray(x.all(-1)),
    "argmax": lambda x: x.argmax(-1),
    "argmin": lambda x: x.argmin(-1),
}


def _running_best(x: Array, best: Callable[..., Array]) -> Array:
    """After each step the first position of the best element so far; NaN is best."""
    so_far = best(x, -1)
    before = so_far[..., :-1]
    better = before != so_far[..., 1:]
    if x.dtype.kind == "f":
        better &= ~(np.isnan(before) & np.isnan(so_far[..., 1:]))
    found = np.zeros(x.shape, np.int64)
    found[..., 1:] = np.where(better, np.arange(1, x.shape[-1]), 0)
    return np.maximum.accumulate(found, -1)


RUNNING: dict[str, Callable[[Array], Array]] = {
    "sum": lambda x: np.cumsum(x, -1, dtype=x.dtype),
    "prod": lambda x: np.cumprod(x, -1, dtype=x.dtype),
    "max": lambda x: np.maximum.accumulate(x, -1),
    "min": lambda x: np.minimum.accumulate(x, -1),
    "any": lambda x: np.logical_or.accumulate(x, -1),
    "all": lambda x: np.logical_and.accumulate(x, -1),
    "argmax": lambda x: _running_best(x, np.maximum.accumulate),
    "argmin": lambda x: _running_best(x, np.minimum.accumulate),
}


def filter_taps(x: Array, winograd: int) -> Array:
    """Matrices of k by columns: of transformed filters, the taps they were made of."""
    if not winograd:
        return x
    rule = FILTERINGS[winograd]
    points = x.reshape(x.shape[0], rule.span, rule.span, -1, x.shape[-1])
    back = np.array(rule.taps)
    found = np.einsum("ip,jq,bpqcn->bijcn", back, back, points)
    return np.asarray(found.reshape(x.shape[0], -1, x.shape[-1]))


GROWTH = {2: 1.0, 4: 10.0}
"""How much larger the numbers in Winograd's matrices make its roundings, by the side of a tile."""


def magnitude(x: Array, y: Array, winograd: int) -> Array:
    """What the roundings of products of matrices, [.., rows, k] and [.., k, columns], are relative
    to: the sums of absolute values.

    Winograd's filtering adds up the taps of a filter, and the inputs of a tile, which are among
    those of all rows, before it multiplies; where one is not finite, nothing is known.
    """
    x, y = np.abs(x), np.abs(y)
    if not winograd:
        return np.asarray(np.matmul(x, y))
    taps = TAPS * TAPS
    x = x.reshape(*x.shape[:2], taps, -1).sum(axis=2).max(axis=1, keepdims=True, initial=0)
    y = y.reshape(y.shape[0], taps, -1, y.shape[2]).sum(axis=1)
    sums = np.matmul(x, y) * GROWTH[winograd]
    return np.where(np.isfinite(sums), sums, np.nan)
