"""Panels of the right operand that an earlier step has packed: where a block finds its own, and
what it fetches ahead.

Panels come from memory, faster than a few rows use them up: while rows of tiles multiply one slice
of them, each fetches a share of the next.  Imports: contract_parts, text.
"""

from __future__ import annotations

from dataclasses import dataclass

from graphc.backends.codegen.contract_parts import ceildiv
from graphc.backends.codegen.text import FunctionText


@dataclass(frozen=True)
class PackedPanels:
    """Panels from an address on, those of one batch index after the other: of `columns`, `width`
    each, for `steps` of k, `step_bytes` each."""

    f: FunctionText
    base: str
    columns: str
    steps: str
    step_bytes: int
    width: int

    @property
    def bytes(self) -> str:
        """From one panel to the next."""
        return self.f.mul(self.steps, self.step_bytes)

    def at(self, batch: str, column: str, start: str) -> tuple[str, str]:
        """Where the panel of a column lies from step `start` of k on, and the bytes to the next."""
        f = self.f
        panels = f.mul(batch, ceildiv(f, self.columns, self.width))
        panels = f.add(panels, f.udiv(column, self.width))
        at = f.add(f.mul(panels, self.bytes), f.mul(start, self.step_bytes))
        return f.offset(self.base, at), self.bytes

    def ahead(
        self, cols: str, start: str, depth: str, last: str, tiles: str, unroll: int
    ) -> tuple[str, str]:
        """Where, seen from a panel at a slice of k, the first of so many rows of tiles finds what
        it is to fetch: the next slice; after the `last`, the first one of the block after the next,
        as two threads take blocks in turn.  And how many bytes further each `unroll` steps are."""
        f = self.f
        panels = f.mul(2, ceildiv(f, cols, self.width))
        beyond = f.sub(f.mul(panels, self.bytes), f.mul(start, self.step_bytes))
        size = f.mul(depth, self.step_bytes)
        share = f.udiv(f.mul(unroll, self.step_bytes), tiles)
        return f.value(f"select i1 {last}, i64 {beyond}, i64 {size}"), share
