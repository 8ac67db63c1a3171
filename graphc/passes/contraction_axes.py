"""Contractions over as few axes as possible, with no guard that always holds.

    before:  m = (batch, 14, 14)  n = (256,)  k = (1, 1, 1024)      a 1x1 convolution
    after:   m = (196*batch,)     n = (256,)  k = (1024,)           a matrix product

    before:  batch = (batch,)  m = (128,)  n = (256,)  k = (64,)    many matrices times one
    after:   m = (128*batch,)  n = (256,)  k = (64,)                one matrix times one

What computes the same then also looks the same, so that it can share a kernel.  The order in which
k is summed does not change, nor do bits.  Imports: kernel, dims.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from graphc import dims
from graphc.dims import DimLike
from graphc.kernel import Access, Contraction, Expr, Term, expressions_of, rebuild

Strides = Mapping[int, DimLike]
"""Elements moved per step of an axis, over unguarded terms; axes that do not move are absent."""


def fewest_axes(c: Contraction) -> Contraction:
    """The contraction without axes of size 1, without batch axes along which B does not move, and
    with adjacent axes merged where all accesses walk them as one."""
    c = _map_accesses(
        c, {a: _linear(_unguarded(_without(a, c.axes), c.axes)) for a in _accesses(c)}
    )
    accesses = _accesses(c)
    counted = {e.value for e in expressions_of(c) if e.op == "axis"}
    guarded = {a for x in accesses for t in x.terms if t.limit is not None for a, _ in t.axes}
    strides = [_strides(x) for x in accesses]
    fixed = guarded | counted
    groups: list[list[list[int]]] = []
    for i, axes in enumerate(_grouped(c)):
        groups.append(_runs([a for a in axes if c.axes[a] != 1 or a in counted], c, strides, fixed))
        if not groups[-1] and axes and i > 0:
            groups[-1].append([axes[-1]])
    return _renumbered(c, groups)


def _grouped(c: Contraction) -> list[list[int]]:
    """The axes of batch, m, n and k; those of the batch along which B does not move belong to m."""
    moving = {a for t in c.b.terms for a, _ in t.axes}
    groups: list[list[int]] = []
    first = 0
    for extents in (c.batch, c.m, c.n, c.k):
        groups.append(list(range(first, first + len(extents))))
        first += len(extents)
    groups[1] = [a for a in groups[0] if a not in moving] + groups[1]
    groups[0] = [a for a in groups[0] if a in moving]
    return groups


def _accesses(c: Contraction) -> list[Access]:
    found = [c.a, c.b, *(s.access for s in c.stores)]
    found.extend(e.value[0] for e in expressions_of(c) if e.op in ("load", "gather"))
    return list(dict.fromkeys(found))


def _map_accesses(c: Contraction, made: Mapping[Access, Access]) -> Contraction:
    result = rebuild(c, lambda part: made.get(part) if isinstance(part, Access) else None)
    assert isinstance(result, Contraction)
    return result


def _without(access: Access, extents: tuple[DimLike, ...]) -> Access:
    """The access without axes of size 1: their index is 0."""
    terms = (replace(t, axes=tuple(p for p in t.axes if extents[p[0]] != 1)) for t in access.terms)
    return replace(access, terms=tuple(terms))


def _unguarded(access: Access, extents: tuple[DimLike, ...]) -> Access:
    """The access without guards that hold for every index."""
    terms = tuple(replace(t, limit=None) if _always_inside(t, extents) else t for t in access.terms)
    return replace(access, terms=terms)


def _always_inside(term: Term, extents: tuple[DimLike, ...]) -> bool:
    if term.limit is None or term.div != 1:
        return False
    low = high = term.shift
    for axis, coef in term.axes:
        if not isinstance(coef, int):
            return False
        end = dims.mul(coef, dims.add(extents[axis], -1))
        low, high = (low, dims.add(high, end)) if coef > 0 else (dims.add(low, end), high)
    left = dims.add(term.limit, dims.mul(-1, dims.add(high, 1)))
    return dims.is_size(low) and dims.is_size(left)


def _linear(access: Access) -> Access:
    """The access with one unguarded term for each axis, in order, and shifts in the offset."""
    offset = access.offset
    total: dict[int, DimLike] = {}
    for term in access.terms:
        if term.limit is None:
            offset = dims.add(offset, dims.mul(term.shift, term.stride))
            for axis, coef in term.axes:
                step = dims.mul(coef, term.stride)
                total[axis] = dims.add(total.get(axis, 0), step)
    plain = tuple(Term(((a, 1),), total[a]) for a in sorted(total) if total[a] != 0)
    return Access(access.buf, tuple(t for t in access.terms if t.limit is not None) + plain, offset)


def _strides(access: Access) -> dict[int, DimLike]:
    return {t.axes[0][0]: t.stride for t in access.terms if t.limit is None}


def _runs(
    axes: Iterable[int], c: Contraction, strides: list[dict[int, DimLike]], fixed: set[int]
) -> list[list[int]]:
    """Runs of adjacent axes that every access walks as one."""
    runs: list[list[int]] = []
    for a in axes:
        if runs:
            p = runs[-1][-1]
            if not {a, p} & fixed and all(
                s.get(p, 0) == dims.mul(s.get(a, 0), c.axes[a]) for s in strides
            ):
                runs[-1].append(a)
                continue
        runs.append([a])
    return runs


def _renumbered(c: Contraction, groups: list[list[list[int]]]) -> Contraction:
    """The contraction over runs of its axes, each of which moves as its last axis does."""
    runs = [run for group in groups for run in group]
    if runs == [[a] for a in range(len(c.axes))] and len(groups[0]) == len(c.batch):
        return c
    number = {run[-1]: i for i, run in enumerate(runs)}

    def renumbered(access: Access) -> Access:
        terms = (
            replace(t, axes=tuple((number[a], coef) for a, coef in t.axes if a in number))
            for t in access.terms
        )
        kept = tuple(t for t in terms if t.axes or t.limit is not None)
        return replace(access, terms=kept)

    accesses = {a: renumbered(a) for a in _accesses(c)}

    def changed(part: object) -> object:
        if isinstance(part, Access):
            return accesses[part]
        if isinstance(part, Expr) and part.op == "axis":
            return Expr("axis", (), number[part.value], part.dtype)
        return None

    made = rebuild(c, changed)
    assert isinstance(made, Contraction)
    extents = [tuple(dims.product(c.axes[a] for a in run) for run in group) for group in groups]
    return replace(made, batch=extents[0], m=extents[1], n=extents[2], k=extents[3])
