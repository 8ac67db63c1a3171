"""Kernels that differ in numbers only become one kernel, which reads those numbers when it runs.

    before:  k0: axes (64*batch, 256) stride 256       k1: axes (16*batch, 512) stride 512
    after:   k0: axes (s0, 64*s1) stride 64*s1         launched twice, with other sizes

Compiling costs by the number of distinct kernels, and the layers of a network differ in widths,
heights and constants more than in what they compute.  Every kernel of a plan is generalised: each
number that code can as well read at run time (extents, strides, limits, offsets, constants) gets a
symbol of its own.  Kernels that are equal then are a family.  Where all its members have the same
number it is written into the code again, so that a kernel without relatives stays as it was;
numbers that go together in every member share a symbol.

What decides how good code is stays part of a kernel's identity: strides of one element, small
extents (windows, short rows), whether the vector axis has a remainder, and how the back
end cuts a contraction.  Bits do not change: blocks and chunks follow from sizes whether they are
known or not.  Imports: kernel, dims, types.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, Union

from graphc import dims
from graphc.dims import Dim, DimLike
from graphc.kernel import (
    VIRTUAL_LANES,
    Access,
    Contraction,
    Cut,
    Expr,
    Kernel,
    LoopKernel,
    Ragged,
    Term,
    rebuild,
    sizes_of,
)
from graphc.types import DType, float32, float64, int64, uint32, uint64

Number = Union[int, float, Dim]

VECTOR = 16
"""Extents of the vector axis that are multiples of this are told from others: their code needs no
masks.  What more divides all those of a family is part of its code."""

FAR = 1 << 31
"""Integer constants from here on stay in the code: the table of sizes is checked for overflow."""


@dataclass(frozen=True)
class Shared:
    """A kernel, and the values of its symbolic sizes in one of the kernels it stands for.

    names  those sizes
    """

    kernel: Kernel
    sizes: tuple[DimLike, ...]
    names: tuple[Dim, ...] = field(default=(), compare=False)

    def here(self, formula: DimLike) -> DimLike:
        """What a formula in the kernel's symbolic sizes is for the kernel it stands for."""
        if isinstance(formula, int):
            return formula
        known: dict[dims.Atom, DimLike] = {}
        for name, value in zip(self.names, self.sizes, strict=True):
            (atom,) = dims.atoms(name)
            known[atom] = dims.exact_div(value, dims.factor(name))
        return dims.substitute(formula, known)


def share_kernels(kernels: Sequence[Kernel]) -> list[Shared]:
    """For each kernel one that does the same, and at which sizes; as few different ones as can be.

    Contractions that carry no cut share only if they differ in nothing but symbolic sizes.
    """
    general = [_General(k) for k in kernels]
    families: dict[Kernel, list[_General]] = {}
    for g in general:
        families.setdefault(g.kernel, []).append(g)
    found: dict[int, Shared] = {}
    for kernel, members in families.items():
        family = _Family(kernel, [g.places for g in members])
        for i, g in enumerate(members):
            found[id(g)] = Shared(family.kernel, family.sizes(i), family.names)
    return [found[id(g)] for g in general]


# ---- generalising one kernel -------------------------------------------------------------------


class _Keep(NamedTuple):
    """Numbers whose magnitude is below these stay in the code."""

    extent: float
    stride: float
    factor: float  # of a loop index whose steps are one element apart
    wide_factor: float  # of other loop indices
    shift: float
    limit: float
    offset: float


_IN_LOOPS = _Keep(extent=8, stride=2, factor=8, wide_factor=8, shift=8, limit=8, offset=0)
_IN_CUTS = _Keep(extent=2, stride=2, factor=2, wide_factor=1, shift=0, limit=0, offset=0)
_ALL = _Keep(*[float("inf")] * 7)


@dataclass(frozen=True)
class _Place:
    """A number taken out of a kernel; `name`, which stands there now, is `unit` times a symbol.

    The number is a multiple of the unit, for every size.
    """

    name: Dim
    value: Number
    unit: int = 1
    dtype: DType | None = None  # of a constant


