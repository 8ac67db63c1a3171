"""Copies slices of the operands of a contraction into packed scratch memory.

Copies run along contiguous runs with masked vector loads and whole vector stores: what a store
writes beyond its run is overwritten by the next, and behind the last there is slack.  Rows beyond
the edge of an operand hold arbitrary numbers, which only reach results that are never stored.
Imports: text, contract_access, contract_microkernel, dims.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from graphc.backends.codegen.contract_access import Operand, Record, Table, sum_records
from graphc.backends.codegen.contract_microkernel import lanes_below, masked_load
from graphc.backends.codegen.text import FunctionText
from graphc.dims import factor

QUARTERS = 4
QUARTER_BYTES = 16
"""Shuffles of 512-bit vectors are cheapest within quarters, and of whole quarters."""


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
    if inner.single and width is not None and not p.operand.guards:
        _copy_panel(f, p, outer, outer_range, inner, (destination, stride), width)
        return
    rows = f.open_loop(start, stop, 1, [("ptr", destination)])
    at = rows.carried[0]
    position = sum_records(f, p.origin, outer.read(f, rows.index)[0])
    _copy_runs(f, p, position, inner, at)
    f.close_loop(rows, [f.offset(at, stride)])


def _copy_panel(
    f: FunctionText,
    p: Packer,
    outer: Table,
    outer_range: tuple[str, str],
    inner: Table,
    destination: tuple[str, int],
    width: int,
) -> None:
    """Copy rows of a panel, which begins at a multiple of `width`: with masks only if it is not
    full.  Processors do not notice where a masked load goes on reading, so nothing would be on its
    way when it is wanted."""
    record, length = inner.read(f, "0")
    count = -(-width // p.lanes)

    def copy(masks: Sequence[str]) -> None:
        rows = f.open_loop(*outer_range, 1, [("ptr", destination[0])])
        at = rows.carried[0]
        position = sum_records(f, p.origin, outer.read(f, rows.index)[0])
        source, _ = p.operand.locate(f, position, record)
        for v, mask in enumerate(masks):
            place = f.offset(source, v * p.vector_bytes)
            if mask:
                x = masked_load(f, p, place, mask)
            else:
                x = f.value(f"load {p.vector}, ptr {place}, align {p.itemsize}")
            _store(f, p, x, f.offset(at, v * p.vector_bytes))
        f.close_loop(rows, [f.offset(at, destination[1])])

    masks = [lanes_below(f, p, f.sub(length, v * p.lanes)) for v in range(count)]
    if width % p.lanes:
        copy(masks)
        return
    if factor(inner.size) % width == 0:
        copy([""] * count)
        return
    full, edge, after = f.fresh("full"), f.fresh("edge"), f.fresh("after")
    f.branch_if(f.value(f"icmp sge i64 {length}, {width}"), full, edge)
    f.label(full)
    copy([""] * count)
    f.branch(after)
    f.label(edge)
    copy(masks)
    f.branch(after)
    f.label(after)


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


@dataclass(frozen=True)
class Lanes:
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
    columns: Lanes,
    inner: Table,
    destination: str,
    stride: int,
    square: str,
) -> None:
    """Copy runs along inner to columns of the destination, rows `stride` bytes apart.

    A square of vectors is transposed in two short loops with a scratch square between: LLVM is
    slow to compile long chains of shuffles.
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

    begin = f.offset(at, f.mul(copy.index, stride))
    if p.vector_bytes == QUARTERS * QUARTER_BYTES:
        _transpose_quarters(f, p, load, square)
        _transpose_blocks(f, p, square, begin, stride)
    else:
        _transpose_by_halves(f, p, load, (begin, stride), square)
    f.close_loop(copy)
    f.close_loop(runs, [f.offset(at, f.mul(length, stride))])


def _locate_lanes(f: FunctionText, p: Packer, columns: Lanes, record: Record, length: str) -> None:
    """Tabulate where the run begins in each column, and how much of it is inside."""
    lanes = f.open_loop(0, p.lanes, 1, [("ptr", p.located)])
    position = columns.position(f, p, lanes.index)
    source, inside = p.operand.locate(f, position, record)
    available = f.value(f"select i1 {inside}, i64 {length}, i64 0")
    slot = lanes.carried[0]
    f.emit(f"store ptr {source}, ptr {slot}, align 8")
    f.emit(f"store i64 {available}, ptr {f.offset(slot, 8)}, align 8")
    f.close_loop(lanes, [f.offset(slot, 16)])


