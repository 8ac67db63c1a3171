"""Copies slices of the operands of a contraction into packed scratch memory.

Copies run along contiguous runs with masked vector loads and whole vector stores: what a store
writes beyond its run is overwritten by the next, and behind the last there is slack.  Rows beyond
the edge of an operand hold arbitrary numbers, which only reach results that are never stored.
Imports: text, contract_access, contract_microkernel, dims.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from graphc.backends.codegen.contract_access import Operand, Record, Table, sum_records
from graphc.backends.codegen.contract_microkernel import lanes_below, masked_load
from graphc.backends.codegen.text import FunctionText
from graphc.dims import factor

FETCHED = 16
"""Steps of k from the one that is copied to the one that is asked for."""


@dataclass(frozen=True)
class Packer:
    """What all packing of one operand shares.

    `zeros` is a zeroed vector for guarded loads, `located` a scratch table of (address, length).
    """

    operand: Operand
    origin: Record
    scalar: str
    itemsize: int
    lanes: int
    zeros: str
    located: str

    @property
    def vector(self) -> str:
        return f"<{self.lanes} x {self.scalar}>"

    @property
    def vector_bytes(self) -> int:
        return self.lanes * self.itemsize


def pack_copies(
    f: FunctionText,
    p: Packer,
    outer: Table,
    outer_range: tuple[str, str],
    inner: Table,
    destination: str,
    stride: int,
) -> None:
    """Copy [outer][inner] to rows `stride` bytes apart."""
    start, stop = outer_range
    rows = f.open_loop(start, stop, 1, [("ptr", destination)])
    at = rows.carried[0]
    position = sum_records(f, p.origin, outer.read(f, rows.index)[0])
    _copy_runs(f, p, position, inner, at)
    f.close_loop(rows, [f.offset(at, stride)])


def pack_panels(
    f: FunctionText,
    p: Packer,
    k: Table,
    steps: str,
    free: Table,
    destination: str,
    panel: str,
    width: int,
) -> None:
    """Copy rows or columns that lie side by side, without guards, to panels of `width`.

    Each step of k goes to all panels before the next: so memory is read in the order it has.
    `panel`: bytes from one panel to the next, with room for what a last vector writes too much.
    Only at the end vectors are masked: processors do not notice where a masked load goes on
    reading, so nothing would be on its way when it is wanted.
    """
    record, length = free.read(f, "0")
    offsets = range(0, width, p.lanes)
    if isinstance(free.size, int) and free.size < width:
        masks = [_mask_at(f, p, begin, free.size) for begin in offsets]
        rows = f.open_loop(0, steps, 1, [("ptr", destination)])
        position = sum_records(f, p.origin, k.read(f, rows.index)[0])
        _copy_vectors(f, p, p.operand.locate(f, position, record)[0], rows.carried[0], masks)
        f.close_loop(rows, [f.offset(rows.carried[0], width * p.itemsize)])
        return
    inside = f.sub(length, (len(offsets) * p.lanes) - width)
    full = f.mul(f.udiv(f.smax(inside, 0), width), width)
    rows = f.open_loop(0, steps, 1, [("ptr", destination)])
    position = sum_records(f, p.origin, k.read(f, rows.index)[0])
    source, _ = p.operand.locate(f, position, record)
    across = f.open_loop(0, full, width, [("ptr", source), ("ptr", rows.carried[0])])
    if k.uniform:
        f.prefetch(f.offset(across.carried[0], f.mul(k.step, FETCHED * p.itemsize)))
    _copy_vectors(f, p, across.carried[0], across.carried[1], [""] * len(offsets))
    beyond = [f.offset(across.carried[0], width * p.itemsize), f.offset(across.carried[1], panel)]
    source, at = f.close_loop(across, beyond)
    if len(offsets) * p.lanes != width or factor(free.size) % width:
        edge = f.open_loop(full, length, width, [("ptr", source), ("ptr", at)])
        left = f.sub(length, edge.index)
        masks = [lanes_below(f, p, f.sub(left, begin)) for begin in offsets]
        _copy_vectors(f, p, edge.carried[0], edge.carried[1], masks)
        beyond = [f.offset(edge.carried[0], width * p.itemsize), f.offset(edge.carried[1], panel)]
        f.close_loop(edge, beyond)
    f.close_loop(rows, [f.offset(rows.carried[0], width * p.itemsize)])


def _mask_at(f: FunctionText, p: Packer, begin: int, size: int) -> str:
    """Which lanes of a vector that begins somewhere are below a size, '' being all of them."""
    return "" if begin + p.lanes <= size else lanes_below(f, p, str(size - begin))


def _copy_vectors(f: FunctionText, p: Packer, source: str, at: str, masks: Sequence[str]) -> None:
    """Copy a vector for each mask, '' being all of it."""
    for v, mask in enumerate(masks):
        place = f.offset(source, v * p.vector_bytes)
        if mask:
            x = masked_load(f, p, place, mask)
        else:
            x = f.value(f"load {p.vector}, ptr {place}, align {p.itemsize}")
        _store(f, p, x, f.offset(at, v * p.vector_bytes))


def clear_missing(f: FunctionText, memory: str, first: str, last: str, itemsize: int) -> None:
    """Zero packed rows that lie beyond the block, from one byte to another.

    Their sums are never stored, but arithmetic on whatever the stack holds, denormal numbers above
    all, can be many times slower.
    """
    clear = f.open_loop(first, last, 64)
    at = f.offset(memory, clear.index)
    f.emit(f"store <64 x i8> zeroinitializer, ptr {at}, align {itemsize}")
    f.close_loop(clear)


def pack_needed(
    f: FunctionText,
    p: Packer,
    outer: Table,
    outer_range: tuple[str, str],
    inner: Table,
    destination: str,
    stride: int,
    needed: str,
) -> None:
    """Copy the rows of a tile as `pack_copies` does, except runs that lie outside in all of them.

    `needed` (an i8 per run) notes which runs were copied.
    """
    runs = f.open_loop(0, inner.rows, 1, [("ptr", destination)])
    at = runs.carried[0]
    record, length = inner.read(f, runs.index)
    record = sum_records(f, p.origin, record)
    rows = f.open_loop(*outer_range, 1, [("i1", "false")])
    _, inside = p.operand.locate(f, record, outer.read(f, rows.index)[0])
    some = f.close_loop(rows, [f.value(f"or i1 {rows.carried[0]}, {inside}")])[0]
    f.emit(f"store i8 {f.value(f'zext i1 {some} to i8')}, ptr {f.offset(needed, runs.index)}")
    copy, after = f.fresh("copy"), f.fresh("after")
    f.branch_if(some, copy, after)
    f.label(copy)
    rows = f.open_loop(*outer_range, 1, [("ptr", at)])
    source, inside = p.operand.locate(f, record, outer.read(f, rows.index)[0])
    _copy_or_clear(f, p, source, rows.carried[0], length, inside)
    f.close_loop(rows, [f.offset(rows.carried[0], stride)])
    f.branch(after)
    f.label(after)
    f.close_loop(runs, [f.offset(at, f.mul(length, p.itemsize))])


def _copy_runs(f: FunctionText, p: Packer, position: Record, inner: Table, at: str) -> None:
    runs = f.open_loop(0, inner.rows, 1, [("ptr", at)])
    at = runs.carried[0]
    record, length = inner.read(f, runs.index)
    source, inside = p.operand.locate(f, position, record)
    if inner.run == "1":
        if inside:
            source = f.value(f"select i1 {inside}, ptr {source}, ptr {p.zeros}")
        one = f.value(f"load {p.scalar}, ptr {source}, align {p.itemsize}")
        f.emit(f"store {p.scalar} {one}, ptr {at}, align {p.itemsize}")
        f.close_loop(runs, [f.offset(at, p.itemsize)])
        return
    if inside:
        _copy_or_clear(f, p, source, at, length, inside)
    else:
        _copy(f, p, source, at, length, inner)
    f.close_loop(runs, [f.offset(at, f.mul(length, p.itemsize))])


def _copy(f: FunctionText, p: Packer, source: str, at: str, length: str, inner: Table) -> None:
    """Copy a run: whole vectors, then a masked one."""
    if inner.run.isdigit() and int(inner.run) <= p.lanes:
        _store(f, p, masked_load(f, p, source, lanes_below(f, p, length)), at)
        return
    whole = f.value(f"and i64 {length}, {-p.lanes}")
    copy = f.open_loop(0, whole, p.lanes)
    moved = f.mul(copy.index, p.itemsize)
    x = f.value(f"load {p.vector}, ptr {f.offset(source, moved)}, align {p.itemsize}")
    _store(f, p, x, f.offset(at, moved))
    f.close_loop(copy)
    mask = lanes_below(f, p, f.sub(length, whole))
    moved = f.mul(whole, p.itemsize)
    _store(f, p, masked_load(f, p, f.offset(source, moved), mask), f.offset(at, moved))


def _copy_or_clear(
    f: FunctionText, p: Packer, source: str, at: str, length: str, inside: str
) -> None:
    """Copy a run, or write zeros where it lies outside."""
    available = f.value(f"select i1 {inside}, i64 {length}, i64 0")
    copy = f.open_loop(0, length, p.lanes)
    mask = lanes_below(f, p, f.sub(available, copy.index))
    moved = f.mul(copy.index, p.itemsize)
    _store(f, p, masked_load(f, p, f.offset(source, moved), mask), f.offset(at, moved))
    f.close_loop(copy)


def _store(f: FunctionText, p: Packer, x: str, address: str) -> None:
    f.emit(f"store {p.vector} {x}, ptr {address}, align {p.itemsize}")
