"""Pieces: tensors that are consecutive parts of one tensor along one axis, and joining them again.

    %a = slice(%x: f32[9,4]) {starts=(0,0), sizes=(3,4)}    %b = slice(%x) {starts=(3,0), ...}
    joined: slice(%x) {starts=(0,0), sizes=(6,4)}, which moves nothing

Imports: graph, dims, ops.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from graphc import dims
from graphc.dims import DimLike
from graphc.node import Tensor
from graphc.ops.join import concat
from graphc.ops.shape import reshape, slice_axes, transpose
from graphc.types import Shape


@dataclass(frozen=True, eq=False)
class Piece:
    """`size` elements of `base` from `start` on along one axis, which may have been dropped."""

    base: Tensor
    axis: int
    start: DimLike
    size: DimLike
    dropped: bool

    @property
    def end(self) -> DimLike:
        return dims.add(self.start, self.size)


def piece_of(t: Tensor) -> Piece | None:
    """What t is a piece of: x[2:5] and x[:, 3], but not x[::2] or x[1:, 1:]."""
    node, dropped = t.node, False
    if node.op.name == "reshape":
        node, dropped = node.inputs[0].node, True
    if node.op.name != "slice" or any(s != 1 for s in node.attrs["steps"]):
        return None
    base, starts, sizes = node.inputs[0], node.attrs["starts"], node.attrs["sizes"]
    cut = [a for a, d in enumerate(base.dims) if starts[a] != 0 or sizes[a] != d]
    if len(cut) != 1 or sizes[cut[0]] == 0:
        return None
    axis = cut[0]
    if dropped and (sizes[axis] != 1 or t.dims != without(base.dims, axis)):
        return None
    return Piece(base, axis, starts[axis], sizes[axis], dropped)


def without(shape: Shape, axis: int) -> Shape:
    """The shape without one of its axes."""
    return (*shape[:axis], *shape[axis + 1 :])


def with_size(shape: Shape, axis: int, size: DimLike) -> Shape:
    """The shape with another size of one axis."""
    return (*shape[:axis], size, *shape[axis + 1 :])


def runs(pieces: Sequence[Piece]) -> list[list[int]]:
    """Positions of pieces of one tensor in runs, each starting where the one before it ends."""
    starting: dict[DimLike, int] = {}
    for i, p in enumerate(pieces):
        starting.setdefault(p.start, i)
    ends = {pieces[i].end for i in starting.values()}
    found: list[list[int]] = []
    used: set[int] = set()
    for start, first in starting.items():
        if start in ends:
            continue
        run: list[int] = []
        at: int | None = first
        while at is not None and at not in used:
            used.add(at)
            run.append(at)
            at = starting.get(pieces[at].end)
        found.append(run)
    return found


def are_consecutive(pieces: Sequence[Piece]) -> bool:
    """Whether pieces of one tensor follow one another in this order."""
    first = pieces[0]
    return all(
        p.base is first.base and p.axis == first.axis and p.dropped == first.dropped for p in pieces
    ) and all(p.end == q.start for p, q in pairwise(pieces))


def cut_out(x: Tensor, axis: int, start: DimLike, size: DimLike) -> Tensor:
    """`size` elements of x from `start` on along an axis, in place."""
    starts = [start if a == axis else 0 for a in range(len(x.dims))]
    return slice_axes(x, starts, with_size(x.dims, axis, size))


def join(parts: Sequence[Tensor], axis: int) -> Tensor:
    """The parts one after another along `axis`: part of the tensor they are pieces of, if of one.

    Pieces whose axis was dropped are joined there too, if it is moved in front of `axis` first.
    """
    found = [p for p in map(piece_of, parts) if p is not None]
    if len(found) == len(parts) and are_consecutive(found):
        p = found[0]
        if not p.dropped and p.axis == axis:
            return _whole(found)
        if p.dropped:
            inside = axis if axis < p.axis else axis + 1
            perm = [a for a in range(len(p.base.dims)) if a != p.axis]
            perm.insert(perm.index(inside), p.axis)
            whole = _whole(found)
            if perm != sorted(perm):
                whole = transpose(whole, perm)
            length = dims.mul(len(parts), parts[0].dims[axis])
            return reshape(whole, with_size(parts[0].dims, axis, length))
    return concat(parts, axis)


def _whole(pieces: Sequence[Piece]) -> Tensor:
    first = pieces[0]
    size = dims.total(p.size for p in pieces)
    return cut_out(first.base, first.axis, first.start, size)
