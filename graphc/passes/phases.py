"""Contractions of which only every s-th product is wanted, as s contractions of wanted ones.

The transpose of a convolution with stride s reads, for a position x of its result and a tap o, the
window (x + pad - o) / s, where s divides that.  Positions with the same x mod s, a phase, are
reached by the same taps, every s-th, and by windows side by side:

    before:  y[x] = sum over o < 4      of g[(x + 1 - o) / 2] * w[o]       half of them are outside
    after:   y[2q]     = sum over j < 2 of g[q - j]     * w[1 + 2j]
             y[2q + 1] = sum over j < 2 of g[q + 1 - j] * w[2j]

Taps keep their order, so what is summed is summed as before, without the zeros.  A phase that no
tap reaches has nothing to sum.  Imports: contraction_maps, nest, dims.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from graphc import dims
from graphc.contraction_maps import ContractionMaps, OutputIndex
from graphc.dims import DimLike
from graphc.nest import Index

MOST = 64
"""Most phases of one contraction: each is a step of a plan."""


def phases(maps: ContractionMaps) -> list[ContractionMaps]:
    """Contractions that together make what one does, none with a divided index; or that one."""
    split = _first_divided(maps)
    if split is None:
        return [maps]
    found: list[ContractionMaps] = []
    for p in range(split.stride):
        phase = split.phase(p)
        if phase.m[split.position - len(maps.batch)] == 0:
            continue
        found.extend([phase] if 0 in phase.k else phases(phase))
        if len(found) > MOST:
            return [maps]
    return found or [maps]


def _first_divided(maps: ContractionMaps) -> _Split | None:
    for number, index in enumerate(maps.a):
        split = _split(maps, number, index)
        if split is not None:
            return split
    return None


def _split(maps: ContractionMaps, number: int, index: Index) -> _Split | None:
    """How to split at an index (x + pad - o * dilation) / stride, or None."""
    if index.div == 1 or len(index.axes) != 2:
        return None
    (position, one), (tap, moved) = index.axes
    first_k = len(maps.batch) + len(maps.m) + len(maps.n)
    in_m = len(maps.batch) <= position < len(maps.batch) + len(maps.m)
    if one != 1 or not isinstance(moved, int) or moved >= 0 or not in_m or tap < first_k:
        return None
    others = [i for n, i in enumerate(maps.a) if n != number]
    if any(a in (position, tap) for i in others for a, _ in i.axes):
        return None
    if any(a == position for i in maps.b for a, _ in i.axes):
        return None
    if not isinstance(index.shift, int) and moved != -1:
        return None  # which taps reach a phase could not be said without knowing more
    return _Split(maps, number, position, tap, -moved, index.div, index.shift)


@dataclass(frozen=True)
class _Split:
    """The split at index `number` of A: (position + pad - tap * dilation) / stride."""

    maps: ContractionMaps
    number: int
    position: int
    tap: int
    dilation: int
    stride: int
    pad: DimLike

    def phase(self, p: int) -> ContractionMaps:
        """The positions p, p + stride, p + 2 * stride, ..."""
        maps = self.maps
        common = math.gcd(self.stride, self.dilation)
        step = self.stride // common
        first, shift = self._first_tap(p, common, step)
        extents = list(maps.extents)
        extents[self.position] = _every(extents[self.position], p, self.stride)
        if first is None:
            extents[self.tap] = 0
            first = 0
        else:
            extents[self.tap] = _every(extents[self.tap], first, step)
        window = ((self.position, 1), (self.tap, -(self.dilation // common)))
        a = list(maps.a)
        a[self.number] = Index(window, shift, 1, True)
        groups = _grouped(extents, [len(g) for g in (maps.batch, maps.m, maps.n, maps.k)])
        return replace(
            maps,
            batch=groups[0],
            m=groups[1],
            n=groups[2],
            k=groups[3],
            a=tuple(a),
            b=tuple(_moved(i, self.tap, step, first) for i in maps.b),
            out=tuple(_strided(i, self.position, self.stride) for i in maps.out),
            shift=tuple(
                dims.add(s, dims.mul(p, _factor(i, self.position)))
                for s, i in zip(maps.shift or (0,) * len(maps.out), maps.out, strict=True)
            ),
        )

    def _first_tap(self, p: int, common: int, step: int) -> tuple[DimLike | None, DimLike]:
        """The first tap that reaches a phase (None: no tap does), and the window it comes from at
        position p."""
        start = dims.add(self.pad, p)
        if not isinstance(start, int):
            window = dims.floordiv(start, self.stride)
            return dims.add(start, dims.mul(-self.stride, window)), window
        if start % common:
            return None, 0
        tap = start // common * pow(self.dilation // common, -1, step) % step
        return tap, (start - tap * self.dilation) // self.stride


def _every(extent: DimLike, first: DimLike, step: int) -> DimLike:
    """How many of first, first + step, first + 2 * step, ... are below an extent; first < step."""
    return dims.floordiv(dims.add(extent, dims.add(step - 1, dims.mul(-1, first))), step)


def _grouped(extents: Sequence[DimLike], counts: Sequence[int]) -> list[tuple[DimLike, ...]]:
    found = []
    start = 0
    for count in counts:
        found.append(tuple(extents[start : start + count]))
        start += count
    return found


def _moved(index: Index, axis: int, step: int, first: DimLike) -> Index:
    """An index in which `axis` is now counted from `first` on, in steps."""
    shift = index.shift
    for a, c in index.axes:
        if a == axis:
            shift = dims.add(shift, dims.mul(c, first))
    axes = tuple((a, dims.mul(c, step) if a == axis else c) for a, c in index.axes)
    return replace(index, axes=axes, shift=shift)


def _strided(index: OutputIndex, axis: int, stride: int) -> OutputIndex:
    return tuple((a, dims.mul(c, stride) if a == axis else c) for a, c in index)


def _factor(index: OutputIndex, axis: int) -> DimLike:
    return dims.total(c for a, c in index if a == axis)
