"""Contraction groups: operand maps to a contraction kernel with its epilogue.

Integer products, which no packed kernel computes, become loop kernels of the same maps; the tests
use that form as the oracle of the packed one.
Imports: operands, contraction_axes, phases, fuse, kernel, contraction_maps, lower_channels and the
other forms of contractions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from graphc import dims
from graphc.contraction_maps import ContractionMaps, matmul_maps
from graphc.dims import DimLike
from graphc.kernel import (
    Access,
    Accumulator,
    Contraction,
    Expr,
    Kernel,
    LoopKernel,
    Stage,
    Store,
    Term,
)
from graphc.nest import Index, contiguous
from graphc.node import Node, Tensor
from graphc.passes.contraction_axes import fewest_axes
from graphc.passes.forms import FORMS, Forms
from graphc.passes.groups import Fusion, Group
from graphc.passes.lower_channels import along_channels, loops
from graphc.passes.lower_chunks import Chunked, in_chunks
from graphc.passes.lower_parts import Parts, in_parts
from graphc.passes.lower_turned import Source, turned
from graphc.passes.lower_winograd import winograd_form
from graphc.passes.operands import (
    Buffers,
    Checks,
    Expressions,
    LoweredStep,
    Partial,
    label_of,
    locations_of,
)
from graphc.passes.phases import phases
from graphc.passes.views import View
from graphc.types import DType

ROW = 16
"""Fewest elements of a row worth a reduction along it: each ends with one across lanes."""


def maps_of(node: Node) -> ContractionMaps:
    """How a contraction operator's axes address its operands."""
    types = [t.type for t in node.inputs]
    out = node.types[0]
    if node.op.name == "matmul":
        a, b = types
        return matmul_maps(a, b, out, **node.attrs)
    maps: ContractionMaps = node.op.lower(types, out, node.attrs)
    return maps


def lower_contraction(
    fusion: Fusion, group: Group, fast_math: bool = False, forms: Forms = FORMS
) -> list[LoweredStep]:
    """A step of one kernel, or of one for each phase of the result."""
    maps = maps_of(group.head)
    sources = _sources(fusion, group, maps.swap)
    before: list[LoweredStep] = []
    other = None
    if group.head.types[0].dtype.is_float:
        other = turned(maps, sources[1], locations_of(group))
    if other is not None:
        maps, sources, before = other.maps, (sources[0], other.source), [other.step]
    whole = _Contraction(fusion, group, maps, sources, fast_math, forms)
    steps = whole.steps()
    parts = phases(maps)
    if len(parts) == 1 or whole.checks.sites or not group.head.types[0].dtype.is_float:
        return before + steps
    first, *rest = (
        _Contraction(fusion, group, part, sources, fast_math, forms).step() for part in parts
    )
    return [*before, replace(first, others=tuple(s.kernel for s in rest))]


def _sources(fusion: Fusion, group: Group, swap: bool) -> tuple[Source, Source]:
    """The operands A and B."""
    a, b = reversed(group.head.inputs[:2]) if swap else group.head.inputs[:2]
    return _source(fusion, a), _source(fusion, b)


def _source(fusion: Fusion, t: Tensor) -> Source:
    view = fusion.views.of(t)
    return Source(view.base, view.strides, view.offset, t.dims)


