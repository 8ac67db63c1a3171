"""Functions that leave NaN out or replace it, named as in NumPy.

Imports: ops.define, ops.arithmetic, ops.logic, ops.reduce, types.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from graphc.node import Tensor
from graphc.ops.arithmetic import astype, divide, equal, maximum, minimum, where
from graphc.ops.define import as_tensor, as_tensors, floated, promoted
from graphc.ops.logic import isnan, logical_not
from graphc.ops.reduce import all, max, min, sum

# ---- elementwise -------------------------------------------------------------------------------


def isposinf(x: Any) -> Tensor:
    """Whether each element is +inf."""
    return equal(floated(as_tensor(x)), np.inf)


def isneginf(x: Any) -> Tensor:
    """Whether each element is -inf."""
    return equal(floated(as_tensor(x)), -np.inf)


def fmax(x: Any, y: Any) -> Tensor:
    """The larger of x and y; where one is NaN, the other."""
    x, y = promoted("fmax", as_tensors(x, y))
    return where(isnan(x), y, where(isnan(y), x, maximum(x, y)))


def fmin(x: Any, y: Any) -> Tensor:
    """The smaller of x and y; where one is NaN, the other."""
    x, y = promoted("fmin", as_tensors(x, y))
    return where(isnan(x), y, where(isnan(y), x, minimum(x, y)))


def nan_to_num(
    x: Any, nan: float = 0.0, posinf: float | None = None, neginf: float | None = None
) -> Tensor:
    """x with NaN replaced, and the infinities: by the largest numbers of the dtype by default."""
    values = as_tensor(x)
    if not values.dtype.is_float:
        return values
    largest = float(np.finfo(values.dtype.numpy).max)
    finite = where(isnan(values), nan, values)
    finite = where(isposinf(values), largest if posinf is None else posinf, finite)
    return where(isneginf(values), -largest if neginf is None else neginf, finite)


# ---- reductions --------------------------------------------------------------------------------


def nansum(x: Any, axis: Any = None, keepdims: bool = False) -> Tensor:
    """The sum over `axis` with NaN counted as 0."""
    x = as_tensor(x)
    return sum(where(isnan(x), 0, x), axis=axis, keepdims=keepdims)


def nanmean(x: Any, axis: Any = None, keepdims: bool = False) -> Tensor:
    """The mean over `axis` of the elements that are not NaN; NaN where there is none."""
    x = floated(as_tensor(x))
    count = sum(astype(logical_not(isnan(x)), x.dtype), axis=axis, keepdims=keepdims)
    return divide(nansum(x, axis, keepdims), count)


def nanmax(x: Any, axis: Any = None, keepdims: bool = False) -> Tensor:
    """The largest element over `axis` that is not NaN; NaN where there is none."""
    x = floated(as_tensor(x))
    empty = all(isnan(x), axis=axis, keepdims=keepdims)
    largest = max(where(isnan(x), -np.inf, x), axis=axis, keepdims=keepdims)
    return where(empty, np.nan, largest)


def nanmin(x: Any, axis: Any = None, keepdims: bool = False) -> Tensor:
    """The smallest element over `axis` that is not NaN; NaN where there is none."""
    x = floated(as_tensor(x))
    empty = all(isnan(x), axis=axis, keepdims=keepdims)
    smallest = min(where(isnan(x), np.inf, x), axis=axis, keepdims=keepdims)
    return where(empty, np.nan, smallest)


__all__ = [
    "fmax",
    "fmin",
    "isneginf",
    "isposinf",
    "nan_to_num",
    "nanmax",
    "nanmean",
    "nanmin",
    "nansum",
]