def _transpose_by_halves(
    f: FunctionText,
    p: Packer,
    read: Callable[[str], str],
    destination: tuple[str, int],
    square: str,
) -> None:
    """Transpose a square by log2(lanes) <= 4 perfect shuffles."""
    stages = p.lanes.bit_length() - 1
    for done in range(0, stages, 2):
        here = min(2, stages - done)
        rows = destination if done + here == stages else (square, p.vector_bytes)
        _shuffle(f, p, read, rows, here)
        read = _reader(f, p, square)


def _transpose_quarters(
    f: FunctionText, p: Packer, read: Callable[[str], str], square: str
) -> None:
    """The first loop over a square of vectors of four 128-bit quarters of w elements each.

    Transposes w x w elements within quarters: vector QUARTERS * c + q of the square then holds in
    quarter i rows w * q ... of column w * i + c.  These shuffles and those of `_transpose_blocks`
    need no table of indices, which would keep registers from the register tile.
    """
    w = p.lanes // QUARTERS
    loop = f.open_loop(0, QUARTERS, 1)
    first = f.mul(loop.index, w)
    rows = _columns(f, p, [read(f.add(first, i)) for i in range(w)], 1)
    at = f.offset(square, f.mul(loop.index, p.vector_bytes))
    for c, x in enumerate(rows):
        _store(f, p, x, f.offset(at, c * QUARTERS * p.vector_bytes))
    f.close_loop(loop)


def _transpose_blocks(f: FunctionText, p: Packer, square: str, begin: str, stride: int) -> None:
    """The second loop: transposes 4 x 4 quarters, and writes finished columns."""
    w = p.lanes // QUARTERS
    read = _reader(f, p, square)
    loop = f.open_loop(0, w, 1, [("ptr", begin)])
    first = f.mul(loop.index, QUARTERS)
    v = [read(f.add(first, i)) for i in range(QUARTERS)]
    low = [_every_other(f, p, v[0], v[1], odd) for odd in range(2)]
    high = [_every_other(f, p, v[2], v[3], odd) for odd in range(2)]
    for i in range(QUARTERS):
        x = _every_other(f, p, low[i % 2], high[i % 2], i // 2)
        _store(f, p, x, f.offset(loop.carried[0], i * w * stride))
    f.close_loop(loop, [f.offset(loop.carried[0], stride)])


def _columns(f: FunctionText, p: Packer, rows: list[str], unit: int) -> list[str]:
    """The columns of rows of units of elements, within each quarter."""
    if len(rows) == 1:
        return rows
    pairs = list(zip(rows[::2], rows[1::2], strict=True))
    low, high = ([_unpack(f, p, x, y, unit, half) for x, y in pairs] for half in range(2))
    return [*_columns(f, p, low, 2 * unit), *_columns(f, p, high, 2 * unit)]


def _unpack(f: FunctionText, p: Packer, x: str, y: str, unit: int, half: int) -> str:
    """Interleave units of elements of one half of each quarter of x with those of y."""
    w = p.lanes // QUARTERS
    picked = []
    for quarter in range(0, p.lanes, w):
        for at in range(quarter + half * w // 2, quarter + (half + 1) * w // 2, unit):
            picked += [*range(at, at + unit), *range(p.lanes + at, p.lanes + at + unit)]
    return _pick(f, p, x, y, picked)


def _every_other(f: FunctionText, p: Packer, x: str, y: str, odd: int) -> str:
    """The even or the odd quarters of x, then those of y."""
    w = p.lanes // QUARTERS
    picked = [q * w + i for q in range(odd, 2 * QUARTERS, 2) for i in range(w)]
    return _pick(f, p, x, y, picked)


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
    return _pick(f, p, x, y, [half * n // 2 + i // 2 + (n if i % 2 else 0) for i in range(n)])


def _pick(f: FunctionText, p: Packer, x: str, y: str, numbers: list[int]) -> str:
    """Lanes by number: those of x, then those of y."""
    indices = f"<{p.lanes} x i32> {_indices(numbers)}"
    return f.value(f"shufflevector {p.vector} {x}, {p.vector} {y}, {indices}")


def _indices(numbers: list[int]) -> str:
    return "<" + ", ".join(f"i32 {i}" for i in numbers) + ">"


def _store(f: FunctionText, p: Packer, x: str, address: str) -> None:
    f.emit(f"store {p.vector} {x}, ptr {address}, align {p.itemsize}")
