"""Rematerialisation: steps run again instead of keeping what they made, to meet a memory budget.

    before:  a b c d | D C B A        a to d are kept until the steps D to A that read them
    after:   a b c d | D c'C b'B A    c and b die young; c' and b' make them again from a

A copy is the same kernel on the same values, so it gives the same bits.  Which steps have copies
follows from where the forward part is cut: what crosses a cut is kept, what lies between two cuts
is made again when the first of it is needed.  Many cuts of different fineness are tried; then
steps that cost much time for little memory lose their copies again as far as the budget allows.
The choice for a smaller budget never needs more memory than that for a larger one: see `bands`.
Imports: groups, operands, plan_memory, place, facts, kernel.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from math import prod

import numpy as np

from graphc.kernel import Contraction, Kernel
from graphc.passes.estimate import Estimate
from graphc.passes.facts import Facts
from graphc.passes.groups import Fusion
from graphc.passes.operands import LoweredStep, Partial, Value
from graphc.passes.place import most_alive
from graphc.passes.plan_memory import lifetimes

FINENESS = (0.5, 0.35, 0.25, 0.18, 0.125, 0.09, 0.06, 0.04, 0.028, 0.02, 0.01)
"""Bytes between two cuts, as parts of all bytes that could be made again."""

BAND = 0.97
"""Budgets within this factor of each other may have the same plan."""

MARGIN = 0.99
"""What is alive at once is at most this part of a budget: placing wastes a little."""

LEVELS = 6
"""How many times the steps, copies included, are looked over for more to make again."""

REDUCED = 32
"""A step that makes this many times fewer bytes than it reads is not worth running again."""

CONTRACTION_DISCOUNT = 32
"""Multiply-adds of a contraction that take as long as one element of a loop."""


@dataclass(frozen=True, eq=False)
class Candidate:
    """An order of steps, some of them copies of others.

    peak   the most bytes alive at once, as estimated
    work   what the copies cost, in elements of loops
    """

    steps: list[LoweredStep]
    peak: int
    work: float
    order: Order  # without the copies
    dropped: frozenset[int]  # the values (by id) that copies make again


@dataclass(frozen=True)
class Band:
    """Budgets that have one plan: up to `limit`, and more than the next band's."""

    limit: float
    bases: Sequence[Candidate]

    def order(self) -> Candidate:
        """The cheapest order found that stays below the limit."""
        limit = self.limit * MARGIN
        within = [c for c in self.bases if c.peak <= limit]
        return _relaxed(min(within, key=lambda c: (c.work, c.peak)), limit)


def bands(given: Order) -> Iterator[Band]:
    """For one limit after another, lower and lower, the orders that stay below it.

    The limits depend on the program alone.  Each order is meant for budgets above the next limit:
    whoever takes only orders whose arena is between their own limit and the next has a smaller
    arena whenever the budget, and so the band, is lower.
    """
    bases: list[Candidate] = []
    levels = _levels(given)
    limit = float(given.peak)
    while True:
        limit *= BAND
        while not any(c.peak <= limit * MARGIN for c in bases):
            more = next(levels, None)
            if more is None:
                return
            bases += more
        yield Band(limit, tuple(bases))


def lowest(given: Order) -> Candidate | None:
    """The order that has the least alive at once, of all that are tried."""
    found = [c for level in _levels(given) for c in level]
    return min(found, key=lambda c: (c.peak, c.work), default=None)


def _levels(given: Order) -> Iterator[list[Candidate]]:
    """Orders with copies, from all that seem worth a try, the cheap ones first."""
    order, spent = given, 0.0
    for level in range(LEVELS):
        made = given.levels.get(level)
        if made is None:
            choices = order.cheap_choices() if not level else order.choices()
            made = given.levels[level] = [order.with_copies(c, spent) for c in choices]
        yield made
        best = min(made, key=lambda c: (c.peak, c.work), default=None)
        if level and (best is None or best.peak > 0.99 * order.peak):
            return
        if level:
            assert best is not None
            order, spent = Order(given.fusion, best.steps, given.facts), best.work


def _relaxed(candidate: Candidate, limit: float) -> Candidate:
    """The candidate with fewer copies, as far as the limit allows."""
    order = candidate.order
    spent = candidate.work - order.work_of(candidate.dropped)
    best = candidate
    for _ in range(3):
        dropped = order.relaxed(best, limit)
        if dropped == best.dropped:
            break
        made = order.with_copies(dropped, spent)
        if made.peak > limit:
            break
        best = made
    return best


