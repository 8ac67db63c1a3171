"""Shape and layout: operators that move elements without computing with them.

Views (`broadcast_to`, `reshape`, `transpose`, `slice`) cost nothing: the compiler folds them into
the kernels that read them.  Imports: ops.define, ops.arithmetic, graph, dims, types.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from graphc import dims
from graphc.constraints import require_at_least, require_equal, require_multiple
from graphc.dims import Dim, DimLike
from graphc.errors import ShapeError
from graphc.graph import make
from graphc.node import OPERATORS, Attrs, Tensor
from graphc.ops.define import (
    Sample,
    Samples,
    as_tensor,
    bind_function,
    deferred,
    normalize_axes,
    normalize_axis,
    op,
)
from graphc.ops.sizes import as_dims, as_shape
from graphc.types import DTYPES, Shape, TensorType

Types = Sequence[TensorType]


def _samples(*calls: Sample) -> Samples:
    return Samples(calls, dtypes=DTYPES)


# ---- broadcast_to ------------------------------------------------------------------------------


def _infer_broadcast(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    target, source = attrs["shape"], types[0].shape
    if source is not None:
        axes = _broadcast_axes(attrs, len(source))
        for d, a in zip(source, axes, strict=True):
            if d is target[a] or (isinstance(d, int) and d in (1, target[a])):
                continue
            message = f"cannot broadcast {types[0]} to [{','.join(map(dims.dim_text, target))}]"
            if isinstance(d, Dim) and d is not target[a]:
                require_equal(dims.broadcast(d, target[a]), target[a], message)
            else:
                require_equal(d, target[a], message)
    return (TensorType(types[0].dtype, target),)


def _broadcast_axes(attrs: Attrs, rank: int) -> tuple[int, ...]:
    axes = attrs["axes"]
    if axes is not None:
        return tuple(axes)
    extra = len(attrs["shape"]) - rank
    if extra < 0:
        raise ShapeError(f"cannot broadcast rank {rank} to rank {len(attrs['shape'])}")
    return tuple(range(extra, extra + rank))


def _normalize_broadcast(types: Types, attrs: Attrs) -> dict[str, Any]:
    assert types[0].shape is not None
    axes = _broadcast_axes(attrs, len(types[0].shape))
    return {"shape": attrs["shape"], "axes": axes}


def _broadcast_reference(attrs: Attrs, x: Any) -> Any:
    shape = [1] * len(attrs["shape"])
    for i, a in enumerate(_broadcast_axes(attrs, x.ndim)):
        shape[a] = x.shape[i]
    return np.broadcast_to(x.reshape(shape), attrs["shape"])


def _broadcast_vjp(y: Tensor, g: Tensor, x: Tensor) -> list[Tensor]:
    axes = y.node.attrs["axes"]
    if x.type.shape is None or axes is None:
        return [sum_to_like(g, x)]
    order = [*(a for a in range(len(y.dims)) if a not in axes), *axes]
    return [sum_to_like(transpose(g, order) if order != sorted(order) else g, x)]


broadcast_op = op(
    "broadcast_to",
    "view",
    infer=_infer_broadcast,
    normalize=_normalize_broadcast,
    reference=_broadcast_reference,
    vjp=_broadcast_vjp,
    samples=_samples(
        Sample(((3,),), {"shape": (2, 3)}),
        Sample(((3, 1),), {"shape": (2, 3, 4)}),
        Sample(((),), {"shape": (2, 3)}),
        Sample(((1,),), {"shape": (0, 5)}),
    ),
    onnx="Expand",
)


def broadcast_to(x: Any, shape: Any, name: str | None = None) -> Tensor:
    """x repeated to `shape` by NumPy's rules; raises ShapeError where it does not fit."""
    return _broadcast(as_tensor(x), as_shape(shape, "broadcast_to: shape"), None, name)


def _broadcast(
    x: Tensor, shape: Shape, axes: tuple[int, ...] | None, name: str | None = None
) -> Tensor:
    if x.type.shape == shape:
        return x
    return make(broadcast_op, (x,), {"shape": shape, "axes": axes}, name).outputs[0]


bind_function(broadcast_op, broadcast_to, "broadcast_to")


def broadcast_along(x: Tensor, shape: Shape, axes: tuple[int, ...]) -> Tensor:
    """x[i] placed along output axis axes[i], repeated along the others."""
    if x.type.shape == shape and axes == tuple(range(len(shape))):
        return x
    return make(broadcast_op, (x,), {"shape": shape, "axes": axes}).outputs[0]


