"""LLVM text of a contraction for a GPU: thread numbers, shared memory, barriers, narrow numbers.

One function, one lane: what is written is what each thread does.  Indices are i64 as on the CPU;
what is known of their ranges goes along, and those that fit are computed in 32 bits, as a GPU does
it: 64 bits take two registers, two additions, and a division five times as long.
Imports: codegen.text, codegen.contract_access, kernel, dims, types.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from graphc.backends.codegen.contract_access import (
    Group,
    Operand,
    Record,
    both,
    guards_axis,
    linear,
)
from graphc.backends.codegen.text import FunctionText
from graphc.dims import DimLike, mul, static_product
from graphc.kernel import Access, Contraction, sizes_of

SMALL = 1 << 31
"""Numbers from -SMALL to below SMALL are computed in 32 bits."""

TILE = 1024
"""More than the rows, columns or steps of any tile: what an index may lie beyond the last."""


class DeviceText(FunctionText):
    """The text of one kernel, which each thread of a grid runs; `shared` are its shared arrays."""

    def __init__(self, name: str) -> None:
        super().__init__(name, 1)
        self.shared: list[str] = []
        self.threads = 0
        self._narrow: dict[str, str] = {}  # numbers made from i32: that number
        self._ranges: dict[str, tuple[int, int]] = {}

    # ---- the kernel and its threads

    def open_grid(self, c: Contraction, threads: int, registers: int = 0) -> None:
        """Begin `ptx_kernel void name(ptr ..., i64 ...)`, for CTAs of so many threads that may use
        so many registers each (0: as many as there are)."""
        # A and B are read by all CTAs and so written by none; other buffers may be one memory
        listed = [
            f"ptr {'noalias readonly ' if i < 2 else ''}align 16 %a{i}" for i in range(len(c.bufs))
        ]
        sizes = sizes_of(c)
        listed += [f"i64 %s{i}" for i in range(len(sizes))]
        self.threads = threads
        limit = f'"nvvm.maxnreg"="{registers}" ' if registers else ""
        self.lines.append(
            f"define ptx_kernel void @{self.name}({', '.join(listed)}) "
            f'nounwind "nvvm.reqntid"="{threads}" {limit}{{'
        )
        self.lines.append("entry:")
        self.bases = [f"%a{i}" for i in range(len(c.bufs))]
        self.sizes = {d: f"%s{i}" for i, d in enumerate(sizes)}

    def thread(self) -> str:
        """The number of this thread in its CTA."""
        return self._special("tid.x", self.threads - 1)

    def cta(self) -> str:
        """The number of this thread's CTA."""
        return self._special("ctaid.x", SMALL - 1)

    def _special(self, register: str, most: int) -> str:
        name = f"llvm.nvvm.read.ptx.sreg.{register}"
        self.declarations[name] = f"declare i32 @{name}()"
        return self.widened(self.known(f"call i32 @{name}()"), 0, most)

    def barrier(self) -> None:
        """Wait for all threads of the CTA."""
        self.call("void", "llvm.nvvm.barrier.cta.sync.aligned.all", ("i32", "0"))

    def share(self, hint: str, scalar: str, count: int) -> str:
        """An array in shared memory; returns its address."""
        address = f"@{self.name}.{hint}"
        self.shared.append(
            f"{address} = internal addrspace(3) global [{count} x {scalar}] undef, align 16"
        )
        return address

    def shared_at(self, address: str, byte_offset: str | int) -> str:
        """An address in shared memory, some bytes on."""
        if str(byte_offset) == "0":
            return address
        return self.known(f"getelementptr i8, ptr addrspace(3) {address}, i64 {byte_offset}")

    # ---- numbers: i64, computed as i32 where their range is known to allow it

    def bound(self, x: str, low: int, high: int) -> str:
        """x, of which is known that it is from `low` to `high`."""
        if not _is_number(x):
            known = self._ranges.get(x, (low, high))
            self._ranges[x] = max(low, known[0]), min(high, known[1])
        return x

    def range_of(self, x: str) -> tuple[int, int] | None:
        """The least and the largest that x may be, if known."""
        return (int(x), int(x)) if _is_number(x) else self._ranges.get(x)

    def widened(self, narrow: str, low: int, high: int) -> str:
        """An i32 as i64."""
        extend = "zext" if low >= 0 else "sext"
        wide = self.known(f"{extend} i32 {narrow} to i64")
        self._narrow[wide] = narrow
        return self.bound(wide, low, high)

    def narrowed(self, x: str) -> str | None:
        """A number as i32, if its range allows it."""
        found = self.range_of(x)
        if found is None or found[0] < -SMALL or found[1] >= SMALL:
            return None
        if _is_number(x):
            return x
        return self._narrow.get(x) or self.known(f"trunc i64 {x} to i32")

    def _computed(self, op: str, a: str, b: str, low: int, high: int) -> str | None:
        """An operation in 32 bits, if its result fits; None otherwise."""
        if low < -SMALL or high >= SMALL:
            return None
        x, y = self.narrowed(a), self.narrowed(b)
        if x is None or y is None:
            return None
        return self.widened(self.known(f"{op} i32 {x}, {y}"), low, high)

    def add(self, a: str | int, b: str | int) -> str:
        a, b = str(a), str(b)
        p, q = self.range_of(a), self.range_of(b)
        if p is None or q is None or "0" in (a, b) or (_is_number(a) and _is_number(b)):
            return super().add(a, b)
        low, high = p[0] + q[0], p[1] + q[1]
        made = self._computed("add nsw", a, b, low, high)
        return self.bound(super().add(a, b), low, high) if made is None else made

    def sub(self, a: str | int, b: str | int) -> str:
        a, b = str(a), str(b)
        p, q = self.range_of(a), self.range_of(b)
        if p is None or q is None or b == "0" or (_is_number(a) and _is_number(b)):
            return super().sub(a, b)
        low, high = p[0] - q[1], p[1] - q[0]
        made = self._computed("sub nsw", a, b, low, high)
        return self.bound(super().sub(a, b), low, high) if made is None else made

    def mul(self, a: str | int, b: str | int) -> str:
        a, b = str(a), str(b)
        p, q = self.range_of(a), self.range_of(b)
        if p is None or q is None or {"0", "1"} & {a, b} or (_is_number(a) and _is_number(b)):
            return super().mul(a, b)
        ends = [x * y for x in p for y in q]
        made = self._computed("mul nsw", a, b, min(ends), max(ends))
        return self.bound(super().mul(a, b), min(ends), max(ends)) if made is None else made

    def udiv(self, a: str | int, b: str | int) -> str:
        a, b = str(a), str(b)
        p, q = self.range_of(a), self.range_of(b)
        if p is None or b == "1" or (_is_number(a) and _is_number(b)):
            return super().udiv(a, b)
        high = p[1] // max(q[0], 1) if q else p[1]
        made = self._computed("udiv", a, b, 0, high)
        return self.bound(super().udiv(a, b), 0, high) if made is None else made

    def urem(self, a: str | int, b: str | int) -> str:
        a, b = str(a), str(b)
        p, q = self.range_of(a), self.range_of(b)
        if b == "1" or (_is_number(a) and _is_number(b)):
            return super().urem(a, b)
        most = [x[1] - less for x, less in ((p, 0), (q, 1)) if x is not None]
        made = self._computed("urem", a, b, 0, min(most)) if most else None
        if made is not None:
            return made
        found = super().urem(a, b)
        return self.bound(found, 0, min(most)) if most else found

    def below(self, a: str, b: str) -> str:
        """Whether a < b; '' where it always is."""
        p, q = self.range_of(a), self.range_of(b)
        if p is not None and q is not None and p[1] < q[0]:
            return ""
        return self._compared("slt", a, b)

    def within(self, a: str, limit: str) -> str:
        """Whether 0 <= a < limit; '' where it always is."""
        p, q = self.range_of(a), self.range_of(limit)
        if p is not None and q is not None and p[0] >= 0 and p[1] < q[0]:
            return ""
        return self._compared("ult", a, limit)

    def _compared(self, how: str, a: str, b: str) -> str:
        x, y = self.narrowed(a), self.narrowed(b)
        if x is not None and y is not None:
            return self.known(f"icmp {how} i32 {x}, {y}")
        return self.known(f"icmp {how} i64 {a}, {b}")

    # ---- memory

    def guarded_loads(
        self, kind: str, align: int, wanted: Sequence[tuple[str, str]], outside: str
    ) -> list[str]:
        """Values of (address, condition or ''), `outside` where the condition does not hold."""
        found = []
        for address, inside in wanted:
            text = f"load {kind}, ptr {address}, align {align}"
            if not inside:
                found.append(self.value(text))
                continue
            before, yes, no = self.block, self.fresh("in"), self.fresh("out")
            self.branch_if(inside, yes, no)
            self.label(yes)
            one = self.value(text)
            self.branch(no)
            self.label(no)
            found.append(self.value(f"phi {kind} [ {outside}, %{before} ], [ {one}, %{yes} ]"))
        return found

    def where(self, condition: str, emit: Callable[[], None]) -> None:
        """What `emit` writes, run where a condition holds: '' for always."""
        if not condition:
            emit()
            return
        yes, no = self.fresh("in"), self.fresh("out")
        self.branch_if(condition, yes, no)
        self.label(yes)
        emit()
        self.branch(no)
        self.label(no)

    def module(self) -> str:
        """The whole module."""
        return "\n".join([*self.shared, *self.declarations.values(), str(self)])


