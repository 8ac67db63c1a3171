"""Joining and splitting: concat, stack, split, unstack, pad, tile, repeat.

Imports: ops.define, ops.shape, ops.arithmetic, ops.create, ops.indexed, graph, nest, kernel, dims.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from graphc import dims
from graphc.constraints import require_equal
from graphc.dims import DimLike
from graphc.errors import GraphTypeError, ShapeError
from graphc.graph import make
from graphc.kernel import Expr
from graphc.nest import Nest, at
from graphc.node import Attrs, Tensor, describe
from graphc.ops.arithmetic import maximum, minimum, multiply, remainder, subtract
from graphc.ops.create import iota, zeros_like
from graphc.ops.define import (
    Sample,
    Samples,
    ScalarBuilder,
    as_tensor,
    as_tensors,
    bind_function,
    deferred,
    normalize_axis,
    op,
    promoted,
)
from graphc.ops.indexed import gather
from graphc.ops.shape import broadcast_along, expand_dims, reshape, slice_axes
from graphc.ops.sizes import as_dims, size_value
from graphc.types import DTYPES, TensorType

Types = Sequence[TensorType]

CONCAT_WIDTH = 8
"""Operands one loop nest joins; more are joined in groups, to bound the select chain."""

# ---- concat ------------------------------------------------------------------------------------


def _infer_concat(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    if len({t.dtype for t in types}) > 1:
        raise GraphTypeError(f"operands have dtypes {', '.join(str(t.dtype) for t in types)}")
    shapes = [t.shape for t in types if t.shape is not None]
    if len(shapes) < len(types):
        return (TensorType(types[0].dtype, None),)
    axis, first = attrs["axis"], shapes[0]
    listed = " and ".join(map(str, types))
    for s in shapes:
        if len(s) != len(first):
            raise ShapeError(f"ranks differ, in {listed}")
        for i, (d, e) in enumerate(zip(first, s, strict=True)):
            if i != axis:
                require_equal(d, e, f"sizes of axis {i} differ, {d} and {e}, in {listed}")
    joined = dims.total(s[axis] for s in shapes)
    return (TensorType(types[0].dtype, (*first[:axis], joined, *first[axis + 1 :])),)


def _normalize_concat(types: Types, attrs: Attrs) -> dict[str, Any]:
    rank = types[0].rank
    assert rank is not None
    return {"axis": normalize_axis(attrs["axis"], rank)}


def _lower_concat(nest: Nest, axis: int) -> None:
    """Each operand is read where the axis index falls into its range."""
    axes = nest.parallel()
    s = ScalarBuilder()
    ends: list[DimLike] = []
    loads: list[Expr] = []
    start: DimLike = 0
    for i in range(len(nest.inputs)):
        shifted = at(axes[axis], shift=dims.mul(-1, start), guarded=True)
        loads.append(nest.load(i, [shifted if a == axis else at(a) for a in axes]))
        start = dims.add(start, nest.shape_of(i)[axis])
        ends.append(start)
    chosen = loads[-1]
    for load, end in zip(loads[-2::-1], ends[-2::-1], strict=True):
        chosen = s.select(s.lt(nest.axis(axes[axis]), nest.size(end)), load, chosen)
    nest.result(0, chosen)


def _concat_vjp(y: Tensor, g: Tensor, *xs: Tensor) -> list[Tensor]:
    axis = y.node.attrs["axis"]
    return [_part(g, *xs, axis=axis, index=i) for i in range(len(xs))]


concat_op = op(
    "concat",
    "nest",
    infer=_infer_concat,
    normalize=_normalize_concat,
    reference=lambda attrs, *xs: np.concatenate(xs, attrs["axis"]),
    vjp=_concat_vjp,
    lower=_lower_concat,
    samples=Samples(
        (
            Sample(((2, 3), (4, 3))),
            Sample(((2, 3), (2, 1), (2, 2)), {"axis": 1}),
            Sample(((2,), (0,), (3,))),
            Sample(((1, 2, 2), (1, 2, 3)), {"axis": -1}),
            Sample(((3, 2),)),
        ),
        dtypes=DTYPES,
        variadic=True,
    ),
    onnx="Concat",
    dtypes=DTYPES,
)


def concat(xs: Sequence[Any], axis: int = 0, name: str | None = None) -> Tensor:
    """The tensors one after another along `axis`; their other sizes must be equal."""
    tensors = promoted("concat", as_tensors(*_listed("concat", xs)))
    while len(tensors) > CONCAT_WIDTH:
        groups = [tensors[i : i + CONCAT_WIDTH] for i in range(0, len(tensors), CONCAT_WIDTH)]
        tensors = [_concat(group, axis, None) for group in groups]
    return _concat(tensors, axis, name)


def _listed(name: str, xs: Any) -> Sequence[Any]:
    if not isinstance(xs, (Sequence, Tensor, np.ndarray)) or isinstance(xs, str):
        raise GraphTypeError(f"{name} takes a list of tensors and then the axis, not {xs!r:.80}")
    if not len(xs):
        raise ShapeError(f"{name}: no tensors")
    return list(xs)


def _concat(tensors: Sequence[Tensor], axis: int, name: str | None) -> Tensor:
    if len(tensors) == 1:
        normalize_axis(axis, len(tensors[0].type.shape or (0,) * 99))
        return tensors[0]
    return make(concat_op, tensors, {"axis": int(axis)}, name).outputs[0]


bind_function(concat_op, concat)
concatenate = concat


def _expand_part(g: Tensor, *xs: Tensor, axis: int, index: int) -> Tensor:
    a = normalize_axis(axis, len(xs[0].dims))
    start = dims.total(x.dims[a] for x in xs[:index])
    starts = [start if i == a else 0 for i in range(len(xs[0].dims))]
    return slice_axes(g, starts, xs[index].dims)


def _part_reference(attrs: Attrs, g: Any, *xs: Any) -> Any:
    ends = np.cumsum([x.shape[attrs["axis"]] for x in xs])[:-1]
    return np.split(g, ends, attrs["axis"])[attrs["index"]]


def _part_vjp(y: Tensor, h: Tensor, g: Tensor, *xs: Tensor) -> list[Tensor | None]:
    axis, index = y.node.attrs["axis"], y.node.attrs["index"]
    parts = [h if i == index else zeros_like(x) for i, x in enumerate(xs)]
    return [concat(parts, axis), *[None] * len(xs)]


_part: Callable[..., Tensor] = deferred(
    "concat_part",
    expand=_expand_part,
    dtype=lambda types, attrs: types[0].dtype,
    reference=_part_reference,
    vjp=_part_vjp,
)

# ---- stack, split, unstack ---------------------------------------------------------------------


def stack(xs: Sequence[Any], axis: int = 0) -> Tensor:
    """The tensors along a new axis; their shapes must be equal."""
    tensors = promoted("stack", as_tensors(*xs))
    return concat([expand_dims(t, axis) for t in tensors], axis)


def split(x: Any, sections: int | Sequence[DimLike], axis: int = 0) -> list[Tensor]:
    """x cut along `axis` into `sections` equal parts, or into parts of the given sizes.

    One given size may be -1: what is left.  Raises ShapeError when the parts do not add up.
    """
    x = as_tensor(x)
    a = normalize_axis(axis, len(x.dims))
    sizes = _section_sizes(x, x.dims[a], sections)
    parts = []
    start: DimLike = 0
    for size in sizes:
        starts = [start if i == a else 0 for i in range(len(x.dims))]
        parts.append(slice_axes(x, starts, [size if i == a else d for i, d in enumerate(x.dims)]))
        start = dims.add(start, size)
    return parts


def _section_sizes(x: Tensor, d: DimLike, sections: int | Sequence[DimLike]) -> list[DimLike]:
    if isinstance(sections, (int, np.integer)):
        if sections < 1:
            raise ShapeError(f"split: into {sections} parts")
        return [dims.exact_div(d, int(sections))] * int(sections)
    sizes = list(as_dims(sections, "split: sizes"))
    if sizes.count(-1) == 1:
        given = dims.add(dims.total(sizes), 1)
        sizes[sizes.index(-1)] = dims.add(d, dims.mul(-1, given))
    if isinstance(d, int) and dims.total(sizes) != d:
        raise ShapeError(f"split: sizes {sizes} do not add up to {d}, in {describe(x)}")
    return sizes


def unstack(x: Any, axis: int = 0, num: int | None = None) -> list[Tensor]:
    """The slices of x along `axis`, without it; `num` gives the size where it is not known."""
    x = as_tensor(x)
    a = normalize_axis(axis, len(x.dims))
    count = x.dims[a]
    if not isinstance(count, int):
        if num is None:
            raise ShapeError(f"unstack: the size of axis {axis} of {describe(x)} is not known")
        count = num
    if num is not None and num != count:
        raise ShapeError(f"unstack: {num} slices of axis {axis} of {describe(x)}")
    before = (slice(None),) * a
    return [x[(*before, i)] for i in range(count)]


# ---- pad ---------------------------------------------------------------------------------------


def _infer_pad(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    shape = types[0].shape
    if shape is None:
        return (TensorType(types[0].dtype, None),)
    if len(attrs["pads"]) != len(shape):
        raise ShapeError(f"{len(attrs['pads'])} pads for {types[0]}")
    padded = []
    for d, (low, high) in zip(shape, attrs["pads"], strict=True):
        for p in (low, high):
            if isinstance(p, int) and p < 0:
                raise ShapeError(f"a pad of {p} elements")
        padded.append(dims.add(d, dims.add(low, high)))
    return (TensorType(types[0].dtype, tuple(padded)),)


def _pad_reference(attrs: Attrs, x: Any) -> Any:
    fill = x.dtype.type(attrs["value"])
    return np.pad(x, attrs["pads"] or ((0, 0),), constant_values=fill) if x.ndim else x


def _lower_pad(nest: Nest, pads: Any, value: float) -> None:
    index = []
    for axis, (low, high) in zip(nest.parallel(), pads, strict=True):
        inside = low == 0 and high == 0
        index.append(at(axis, shift=dims.mul(-1, low), guarded=not inside))
    nest.result(0, nest.load(0, index, fill=value))


def _pad_vjp(y: Tensor, g: Tensor, x: Tensor) -> list[Tensor]:
    return [slice_axes(g, [low for low, _ in y.node.attrs["pads"]], x.dims)]


_pad_op = op(
    "pad",
    "nest",
    infer=_infer_pad,
    reference=_pad_reference,
    vjp=_pad_vjp,
    lower=_lower_pad,
    samples=Samples(
        (
            Sample(((2, 3),), {"pads": ((1, 0), (2, 1))}),
            Sample(((3,),), {"pads": ((2, 2),), "value": 1}),
            Sample(((2, 3),), {"pads": ((0, 0), (1, 1))}),
            Sample(((0, 2),), {"pads": ((1, 1), (0, 0))}),
        ),
        dtypes=DTYPES,
    ),
    onnx="Pad",
    dtypes=DTYPES,
)


def pad(x: Any, pads: Any, mode: str = "constant", value: float = 0) -> Tensor:
    """x with pads[i] = (before, after) elements added along every axis i.

    pads   one number, one pair, or a pair per axis, as np.pad
    mode   'constant' (of `value`), 'edge', 'reflect', 'symmetric' or 'wrap'
    """
    result = as_tensor(x)
    pairs = _pad_pairs(pads, len(result.dims))
    if mode == "constant":
        return make(_pad_op, (result,), {"pads": pairs, "value": value}).outputs[0]
    if mode not in _PAD_INDEX:
        known = ", ".join(repr(m) for m in ("constant", *_PAD_INDEX))
        raise GraphTypeError(f"pad: mode is one of {known}, not {mode!r}")
    for axis, (low, high) in enumerate(pairs):
        if low == 0 and high == 0:
            continue
        d = result.dims[axis]
        result = gather(result, _pad_positions(mode, d, low, high), axis)
    return result


bind_function(_pad_op, pad)


def _pad_pairs(pads: Any, rank: int) -> tuple[tuple[DimLike, DimLike], ...]:
    if isinstance(pads, (int, np.integer)):
        return ((int(pads), int(pads)),) * rank
    listed = [_pad_pair(p) for p in pads] if not _is_pair(pads) else [_pad_pair(pads)]
    if len(listed) == 1 and rank > 1:
        listed *= rank
    if len(listed) != rank:
        raise ShapeError(f"pad: {len(listed)} pairs for rank {rank}")
    return tuple(listed)


def _is_pair(pads: Any) -> bool:
    return len(pads) == 2 and all(isinstance(p, (int, np.integer, dims.Dim)) for p in pads)


def _pad_pair(pair: Any) -> tuple[DimLike, DimLike]:
    if isinstance(pair, (int, np.integer)):
        return int(pair), int(pair)
    low, high = as_dims(pair, "pad: pads")
    return low, high


def _pad_positions(mode: str, d: DimLike, low: DimLike, high: DimLike) -> Tensor:
    """Where along an axis of size d the elements of the padded axis come from."""
    position = subtract(iota(dims.add(d, dims.add(low, high))), size_value(low))
    return _PAD_INDEX[mode](position, size_value(d))


def _edge(position: Tensor, d: Tensor) -> Tensor:
    return minimum(maximum(position, 0), subtract(d, 1))


def _wrap(position: Tensor, d: Tensor) -> Tensor:
    return remainder(position, d)


def _reflect(position: Tensor, d: Tensor) -> Tensor:
    period = maximum(subtract(multiply(d, 2), 2), 1)
    turned = remainder(position, period)
    return minimum(turned, subtract(period, turned))


def _symmetric(position: Tensor, d: Tensor) -> Tensor:
    period = multiply(d, 2)
    turned = remainder(position, period)
    return minimum(turned, subtract(subtract(period, 1), turned))


_PAD_INDEX: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "edge": _edge,
    "wrap": _wrap,
    "reflect": _reflect,
    "symmetric": _symmetric,
}

# ---- tile, repeat ------------------------------------------------------------------------------


def tile(x: Any, reps: Any) -> Tensor:
    """x repeated reps[i] times along axis i, as np.tile."""
    x = as_tensor(x)
    times = as_dims(reps, "tile: reps")
    shape = x.dims
    rank = max(len(times), len(shape))
    times = (*(1,) * (rank - len(times)), *times)
    shape = (*(1,) * (rank - len(shape)), *shape)
    # before: [a, b]   after: [r, a, s, b] by repetition, then [r * a, s * b]
    spread = tuple(d for pair in zip(times, shape, strict=True) for d in pair)
    repeated = broadcast_along(reshape(x, shape), spread, tuple(range(1, 2 * rank, 2)))
    return reshape(repeated, tuple(dims.mul(r, d) for r, d in zip(times, shape, strict=True)))


def repeat(x: Any, repeats: DimLike, axis: int | None = None) -> Tensor:
    """Each element of x `repeats` times along `axis` (of x flattened if None), as np.repeat."""
    x = as_tensor(x)
    if axis is None:
        return repeat(reshape(x, (-1,)), repeats, 0)
    a = normalize_axis(axis, len(x.dims))
    (times,) = as_dims(repeats, "repeat: repeats")
    shape = x.dims
    spread = (*shape[: a + 1], times, *shape[a + 1 :])
    kept = tuple(i for i in range(len(spread)) if i != a + 1)
    repeated = broadcast_along(x, spread, kept)
    return reshape(repeated, (*shape[:a], dims.mul(shape[a], times), *shape[a + 1 :]))


__all__ = [
    "concat",
    "concatenate",
    "pad",
    "repeat",
    "split",
    "stack",
    "tile",
    "unstack",
]
