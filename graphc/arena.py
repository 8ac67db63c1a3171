"""The arena: the memory of one run, cut into slots that lie on top of each other.

    slot  bytes         above        at batch 2      at batch 100
    0     4*batch       -            0..8            0..400
    1     64            0            64..128         448..512
    2     8*batch       -            0..16           0..800

A slot starts where the highest of those below it ends, so the arena's size is that of its highest
stack of slots: a formula in the named sizes.  Imports: dims, errors.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from graphc.dims import (
    Atom,
    Dim,
    DimLike,
    Sizes,
    add,
    atoms,
    ceildiv,
    dim_text,
    evaluate,
    maximum,
    mul,
    of_atom,
    product,
)
from graphc.errors import ShapeError

ALIGNMENT = 64
"""Every arena slot starts at, and is padded to, a multiple of this many bytes."""


@dataclass(frozen=True)
class Slot:
    """A stretch of the arena for buffers that are never alive together.

    It starts where the highest of the slots it lies `above` ends, or where the arena does.  Of two
    slots with buffers alive together one lies, directly or not, above the other.
    """

    members: tuple[DimLike, ...]  # distinct byte sizes; the slot is as large as the largest
    above: tuple[int, ...] = ()  # earlier slots

    def bytes(self, sizes: Sizes) -> int:
        largest = max(evaluate(m, sizes) for m in self.members)
        return -(-largest // ALIGNMENT) * ALIGNMENT


def stack(slots: Sequence[Slot], lengths: Sequence[int]) -> tuple[list[int], int]:
    """Where slots of these lengths start, and where the highest ends."""
    starts: list[int] = []
    ends: list[int] = []
    top = 0
    for slot, length in zip(slots, lengths, strict=True):
        start = 0
        for i in slot.above:
            if ends[i] > start:
                start = ends[i]
        starts.append(start)
        ends.append(start + length)
        if start + length > top:
            top = start + length
    return starts, top


def _padded(size: DimLike) -> DimLike:
    """A size of a slot, up to a multiple of ALIGNMENT."""
    if isinstance(size, int):
        return -(-size // ALIGNMENT) * ALIGNMENT
    whole: DimLike = 0
    for monomial, coefficient in size.terms:
        if coefficient % ALIGNMENT == 0:
            term = product(of_atom(a) for a in monomial)
            whole = add(whole, mul(coefficient, term))
    return add(whole, mul(ALIGNMENT, ceildiv(add(size, mul(-1, whole)), ALIGNMENT)))


PROBES = tuple(4**k for k in range(13))
"""Sizes at which the highest stack of slots is looked for."""

MOST_STACKS = 24
"""Enough stacks for a formula; a network has a handful."""


def peaks(slots: Sequence[Slot]) -> tuple[DimLike, ...]:
    """Expressions in the named sizes; the largest is the arena's size in bytes, padding included.

    They are the stacks of slots that are highest at one of many sizes: the arena is as large as
    the largest of them there, and nowhere smaller.
    """
    stacks = _Stacks(slots)
    names = stacks.names
    for n in PROBES if names else PROBES[:1]:
        stacks.probe(dict.fromkeys(names, n))
    if len(names) == 1:  # stacks grow linearly, but for padding: look where two of them cross
        for low, high in itertools.pairwise(PROBES):
            stacks.probe_between(names[0], low, high)
    else:
        for name in names:
            for n in PROBES[::3]:
                stacks.probe({**dict.fromkeys(names, PROBES[2]), name: n})
    return stacks.needed()


class _Stacks:
    """The highest stacks of slots at the sizes probed."""

    def __init__(self, slots: Sequence[Slot]) -> None:
        self.slots = slots
        self.padded: list[DimLike] = []
        for slot in slots:
            largest: DimLike = 0
            for m in slot.members:
                largest = maximum(largest, m)
            self.padded.append(_padded(largest))
        self.names = sorted({a for d in self.padded for a in atoms(d)})
        self.found: dict[DimLike, None] = {}
        self.tops: list[tuple[Sizes, int]] = []

    def probe(self, sizes: Sizes) -> DimLike | None:
        """A highest stack at these sizes; None where they satisfy no division."""
        try:
            lengths = [evaluate(d, sizes) for d in self.padded]
        except ShapeError:
            return None
        top = stack(self.slots, lengths)[1]
        self.tops.append((sizes, top))
        for known in self.found:
            if evaluate(known, sizes) == top:
                return known
        made = _highest(self.slots, self.padded, lengths)
        self.found[made] = None
        return made

    def probe_between(self, name: Atom, low: int, high: int) -> None:
        """Find every stack that is highest at a size between two."""
        pending = [(low, high)]
        while pending and len(self.found) < MOST_STACKS:
            low, high = pending.pop()
            a, b = self.probe({name: low}), self.probe({name: high})
            if a is b or a is None or b is None or high - low < 2:
                continue
            left, right = low, high  # a is the higher at `left`, b at `right`
            while right - left > 1:
                middle = (left + right) // 2
                sizes = {name: middle}
                if evaluate(a, sizes) > evaluate(b, sizes):
                    left = middle
                else:
                    right = middle
            for at in {left, right} - {low, high}:
                if self.probe({name: at}) not in (a, b):
                    pending += [(low, at), (at, high)]

    def needed(self) -> tuple[DimLike, ...]:
        """As few of the stacks found as say how high the arena was at every size probed."""
        kept: list[DimLike] = []
        for sizes, top in sorted(self.tops, key=lambda t: -t[1]):
            if all(evaluate(d, sizes) < top for d in kept):
                kept.append(next(d for d in self.found if evaluate(d, sizes) == top))
        return tuple(kept) or (0,)


def _highest(slots: Sequence[Slot], padded: Sequence[DimLike], lengths: Sequence[int]) -> DimLike:
    """The sum of the slots in the highest stack."""
    starts, top = stack(slots, lengths)
    at = next((i for i in range(len(slots)) if starts[i] + lengths[i] == top), None)
    result: DimLike = 0
    while at is not None:
        result = add(result, padded[at])
        below = slots[at].above
        start = starts[at]
        at = next((i for i in below if start and starts[i] + lengths[i] == start), None)
    return result


# ---- in words ----------------------------------------------------------------------------------


def formula(stacks: Sequence[DimLike]) -> str:
    """The largest of the stacks, as text."""
    texts = [dim_text(d) for d in stacks]
    return f"max({', '.join(texts)})" if len(texts) > 1 else texts[0]


CLOSE_ENOUGH = 1.01
"""A summary leaves out the stacks without which it is this much too low at most."""


def summary(stacks: Sequence[DimLike]) -> str:
    """The largest of the stacks in a few words: `max(12.4 MB + 0.81 MB*batch, 3 MB*batch)`."""
    names = sorted({a for d in stacks for a in atoms(d)})
    kept: list[DimLike] = []
    for n in reversed(PROBES):
        sizes = dict.fromkeys(names, n)
        try:
            values = [evaluate(d, sizes) for d in stacks]
        except ShapeError:
            continue
        if max((evaluate(d, sizes) for d in kept), default=0) * CLOSE_ENOUGH < max(values):
            kept.append(stacks[values.index(max(values))])
    texts = list(dict.fromkeys(_rounded(d) for d in kept)) or ["0 bytes"]
    return f"max({', '.join(texts)})" if len(texts) > 1 else texts[0]


def _rounded(size: DimLike) -> str:
    parts = sorted(_smooth(size).items(), key=lambda item: len(item[0]))
    largest = max((c for m, c in parts if m), default=0.0)
    shown = [(m, c) for m, c in parts if c > (largest if m else 10 * largest) / 1000]
    return " + ".join("*".join([bytes_text(c), *map(repr, m)]) for m, c in shown) or "0 bytes"


def _smooth(size: DimLike) -> dict[tuple[Atom, ...], float]:
    """The polynomial without rounding: `floordiv(n + 63, 64)` is about `n / 64`."""
    if isinstance(size, int):
        return {(): float(size)} if size else {}
    result: dict[tuple[Atom, ...], float] = {}
    for monomial, coefficient in size.terms:
        partial: dict[tuple[Atom, ...], float] = {(): float(coefficient)}
        for atom in monomial:
            factor: dict[tuple[Atom, ...], float] = {(atom,): 1.0}
            if atom.kind == "floordiv" and isinstance(atom.args[1], int):
                divisor = atom.args[1]
                factor = {m: c / divisor for m, c in _smooth(atom.args[0]).items()}
                if isinstance(atom.args[0], Dim):
                    factor.pop((), None)
            partial = {
                tuple(sorted(m + n)): c * d for m, c in partial.items() for n, d in factor.items()
            }
        for m, c in partial.items():
            result[m] = result.get(m, 0.0) + c
    return result


UNITS = (("GB", 1e9), ("MB", 1e6), ("kB", 1e3))


def bytes_text(count: float) -> str:
    """A number of bytes to three digits: `12.4 MB`."""
    for unit, size in UNITS:
        if count >= size:
            return f"{count / size:.3g} {unit}" if count < 999.5 * size else f"{count:,.0f} bytes"
    return f"{count:.3g} bytes"
