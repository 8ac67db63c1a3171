"""Activation functions: one elementwise operator each, so that a layer's tail is one kernel.

Imports: ops.define, ops.arithmetic, ops.join, ops.logic, ops.math, graph, kernel, types.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from graphc.kernel import Expr
from graphc.node import Tensor
from graphc.ops.arithmetic import (
    abs,
    divide,
    greater,
    greater_equal,
    less,
    less_equal,
    multiply,
    negative,
    where,
)
from graphc.ops.define import (
    Sample,
    Samples,
    ScalarBuilder,
    as_tensor,
    as_tensors,
    elementwise,
    floated,
    promoted,
)
from graphc.ops.join import concat, split
from graphc.ops.logic import clip
from graphc.ops.math import SPECIAL, erfc, exp, precise, square, tanh
from graphc.types import FLOATS, SIGNED

_ROOT_HALF = math.sqrt(0.5)
_DENSITY = 1.0 / math.sqrt(2.0 * math.pi)
_SELU_ALPHA = 1.6732632423543772848170429916717
_SELU_SCALE = 1.0507009873554804934193349852946
_TANH_SCALE = math.sqrt(2.0 / math.pi)
_TANH_CUBIC = 0.044715


def _activation(
    name: str,
    scalar: Callable[..., Expr],
    reference: Callable[..., Any],
    vjp: Callable[..., Any],
    *,
    attrs: Mapping[str, Any] | None = None,
    edges: tuple[float, ...] = SPECIAL,
    low: float = -5.0,
    high: float = 5.0,
    onnx: str = "",
    doc: str = "",
) -> Callable[..., Tensor]:
    return elementwise(
        name,
        dtypes=FLOATS,
        to_float=True,
        scalar=scalar,
        reference=precise(reference),
        vjp=vjp,
        attrs=attrs,
        low=low,
        high=high,
        edges=edges,
        onnx=onnx,
        doc=doc,
    )


# ---- rectifiers --------------------------------------------------------------------------------
relu = elementwise(
    "relu",
    dtypes=SIGNED,
    scalar=lambda s, x: s.max(x, 0),
    reference=lambda x: np.maximum(x, x.dtype.type(0)),
    vjp=lambda y, g, x: [where(greater(y, 0), g, 0)],
    edges=SPECIAL,
    onnx="Relu",
    doc="max(x, 0); the gradient at 0 is 0.",
)
relu6 = elementwise(
    "relu6",
    dtypes=SIGNED,
    scalar=lambda s, x: s.min(s.max(x, 0), 6),
    reference=lambda x: np.minimum(np.maximum(x, x.dtype.type(0)), x.dtype.type(6)),
    vjp=lambda y, g, x: [where(greater(y, 0) & less(y, 6), g, 0)],
    low=-9.0,
    high=9.0,
    edges=(*SPECIAL, 6.0),
    doc="min(max(x, 0), 6); the gradient at 0 and 6 is 0.",
)
leaky_relu = _activation(
    "leaky_relu",
    lambda s, x, alpha: s.select(s.gt(x, 0), x, x * alpha),
    lambda x, alpha: np.where(x > 0, x, x * alpha),
    lambda y, g, x: [where(greater(x, 0), g, g * y.node.attrs["alpha"])],
    attrs={"alpha": 0.2},
    onnx="LeakyRelu",
    doc="x where x > 0, else alpha * x (alpha = 0.2).",
)
elu = _activation(
    "elu",
    lambda s, x, alpha: s.select(s.gt(x, 0), x, s.expm1(x) * alpha),
    lambda x, alpha: np.where(x > 0, x, alpha * np.expm1(x)),
    lambda y, g, x: [where(greater(x, 0), g, g * (y + y.node.attrs["alpha"]))],
    attrs={"alpha": 1.0},
    onnx="Elu",
    doc="x where x > 0, else alpha * (exp(x) - 1) (alpha = 1).",
)
selu = _activation(
    "selu",
    lambda s, x: s.select(s.gt(x, 0), x, s.expm1(x) * _SELU_ALPHA) * _SELU_SCALE,
    lambda x: _SELU_SCALE * np.where(x > 0, x, _SELU_ALPHA * np.expm1(x)),
    lambda y, g, x: [where(greater(x, 0), g * _SELU_SCALE, g * (y + _SELU_SCALE * _SELU_ALPHA))],
    onnx="Selu",
    doc="The scaled ELU of self-normalizing networks.",
)

# ---- compositions ------------------------------------------------------------------------------


def celu(x: Any, alpha: float = 1.0) -> Tensor:
    """x where x > 0, else alpha * (exp(x / alpha) - 1)."""
    return multiply(elu(divide(x, alpha)), alpha)


def prelu(x: Any, slope: Any) -> Tensor:
    """x where x > 0, else slope * x; the slope is a tensor, which broadcasts and is learned."""
    x, slope = promoted("prelu", as_tensors(x, slope))
    return where(greater(x, 0), x, slope * x)


def crelu(x: Any, axis: int = -1) -> Tensor:
    """relu(x) and relu(-x), joined along `axis`."""
    x = as_tensor(x)
    return relu(concat([x, negative(x)], axis))


def glu(x: Any, axis: int = -1) -> Tensor:
    """The first half of x along `axis`, gated by the sigmoid of the second."""
    value, gate = split(x, 2, axis)
    return value * sigmoid(gate)


def hard_tanh(x: Any, low: float = -1.0, high: float = 1.0) -> Tensor:
    """x limited to [low, high]."""
    return clip(floated(as_tensor(x)), low, high)


def hard_shrink(x: Any, threshold: float = 0.5) -> Tensor:
    """0 where |x| <= threshold, else x."""
    x = floated(as_tensor(x))
    return where(less_equal(abs(x), threshold), 0, x)


def soft_shrink(x: Any, threshold: float = 0.5) -> Tensor:
    """x moved towards 0 by `threshold`, and 0 where it would change sign."""
    tensor = floated(as_tensor(x))
    return tensor - clip(tensor, -threshold, threshold)


# ---- sigmoid and relatives ---------------------------------------------------------------------


def _sigmoid_array(x: Any) -> Any:
    small = np.exp(-np.abs(x))
    return np.where(x >= 0, 1 / (1 + small), small / (1 + small)) + 0 * np.where(np.isnan(x), x, 0)


def _softplus_array(x: Any) -> Any:
    return np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x)))


def _softplus_expr(s: ScalarBuilder, x: Expr) -> Expr:
    return s.max(x, 0) + s.log1p(s.exp(-s.abs(x)))


sigmoid = _activation(
    "sigmoid",
    lambda s, x: s.sigmoid(x),
    _sigmoid_array,
    lambda y, g, x: [g * y * (1 - y)],
    edges=(*SPECIAL, 90.0, -90.0),
    onnx="Sigmoid",
    doc="1 / (1 + exp(-x)), without overflow.",
)
softplus = _activation(
    "softplus",
    _softplus_expr,
    _softplus_array,
    lambda y, g, x: [g * sigmoid(x)],
    edges=(*SPECIAL, 90.0, -90.0),
    onnx="Softplus",
    doc="log(1 + exp(x)), without overflow.",
)
softsign = _activation(
    "softsign",
    lambda s, x: x / (s.abs(x) + 1),
    lambda x: x / (np.abs(x) + 1),
    lambda y, g, x: [g / square(1 + abs(x))],
    onnx="Softsign",
    doc="x / (1 + |x|).",
)
hard_sigmoid = _activation(
    "hard_sigmoid",
    lambda s, x: s.min(s.max(x + 3, 0), 6) / 6,
    lambda x: np.minimum(np.maximum(x + 3, 0), 6) / 6,
    lambda y, g, x: [where(less(abs(x), 3), g / 6, 0)],
    edges=(*SPECIAL, 3.0, -3.0),
    doc="relu6(x + 3) / 6.",
)


def log_sigmoid(x: Any) -> Tensor:
    """log(sigmoid(x)), without overflow."""
    return negative(softplus(negative(x)))


# ---- gated by their own value ------------------------------------------------------------------


def _silu_vjp(y: Tensor, g: Tensor, x: Tensor) -> list[Tensor]:
    s = sigmoid(x)
    return [g * (s + y * (1 - s))]


silu = _activation(
    "silu",
    lambda s, x: x * s.sigmoid(x),
    lambda x: x * _sigmoid_array(x),
    _silu_vjp,
    doc="x * sigmoid(x), also called swish.",
)
swish = silu


def _hard_swish_vjp(y: Tensor, g: Tensor, x: Tensor) -> list[Tensor]:
    ramp = where(less(abs(x), 3), g * (2 * x + 3) / 6, 0)
    return [where(greater_equal(x, 3), g, ramp)]


hard_swish = _activation(
    "hard_swish",
    lambda s, x: x * (s.min(s.max(x + 3, 0), 6) / 6),
    lambda x: x * (np.minimum(np.maximum(x + 3, 0), 6) / 6),
    _hard_swish_vjp,
    edges=(*SPECIAL, 3.0, -3.0),
    onnx="HardSwish",
    doc="x * relu6(x + 3) / 6.",
)


def _mish_vjp(y: Tensor, g: Tensor, x: Tensor) -> list[Tensor]:
    t = tanh(softplus(x))
    return [g * (t + x * (1 - t * t) * sigmoid(x))]


mish = _activation(
    "mish",
    lambda s, x: x * s.tanh(_softplus_expr(s, x)),
    lambda x: x * np.tanh(_softplus_array(x)),
    _mish_vjp,
    onnx="Mish",
    doc="x * tanh(softplus(x)).",
)

# ---- gelu --------------------------------------------------------------------------------------
# The normal distribution function is erfc(-x / sqrt(2)) / 2: accurate in the lower tail, where
# 1 + erf cancels.

_erfc_array = np.vectorize(math.erfc, otypes=[np.float64])


def _gelu_body(s: ScalarBuilder, x: Expr, approximate: bool) -> Expr:
    if not approximate:
        return x * (s.erfc(x * -_ROOT_HALF) * 0.5)
    inner = (x + x * x * x * _TANH_CUBIC) * _TANH_SCALE
    return x * ((s.tanh(inner) + 1) * 0.5)


def _gelu_reference(x: Any, approximate: bool) -> Any:
    if not approximate:
        return x * (_erfc_array(x * -_ROOT_HALF) * 0.5)
    return x * ((np.tanh((x + x * x * x * _TANH_CUBIC) * _TANH_SCALE) + 1) * 0.5)


def _gelu_vjp(y: Tensor, g: Tensor, x: Tensor) -> list[Tensor]:
    if not y.node.attrs["approximate"]:
        density = exp(x * x * -0.5) * _DENSITY
        return [g * (erfc(x * -_ROOT_HALF) * 0.5 + x * density)]
    t = tanh((x + x * x * x * _TANH_CUBIC) * _TANH_SCALE)
    slope = (x * x * (3 * _TANH_CUBIC) + 1) * _TANH_SCALE
    return [g * ((t + 1) * 0.5 + x * (1 - t * t) * slope * 0.5)]


gelu = elementwise(
    "gelu",
    dtypes=FLOATS,
    to_float=True,
    scalar=_gelu_body,
    reference=precise(_gelu_reference),
    vjp=_gelu_vjp,
    attrs={"approximate": False},
    samples=Samples(
        (Sample(((3, 5),)), Sample(((3, 5),), {"approximate": True})), -5.0, 5.0, SPECIAL
    ),
    onnx="Gelu",
    doc="x * P(N(0, 1) <= x); `approximate=True` takes the tanh form.",
)

__all__ = [
    "celu",
    "crelu",
    "elu",
    "gelu",
    "glu",
    "hard_shrink",
    "hard_sigmoid",
    "hard_swish",
    "hard_tanh",
    "leaky_relu",
    "log_sigmoid",
    "mish",
    "prelu",
    "relu",
    "relu6",
    "selu",
    "sigmoid",
    "silu",
    "soft_shrink",
    "softplus",
    "softsign",
    "swish",
]
