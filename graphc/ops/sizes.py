"""Sizes as values: `gx.shape` and `gx.size`, and the way back from such tensors to dimensions.

Imports: ops.define, graph, dims, types.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from graphc import dims
from graphc.dims import Dim, DimLike
from graphc.errors import GraphTypeError, ShapeError
from graphc.graph import make
from graphc.node import Attrs, Node, Tensor
from graphc.ops.define import (
    NOT_DIFFERENTIABLE,
    as_tensor,
    constant,
    deferred,
    normalize_axes,
    op,
)
from graphc.types import TensorType, int64

Types = Sequence[TensorType]


def _infer_sizes(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    values = attrs["dims"]
    if isinstance(values, tuple):
        return (TensorType(attrs["dtype"], (len(values),)),)
    return (TensorType(attrs["dtype"], ()),)


sizes_op = op(
    "sizes",
    "leaf",
    infer=_infer_sizes,
    reference=None,  # the reference back end evaluates the dimensions
    vjp=NOT_DIFFERENTIABLE,
    onnx="Shape",
    note="sizes known when the run starts, as a scalar or a vector",
)


def size_value(d: DimLike | tuple[DimLike, ...], dtype: Any = int64) -> Tensor:
    """A size (or a tuple of sizes) as a tensor; a constant when it is known."""
    listed = d if isinstance(d, tuple) else (d,)
    if not any(isinstance(x, Dim) for x in listed):
        return constant(np.asarray(d, dtype.numpy))
    return make(sizes_op, (), {"dims": d, "dtype": dtype}).outputs[0]


def _shape_expand(x: Tensor) -> Tensor:
    return size_value(tuple(x.dims))


shape = deferred(
    "shape",
    expand=_shape_expand,
    dtype=lambda types, attrs: int64,
    reference=lambda attrs, x: np.asarray(x.shape, np.int64),
    vjp=lambda y, g, x: [None],
)


def _size_expand(x: Tensor, axes: Any = None, dtype: Any = int64) -> Tensor:
    shape = x.dims
    return size_value(dims.product(shape[a] for a in normalize_axes(axes, len(shape))), dtype)


_size = deferred(
    "size",
    expand=_size_expand,
    dtype=lambda types, attrs: attrs["dtype"],
    reference=lambda attrs, x: np.asarray(
        np.prod([x.shape[a] for a in normalize_axes(attrs["axes"], x.ndim)]),
        attrs["dtype"].numpy,
    ),
    vjp=lambda y, g, x: [None],
)


def size(x: Any, axis: Any = None, dtype: Any = int64) -> Tensor:
    """The number of elements of x, or of its axes `axis`, as a scalar."""
    axes = tuple(axis) if isinstance(axis, (list, tuple)) else axis
    return _size(as_tensor(x), axes=axes, dtype=dtype)


_COMBINED = frozenset(
    {
        "concat",
        "cast",
        "reshape",
        "identity",
        "slice",
        "add",
        "subtract",
        "multiply",
        "floor_divide",
    }
)
"""Operators whose results are sizes where their operands are."""


def dims_of(value: Any) -> tuple[DimLike, ...] | None:
    """The sizes a tensor built from `shape` and constants stands for; None if it is not one."""
    if not isinstance(value, Tensor):
        return None
    known: dict[Node, tuple[DimLike, ...] | None] = {}
    stack = [value.node]
    while stack:  # each node once, however deep the arithmetic is
        node = stack[-1]
        operands = [t.node for t in node.inputs] if node.op.name in _COMBINED else []
        unknown = [n for n in operands if n not in known]
        if unknown:
            stack.extend(unknown)
            continue
        stack.pop()
        inputs = [d for n in operands if (d := known[n]) is not None]
        if operands and len(inputs) == len(operands):
            known[node] = _combine_dims(node.op.name, node.attrs, inputs)
        else:
            known[node] = _leaf_dims(node)
    return known[value.node]


def _leaf_dims(node: Node) -> tuple[DimLike, ...] | None:
    if node.op is sizes_op:
        d = node.attrs["dims"]
        return d if isinstance(d, tuple) else (d,)
    if node.op.name == "constant":
        array = node.attrs["value"].array
        if array.ndim <= 1 and array.dtype.kind in "iu":
            return tuple(int(v) for v in array.reshape(-1))
    return None


def _combine_dims(
    name: str, attrs: Attrs, inputs: list[tuple[DimLike, ...]]
) -> tuple[DimLike, ...] | None:
    if name == "concat":
        return tuple(d for i in inputs for d in i)
    if name in ("cast", "reshape", "identity"):
        return inputs[0]
    if name == "slice":
        start, count, step = attrs["starts"][0], attrs["sizes"][0], attrs["steps"][0]
        if isinstance(start, int) and isinstance(count, int):
            return tuple(inputs[0][start + k * step] for k in range(count))
        return None
    functions = {"add": dims.add, "multiply": dims.mul, "floor_divide": dims.floordiv}
    if name == "subtract":
        return tuple(dims.add(a, dims.mul(-1, b)) for a, b in zip(*inputs, strict=False))
    if name in functions and all(len(i) == 1 for i in inputs):
        return (functions[name](inputs[0][0], inputs[1][0]),)
    return None


def as_dims(spec: Any, what: str) -> tuple[DimLike, ...]:
    """Sizes from ints, names, tensors made of `shape`, or a mixture in a list."""
    found = dims_of(spec)
    if found is not None:
        return found
    if isinstance(spec, Tensor):
        raise GraphTypeError(f"{what} must follow from shapes and constants, got {spec!r}")
    if isinstance(spec, (int, np.integer, str, Dim)):
        spec = (spec,)
    result: list[DimLike] = []
    for item in spec:
        if isinstance(item, str):
            result.append(dims.symbol(item))
        elif isinstance(item, Dim):
            result.append(item)
        elif isinstance(item, (int, np.integer)):
            result.append(int(item))
        else:
            one = dims_of(item)
            if one is None or len(one) != 1:
                hint = "; an unknown size is gx.shape(x)[axis]" if item is None else ""
                raise GraphTypeError(f"{what}: not a size: {item!r}{hint}")
            result.append(one[0])
    return tuple(result)


def as_shape(spec: Any, what: str) -> tuple[DimLike, ...]:
    """`as_dims` of a whole shape: no size in it may be negative."""
    found = as_dims(spec, what)
    if any(isinstance(d, int) and d < 0 for d in found):
        raise ShapeError(f"{what}: a negative size in {list(found)}")
    return found
