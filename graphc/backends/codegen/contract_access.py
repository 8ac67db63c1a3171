"""Operands of a contraction: where an element lies, and whether it is inside its guards.

The position of an element is a record of i64 values: the element offset, then the numerator of
each guarded index.  A record is linear in the axes, so it is the sum of a part per axis group
(batch, outer, inner); parts of a group are tabulated once per block and added while packing.
Imports: text, kernel, dims.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from graphc.backends.codegen.text import FunctionText
from graphc.dims import DimLike, add, mul, product
from graphc.kernel import Access, Term

Record = list[str]


@dataclass(frozen=True)
class Group:
    """Axes that are walked as one flat row-major index."""

    axes: tuple[int, ...]
    extents: tuple[DimLike, ...]

    @property
    def size(self) -> DimLike:
        return product(self.extents)


def linear(access: Access, axis: int) -> DimLike:
    """How many elements the address moves per step of an axis (divided indices excepted)."""
    total: DimLike = 0
    for term in access.terms:
        if term.div == 1:
            for moved, coef in term.axes:
                if moved == axis:
                    total = add(total, mul(coef, term.stride))
    return total


def guarded(access: Access) -> tuple[Term, ...]:
    return tuple(term for term in access.terms if term.limit is not None)


def guards_axis(access: Access, axis: int) -> bool:
    return any(axis == moved for term in guarded(access) for moved, _ in term.axes)


def fused_axes(access: Access, group: Group) -> int:
    """How many trailing axes of a group form one contiguous unguarded run in memory."""
    expected: DimLike = 1
    count = 0
    for axis, extent in zip(reversed(group.axes), reversed(group.extents), strict=True):
        if guards_axis(access, axis):
            break
        if extent != 1 and linear(access, axis) != expected:
            break
        expected = mul(expected, extent)
        count += 1
    return count


def window_axes(access: Access, group: Group) -> int:
    """How many trailing axes of a group form one run in memory, of which a guard of the first axis
    leaves a part that is itself a run: (kw, channels) of a window; 0 if none do so."""
    fused = fused_axes(access, group)
    if fused == len(group.axes):
        return 0
    axis, extents = group.axes[-1 - fused], group.extents[len(group.axes) - fused :]
    terms = [t for t in guarded(access) if any(a == axis for a, _ in t.axes)]
    if len(terms) != 1 or terms[0].div != 1 or linear(access, axis) != product(extents):
        return 0
    moved = {a: c for a, c in terms[0].axes if a in group.axes}
    return fused + 1 if moved == {axis: 1} else 0


def run_length(access: Access, group: Group) -> DimLike:
    """Elements in the contiguous run that `fused_axes` trailing axes make."""
    count = fused_axes(access, group)
    return product(group.extents[len(group.extents) - count :])


@dataclass(frozen=True)
class Guard:
    coefs: Mapping[int, str]
    shift: str
    div: int
    limit: str
    stride: str


class Operand:
    """An access with its strides, limits and shifts in registers."""

    def __init__(self, f: FunctionText, access: Access, itemsize: int, axes: Sequence[int]) -> None:
        self.access = access
        self.base = f.bases[access.buf]
        self.itemsize = itemsize
        self.strides = {a: self._stride(f, a) for a in axes}
        self.guards = [self._guard(f, term) for term in guarded(access)]
        constant = f.dim(access.offset)
        for term in access.terms:
            if term.div == 1:
                constant = f.add(constant, f.mul(f.dim(term.shift), f.dim(term.stride)))
        self.constant = constant

    def _stride(self, f: FunctionText, axis: int) -> str:
        total = "0"
        for term in self.access.terms:
            if term.div == 1:
                for moved, coef in term.axes:
                    if moved == axis:
                        total = f.add(total, f.mul(f.dim(coef), f.dim(term.stride)))
        return total

    def _guard(self, f: FunctionText, term: Term) -> Guard:
        assert term.limit is not None
        coefs: dict[int, str] = {}
        for axis, coef in term.axes:
            coefs[axis] = f.add(coefs.get(axis, "0"), f.dim(coef))
        stride = f.dim(term.stride)
        return Guard(coefs, f.dim(term.shift), term.div, f.dim(term.limit), stride)

    def origin(self) -> Record:
        """The record where every axis is 0."""
        return [self.constant, *(guard.shift for guard in self.guards)]

    def part(self, f: FunctionText, coords: Mapping[int, str]) -> Record:
        """What some axes add to a record."""
        record = ["0"] * (1 + len(self.guards))
        for axis, coord in coords.items():
            record[0] = f.add(record[0], f.mul(self.strides.get(axis, "0"), coord))
            for i, guard in enumerate(self.guards):
                step = f.mul(guard.coefs.get(axis, "0"), coord)
                record[1 + i] = f.add(record[1 + i], step)
        return record

    def locate(self, f: FunctionText, *parts: Record) -> tuple[str, str]:
        """The pointer to an element and an i1: whether it is inside ('' when always)."""
        record = sum_records(f, *parts)
        offset, inside = record[0], ""
        for guard, numerator in zip(self.guards, record[1:], strict=True):
            index = numerator
            if guard.div != 1:
                index = f.value(f"sdiv i64 {numerator}, {guard.div}")
                exact = f.value(f"icmp eq i64 {f.mul(index, guard.div)}, {numerator}")
                inside = both(f, inside, exact)
                offset = f.add(offset, f.mul(index, guard.stride))
            inside = both(f, inside, f.value(f"icmp ult i64 {index}, {guard.limit}"))
        return f.offset(self.base, f.mul(offset, self.itemsize)), inside


def sum_records(f: FunctionText, *parts: Record) -> Record:
    total = list(parts[0])
    for part in parts[1:]:
        total = [f.add(a, b) for a, b in zip(total, part, strict=True)]
    return total


def both(f: FunctionText, a: str, b: str) -> str:
    """a and b, where '' is true."""
    if not a or not b:
        return a or b
    return f.value(f"and i1 {a}, {b}")


def coordinates(f: FunctionText, group: Group, flat: str) -> dict[int, str]:
    """The axes' indices at a flat row-major index; safe when extents are 0."""
    coords: dict[int, str] = {}
    for i in range(len(group.axes) - 1, 0, -1):
        extent = f.smax(f.dim(group.extents[i]), 1)
        coords[group.axes[i]] = f.urem(flat, extent)
        flat = f.udiv(flat, extent)
    if group.axes:
        coords[group.axes[0]] = flat
    return coords


