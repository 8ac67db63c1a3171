"""The scalar operations of the kernel IR on NumPy scalars: what `SCALAR_OPS` means, executably.

Imports: types.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np

from graphc.types import DType

Scalar = Any
"""A NumPy scalar of some dtype."""


def wrap(value: int, dtype: DType) -> Scalar:
    """An integer modulo 2**bits, as a value of an integer dtype."""
    value &= (1 << dtype.bits) - 1
    if dtype.is_signed and value >> (dtype.bits - 1):
        value -= 1 << dtype.bits
    return dtype.numpy.type(value)


def fma(a: Scalar, b: Scalar, c: Scalar) -> Scalar:
    """a * b + c, rounded once."""
    kind = type(a)
    if not (np.isfinite(a) and np.isfinite(b) and np.isfinite(c)):
        return a * b + c
    exact = Fraction(float(a)) * Fraction(float(b)) + Fraction(float(c))
    if exact == 0:
        return a * b + c
    if kind is np.float64:
        try:
            return np.float64(float(exact))
        except OverflowError:
            return np.float64(math.inf if exact > 0 else -math.inf)
    return _round_to_single(exact)


def _round_to_single(exact: Fraction) -> Scalar:
    """The float32 nearest to a fraction; float64 first would round twice."""
    near = np.float32(float(exact))
    if not np.isfinite(near):
        return near
    ends = (np.nextafter(near, np.float32(-np.inf)), np.nextafter(near, np.float32(np.inf)))
    found = [x for x in (near, *ends) if np.isfinite(x)]

    def distance(x: Scalar) -> tuple[Fraction, int]:
        return abs(Fraction(float(x)) - exact), int(np.abs(x).view(np.int32)) & 1

    return min(found, key=distance)


def cast(value: Scalar, target: DType) -> Scalar:
    """C conversion; float to int truncates and saturates, NaN gives 0; to bool is `!= 0`."""
    kind = target.numpy.type
    if target.is_bool:
        return kind(value != 0)
    if target.is_float:
        return kind(value)
    if isinstance(value, np.floating):
        if np.isnan(value):
            return kind(0)
        info = np.iinfo(kind)
        if np.isinf(value):
            return kind(info.max if value > 0 else info.min)
        return kind(min(max(int(value), int(info.min)), int(info.max)))
    return wrap(int(value), target)


def _power(a: Scalar, b: Scalar) -> Scalar:
    if isinstance(a, np.floating):
        return np.power(a, b)
    bits = a.dtype.itemsize * 8
    return np.array(pow(int(a), int(b), 1 << bits), np.uint64).astype(a.dtype)[()]


def _sigmoid(x: Scalar) -> Scalar:
    return type(x)(1 / (1 + np.exp(-np.float64(x))))


def _float(function: Callable[[float], float]) -> Callable[[Scalar], Scalar]:
    return lambda x: type(x)(function(float(x)))


def _mulhi(a: Scalar, b: Scalar) -> Scalar:
    return np.uint32(int(a) * int(b) >> 32)


def _logical_or_bits(a: Scalar) -> Scalar:
    return np.logical_not(a) if isinstance(a, np.bool_) else np.invert(a)


NUMPY_OPS: dict[str, Callable[..., Scalar]] = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "div": np.divide,
    "floordiv": np.floor_divide,
    "mod": np.remainder,
    "fmod": np.fmod,
    "fma": fma,
    "neg": np.negative,
    "abs": np.abs,
    "max": np.maximum,
    "min": np.minimum,
    "eq": np.equal,
    "ne": np.not_equal,
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
    "and": np.bitwise_and,
    "or": np.bitwise_or,
    "xor": np.bitwise_xor,
    "not": _logical_or_bits,
    "shl": np.left_shift,
    "shr": np.right_shift,
    "mulhi": _mulhi,
    "select": lambda c, a, b: a if c else b,
    "floor": np.floor,
    "ceil": np.ceil,
    "round": np.rint,
    "trunc": np.trunc,
    "copysign": np.copysign,
    "isnan": np.isnan,
    "isinf": np.isinf,
    "isfinite": np.isfinite,
    "sqrt": np.sqrt,
    "exp": np.exp,
    "expm1": np.expm1,
    "exp2": np.exp2,
    "log": np.log,
    "log1p": np.log1p,
    "log2": np.log2,
    "log10": np.log10,
    "sin": np.sin,
    "cos": np.cos,
    "tan": np.tan,
    "asin": np.arcsin,
    "acos": np.arccos,
    "atan": np.arctan,
    "atan2": np.arctan2,
    "sinh": np.sinh,
    "cosh": np.cosh,
    "tanh": np.tanh,
    "asinh": np.arcsinh,
    "acosh": np.arccosh,
    "atanh": np.arctanh,
    "erf": _float(math.erf),
    "erfc": _float(math.erfc),
    "cbrt": np.cbrt,
    "pow": _power,
    "sigmoid": _sigmoid,
}
"""Every operation of SCALAR_OPS but the conversions, on NumPy scalars of one dtype."""


def apply(op: str, args: list[Scalar], dtype: DType) -> Scalar:
    """The value of one scalar operation; `dtype` is the result's."""
    if op == "cast":
        return cast(args[0], dtype)
    if op == "bitcast":
        return args[0].view(dtype.numpy)
    with np.errstate(all="ignore"):
        return dtype.numpy.type(NUMPY_OPS[op](*args))
