"""The epilogue of a contraction on a GPU: each thread's scalars over finished elements of C.

A thread has one element of C at a time, or a few neighbours along one group of axes: what they
share is computed once, what lies side by side is read and written at once.
Imports: contract_text, codegen.contract_access, codegen.scalar, codegen.text, kernel, types.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from graphc.backends.codegen.contract_access import (
    Group,
    Operand,
    Record,
    both,
    guards_axis,
    linear,
    sum_records,
)
from graphc.backends.codegen.scalar import emit_scalar
from graphc.backends.codegen.text import literal, memory_type, scalar_type
from graphc.backends.gpu.contract_text import (
    DeviceText,
    coordinates,
    flat_step,
    groups,
    located,
    part_of,
    pointer_to,
)
from graphc.dims import factor, mul
from graphc.kernel import HEAVY, Access, Contraction, Expr, Store, expressions_of
from graphc.types import DType, int64

BATCH, M, N = 0, 1, 2

WIDEST = 4
"""Most neighbours that are computed at once."""

LIGHT = 24
"""Operations of an epilogue that is written out for several neighbours."""


@dataclass(frozen=True)
class Spot:
    """Elements of C: the flat indices of batch, m and n of the first, the sums of all, and whether
    they exist ('' if they do)."""

    flat: tuple[str, str, str]
    sums: Sequence[str]
    exists: str = ""


def accesses_of(c: Contraction) -> list[Access]:
    """Every access of the epilogue."""
    found = [store.access for store in c.stores]
    found += [e.value[0] for e in expressions_of(c) if e.op in ("load", "gather")]
    return list(dict.fromkeys(found))


def adjacent(access: Access, group: Group, count: int) -> bool:
    """Whether `count` neighbours along a group, the first a multiple of it, are certainly adjacent
    in memory, aligned to their size, and all inside the guards or none."""
    if not group.axes or guards_axis(access, group.axes[-1]) or linear(access, group.axes[-1]) != 1:
        return False
    if factor(group.extents[-1]) % count:
        return False
    steps = [access.offset]
    for t in access.terms:
        if all(axis != group.axes[-1] for axis, _ in t.axes):
            steps.append(t.stride)
            continue
        steps.append(mul(t.shift, t.stride))
        steps += [mul(coef, t.stride) for axis, coef in t.axes if axis != group.axes[-1]]
    return all(factor(x) % count == 0 for x in steps)


def fast_group(c: Contraction) -> int:
    """The group along which neighbouring threads best have neighbouring elements: M or N."""
    found = groups(c)
    for store in c.stores:
        for which in (N, M):
            axes = found[which].axes
            if axes and linear(store.access, axes[-1]) == 1:
                return which
    return N


def is_light(c: Contraction) -> bool:
    """Whether the epilogue is short enough to be written out several times."""
    found = [e for e in expressions_of(c) if e.op not in ("const", "load", "acc")]
    return len(found) <= LIGHT and all(e.op not in HEAVY for e in found)


def neighbours(c: Contraction, fast: int) -> int:
    """How many elements a thread computes at once."""
    group = groups(c)[fast]
    count = WIDEST if is_light(c) else 1
    while count > 1:
        if factor(group.extents[-1] if group.axes else 1) % count == 0 and any(
            adjacent(store.access, group, count) for store in c.stores
        ):
            return count
        count //= 2
    return 1


def reads_along(c: Contraction, which: int) -> bool:
    """Whether the epilogue reads something else at each index of a group."""
    group = groups(c)[which]
    loads = (e for e in expressions_of(c) if e.op in ("load", "gather"))
    return any(flat_step(e.value[0], group) != 0 for e in loads)


class Epilogue:
    """Emits the expressions and stores of a contraction for `width` neighbours along a group."""

    def __init__(self, f: DeviceText, c: Contraction, fast: int, width: int) -> None:
        self.f, self.c, self.fast, self.width = f, c, fast, width
        self.groups = groups(c)[:3]
        axes = range(len(c.axes))
        self.operands = {a: Operand(f, a, c.bufs[a.buf].itemsize, axes) for a in accesses_of(c)}
        self.spot = Spot(("0", "0", "0"), ())
        self.values: dict[Expr, list[str]] = {}
        self.exists = ""  # what is read only where this holds

    def know(self, which: int, flat: str) -> None:
        """Work out what depends on one group, before a loop that moves the others."""
        for operand in self.operands.values():
            part_of(self.f, operand, self.groups[which], flat)

    def emit(self, spots: Sequence[Spot]) -> None:
        """All stores of the neighbours at some spots: every expression is read before the first is
        written."""
        made = []
        for spot in spots:
            self.spot, self.values, self.exists = spot, {}, spot.exists
            results = [self._value(store.expr) for store in self.c.stores]
            indices = [None if s.index is None else self._value(s.index) for s in self.c.stores]
            made.append((results, indices))
        self.exists = ""
        for spot, (results, indices) in zip(spots, made, strict=True):
            self.spot = spot
            self.f.where(spot.exists, partial(self._store_all, results, indices))

    def _store_all(self, results: Sequence[list[str]], indices: Sequence[list[str] | None]) -> None:
        for store, result, index in zip(self.c.stores, results, indices, strict=True):
            self._store(store, result, index)

    # ---- expressions: a list of values, one per neighbour

    def _value(self, e: Expr) -> list[str]:
        found = self.values.get(e)
        if found is None:
            found = self.values[e] = self._compute(e)
        return found

    def _compute(self, e: Expr) -> list[str]:
        f, scalar = self.f, scalar_type(e.dtype)
        if e.op == "acc":
            return list(self.spot.sums)
        if e.op == "const":
            return [literal(e.value, scalar)] * self.width
        if e.op == "size":
            return [self._number(f.dim(e.value), e.dtype)] * self.width
        if e.op == "axis":
            return self._each(lambda j: self._number(self._axis(e.value, j), e.dtype))
        if e.op == "load":
            access, fill = e.value
            return self._load(access, literal(fill, scalar), e.dtype)
        if e.op == "gather":
            access, extent = e.value
            index = self._value(e.args[0])
            return self._gather(access, f.dim(extent), e.dtype, index)
        operand = e.args[1].dtype if e.op == "select" else e.args[0].dtype
        args = [self._value(x) for x in e.args]
        return self._mapped(e.op, args, operand, e.dtype)

    def _mapped(
        self, op: str, args: Sequence[Sequence[str]], operand: DType, result: DType
    ) -> list[str]:
        """An operation, done once for neighbours with equal operands."""
        made: dict[tuple[str, ...], str] = {}
        found = []
        for one in zip(*args, strict=True):
            if one not in made:
                made[one] = emit_scalar(self.f, op, one, operand, result)
            found.append(made[one])
        return found

    def _number(self, wide: str, dtype: DType) -> str:
        return wide if dtype is int64 else emit_scalar(self.f, "cast", [wide], int64, dtype)

    def _each(self, one: Callable[[int], str]) -> list[str]:
        return [one(j) for j in range(self.width)]

    def _flat(self, which: int, j: int) -> str:
        """The flat index of a group at neighbour j."""
        flat = self.spot.flat[which]
        if which != self.fast or j == 0:
            return flat
        return self.f.add(flat, j)

    def _axis(self, axis: int, j: int) -> str:
        for which, group in enumerate(self.groups):
            if axis in group.axes:
                return coordinates(self.f, group, self._flat(which, j))[axis]
        raise AssertionError(f"axis {axis} is summed over")

    # ---- memory

    def _record(self, operand: Operand, j: int) -> Record:
        record = operand.origin()
        for which, group in enumerate(self.groups):
            record = sum_records(
                self.f, record, part_of(self.f, operand, group, self._flat(which, j))
            )
        return record

    def _place(self, access: Access, j: int) -> tuple[str, str]:
        """The address of neighbour j and whether it is inside, '' for always."""
        operand = self.operands[access]
        record = self._record(operand, j)
        address, inside = located(self.f, operand, pointer_to(self.f, operand, record), record)
        return address, both(self.f, self.exists, inside)

    def _uniform(self, access: Access) -> bool:
        """Whether all neighbours read the same element."""
        return self.width == 1 or flat_step(access, self.groups[self.fast]) == 0

    def _load(self, access: Access, fill: str, dtype: DType) -> list[str]:
        f, kind, size = self.f, memory_type(dtype), dtype.itemsize
        outside = _bit(fill)
        if self._uniform(access):
            (one,) = f.guarded_loads(kind, size, [self._place(access, 0)], outside)
            return [self._from_memory(one, dtype)] * self.width
        if adjacent(access, self.groups[self.fast], self.width):
            several, w = f"<{self.width} x {kind}>", self.width
            place = self._place(access, 0)
            (all_,) = f.guarded_loads(several, size * w, [place], f"splat ({kind} {outside})")
            lanes = self._each(lambda j: f.value(f"extractelement {several} {all_}, i32 {j}"))
        else:
            places = [self._place(access, j) for j in range(self.width)]
            lanes = f.guarded_loads(kind, size, places, outside)
        return [self._from_memory(x, dtype) for x in lanes]

    def _gather(self, access: Access, extent: str, dtype: DType, index: list[str]) -> list[str]:
        f, kind = self.f, memory_type(dtype)
        wanted = [self._indexed(access, j, i, extent) for j, i in enumerate(index)]
        nothing = _bit(literal(0, scalar_type(dtype)))
        found = f.guarded_loads(kind, dtype.itemsize, wanted, nothing)
        return [self._from_memory(x, dtype) for x in found]

    def _indexed(self, access: Access, j: int, index: str, extent: str) -> tuple[str, str]:
        """The place of an element `index` after that of an access, inside if below an extent."""
        address, inside = self._place(access, j)
        below = self.f.value(f"icmp ult i64 {index}, {extent}")
        moved = self.f.mul(index, self.c.bufs[access.buf].itemsize)
        return self.f.offset(address, moved), both(self.f, inside, below)

    def _from_memory(self, x: str, dtype: DType) -> str:
        return self.f.value(f"icmp ne i8 {x}, 0") if dtype.is_bool else x

    def _store(self, store: Store, values: list[str], index: list[str] | None) -> None:
        f, dtype = self.f, self.c.bufs[store.access.buf]
        kind, size = memory_type(dtype), dtype.itemsize
        group = self.groups[self.fast]
        if index is None and self.width > 1 and adjacent(store.access, group, self.width):
            if store.add:
                old = self._load(store.access, literal(0, scalar_type(dtype)), dtype)
                values = self._mapped("add", [old, values], dtype, dtype)
            several = f"<{self.width} x {kind}>"
            all_ = "poison"
            for j, x in enumerate(self._to_memory(x, dtype) for x in values):
                all_ = f.value(f"insertelement {several} {all_}, {kind} {x}, i32 {j}")
            self._guarded_store(
                f"{several} {all_}", size * self.width, self._place(store.access, 0)
            )
            return
        for j, x in enumerate(values):
            place = self._place(store.access, j)
            if index is not None:
                place = self._indexed(store.access, j, index[j], f.dim(store.extent or 0))
            if store.add:
                nothing = _bit(literal(0, scalar_type(dtype)))
                (old_,) = f.guarded_loads(kind, size, [place], nothing)
                x = emit_scalar(f, "add", [self._from_memory(old_, dtype), x], dtype, dtype)
            self._guarded_store(f"{kind} {self._to_memory(x, dtype)}", size, place)

    def _to_memory(self, x: str, dtype: DType) -> str:
        return self.f.value(f"zext i1 {x} to i8") if dtype.is_bool else x

    def _guarded_store(self, typed: str, align: int, place: tuple[str, str]) -> None:
        address, inside = place
        self.f.where(inside, partial(self.f.emit, f"store {typed}, ptr {address}, align {align}"))


def _bit(fill: str) -> str:
    """A scalar constant as it is in memory."""
    return {"true": "1", "false": "0"}.get(fill, fill)