# ---- groups of axes, walked as one flat index


def groups(c: Contraction) -> tuple[Group, Group, Group, Group]:
    """Batch, m, n and k axes."""
    found = []
    first = 0
    for extents in (c.batch, c.m, c.n, c.k):
        found.append(Group(tuple(range(first, first + len(extents))), extents))
        first += len(extents)
    return found[0], found[1], found[2], found[3]


def size_of(f: FunctionText, group: Group) -> str:
    """How many indices a group has."""
    size = "1"
    for extent in group.extents:
        size = f.mul(size, f.dim(extent))
    return size


def indexed(f: DeviceText, group: Group, flat: str) -> str:
    """A flat index of a group, with what is known of its range; it may be a tile too large."""
    size = static_product(group.extents)
    return flat if size is None else f.bound(flat, 0, size + TILE)


def coordinates(f: DeviceText, group: Group, flat: str) -> dict[int, str]:
    """The axes' indices at a flat row-major index."""
    coords: dict[int, str] = {}
    for i in range(len(group.axes) - 1, 0, -1):
        extent = group.extents[i]
        divisor = f.dim(extent) if extent != 0 else "1"  # nothing runs then
        coords[group.axes[i]] = f.urem(flat, divisor)
        flat = f.udiv(flat, divisor)
    if group.axes:
        coords[group.axes[0]] = flat
    return coords


