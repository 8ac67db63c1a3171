"""Loop groups to loop kernels: axes, stages, and split reductions.

Imports: operands, groups, keep_values, lower_transpose, kernel, dims.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from graphc import dims
from graphc.dims import DimLike
from graphc.kernel import Access, Accumulator, Expr, LoopKernel, Ragged, Stage, Store, Term
from graphc.nest import contiguous
from graphc.node import Tensor
from graphc.passes.groups import ACC, FULL, REDUCED, Fusion, Group, Place
from graphc.passes.keep_values import keep_values
from graphc.passes.lower_transpose import by_columns
from graphc.passes.operands import (
    Buffers,
    Checks,
    Expressions,
    LoweredStep,
    Partial,
    label_of,
    locations_of,
)
from graphc.passes.views import View
from graphc.types import Shape

Strides = tuple[DimLike, ...]


def lower_loop(fusion: Fusion, group: Group) -> list[LoweredStep]:
    """One kernel, or two if the group's reductions are split."""
    builder = _Loop(fusion, group)
    return builder.split() if group.split else [builder.whole()]


@dataclass
class Axes:
    """Kernel axes: maximal runs of domain axes that every access treats as one."""

    extents: list[DimLike]
    last: list[int]  # the last domain axis of each run: its stride is the run's
    red: tuple[int, ...]
    par: tuple[int, ...]


def merge_axes(shape: Shape, red: Sequence[int], strides: Sequence[Strides]) -> Axes:
    """Merge adjacent axes wherever all strides allow; axes of size 1 vanish."""
    runs: list[list[int]] = []
    for a, d in enumerate(shape):
        if d == 1:
            continue
        if runs:
            p = runs[-1][-1]
            if (p in red) == (a in red) and all(
                s[p] is (m := dims.mul(s[a], d)) or s[p] == m for s in strides
            ):
                runs[-1].append(a)
                continue
        runs.append([a])
    extents = [dims.product(shape[a] for a in run) for run in runs]
    reduced = tuple(j for j, run in enumerate(runs) if run[0] in red)
    par = tuple(j for j in range(len(runs)) if j not in reduced)
    return Axes(extents, [run[-1] for run in runs], reduced, par)


