"""Elementwise mathematical functions, named as in NumPy.

Gradients are written in the output where that is the stable form.  References compute float32 in
float64, so that the oracle is better than what it judges.  Imports: ops.define, ops.arithmetic,
graph, kernel, types.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from graphc.errors import GraphTypeError, RunError
from graphc.graph import make
from graphc.kernel import Expr
from graphc.node import OPS, Tensor
from graphc.ops.arithmetic import equal, greater, where
from graphc.ops.define import (
    Sample,
    Samples,
    ScalarBuilder,
    as_tensor,
    as_tensors,
    bind_function,
    constant,
    elementwise,
    promoted,
)
from graphc.ops.shape import broadcast_like
from graphc.types import FLOATS, NUMBERS

Function = Callable[..., Tensor]

SPECIAL = (0.0, -0.0, np.inf, -np.inf, np.nan)
LN2 = math.log(2.0)
LN10 = math.log(10.0)


def precise(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` of float arrays, with float32 computed in float64."""

    def reference(*arrays: Any, **attrs: Any) -> Any:
        dtype = np.asarray(arrays[0]).dtype
        if dtype != np.float32:
            return function(*arrays, **attrs)
        return np.asarray(function(*[np.float64(a) for a in arrays], **attrs)).astype(dtype)

    return reference


def _function(
    name: str,
    scalar: str,
    reference: Callable[..., Any],
    vjp: Any,
    *,
    low: float = -2.0,
    high: float = 2.0,
    edges: tuple[float, ...] = SPECIAL,
    tolerance: float = 1.0,
    onnx: str = "",
    doc: str = "",
) -> Callable[..., Tensor]:
    """A float function of one operand that is one scalar operation of the kernel IR."""
    return elementwise(
        name,
        dtypes=FLOATS,
        to_float=True,
        scalar=lambda s, x: s.apply(scalar, x),
        reference=precise(reference),
        vjp=vjp,
        low=low,
        high=high,
        edges=edges,
        tolerance=tolerance,
        onnx=onnx,
        doc=doc,
    )


# ---- exp, log and relatives --------------------------------------------------------------------
exp = _function("exp", "exp", np.exp, lambda y, g, x: [g * y], low=-4, high=4, onnx="Exp")
exp2 = _function("exp2", "exp2", np.exp2, lambda y, g, x: [g * y * LN2], low=-4, high=4)
expm1 = _function("expm1", "expm1", np.expm1, lambda y, g, x: [g * (y + 1)])
log = _function("log", "log", np.log, lambda y, g, x: [g / x], low=0.1, high=9, onnx="Log")
log2 = _function("log2", "log2", np.log2, lambda y, g, x: [g / (x * LN2)], low=0.1, high=9)
log10 = _function("log10", "log10", np.log10, lambda y, g, x: [g / (x * LN10)], low=0.1, high=9)
log1p = _function(
    "log1p",
    "log1p",
    np.log1p,
    lambda y, g, x: [g / (x + 1)],
    low=-0.9,
    high=4,
    edges=(*SPECIAL, -1.0, 1e-9),
)

# ---- trigonometric -----------------------------------------------------------------------------
sin = _function("sin", "sin", np.sin, lambda y, g, x: [g * cos(x)], low=-9, high=9, onnx="Sin")
cos: Function = _function(
    "cos", "cos", np.cos, lambda y, g, x: [-g * sin(x)], low=-9, high=9, onnx="Cos"
)
tan = _function(
    "tan", "tan", np.tan, lambda y, g, x: [g * (1 + y * y)], low=-1.4, high=1.4, onnx="Tan"
)
arcsin = _function(
    "arcsin",
    "asin",
    np.arcsin,
    # (1 - x)(1 + x) keeps the digits near 1 that 1 - x*x loses
    lambda y, g, x: [g * rsqrt((1 - x) * (1 + x))],
    low=-0.95,
    high=0.95,
    edges=(*SPECIAL, 1.0, -1.0, 2.0),
    onnx="Asin",
)
arccos = _function(
    "arccos",
    "acos",
    np.arccos,
    lambda y, g, x: [-g * rsqrt((1 - x) * (1 + x))],
    low=-0.95,
    high=0.95,
    edges=(*SPECIAL, 1.0, -1.0, 2.0),
    onnx="Acos",
)
arctan = _function("arctan", "atan", np.arctan, lambda y, g, x: [g / (1 + x * x)], onnx="Atan")


