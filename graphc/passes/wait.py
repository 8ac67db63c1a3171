"""Waiting: which steps must not begin before the steps in front of them have ended.

Steps between two waits run together.  A step waits if it touches what another of them writes, or
writes what another of them reads: the same array, or a slot of the arena that may share memory with
one.  Two slots share none if one lies, directly or not, above the other.
Imports: operands, plan.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from graphc.arena import Slot
from graphc.passes.operands import LoweredStep
from graphc.plan import Ref

READ_ONLY = ("fault", "constant", "input", "kept")
"""Kinds of arguments that steps of a plan never write and read, or not the same."""

Row = tuple[LoweredStep, tuple[Ref, ...]]


def find_waits(rows: Sequence[Row], slots: Sequence[Slot]) -> list[int]:
    """For each step the first of those whose end it must await (all from there on), or -1.

    Without `slots` those of the arena count as having memory of their own.
    """
    arena = _Arena(slots)
    waits: list[int] = []
    start = 0
    written: set[Ref] = set()
    read: set[Ref] = set()
    for i, (s, refs) in enumerate(rows):
        outs = {refs[w] for w in s.writes}
        ins = {r for r in refs if r not in outs and r.kind not in READ_ONLY}
        new = arena.new(outs) if slots else ()
        if ins & written or outs & written or outs & read or arena.collides(new):
            waits.append(start)
            start = i
            written, read = set(), set()
            arena.forget()
        else:
            waits.append(-1)
        written |= outs
        read |= ins
        arena.touch(ins)
        arena.touch(outs)
    return waits


class _Arena:
    """The slots in use since the last wait, as bits."""

    def __init__(self, slots: Sequence[Slot]) -> None:
        self.below: list[int] = []  # bit k: slot k is below
        for slot in slots:
            bits = 0
            for k in slot.above:
                bits |= self.below[k] | 1 << k
            self.below.append(bits)
        self.known = 0
        self.touched = 0

    def new(self, refs: Iterable[Ref]) -> list[int]:
        """The slots that no step has touched before."""
        return [r.index for r in refs if r.kind == "slot" and not self.known >> r.index & 1]

    def collides(self, new: Iterable[int]) -> bool:
        """Whether a slot that comes into use may share memory with one touched lately."""
        for slot in new:
            others = self.touched & ~self.below[slot]
            while others:
                k = others.bit_length() - 1
                if not self.below[k] >> slot & 1:
                    return True
                others ^= 1 << k
        return False

    def touch(self, refs: Iterable[Ref]) -> None:
        for r in refs:
            if r.kind == "slot":
                self.known |= 1 << r.index
                self.touched |= 1 << r.index

    def forget(self) -> None:
        self.touched = 0