class _Loop:
    def __init__(self, fusion: Fusion, group: Group) -> None:
        self.fusion = fusion
        self.group = group
        self.shape = group.shape
        self.red = group.red or ()
        self.kept = group.kept
        self.buffers = Buffers()
        self.checks = Checks()
        self.axes = merge_axes(self.shape, self.red, self._all_strides())
        self.chunk: tuple[int, int, DimLike] | None = None  # (run, chunk axis, rows per chunk)
        self.expressions = Expressions(fusion, group, self.buffers, self.checks, self._terms)

    # ---- axes and addresses

    def _all_strides(self) -> list[Strides]:
        found: list[Strides] = []
        for t in self.group.members:
            reduced = self.group.level[id(t)] == REDUCED
            for view in self._reads(t):
                found.append(self._over_domain(view.strides, reduced))
            if id(t) in self.fusion.stored:
                kept = self.group.level[id(t)] != FULL
                found.append(self._over_domain(contiguous(t.dims), kept))
            found.extend(place.strides for place in self.fusion.placed.get(id(t), ()))
        return found

    def _reads(self, t: Tensor) -> list[View]:
        views = self.fusion.views
        if t.node.kind == "view":
            if self.fusion.uniforms.of(t, views) is not None:
                return []
            return [views.source(t)]
        if t.node.kind in ("leaf", "state"):
            return [View(t, contiguous(t.dims))]
        found = []
        for i in t.node.inputs:
            if self.fusion.uniforms.of(i, views) is not None:
                continue
            view = views.of(i)
            if id(view.base) not in self.group.level:
                found.append(view)
        return found

    def _over_domain(self, strides: Strides, kept_only: bool) -> Strides:
        """Strides over the kept axes as strides over the whole domain."""
        if not kept_only:
            return strides
        inner = iter(strides)
        return tuple(0 if a in self.red else next(inner) for a in range(len(self.shape)))

    def _terms(self, view: View, reduced: bool) -> tuple[tuple[Term, ...], DimLike]:
        return self._terms_of(self._over_domain(view.strides, reduced)), view.offset

    def _terms_of(self, strides: Strides) -> tuple[Term, ...]:
        terms = []
        for j, a in enumerate(self.axes.last):
            if strides[a] == 0:
                continue
            axes: tuple[tuple[int, DimLike], ...] = ((j, 1),)
            if self.chunk is not None and j == self.chunk[0]:
                axes = ((j, 1), (self.chunk[1], self.chunk[2]))
            terms.append(Term(axes, strides[a]))
        return tuple(terms)

    # ---- expressions

    def _stage_numbers(self) -> dict[int, int]:
        """For each member, the first stage in which it can be computed."""
        ready: dict[int, int] = {}
        for t in self.group.members:
            needs = 0
            if t.node.kind not in ("view", "leaf", "state"):
                for i in t.node.inputs:
                    base = self.fusion.views.of(i).base
                    needs = max(needs, ready.get(id(base), 0))
            ready[id(t)] = needs + 1 if self.group.level[id(t)] == ACC else needs
        return ready

    def _compute(self) -> tuple[list[list[Accumulator]], dict[int, int], list[Tensor]]:
        """Build all expressions; returns accumulators by stage, readiness, and acc members."""
        ready = self._stage_numbers()
        accs = [t for t in self.group.members if self.group.level[id(t)] == ACC]
        accs.sort(key=lambda t: ready[id(t)])
        number = {id(t): i for i, t in enumerate(accs)}
        count = max([ready[id(t)] for t in accs], default=0)
        stages: list[list[Accumulator]] = [[] for _ in range(count)]
        made: dict[int, Accumulator] = {}
        for t in self.group.members:
            level = self.group.level[id(t)]
            if level != ACC:
                self.expressions.elementwise(t, level == REDUCED)
                continue
            x = self.expressions.operand(t.node.inputs[0], False)
            made[id(t)] = Accumulator(t.node.op.lower, x, t.dtype)
            self.expressions.made[id(t)] = Expr("acc", (), number[id(t)], t.dtype)
        for t in accs:
            stages[ready[id(t)] - 1].append(made[id(t)])
        return stages, ready, accs

    def _store(self, t: Tensor, strides: Strides) -> Store:
        buffer = self.buffers.of(t, write=True)
        return Store(Access(buffer, self._terms_of(strides)), self.expressions.made[id(t)])

    def _store_part(self, t: Tensor, place: Place) -> Store:
        buffer = self.buffers.of(place.into, write=True)
        access = Access(buffer, self._terms_of(place.strides), place.offset)
        return Store(access, self.expressions.made[id(t)])

    # ---- kernels

    def whole(self) -> LoweredStep:
        """The group as one kernel."""
        accs, ready, _ = self._compute()
        full: dict[int, list[Store]] = {}
        reduced: list[Store] = []
        for t in self.group.members:
            for place in self.fusion.placed.get(id(t), ()):
                full.setdefault(ready[id(t)], []).append(self._store_part(t, place))
            if id(t) not in self.fusion.stored:
                continue
            if self.group.level[id(t)] == FULL:
                full.setdefault(ready[id(t)], []).append(self._store(t, contiguous(t.dims)))
            else:
                reduced.append(self._store(t, self._over_domain(contiguous(t.dims), True)))
        count = max([len(accs), *(s + 1 for s in full)], default=0)
        stages = [
            Stage(
                self.axes.red,
                tuple(accs[s]) if s < len(accs) else (),
                tuple(full.get(s, ())),
            )
            for s in range(count)
        ]
        if reduced:
            stages.append(Stage((), (), tuple(reduced)))
        kernel = keep_values(by_columns(self._kernel(stages, self.axes.par)))
        return self._step(kernel, label_of(self.group))

    def _kernel(
        self, stages: Sequence[Stage], par: tuple[int, ...], ragged: tuple[Ragged, ...] = ()
    ) -> LoopKernel:
        extents = list(self.axes.extents)
        if self.chunk is not None:
            r0, _, rows = self.chunk
            extents.append(dims.ceildiv(extents[r0], rows))
        if not extents:  # a scalar
            extents, par = [1], (0,)
        vec = len(self.axes.extents) - 1 if self.axes.extents else 0
        return LoopKernel(
            tuple(extents),
            par,
            vec,
            self.buffers.dtypes(),
            tuple(stages),
            ragged,
            len(self.checks.sites),
        )

    def _step(self, kernel: LoopKernel, label: str) -> LoweredStep:
        return LoweredStep(
            kernel,
            tuple(self.buffers.values),
            tuple(self.buffers.written),
            label,
            locations_of(self.group),
            tuple(self.checks.sites),
        )

    def split(self) -> list[LoweredStep]:
        """Reduce chunks of the first reduce axis in parallel, then reduce the chunks in order.

        Rows per chunk depend on sizes only, so neither threads nor what is known change bits.
        """
        axes = self.axes
        r0 = axes.red[0]
        inner = dims.product(e for j, e in enumerate(axes.extents) if j != r0)
        rows = dims.maximum(1, dims.floordiv(self.fusion.chunk, dims.maximum(inner, 1)))
        chunk_axis = len(axes.extents)
        self.chunk = (r0, chunk_axis, rows)
        chunks = dims.ceildiv(axes.extents[r0], rows)
        accs, _, acc_members = self._compute()
        assert len(accs) == 1
        kept = tuple(axes.extents[j] for j in axes.par)
        partials = [
            Partial(f"{t.node.op.name} per chunk", t.dtype, (chunks, *kept)) for t in acc_members
        ]
        stores = tuple(
            self._store(t, contiguous(t.dims))
            for t in self.group.members
            if id(t) in self.fusion.stored and self.group.level[id(t)] == FULL
        )
        over = (chunk_axis, *axes.par)
        outs = []
        for i, p in enumerate(partials):
            terms = tuple(
                Term(((a, 1),), s) for a, s in zip(over, contiguous(p.shape), strict=True)
            )
            access = Access(self.buffers.of(p, write=True), terms)
            outs.append(Store(access, Expr("acc", (), i, p.dtype)))
        stages = (Stage(axes.red, tuple(accs[0]), stores), Stage((), (), tuple(outs)))
        ragged = (Ragged(r0, chunk_axis, rows, axes.extents[r0]),)
        kernel = self._kernel(stages, over, ragged)
        first = self._step(kernel, label_of(self.group) + " by chunks")
        return [first, _Final(self.fusion, self.group, acc_members, partials, chunks).step()]


