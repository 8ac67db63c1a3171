"""Matrix products.

`matmul` is the one contraction primitive here; `dot`, `tensordot` and `einsum` are arranged around
it.  Imports: ops.define, ops.shape, ops.arithmetic, graph, dims, types.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from graphc.constraints import require_equal
from graphc.errors import GraphTypeError, ShapeError
from graphc.graph import make
from graphc.node import Attrs, Tensor
from graphc.ops.define import (
    Sample,
    Samples,
    as_tensors,
    bind_function,
    broadcast_shapes,
    op,
    promoted,
)
from graphc.ops.shape import expand_dims, squeeze, sum_to_like
from graphc.types import NUMBERS, TensorType

Types = Sequence[TensorType]

# ---- matmul ------------------------------------------------------------------------------------


def _infer_matmul(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    a, b = types
    if a.dtype is not b.dtype:
        raise GraphTypeError(f"operands have dtypes {a.dtype} and {b.dtype}")
    if a.dtype.is_bool:
        raise GraphTypeError("not defined for dtype bool")
    if a.shape is None or b.shape is None:
        return (TensorType(a.dtype, None),)
    if len(a.shape) < 2 or len(b.shape) < 2:
        raise ShapeError(f"operands have at least 2 axes here, in {a} @ {b}")
    m, k = a.shape[-2:] if not attrs["transpose_a"] else a.shape[-2:][::-1]
    k2, n = b.shape[-2:] if not attrs["transpose_b"] else b.shape[-2:][::-1]
    if k is not k2 and k != k2:
        message = f"inner dimensions differ, {k} and {k2}, in {_product_text(a, b, attrs)}"
        require_equal(k, k2, message)
    batch = broadcast_shapes([a.shape[:-2], b.shape[:-2]])
    assert batch is not None
    return (TensorType(a.dtype, (*batch, m, n)),)


def _product_text(a: TensorType, b: TensorType, attrs: Attrs) -> str:
    left = f"transpose({a})" if attrs["transpose_a"] else str(a)
    right = f"transpose({b})" if attrs["transpose_b"] else str(b)
    return f"{left} @ {right}"


def _matmul_reference(attrs: Attrs, a: Any, b: Any) -> Any:
    if attrs["transpose_a"]:
        a = np.swapaxes(a, -1, -2)
    if attrs["transpose_b"]:
        b = np.swapaxes(b, -1, -2)
    with np.errstate(all="ignore"):
        if a.dtype == np.float32:  # the oracle sums in float64
            return np.matmul(a.astype(np.float64), b.astype(np.float64)).astype(np.float32)
        return np.matmul(a, b)


def _matmul_vjp(y: Tensor, g: Tensor, a: Tensor, b: Tensor) -> list[Tensor]:
    ta, tb = y.node.attrs["transpose_a"], y.node.attrs["transpose_b"]
    da = _matmul(g, b, False, not tb) if not ta else _matmul(b, g, tb, True)
    db = _matmul(a, g, not ta, False) if not tb else _matmul(g, a, True, ta)
    return [sum_to_like(da, a), sum_to_like(db, b)]


matmul_op = op(
    "matmul",
    "contraction",
    infer=_infer_matmul,
    reference=_matmul_reference,
    vjp=_matmul_vjp,
    samples=Samples(
        (
            Sample(((3, 4), (4, 5))),
            Sample(((4, 3), (4, 5)), {"transpose_a": True}),
            Sample(((3, 4), (5, 4)), {"transpose_b": True}),
            Sample(((4, 3), (5, 4)), {"transpose_a": True, "transpose_b": True}),
            Sample(((2, 3, 4), (2, 4, 5))),
            Sample(((2, 1, 3, 4), (3, 4, 2))),
            Sample(((4,), (4, 5))),
            Sample(((3, 4), (4,))),
            Sample(((17, 33), (33, 40))),
        ),
        dtypes=NUMBERS,
        gradient=(0, 1),
    ),
    onnx="MatMul",
    dtypes=NUMBERS,
)


def _matmul(a: Tensor, b: Tensor, transpose_a: bool, transpose_b: bool) -> Tensor:
    attrs = {"transpose_a": transpose_a, "transpose_b": transpose_b}
    return make(matmul_op, (a, b), attrs).outputs[0]


def matmul(
    a: Any,
    b: Any,
    transpose_a: bool = False,
    transpose_b: bool = False,
    name: str | None = None,
) -> Tensor:
    """The matrix product over the last two axes; leading axes broadcast, as np.matmul.

    transpose_a, transpose_b: exchange the last two axes of the operand first.
    A vector operand is a row on the left and a column on the right, and its axis is dropped.
    Raises ShapeError when the inner dimensions differ.
    """
    a, b = promoted("matmul", as_tensors(a, b))
    drop: list[int] = []
    if b.type.rank == 1:
        b = expand_dims(b, 0 if transpose_b else 1)
        drop.append(-1)
    if a.type.rank == 1:
        a = expand_dims(a, 1 if transpose_a else 0)
        drop.append(-2)
    if a.type.rank == 0 or b.type.rank == 0:
        raise ShapeError(f"matmul: a scalar operand, in {a.type} @ {b.type}")
    attrs = {"transpose_a": bool(transpose_a), "transpose_b": bool(transpose_b)}
    product = make(matmul_op, (a, b), attrs, name).outputs[0]
    return squeeze(product, drop) if drop else product


bind_function(matmul_op, matmul, "matmul")
