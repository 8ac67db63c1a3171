"""Copies slices of the operands of a contraction into packed scratch memory.

Copies run along contiguous runs with masked vector loads and whole vector stores: what a store
writes beyond its run is overwritten by the next, and behind the last there is slack.  Rows beyond
the edge of an operand hold arbitrary numbers, which only reach results that are never stored.
Imports: text, contract_access, contract_microkernel.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from graphc.backends.codegen.contract_access import Operand, Record, Table, sum_records
from graphc.backends.codegen.contract_microkernel import lanes_below, masked_load
from graphc.backends.codegen.text import FunctionText


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
    width: int | None,
) -> None:
    """Copy [outer][inner] to rows `stride` bytes apart; `width` bounds the inner elements."""
    start, stop = outer_range
    whole: tuple[Record, list[str]] | None = None
    if inner.single and width is not None and not p.operand.guards:
        record, length = inner.read(f, "0")
        count = -(-width // p.lanes)
        masks = [lanes_below(f, p, f.sub(length, v * p.lanes)) for v in range(count)]
        whole = (record, masks)
    rows = f.open_loop(start, stop, 1, [("ptr", destination)])
    at = rows.carried[0]
    position = sum_records(f, p.origin, outer.read(f, rows.index)[0])
    if whole is not None:
        source, _ = p.operand.locate(f, position, whole[0])
        for v, mask in enumerate(whole[1]):
            x = masked_load(f, p, f.offset(source, v * p.vector_bytes), mask)
            _store(f, p, x, f.offset(at, v * p.vector_bytes))
    else:
        _copy_runs(f, p, position, inner, at)
    f.close_loop(rows, [f.offset(at, stride)])


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


@dataclass(frozen=True)
class Columns:
    """Outer elements that become columns: `lanes` of them from `first` on, at most `last`."""

    table: Table
    first: str
    last: str

    def position(self, f: FunctionText, p: Packer, lane: str) -> Record:
        row = f.smin(f.add(self.first, lane), self.last)
        return sum_records(f, p.origin, self.table.read(f, row)[0])


def pack_transposed(
    f: FunctionText,
    p: Packer,
    columns: Columns,
    inner: Table,
    destination: str,
    stride: int,
    square: str,
) -> None:
    """Copy runs along inner to columns of the destination, rows `stride` bytes apart.

    A square of vectors is transposed by log2(lanes) <= 4 perfect shuffles, in two short loops with
    a scratch square between: LLVM is slow to compile long chains of shuffles.
    """
    runs = f.open_loop(0, inner.rows, 1, [("ptr", destination)])
    at = runs.carried[0]
    record, length = inner.read(f, runs.index)
    if p.operand.guards:
        _locate_lanes(f, p, columns, record, length)
    copy = f.open_loop(0, length, p.lanes)
    moved = f.mul(copy.index, p.itemsize)
    shared = lanes_below(f, p, f.sub(length, copy.index))

    def load(lane: str) -> str:
        if p.operand.guards:
            slot = f.offset(p.located, f.mul(lane, 16))
            source = f.value(f"load ptr, ptr {slot}, align 8")
            available = f.value(f"load i64, ptr {f.offset(slot, 8)}, align 8")
            mask = lanes_below(f, p, f.sub(available, copy.index))
            return masked_load(f, p, f.offset(source, moved), mask)
        source, _ = p.operand.locate(f, columns.position(f, p, lane), record)
        return masked_load(f, p, f.offset(source, moved), shared)

    stages = p.lanes.bit_length() - 1
    begin = f.offset(at, f.mul(copy.index, stride))
    read: Callable[[str], str] = load
    for done in range(0, stages, 2):
        here = min(2, stages - done)
        last = done + here == stages
        rows = (begin, stride) if last else (square, p.vector_bytes)
        _shuffle(f, p, read, rows, here)
        read = _reader(f, p, square)
    f.close_loop(copy)
    f.close_loop(runs, [f.offset(at, f.mul(length, stride))])


def _locate_lanes(
    f: FunctionText, p: Packer, columns: Columns, record: Record, length: str
) -> None:
    """Tabulate where the run begins in each column, and how much of it is inside."""
    lanes = f.open_loop(0, p.lanes, 1, [("ptr", p.located)])
    position = columns.position(f, p, lanes.index)
    source, inside = p.operand.locate(f, position, record)
    available = f.value(f"select i1 {inside}, i64 {length}, i64 0")
    slot = lanes.carried[0]
    f.emit(f"store ptr {source}, ptr {slot}, align 8")
    f.emit(f"store i64 {available}, ptr {f.offset(slot, 8)}, align 8")
    f.close_loop(lanes, [f.offset(slot, 16)])


def _reader(f: FunctionText, p: Packer, square: str) -> Callable[[str], str]:
    def read(lane: str) -> str:
        address = f.offset(square, f.mul(lane, p.vector_bytes))
        return f.value(f"load {p.vector}, ptr {address}, align {p.vector_bytes}")

    return read


def _shuffle(
    f: FunctionText,
    p: Packer,
    read: Callable[[str], str],
    destination: tuple[str, int],
    stages: int,
) -> None:
    """Interleave the first half of the rows of a square with the second, `stages` (1 or 2) times.

    Two stages take rows i, i + n/4, i + n/2, i + 3n/4 to rows 4i ... 4i + 3.
    """
    n, parts = p.lanes, 2**stages
    begin, stride = destination
    loop = f.open_loop(0, n // parts, 1, [("ptr", begin)])
    rows = [read(f.add(loop.index, i * n // parts)) for i in range(parts)]
    for _ in range(stages):
        mixed = []
        for x, y in zip(rows[: parts // 2], rows[parts // 2 :], strict=True):
            mixed += [_interleave(f, p, x, y, half) for half in range(2)]
        rows = mixed
    for i, x in enumerate(rows):
        _store(f, p, x, f.offset(loop.carried[0], i * stride))
    f.close_loop(loop, [f.offset(loop.carried[0], parts * stride)])


def _interleave(f: FunctionText, p: Packer, x: str, y: str, half: int) -> str:
    n = p.lanes
    picked = [half * n // 2 + i // 2 + (n if i % 2 else 0) for i in range(n)]
    return f.value(f"shufflevector {p.vector} {x}, {p.vector} {y}, <{n} x i32> {_indices(picked)}")


def _indices(numbers: list[int]) -> str:
    return "<" + ", ".join(f"i32 {i}" for i in numbers) + ">"


def _store(f: FunctionText, p: Packer, x: str, address: str) -> None:
    f.emit(f"store {p.vector} {x}, ptr {address}, align {p.itemsize}")
