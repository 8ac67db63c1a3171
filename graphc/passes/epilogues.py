"""Epilogues of contractions kept short: what reads many arrays goes into a loop of its own.

    before:  one kernel [matmul, add, and 15 operators on the gates of a recurrent network]
    after:   [matmul, add] and a loop over whole rows [15 operators]

An epilogue walks a tile of a few rows and columns: each array it reads comes in short stretches far
apart, which no processor fetches ahead.  One or two hide behind the product; with ten, waiting for
them takes as long as the product.  A loop reads them in long stretches, and what lies between the
two kernels is in the cache.  Linear in the number of members.  Imports: groups, uniform, views.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from graphc.node import Tensor
from graphc.passes.groups import FULL, Group
from graphc.passes.uniform import Uniforms
from graphc.passes.views import Views

Bases = Callable[[Tensor], Sequence[Tensor]]
"""The arrays a member reads."""

ARRAYS = 4
"""Arrays of the size of its result that an epilogue may read."""


def split_epilogues(
    groups: list[Group],
    group_of: dict[int, Group],
    bases: Bases,
    views: Views,
    uniforms: Uniforms,
) -> list[Group]:
    """The groups, with those cut in two whose epilogues read too many arrays."""
    found: list[Group] = []
    for group in groups:
        found.append(group)
        at = _cut(group, group_of, bases, views, uniforms) if group.kind == "contraction" else None
        if at is None:
            continue
        rest = Group(group.number, "loop", group.shape, group.members[at].node)
        rest.members = group.members[at:]
        del group.members[at:]
        for t in rest.members:
            rest.level[id(t)] = FULL
            del group.level[id(t)]
            group_of[id(t)] = rest
        found.append(rest)
    if len(found) > len(groups):
        _renumber(found, group_of, bases)
    return found


def _cut(
    group: Group, group_of: dict[int, Group], bases: Bases, views: Views, uniforms: Uniforms
) -> int | None:
    """How many members to leave: as many as may stay of those that hand on fewest values."""
    arrays: set[int] = set()
    allowed = len(group.members)
    for i, t in enumerate(group.members):
        for x in t.node.inputs if i > 0 else ():
            view = views.of(x)
            mine = group_of.get(id(view.base)) is group
            if not mine and 0 not in view.strides and uniforms.of(x, views) is None:
                arrays.add(id(view.base))
        if len(arrays) > ARRAYS:
            allowed = min(allowed, i)
    if allowed == len(group.members):
        return None
    place = {id(t): i for i, t in enumerate(group.members)}
    last: dict[int, int] = {}  # the last member that reads each
    for i, t in enumerate(group.members):
        for b in bases(t):
            if id(b) in place:
                last[place[id(b)]] = i
    ends = [0] * (len(group.members) + 1)
    for i in last.values():
        ends[i] += 1
    best, fewest, alive = 1, len(group.members), 0
    for i in range(allowed):
        alive += (i in last) - ends[i]
        if alive <= fewest:
            best, fewest = i + 1, alive
    return best


def _renumber(groups: Sequence[Group], group_of: dict[int, Group], bases: Bases) -> None:
    for number, group in enumerate(groups):
        group.number = number
        group.readers = set()
    for group in groups:
        for t in group.members:
            for b in bases(t):
                other = group_of.get(id(b))
                if other is not None and other is not group:
                    other.readers.add(group.number)
