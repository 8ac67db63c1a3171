"""Nest groups to loop kernels: the operator's own loop nest, and elementwise members behind it.

Imports: operands, groups, kernel, nest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from graphc.kernel import Access, Accumulator, Expr, LoopKernel, Stage, Store, Term
from graphc.nest import Nest, contiguous
from graphc.node import Tensor
from graphc.passes.groups import Fusion, Group
from graphc.passes.operands import (
    Buffers,
    Checks,
    Expressions,
    LoweredStep,
    label_of,
    locations_of,
)
from graphc.passes.views import View


def lower_nest(fusion: Fusion, group: Group) -> list[LoweredStep]:
    """One kernel per nest."""
    head = group.head
    nest = Nest([t.type for t in head.inputs], [t.type for t in head.outputs])
    head.op.lower(nest, **head.attrs)
    checks = Checks()
    checks.scalars.checks.extend(nest.checks)
    checks.attribute(next(i for i, t in enumerate(group.members) if t.node is head), head)
    buffers = Buffers()
    numbering = [buffers.of(fusion.views.of(t).base) for t in head.inputs]
    written = {s.access.buf for stage in nest.stages for s in stage.stores}
    for i, t in enumerate(head.outputs):
        stored_here = len(head.inputs) + i in written
        wanted = stored_here or id(t) in fusion.stored
        numbering.append(buffers.of(t, write=True) if wanted else -1)
    renumber = _Renumber(fusion, nest, head.inputs, numbering)
    stages = [renumber.stage(s) for s in nest.stages]

    def terms_of(view: View, reduced: bool) -> tuple[tuple[Term, ...], Any]:
        return _par_terms(nest, view.strides), view.offset

    expressions = Expressions(fusion, group, buffers, checks, terms_of)
    for i, expr in nest.results.items():
        expressions.made[id(head.outputs[i])] = renumber.expr(expr)
    stores = []
    for t in group.members:
        if t.node is not head:
            expressions.elementwise(t, False)
        elif id(t) not in expressions.made:
            continue  # the nest stores it itself
        if id(t) in fusion.stored:
            buffer = buffers.of(t, write=True)
            access = Access(buffer, _par_terms(nest, contiguous(t.dims)))
            stores.append(Store(access, expressions.made[id(t)]))
    if stores:
        stages.append(Stage((), (), tuple(stores)))
    kernel = _kernel(nest, buffers, stages, len(checks.sites))
    step = LoweredStep(
        kernel,
        tuple(buffers.values),
        tuple(buffers.written),
        label_of(group),
        locations_of(group),
        tuple(checks.sites),
    )
    return [step]


def _par_terms(nest: Nest, strides: Sequence[Any]) -> tuple[Term, ...]:
    return tuple(Term(place, s) for place, s in zip(nest.places, strides, strict=True) if s != 0)


def _kernel(nest: Nest, buffers: Buffers, stages: Sequence[Stage], checks: int) -> LoopKernel:
    """The nest as a kernel: the vector axis is the last parallel one, of at least size 1.

    Axes known to be of size 1 come before it: they would leave lanes unused.
    """
    axes, par = list(nest.axes), nest.par
    if not par:
        axes.append(1)
        par = (len(axes) - 1,)
    longer = [a for a in par if axes[a] != 1]
    if longer:
        ones = [a for a in par if axes[a] == 1]
        par = (*longer[:-1], *ones, longer[-1])
    return LoopKernel(tuple(axes), par, par[-1], buffers.dtypes(), tuple(stages), (), checks)


class _Renumber:
    """Rewrites a nest's expressions from operand numbers to kernel buffers."""

    def __init__(
        self, fusion: Fusion, nest: Nest, inputs: Sequence[Tensor], numbering: Sequence[int]
    ) -> None:
        self.fusion = fusion
        self.nest = nest
        self.inputs = inputs
        self.numbering = numbering
        self.done: dict[int, Expr] = {}

    def access(self, access: Access) -> Access:
        return replace(access, buf=self.numbering[access.buf])

    def expr(self, e: Expr) -> Expr:
        found = self.done.get(id(e))
        if found is not None:
            return found
        args = tuple(self.expr(a) for a in e.args)
        value = e.value
        if e.op in ("load", "gather"):
            access, other = value
            uniform = None
            if e.op == "load" and access.buf < len(self.inputs):
                t = self.inputs[access.buf]
                guarded = any(term.limit is not None for term in access.terms)
                uniform = None if guarded else self.fusion.uniforms.of(t, self.fusion.views)
            if uniform is not None:
                self.done[id(e)] = uniform
                return uniform
            value = (self.access(access), other)
        made = Expr(e.op, args, value, e.dtype)
        self.done[id(e)] = made
        return made

    def stage(self, stage: Stage) -> Stage:
        accs = tuple(Accumulator(a.op, self.expr(a.expr), a.dtype) for a in stage.accs)
        stores = tuple(
            replace(
                s,
                access=self.access(s.access),
                expr=self.expr(s.expr),
                index=None if s.index is None else self.expr(s.index),
            )
            for s in stage.stores
        )
        return Stage(stage.red, accs, stores)