def _arctan2_vjp(y: Tensor, g: Tensor, a: Tensor, b: Tensor) -> list[Tensor]:
    # divided twice by the length: the square of the length may overflow where it does not
    length = hypot(a, b)
    length = where(equal(length, 0), 1, length)
    share = g / length
    return [share * (b / length), -share * (a / length)]


arctan2 = elementwise(
    "arctan2",
    arity=2,
    dtypes=FLOATS,
    to_float=True,
    scalar=lambda s, y, x: s.atan2(y, x),
    reference=precise(np.arctan2),
    vjp=_arctan2_vjp,
    edges=(*SPECIAL, 1.0),
    doc="The angle of the point (x, y), in (-pi, pi]: arctan2(y, x); its gradient at (0, 0) is 0.",
)

# ---- hyperbolic --------------------------------------------------------------------------------
sinh = _function("sinh", "sinh", np.sinh, lambda y, g, x: [g * cosh(x)], onnx="Sinh")
cosh: Function = _function("cosh", "cosh", np.cosh, lambda y, g, x: [g * sinh(x)], onnx="Cosh")
tanh = _function(
    "tanh",
    "tanh",
    np.tanh,
    lambda y, g, x: [g * (1 - y * y)],
    low=-4,
    high=4,
    edges=(*SPECIAL, 90.0, -90.0),
    onnx="Tanh",
)
arcsinh = _function(
    "arcsinh", "asinh", np.arcsinh, lambda y, g, x: [g * rsqrt(x * x + 1)], onnx="Asinh"
)
arccosh = _function(
    "arccosh",
    "acosh",
    np.arccosh,
    lambda y, g, x: [g * rsqrt((x - 1) * (x + 1))],
    low=1.1,
    high=9,
    edges=(*SPECIAL, 1.0),
    onnx="Acosh",
)
arctanh = _function(
    "arctanh",
    "atanh",
    np.arctanh,
    lambda y, g, x: [g / ((1 - x) * (1 + x))],
    low=-0.9,
    high=0.9,
    edges=(*SPECIAL, 1.0, -1.0),
    onnx="Atanh",
)

# ---- erf, erfc ---------------------------------------------------------------------------------


def _vectorized(function: Callable[[float], float]) -> Callable[..., Any]:
    return np.vectorize(function, otypes=[np.float64])


_TWO_OVER_ROOT_PI = 2.0 / math.sqrt(math.pi)

erf = _function(
    "erf",
    "erf",
    _vectorized(math.erf),
    lambda y, g, x: [g * exp(-x * x) * _TWO_OVER_ROOT_PI],
    onnx="Erf",
    doc="The error function.",
)
erfc = _function(
    "erfc",
    "erfc",
    _vectorized(math.erfc),
    lambda y, g, x: [-g * exp(-x * x) * _TWO_OVER_ROOT_PI],
    doc="1 - erf(x), accurate where erf(x) is close to 1.",
)

