"""Slices of A and B on their way to shared memory: which thread reads what, and where it puts it.

A slice is the part of an operand that a tile needs for a few steps of k: `extent` rows of A or
columns of B by `depth` steps.  Neighbouring threads read what is next to each other in memory, up
to 16 bytes at once where alignment is certain.  What an index of m or n adds to an address is
worked out before the loop over k.
Imports: contract_text, contract_epilogue, codegen.contract_access, codegen.text, kernel.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from graphc.backends.codegen.contract_access import (
    Group,
    Operand,
    Record,
    both,
    linear,
    sum_records,
)
from graphc.backends.codegen.text import float_literal
from graphc.backends.gpu.contract_epilogue import adjacent
from graphc.backends.gpu.contract_text import (
    DeviceText,
    flat_step,
    indexed,
    located,
    part_of,
    pointer_to,
    size_of,
)
from graphc.dims import factor, static_product
from graphc.kernel import Access

BYTES = 16
"""The most a thread reads at once."""


@dataclass(frozen=True)
class Slice:
    """How `threads` threads read extent x depth elements, `width` adjacent ones at a time.

    along_k   whether neighbouring threads have neighbouring steps of k, else rows or columns
    pair      2 if shared memory holds two steps of k in a word, so that one thread reads both
    """

    extent: int
    depth: int
    threads: int
    along_k: bool
    width: int
    pair: int = 1

    @property
    def near(self) -> int:
        """Elements of a thread's item in the direction of neighbouring threads."""
        return max(self.width, self.pair) if self.along_k else self.width

    @property
    def fast(self) -> int:
        """Items in the direction of neighbouring threads."""
        return (self.depth if self.along_k else self.extent) // self.near

    @property
    def slow(self) -> int:
        """Items in the other direction."""
        return self.extent if self.along_k else self.depth // self.pair

    @property
    def items(self) -> int:
        """Items of each thread: what it reads and puts into shared memory together."""
        return max(1, self.fast * self.slow // self.threads)

    @property
    def idle(self) -> bool:
        """Whether some threads have nothing to read."""
        return self.fast * self.slow < self.threads

    @property
    def reads(self) -> range:
        """The reads of an item, by their steps after its first."""
        return range(1 if self.along_k and self.width >= self.pair else self.pair)

    def moved(self, item: int) -> tuple[int, int]:
        """How far an item of a thread is from its first, in (row or column, step)."""
        if self.fast <= self.threads:
            far, near = item * (self.threads // self.fast), 0
        else:
            rounds = self.fast // self.threads
            far, near = item // rounds, item % rounds * self.threads * self.near
        return (far, near) if self.along_k else (near, far * self.pair)


def slice_of(
    access: Access,
    free: Group,
    k: Group,
    extent: int,
    depth: int,
    threads: int,
    itemsize: int,
    pair: int = 1,
) -> Slice:
    """The slices of an operand, whose own axes are `free`."""
    along_k = _runs(access, k) > _runs(access, free)
    width = BYTES // itemsize
    group = k if along_k else free
    while width > 1 and not (
        adjacent(access, group, width) and extent * depth // (width * pair) >= threads // 2
    ):
        width //= 2
    return Slice(extent, depth, threads, along_k, width, pair)


def _runs(access: Access, group: Group) -> int:
    """About how many neighbours along a group lie next to each other."""
    if not group.axes or linear(access, group.axes[-1]) != 1:
        return 0
    size = static_product(group.extents[-1:])
    return 1 << 20 if size is None else size


@dataclass(frozen=True)
class Shared:
    """Where a slice lies in shared memory: element (row or column, step) is `row * of_row + step *
    of_step` elements after `address`."""

    address: str
    of_row: int
    of_step: int


@dataclass(frozen=True)
class _Row:
    """A row or column this thread reads: where it begins, its part of the record, and whether it
    exists."""

    pointer: str
    record: Record
    exists: str


class Reader:
    """Reads the slices of one operand; `batch` is the part of a record that the CTA's batch makes,
    `first` the CTA's first row or column."""

    def __init__(
        self,
        f: DeviceText,
        operand: Operand,
        cut: Slice,
        free: Group,
        k: Group,
        scalar: str,
        outside: float,
    ) -> None:
        self.f, self.operand, self.cut, self.free, self.k = f, operand, cut, free, k
        self.scalar, self.outside = scalar, outside
        self.rows: dict[int, _Row] = {}
        thread = f.thread()
        fast, slow = f.urem(thread, cut.fast), f.udiv(thread, cut.fast)
        if cut.fast > cut.threads:
            fast, slow = thread, "0"
        fast = f.mul(fast, cut.near)
        slow = slow if cut.along_k else f.mul(slow, cut.pair)
        self.row, self.step = (slow, fast) if cut.along_k else (fast, slow)
        self.here = ""
        if cut.idle:
            self.here = f.below(thread, str(cut.fast * cut.slow))
        self.exact_k = factor(k.size) % cut.depth == 0
        self.k_size = size_of(f, k)
        self.k_step = flat_step(operand.access, k)

    def prepare(self, batch: Record, first: str) -> None:
        """Work out what does not depend on k, before the loop over it."""
        f, cut = self.f, self.cut
        size = size_of(f, self.free)
        for item in range(cut.items):
            moved = cut.moved(item)[0]
            if moved in self.rows:
                continue
            flat = indexed(f, self.free, f.add(first, f.add(self.row, moved)))
            exists = "" if factor(self.free.size) % cut.extent == 0 else f.below(flat, size)
            record = part_of(f, self.operand, self.free, flat)
            record = sum_records(f, self.operand.origin(), batch, record)
            pointer = pointer_to(f, self.operand, record)
            self.rows[moved] = _Row(pointer, record, both(f, exists, self.here))
        if self.k_step is not None:
            for item in range(cut.items):
                for step in cut.reads:
                    moved = cut.moved(item)[1] + step
                    f.mul(f.dim(self.k_step), moved * self.operand.itemsize)

    def fetch(self, k0: str) -> list[str]:
        """The elements this thread reads of the slice from step k0 on: a value per read."""
        f, cut = self.f, self.cut
        kind = self.scalar if cut.width == 1 else f"<{cut.width} x {self.scalar}>"
        fill = float_literal(self.outside, self.scalar)
        if cut.width > 1:
            fill = f"splat ({self.scalar} {fill})"
        places = self._places(k0)
        return f.guarded_loads(kind, cut.width * self.operand.itemsize, places, fill)

    def copy(self, k0: str, shared: Shared) -> None:
        """Have the elements copied to shared memory; they are there after `copies_done`."""
        f, cut = self.f, self.cut
        count = cut.width * self.operand.itemsize
        name = f"llvm.nvvm.cp.async.{'cg' if count == 16 else 'ca'}.shared.global.{count}.s"
        f.declarations[name] = f"declare void @{name}(ptr addrspace(3), ptr addrspace(1), i32)"
        address = self._put_at(shared)
        places = self._places(k0)
        self._only_here()
        for item, (source, inside) in enumerate(places):
            row, step = cut.moved(item)
            target = f.shared_at(address, (row * shared.of_row + step * shared.of_step) * 4)
            source = f.value(f"addrspacecast ptr {source} to ptr addrspace(1)")
            size = f.value(f"select i1 {inside}, i32 {count}, i32 0") if inside else str(count)
            f.emit(
                f"call void @{name}(ptr addrspace(3) {target}, "
                f"ptr addrspace(1) {source}, i32 {size})"
            )
        self._all_again()

    def _places(self, k0: str) -> list[tuple[str, str]]:
        """Where each read is, and whether it is inside, '' for always."""
        cut = self.cut
        start = indexed(self.f, self.k, self.f.add(k0, self.step))
        found = []
        for item in range(cut.items):
            row, moved = cut.moved(item)
            found += [self._place(self.rows[row], k0, start, moved + j) for j in cut.reads]
        return found

    def _place(self, row: _Row, k0: str, start: str, moved: int) -> tuple[str, str]:
        """The address of a read and whether it is inside, '' for always."""
        f, operand = self.f, self.operand
        size = operand.itemsize
        flat = indexed(f, self.k, f.add(start, moved))
        inside = f.below(k0, self.k_size) if self.exact_k else f.below(flat, self.k_size)
        inside = both(f, row.exists, inside)
        if self.k_step is not None:
            step = f.dim(self.k_step)
            address = f.offset(row.pointer, f.mul(f.mul(start, step), size))
            address = f.offset(address, f.mul(step, moved * size))
            record = row.record
        else:
            part = part_of(f, operand, self.k, flat)
            address = f.offset(row.pointer, f.mul(part[0], size))
            record = sum_records(f, row.record, part)
        address, valid = located(f, operand, address, record)
        return address, both(f, inside, valid)

    # ---- to shared memory

    def put(self, values: Sequence[str], shared: Shared) -> None:
        """Write what was read into a slice in shared memory."""
        f, cut = self.f, self.cut
        address = self._put_at(shared)
        along = shared.of_step if cut.along_k else shared.of_row
        kind = self.scalar if cut.pair == 1 else "i32"
        size = self.operand.itemsize
        self._only_here()
        reads = len(cut.reads)
        for item in range(cut.items):
            row, step = cut.moved(item)
            at = (row * shared.of_row + step // cut.pair * shared.of_step) * size
            mine = values[item * reads : item * reads + reads]
            if cut.pair == 1 and (cut.width == 1 or along == 1):
                words = cut.width
                several = kind if words == 1 else f"<{words} x {kind}>"
                self._store(several, mine[0], f.shared_at(address, at), size * words)
                continue
            found = self._words(mine)
            if along == 1 and len(found) > 1:
                several, whole = f"<{len(found)} x {kind}>", "poison"
                for j, x in enumerate(found):
                    whole = f.value(f"insertelement {several} {whole}, {kind} {x}, i32 {j}")
                self._store(several, whole, f.shared_at(address, at), size * len(found))
                continue
            for j, x in enumerate(found):
                self._store(kind, x, f.shared_at(address, at + j * along * size), size)
        self._all_again()

    def _put_at(self, shared: Shared) -> str:
        """Where this thread's first item belongs."""
        f, cut = self.f, self.cut
        first = f.add(
            f.mul(self.row, shared.of_row), f.mul(f.udiv(self.step, cut.pair), shared.of_step)
        )
        return f.shared_at(shared.address, f.mul(first, self.operand.itemsize))

    def _words(self, reads: Sequence[str]) -> list[str]:
        """What an item's reads are in shared memory: elements, or pairs of them as bfloats."""
        cut = self.cut
        parts = [self._elements(x) for x in reads]
        if cut.pair == 1:
            return parts[0]
        if len(parts) == 1:
            pairs = list(zip(parts[0][::2], parts[0][1::2], strict=True))
        else:
            pairs = list(zip(*parts, strict=True))
        return [self._rounded(low, high) for low, high in pairs]

    def _elements(self, value: str) -> list[str]:
        width = self.cut.width
        if width == 1:
            return [value]
        kind = f"<{width} x {self.scalar}>"
        return [self.f.value(f"extractelement {kind} {value}, i32 {j}") for j in range(width)]

    def _rounded(self, low: str, high: str) -> str:
        """Two floats as bfloats in a word."""
        f = self.f
        both_ = f.value(f"insertelement <2 x float> poison, float {low}, i32 0")
        both_ = f.value(f"insertelement <2 x float> {both_}, float {high}, i32 1")
        short = f.value(f"fptrunc <2 x float> {both_} to <2 x bfloat>")
        return f.value(f"bitcast <2 x bfloat> {short} to i32")

    def _store(self, kind: str, value: str, address: str, align: int) -> None:
        self.f.emit(f"store {kind} {value}, ptr addrspace(3) {address}, align {align}")

    def _only_here(self) -> None:
        """What follows is for threads that have something to read."""
        if self.here:
            f = self.f
            write, self.after = f.fresh("put"), f.fresh("after")
            f.branch_if(self.here, write, self.after)
            f.label(write)

    def _all_again(self) -> None:
        if self.here:
            self.f.branch(self.after)
            self.f.label(self.after)
