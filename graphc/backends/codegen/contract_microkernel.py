"""The register tile: rows x vectors accumulators, one fused multiply-add each per step of k.

Packed operands are padded, so a tile has no edges; B may also be read in place, with masks at the
edge.  Partial sums go to memory exactly between slices of k, so slicing does not change bits.
Imports: text, dims.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Protocol

from graphc.backends.codegen.text import FunctionText, suffix
from graphc.dims import DimLike

UNROLL = 2

LINE = 64
"""Bytes of a cache line."""


Tail = tuple[int, bool]
"""Vectors of the last column of register tiles, where it needs fewer than the others (else 0), and
whether the last of them needs only half its lanes."""


def tail_of(cols: DimLike, vectors: int, lanes: int) -> Tail:
    """The tail of so many columns, in tiles of so many vectors."""
    left = cols % (vectors * lanes) if isinstance(cols, int) and cols > vectors * lanes else 0
    needed = -(-left // lanes)
    if needed == vectors:
        return 0, False
    return needed, lanes >= 4 and 0 < left <= needed * lanes - lanes // 2


@dataclass(frozen=True)
class Tile:
    """A register tile and the byte strides of the operands and of C around it.

    `in_place`: B is read where it lies, with `b_masks`, one per vector, at its edge.
    `b_alignment` is that of vectors of B where it is less than their size.  `half`: the last vector
    has only half the lanes, because no column needs the others.  `ahead`: bytes from an element of
    A to one that is wanted soon and may lie far away; `b_ahead`: the same in B.  `stream`: where
    memory begins that will be wanted, and how much further the line is that each `UNROLL` steps of
    k ask for.  `even`: the number of steps is a multiple of `UNROLL`.  The vectors of
    B may lie in several `panels`, `panel` bytes apart.
    """

    rows: int
    vectors: int
    lanes: int
    scalar: str
    itemsize: int
    a_row: int
    a_step: int | str
    b_step: int | str
    c_row: int
    b_masks: tuple[str, ...] = ()
    half: bool = False
    ahead: str = ""
    b_ahead: str = ""
    b_alignment: int = 0
    in_place: bool = False
    stream: tuple[str, str] | None = None
    even: bool = False
    panels: int = 1
    panel: str = "0"

    def narrowed(self, tail: Tail) -> Tile:
        """The same for the last columns; B and C are as wide as ever."""
        return replace(self, vectors=tail[0], half=tail[1]) if tail[0] else self

    @property
    def paired(self) -> bool:
        """Whether half vectors of two rows share an accumulator: one multiply-add does for both,
        where enough of them are left to hide its latency."""
        sums = self.rows * (self.vectors - 1) + self.rows // 2
        return self.half and self.rows % 2 == 0 and sums >= 8 and not self.in_place

    @property
    def columns(self) -> int:
        return self.vectors * self.lanes

    def width(self, v: int) -> int:
        """Lanes of vector v of a row."""
        return self.lanes // 2 if self.half and v == self.vectors - 1 else self.lanes

    def vector(self, v: int) -> str:
        return f"<{self.width(v)} x {self.scalar}>"

    @property
    def vector_bytes(self) -> int:
        return self.lanes * self.itemsize

    def aligned(self, v: int) -> int:
        """Alignment of vector v of a row in packed memory."""
        return self.width(v) * self.itemsize


@dataclass(frozen=True)
class Runs:
    """Steps of k in runs; those no row of the tile needs are skipped.

    `count` runs: `lengths` points to the first one's i64 length, `stride` bytes from one to the
    next; `needed` points to an i8 per run.
    """

    count: str
    lengths: str
    stride: int
    needed: str


@dataclass(frozen=True)
class Lines:
    """Steps of k in runs that may lie anywhere: `count` records, `stride` bytes apart, that begin
    with three i64: byte offsets of the run in A and in B, and its number of steps."""

    count: str
    records: str
    stride: int


def emit_tile(
    f: FunctionText,
    t: Tile,
    a: str,
    b: str,
    c: str,
    depth: str | Runs | Lines,
    first: str,
) -> None:
    """C tile = (0 if `first` else C tile) + sum over k of A panel * B panel.

    `depth` is the number of steps, or the runs they come in.
    """
    sums = initial_sums(f, t, c, first)
    if isinstance(depth, Runs):
        sums = _sum_runs(f, t, a, b, depth, sums)
    elif isinstance(depth, Lines):
        sums = _sum_lines(f, t, a, b, depth, sums)
    else:
        sums = _sum_steps(f, t, a, b, depth, sums)
    store_sums(f, t, c, sums)


def _sum_runs(f: FunctionText, t: Tile, a: str, b: str, runs: Runs, sums: list[str]) -> list[str]:
    """Add the runs some row needs."""
    pointers = [("ptr", p) for p in (a, b, runs.lengths, runs.needed)]
    loop = f.open_loop(0, runs.count, 1, [*pointers, *typed_sums(t, sums)])
    a, b, lengths, needed = loop.carried[:4]
    before = loop.carried[4:]
    length = f.value(f"load i64, ptr {lengths}, align 8")
    some = f.value(f"icmp ne i8 {f.value(f'load i8, ptr {needed}, align 1')}, 0")
    skipping, run, after = f.block, f.fresh("run"), f.fresh("after")
    f.branch_if(some, run, after)
    f.label(run)
    added = _sum_steps(f, t, a, b, length, before)
    end = f.block
    f.branch(after)
    f.label(after)
    sums = [
        f.value(f"phi {kind} [ {x}, %{skipping} ], [ {y}, %{end} ]")
        for (kind, x), y in zip(typed_sums(t, before), added, strict=True)
    ]
    following = [
        f.offset(a, f.mul(length, t.a_step)),
        f.offset(b, f.mul(length, t.b_step)),
        f.offset(lengths, runs.stride),
        f.offset(needed, 1),
    ]
    return f.close_loop(loop, [*following, *sums])[4:]


def _sum_lines(
    f: FunctionText, t: Tile, a: str, b: str, lines: Lines, sums: list[str]
) -> list[str]:
    """Add the runs one after the other."""
    loop = f.open_loop(0, lines.count, 1, [("ptr", lines.records), *typed_sums(t, sums)])
    record = loop.carried[0]
    words = [f.value(f"load i64, ptr {f.offset(record, 8 * i)}, align 8") for i in range(3)]
    sums = _sum_steps(
        f, t, f.offset(a, words[0]), f.offset(b, words[1]), words[2], loop.carried[1:]
    )
    return f.close_loop(loop, [f.offset(record, lines.stride), *sums])[1:]


def _sum_steps(f: FunctionText, t: Tile, a: str, b: str, steps: str, sums: list[str]) -> list[str]:
    """Add consecutive steps of k.

    Two at a time pays where little is done in a step; B in place waits for memory anyway.
    """
    if t.in_place:
        return _add_steps(f, t, (a, b), ("0", steps), 1, sums)[2:]
    unrolled = f.value(f"and i64 {steps}, {-UNROLL}")
    a, b, *sums = _add_steps(f, t, (a, b), ("0", unrolled), UNROLL, sums)
    if t.even:
        return sums
    t = replace(t, stream=None)
    return _add_steps(f, t, (a, b), (unrolled, steps), 1, sums)[2:]


def _add_steps(
    f: FunctionText,
    t: Tile,
    at: tuple[str, str],
    steps: tuple[str, str],
    unroll: int,
    sums: list[str],
) -> list[str]:
    """Add steps of k from one number to another, `unroll` at a time: where A and B go on, sums."""
    pointers = [*at, *([t.stream[0]] if t.stream else [])]
    loop = f.open_loop(*steps, unroll, [*(("ptr", p) for p in pointers), *typed_sums(t, sums)])
    a, b, sums = loop.carried[0], loop.carried[1], loop.carried[len(pointers) :]
    for u in range(unroll):
        here = f.offset(a, f.mul(u, t.a_step))
        if t.ahead:
            prefetch(f, f.offset(here, t.ahead))
        rows = [f.offset(here, r * t.a_row) for r in range(t.rows)]
        sums = add_products(f, t, rows, f.offset(b, f.mul(u, t.b_step)), sums)
    following = [f.offset(a, f.mul(unroll, t.a_step)), f.offset(b, f.mul(unroll, t.b_step))]
    if t.stream:
        prefetch(f, loop.carried[2])
        following.append(f.offset(loop.carried[2], t.stream[1]))
    ended = f.close_loop(loop, [*following, *sums])
    return [*ended[:2], *ended[len(pointers) :]]


def _places(t: Tile) -> list[tuple[int, int]]:
    """Row and vector number of each accumulator; two rows that share one come before it."""
    if not t.paired:
        return [(r, v) for r in range(t.rows) for v in range(t.vectors)]
    last = t.vectors - 1
    whole = [[(r + i, v) for i in range(2) for v in range(last)] for r in range(0, t.rows, 2)]
    return [x for r, two in enumerate(whole) for x in (*two, (2 * r, last))]


def _pairs(t: Tile, v: int) -> bool:
    """Whether accumulators of vector v hold half a vector each of two rows."""
    return t.paired and v == t.vectors - 1


def typed_sums(t: Tile, sums: list[str]) -> list[tuple[str, str]]:
    whole = f"<{t.lanes} x {t.scalar}>"
    return [
        (whole if _pairs(t, v) else t.vector(v), x)
        for (_, v), x in zip(_places(t), sums, strict=True)
    ]


def store_sums(f: FunctionText, t: Tile, c: str, sums: list[str]) -> None:
    half = t.lanes // 2
    for (r, v), x in zip(_places(t), sums, strict=True):
        parts = [x]
        if _pairs(t, v):
            parts = [shuffled(f, t, x, x, range(i, i + half), t.lanes) for i in (0, half)]
        for i, part in enumerate(parts):
            place = f.offset(c, (r + i) * t.c_row + v * t.vector_bytes)
            f.emit(f"store {t.vector(v)} {part}, ptr {place}, align {t.aligned(v)}")


def initial_sums(f: FunctionText, t: Tile, c: str, first: str) -> list[str]:
    """What the sums of a tile begin with: 0 if `first`, else what is in C."""
    before, again, start = f.block, f.fresh("again"), f.fresh("start")
    f.branch_if(first, start, again)
    f.label(again)
    partial = []
    for r, v in _places(t):
        found = []
        for row in (r, r + 1) if _pairs(t, v) else (r,):
            place = f.offset(c, row * t.c_row + v * t.vector_bytes)
            found.append(f.value(f"load {t.vector(v)}, ptr {place}, align {t.aligned(v)}"))
        if _pairs(t, v):
            found = [shuffled(f, t, found[0], found[1], range(t.lanes), t.lanes // 2)]
        partial += found
    f.branch(start)
    f.label(start)
    return [
        f.value(f"phi {kind} [ zeroinitializer, %{before} ], [ {x}, %{again} ]")
        for kind, x in typed_sums(t, partial)
    ]


def add_products(f: FunctionText, t: Tile, a: list[str], b: str, sums: list[str]) -> list[str]:
    """One step of k: a broadcast of A per row, at given addresses, against the vectors of B."""
    columns = [_column(f, t, _in_panel(f, t, b, v), v) for v in range(t.vectors)]
    if t.b_ahead:
        for line in range(0, t.vectors * t.vector_bytes, LINE):
            prefetch(f, f.offset(f.offset(b, line), t.b_ahead))
    splats: dict[tuple[int, int], str] = {}

    def splat(row: int, lanes: int) -> str:
        if (row, lanes) not in splats:
            one = f.value(f"load {t.scalar}, ptr {a[row]}, align {t.itemsize}")
            splats.update({(row, n): f.splat(t.scalar, one, n) for n in widths})
        return splats[row, lanes]

    widths = dict.fromkeys(t.lanes if _pairs(t, v) else t.width(v) for v in range(t.vectors))
    following: list[str] = []
    for (r, v), x in zip(_places(t), sums, strict=True):
        n = t.lanes if _pairs(t, v) else t.width(v)
        factor = splat(r, n)
        if _pairs(t, v):
            both = [*range(n // 2), *range(n + n // 2, 2 * n)]
            factor = shuffled(f, t, factor, splat(r + 1, n), both, n)
        following.append(f.intrinsic("fma", t.scalar, factor, columns[v], x, lanes=n))
    return following


def shuffled(f: FunctionText, t: Vectors, x: str, y: str, lanes: Iterable[int], width: int) -> str:
    """Lanes by number of two vectors `width` wide."""
    kind, numbers = f"<{width} x {t.scalar}>", ", ".join(f"i32 {i}" for i in lanes)
    count = numbers.count("i32")
    return f.value(f"shufflevector {kind} {x}, {kind} {y}, <{count} x i32> <{numbers}>")


def _in_panel(f: FunctionText, t: Tile, b: str, v: int) -> str:
    """Where vector v of a step lies."""
    panel, within = divmod(v, t.vectors // t.panels)
    return f.offset(f.offset(b, f.mul(t.panel, panel)), within * t.vector_bytes)


def _column(f: FunctionText, t: Tile, address: str, v: int) -> str:
    if not t.b_masks:
        alignment = t.itemsize if t.in_place else t.b_alignment or t.aligned(v)
        x = f.value(f"load {t.vector(v)}, ptr {address}, align {alignment}")
        if not _pairs(t, v):
            return x
        half = t.lanes // 2
        return shuffled(f, t, x, x, [*range(half), *range(half)], half)
    return masked_load(f, t, address, t.b_masks[v])


def prefetch(f: FunctionText, address: str) -> None:
    """Ask for a cache line; the address may be any."""
    near, data = ("i32", "3"), ("i32", "1")
    f.call("void", "llvm.prefetch.p0", ("ptr", address), ("i32", "0"), near, data)


class Vectors(Protocol):
    """How a vector register is filled: element type, size and number of lanes."""

    @property
    def scalar(self) -> str: ...
    @property
    def itemsize(self) -> int: ...
    @property
    def lanes(self) -> int: ...


def vector_type(t: Vectors) -> str:
    return f"<{t.lanes} x {t.scalar}>"


def lanes_below(f: FunctionText, t: Vectors, count: str) -> str:
    """The mask of the lanes whose number is below an i64 count."""
    narrow = f.value(f"trunc i64 {count} to i32")
    numbers = "<" + ", ".join(f"i32 {i}" for i in range(t.lanes)) + ">"
    return f.value(f"icmp slt <{t.lanes} x i32> {numbers}, {f.splat('i32', narrow, t.lanes)}")


def masked_load(f: FunctionText, t: Vectors, address: str, mask: str) -> str:
    """Lanes outside the mask are 0 and are not read."""
    return f.call(
        vector_type(t),
        f"llvm.masked.load.{suffix(t.scalar, t.lanes)}.p0",
        ("ptr", address),
        ("i32", str(t.itemsize)),
        (f"<{t.lanes} x i1>", mask),
        (vector_type(t), "zeroinitializer"),
    )
