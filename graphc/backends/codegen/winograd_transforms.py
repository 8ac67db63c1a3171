"""Vectors of channels in Winograd convolution, and what its transforms do with them.

Every vector holds one element of a tile for neighbouring channels.  Imports: text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from graphc.backends.codegen.text import FunctionText, splat_literal


@dataclass(frozen=True)
class Lanes:
    """Vectors of one element type."""

    scalar: str
    itemsize: int
    lanes: int

    @property
    def vector(self) -> str:
        return f"<{self.lanes} x {self.scalar}>"

    @property
    def bytes(self) -> int:
        return self.lanes * self.itemsize


class VectorCode:
    """Straight-line code on vectors (a `winograd.Algebra`); what is known is not computed again."""

    def __init__(self, f: FunctionText, t: Lanes) -> None:
        self.f, self.t = f, t

    def scaled(self, c: float, x: str) -> str:
        t = self.t
        return self.f.known(f"fmul {t.vector} {x}, {splat_literal(c, t.scalar)}")

    def added(self, total: str, c: float, x: str) -> str:
        t = self.t
        if c in (1, -1):
            return self.f.known(f"{'fadd' if c == 1 else 'fsub'} {t.vector} {total}, {x}")
        factor = splat_literal(c, t.scalar)
        return self.f.intrinsic("fma", t.scalar, x, factor, total, lanes=t.lanes)


def transposed_vectors(f: FunctionText, t: Lanes, rows: Sequence[str]) -> list[str]:
    """The columns of a square of elements given as its rows: `lanes` vectors, by perfect
    shuffles."""
    n = t.lanes
    vectors = list(rows)
    for _ in range(n.bit_length() - 1):
        mixed = []
        for x, y in zip(vectors[: n // 2], vectors[n // 2 :], strict=True):
            mixed += [_interleaved(f, t, x, y, half) for half in range(2)]
        vectors = mixed
    return vectors


def _interleaved(f: FunctionText, t: Lanes, x: str, y: str, half: int) -> str:
    n = t.lanes
    picked = [half * n // 2 + i // 2 + (n if i % 2 else 0) for i in range(n)]
    indices = "<" + ", ".join(f"i32 {i}" for i in picked) + ">"
    return f.value(f"shufflevector {t.vector} {x}, {t.vector} {y}, <{n} x i32> {indices}")