# ---- roots, squares, reciprocal ----------------------------------------------------------------
sqrt = _function(
    "sqrt", "sqrt", np.sqrt, lambda y, g, x: [g * 0.5 / y], low=0.1, high=9, onnx="Sqrt"
)
rsqrt: Function = elementwise(
    "rsqrt",
    dtypes=FLOATS,
    to_float=True,
    scalar=lambda s, x: s.const(1, x) / s.sqrt(x),
    reference=precise(lambda x: 1 / np.sqrt(x)),
    vjp=lambda y, g, x: [g * y * y * y * -0.5],
    low=0.1,
    high=9,
    edges=SPECIAL,
    doc="1 / sqrt(x).",
)
cbrt = _function(
    "cbrt",
    "cbrt",
    np.cbrt,
    lambda y, g, x: [g / (3 * y * y)],
    low=0.1,
    high=9,
    doc="The cube root; negative for negative x.",
)
square = elementwise(
    "square",
    dtypes=NUMBERS,
    scalar=lambda s, x: s.mul(x, x),
    reference=np.square,
    vjp=lambda y, g, x: [g * x * 2],
    edges=SPECIAL,
    doc="x * x.",
)
reciprocal = elementwise(
    "reciprocal",
    dtypes=FLOATS,
    to_float=True,
    scalar=lambda s, x: s.const(1, x) / x,
    reference=np.reciprocal,
    vjp=lambda y, g, x: [-g * y * y],
    low=0.3,
    high=9,
    edges=SPECIAL,
    onnx="Reciprocal",
    doc="1 / x.",
)
squared_difference = elementwise(
    "squared_difference",
    arity=2,
    dtypes=NUMBERS,
    scalar=lambda s, x, y: s.mul(s.sub(x, y), s.sub(x, y)),
    reference=lambda x, y: np.square(x - y),
    vjp=lambda y, g, a, b: [g * (a - b) * 2, g * (b - a) * 2],
    commutative=True,
    doc="(x - y) squared.",
)


def _hypot_body(s: ScalarBuilder, x: Expr, y: Expr) -> Expr:
    a, b = s.abs(x), s.abs(y)
    big, small = s.max(a, b), s.min(a, b)
    ratio = s.select(s.eq(big, 0), s.const(0, x), s.div(small, big))
    length = big * s.sqrt(ratio * ratio + 1)
    infinite = s.or_(s.isinf(x), s.isinf(y))
    return s.select(infinite, s.const(math.inf, x), length)


def _hypot_vjp(y: Tensor, g: Tensor, a: Tensor, b: Tensor) -> list[Tensor]:
    zero = equal(y, 0)
    return [where(zero, 0, g * (a / y)), where(zero, 0, g * (b / y))]


hypot = elementwise(
    "hypot",
    arity=2,
    dtypes=FLOATS,
    to_float=True,
    scalar=_hypot_body,
    reference=precise(np.hypot),
    vjp=_hypot_vjp,
    edges=(*SPECIAL, 1e30),
    commutative=True,
    doc="sqrt(x*x + y*y) without overflow on the way; the gradient at the origin is 0.",
)


def _logaddexp_body(s: ScalarBuilder, x: Expr, y: Expr) -> Expr:
    near = s.max(x, y) + s.log1p(s.exp(-s.abs(x - y)))
    # equal infinities would meet in inf - inf
    return s.select(s.eq(x, y), x + LN2, near)


def _logaddexp_vjp(y: Tensor, g: Tensor, a: Tensor, b: Tensor) -> list[Tensor]:
    """The shares exp(a - y) and exp(b - y); 0 where y is -inf, and so a and b are."""
    total = where(equal(y, -np.inf), 0, y)
    return [g * exp(a - total), g * exp(b - total)]


logaddexp = elementwise(
    "logaddexp",
    arity=2,
    dtypes=FLOATS,
    to_float=True,
    scalar=_logaddexp_body,
    reference=precise(np.logaddexp),
    vjp=_logaddexp_vjp,
    edges=SPECIAL,
    commutative=True,
    doc="log(exp(x) + exp(y)) without overflow.",
)

# ---- power -------------------------------------------------------------------------------------


def _power_body(s: ScalarBuilder, x: Expr, y: Expr) -> Expr:
    if x.dtype.kind == "i":
        message = "an integer to the negative power {value}"
        y = s.check(y, s.ge(y, 0), RunError, message)
    return s.pow(x, y)


def _power_reference(x: Any, y: Any) -> Any:
    if np.issubdtype(np.asarray(y).dtype, np.signedinteger) and np.any(np.asarray(y) < 0):
        raise RunError(f"an integer to the negative power {np.min(y)}")
    return precise(np.power)(x, y)


def _power_vjp(y: Tensor, g: Tensor, a: Tensor, b: Tensor) -> list[Tensor | None]:
    """b * a**(b - 1) and y * log(a); 0 where those would be 0 * inf, or a <= 0 in the second."""
    fixed = b.node.op.name == "constant"
    corner = _and(equal(a, 0), equal(b, 0))
    base = g * b * _power(a, where(corner, 1, b - 1))
    if fixed:
        return [base, None]
    positive = greater(a, 0)
    return [base, where(positive, g * y * log(where(positive, a, 1)), 0)]


