"""Placing: where in the arena each block of memory lies, so that live ones never overlap.

    block    bytes   alive             offsets at guessed sizes      who lies on top of whom
    a        400     0..3              a at 0                        a on the ground
    b        100     1..2              b at 400                      b on a
    c        300     4..6              c at 0                        c on the ground
    d        200     5..9              d at 300                      d on c

Offsets are found for guessed sizes, where fragmentation can be seen, but what is kept of them is
only the last column.  A block starts where the highest of those below it ends, whatever their
sizes turn out to be; of two blocks that are alive together one lies, directly or not, on the other,
so they never overlap.  Imports: arena (the alignment).
"""

from __future__ import annotations

import heapq
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np

from graphc.arena import ALIGNMENT

THOROUGH = 4000
"""With more blocks than this the first place that fits is taken: the other way is quadratic."""

CLOSE = 1.005
"""An arena this much larger than what is alive at once is not worth a second attempt."""


@dataclass
class Block:
    """A stretch of memory: bytes (at guessed sizes), first and last step that needs it."""

    bytes: int
    first: int
    last: int


@dataclass(frozen=True)
class Placing:
    """order  block numbers, each after those it lies on;  above  block -> blocks directly below."""

    order: list[int]
    above: list[tuple[int, ...]]


def place(blocks: Sequence[Block], shorter: Sequence[Block] = ()) -> Placing:
    """Where each block lies, in as little memory as two methods find.

    shorter  the same blocks with lifetimes that would do, if those of `blocks` take more memory
    """
    padded = [_padded(b) for b in blocks]
    offsets, top = _offsets(padded)
    if shorter and top > CLOSE * most_alive(padded):
        others, least = _offsets([_padded(b) for b in shorter])
        if least * CLOSE < top:
            offsets = others
    return _stacked(blocks, offsets)


def _offsets(blocks: Sequence[Block]) -> tuple[list[int], int]:
    """The better of two ways to place blocks, and where the arena ends."""
    offsets = _first_fit(blocks)
    top = _top(blocks, offsets)
    if len(blocks) <= THOROUGH and top > CLOSE * most_alive(blocks):
        others = _largest_first(blocks)
        if _top(blocks, others) < top:
            offsets, top = others, _top(blocks, others)
    return offsets, top


def keep_longer(blocks: Sequence[Block], waits: Sequence[int]) -> list[Block]:
    """The blocks alive until the next wait, where that needs no more memory.

    Steps between two waits run together.  Memory that one of them has done with could serve another
    only after a wait of its own.  `waits` are those that data alone demands.
    """
    ends = [*range(len(waits)), len(waits)]
    for i in reversed(range(len(waits) - 1)):
        if waits[i + 1] < 0:
            ends[i] = ends[i + 1]
    alive = [0] * (len(ends) + 1)
    for b in blocks:
        alive[b.first] += b.bytes
        alive[b.last + 1] -= b.bytes
    alive = list(accumulate(alive))
    most = max(alive)
    longer = []
    for b in blocks:
        end = ends[b.last]
        if end > b.last and all(n + b.bytes <= most for n in alive[b.last + 1 : end + 1]):
            for i in range(b.last + 1, end + 1):
                alive[i] += b.bytes
            longer.append(Block(b.bytes, b.first, end))
        else:
            longer.append(b)
    return longer


def most_alive(blocks: Sequence[Block]) -> int:
    """The most bytes alive at any step: no arena can be smaller."""
    change: dict[int, int] = {}
    for b in blocks:
        change[b.first] = change.get(b.first, 0) + b.bytes
        change[b.last + 1] = change.get(b.last + 1, 0) - b.bytes
    alive = most = 0
    for at in sorted(change):
        alive += change[at]
        most = max(most, alive)
    return most


