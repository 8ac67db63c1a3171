"""Elementwise arithmetic, comparison, logic, selection and casts, named as in NumPy.

Imports: ops.define, types.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from graphc.errors import IntegerDivisionError
from graphc.graph import make
from graphc.kernel import Expr
from graphc.node import Attrs, Tensor
from graphc.ops.define import (
    NOT_DIFFERENTIABLE,
    Sample,
    Samples,
    ScalarBuilder,
    as_tensor,
    bind_function,
    elementwise,
    op,
)
from graphc.types import (
    DTYPES,
    FLOATS,
    NUMBERS,
    TensorType,
    as_dtype,
)

# ---- add ---------------------------------------------------------------------------------------
add = elementwise(
    "add",
    arity=2,
    scalar=lambda s, x, y: s.or_(x, y) if x.dtype.is_bool else s.add(x, y),
    reference=np.add,
    vjp=lambda y, g, a, b: [g, g],
    operator=True,
    commutative=True,
    onnx="Add",
)

# ---- subtract ----------------------------------------------------------------------------------
subtract = elementwise(
    "subtract",
    arity=2,
    dtypes=NUMBERS,
    scalar=lambda s, x, y: s.sub(x, y),
    reference=np.subtract,
    vjp=lambda y, g, a, b: [g, -g],
    operator=True,
    onnx="Sub",
)

# ---- multiply ----------------------------------------------------------------------------------
multiply = elementwise(
    "multiply",
    arity=2,
    scalar=lambda s, x, y: s.and_(x, y) if x.dtype.is_bool else s.mul(x, y),
    reference=np.multiply,
    vjp=lambda y, g, a, b: [g * b, g * a],
    operator=True,
    commutative=True,
    onnx="Mul",
)

# ---- divide ------------------------------------------------------------------------------------
divide = elementwise(
    "divide",
    arity=2,
    dtypes=FLOATS,
    to_float=True,
    scalar=lambda s, x, y: s.div(x, y),
    reference=np.divide,
    vjp=lambda y, g, a, b: [g / b, -(g * y) / b],
    low=0.5,
    high=3.0,
    edges=(0.0, -0.0, np.inf, -np.inf, np.nan, 1.0),
    operator=True,
    onnx="Div",
)

# ---- floor_divide, remainder, fmod: integer division by zero is a fault ------------------------


def _nonzero(s: ScalarBuilder, y: Expr) -> Expr:
    """The divisor, with a fault where an integer divisor is zero."""
    if y.dtype.is_float:
        return y
    return s.check(y, s.ne(y, 0), IntegerDivisionError, "integer division by zero")


def _integer_division(function: Any) -> Any:
    def reference(x: Any, y: Any) -> Any:
        if np.issubdtype(np.asarray(y).dtype, np.integer) and np.any(np.asarray(y) == 0):
            raise IntegerDivisionError("integer division by zero")
        return function(x, y)

    return reference


def _floor_divide_body(s: ScalarBuilder, x: Expr, y: Expr) -> Expr:
    return s.floordiv(x, _nonzero(s, y))


floor_divide = elementwise(
    "floor_divide",
    arity=2,
    dtypes=NUMBERS,
    scalar=_floor_divide_body,
    reference=_integer_division(np.floor_divide),
    vjp=lambda y, g, a, b: [None, None],
    low=1.0,
    high=9.0,
    operator=True,
    doc="floor(x / y), with Python's signs; an integer division by zero is an error when run.",
)

remainder = elementwise(
    "remainder",
    arity=2,
    dtypes=NUMBERS,
    scalar=lambda s, x, y: s.mod(x, _nonzero(s, y)),
    reference=_integer_division(np.remainder),
    vjp=lambda y, g, a, b: [g, -g * floor_divide(a, b)],
    low=1.0,
    high=9.0,
    operator=True,
    onnx="Mod",
    doc="x - y * floor(x / y): the result has the sign of y, as Python's %.",
)

fmod = elementwise(
    "fmod",
    arity=2,
    dtypes=NUMBERS,
    scalar=lambda s, x, y: s.fmod(x, _nonzero(s, y)),
    reference=_integer_division(np.fmod),
    vjp=lambda y, g, a, b: [g, (y - a) / b * g],
    low=1.0,
    high=9.0,
    doc="C's remainder: the result has the sign of x.",
)

# ---- negative, abs -----------------------------------------------------------------------------
negative = elementwise(
    "negative",
    dtypes=NUMBERS,
    scalar=lambda s, x: s.neg(x),
    reference=np.negative,
    vjp=lambda y, g, a: [-g],
    edges=(0.0, -0.0, np.inf, np.nan),
    operator=True,
    onnx="Neg",
)

abs = elementwise(
    "abs",
    dtypes=NUMBERS,
    scalar=lambda s, x: s.abs(x),
    reference=np.abs,
    vjp=lambda y, g, a: [g * sign(a)],
    edges=(0.0, -0.0, np.inf, np.nan),
    operator=True,
    onnx="Abs",
    doc="|x|; the gradient at 0 is 0.",
)


def _sign_body(s: ScalarBuilder, x: Expr) -> Expr:
    one, zero = s.const(1, x), s.const(0, x)
    if x.dtype.kind == "u":
        return s.select(s.ne(x, 0), one, zero)
    signed = s.select(s.lt(x, 0), s.const(-1, x), s.select(s.gt(x, 0), one, zero))
    return s.select(s.isnan(x), x, signed) if x.dtype.is_float else signed


sign: Callable[..., Tensor] = elementwise(
    "sign",
    dtypes=NUMBERS,
    scalar=_sign_body,
    reference=np.sign,
    vjp=lambda y, g, a: [None],
    edges=(0.0, -0.0, np.inf, -np.inf, np.nan),
    onnx="Sign",
)

# ---- comparisons -------------------------------------------------------------------------------


def _comparison(name: str, scalar: str, onnx: str) -> Callable[..., Tensor]:
    return elementwise(
        name,
        arity=2,
        result="bool",
        dtypes=DTYPES,
        scalar=lambda s, x, y: s.apply(scalar, x, y),
        reference=getattr(np, name),
        vjp=NOT_DIFFERENTIABLE,
        edges=(0.0, -0.0, np.inf, -np.inf, np.nan),
        operator=True,
        onnx=onnx,
    )


equal = _comparison("equal", "eq", "Equal")
not_equal = _comparison("not_equal", "ne", "")
less = _comparison("less", "lt", "Less")
less_equal = _comparison("less_equal", "le", "LessOrEqual")
greater = _comparison("greater", "gt", "Greater")
greater_equal = _comparison("greater_equal", "ge", "GreaterOrEqual")

# ---- maximum, minimum --------------------------------------------------------------------------
# Where both operands are equal each gets half the gradient, so that it sums to one (TF splits too).


def _extreme_vjp(y: Tensor, g: Tensor, a: Tensor, b: Tensor) -> list[Tensor]:
    share = where(equal(a, b), g * 0.5, g)
    return [where(equal(a, y), share, 0), where(equal(b, y), share, 0)]


maximum = elementwise(
    "maximum",
    arity=2,
    dtypes=DTYPES,
    scalar=lambda s, x, y: s.or_(x, y) if x.dtype.is_bool else s.max(x, y),
    reference=np.maximum,
    vjp=_extreme_vjp,
    edges=(0.0, np.inf, -np.inf, np.nan),
    commutative=True,
    onnx="Max",
    doc="The larger of x and y; NaN if either is.",
)

minimum = elementwise(
    "minimum",
    arity=2,
    dtypes=DTYPES,
    scalar=lambda s, x, y: s.and_(x, y) if x.dtype.is_bool else s.min(x, y),
    reference=np.minimum,
    vjp=_extreme_vjp,
    edges=(0.0, np.inf, -np.inf, np.nan),
    commutative=True,
    onnx="Min",
    doc="The smaller of x and y; NaN if either is.",
)

# ---- where -------------------------------------------------------------------------------------
where: Callable[..., Tensor] = elementwise(
    "where",
    arity=3,
    result="select",
    dtypes=DTYPES,
    scalar=lambda s, c, a, b: s.select(c, a, b),
    reference=np.where,
    vjp=lambda y, g, c, a, b: [None, where(c, g, 0), where(c, 0, g)],
    onnx="Where",
    doc="where(condition, x, y): x where the bool condition holds, else y; the three broadcast.",
)

# ---- astype ------------------------------------------------------------------------------------


def _infer_cast(types: Any, attrs: Attrs) -> tuple[TensorType, ...]:
    return (TensorType(attrs["dtype"], types[0].shape),)


def _cast_reference(attrs: Attrs, x: Any) -> Any:
    target = attrs["dtype"]
    if target.is_integer and np.issubdtype(x.dtype, np.floating):
        info = np.iinfo(target.numpy)
        with np.errstate(all="ignore"):
            whole = np.trunc(np.nan_to_num(x.astype(np.float64), nan=0.0))
            inside = np.clip(whole, float(info.min), float(info.max))
            cast = inside.astype(target.numpy)
        # float(info.max) of 64-bit types rounds up to a value that does not fit
        return np.where(whole >= float(info.max), target.numpy.type(info.max), cast)
    with np.errstate(all="ignore"):
        return x.astype(target.numpy)


_cast = op(
    "cast",
    "elementwise",
    infer=_infer_cast,
    reference=_cast_reference,
    vjp=lambda y, g, x: [astype(g, x.dtype) if x.dtype.is_float else None],
    lower=lambda s, x, dtype: s.cast(x, dtype),
    samples=Samples(
        tuple(Sample(((3, 5),), {"dtype": d}) for d in DTYPES), -9.0, 99.0, dtypes=DTYPES
    ),
    onnx="Cast",
    dtypes=DTYPES,
)


def astype(x: Any, dtype: Any, name: str | None = None) -> Tensor:
    """x converted to `dtype`.

    Float to integer truncates and saturates (NaN gives 0); anything to bool is `x != 0`.
    """
    tensor = as_tensor(x)
    target = as_dtype(dtype)
    if tensor.dtype is target:
        return tensor
    return make(_cast, (tensor,), {"dtype": target}, name).outputs[0]


bind_function(_cast, astype, "astype")
cast = astype
