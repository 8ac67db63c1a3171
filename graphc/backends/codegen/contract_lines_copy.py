"""Slices of A copied before they are multiplied line by line, where A is not read in place.

`rows` copies the rows of the block at every step next to each other: steps that are a large power
of two apart share few sets of the caches, and each lies in a page of its own.  `margins` copies
whole runs of a line with zeros where a guard ends it: the elements at all taps along that line are
then rows side by side, one step further for the next step of k.  `pixels` does the same where the
channels of a line that are wanted, being those of a group, lie apart.
Imports: contract_access, contract_lines_tiling, contract_packing, text.
"""

from __future__ import annotations

from graphc.backends.codegen.contract_access import Operand
from graphc.backends.codegen.contract_lines_tiling import LineTiling
from graphc.backends.codegen.contract_microkernel import lanes_below, masked_load, prefetch
from graphc.backends.codegen.contract_packing import Packer
from graphc.backends.codegen.contract_parts import size_of
from graphc.backends.codegen.text import FunctionText

WORDS = 5
"""A run of steps in memory, i64 each: byte offset in what the tile reads of A, byte offset in a
panel of B, number of steps; byte offset in A, index under the guard whose margins are copied."""

RUN_BYTES = 8 * WORDS


def row_pitch(t: LineTiling) -> int:
    """Elements from one copied step to the next: an odd number of vectors."""
    vectors = -(-(t.most[1] + t.tile_rows) // t.lanes)
    return (vectors | 1) * t.lanes


def copied_elements(t: LineTiling) -> int:
    """Room for the copies of a slice."""
    if t.copies == "rows":
        return t.most[3] * row_pitch(t) + t.lanes
    return t.most[4]


def read_run(f: FunctionText, run: str, word: int) -> str:
    return f.value(f"load i64, ptr {f.offset(run, 8 * word)}, align 8")


def copy_rows(
    f: FunctionText, p: Packer, runs: tuple[str, str], t: LineTiling, rows: tuple[str, str], to: str
) -> None:
    """Copy rows (first, number) of all steps; `runs` are their number and the first one."""
    step = f.mul(p.operand.strides[t.along], p.itemsize)
    pitch = row_pitch(t) * p.itemsize
    count, first = runs
    low, height = rows
    whole = f.value(f"and i64 {height}, {-p.lanes}")
    mask = lanes_below(f, p, f.sub(height, whole))
    loop = f.open_loop(0, count, 1, [("ptr", first), ("i64", "0")])
    run, at = loop.carried
    f.emit(f"store i64 {at}, ptr {run}, align 8")
    steps = read_run(f, run, 2)
    source = f.offset(p.operand.base, f.add(read_run(f, run, 3), f.mul(low, p.itemsize)))
    inner = f.open_loop(0, steps, 1, [("ptr", source), ("ptr", f.offset(to, at))])
    source, target = inner.carried
    copy = f.open_loop(0, whole, p.lanes)
    moved = f.mul(copy.index, p.itemsize)
    x = f.value(f"load {p.vector}, ptr {f.offset(source, moved)}, align {p.itemsize}")
    _store(f, p, x, f.offset(target, moved))
    f.close_loop(copy)
    moved = f.mul(whole, p.itemsize)
    _store(f, p, masked_load(f, p, f.offset(source, moved), mask), f.offset(target, moved))
    f.close_loop(inner, [f.offset(source, step), f.offset(target, pitch)])
    f.close_loop(loop, [f.offset(run, RUN_BYTES), f.add(at, f.mul(steps, pitch))])


def fetch_rows(
    f: FunctionText, operand: Operand, runs: tuple[str, str], t: LineTiling, row: str, ahead: str
) -> None:
    """Ask for a row of all steps of the next slice, `ahead` bytes further."""
    size = operand.itemsize
    step = f.mul(operand.strides[t.along], size)
    count, first = runs
    base = f.offset(f.offset(operand.base, f.mul(row, size)), ahead)
    loop = f.open_loop(0, count, 1, [("ptr", first)])
    run = loop.carried[0]
    source = f.offset(base, read_run(f, run, 3))
    inner = f.open_loop(0, read_run(f, run, 2), 1, [("ptr", source)])
    prefetch(f, inner.carried[0])
    f.close_loop(inner, [f.offset(inner.carried[0], step)])
    f.close_loop(loop, [f.offset(run, RUN_BYTES)])


def copy_margins(f: FunctionText, p: Packer, runs: tuple[str, str], t: LineTiling, to: str) -> None:
    """Copy what all taps along a line need of each run, and zeros outside the guard."""
    guard = p.operand.guards[t.margin]
    width, taps = size_of(f, t.rows.extents[1:]), f.dim(t.rows.extents[0])
    count, first = runs
    zero = f"<{p.lanes} x {p.scalar}> zeroinitializer"
    loop = f.open_loop(0, count, 1, [("ptr", first), ("i64", "0")])
    run, at = loop.carried
    f.emit(f"store i64 {at}, ptr {run}, align 8")
    index = read_run(f, run, 4)
    last = f.mul(f.sub(read_run(f, run, 2), 1), guard.coefs[t.along])
    length = f.add(last, taps)
    begins = f.smin(f.smax(f.sub("0", index), 0), length)
    ends = f.smax(f.smin(f.sub(guard.limit, index), length), begins)
    source = f.offset(p.operand.base, read_run(f, run, 3))
    target = f.offset(to, at)

    def clear(start: str, stop: str) -> None:
        """Whole vectors: what is written too much is overwritten by what follows."""
        cleared = f.open_loop(f.mul(start, width), f.mul(stop, width), p.lanes)
        here = f.offset(target, f.mul(cleared.index, p.itemsize))
        f.emit(f"store {zero}, ptr {here}, align {p.itemsize}")
        f.close_loop(cleared)

    clear("0", begins)
    if t.copies == "pixels":
        apart = p.operand.strides[t.rows.axes[0]]
        each = f.open_loop(begins, ends, 1)
        here = f.offset(source, f.mul(f.mul(each.index, apart), p.itemsize))
        there = f.offset(target, f.mul(f.mul(each.index, width), p.itemsize))
        _copy(f, p, here, there, "0", width)
        f.close_loop(each)
    else:
        _copy(f, p, source, target, f.mul(begins, width), f.mul(ends, width))
    clear(ends, length)
    f.close_loop(
        loop, [f.offset(run, RUN_BYTES), f.add(at, f.mul(f.mul(length, width), p.itemsize))]
    )


def _copy(f: FunctionText, p: Packer, source: str, target: str, begins: str, ends: str) -> None:
    """Copy elements, the last ones with a mask, though a whole vector is written."""
    copy = f.open_loop(begins, ends, p.lanes)
    moved = f.mul(copy.index, p.itemsize)
    mask = lanes_below(f, p, f.sub(ends, copy.index))
    _store(f, p, masked_load(f, p, f.offset(source, moved), mask), f.offset(target, moved))
    f.close_loop(copy)


def _store(f: FunctionText, p: Packer, x: str, address: str) -> None:
    f.emit(f"store {p.vector} {x}, ptr {address}, align {p.itemsize}")