def _padded(block: Block) -> Block:
    """Never nothing: a size that happens to be 0 where it was guessed must find a place too."""
    size = max(ALIGNMENT, -(-block.bytes // ALIGNMENT) * ALIGNMENT)
    return Block(size, block.first, block.last)


def _top(blocks: Sequence[Block], offsets: Sequence[int]) -> int:
    return max((o + b.bytes for b, o in zip(blocks, offsets, strict=True)), default=0)


# ---- offsets -----------------------------------------------------------------------------------


def _first_fit(blocks: Sequence[Block]) -> list[int]:
    """In order of time, each at the lowest free offset."""
    offsets = [0] * len(blocks)
    starts, ends = [0], [sum(b.bytes for b in blocks) + 1]  # free stretches, in order
    leaving: list[tuple[int, int]] = []
    for i in sorted(range(len(blocks)), key=lambda i: (blocks[i].first, -blocks[i].last)):
        block = blocks[i]
        while leaving and leaving[0][0] < block.first:
            j = heapq.heappop(leaving)[1]
            _release(starts, ends, offsets[j], offsets[j] + blocks[j].bytes)
        at = next(k for k, s in enumerate(starts) if ends[k] - s >= block.bytes)
        offsets[i] = starts[at]
        starts[at] += block.bytes
        if starts[at] == ends[at]:
            del starts[at], ends[at]
        heapq.heappush(leaving, (block.last, i))
    return offsets


def _release(starts: list[int], ends: list[int], start: int, end: int) -> None:
    k = bisect_left(starts, start)
    if k < len(starts) and starts[k] == end:
        end = ends[k]
        del starts[k], ends[k]
    if k and ends[k - 1] == start:
        ends[k - 1] = end
    else:
        starts.insert(k, start)
        ends.insert(k, end)


def _largest_first(blocks: Sequence[Block]) -> list[int]:
    """By size, each at the lowest offset free of what is placed and alive with it."""
    offsets = [0] * len(blocks)
    count = len(blocks)
    first, last = np.empty(count, np.int64), np.empty(count, np.int64)
    start, end = np.empty(count, np.int64), np.empty(count, np.int64)
    order = sorted(range(count), key=lambda i: (-blocks[i].bytes, blocks[i].first))
    for k, i in enumerate(order):
        b = blocks[i]
        together = np.flatnonzero((first[:k] <= b.last) & (last[:k] >= b.first))
        offset = 0
        if len(together):
            low = start[together]
            by_offset = np.argsort(low, kind="stable")
            high = np.maximum.accumulate(end[together][by_offset])
            gaps = low[by_offset][1:] - high[:-1]
            fitting = np.flatnonzero(gaps >= b.bytes)
            if low.min() < b.bytes:
                offset = int(high[fitting[0]] if len(fitting) else high[-1])
        offsets[i] = offset
        first[k], last[k], start[k], end[k] = b.first, b.last, offset, offset + b.bytes
    return offsets


# ---- who lies on whom --------------------------------------------------------------------------


def _stacked(blocks: Sequence[Block], offsets: Sequence[int]) -> Placing:
    """Keep of the offsets only which blocks each one touches from above.

    Blocks come in the order of their offsets; the skyline says which is the topmost at each step.
    Whatever is below a block and alive with it is on the skyline then, or below what is.
    """
    order = sorted(range(len(blocks)), key=lambda i: (offsets[i], blocks[i].first, i))
    above: list[tuple[int, ...]] = [()] * len(blocks)
    steps, topmost = [-1], [-1]  # from steps[k] on the topmost block is topmost[k]; -1: none
    for i in order:
        b = blocks[i]
        k = bisect_right(steps, b.first) - 1
        m = bisect_right(steps, b.last)
        above[i] = tuple(j for j in dict.fromkeys(topmost[k:m]) if j >= 0)
        kept_steps, kept = ([steps[k]], [topmost[k]]) if steps[k] < b.first else ([], [])
        kept_steps.append(b.first)
        kept.append(i)
        if m == len(steps) or steps[m] != b.last + 1:
            kept_steps.append(b.last + 1)
            kept.append(topmost[m - 1])
        steps[k:m] = kept_steps
        topmost[k:m] = kept
    return Placing(order, above)
