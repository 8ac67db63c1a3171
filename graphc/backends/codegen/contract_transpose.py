"""Copies runs along k of the right operand of a contraction to columns of packed panels.

As many rows of the source as a vector has lanes become the lanes of packed steps.  A unit is 128
bits: the shuffles within units are the cheap ones of every processor.  So vectors are put together
from units of several rows, as they are loaded, and transposed within units only.
Imports: text, contract_access, contract_microkernel, contract_packing.
"""

from __future__ import annotations

from dataclasses import dataclass

from graphc.backends.codegen.contract_access import Record, Table, sum_records
from graphc.backends.codegen.contract_microkernel import lanes_below, masked_load, vector_type
from graphc.backends.codegen.contract_packing import Packer
from graphc.backends.codegen.text import FunctionText

UNIT_BYTES = 16


@dataclass(frozen=True)
class Lanes:
    """Outer elements that become columns: `lanes` of them from `first` on, at most `last`."""

    table: Table
    first: str
    last: str

    def position(self, f: FunctionText, p: Packer, lane: str) -> Record:
        row = f.smin(f.add(self.first, lane), self.last)
        return sum_records(f, p.origin, self.table.read(f, row)[0])


@dataclass(frozen=True)
class _Unit:
    """A vector of UNIT_BYTES."""

    scalar: str
    itemsize: int

    @property
    def lanes(self) -> int:
        return UNIT_BYTES // self.itemsize


def pack_transposed(
    f: FunctionText, p: Packer, columns: Lanes, inner: Table, destination: str, stride: int
) -> None:
    """Copy runs along inner to columns of the destination, rows `stride` bytes apart."""
    unit = _Unit(p.scalar, p.itemsize)
    runs = f.open_loop(0, inner.rows, 1, [("ptr", destination)])
    at = runs.carried[0]
    record, length = inner.read(f, runs.index)
    _locate_lanes(f, p, columns, record, length)
    guarded = bool(p.operand.guards)
    whole = length if guarded else f.value(f"and i64 {length}, {-unit.lanes}")
    copy = f.open_loop(0, whole, unit.lanes)
    rows = [_units(f, p, unit, i, copy.index) for i in range(unit.lanes)]
    begin = f.offset(at, f.mul(copy.index, stride))
    for i, x in enumerate(_transposed(f, p, unit, rows, 1)):
        f.emit(f"store {p.vector} {x}, ptr {f.offset(begin, i * stride)}, align {p.itemsize}")
    f.close_loop(copy)
    if not guarded:
        _copy_elements(f, p, (whole, length), at, stride)
    f.close_loop(runs, [f.offset(at, f.mul(length, stride))])


def _locate_lanes(f: FunctionText, p: Packer, columns: Lanes, record: Record, length: str) -> None:
    """Tabulate where the run begins in each column, and how much of it is inside."""
    lanes = f.open_loop(0, p.lanes, 1, [("ptr", p.located)])
    position = columns.position(f, p, lanes.index)
    source, inside = p.operand.locate(f, position, record)
    slot = lanes.carried[0]
    f.emit(f"store ptr {source}, ptr {slot}, align 8")
    if inside:
        available = f.value(f"select i1 {inside}, i64 {length}, i64 0")
        f.emit(f"store i64 {available}, ptr {f.offset(slot, 8)}, align 8")
    f.close_loop(lanes, [f.offset(slot, 16)])


def _units(f: FunctionText, p: Packer, unit: _Unit, first: int, step: str) -> str:
    """A vector of the units from `step` on of every row whose number in a unit is `first`."""
    parts = [_load(f, p, unit, lane, step) for lane in range(first, p.lanes, unit.lanes)]
    while len(parts) > 1:
        n = p.lanes // len(parts)
        kind, numbers = f"<{n} x {p.scalar}>", _indices(range(2 * n))
        pairs = zip(parts[::2], parts[1::2], strict=True)
        parts = [f.value(f"shufflevector {kind} {x}, {kind} {y}, {numbers}") for x, y in pairs]
    return parts[0]


def _load(f: FunctionText, p: Packer, unit: _Unit, lane: int, step: str) -> str:
    slot = f.offset(p.located, 16 * lane)
    source = f.value(f"load ptr, ptr {slot}, align 8")
    place = f.offset(source, f.mul(step, p.itemsize))
    if not p.operand.guards:
        return f.value(f"load {vector_type(unit)}, ptr {place}, align {p.itemsize}")
    available = f.value(f"load i64, ptr {f.offset(slot, 8)}, align 8")
    return masked_load(f, unit, place, lanes_below(f, unit, f.sub(available, step)))


def _copy_elements(
    f: FunctionText, p: Packer, part: tuple[str, str], destination: str, stride: int
) -> None:
    """The steps at the end of a run that do not fill a unit."""
    steps = f.open_loop(*part, 1)
    lanes = f.open_loop(0, p.lanes, 1)
    source = f.value(f"load ptr, ptr {f.offset(p.located, f.mul(lanes.index, 16))}, align 8")
    place = f.offset(source, f.mul(steps.index, p.itemsize))
    one = f.value(f"load {p.scalar}, ptr {place}, align {p.itemsize}")
    row = f.offset(destination, f.mul(steps.index, stride))
    at = f.offset(row, f.mul(lanes.index, p.itemsize))
    f.emit(f"store {p.scalar} {one}, ptr {at}, align {p.itemsize}")
    f.close_loop(lanes)
    f.close_loop(steps)


def _transposed(f: FunctionText, p: Packer, unit: _Unit, rows: list[str], run: int) -> list[str]:
    """The columns of rows of runs of elements, within each unit."""
    if len(rows) == 1:
        return rows
    pairs = list(zip(rows[::2], rows[1::2], strict=True))
    low, high = ([_unpack(f, p, unit, x, y, run, half) for x, y in pairs] for half in range(2))
    return [
        *_transposed(f, p, unit, low, 2 * run),
        *_transposed(f, p, unit, high, 2 * run),
    ]


def _unpack(f: FunctionText, p: Packer, unit: _Unit, x: str, y: str, run: int, half: int) -> str:
    """Interleave runs of elements of one half of each unit of x with those of y."""
    picked: list[int] = []
    for first in range(half * unit.lanes // 2, p.lanes, unit.lanes):
        for at in range(first, first + unit.lanes // 2, run):
            picked += [*range(at, at + run), *range(p.lanes + at, p.lanes + at + run)]
    numbers = _indices(picked)
    return f.value(f"shufflevector {p.vector} {x}, {p.vector} {y}, {numbers}")


def _indices(numbers: range | list[int]) -> str:
    return f"<{len(numbers)} x i32> <" + ", ".join(f"i32 {i}" for i in numbers) + ">"
