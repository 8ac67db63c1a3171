"""Views: which array a tensor's elements live in, and at what strides.

A view operator (broadcast, reshape, transpose, slice) moves nothing; whoever reads the tensor reads
the base array through strides.  Imports: graph, dims, nest.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from graphc import dims
from graphc.dims import DimLike
from graphc.nest import contiguous
from graphc.node import Tensor
from graphc.types import Shape


@dataclass(frozen=True, eq=False, slots=True)
class View:
    """Element `offset + sum(index * stride)` of `base`; a stride per axis of the viewed tensor."""

    base: Tensor
    strides: tuple[DimLike, ...]
    offset: DimLike = 0

    def is_whole(self, shape: Shape) -> bool:
        """Whether the view is the whole base array, row-major from its start."""
        if self.offset != 0 or not same_strides(self.strides, contiguous(shape), shape):
            return False
        base = self.base.dims
        return base is shape or base == shape or dims.product(base) == dims.product(shape)


def same_strides(a: tuple[DimLike, ...], b: tuple[DimLike, ...], shape: Shape) -> bool:
    """Equal strides, where those of axes of size 1 do not matter."""
    if a is b or a == b:
        return True
    return all(x is y or x == y or d == 1 for x, y, d in zip(a, b, shape, strict=True))


class Views:
    """The views of a program's tensors.  `arrays` are tensors that must be plain arrays."""

    def __init__(self) -> None:
        self.arrays: set[int] = set()
        self._found: dict[int, View] = {}

    def of(self, t: Tensor) -> View:
        """Where t's elements live: t itself unless it is made by a view operator."""
        found = self._found.get(id(t))
        if found is None:
            for below in self._unknown_below(t):
                self._found[id(below)] = self.source(below)
            found = self.source(t) if self._is_view(t) else View(t, contiguous(t.dims))
            self._found[id(t)] = found
        return found

    def _is_view(self, t: Tensor) -> bool:
        return t.node.kind == "view" and id(t) not in self.arrays

    def _unknown_below(self, t: Tensor) -> list[Tensor]:
        """The views that t is a view of, the innermost first, down to one that is known."""
        chain: list[Tensor] = []
        while self._is_view(t):
            t = t.node.inputs[0]
            if not self._is_view(t) or id(t) in self._found:
                break
            chain.append(t)
        return chain[::-1]

    def source(self, t: Tensor) -> View:
        """What a view operator's output reads, even if it must become an array itself."""
        x = t.node.inputs[0]
        composed = _COMPOSE[t.node.op.name](self.of(x), x.dims, t)
        if composed is None:  # a reshape that strides cannot express: its input becomes an array
            self.require_array(x)
            composed = _COMPOSE[t.node.op.name](self.of(x), x.dims, t)
            assert composed is not None
        return composed

    def require_array(self, t: Tensor) -> None:
        """Make t a plain array; must come before views of t are taken."""
        self.arrays.add(id(t))
        self._found.pop(id(t), None)

    def forget(self) -> None:
        """Drop remembered views, after `arrays` has grown."""
        self._found.clear()


def _broadcast(view: View, shape: Shape, t: Tensor) -> View | None:
    strides: list[DimLike] = [0] * len(t.dims)
    for i, axis in enumerate(t.node.attrs["axes"]):
        stretched = shape[i] == 1 and t.dims[axis] != 1
        strides[axis] = 0 if stretched else view.strides[i]
    return View(view.base, tuple(strides), view.offset)


def _transpose(view: View, shape: Shape, t: Tensor) -> View | None:
    return View(view.base, tuple(view.strides[p] for p in t.node.attrs["perm"]), view.offset)


def _slice(view: View, shape: Shape, t: Tensor) -> View | None:
    attrs = t.node.attrs
    offset = view.offset
    strides = []
    for start, step, stride in zip(attrs["starts"], attrs["steps"], view.strides, strict=True):
        offset = dims.add(offset, dims.mul(start, stride))
        strides.append(dims.mul(step, stride))
    return View(view.base, tuple(strides), offset)


def _reshape(view: View, shape: Shape, t: Tensor) -> View | None:
    strides = reshaped_strides(shape, view.strides, t.dims)
    return None if strides is None else View(view.base, strides, view.offset)


_COMPOSE: dict[str, Callable[[View, Shape, Tensor], View | None]] = {
    "broadcast_to": _broadcast,
    "transpose": _transpose,
    "slice": _slice,
    "reshape": _reshape,
}


def reshaped_strides(
    old: Shape, strides: tuple[DimLike, ...], new: Shape
) -> tuple[DimLike, ...] | None:
    """Strides of a reshaped view, or None where the elements would have to be moved.

    Matches runs of old axes with runs of new axes of equal size; inside a run the old axes must
    be mergeable into one.
    """
    source = [(d, s) for d, s in zip(old, strides, strict=True) if d != 1]
    if 0 in old or same_strides(strides, contiguous(old), old):
        return contiguous(new)
    result: list[DimLike] = []
    i = 0
    j = 0
    while j < len(new):
        if new[j] == 1:
            result.append(0)
            j += 1
            continue
        run = _match(source, i, new, j)
        if run is None:
            return None
        i2, j2 = run
        for a in range(i, i2 - 1):
            if source[a][1] != dims.mul(source[a + 1][0], source[a + 1][1]):
                return None
        step: Any = source[i2 - 1][1]
        part: list[DimLike] = []
        for d in reversed(new[j:j2]):
            part.append(step)
            step = dims.mul(step, d)
        result.extend(reversed(part))
        i, j = i2, j2
    return tuple(result) if i == len(source) else None


def _match(
    source: list[tuple[DimLike, DimLike]], i: int, new: Shape, j: int
) -> tuple[int, int] | None:
    """The shortest runs source[i:i2] and new[j:j2] with equal products."""
    if i >= len(source):
        return None
    left, right = source[i][0], new[j]
    i2, j2 = i + 1, j + 1
    while left is not right and left != right:
        grow_left = _smaller(left, right)
        if grow_left and i2 < len(source):
            left = dims.mul(left, source[i2][0])
            i2 += 1
        elif j2 < len(new):
            right = dims.mul(right, new[j2])
            j2 += 1
        elif i2 < len(source):
            left = dims.mul(left, source[i2][0])
            i2 += 1
        else:
            return None
    return i2, j2


def _smaller(left: DimLike, right: DimLike) -> bool:
    """Whether the left run should grow: its product divides into the right one."""
    if isinstance(left, int) and isinstance(right, int):
        return left < right
    return dims.divides(left, right)
