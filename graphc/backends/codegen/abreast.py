"""Rows summed side by side: a matrix times a vector.

Memory hands out several rows at a time faster than one after the other.  So that the sums fit the
registers each row has a share of the virtual lanes, whether others are beside it or not: its bits
do not depend on that.  Imports: evaluate, numbering, reducers, stages, text, kernel.
"""

from __future__ import annotations

from collections.abc import Sequence

from graphc.backends.codegen.evaluate import Evaluator
from graphc.backends.codegen.numbering import Numbering
from graphc.backends.codegen.reducers import (
    State,
    across_lanes,
    combine,
    final,
    initial,
    masked,
    state_types,
)
from graphc.backends.codegen.stages import StageEmitter
from graphc.backends.codegen.text import LANES, FunctionText
from graphc.kernel import LoopKernel, row_axis


def emit_abreast(f: FunctionText, kernel: LoopKernel, numbering: Numbering) -> None:
    """The body of a kernel with `abreast` rows: a block is so many of them."""
    _Rows(f, kernel, numbering).emit()


class _Rows:
    """An evaluator for each of the rows that are side by side."""

    def __init__(self, f: FunctionText, kernel: LoopKernel, numbering: Numbering) -> None:
        self.f, self.kernel = f, kernel
        self.summing, self.storing = kernel.stages
        (self.acc,) = self.summing.accs
        self.values = [Evaluator(f, kernel, numbering) for _ in range(kernel.abreast)]
        self.stages = StageEmitter(f, kernel, numbering, self.values[0])

    def emit(self) -> None:
        f, most = self.f, self.kernel.abreast
        begin = f.mul("%b0", most)
        end = f.smin(f.mul("%b1", most), f.dim(self.kernel.axes[row_axis(self.kernel)]))
        whole = f.add(begin, f.value(f"and i64 {f.sub(end, begin)}, {-most}"))
        self._hoist(self.values)
        for start, stop, count in ((begin, whole, most), (whole, end, 1)):
            loop = f.open_loop(start, stop, count)
            self._side_by_side(loop.index, self.values[:count])
            f.close_loop(loop)

    def _hoist(self, values: Sequence[Evaluator]) -> None:
        for row in values:
            for stage in range(len(self.kernel.stages)):
                row.hoist(stage, 1)

    def _side_by_side(self, first: str, values: Sequence[Evaluator]) -> None:
        """As many rows as evaluators, from one on."""
        others = dict.fromkeys(self.kernel.par, "0")
        for i, row in enumerate(values):
            index = {**others, row_axis(self.kernel): self.f.add(first, i)}
            row.enter(index, range(len(self.kernel.stages)))
        self._hoist(values)
        for row, state in zip(values, self._sums(values), strict=True):
            row.define_acc(0, 0, final(self.f, self.acc, across_lanes(self.f, self.acc, state)))
            row.stores(self.storing.stores, 0)
            row.forget_accs([0])
            row.leave()

    def _sums(self, values: Sequence[Evaluator]) -> list[State]:
        """Of each row, by lanes."""
        axis = self.kernel.vec
        stop = values[0].extent(axis)
        full = self.stages.multiple(axis, stop, LANES)
        states = self._part(values, [initial(self.f, self.acc) for _ in values], "0", full)
        return states if full == stop else self._part(values, states, full, stop, rest=True)

    def _part(
        self,
        values: Sequence[Evaluator],
        states: list[State],
        start: str,
        stop: str,
        *,
        rest: bool = False,
    ) -> list[State]:
        """Add elements from one to another to the sums of rows: whole vectors, or the rest."""
        f = self.f
        kinds = state_types(f, self.acc) * len(values)
        carried = zip(kinds, [x for state in states for x in state], strict=True)
        loop = f.open_loop(start, stop, LANES, list(carried))
        mask = self.stages.tail_mask(f.sub(stop, loop.index)) if rest else None
        following: list[str] = []
        for row, before in zip(values, loop.carried, strict=True):
            following += self._add(row, loop.index, mask, (before,))
        return [(x,) for x in f.close_loop(loop, following)]

    def _add(self, row: Evaluator, index: str, mask: str | None, state: State) -> State:
        """The next LANES elements of a row."""
        row.enter({self.kernel.vec: index}, [0])
        row.mask = mask
        new = masked(self.f, self.acc, mask, (row.value(self.acc.expr, 0),))
        row.mask = None
        row.leave()
        return combine(self.f, self.acc, state, new)