def flat_step(access: Access, group: Group) -> DimLike | None:
    """How far an access moves per step of a group's flat index, if always as far and unguarded."""
    step: DimLike | None = None
    whole: DimLike = 0
    for axis, extent in zip(reversed(group.axes), reversed(group.extents), strict=True):
        if guards_axis(access, axis):
            return None
        if extent == 1:
            continue
        moved = linear(access, axis)
        if step is None:
            step = moved
        elif moved != whole:
            return None
        whole = mul(moved, extent)
    return 0 if step is None else step


def part_of(f: DeviceText, operand: Operand, group: Group, flat: str) -> Record:
    """What a group's flat index adds to the record of an operand."""
    step = flat_step(operand.access, group)
    if step is None:
        return operand.part(f, coordinates(f, group, flat))
    return [f.mul(flat, f.dim(step)) if step != 0 else "0", *("0" for _ in operand.guards)]


def located(f: DeviceText, operand: Operand, pointer: str, record: Record) -> tuple[str, str]:
    """The address of an element and whether it is inside ('' for always), where `pointer` has the
    record's offset in it."""
    inside = ""
    for guard, numerator in zip(operand.guards, record[1:], strict=True):
        index = numerator
        if guard.div != 1:
            index = f.value(f"sdiv i64 {numerator}, {guard.div}")
            exact = f.value(f"icmp eq i64 {f.mul(index, guard.div)}, {numerator}")
            inside = both(f, inside, exact)
            pointer = f.offset(pointer, f.mul(f.mul(index, guard.stride), operand.itemsize))
        inside = both(f, inside, f.within(index, guard.limit))
    return pointer, inside


def pointer_to(f: DeviceText, operand: Operand, record: Record) -> str:
    """The address a record's offset means."""
    return f.offset(operand.base, f.mul(record[0], operand.itemsize))


def _is_number(text: str) -> bool:
    return text.lstrip("-").isdigit()
