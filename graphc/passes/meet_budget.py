"""Meeting a memory budget: the plan with the least work whose arena is small enough, or a refusal.

Orders of steps with copies come from `rematerialise`; what counts is the arena of the finished
plan.  A smaller budget never gives a larger arena.  Imports: rematerialise, plan_memory, facts.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from graphc.arena import bytes_text
from graphc.budget import Budget
from graphc.errors import MemoryBudgetError
from graphc.location import Location
from graphc.node import Tensor
from graphc.passes.facts import Facts
from graphc.passes.groups import Fusion
from graphc.passes.operands import LoweredStep, Value
from graphc.passes.plan_memory import BlocksOf, arena_bytes, lifetimes, name_of, plan_memory
from graphc.passes.rematerialise import BAND, Order, bands, lowest
from graphc.plan import Plan

NAMED = 8
"""Buffers that a refusal names."""


def meet_budget(
    fusion: Fusion,
    steps: Sequence[LoweredStep],
    blocks_of: BlocksOf,
    facts: Facts,
    budget: Budget,
) -> Plan:
    """A plan whose arena is within the budget at the budget's sizes.

    Raises MemoryBudgetError, naming what is alive when most is, if none is found.
    """
    if arena_bytes(fusion, steps, facts, budget.sizes) <= budget.bytes:
        return plan_memory(fusion, steps, blocks_of, facts)
    order = Order(fusion, list(steps), facts)
    for band in bands(order):
        if band.limit <= budget.bytes:
            made = band.order().steps
            if band.limit * BAND < arena_bytes(fusion, made, facts, budget.sizes) <= band.limit:
                return plan_memory(fusion, made, blocks_of, facts)
    return plan_memory(fusion, _least(order, budget), blocks_of, facts)


def _least(order: Order, budget: Budget) -> Sequence[LoweredStep]:
    """The order with the smallest arena of all; raises MemoryBudgetError if it is too large."""

    def arena(steps: Sequence[LoweredStep]) -> int:
        return arena_bytes(order.fusion, steps, order.facts, budget.sizes)

    found: list[Sequence[LoweredStep]] = [order.steps]
    last = lowest(order)
    if last is not None:
        found.append(last.steps)
    least = min(map(arena, found))
    found += [band.order().steps for band in bands(order) if band.limit * BAND < least]
    best = min(found, key=arena)
    if arena(best) > budget.bytes:
        raise MemoryBudgetError(_refusal(order, best, budget, arena(order.steps), arena(best)))
    return best


def _refusal(
    order: Order, steps: Sequence[LoweredStep], budget: Budget, before: int, needed: int
) -> str:
    """Why the budget cannot be met: what is alive together when most is."""
    uses = lifetimes(order.fusion, steps, order.facts)[1]
    alive = np.zeros(len(steps) + 2, np.int64)
    for u in uses:
        alive[u.first] += order.facts.bytes(u.value)
        alive[u.last + 1] -= order.facts.bytes(u.value)
    at = int(np.argmax(np.cumsum(alive)))
    there = sorted(
        (u for u in uses if u.first <= at <= u.last), key=lambda u: -order.facts.bytes(u.value)
    )
    sizes = ", ".join(f"{atom.name} = {n}" for atom, n in budget.sizes.items())
    lines = [
        f"the program needs {_exact(needed)} of scratch memory{f' at {sizes}' if sizes else ''}, "
        f"more than its budget of {_exact(budget.bytes)}",
    ]
    if needed < before:
        lines.append(f"  it is {_exact(before)} unless values are made again instead of kept")
    step = steps[min(at, len(steps) - 1)]
    lines.append(f"  at step {at} of {len(steps)}, {step.label}, are alive together:")
    for u in there[:NAMED]:
        loc = _line(u.value, steps[u.first])
        size = bytes_text(order.facts.bytes(u.value))
        lines.append(f"    {size:>8}  {name_of(u.value)}  at {loc}   {loc.source}".rstrip())
    rest = there[NAMED:]
    if rest:
        total = bytes_text(sum(order.facts.bytes(u.value) for u in rest))
        lines.append(f"    {total:>8}  in {len(rest)} more")
    return "\n".join(lines)


def _exact(count: int) -> str:
    return f"{count:,} bytes ({bytes_text(count)})" if count >= 1000 else f"{count} bytes"


def _line(value: Value, maker: LoweredStep) -> Location:
    return value.node.loc if isinstance(value, Tensor) else maker.locs[0]
