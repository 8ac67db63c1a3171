"""Elements at computed positions: gather, take, take_along_axis, and their transposes.

Indices are checked once, by `checked_index`, which makes them i64 positions inside the axis; the
gathers and scatters themselves then never leave their operands.
Imports: ops.define, ops.shape, ops.arithmetic, ops.create, graph, nest, kernel, dims, types.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from graphc import dims
from graphc.constraints import require_equal
from graphc.dims import DimLike
from graphc.errors import GraphTypeError, IndexOutOfRangeError, ShapeError
from graphc.graph import make
from graphc.kernel import Expr
from graphc.nest import Index, Nest, at
from graphc.node import Attrs, Tensor
from graphc.ops.arithmetic import add, astype, multiply
from graphc.ops.define import (
    NOT_DIFFERENTIABLE,
    Sample,
    Samples,
    ScalarBuilder,
    as_tensor,
    bind_function,
    broadcast_shapes,
    deferred,
    normalize_axis,
    op,
)
from graphc.ops.shape import broadcast_to, reshape
from graphc.ops.sizes import size_value
from graphc.types import DTYPES, INTEGERS, NUMBERS, Shape, TensorType, int64

Types = Sequence[TensorType]

# ---- checked_index -----------------------------------------------------------------------------


def _infer_checked(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    if not types[0].dtype.is_integer:
        raise GraphTypeError(f"an index has an integer dtype, not {types[0].dtype}")
    return (TensorType(int64, types[0].shape),)


def _out_of_range(axis: int, size: DimLike) -> str:
    known = f" of size {size}" if isinstance(size, int) else ""
    return f"index {{value}} is out of range for axis {axis}{known}"


def _checked_reference(attrs: Attrs, index: Any) -> Any:
    size, axis = attrs["size"], attrs["axis"]
    wide = index.astype(np.int64)
    bad = (wide < (-size if attrs["wrap"] else 0)) | (wide >= size)
    if bad.any():
        message = _out_of_range(axis, size)
        raise IndexOutOfRangeError(message.format(value=int(wide[bad].reshape(-1)[0])))
    return np.where(wide < 0, wide + size, wide)


def _checked_body(
    s: ScalarBuilder, index: Expr, size: DimLike, wrap: bool, axis: int, caller: str
) -> Expr:
    # a u64 beyond the signed range becomes negative here, and is refused either way
    wide = s.cast(index, int64)
    limit = s.const(size, int64) if isinstance(size, int) else Expr("size", (), size, int64)
    lowest = s.neg(limit) if wrap and index.dtype.kind == "i" else s.const(0, int64)
    ok = s.and_(s.ge(wide, lowest), s.lt(wide, limit))
    good = s.check(wide, ok, IndexOutOfRangeError, _out_of_range(axis, size))
    if not wrap:
        return good
    return s.select(s.lt(good, 0), s.add(good, limit), good)


_checked_op = op(
    "checked_index",
    "elementwise",
    infer=_infer_checked,
    reference=_checked_reference,
    vjp=NOT_DIFFERENTIABLE,
    lower=_checked_body,
    samples=Samples(
        (
            Sample(((3,),), {"size": 4}, (np.array([0, 3, 1]),)),
            Sample(((3,),), {"size": 4, "wrap": True}, (np.array([0, 3, 1]),)),
        ),
        dtypes=INTEGERS,
        gradient=(),
    ),
    dtypes=INTEGERS,
)


def checked_index(
    index: Any,
    size: DimLike,
    wrap: bool = False,
    axis: int = 0,
    caller: str = "checked_index",
) -> Tensor:
    """`index` as i64 positions in [0, size).

    wrap     negative indices count from the end, as in NumPy
    caller   the public function on whose behalf it is checked: what errors name
    An index outside is an IndexOutOfRangeError when run.
    """
    attrs = {"size": size, "wrap": bool(wrap), "axis": int(axis), "caller": caller}
    return make(_checked_op, (as_tensor(index),), attrs).outputs[0]


bind_function(_checked_op, checked_index)

# ---- gather and its transpose scatter_sum ------------------------------------------------------


def scatters(lower: Callable[..., None]) -> Callable[..., None]:
    """Mark a loop nest that stores to computed positions: nothing can be fused behind it."""
    lower.scatters = True  # type: ignore[attr-defined]
    return lower


def indices_of(axes: Sequence[int]) -> list[Index]:
    return [at(a) for a in axes]


def _infer_gather(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    x, index = types
    if x.shape is None or index.shape is None:
        return (TensorType(x.dtype, None),)
    a = attrs["axis"]
    return (TensorType(x.dtype, (*x.shape[:a], *index.shape, *x.shape[a + 1 :])),)


def _lower_gather(nest: Nest, axis: int) -> None:
    axes = nest.parallel()
    middle = len(nest.shape_of(1))
    index = nest.load(1, indices_of(axes[axis : axis + middle]))
    where_: list[Index | Expr] = [
        *indices_of(axes[:axis]),
        index,
        *indices_of(axes[axis + middle :]),
    ]
    nest.result(0, nest.gather(0, where_))


gather_op = op(
    "gather",
    "nest",
    infer=_infer_gather,
    reference=lambda attrs, x, index: np.take(x, index, axis=attrs["axis"]),
    vjp=lambda y, g, x, index: [
        _scatter_sum_like(g, index, x, axis=y.node.attrs["axis"]),
        None,
    ],
    lower=_lower_gather,
    samples=Samples(
        (
            Sample(((4, 3), (2,)), {}, (None, np.array([3, 0]))),
            Sample(((4, 3), (2, 2)), {"axis": 1}, (None, np.array([[2, 0], [1, 1]]))),
            Sample(((2, 4, 3), ()), {"axis": 1}, (None, np.array(2))),
            Sample(((5,), (7,)), {}, (None, np.array([0, 4, 4, 1, 2, 3, 0]))),
        ),
        dtypes=DTYPES,
    ),
    onnx="Gather",
    dtypes=DTYPES,
)


def _infer_scatter(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    index, updates = types
    if index.shape is None or updates.shape is None:
        return (TensorType(updates.dtype, None),)
    a, rank = attrs["axis"], len(index.shape)
    message = f"updates of type {updates} for indices of type {index} on axis {a}"
    if len(updates.shape) < a + rank:
        raise ShapeError(message)
    for d, e in zip(index.shape, updates.shape[a : a + rank], strict=True):
        require_equal(d, e, message)
    outer, inner = updates.shape[:a], updates.shape[a + rank :]
    return (TensorType(updates.dtype, (*outer, attrs["size"], *inner)),)


def _scatter_reference(attrs: Attrs, index: Any, updates: Any) -> Any:
    a = attrs["axis"]
    outer, inner = updates.shape[:a], updates.shape[a + index.ndim :]
    result = np.zeros((attrs["size"], *outer, *inner), updates.dtype)
    moved = np.moveaxis(updates, range(a, a + index.ndim), range(index.ndim))
    np.add.at(result, index, moved)
    return np.moveaxis(result, 0, a)


def _scatter_axes(nest: Nest, axis: int) -> tuple[list[Index], list[Index], Shape]:
    """Parallel axes over all but the scattered one; (outer, inner, shape of the indices)."""
    out = nest.outputs[0].shape
    assert out is not None
    others = (*out[:axis], *out[axis + 1 :])
    # a nest needs a parallel axis, if only of one element
    axes = nest.parallel(others or (1,))[: len(others)]
    return indices_of(axes[:axis]), indices_of(axes[axis:]), nest.shape_of(0)


@scatters
def _lower_scatter(nest: Nest, axis: int, size: DimLike) -> None:
    outer, inner, shape = _scatter_axes(nest, axis)
    row = nest.reduce(size)
    zero = Expr("const", (), 0, nest.outputs[0].dtype)
    nest.store(0, [*outer, at(row), *inner], zero, over=(row,))
    over = [nest.reduce(d) for d in shape]
    index = nest.load(0, indices_of(over))
    update = nest.load(1, [*outer, *indices_of(over), *inner])
    nest.store(0, [*outer, index, *inner], update, over=over, add_to=True)


_scatter_op = op(
    "scatter_sum",
    "nest",
    infer=_infer_scatter,
    reference=_scatter_reference,
    vjp=lambda y, g, index, updates: [
        None,
        make(gather_op, (g, index), {"axis": y.node.attrs["axis"]}).outputs[0],
    ],
    lower=_lower_scatter,
    samples=Samples(
        (
            Sample(((3,), (3, 2)), {"size": 4}, (np.array([3, 0, 3]), None)),
            Sample(((2,), (2, 2, 3)), {"size": 3, "axis": 1}, (np.array([2, 2]), None)),
            Sample(((3,), (3,)), {"size": 5}, (np.array([1, 1, 1]), None)),
        ),
        dtypes=NUMBERS,
        gradient=(1,),
    ),
    dtypes=NUMBERS,
)


def place_sum(index: Tensor, updates: Tensor, size: DimLike, axis: int) -> Tensor:
    """Zeros with updates added at indices that are known to be inside."""
    return make(_scatter_op, (index, updates), {"axis": axis, "size": size}).outputs[0]


def scatter_sum(indices: Any, updates: Any, size: DimLike, axis: int = 0) -> Tensor:
    """Zeros with `size` elements along `axis`, to which updates[i] is added at indices[i]."""
    index = checked_index(indices, size, axis=axis, caller="scatter_sum")
    return place_sum(index, as_tensor(updates), size, axis)


bind_function(_scatter_op, scatter_sum)

_scatter_sum_like: Callable[..., Tensor] = deferred(
    "scatter_sum_like",
    expand=lambda g, index, x, axis: place_sum(index, g, x.dims[axis], axis),
    dtype=lambda types, attrs: types[0].dtype,
    reference=lambda attrs, g, index, x: _scatter_reference(
        {**attrs, "size": x.shape[attrs["axis"]]}, index, g
    ),
    vjp=lambda y, h, g, index, x: [
        make(gather_op, (h, index), {"axis": y.node.attrs["axis"]}).outputs[0],
        None,
        None,
    ],
)


def _expand_take(x: Tensor, indices: Tensor, axis: int, wrap: bool) -> Tensor:
    a = normalize_axis(axis, len(x.dims))
    index = checked_index(indices, x.dims[a], wrap, a, "take" if wrap else "gather")
    return make(gather_op, (x, index), {"axis": a}).outputs[0]


def _take_reference(attrs: Attrs, x: Any, indices: Any) -> Any:
    size = x.shape[attrs["axis"]]
    return np.take(x, _checked_reference({**attrs, "size": size}, indices), axis=attrs["axis"])


_take = deferred(
    "take",
    expand=_expand_take,
    dtype=lambda types, attrs: types[0].dtype,
    reference=_take_reference,
    vjp=lambda y, g, x, indices: [_untake(g, x, indices, **y.node.attrs), None],
)


def _expand_untake(g: Tensor, x: Tensor, indices: Tensor, axis: int, wrap: bool) -> Tensor:
    a = normalize_axis(axis, len(x.dims))
    index = checked_index(indices, x.dims[a], wrap, a, "take" if wrap else "gather")
    return place_sum(index, g, x.dims[a], a)


def _untake_reference(attrs: Attrs, g: Any, x: Any, indices: Any) -> Any:
    a = attrs["axis"] % x.ndim
    sized = {"wrap": attrs["wrap"], "axis": a, "size": x.shape[a]}
    return _scatter_reference(sized, _checked_reference(sized, indices), g)


_untake: Callable[..., Tensor] = deferred(
    "untake",
    expand=_expand_untake,
    dtype=lambda types, attrs: types[0].dtype,
    reference=_untake_reference,
    vjp=lambda y, h, g, x, indices: [_take(h, indices, **y.node.attrs), None, None],
)


def gather(x: Any, indices: Any, axis: int = 0) -> Tensor:
    """Slices of x along `axis` at integer `indices`, as tf.gather.

    The indices' shape replaces the axis.  An index outside [0, size) is an IndexOutOfRangeError
    when run.
    """
    return _take(as_tensor(x), as_tensor(indices), axis=int(axis), wrap=False)


bind_function(gather_op, gather)


def take(x: Any, indices: Any, axis: int | None = None) -> Tensor:
    """Slices of x along `axis` (of x flattened if None), as np.take: negative indices wrap."""
    x = as_tensor(x)
    if axis is None:
        return _take(reshape(x, (-1,)), as_tensor(indices), axis=0, wrap=True)
    return _take(x, as_tensor(indices), axis=int(axis), wrap=True)


# ---- several index tensors at once -------------------------------------------------------------


def _linear_index(shape: Shape, tensors: Sequence[Tensor], axis: int) -> Tensor:
    """The position in the merged axes axis, axis + 1, ... that the index tensors mean."""
    total: Tensor | None = None
    for i, t in enumerate(tensors):
        d = shape[axis + i]
        index = checked_index(t, d, True, axis + i, "getitem")
        total = index if total is None else add(multiply(total, size_value(d)), index)
    assert total is not None
    return total


def _merged(shape: Shape, count: int, axis: int) -> Shape:
    together = dims.product(shape[axis : axis + count])
    return (*shape[:axis], together, *shape[axis + count :])


def gather_axes(x: Tensor, tensors: Sequence[Tensor], axis: int) -> Tensor:
    """x indexed by integer tensors at axes axis, axis + 1, ...; negative indices wrap."""
    index = _linear_index(x.dims, tensors, axis)
    merged = reshape(x, _merged(x.dims, len(tensors), axis))
    return make(gather_op, (merged, index), {"axis": axis}).outputs[0]


def scatter_axes(g: Tensor, shape: Shape, tensors: Sequence[Tensor], axis: int) -> Tensor:
    """The transpose of `gather_axes` of a tensor of `shape`."""
    index = _linear_index(shape, tensors, axis)
    merged = _merged(shape, len(tensors), axis)
    return reshape(place_sum(index, g, merged[axis], axis), shape)


# ---- take_along_axis and its transpose ---------------------------------------------------------


def _infer_along(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    return (TensorType(types[0].dtype, types[1].shape),)


def _lower_along(nest: Nest, axis: int) -> None:
    axes = nest.parallel()
    index = nest.load(1, indices_of(axes))
    where_: list[Index | Expr] = [index if i == axis else at(i) for i in axes]
    nest.result(0, nest.gather(0, where_))


_along_op = op(
    "take_along_axis",
    "nest",
    infer=_infer_along,
    reference=lambda attrs, x, index: np.take_along_axis(x, index, attrs["axis"]),
    vjp=lambda y, g, x, index: [
        _put_along(index, g, x.dims[y.node.attrs["axis"]], y.node.attrs["axis"]),
        None,
    ],
    lower=_lower_along,
    samples=Samples(
        (
            Sample(((2, 3), (2, 2)), {"axis": 1}, (None, np.array([[2, 0], [1, 1]]))),
            Sample(((2, 3), (1, 3)), {"axis": 0}, (None, np.array([[1, 0, -1]]))),
        ),
        dtypes=DTYPES,
    ),
    onnx="GatherElements",
    dtypes=DTYPES,
)


def _infer_put_along(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    shape = types[1].shape
    if shape is None:
        return (TensorType(types[1].dtype, None),)
    a = attrs["axis"]
    return (TensorType(types[1].dtype, (*shape[:a], attrs["size"], *shape[a + 1 :])),)


def _put_along_reference(attrs: Attrs, index: Any, updates: Any) -> Any:
    a = attrs["axis"]
    shape = list(updates.shape)
    shape[a] = attrs["size"]
    result = np.zeros(shape, updates.dtype)
    where_: list[Any] = list(np.indices(index.shape, sparse=True))
    where_[a] = index
    np.add.at(result, tuple(where_), updates)
    return result


@scatters
def _lower_put_along(nest: Nest, axis: int, size: DimLike) -> None:
    outer, inner, shape = _scatter_axes(nest, axis)
    row = nest.reduce(size)
    zero = Expr("const", (), 0, nest.outputs[0].dtype)
    nest.store(0, [*outer, at(row), *inner], zero, over=(row,))
    step = nest.reduce(shape[axis])
    source = [*outer, at(step), *inner]
    index, update = nest.load(0, source), nest.load(1, source)
    nest.store(0, [*outer, index, *inner], update, over=(step,), add_to=True)


_put_along_op = op(
    "put_along_axis_sum",
    "nest",
    infer=_infer_put_along,
    reference=_put_along_reference,
    vjp=lambda y, g, index, updates: [
        None,
        make(_along_op, (g, index), {"axis": y.node.attrs["axis"]}).outputs[0],
    ],
    lower=_lower_put_along,
    samples=Samples(
        (
            Sample(((2, 3), (2, 3)), {"size": 4, "axis": 1}, (np.array([[3, 0, 3]] * 2), None)),
            Sample(((3,), (3,)), {"size": 4, "axis": 0}, (np.array([1, 1, 0]), None)),
        ),
        dtypes=NUMBERS,
        gradient=(1,),
    ),
    dtypes=NUMBERS,
)


def _put_along(index: Any, updates: Any, size: DimLike, axis: int) -> Tensor:
    """Zeros with `size` elements along `axis`, plus updates at index along that axis."""
    inputs = (astype(index, int64), as_tensor(updates))
    return make(_put_along_op, inputs, {"axis": axis, "size": size}).outputs[0]


bind_function(_put_along_op, _put_along)


def take_along_axis(x: Any, indices: Any, axis: int) -> Tensor:
    """np.take_along_axis: along `axis`, the elements of x at `indices` of the same rank.

    The other axes broadcast; negative indices wrap; an index outside is an IndexOutOfRangeError.
    """
    x, index = as_tensor(x), as_tensor(indices)
    rank = len(x.dims)
    a = normalize_axis(axis, rank)
    if len(index.dims) != rank:
        raise ShapeError(f"take_along_axis: indices of type {index.type} for {x.type}")
    index = checked_index(index, x.dims[a], True, a, "take_along_axis")
    others = [tuple(1 if i == a else d for i, d in enumerate(t.dims)) for t in (x, index)]
    common = broadcast_shapes(others)
    assert common is not None
    x, index = (
        broadcast_to(t, tuple(t.dims[a] if i == a else d for i, d in enumerate(common)))
        for t in (x, index)
    )
    return make(_along_op, (x, index), {"axis": a}).outputs[0]


bind_function(_along_op, take_along_axis)

__all__ = ["gather", "scatter_sum", "take", "take_along_axis"]