class _General:
    """A kernel with a symbol p0, p1, ... for every number that code can read at run time."""

    def __init__(self, kernel: Kernel) -> None:
        self.places: list[_Place] = []
        self._names: set[Dim] = set()
        self._keep = _IN_LOOPS
        if isinstance(kernel, Contraction):
            self._keep = _ALL if kernel.cut is None else _IN_CUTS
            kernel = self._with_axes(kernel)
        else:
            kernel = replace(kernel, axes=self._loop_axes(kernel))
        self.kernel = rebuild(kernel, self._changed)

    def _put(self, value: Number, unit: int = 1, dtype: DType | None = None) -> Dim:
        name = dims.mul(unit, _symbol("p", len(self.places)))
        assert isinstance(name, Dim)
        self.places.append(_Place(name, value, unit, dtype))
        self._names.add(name)
        return name

    def _number(self, d: DimLike, keep: float) -> DimLike:
        if isinstance(d, int) and abs(d) < keep:
            return d
        if d in self._names:
            return d
        # a back end that cuts what it compiles does so by what it knows of sizes
        return self._put(d, dims.factor(d) if self._keep is _ALL else 1)

    def _with_axes(self, c: Contraction) -> Contraction:
        def extents(group: tuple[DimLike, ...]) -> tuple[DimLike, ...]:
            return tuple(self._number(d, self._keep.extent) for d in group)

        batch, m, n, k = extents(c.batch), extents(c.m), extents(c.n), extents(c.k)
        return replace(c, batch=batch, m=m, n=n, k=k)

    def _loop_axes(self, kernel: LoopKernel) -> tuple[DimLike, ...]:
        ragged = {r.axis for r in kernel.ragged}
        axes = []
        for a, d in enumerate(kernel.axes):
            if a != kernel.vec or a in ragged:
                axes.append(self._number(d, self._keep.extent))
            elif dims.factor(d) % VECTOR == 0:
                axes.append(self._put(d, VECTOR))
            else:
                axes.append(self._number(d, VIRTUAL_LANES))
        return tuple(axes)

    def _changed(self, part: Any) -> Any:
        kind = type(part)
        if kind is Expr:
            return self._expression(part)
        if kind is Access:
            terms = tuple([self._term(t) for t in part.terms])
            return Access(part.buf, terms, self._number(part.offset, self._keep.offset))
        if kind is Dim:
            return self._number(part, 0)
        if kind is Ragged:
            chunk, total = self._put(part.chunk), self._put(part.total)
            return Ragged(part.axis, part.chunk_axis, chunk, total)
        if kind is Cut:
            return Cut(part.code, tuple(self._put(n) for n in part.numbers))
        return None

    def _term(self, t: Term) -> Term:
        keep = self._keep
        near = keep.factor if t.stride in (1, -1) else keep.wide_factor
        rounds = t.div != 1 and t.limit is None
        return Term(
            tuple((a, self._number(c, near)) for a, c in t.axes),
            self._number(t.stride, _ALL.stride if rounds else keep.stride),
            self._number(t.shift, keep.shift),
            t.div,
            None if t.limit is None else self._number(t.limit, keep.limit),
        )

    def _expression(self, e: Expr) -> Expr | None:
        if e.op == "gather":
            access, extent = e.value
            return Expr("gather", e.args, (access, self._number(extent, self._keep.limit)), e.dtype)
        if e.op == "const" and self._keep is not _ALL and _is_operand(e):
            return Expr("const", (), self._put(e.value, dtype=e.dtype), e.dtype)
        return None


def _is_operand(e: Expr) -> bool:
    """Whether a constant may as well be read at run time."""
    return e.dtype in (float32, float64) or (e.dtype is int64 and abs(e.value) < FAR)


_symbols: dict[tuple[str, int], Dim] = {}


def _symbol(letter: str, i: int) -> Dim:
    found = _symbols.get((letter, i))
    if found is None:
        found = _symbols[letter, i] = dims.symbol(f"{letter}{i}")
    return found


# ---- one kernel for a family -------------------------------------------------------------------


class _Family:
    """What the members of a family have in common: one kernel."""

    def __init__(self, kernel: Kernel, members: Sequence[Sequence[_Place]]) -> None:
        self.members = members
        self.columns: dict[Dim, list[DimLike]] = {}  # a size of the kernel -> in each member
        self._by_values: dict[tuple[DimLike, ...], Dim] = {}
        names: dict[Dim, Any] = {}
        for places in zip(*members, strict=True):
            names[places[0].name] = self._common(places)

        def changed(part: Any) -> Any:
            if isinstance(part, Dim):
                return names[part]
            if isinstance(part, Cut):
                numbers = tuple(names[n] for n in part.numbers if isinstance(n, Dim))
                return Cut(part.code, numbers, tuple(map(self._largest, numbers)))
            if isinstance(part, Expr) and part.op == "const" and isinstance(part.value, Expr):
                return part.value
            return None

        self.kernel = rebuild(kernel, changed)
        self.names = sizes_of(self.kernel)

    def sizes(self, member: int) -> tuple[DimLike, ...]:
        return tuple(self.columns[d][member] for d in self.names)

    def _largest(self, number: DimLike) -> int:
        """Of what a number of a cut is in the members."""
        if isinstance(number, int):
            return number
        return max(n for n in self.columns[number] if isinstance(n, int))

    def _common(self, places: Sequence[_Place]) -> DimLike | Expr:
        """What stands for a number: itself if it is the same in all members, else a size."""
        first = places[0]
        if first.dtype is not None:
            same = len({repr(p.value) for p in places}) == 1
            values = [p.value for p in places]
            if same:
                return Expr("const", (), first.value, first.dtype)
            return self._constant(values, first.dtype)
        numbers = [p.value for p in places if not isinstance(p.value, float)]
        if isinstance(numbers[0], int) and all(n == numbers[0] for n in numbers):
            return numbers[0]
        if first.unit == 1:
            return self._size(numbers)
        most = VIRTUAL_LANES if first.unit == VECTOR else 0
        return self._size(numbers, math.gcd(most, *(dims.factor(n) for n in numbers)))

    def _size(self, numbers: Sequence[DimLike], unit: int = 1) -> Dim:
        key = tuple(numbers)
        found = self._by_values.get(key)
        if found is None:
            made = dims.mul(unit, _symbol("s", len(self._by_values)))
            assert isinstance(made, Dim)
            found = self._by_values[key] = made
            self.columns[made] = list(numbers)
        return found

    def _constant(self, values: Sequence[Any], dtype: DType) -> Expr:
        """A number of each member's own, its bits read from the table of sizes."""

        def column(bits: Sequence[int], kind: DType) -> Expr:
            return Expr("cast", (Expr("size", (), self._size(bits), int64),), None, kind)

        if dtype is int64:
            return Expr("size", (), self._size(values), int64)
        if dtype is float32:
            words = [struct.unpack("<I", struct.pack("<f", v))[0] for v in values]
            return Expr("bitcast", (column(words, uint32),), None, dtype)
        pairs = [struct.unpack("<II", struct.pack("<d", v)) for v in values]
        low, high = (column([p[i] for p in pairs], uint64) for i in range(2))
        shifted = Expr("shl", (high, Expr("const", (), 32, uint64)), None, uint64)
        wide = Expr("or", (low, shifted), None, uint64)
        return Expr("bitcast", (wide,), None, dtype)