def _and(a: Tensor, b: Tensor) -> Tensor:
    return where(a, b, False)


def _power_samples() -> Samples:
    calls = (Sample(((3, 5), (3, 5))), Sample(((4, 1, 3), (2, 3))))
    return Samples(
        calls, 0.3, 3.0, (*SPECIAL, 1.0, -1.0, 2.0, 0.25), NUMBERS, (0, 1), tolerance=4.0
    )


_power = elementwise(
    "power",
    arity=2,
    dtypes=NUMBERS,
    scalar=_power_body,
    reference=_power_reference,
    vjp=_power_vjp,
    samples=_power_samples(),
    onnx="Pow",
)


def power(x: Any, y: Any, name: str | None = None) -> Tensor:
    """x ** y, as np.power; simple Python exponents become sqrt, square or reciprocal.

    The gradient by x is 0 where y is 0, the gradient by y is 0 where x <= 0.  An integer to a
    negative power is an error: at once for a Python exponent, else when run.
    """
    if isinstance(x, Tensor) and type(y) in (int, float):
        simple = _simple_power(as_tensor(x), y)
        if simple is not None:
            return simple
    a, b = promoted("power", as_tensors(x, y))
    return make(_power_op, (a, b), {}, name).outputs[0]


def _simple_power(x: Tensor, exponent: float) -> Tensor | None:
    if not (x.dtype.is_float or (x.dtype.is_integer and isinstance(exponent, int))):
        return None
    if x.dtype.is_integer and exponent < 0:
        raise GraphTypeError(f"power: {x.type} to the negative power {exponent}: cast it first")
    if exponent == 0:
        return broadcast_like(constant(1, x.dtype), x)
    if exponent == 1:
        return x
    makers = {2: square, 3: lambda v: square(v) * v, -1: reciprocal, 0.5: sqrt, -0.5: rsqrt}
    maker = makers.get(exponent)
    return None if maker is None else maker(x)


_power_op = OPS["power"]
bind_function(_power_op, power, "power")
pow = power

# ---- rounding ----------------------------------------------------------------------------------


def _rounding(name: str, reference: Callable[..., Any], onnx: str, doc: str) -> Any:
    scalar = name

    def body(s: ScalarBuilder, x: Expr) -> Expr:
        return s.apply(scalar, x) if x.dtype.is_float else x

    return elementwise(
        name,
        dtypes=NUMBERS,
        scalar=body,
        reference=reference,
        vjp=lambda y, g, x: [None],
        low=-9.0,
        high=9.0,
        edges=(*SPECIAL, 0.5, 1.5, -0.5, -1.5, 2.5, 1e20),
        onnx=onnx,
        doc=doc,
    )


floor = _rounding("floor", np.floor, "Floor", "The largest integer not above x, in x's dtype.")
ceil = _rounding("ceil", np.ceil, "Ceil", "The smallest integer not below x, in x's dtype.")
round = _rounding("round", np.round, "Round", "The nearest integer, halves to even.")
trunc = _rounding("trunc", np.trunc, "", "The integer part of x, towards zero.")

asin, acos, atan, atan2 = arcsin, arccos, arctan, arctan2
asinh, acosh, atanh = arcsinh, arccosh, arctanh

__all__ = [
    "acos",
    "acosh",
    "arccos",
    "arccosh",
    "arcsin",
    "arcsinh",
    "arctan",
    "arctan2",
    "arctanh",
    "asin",
    "asinh",
    "atan",
    "atan2",
    "atanh",
    "cbrt",
    "ceil",
    "cos",
    "cosh",
    "erf",
    "erfc",
    "exp",
    "exp2",
    "expm1",
    "floor",
    "hypot",
    "log",
    "log1p",
    "log2",
    "log10",
    "logaddexp",
    "pow",
    "power",
    "reciprocal",
    "round",
    "rsqrt",
    "sin",
    "sinh",
    "sqrt",
    "square",
    "squared_difference",
    "tan",
    "tanh",
    "trunc",
]