class _Contraction:
    def __init__(
        self,
        fusion: Fusion,
        group: Group,
        maps: ContractionMaps,
        sources: tuple[Source, Source],
        fast_math: bool,
        forms: Forms,
    ) -> None:
        self.fusion = fusion
        self.fast_math = fast_math
        self.forms = forms
        self.group = group
        self.maps = maps
        self.buffers = Buffers()
        self.checks = Checks()
        self.channels: Contraction | None = None  # see lower_channels
        self.sources = sources
        self.sums_nothing = out_of_reach(maps, group.head.types[0].dtype)

    def steps(self) -> list[LoweredStep]:
        """A step, or two of a long sum."""
        step = self.step()
        if self.channels is not None:
            chunked = in_chunks(self.channels)
            return [step] if chunked is None else _in_two(step, chunked, "chunk")
        parts = None
        if isinstance(step.kernel, Contraction):
            parts = in_parts(step.kernel, self.forms.shares)
        return [step] if parts is None else _in_two(step, parts, "part")

    def step(self) -> LoweredStep:
        a = self._operand(0, self.maps.a)
        b = self._operand(1, self.maps.b)
        stores = self._stores()
        kernel = self._kernel(a, b, stores)
        label = label_of(self.group)
        if isinstance(kernel, Contraction) and kernel.winograd:
            label += f" (winograd F({kernel.winograd}x{kernel.winograd},3x3))"
        return LoweredStep(
            kernel,
            tuple(self.buffers.values),
            tuple(self.buffers.written),
            label,
            locations_of(self.group),
            tuple(self.checks.sites),
        )

    def _operand(self, which: int, index: Sequence[Index]) -> Access:
        source = self.sources[which]
        # A and B are buffers 0 and 1 even when they are the same array
        buffer = len(self.buffers.values)
        self.buffers.values.append(source.value)
        offset = source.offset
        terms = []
        for i, stride, size in zip(index, source.strides, source.shape, strict=True):
            if i.guarded:
                terms.append(Term(i.axes, stride, i.shift, i.div, size))
                continue
            offset = dims.add(offset, dims.mul(i.shift, stride))
            if i.axes and stride != 0:
                terms.append(Term(i.axes, stride))
        return Access(buffer, tuple(terms), offset)

    def _terms(self, view: View, reduced: bool) -> tuple[tuple[Term, ...], DimLike]:
        return self._out_terms(view.strides), dims.add(view.offset, self._moved(view.strides))

    def _moved(self, strides: Sequence[DimLike]) -> DimLike:
        """Where the first element lies that is computed, in elements."""
        shifts = self.maps.shift or (0,) * len(strides)
        return dims.total(dims.mul(n, s) for n, s in zip(shifts, strides, strict=True))

    def _out_terms(self, strides: Sequence[DimLike]) -> tuple[Term, ...]:
        return tuple(
            Term(tuple(axes), s)
            for axes, s in zip(self.maps.out, strides, strict=True)
            if s != 0 and axes
        )

    def _stores(self) -> tuple[Store, ...]:
        expressions = Expressions(self.fusion, self.group, self.buffers, self.checks, self._terms)
        out = self.group.head.outputs[0]
        nothing = Expr("const", (), 0.0, out.dtype)
        sums = Expr("acc", (), 0, out.dtype)
        expressions.made[id(out)] = nothing if self.sums_nothing else sums
        stores = []
        for t in self.group.members:
            if t is not out:
                expressions.elementwise(t, False)
            if id(t) in self.fusion.stored:
                terms, start = self._terms(View(t, contiguous(t.dims)), False)
                access = Access(self.buffers.of(t, write=True), terms, start)
                stores.append(Store(access, expressions.made[id(t)]))
        return tuple(stores)

    def _kernel(self, a: Access, b: Access, stores: tuple[Store, ...]) -> Kernel:
        m = self.maps
        dtype = self.group.head.types[0].dtype
        bufs = self.buffers.dtypes()
        axes = (*m.batch, *m.m, *m.n, *m.k)
        outer = len(axes) - len(m.k)
        if self.sums_nothing:
            return _map(axes[:outer], bufs, stores, len(self.checks.sites))
        rows = self._by_rows(a, b)
        if dtype.is_float and not self.checks.sites and not rows:
            c = Contraction(m.batch, m.m, m.n, m.k, a, b, bufs, stores, dtype)
            if self.forms.winograd:
                filtered = winograd_form(c, m, self.sources[0].shape, self.fast_math)
                if filtered is not None:
                    return filtered
            c = fewest_axes(c)
            self.channels = along_channels(c)
            return c if self.channels is None else loops(self.channels)
        product = Expr("load", (), (a, 0), dtype) * Expr("load", (), (b, 0), dtype)
        red = tuple(range(outer, len(axes)))
        stages = (
            Stage(red, (Accumulator("sum", product, dtype),)),
            Stage((), (), stores),
        )
        if not red:  # an inner size of nothing: one empty step
            axes = (*axes, 1)
            stages = (Stage((len(axes) - 1,), stages[0].accs), stages[1])
        par = tuple(range(outer))
        if not par:
            axes = (*axes, 1)
            par = (len(axes) - 1,)
        vec, checks = red[-1] if rows else par[-1], len(self.checks.sites)
        abreast = self.forms.abreast if rows and self._may_be_abreast(dtype) else 1
        return LoopKernel(axes, par, vec, bufs, stages, (), checks, abreast)

    def _may_be_abreast(self, dtype: DType) -> bool:
        """Whether rows of floats can be summed side by side, where that has a meaning."""
        long = [n for n in (*self.maps.batch, *self.maps.m, *self.maps.n) if n != 1]
        if not dtype.is_float or self.checks.sites or len(long) != 1:
            return False
        return not isinstance(long[0], int) or long[0] >= self.forms.abreast

    def _by_rows(self, a: Access, b: Access) -> bool:
        """Whether this is a matrix times a vector, or several, with contiguous rows to sum.

        Each element of the matrix is used once then, so nothing repays packing.
        """
        m = self.maps
        if len(m.k) != 1 or (isinstance(m.k[0], int) and m.k[0] < ROW):
            return False
        if dims.product(m.m) != 1 and dims.product(m.n) != 1:
            return False
        k = len(m.batch) + len(m.m) + len(m.n)
        return all(_is_contiguous(access, k) for access in (a, b))


def _in_two(step: LoweredStep, split: Chunked | Parts, unit: str) -> list[LoweredStep]:
    """The step that sums over chunks or parts, and the one that sums what those give."""
    between = Partial(f"{step.label} per {unit}", step.args[0].dtype, split.shape)
    first = (*step.args[:2], between)
    last = replace(
        step, kernel=split.last, args=(*step.args, between), label=f"{step.label} combined"
    )
    return [LoweredStep(split.first, first, (2,), f"{step.label} by {unit}s", step.locs), last]


def out_of_reach(maps: ContractionMaps, dtype: DType) -> bool:
    """Whether there is nothing to sum: the result is the epilogue of 0."""
    return dtype.is_float and 0 in maps.k


def _map(
    axes: tuple[DimLike, ...], bufs: tuple[DType, ...], stores: tuple[Store, ...], checks: int
) -> LoopKernel:
    axes = axes or (1,)
    par = tuple(range(len(axes)))
    return LoopKernel(axes, par, par[-1], bufs, (Stage((), (), stores),), (), checks)


def _is_contiguous(access: Access, axis: int) -> bool:
    """Whether steps along an axis move by one element, whatever is inside."""
    moves = [(c, t) for t in access.terms for moved, c in t.axes if moved == axis]
    return (
        len(moves) == 1
        and all(c == 1 and t.stride == 1 for c, t in moves)
        and all(t.limit is None for t in access.terms)
    )
