"""Keeping: steps that follow from variables and constants alone, whose results stay between runs.

    before:  t = w * mask        after:  made once, and again when w or mask changes:  t = w * mask
             y = x @ t                   in every run:                                 y = x @ t

A step is kept if it reads nothing but constants, variables that the program does not write, and
what other kept steps make; if it cannot fail, and all its sizes are known.  What it makes must be
worth its memory: not much larger than what it was made of.
Imports: groups, lasting, operands, kernel.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from graphc.kernel import Contraction, Kernel
from graphc.node import Tensor
from graphc.passes.groups import Fusion
from graphc.passes.lasting import follows, is_fixed, lasting_variables
from graphc.passes.operands import LoweredStep, Value, value_bytes

GROWTH = 4
"""A value is kept if it is at most this much larger than what it was made of."""

SMALL = 1 << 20
"""Bytes of a value that is kept however little it was made of: a table of positions."""

LEAST_WORK = 16384
"""Element operations, some tens of microseconds, that keeping must save in a run: looking whether
variables have changed takes about one, and a plan of less work is run by native code alone."""

STEP_WORK = 64
"""What starting a step costs, in element operations."""

CONTRACTION_DISCOUNT = 8
"""Multiply-adds of a contraction that cost as much as one element of a loop kernel."""

MOST_SOURCES = 64
"""A value that follows from more variables and constants is not kept."""

Sources = dict[int, Value]
"""Variables and constants that a value follows from, by id."""


@dataclass(frozen=True)
class KeptSteps:
    """steps    make what stays, in order          rest  the steps of every run
    values   what stays: made by `steps`, read by `rest`
    sources  for each value the variables it follows from
    """

    steps: list[LoweredStep]
    rest: list[LoweredStep]
    values: list[Value]
    sources: list[list[Tensor]]


def find_kept(fusion: Fusion, steps: Sequence[LoweredStep]) -> KeptSteps | None:
    """The steps whose values are worth keeping, and the rest in the same order; None if none are.

    Two walks over the steps: forward for what follows from state alone, backward for what of that
    is worth its memory.  Keeps: order.
    """
    if not fusion.program.inputs:
        return None
    found = _Search(fusion, steps)
    chosen = found.worthwhile()
    if sum(_work(k) for i in chosen for k in steps[i].kernels) < LEAST_WORK:
        return None
    rest = [s for i, s in enumerate(steps) if i not in chosen]
    read = {id(v) for s in rest for v in s.args}
    kept = [steps[i] for i in sorted(chosen)]
    values = [v for s in kept for v in (s.args[w] for w in s.writes) if id(v) in read]
    variables = {id(v) for v in fusion.program.variables()}
    sources = [
        [v for k, v in found.sources[id(value)].items() if isinstance(v, Tensor) and k in variables]
        for value in values
    ]
    return KeptSteps(kept, rest, values, sources)


class _Search:
    """Which steps could be kept, and from what the values they make follow."""

    def __init__(self, fusion: Fusion, steps: Sequence[LoweredStep]) -> None:
        program = fusion.program
        self.steps = steps
        self.leaves = lasting_variables(program)
        self.outside = {id(fusion.views.of(t).base) for t in program.roots}
        self.sources: dict[int, Sources] = {}  # of every value that could be kept
        writers: dict[int, int] = {}
        for s in steps:
            for w in s.writes:
                writers[id(s.args[w])] = writers.get(id(s.args[w]), 0) + 1
        self.outside.update(v for v, n in writers.items() if n > 1)
        self.possible = [self._follow(s) for s in steps]

    def _follow(self, step: LoweredStep) -> bool:
        """Whether the step follows from variables and constants alone; notes from which."""
        made = [step.args[w] for w in step.writes]
        if any(id(v) in self.outside or not isinstance(value_bytes(v), int) for v in made):
            return False
        sources: Sources = {}
        for j, value in enumerate(step.args):
            if j in step.writes:
                continue
            known = self.sources.get(id(value))
            if known is not None:
                sources.update(known)
            elif id(value) in self.leaves or is_fixed(value):
                sources[id(value)] = value
            else:
                return False
        if len(sources) > MOST_SOURCES or not follows(step):
            return False
        self.sources.update((id(v), sources) for v in made)
        return True

    def worthwhile(self) -> set[int]:
        """The steps that are kept: what others read of them is worth its memory."""
        chosen: set[int] = set()
        needed: set[int] = set()  # values that steps of every run read
        for i in reversed(range(len(self.steps))):
            step = self.steps[i]
            made = [step.args[w] for w in step.writes]
            if self.possible[i] and all(id(v) not in needed or self._is_worth(v) for v in made):
                chosen.add(i)
            else:
                needed.update(id(v) for j, v in enumerate(step.args) if j not in step.writes)
        return chosen

    def _is_worth(self, value: Value) -> bool:
        """Whether a value may stay in memory between runs."""
        size = value_bytes(value)
        sources = [value_bytes(v) for v in self.sources[id(value)].values()]
        whole = sum(n for n in sources if isinstance(n, int))
        return isinstance(size, int) and size <= max(SMALL, GROWTH * whole)


def _work(kernel: Kernel) -> float:
    """Element operations of a kernel whose sizes are known."""
    points = math.prod(n for n in kernel.axes if isinstance(n, int))
    return points / (CONTRACTION_DISCOUNT if isinstance(kernel, Contraction) else 1) + STEP_WORK
