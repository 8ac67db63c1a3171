"""The register tile: rows x vectors accumulators, one fused multiply-add each per step of k.

Packed operands are padded, so a tile has no edges; B may also be read in place, with masks at the
edge.  Partial sums go to memory exactly between slices of k, so slicing does not change bits.
Imports: text.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from graphc.backends.codegen.text import FunctionText, suffix

UNROLL = 2


@dataclass(frozen=True)
class Tile:
    """A register tile and the byte strides of the operands and of C around it.

    `b_masks`, one per vector, say that B is read in place.
    """

    rows: int
    vectors: int
    lanes: int
    scalar: str
    itemsize: int
    a_row: int
    a_step: int
    b_step: int | str
    c_row: int
    b_masks: tuple[str, ...] = ()

    @property
    def vector(self) -> str:
        return f"<{self.lanes} x {self.scalar}>"

    @property
    def vector_bytes(self) -> int:
        return self.lanes * self.itemsize


def emit_tile(
    f: FunctionText, t: Tile, a: str, b: str, c: str, depth: tuple[str, str], first: str
) -> None:
    """C tile = (0 if `first` else C tile) + sum over k of A panel * B panel.

    `depth` is the number of steps and the part of it that is a multiple of UNROLL.
    """
    sums = _initial(f, t, c, first)
    steps, unrolled = depth
    types = [("ptr", a), ("ptr", b)]
    loop = f.open_loop(0, unrolled, UNROLL, [*types, *((t.vector, x) for x in sums)])
    a, b, sums = loop.carried[0], loop.carried[1], loop.carried[2:]
    for u in range(UNROLL):
        sums = _step(f, t, f.offset(a, u * t.a_step), f.offset(b, f.mul(u, t.b_step)), sums)
    following = [f.offset(a, UNROLL * t.a_step), f.offset(b, f.mul(UNROLL, t.b_step))]
    a, b, *sums = f.close_loop(loop, [*following, *sums])
    loop = f.open_loop(unrolled, steps, 1, [("ptr", a), ("ptr", b), *((t.vector, x) for x in sums)])
    a, b, sums = loop.carried[0], loop.carried[1], loop.carried[2:]
    sums = _step(f, t, a, b, sums)
    sums = f.close_loop(loop, [f.offset(a, t.a_step), f.offset(b, t.b_step), *sums])[2:]
    for place, x in zip(_places(t), sums, strict=True):
        f.emit(f"store {t.vector} {x}, ptr {f.offset(c, place)}, align {t.vector_bytes}")


def _places(t: Tile) -> list[int]:
    return [r * t.c_row + v * t.vector_bytes for r in range(t.rows) for v in range(t.vectors)]


def _initial(f: FunctionText, t: Tile, c: str, first: str) -> list[str]:
    before, again, start = f.block, f.fresh("again"), f.fresh("start")
    f.branch_if(first, start, again)
    f.label(again)
    partial = [
        f.value(f"load {t.vector}, ptr {f.offset(c, place)}, align {t.vector_bytes}")
        for place in _places(t)
    ]
    f.branch(start)
    f.label(start)
    return [
        f.value(f"phi {t.vector} [ zeroinitializer, %{before} ], [ {x}, %{again} ]")
        for x in partial
    ]


def _step(f: FunctionText, t: Tile, a: str, b: str, sums: list[str]) -> list[str]:
    """One step of k: a broadcast of A per row against the vectors of B."""
    columns = [_column(f, t, f.offset(b, v * t.vector_bytes), v) for v in range(t.vectors)]
    following: list[str] = []
    for r in range(t.rows):
        address = f.offset(a, r * t.a_row)
        one = f.value(f"load {t.scalar}, ptr {address}, align {t.itemsize}")
        row = f.splat(t.scalar, one, t.lanes)
        for v in range(t.vectors):
            at = r * t.vectors + v
            following.append(f.intrinsic("fma", t.scalar, row, columns[v], sums[at], lanes=t.lanes))
    return following


def _column(f: FunctionText, t: Tile, address: str, v: int) -> str:
    if not t.b_masks:
        return f.value(f"load {t.vector}, ptr {address}, align {t.vector_bytes}")
    return masked_load(f, t, address, t.b_masks[v])


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