class _Final(_Loop):
    """The second kernel of a split reduction: chunks in order, then the reduced members."""

    def __init__(
        self,
        fusion: Fusion,
        group: Group,
        accs: Sequence[Tensor],
        partials: Sequence[Partial],
        chunks: DimLike,
    ) -> None:
        self.accs = list(accs)
        self.partials = list(partials)
        self.kept_dims = group.kept_shape
        super().__init__(fusion, group)
        self.shape = (chunks, *self.kept_dims)
        self.red = (0,)
        self.kept = tuple(range(1, len(self.shape)))
        strides = [self._over_domain(s, True) for s in self._kept_strides()]
        strides.append(contiguous(self.shape))
        self.axes = merge_axes(self.shape, self.red, strides)
        if not self.axes.red:  # a single chunk, known beforehand
            self.axes = Axes(
                [1, *self.axes.extents],
                [0, *self.axes.last],
                (0,),
                tuple(j + 1 for j in self.axes.par),
            )

    def _kept_strides(self) -> list[Strides]:
        found: list[Strides] = []
        for t in self.group.members:
            level = self.group.level[id(t)]
            if level == REDUCED:
                found.extend(v.strides for v in self._reads(t))
            if level != FULL and id(t) in self.fusion.stored:
                found.append(contiguous(t.dims))
        return found

    def step(self) -> LoweredStep:
        accs = []
        for i, (t, p) in enumerate(zip(self.accs, self.partials, strict=True)):
            access = Access(self.buffers.of(p), self._terms_of(contiguous(self.shape)))
            load = Expr("load", (), (access, 0), p.dtype)
            accs.append(Accumulator(t.node.op.lower, load, t.dtype))
            self.expressions.made[id(t)] = Expr("acc", (), i, t.dtype)
        stores = []
        for t in self.group.members:
            level = self.group.level[id(t)]
            if level == FULL:
                continue
            if level == REDUCED:
                self.expressions.elementwise(t, True)
            if id(t) in self.fusion.stored:
                stores.append(self._store(t, self._over_domain(contiguous(t.dims), True)))
        stages = (Stage(self.axes.red, tuple(accs)), Stage((), (), tuple(stores)))
        return self._step(self._kernel(stages, self.axes.par), label_of(self.group) + " combined")
