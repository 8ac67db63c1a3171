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
    """

    extent: int
    depth: int
    threads: int
    along_k: bool
    width: int

    @property
    def fast(self) -> int:
        """Reads along the direction of neighbouring threads."""
        return (self.depth if self.along_k else self.extent) // self.width

    @property
    def reads(self) -> int:
        """Reads of each thread."""
        slow = self.extent if self.along_k else self.depth
        return max(1, self.fast * slow // self.threads)

    @property
    def idle(self) -> bool:
        """Whether some threads have nothing to read."""
        return self.fast * (self.extent if self.along_k else self.depth) < self.threads

    def moved(self, read: int) -> tuple[int, int]:
        """How far read `read` of a thread is from its first, in (row or column, step)."""
        if self.fast <= self.threads:
            far, near = read * (self.threads // self.fast), 0
        else:
            rounds = self.fast // self.threads
            far, near = read // rounds, read % rounds * self.threads * self.width
        return (far, near) if self.along_k else (near, far)


def slice_of(
    access: Access, free: Group, k: Group, extent: int, depth: int, threads: int, itemsize: int
) -> Slice:
    """The slices of an operand, whose own axes are `free`."""
    along_k = _runs(access, k) > _runs(access, free)
    width = BYTES // itemsize
    group = k if along_k else free
    while width > 1 and not (
        adjacent(access, group, width) and extent * depth // width >= threads // 2
    ):
        width //= 2
    return Slice(extent, depth, threads, along_k, width)


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
        fast = f.mul(fast, cut.width)
        self.row, self.step = (slow, fast) if cut.along_k else (fast, slow)
        self.here = ""
        if cut.idle:
            reads = cut.fast * (cut.extent if cut.along_k else cut.depth)
            self.here = f.below(thread, str(reads))
        self.exact_k = factor(k.size) % cut.depth == 0
        self.k_size = size_of(f, k)
        self.k_step = flat_step(operand.access, k)

    def prepare(self, batch: Record, first: str) -> None:
        """Work out what does not depend on k, before the loop over it."""
        f, cut = self.f, self.cut
        size = size_of(f, self.free)
        for read in range(cut.reads):
            moved = cut.moved(read)[0]
            if moved in self.rows:
                continue
            flat = indexed(f, self.free, f.add(first, f.add(self.row, moved)))
            exists = "" if factor(self.free.size) % cut.extent == 0 else f.below(flat, size)
            record = part_of(f, self.operand, self.free, flat)
            record = sum_records(f, self.operand.origin(), batch, record)
            pointer = pointer_to(f, self.operand, record)
            self.rows[moved] = _Row(pointer, record, both(f, exists, self.here))
        if self.k_step is not None:
            for read in range(cut.reads):
                f.mul(f.dim(self.k_step), cut.moved(read)[1] * self.operand.itemsize)

    def fetch(self, k0: str) -> list[str]:
        """The elements this thread reads of the slice from step k0 on: a value per read."""
        f, cut = self.f, self.cut
        start = indexed(f, self.k, f.add(k0, self.step))
        kind = self.scalar if cut.width == 1 else f"<{cut.width} x {self.scalar}>"
        places = []
        for read in range(cut.reads):
            row, step = cut.moved(read)
            places.append(self._place(self.rows[row], k0, start, step))
        fill = float_literal(self.outside, self.scalar)
        if cut.width > 1:
            fill = f"splat ({self.scalar} {fill})"
        return f.guarded_loads(kind, cut.width * self.operand.itemsize, places, fill)

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

    def put(self, values: Sequence[str], shared: Shared) -> None:
        """Write what was read into a slice in shared memory."""
        f, cut, size = self.f, self.cut, self.operand.itemsize
        first = f.add(f.mul(self.row, shared.of_row), f.mul(self.step, shared.of_step))
        address = f.shared_at(shared.address, f.mul(first, size))
        along = shared.of_step if cut.along_k else shared.of_row
        if self.here:
            write, after = f.fresh("put"), f.fresh("after")
            f.branch_if(self.here, write, after)
            f.label(write)
        for read, value in enumerate(values):
            row, step = cut.moved(read)
            at = (row * shared.of_row + step * shared.of_step) * size
            if cut.width == 1:
                f.emit(
                    f"store {self.scalar} {value}, ptr addrspace(3) "
                    f"{f.shared_at(address, at)}, align {size}"
                )
                continue
            kind = f"<{cut.width} x {self.scalar}>"
            if along == 1:
                f.emit(
                    f"store {kind} {value}, ptr addrspace(3) {f.shared_at(address, at)}, "
                    f"align {size * cut.width}"
                )
                continue
            for j in range(cut.width):
                one = f.value(f"extractelement {kind} {value}, i32 {j}")
                f.emit(
                    f"store {self.scalar} {one}, ptr addrspace(3) "
                    f"{f.shared_at(address, at + j * along * size)}, align {size}"
                )
        if self.here:
            f.branch(after)
            f.label(after)