class Order:
    """Steps in an order: who makes and reads what, how much is alive when."""

    def __init__(self, fusion: Fusion, steps: list[LoweredStep], facts: Facts) -> None:
        self.fusion = fusion
        self.steps = steps
        self.facts = facts
        self.levels: dict[int, list[Candidate]] = {}
        blocks, uses = lifetimes(fusion, steps, facts)
        self.peak = most_alive(blocks)
        self.alive = _alive(((b.bytes, b.first, b.last) for b in blocks), len(steps))
        self.turn = int(np.argmax(self.alive))
        self.arena = {id(u.value) for u in uses}
        self.bytes = {id(u.value): facts.bytes(u.value) for u in uses}
        self.made: list[list[Value]] = []
        self.read: list[list[Value]] = []
        self.producer: dict[int, int] = {}
        self.uses: dict[int, list[int]] = {}
        again: set[int] = set()
        for i, s in enumerate(steps):
            written = {id(s.args[w]) for w in s.writes}
            self.made.append([s.args[w] for w in s.writes])
            reads = {id(v): v for v in s.args if id(v) not in written}
            self.read.append([v for k, v in reads.items() if k in self.arena])
            again |= {k for k in written if k in self.producer}
            self.producer.update(dict.fromkeys(written, i))
            for k in reads:
                self.uses.setdefault(k, []).append(i)
        self.work = [_work(s, facts.estimate) for s in steps]
        self.fixed = {
            i
            for i, s in enumerate(steps)
            if s.checks or any(id(v) in again for v in self.made[i]) or self._reduces(i)
        }

    def _reduces(self, i: int) -> bool:
        made = sum(self.bytes.get(id(v), 0) for v in self.made[i])
        return made * REDUCED < sum(self.bytes[id(v)] for v in self.read[i])

    def work_of(self, dropped: Iterable[int]) -> float:
        """What it takes to make these values (by id) again."""
        return sum(self.work[i] for i in sorted({self.producer[k] for k in dropped}))

    def _made_in_arena(self, i: int) -> list[Value]:
        return [v for v in self.made[i] if id(v) in self.arena]

    # ---- what to make again

    def cheap_choices(self) -> list[frozenset[int]]:
        """Sets of values (by id) for loops to make again after the peak."""
        found = [self._cheap(part) for part in (0.25, 0.5, 0.75, 1.0)]
        return [c for c in dict.fromkeys(found) if c]

    def choices(self) -> list[frozenset[int]]:
        """Sets of values (by id) made before the peak to be made again after it."""
        found = [self._between(self._cuts(part)) for part in FINENESS]
        return self.cheap_choices() + [c for c in dict.fromkeys(found) if c]

    def _later(self, value: Value) -> bool:
        """Whether a value made before the peak is read after it."""
        last = self.uses.get(id(value), (-1,))[-1]
        return last > self.turn >= self.producer[id(value)]

    def _gain(self, i: int) -> int:
        """Bytes that step i made, alive at the peak without being used there."""
        return sum(
            self.bytes[id(v)]
            for v in self.made[i]
            if id(v) in self.arena and self._later(v) and self.turn not in self.uses[id(v)]
        )

    def _cheap(self, part: float) -> frozenset[int]:
        """Loops whose operands are there anyway, those with the most bytes for their work first."""
        gains = {
            i: self._gain(i)
            for i in range(self.turn)
            if i not in self.fixed
            and not any(isinstance(k, Contraction) for k in self.steps[i].kernels)
        }
        wanted = sorted((i for i in gains if gains[i]), key=lambda i: self.work[i] / gains[i])
        left = part * sum(gains.values())
        chosen: set[int] = set()
        for i in wanted:
            if left <= 0:
                break
            chosen.add(i)
            left -= gains[i]
        for i in sorted(chosen):
            if not all(self._there(v, chosen, gains[i]) for v in self.read[i]):
                chosen.discard(i)
        return frozenset(id(v) for i in chosen for v in self._made_in_arena(i))

    def _there(self, v: Value, chosen: set[int], gain: int) -> bool:
        maker = self.producer[id(v)]
        return maker in chosen or self._later(v) or self.bytes[id(v)] * 8 < gain

    def _cuts(self, part: float) -> set[int]:
        """Values (by id) kept because they cross a cut, cuts being so far apart."""
        crossing = self._crossing()
        gains = [0 if i in self.fixed else self._gain(i) for i in range(self.turn)]
        apart = part * sum(gains)
        sums = [0, *accumulate(gains)]
        kept: set[int] = set()
        start = i = 0
        while i < self.turn:
            if sums[i + 1] - sums[start] <= apart:
                i += 1
                continue
            near = [k for k in range(start + 1, i + 1) if sums[k] - sums[start] >= apart / 2]
            cut = min(near or [i], key=lambda k: (crossing[k], -k))
            kept |= self._crossed_by(cut)
            start = cut
            i = max(i, start + 1) if cut == i else max(start + 1, cut)
        return kept

    def _crossing(self) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        """Bytes made before each step up to the peak and read from it on up to the peak."""
        spans = []
        for i in range(self.turn):
            for v in self.made[i]:
                last = self._last_before_turn(v)
                if id(v) in self.arena and last > i:
                    spans.append((self.bytes[id(v)], i + 1, last))
        return _alive(spans, self.turn + 1)

    def _last_before_turn(self, v: Value) -> int:
        return max((u for u in self.uses.get(id(v), ()) if u <= self.turn), default=-1)

    def _crossed_by(self, cut: int) -> set[int]:
        return {
            id(v)
            for i in range(cut)
            for v in self.made[i]
            if id(v) in self.arena and self._last_before_turn(v) >= cut
        }

    def _between(self, kept: set[int]) -> frozenset[int]:
        """What to make again so that nothing made before the peak but `kept` is alive at it."""
        chosen: set[int] = set()
        dropped: set[int] = set()
        stack = [i for i in range(self.turn) if self._gain(i)]
        while stack:
            i = stack.pop()
            if i in chosen or i in self.fixed or i >= self.turn:
                continue
            again = [id(v) for v in self._made_in_arena(i) if id(v) not in kept]
            if not again:
                continue
            chosen.add(i)
            dropped.update(again)
            for v in self.read[i]:
                if id(v) not in kept and not self._later(v):
                    stack.append(self.producer[id(v)])
        return frozenset(dropped)

    # ---- an order with copies

    def with_copies(self, dropped: frozenset[int], spent: float) -> Candidate:
        """The steps with copies of some, each right before what reads it after the peak."""
        copier = _Copier(self, dropped)
        blocks, _ = lifetimes(self.fusion, copier.steps, self.facts)
        used = frozenset(k for k in dropped if self.producer[k] in copier.position)
        work = spent + self.work_of(used)
        return Candidate(copier.steps, most_alive(blocks), work, self, used)

    def relaxed(self, candidate: Candidate, limit: float) -> frozenset[int]:
        """The values dropped but those that can as well be kept, dearest first."""
        copier = _Copier(self, candidate.dropped)
        blocks, _ = lifetimes(self.fusion, copier.steps, self.facts)
        alive = _alive(((b.bytes, b.first, b.last) for b in blocks), len(copier.steps))
        left = set(candidate.dropped)

        def price(i: int) -> float:
            return -self.work[i] / max(1, sum(self.bytes[id(v)] for v in self._made_in_arena(i)))

        for i in sorted(copier.position, key=lambda i: (price(i), i)):
            again = copier.position[i]
            kept = [v for v in self._made_in_arena(i) if id(v) in left]
            first = min((self._last_before_turn(v) + 1 for v in kept), default=again)
            size = sum(self.bytes[id(v)] for v in kept)
            if first >= again or alive[first:again].max() + size <= limit:
                alive[first:again] += size
                left.difference_update(map(id, kept))
        return frozenset(left)


