"""Values that one stage of a row kernel computes and a later one would compute again.

    before:  sum(exp(x - max))        then  y = exp(x - max) / total
    after:   sum(exp(x - max)), y = exp(x - max)        then  y = y / total

A row is near after a stage has gone over it, and where it is stored in the end there is room for
what was costly to compute.  Keeps: values, bit for bit.  Imports: kernel.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from graphc.kernel import HEAVY, Accumulator, Expr, LoopKernel, Stage, Store

FAR = 1 << 16
"""Rows of more elements than this leave the caches before they are read again."""


def keep_values(kernel: LoopKernel) -> LoopKernel:
    """The kernel with costly values stored by the first stage that has them."""
    sizes = [kernel.axes[a] for stage in kernel.stages for a in stage.red]
    if len(kernel.stages) < 2 or any(isinstance(n, int) and n > FAR for n in sizes):
        return kernel
    stages = list(kernel.stages)
    for k in range(len(stages) - 1, 0, -1):
        for store in stages[k].stores:
            if stages[k].red and _is_plain(store, kernel):
                _keep(kernel, stages, k, store)
    return replace(kernel, stages=tuple(stages))


def _is_plain(store: Store, kernel: LoopKernel) -> bool:
    """Whether a store overwrites an element, and is the only one to its buffer."""
    buffer = store.access.buf
    others = [s for stage in kernel.stages for s in stage.stores if s.access.buf == buffer]
    guarded = any(t.limit is not None for t in store.access.terms)
    return len(others) == 1 and store.index is None and not store.add and not guarded


def _keep(kernel: LoopKernel, stages: list[Stage], k: int, store: Store) -> None:
    """Let the first stage that computes a costly part of a store's value store it there."""
    if any(e.op == "load" and e.value[0].buf == store.access.buf for e in _parts(_roots(stages))):
        return
    for j in range(k):
        if stages[j].red != stages[k].red:
            continue
        known = {id(e) for e in _parts([a.expr for a in stages[j].accs])}
        for part in _parts([store.expr]):
            if id(part) in known and part.dtype is kernel.bufs[store.access.buf]:
                if not _is_costly(part):
                    continue
                stages[j] = replace(
                    stages[j], stores=(*stages[j].stores, Store(store.access, part))
                )
                again = _Replaced(part, Expr("load", (), (store.access, 0), part.dtype))
                for later in range(j + 1, len(stages)):
                    stages[later] = again.stage(stages[later])
                return


def _roots(stages: Sequence[Stage]) -> list[Expr]:
    return [a.expr for s in stages for a in s.accs] + [x.expr for s in stages for x in s.stores]


def _parts(roots: Sequence[Expr]) -> Iterator[Expr]:
    """The expressions roots are made of, each once, whole ones first."""
    seen: set[int] = set()
    queue = list(roots)
    for e in queue:
        if id(e) not in seen:
            seen.add(id(e))
            yield e
            queue.extend(e.args)


def _is_costly(expr: Expr) -> bool:
    return any(e.op in HEAVY for e in _parts([expr]))


class _Replaced:
    """Stages with one expression in place of another."""

    def __init__(self, old: Expr, new: Expr) -> None:
        self.done = {id(old): new}

    def stage(self, stage: Stage) -> Stage:
        accs = tuple(Accumulator(a.op, self.expr(a.expr), a.dtype) for a in stage.accs)
        stores = tuple(
            replace(
                s, expr=self.expr(s.expr), index=None if s.index is None else self.expr(s.index)
            )
            for s in stage.stores
        )
        return Stage(stage.red, accs, stores)

    def expr(self, e: Expr) -> Expr:
        found = self.done.get(id(e))
        if found is None:
            args = tuple(self.expr(a) for a in e.args)
            found = self.done[id(e)] = e if args == e.args else Expr(e.op, args, e.value, e.dtype)
        return found