def advanced(f: FunctionText, group: Group, coords: Mapping[int, str]) -> dict[int, str]:
    """The coordinates one step later: an odometer, so that no division is needed."""
    following: dict[int, str] = {}
    carry = "1"
    for axis, extent in reversed(list(zip(group.axes, group.extents, strict=True))):
        stepped = f.add(coords[axis], carry)
        if axis == group.axes[0]:
            following[axis] = stepped
            break
        wraps = f.value(f"icmp sge i64 {stepped}, {f.dim(extent)}")
        following[axis] = f.value(f"select i1 {wraps}, i64 0, i64 {stepped}")
        carry = f.value(f"zext i1 {wraps} to i64")
    return following


def _evenly_apart(access: Access, group: Group) -> bool:
    """Whether the elements of a group, in its order, are a constant stride apart."""
    expected: DimLike | None = None
    for axis, extent in zip(reversed(group.axes), reversed(group.extents), strict=True):
        if extent == 1:
            continue
        if expected is not None and linear(access, axis) != expected:
            return False
        expected = mul(linear(access, axis), extent)
    return True


class Table:
    """Records of one axis group in scratch memory: each a run of contiguous elements.

    Record r holds the offset, the guard numerators and the length of run r.  `rows` is the number
    of records.  Runs of one element a constant stride apart are computed, not tabulated.
    """

    def __init__(self, f: FunctionText, operand: Operand, group: Group, fused: int, memory: str):
        self.operand = operand
        self.size = group.size
        self.outer = Group(
            group.axes[: len(group.axes) - fused], group.extents[: len(group.axes) - fused]
        )
        self.run: str = "1"
        self.extent = f.dim(group.extents[-fused]) if fused else "1"
        for extent in group.extents[len(group.axes) - fused :]:
            self.run = f.mul(self.run, f.smax(f.dim(extent), 1))
        self.memory = memory
        self.width = 8 * record_words(operand.access)
        self.rows = "0"
        moving = [a for a, e in zip(group.axes, group.extents, strict=True) if e != 1]
        even = _evenly_apart(operand.access, group)
        self.uniform = fused == 0 and even and not operand.guards
        self.step = operand.strides[moving[-1]] if self.uniform and moving else "0"
        self.start = "0"

    @property
    def single(self) -> bool:
        """Whether the whole group is one run."""
        return not self.outer.axes

    def fill(self, f: FunctionText, start: str, count: str) -> None:
        """Tabulate elements [start, start + count) of the group."""
        if self.uniform:
            self.rows, self.start = count, f.mul(start, self.step)
            return
        if self.single:
            self.rows = "1"
            self._write(f, self.memory, {}, start, count)
            return
        within = f.urem(start, self.run)
        coords = coordinates(f, self.outer, f.udiv(start, self.run))
        order = list(coords)
        rounded = f.add(f.add(within, count), f.sub(self.run, 1))
        self.rows = f.udiv(rounded, self.run)
        carried = [("ptr", self.memory), ("i64", "0"), ("i64", within)]
        loop = f.open_loop(0, self.rows, 1, [*carried, *(("i64", coords[a]) for a in order)])
        memory, done, within = loop.carried[:3]
        here = dict(zip(order, loop.carried[3:], strict=True))
        length = "1"
        if self.run != "1":
            length = f.smin(f.sub(self.run, within), f.sub(count, done))
        self._write(f, memory, here, within, length)
        following = advanced(f, self.outer, here)
        f.close_loop(
            loop,
            [
                f.offset(memory, self.width),
                f.add(done, length),
                "0",
                *(following[a] for a in order),
            ],
        )

    def _write(
        self, f: FunctionText, memory: str, coords: Mapping[int, str], within: str, length: str
    ) -> None:
        record = self.operand.part(f, coords)
        record[0] = f.add(record[0], within if self.run != "1" or self.single else "0")
        for i, word in enumerate([*record, length]):
            f.emit(f"store i64 {word}, ptr {f.offset(memory, 8 * i)}, align 8")

    def read(self, f: FunctionText, row: str) -> tuple[Record, str]:
        """Record `row` and the length of its run."""
        if self.uniform:
            return [f.add(self.start, f.mul(row, self.step))], "1"
        memory = f.offset(self.memory, f.mul(row, self.width))
        words = [
            f.value(f"load i64, ptr {f.offset(memory, 8 * i)}, align 8")
            for i in range(self.width // 8)
        ]
        return words[:-1], words[-1]


def record_words(access: Access) -> int:
    """i64 words in a table record: offset, guard numerators, run length."""
    return 2 + len(guarded(access))
