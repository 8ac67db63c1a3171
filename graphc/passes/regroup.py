"""Fusion's second look, when every node has its group: fewer sweeps over large arrays.

    siblings    %s = sum(%g) and %t = sum(%g * %x), apart because neither needs the other: one group
    readers     %e = exp(%x), %s = sum(%e), and %y = %e / %s + %l, apart because %l is made after
                them: one group, where the later one is
    recompute   %c = %x - %m, written by the group that made it and read by others that could as
                well read %x: each computes it anew, and it is in no memory at all

Groups are numbered so that a group reads from lower ones only; a move keeps that.
Imports: groups, views, uniform, node, dims.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence

from graphc import dims
from graphc.node import Tensor
from graphc.passes.groups import ACC, FULL, MAX_MEMBERS, Group
from graphc.passes.uniform import Uniforms
from graphc.passes.views import Views

Bases = Callable[[Tensor], Sequence[Tensor]]
"""The arrays a member reads."""

GroupOf = dict[int, Group]

Fits = Callable[[Tensor, Group], str | None]
"""At which level a value may join a group, or None."""

CHEAP = frozenset(
    ("add", "subtract", "multiply", "negative", "square", "maximum", "minimum", "relu", "astype")
)
"""Operators that take less time than reading their result from memory."""

# ---- siblings ----------------------------------------------------------------------------------


def merge_siblings(groups: Sequence[Group], group_of: GroupOf, bases: Bases) -> None:
    """Join groups that reduce the same axes of the same shape and read an array in common."""
    near: dict[Hashable, Group] = {}
    for group in groups:
        if group.kind != "loop" or group.red is None or not group.members:
            continue
        size = dims.product(group.shape)
        large = [b for b in _outside(group, group_of, bases) if dims.product(b.dims) == size]
        keys = [(id(b), group.shape, group.red, group.split) for b in large]
        joined = group
        for other in dict.fromkeys(near[k] for k in keys if k in near):
            if other.members and other is not joined:
                joined = _join(other, joined, group_of, bases) or joined
        near.update((k, joined) for k in keys)


def _join(first: Group, second: Group, group_of: GroupOf, bases: Bases) -> Group | None:
    """Make the groups one, at the place of either, where no third one stands between."""
    if first.number > second.number:
        first, second = second, first
    if len(first.members) + len(second.members) > MAX_MEMBERS:
        return None
    reads = _outside(second, group_of, bases)
    sources = {g.number for b in reads if (g := group_of.get(id(b))) is not None}
    if all(number < first.number for number in sources):
        _absorb(second, first, group_of, bases)
        return first
    if first.readers and min(first.readers) <= second.number:
        return None
    _absorb(first, second, group_of, bases)
    return second


def _outside(group: Group, group_of: GroupOf, bases: Bases) -> list[Tensor]:
    """The arrays a group reads that are not its own."""
    return [b for t in group.members for b in bases(t) if group_of.get(id(b)) is not group]


def _absorb(source: Group, target: Group, group_of: GroupOf, bases: Bases) -> None:
    for base in _outside(source, group_of, bases):
        other = group_of.get(id(base))
        if other is not None:
            other.readers.discard(source.number)
            other.readers.add(target.number)
    for t in source.members:
        group_of[id(t)] = target
    target.members.extend(source.members)
    target.level.update(source.level)
    target.readers |= source.readers
    target.readers.discard(target.number)
    source.members, source.level = [], {}


# ---- readers -----------------------------------------------------------------------------------


def join_readers(groups: Sequence[Group], group_of: GroupOf, bases: Bases, fits: Fits) -> None:
    """Join a group and a later one of its shape that reads its elements, or elements it reads.

    The earlier one comes to the later one's place if all that read it are no earlier.
    """
    for second in groups:
        if second.kind != "loop" or second.split:
            continue
        sources = {
            g.number for b in _outside(second, group_of, bases) if (g := group_of.get(id(b)))
        }
        for number in sorted(sources, reverse=True):
            first = groups[number]
            if first.kind != "loop" or first.split or first.shape != second.shape:
                continue
            if min(first.readers) < second.number or not _shared(first, second, group_of, bases):
                continue
            _follow(first, second, group_of, bases, fits)


def _shared(first: Group, second: Group, group_of: GroupOf, bases: Bases) -> bool:
    """Whether joined groups would read an array, or write one, less."""
    read = {id(b): b for t in second.members for b in bases(t)}
    if any(first.level.get(b) == FULL for b in read):
        return True
    size = dims.product(first.shape)
    common = [b for b in _outside(first, group_of, bases) if id(b) in read]
    return any(dims.product(b.dims) == size for b in common)


def _follow(first: Group, second: Group, group_of: GroupOf, bases: Bases, fits: Fits) -> None:
    """Move the members of the first group into the second, before its own, if all fit together."""
    if len(first.members) + len(second.members) > MAX_MEMBERS:
        return
    own, levels, red = second.members, {}, first.red
    if red is None:
        first.red = second.red
    for t in own:  # as if they joined the first, one after the other
        level = fits(t, first)
        if level is None:
            break
        levels[id(t)] = first.level[id(t)] = level
        group_of[id(t)] = first
    for t in own[: len(levels)]:
        del first.level[id(t)]
        group_of[id(t)] = second
    if len(levels) == len(own):
        second.members, second.level, second.red = [], levels, first.red
        _absorb(first, second, group_of, bases)
        second.members.extend(own)
    first.red = red


# ---- computing again ---------------------------------------------------------------------------


def recompute(
    groups: Sequence[Group],
    group_of: GroupOf,
    bases: Bases,
    views: Views,
    uniforms: Uniforms,
    roots: set[int],
) -> None:
    """Let groups compute cheap values anew that they would read, where reading what these are
    made of is no more; the group that made them need not write them then."""
    work = _Recompute(group_of, bases, views, uniforms)
    for group in groups:
        for t in group.members:
            work.note(group, t)
    for group in groups:
        for t in list(group.members):
            if id(t) not in roots and t.node.kind == "elementwise":
                work.consider(group, t)
    for group in groups:
        group.members[:0] = work.added.get(group.number, [])


class _Recompute:
    def __init__(self, group_of: GroupOf, bases: Bases, views: Views, uniforms: Uniforms) -> None:
        self.group_of = group_of
        self.bases = bases
        self.views = views
        self.uniforms = uniforms
        self.readers: dict[int, list[tuple[Group, Tensor, Tensor]]] = {}
        """(group, member, operand) for each use of an array."""
        self.reads: dict[int, set[int]] = {}
        self.added: dict[int, list[Tensor]] = {}

    def note(self, group: Group, t: Tensor) -> None:
        """Take down what a member reads."""
        operands = (t,) if t.node.kind == "view" else t.node.inputs
        if not operands:
            return  # computed of nothing: it has no array either
        reads = self.reads.setdefault(group.number, set())
        for i, base in zip(operands, self.bases(t), strict=True):
            self.readers.setdefault(id(base), []).append((group, t, i))
            reads.add(id(base))

    def consider(self, group: Group, t: Tensor) -> None:
        if t.node.op.name not in CHEAP or group.level[id(t)] != FULL:
            return
        uses = self.readers.get(id(t), [])
        outside = [use for use in uses if use[0] is not group]
        if not outside or any(not self._can_compute(use, t) for use in outside):
            return
        sources = self._sources(group, t)
        if sources is None:
            return
        targets = {g.number: g for g, _, _ in outside}
        for target in targets.values():
            new = [b for b in sources if id(b) not in self.reads[target.number]]
            if sum(b.dtype.itemsize for b in new) > t.dtype.itemsize:
                return
            if len(target.members) + len(self.added.get(target.number, ())) >= MAX_MEMBERS:
                return
        for target in targets.values():
            self.added.setdefault(target.number, []).append(t)
            target.level[id(t)] = FULL
            self.note(target, t)
        if len(uses) == len(outside):  # its own group does not need it
            group.members[:] = [m for m in group.members if m is not t]
            del group.level[id(t)]
            self.group_of[id(t)] = min(targets.values(), key=lambda g: g.number)

    def _can_compute(self, use: tuple[Group, Tensor, Tensor], t: Tensor) -> bool:
        """Whether the user is computed element by element over the shape of t."""
        group, user, operand = use
        return (
            group.kind == "loop"
            and user.node.kind != "view"
            and group.level.get(id(user)) in (FULL, ACC)
            and group.shape == t.dims
            and self.views.of(operand).is_whole(operand.dims)
        )

    def _sources(self, group: Group, t: Tensor) -> list[Tensor] | None:
        """The arrays of t's size that t is made of; None unless all are in memory anyway."""
        found = []
        for i in t.node.inputs:
            if self.uniforms.of(i, self.views) is not None:
                continue
            view = self.views.of(i)
            base = view.base
            if base.node.kind in ("leaf", "state"):
                return None
            if not self._is_stored(base, group):
                return None
            if view.is_whole(t.dims):
                found.append(base)
        return found

    def _is_stored(self, base: Tensor, group: Group) -> bool:
        if id(base) not in group.level:
            return True
        return any(g is not group and id(base) not in g.level for g, _, _ in self.readers[id(base)])