class _Copier:
    """Inserts the copies."""

    def __init__(self, order: Order, dropped: frozenset[int]) -> None:
        self.order = order
        self.dropped = dropped
        self.steps: list[LoweredStep] = []
        self.position: dict[int, int] = {}  # where the copy of a step is
        self._copies: dict[int, Partial] = {}
        for i, s in enumerate(order.steps):
            if i <= order.turn:
                self.steps.append(s)
                continue
            for v in order.read[i]:
                if id(v) in dropped:
                    self._copy(order.producer[id(v)])
            self.steps.append(self._on_copies(s))

    def _copy(self, wanted: int) -> None:
        """Add the copy of a step, and those it needs before it."""
        stack = [wanted]
        while stack:
            i = stack[-1]
            if i in self.position:
                stack.pop()
                continue
            needed = [v for v in self.order.read[i] if id(v) in self.dropped]
            makers = [self.order.producer[id(v)] for v in needed]
            missing = [m for m in makers if m not in self.position]
            if missing:
                stack += missing
                continue
            stack.pop()
            self.position[i] = len(self.steps)
            step = self._on_copies(self.order.steps[i])
            args = list(step.args)
            for w in step.writes:
                value = self.order.steps[i].args[w]
                args[w] = made = _again(value)
                if id(value) in self.dropped:
                    self._copies[id(value)] = made
            self.steps.append(replace(step, args=tuple(args), label=f"{step.label} again"))

    def _on_copies(self, step: LoweredStep) -> LoweredStep:
        if not any(id(v) in self._copies for v in step.args):
            return step
        return replace(step, args=tuple(self._copies.get(id(v), v) for v in step.args))


def _again(value: Value) -> Partial:
    """Where a copy of a step puts what the step made."""
    if isinstance(value, Partial):
        return replace(value)
    name = value.node.name or f"{value.node.op.name}.{value.node.id}"
    return Partial(f"{name} again", value.dtype, value.dims)


def _work(step: LoweredStep, estimate: Estimate) -> float:
    def points(kernel: Kernel) -> float:
        found = float(prod(estimate.of(a) for a in kernel.axes))
        return found / CONTRACTION_DISCOUNT if isinstance(kernel, Contraction) else found

    return sum(map(points, step.kernels))


def _alive(
    spans: Iterable[tuple[int, int, int]], steps: int
) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Bytes alive at each step; spans are (bytes, first step, last step)."""
    change = np.zeros(steps + 2, np.int64)
    for size, first, last in spans:
        change[first] += size
        change[last + 1] -= size
    return np.cumsum(change)[: max(1, steps)]
