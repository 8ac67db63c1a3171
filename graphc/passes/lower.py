"""Lowering: each fusion group becomes a kernel (a split reduction: two).

Deep graphs repeat themselves, so a group's signature is computed first: groups that would give the
same kernel share one, and only the values they are launched on differ.
Imports: groups, operands, pack_operands, the lowerings of each kind of group.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, replace
from typing import Any

from graphc.node import Tensor
from graphc.passes.forms import FORMS, Forms
from graphc.passes.groups import Fusion, Group
from graphc.passes.lower_contraction import lower_contraction
from graphc.passes.lower_loop import lower_loop
from graphc.passes.lower_nest import lower_nest
from graphc.passes.operands import LoweredStep, Partial, Value, locations_of
from graphc.passes.pack_operands import CutOf, pack_operands

__all__ = ["CutOf", "LoweredStep", "lower"]


def lower(
    fusion: Fusion,
    cut_of: CutOf | None = None,
    packs: bool = True,
    fast_math: bool = False,
    keep: bool = True,
    forms: Forms = FORMS,
) -> list[LoweredStep]:
    """The steps of a fused program, in an order that respects dependencies.

    With `cut_of` contractions carry their cuts, so that they can share kernels, and if `packs`
    steps pack their operands where that pays in time: it takes memory.
    fast_math  whether rounding errors may be larger than those of the operators' definitions
    keep  whether what is packed of variables that stay as they are is packed once for many runs
    forms  of kernels that the back end wants
    """
    steps: list[LoweredStep] = []
    known: dict[Hashable, _Template] = {}
    for group in fusion.groups:
        signature, values = _signature(fusion, group)
        template = known.get(signature)
        if template is None:
            made = lower_group(fusion, group, fast_math, forms)
            known[signature] = _Template(made, values)
            steps.extend(made)
        else:
            steps.extend(template.on(values, group))
    return steps if cut_of is None else pack_operands(fusion, steps, cut_of, packs, keep)


def lower_group(
    fusion: Fusion, group: Group, fast_math: bool, forms: Forms = FORMS
) -> list[LoweredStep]:
    """The kernel or kernels of one group."""
    if group.kind == "loop":
        return lower_loop(fusion, group)
    if group.kind == "contraction":
        return lower_contraction(fusion, group, fast_math, forms)
    return lower_nest(fusion, group)


class _Template:
    """A lowered group, to be launched again on other values."""

    def __init__(self, steps: list[LoweredStep], values: list[Tensor]) -> None:
        number = {id(v): i for i, v in enumerate(values)}
        self.partials = [
            v for s in steps for v in s.args if isinstance(v, Partial) and id(v) not in number
        ]
        self.rows = [
            (s, tuple(v if isinstance(v, Partial) else number[id(v)] for v in s.args))
            for s in steps
        ]

    def on(self, values: list[Tensor], group: Group) -> list[LoweredStep]:
        fresh: dict[int, Partial] = {}
        steps = []
        locs = locations_of(group)
        for s, numbers in self.rows:
            args: list[Value] = []
            for n in numbers:
                if isinstance(n, Partial):
                    if id(n) not in fresh:
                        fresh[id(n)] = replace(n)
                    args.append(fresh[id(n)])
                else:
                    args.append(values[n])
            checks = tuple(replace(c, loc=group.members[c.member].node.loc) for c in s.checks)
            steps.append(replace(s, args=tuple(args), locs=locs, checks=checks))
        return steps


@dataclass
class _Numbering:
    """Numbers tensors in order of appearance."""

    number: dict[int, int]
    values: list[Tensor]

    def of(self, t: Tensor) -> int:
        found = self.number.get(id(t))
        if found is None:
            found = self.number[id(t)] = len(self.values)
            self.values.append(t)
        return found


def _signature(fusion: Fusion, group: Group) -> tuple[Hashable, list[Tensor]]:
    """What determines a group's kernel, and the tensors it is about in order of appearance."""
    names = _Numbering({}, [])
    rows: list[Any] = [group.kind, group.shape, group.red, group.split]
    views, uniforms = fusion.views, fusion.uniforms
    for t in group.members:
        node = t.node
        row: list[Any] = [
            node.op.name,
            t.index,
            t.type,
            group.level[id(t)],
            id(t) in fusion.stored,
            names.of(t),
            node.attrs_key,
        ]
        for place in fusion.placed.get(id(t), ()):
            row.append((names.of(place.into), place.strides, place.offset))
        if node.kind == "view":
            reads = [(t, views.source(t))]
        else:
            reads = [(i, views.of(i)) for i in node.inputs]
        for i, view in reads:
            base = view.base
            row += (uniforms.of(i, views), names.of(base), view.strides, view.offset)
            row.append(_leaf_key(fusion, base))
            if node.kind not in ("elementwise", "view"):
                row.append(i.type)
        rows.append(tuple(row))
    return tuple(rows), names.values


def _leaf_key(fusion: Fusion, base: Tensor) -> Hashable:
    """dtype of an operand's array, and what computes it if it has no memory."""
    if base.node.op.name in ("iota", "sizes") and id(base) not in fusion.group_of:
        return (base.dtype.name, base.node.op.name, base.node.attrs_key)
    return base.dtype.name
