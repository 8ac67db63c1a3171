"""Scheduling: an order of the steps in which fewer bytes are alive at once.

    before:  dx3 dx2 dx1 dw1 dw2 dw3        every output gradient stays alive until its dw
    after:   dx3 dw3 dx2 dw2 dx1 dw1        each dies as soon as both have used it

A greedy list scheduler: among the steps that are ready it runs the one that frees most and
allocates least.  The result is kept only if it has fewer bytes alive than the order given.
Steps that only prepare what others read, from what is there when the run starts (weights that are
packed), are left out and come right before their first reader.
Steps that overwrite a variable wait for its readers and for run-time checks, where they can, so
that memory planning can update in place.  Keeps: dependencies.  O(n log n).
Imports: groups, operands, facts.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

from graphc.passes.facts import Facts
from graphc.passes.groups import Fusion
from graphc.passes.operands import LoweredStep, Partial, Value


def schedule(
    fusion: Fusion, steps: Sequence[LoweredStep], facts: Facts | None = None
) -> list[LoweredStep]:
    """The steps in the order in which they should run, for the sizes that are estimated."""
    given = list(steps)
    if len(given) < 3:
        return given
    facts = facts or Facts()
    prepared = _preparing(given)
    rest = [s for s in given if id(s) not in prepared.ids]
    greedy = prepared.inserted(_Scheduler(fusion, rest, facts).order())
    return min(given, greedy, key=lambda order: bytes_alive(fusion, order, facts))


@dataclass
class _Prepared:
    """Steps to be run right before the first reader of what they write."""

    ids: set[int]
    maker: dict[int, LoweredStep]

    def inserted(self, steps: Sequence[LoweredStep]) -> list[LoweredStep]:
        left = dict(self.maker)
        result: list[LoweredStep] = []
        for s in steps:
            for v in s.args:
                step = left.pop(id(v), None)
                if step is not None:
                    result.append(step)
            result.append(s)
        return result


def _preparing(steps: Sequence[LoweredStep]) -> _Prepared:
    """The steps that write one value of their own from nothing that a step writes."""
    made = {id(s.args[w]) for s in steps for w in s.writes}
    found = _Prepared(set(), {})
    for s in steps:
        written = [s.args[w] for w in s.writes]
        reads = (v for j, v in enumerate(s.args) if j not in s.writes)
        own = len(written) == 1 and isinstance(written[0], Partial) and not s.checks
        if own and not any(id(v) in made for v in reads):
            found.ids.add(id(s))
            found.maker[id(written[0])] = s
    return found


def bytes_alive(fusion: Fusion, steps: Sequence[LoweredStep], facts: Facts) -> tuple[int, int]:
    """Bytes of values made by steps: the most that are alive at once, and the sum over the steps.

    The peak decides; where it is the same, more can be made again in an order with less alive.
    """
    last: dict[int, int] = {}
    for i, s in enumerate(steps):
        for v in s.args:
            last[id(v)] = i
    kept = _kept(fusion)
    alive = most = total = 0
    for i, s in enumerate(steps):
        made = {id(s.args[w]): s.args[w] for w in s.writes}
        alive += sum(facts.bytes(v) for k, v in made.items() if k not in kept)
        most = max(most, alive)
        total += alive
        ending = {id(v): v for v in s.args if last[id(v)] == i and id(v) not in kept}
        alive -= sum(facts.bytes(v) for k, v in ending.items() if k in made or _is_made(v, fusion))
    return most, total


def _is_made(value: Value, fusion: Fusion) -> bool:
    return id(value) in fusion.group_of or not hasattr(value, "node")


def _kept(fusion: Fusion) -> set[int]:
    """Values that outlive the run: they have memory of their own."""
    return {id(fusion.views.of(t).base) for t in fusion.program.roots}


CHECKS = -1
"""The obstacle of updates that wait for run-time checks."""


class _Scheduler:
    def __init__(self, fusion: Fusion, steps: list[LoweredStep], facts: Facts) -> None:
        self.facts = facts
        self.fusion = fusion
        self.steps = steps
        self.kept = _kept(fusion)
        self.producer = {id(s.args[w]): i for i, s in enumerate(steps) for w in s.writes}
        self.allocates = [self._allocates(s) for s in steps]
        self.reads = [self._reads(s) for s in steps]
        self.readers: dict[int, list[int]] = {}
        self.pending = [0] * len(steps)
        self.followers: list[list[int]] = [[] for _ in steps]
        for i, reads in enumerate(self.reads):
            for v in reads:
                self.readers.setdefault(v, []).append(i)
                maker = self.producer.get(v)
                if maker is not None and maker != i:
                    self.pending[i] += 1
                    self.followers[maker].append(i)
        self.left = {k: len(r) for k, r in self.readers.items()}
        self.overwrites = self._overwrites()
        self.unchecked = sum(1 for s in steps if s.checks)

    def _allocates(self, s: LoweredStep) -> int:
        """Bytes of what the step writes and the run may free again."""
        made = {id(s.args[w]): s.args[w] for w in s.writes}
        return sum(self.facts.bytes(v) for k, v in made.items() if k not in self.kept)

    def _reads(self, s: LoweredStep) -> dict[int, int]:
        """The values (by id) that the step reads, with the bytes its last reader frees."""
        written = set(s.writes)
        found: dict[int, int] = {}
        for j, v in enumerate(s.args):
            if j not in written:
                key = id(v)
                freed = key in self.producer and key not in self.kept
                found[key] = self.facts.bytes(v) if freed else 0
        return found

    def _overwrites(self) -> dict[int, list[int]]:
        """step -> the variables (by id) it would overwrite."""
        found: dict[int, list[int]] = {}
        for variable, t in self.fusion.program.updates:
            maker = self.producer.get(id(self.fusion.views.of(t).base))
            if maker is not None:
                found.setdefault(maker, []).append(id(variable))
        return found

    def _obstacle(self, i: int) -> int | None:
        """What step i should wait for, lest it spoil an update in place: a variable (by id) with
        readers to come, CHECKS, or None."""
        variables = self.overwrites.get(i)
        if variables is None:
            return None
        if self.unchecked and not self.steps[i].checks:
            return CHECKS
        for v in variables:
            mine = 1 if i in self.readers.get(v, ()) else 0
            if self.left.get(v, 0) > mine:
                return v
        return None

    def _cost(self, i: int) -> int:
        """Bytes allocated minus bytes freed by running step i now."""
        left = self.left
        return self.allocates[i] - sum(n for v, n in self.reads[i].items() if left[v] == 1)

    def order(self) -> list[LoweredStep]:
        self.done = [False] * len(self.steps)
        self.held: dict[int, list[int]] = {}
        self.fallback: list[int] = []
        self.ready: list[tuple[int, int]] = []
        for i, n in enumerate(self.pending):
            if n == 0:
                self._push(i)
        result: list[LoweredStep] = []
        while len(result) < len(self.steps):
            i = self._next()
            self.done[i] = True
            result.append(self.steps[i])
            self._finish(i)
        return result

    def _push(self, i: int) -> None:
        heapq.heappush(self.ready, (self._cost(i), i))

    def _next(self) -> int:
        while self.ready:
            cost, i = heapq.heappop(self.ready)
            if self.done[i]:
                continue
            obstacle = self._obstacle(i)
            if obstacle is not None:
                self.held.setdefault(obstacle, []).append(i)
                heapq.heappush(self.fallback, i)
                continue
            now = self._cost(i)
            if now > cost and self.ready and now > self.ready[0][0]:
                heapq.heappush(self.ready, (now, i))
                continue
            return i
        while True:  # only steps that wait for each other are left: planning will copy
            i = heapq.heappop(self.fallback)
            if not self.done[i]:
                return i

    def _finish(self, i: int) -> None:
        s = self.steps[i]
        if s.checks:
            self.unchecked -= 1
            if not self.unchecked:
                self._wake(CHECKS)
        for v in self.reads[i]:
            self.left[v] -= 1
            if self.left[v] <= 1:
                self._wake(v)
                if self.left[v] == 1:  # its last reader now frees it: look at that one again
                    for j in self.readers[v]:
                        if not self.done[j] and self.pending[j] == 0:
                            self._push(j)
        for j in self.followers[i]:
            self.pending[j] -= 1
            if self.pending[j] == 0:
                self._push(j)

    def _wake(self, obstacle: int) -> None:
        for j in self.held.pop(obstacle, ()):
            if not self.done[j]:
                self._push(j)
