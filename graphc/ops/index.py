"""NumPy indexing, and the slices and their transpose it is made of.

`x[...]` takes ints, slices (any step), Ellipsis, newaxis and integer tensors.  Bounds on unknown
sizes become symbolic sizes.  Imports: ops.define, ops.shape, ops.indexed, graph, nest, dims, types.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from graphc import dims
from graphc.dims import Dim, DimLike
from graphc.errors import GraphTypeError, IndexOutOfRangeError, ShapeError
from graphc.graph import make
from graphc.nest import Nest, at
from graphc.node import OPERATORS, Attrs, Tensor, describe
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
from graphc.ops.indexed import gather_axes, scatter_axes
from graphc.ops.join import concat
from graphc.ops.shape import reshape, slice_axes, slice_op
from graphc.ops.sizes import as_dims
from graphc.types import DTYPES, TensorType

Types = Sequence[TensorType]

# ---- unslice: a tensor placed into zeros -------------------------------------------------------


def _infer_unslice(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    return (TensorType(types[0].dtype, tuple(attrs["shape"])),)


def _unslice_reference(attrs: Attrs, g: Any) -> Any:
    result = np.zeros(attrs["shape"], g.dtype)
    index = []
    for start, size, step in zip(attrs["starts"], attrs["sizes"], attrs["steps"], strict=True):
        index.append(start + step * np.arange(size))
    result[np.ix_(*index)] = g
    return result


def _unslice_vjp(y: Tensor, h: Tensor, g: Tensor) -> list[Tensor]:
    attrs = y.node.attrs
    return [slice_axes(h, attrs["starts"], attrs["sizes"], attrs["steps"])]


def _lower_unslice(nest: Nest, shape: Any, starts: Any, sizes: Any, steps: Any) -> None:
    index = []
    for axis, start, step in zip(nest.parallel(), starts, steps, strict=True):
        if step > 0:
            index.append(at(axis, shift=dims.mul(-1, start), div=step, guarded=True))
        else:
            index.append(at((axis, -1), shift=start, div=-step, guarded=True))
    nest.result(0, nest.load(0, index))


unslice_op = op(
    "unslice",
    "nest",
    infer=_infer_unslice,
    reference=_unslice_reference,
    vjp=_unslice_vjp,
    lower=_lower_unslice,
    samples=Samples(
        (
            Sample(
                ((2, 2),),
                {"shape": (5, 4), "starts": (1, 3), "sizes": (2, 2), "steps": (2, -1)},
            ),
            Sample(((3,),), {"shape": (7,), "starts": (0,), "sizes": (3,), "steps": (3,)}),
        ),
        dtypes=DTYPES,
    ),
    dtypes=DTYPES,
)


def place_slice(
    g: Any,
    shape: Sequence[DimLike],
    starts: Sequence[DimLike],
    sizes: Sequence[DimLike],
    steps: Sequence[int],
) -> Tensor:
    """Zeros of `shape` with g at start, start + step, ... (size of them) along every axis."""
    attrs = {
        "shape": tuple(shape),
        "starts": tuple(starts),
        "sizes": tuple(sizes),
        "steps": tuple(steps),
    }
    return make(unslice_op, (as_tensor(g),), attrs).outputs[0]


bind_function(unslice_op, place_slice)


def _unslice_like_reference(attrs: Attrs, g: Any, x: Any) -> Any:
    return _unslice_reference({**attrs, "shape": x.shape}, g)


_unslice_like = deferred(
    "unslice_like",
    expand=lambda g, x, starts, sizes, steps: place_slice(g, x.dims, starts, sizes, steps),
    dtype=lambda types, attrs: types[0].dtype,
    reference=_unslice_like_reference,
    vjp=lambda y, h, g, x: [_slice_back(y, h), None],
)


def _slice_back(y: Tensor, h: Tensor) -> Tensor:
    return make(slice_op, (h,), dict(y.node.attrs)).outputs[0]


def unslice(
    g: Tensor,
    x: Tensor,
    starts: Sequence[DimLike],
    sizes: Sequence[DimLike],
    steps: Sequence[int],
) -> Tensor:
    """The gradient of a slice: zeros of the shape of x with g where the slice was taken."""
    return _unslice_like(g, x, starts=tuple(starts), sizes=tuple(sizes), steps=tuple(steps))


OPERATORS["unslice"] = unslice

# ---- the range a slice selects -----------------------------------------------------------------


def slice_range(
    start: DimLike | None, stop: DimLike | None, step: int, size: DimLike
) -> tuple[DimLike, DimLike]:
    """(first index, number of elements) of `start:stop:step` along an axis of `size`."""
    if step == 0:
        raise ShapeError("a slice's step cannot be 0")
    if not any(isinstance(d, Dim) for d in (start, stop, size)):
        first, last, _ = slice(start, stop, step).indices(int(str(size)))
        return first, len(range(first, last, step))
    if step > 0:
        end = size if stop is None else _clamped(stop, size, size, 0)
        begin = 0 if start is None else _clamped(start, size, size, 0)
        # a start beyond the end leaves nothing, so the unclamped start gives the same count and a
        # simpler size: x[1:] and x[:-1] are then equally long
        plain = start is not None and _is_index(start)
        length = dims.add(end, dims.mul(-1, start if plain and start is not None else begin))
        return begin, dims.ceildiv(dims.maximum(length, 0), step)
    top = dims.add(size, -1)
    begin = top if start is None else _clamped(start, size, top, -1)
    end = -1 if stop is None else _clamped(stop, size, top, -1)
    length = dims.add(begin, dims.mul(-1, end))
    return begin, dims.ceildiv(dims.maximum(length, 0), -step)


def _is_index(bound: DimLike) -> bool:
    return bound >= 0 if isinstance(bound, int) else dims.is_size(bound)


def _clamped(bound: DimLike, size: DimLike, high: DimLike, low: int) -> DimLike:
    """A bound counted from the start, within [low, high]."""
    if isinstance(bound, int) and bound < 0:
        return dims.maximum(dims.add(size, bound), low)
    return dims.minimum(bound, high)


# ---- getitem -----------------------------------------------------------------------------------

_SLICE, _TENSOR = "slice", "tensor"


def getitem(x: Tensor, key: Any) -> Tensor:
    """x[key] as in NumPy: ints, slices, Ellipsis, newaxis, and integer tensors.

    Integer tensors must stand side by side; they broadcast together and index the axes they stand
    at.  Negative indices count from the end.  Raises IndexOutOfRangeError now for a known size,
    and when run otherwise.  Boolean masks are refused: their result has no size.
    """
    items = key if isinstance(key, tuple) else (key,)
    entries: list[Any] = []
    tensors: list[Tensor] = []
    for item in items:
        entry = _entry(item)
        if isinstance(entry, Tensor):
            entries.append((_TENSOR, len(tensors)))
            tensors.append(entry)
        else:
            entries.append(entry)
    return _getitem(as_tensor(x), *tensors, key=tuple(entries))


def _entry(item: Any) -> Any:
    """One item of a key, hashable; a tensor index stays a tensor."""
    if item is None or item is Ellipsis:
        return item
    if isinstance(item, slice):
        bounds = (_bound(item.start), _bound(item.stop))
        step = 1 if item.step is None else item.step
        if not isinstance(step, (int, np.integer)):
            raise GraphTypeError(f"a slice's step is an integer, not {step!r}")
        return (_SLICE, *bounds, int(step))
    if isinstance(item, (bool, np.bool_)):
        raise GraphTypeError("indexing by a bool is not supported: use gx.where")
    if isinstance(item, (int, np.integer)):
        return int(item)
    if isinstance(item, Dim):
        return item
    if isinstance(item, (Tensor, np.ndarray, list)):
        t = as_tensor(item)
        if t.dtype.is_bool:
            raise GraphTypeError(
                "indexing by a bool tensor is not supported, its result has no size: use gx.where"
            )
        if not t.dtype.is_integer:
            raise GraphTypeError(f"an index has an integer dtype, not {t.dtype}")
        return t
    raise GraphTypeError(f"cannot index a tensor by {item!r}")


def _bound(value: Any) -> DimLike | None:
    if value is None or isinstance(value, Dim):
        return value
    (d,) = as_dims(value, "the bound of a slice")
    return d


@dataclass(frozen=True)
class _Cut:
    """A key worked out for one tensor: the slice, the shape it is arranged to, the tensor axis."""

    starts: tuple[DimLike, ...]
    sizes: tuple[DimLike, ...]
    steps: tuple[int, ...]
    shape: tuple[DimLike, ...]
    place: int


def _cut(x: Tensor, key: tuple[Any, ...]) -> _Cut:
    entries = _filled(x, key)
    rest = iter(x.dims)
    ranges: list[tuple[DimLike, DimLike, int]] = []
    shape: list[DimLike] = []
    places: list[int] = []
    for e in entries:
        if e is None:
            shape.append(1)
            continue
        ranges.append(_axis_range(x, e, next(rest)))
        if isinstance(e, tuple):
            if e[0] == _TENSOR:
                places.append(len(shape))
            shape.append(ranges[-1][1])
    first = places[0] if places else 0
    if places != list(range(first, first + len(places))):
        raise GraphTypeError("tensor indices must stand side by side")
    starts, sizes, steps = zip(*ranges, strict=True) if ranges else ((), (), ())
    return _Cut(starts, sizes, steps, tuple(shape), first)


def _expand_getitem(x: Tensor, *tensors: Tensor, key: tuple[Any, ...]) -> Tensor:
    cut = _cut(x, key)
    taken = reshape(slice_axes(x, cut.starts, cut.sizes, cut.steps), cut.shape)
    return gather_axes(taken, tensors, cut.place) if tensors else taken


def _expand_ungetitem(g: Tensor, x: Tensor, *tensors: Tensor, key: tuple[Any, ...]) -> Tensor:
    cut = _cut(x, key)
    placed = scatter_axes(g, cut.shape, tensors, cut.place) if tensors else g
    return place_slice(reshape(placed, cut.sizes), x.dims, cut.starts, cut.sizes, cut.steps)


def _filled(x: Tensor, key: tuple[Any, ...]) -> list[Any]:
    """The key with Ellipsis written out, one entry per axis of x besides newaxis."""
    rank = len(x.dims)
    used = sum(1 for e in key if e is not None and e is not Ellipsis)
    ellipses = sum(1 for e in key if e is Ellipsis)
    if ellipses > 1:
        raise GraphTypeError(f"an index has one '...' at most, in {describe(x)}")
    if used > rank:
        raise GraphTypeError(f"too many indices: {used} for {describe(x)}")
    whole = [(_SLICE, None, None, 1)] * (rank - used)
    if not ellipses:
        return [*key, *whole]
    position = next(i for i, e in enumerate(key) if e is Ellipsis)
    return [*key[:position], *whole, *key[position + 1 :]]


def _axis_range(x: Tensor, entry: Any, d: DimLike) -> tuple[DimLike, DimLike, int]:
    if isinstance(entry, tuple) and entry[0] == _SLICE:
        start, size = slice_range(entry[1], entry[2], entry[3], d)
        return start, size, entry[3]
    if isinstance(entry, tuple):
        return 0, d, 1
    if isinstance(d, int) and isinstance(entry, int) and not -d <= entry < d:
        raise IndexOutOfRangeError(
            f"index {entry} is out of range for an axis of size {d}, in {describe(x)}"
        )
    start = dims.add(d, entry) if isinstance(entry, int) and entry < 0 else entry
    return start, 1, 1


def _getitem_reference(attrs: Attrs, x: Any, *tensors: Any) -> Any:
    index: list[Any] = []
    for e in attrs["key"]:
        if not isinstance(e, tuple):
            index.append(e)
        elif e[0] == _SLICE:
            index.append(slice(*e[1:]))
        else:
            index.append(tensors[e[1]])
    return x[tuple(index)]


def _ungetitem_reference(attrs: Attrs, g: Any, x: Any, *tensors: Any) -> Any:
    positions = np.arange(x.size).reshape(x.shape)
    result = np.zeros(x.size, g.dtype)
    np.add.at(result, _getitem_reference(attrs, positions, *tensors), g)
    return result.reshape(x.shape)


_ungetitem: Callable[..., Tensor] = deferred(
    "ungetitem",
    expand=_expand_ungetitem,
    dtype=lambda types, attrs: types[0].dtype,
    reference=_ungetitem_reference,
    vjp=lambda y, h, g, x, *tensors: [
        _getitem(h, *tensors, key=y.node.attrs["key"]),
        *[None] * (1 + len(tensors)),
    ],
)

_getitem: Callable[..., Tensor] = deferred(
    "getitem",
    expand=_expand_getitem,
    dtype=lambda types, attrs: types[0].dtype,
    reference=_getitem_reference,
    vjp=lambda y, g, x, *tensors: [
        _ungetitem(g, x, *tensors, key=y.node.attrs["key"]),
        *[None] * len(tensors),
    ],
)

OPERATORS["getitem"] = getitem

# ---- flip, roll --------------------------------------------------------------------------------


def _expand_flip(x: Tensor, axes: Any) -> Tensor:
    chosen = normalize_axes(axes, len(x.dims))
    starts = [dims.add(d, -1) if i in chosen else 0 for i, d in enumerate(x.dims)]
    steps = [-1 if i in chosen else 1 for i in range(len(x.dims))]
    return slice_axes(x, starts, x.dims, steps)


_flip: Callable[..., Tensor] = deferred(
    "flip",
    expand=_expand_flip,
    dtype=lambda types, attrs: types[0].dtype,
    reference=lambda attrs, x: np.flip(x, attrs["axes"]),
    vjp=lambda y, g, x: [_flip(g, axes=y.node.attrs["axes"])],
)


def flip(x: Any, axis: int | Sequence[int] | None = None) -> Tensor:
    """x with the order of its elements reversed along `axis` (all axes if None)."""
    axes = axis if axis is None or isinstance(axis, (int, np.integer)) else tuple(axis)
    return _flip(as_tensor(x), axes=axes)


reverse = flip


def _expand_roll(x: Tensor, shift: int, axis: int) -> Tensor:
    a = normalize_axis(axis, len(x.dims))
    d = x.dims[a]
    # shift modulo d, written with the functions sizes have; 0 along an empty axis
    size = dims.maximum(d, 1)
    turned = dims.add(shift, dims.mul(-1, dims.mul(size, dims.floordiv(shift, size))))
    kept = dims.add(d, dims.mul(-1, turned))
    parts = []
    for start, size in ((kept, turned), (0, kept)):
        starts = [start if i == a else 0 for i in range(len(x.dims))]
        sizes = [size if i == a else e for i, e in enumerate(x.dims)]
        parts.append(slice_axes(x, starts, sizes))
    return reshape(concat(parts, a), x.dims)


_roll: Callable[..., Tensor] = deferred(
    "roll",
    expand=_expand_roll,
    dtype=lambda types, attrs: types[0].dtype,
    reference=lambda attrs, x: np.roll(x, attrs["shift"], attrs["axis"]),
    vjp=lambda y, g, x: [_roll(g, shift=-y.node.attrs["shift"], axis=y.node.attrs["axis"])],
)


def roll(x: Any, shift: int | Sequence[int], axis: int | Sequence[int] | None = None) -> Tensor:
    """x with its elements moved `shift` places along `axis`, those beyond the end re-entering."""
    result = as_tensor(x)
    if axis is None:
        return reshape(roll(reshape(result, (-1,)), shift, 0), result.dims)
    shifts = (shift,) if isinstance(shift, (int, np.integer)) else tuple(shift)
    axes = (axis,) if isinstance(axis, (int, np.integer)) else tuple(axis)
    if len(shifts) != len(axes):
        raise ShapeError(f"roll: {len(shifts)} shifts for {len(axes)} axes")
    for s, a in zip(shifts, axes, strict=True):
        result = _roll(result, shift=int(s), axis=int(a))
    return result


__all__ = ["flip", "reverse", "roll"]