# ---- sum_to_like: the transpose of broadcasting ------------------------------------------------


def _axes_to_sum(source: Shape, target: Shape) -> tuple[int, ...] | None:
    """The axes to sum, or None where an unknown size may or may not be 1."""
    extra = len(source) - len(target)
    axes = list(range(extra))
    for i, d in enumerate(target):
        s = source[i + extra]
        if s is d or s == d:
            continue
        if d == 1:
            axes.append(i + extra)
        else:
            return None
    return tuple(axes)


def _infer_sum_to(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    wide, narrow = types[0].shape, types[1].shape
    if wide is not None and narrow is not None:
        message = f"cannot reduce {types[0]} to {types[1]}"
        for w, n in zip(wide[len(wide) - len(narrow) :], narrow, strict=True):
            if isinstance(n, int) and n != 1:  # it was not broadcast along this axis
                require_equal(w, n, message)
    return (TensorType(types[0].dtype, types[1].shape),)


def _sum_to_reference(attrs: Attrs, g: Any, x: Any) -> Any:
    extra = g.ndim - x.ndim
    axes = [*range(extra), *(i + extra for i, d in enumerate(x.shape) if d == 1)]
    return g.sum(axis=tuple(axes), keepdims=True, dtype=g.dtype).reshape(x.shape)


def _expand_sum_to(g: Tensor, x: Tensor) -> Tensor:
    axes = _axes_to_sum(g.dims, x.dims)
    if axes is None:
        raise ShapeError(f"cannot reduce {g.type} to {x.type}")
    if not axes:
        return g
    result: Tensor = OPERATORS["sum"](g, axis=axes)
    return reshape(result, x.dims)


sum_to_op = op(
    "sum_to_like",
    "deferred",
    infer=_infer_sum_to,
    reference=_sum_to_reference,
    vjp=lambda y, g, h, x: [broadcast_like(g, h), None],
    lower=_expand_sum_to,
)


def sum_to_like(g: Tensor, x: Tensor) -> Tensor:
    """g summed over the axes along which x was broadcast to g's shape."""
    wide, narrow = g.type.shape, x.type.shape
    if wide is not None and narrow is not None and _axes_to_sum(wide, narrow) is not None:
        return _expand_sum_to(g, x)
    return make(sum_to_op, (g, x)).outputs[0]


def _infer_like(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    return (TensorType(types[0].dtype, types[1].shape),)


broadcast_like_op = op(
    "broadcast_like",
    "deferred",
    infer=_infer_like,
    reference=lambda attrs, g, x: np.broadcast_to(g, x.shape),
    vjp=lambda y, g, h, x: [sum_to_like(g, h), None],
    lower=lambda g, x: broadcast_to(g, x.dims),
)


def broadcast_like(g: Tensor, x: Tensor) -> Tensor:
    """g broadcast to the shape of x."""
    if g.type.shape is not None and x.type.shape is not None:
        return broadcast_to(g, x.dims)
    return make(broadcast_like_op, (g, x)).outputs[0]


# ---- reshape -----------------------------------------------------------------------------------


def _infer_reshape(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    shape, source = attrs["shape"], types[0].shape
    if source is None:
        return (TensorType(types[0].dtype, None if -1 in shape else shape),)
    shape = _resolve(shape, source)
    if -1 not in attrs["shape"] and dims.product(source) == dims.product(shape):
        return (TensorType(types[0].dtype, shape),)
    message = f"cannot reshape {types[0]} to [{','.join(map(dims.dim_text, attrs['shape']))}]"
    if -1 in attrs["shape"]:
        rest = dims.product(d for d in attrs["shape"] if d != -1)
        require_multiple(dims.product(source), rest, message)
    else:
        require_equal(dims.product(source), dims.product(shape), message)
    return (TensorType(types[0].dtype, shape),)


def _resolve(shape: Shape, source: Shape) -> Shape:
    missing = [i for i, d in enumerate(shape) if isinstance(d, int) and d < 0]
    if not missing:
        return shape
    if len(missing) > 1 or shape[missing[0]] != -1:
        raise ShapeError(f"reshape: one size may be -1, got {list(shape)}")
    total, rest = dims.product(source), dims.product(d for d in shape if d != -1)
    if rest == 0:
        raise ShapeError(f"reshape: -1 is ambiguous beside a size of 0 in {list(shape)}")
    try:
        inferred = dims.exact_div(total, rest)
    except ShapeError:
        listed = ",".join(map(dims.dim_text, source))
        raise ShapeError(f"cannot reshape [{listed}] to {list(shape)}") from None
    return (*shape[: missing[0]], inferred, *shape[missing[0] + 1 :])


def _reshape_like(g: Tensor, x: Tensor) -> Tensor:
    if x.type.shape is not None:
        return reshape(g, x.dims)
    return make(_reshape_like_op, (g, x)).outputs[0]


_reshape_like_op = op(
    "reshape_like",
    "deferred",
    infer=_infer_like,
    reference=lambda attrs, g, x: g.reshape(x.shape),
    vjp=lambda y, g, h, x: [_reshape_like(g, h), None],
    lower=lambda g, x: reshape(g, x.dims),
)

reshape_op = op(
    "reshape",
    "view",
    infer=_infer_reshape,
    reference=lambda attrs, x: x.reshape(attrs["shape"]),
    vjp=lambda y, g, x: [_reshape_like(g, x)],
    samples=_samples(
        Sample(((2, 6),), {"shape": (3, 4)}),
        Sample(((2, 6),), {"shape": (-1,)}),
        Sample(((2, 3, 4),), {"shape": (2, -1)}),
        Sample(((1,),), {"shape": ()}),
        Sample(((0, 3),), {"shape": (3, 0, 2)}),
    ),
    onnx="Reshape",
)


def reshape(x: Any, shape: Any, name: str | None = None) -> Tensor:
    """x with the same elements in another shape; one size may be -1.

    `shape` is a sequence of ints, size names and sizes taken from `gx.shape`, or such a tensor.
    Raises ShapeError when the number of elements differs.
    """
    tensor = as_tensor(x)
    target = as_dims(shape, "reshape: shape")
    if tensor.type.shape == target:
        return tensor
    return make(reshape_op, (tensor,), {"shape": target}, name).outputs[0]


bind_function(reshape_op, reshape)

# ---- transpose ---------------------------------------------------------------------------------


def _normalize_transpose(types: Types, attrs: Attrs) -> dict[str, Any]:
    rank = types[0].rank
    assert rank is not None
    perm = attrs["perm"]
    if perm is None:
        return {"perm": tuple(reversed(range(rank)))}
    if len(perm) != rank:
        raise ShapeError(f"a permutation of {len(perm)} axes for {types[0]}")
    listed = tuple(normalize_axis(p, rank) for p in perm)
    if sorted(listed) != list(range(rank)):
        raise ShapeError(f"{tuple(perm)} is not a permutation of the axes of {types[0]}")
    return {"perm": listed}


def _infer_transpose(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    shape = types[0].shape
    if shape is None:
        return (TensorType(types[0].dtype, None),)
    return (TensorType(types[0].dtype, tuple(shape[p] for p in attrs["perm"])),)


def _transpose_vjp(y: Tensor, g: Tensor, x: Tensor) -> list[Tensor]:
    perm = y.node.attrs["perm"]
    return [transpose(g, None if perm is None else np.argsort(perm).tolist())]


transpose_op = op(
    "transpose",
    "view",
    infer=_infer_transpose,
    normalize=_normalize_transpose,
    reference=lambda attrs, x: np.transpose(x, attrs["perm"]),
    vjp=_transpose_vjp,
    samples=_samples(
        Sample(((2, 3),)),
        Sample(((2, 3, 4),), {"axes": (1, 2, 0)}),
        Sample(((2, 1, 3),), {"axes": (-1, 0, 1)}),
    ),
    onnx="Transpose",
)


def transpose(x: Any, axes: Sequence[int] | None = None, name: str | None = None) -> Tensor:
    """x with its axes permuted (reversed if `axes` is None), as np.transpose."""
    perm = None
    if axes is not None:
        # a permutation states the rank, so negative axes need not wait for the tensor's
        listed = [int(a) for a in axes]
        perm = tuple(a + len(listed) if a < 0 else a for a in listed)
    return make(transpose_op, (as_tensor(x),), {"perm": perm}, name).outputs[0]


bind_function(transpose_op, transpose, "transpose")


def matrix_transpose(x: Tensor) -> Tensor:
    """x with its last two axes exchanged; the rank must be known and at least 2."""
    rank = len(x.dims)
    if rank < 2:
        raise ShapeError(f"a matrix has at least 2 axes, got {x.type}")
    return transpose(x, (*range(rank - 2), rank - 1, rank - 2))


# ---- slice -------------------------------------------------------------------------------------


def _infer_slice(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    shape = types[0].shape
    if shape is None:
        return (TensorType(types[0].dtype, None),)
    starts, sizes, steps = attrs["starts"], attrs["sizes"], attrs["steps"]
    if not len(starts) == len(sizes) == len(steps) == len(shape):
        raise ShapeError(f"slice: {len(starts)} ranges for {types[0]}")
    for start, size, step, d in zip(starts, sizes, steps, shape, strict=True):
        last = dims.add(start, dims.mul(step, dims.add(size, -1)))
        top = last if step > 0 else start
        bottom = start if step > 0 else last
        if size != 0:
            message = f"a slice starting at {start} of {size} elements exceeds size {d}"
            require_at_least(dims.add(d, -1), top, message)
            require_at_least(bottom, 0, message)
    return (TensorType(types[0].dtype, tuple(sizes)),)


def _slice_reference(attrs: Attrs, x: Any) -> Any:
    index = []
    for start, size, step in zip(attrs["starts"], attrs["sizes"], attrs["steps"], strict=True):
        stop = start + size * step
        index.append(slice(start, None if stop < 0 else stop, step) if size else slice(0, 0))
    return x[tuple(index)]


def _slice_vjp(y: Tensor, g: Tensor, x: Tensor) -> list[Tensor]:
    attrs = y.node.attrs
    place = OPERATORS["unslice"]
    return [place(g, x, attrs["starts"], attrs["sizes"], attrs["steps"])]


slice_op = op(
    "slice",
    "view",
    infer=_infer_slice,
    reference=_slice_reference,
    vjp=_slice_vjp,
    onnx="Slice",
)


def slice_axes(
    x: Tensor,
    starts: Sequence[DimLike],
    sizes: Sequence[DimLike],
    steps: Sequence[int] | None = None,
    name: str | None = None,
) -> Tensor:
    """Elements start, start + step, ... (size of them) along every axis."""
    steps = (1,) * len(starts) if steps is None else tuple(steps)
    starts, sizes = tuple(starts), tuple(sizes)
    if sizes == x.type.shape and all(s == 0 for s in starts) and all(s == 1 for s in steps):
        return x
    attrs = {"starts": starts, "sizes": sizes, "steps": steps}
    return make(slice_op, (x,), attrs, name).outputs[0]


# ---- expand_dims, squeeze ----------------------------------------------------------------------


def _expand_dims(x: Tensor, axes: tuple[int, ...]) -> Tensor:
    rank = len(x.dims) + len(axes)
    at = normalize_axes(axes, rank)
    rest = iter(x.dims)
    return reshape(x, tuple(1 if i in at else next(rest) for i in range(rank)))


_expand_dims_deferred = deferred(
    "expand_dims",
    expand=_expand_dims,
    dtype=lambda types, attrs: types[0].dtype,
    reference=lambda attrs, x: np.expand_dims(x, attrs["axes"]),
    vjp=lambda y, g, x: [_reshape_like(g, x)],
)


def expand_dims(x: Any, axis: int | Sequence[int]) -> Tensor:
    """x with axes of size 1 inserted at the positions `axis` of the result."""
    axes = (axis,) if isinstance(axis, (int, np.integer)) else tuple(axis)
    return _expand_dims_deferred(as_tensor(x), axes=tuple(int(a) for a in axes))


def _squeeze(x: Tensor, axes: tuple[int, ...] | None) -> Tensor:
    shape = x.dims
    if axes is None:
        at = tuple(i for i, d in enumerate(shape) if d == 1)
    else:
        at = normalize_axes(axes, len(shape))
        for a in at:
            require_equal(shape[a], 1, f"cannot squeeze axis {a} of {x.type}: its size is not 1")
    return reshape(x, tuple(d for i, d in enumerate(shape) if i not in at))


_squeeze_deferred = deferred(
    "squeeze",
    expand=_squeeze,
    dtype=lambda types, attrs: types[0].dtype,
    reference=lambda attrs, x: np.squeeze(x, attrs["axes"]),
    vjp=lambda y, g, x: [_reshape_like(g, x)],
)


def squeeze(x: Any, axis: int | Sequence[int] | None = None) -> Tensor:
    """x without its axes of size 1 (all of them, or those named; ShapeError if not of size 1)."""
    axes = axis if axis is None else (axis,) if isinstance(axis, int) else tuple(axis)
    return _squeeze_deferred(as_tensor(x), axes=axes)
