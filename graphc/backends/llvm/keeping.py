"""What stays between runs, made: the steps of `Plan.keeping` that values which are stale need.

A value is named by a hash of how it is made, so that plans of a session that make the same one
share it.  Imports: tables, team, traced, driver, base, cache, plan.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from graphc.backends.base import Made, timed_out
from graphc.backends.llvm.driver import HEADER_WORDS, STEP_WORDS
from graphc.backends.llvm.memory import Array
from graphc.backends.llvm.tables import Context, PlanTables, default_workers
from graphc.backends.llvm.team import team
from graphc.backends.llvm.traced import run_traced
from graphc.cache import digest
from graphc.plan import Plan, Ref, Step
from graphc.statistics import count
from graphc.trace import Trace

_BLOCKS = 4
"""The word of a step that holds its number of blocks; the driver passes over one that has none."""


def _same_result(a: Step, b: Step) -> bool:
    """Whether two steps in a row each make a part of the same values."""
    return (a.args, a.writes) == (b.args, b.writes)


@dataclass(frozen=True)
class _Recipe:
    """How a place came to hold what it holds: by which step, as what, from which variables."""

    step: int
    name: bytes
    variables: tuple[int, ...]


class Keeping:
    """Makes what a plan keeps.

    names  of the kernels' code; without them no other plan is known to make the same values
    """

    def __init__(self, plan: Plan, functions: Sequence[int], names: Sequence[str]) -> None:
        assert plan.keeping is not None
        self._plan = plan.keeping
        # the tables own the constants, of which a layout knows the addresses only
        self._tables = PlanTables(plan.keeping, functions, default_workers())
        self._layout = self._tables.bind({})
        self._steps: list[set[int]] = []  # by step those whose results it reads
        self._recipes = self._follow(names)

    def _follow(self, names: Sequence[str]) -> list[_Recipe]:
        """How each output is made."""
        found: dict[Ref, _Recipe] = {}
        for i, step in enumerate(self._plan.steps):
            reads = [r for j, r in enumerate(step.args) if j not in step.writes]
            if i and _same_result(self._plan.steps[i - 1], step):
                reads += [step.args[w] for w in step.writes]
            made = [found[r] for r in reads if r in found]
            self._steps.append({m.step for m in made})
            name, variables = self._name(step, reads, found, names)
            for w in step.writes:
                found[step.args[w]] = _Recipe(i, digest(name, str(w)), variables)
        return [found[Ref("output", i)] for i in range(len(self._plan.outputs))]

    def _name(
        self,
        step: Step,
        reads: Sequence[Ref],
        found: dict[Ref, _Recipe],
        names: Sequence[str],
    ) -> tuple[bytes, tuple[int, ...]]:
        """The name of what a step makes, in which variables are numbered as they first come."""
        variables: dict[int, int] = {}
        code = names[step.kernel] if names else f"{id(self)}.{step.kernel}"
        parts: list[bytes | str] = [code, repr((step.sizes, step.blocks))]
        for ref in reads:
            if ref.kind == "constant":
                array = self._plan.constants[ref.index]
                parts += [f"constant {array.dtype} {array.shape}", array.tobytes()]
                continue
            recipe = found.get(ref)
            own = (ref.index,) if recipe is None else recipe.variables
            numbers = [variables.setdefault(v, len(variables)) for v in own]
            parts += [b"variable" if recipe is None else recipe.name, repr(numbers)]
        return digest(*parts), tuple(variables)

    def made(self) -> list[Made]:
        """What each value is: equal for equal values, whichever plans make them."""
        return [Made(r.name, r.variables) for r in self._recipes]

    def make(
        self,
        wanted: Collection[int],
        outputs: Sequence[Array],
        state: Sequence[Array],
        memory: Array,
        threads: int,
        trace: Trace | None,
        deadline: float | None,
    ) -> None:
        """Make the values of these numbers, into their arrays, with scratch memory lent for it."""
        needed: set[int] = set()
        pending = [self._recipes[i].step for i in wanted]
        while pending:
            i = pending.pop()
            if i not in needed:
                needed.add(i)
                pending += self._steps[i]
        context = Context(self._layout, memory)
        rows = context.words[HEADER_WORDS : self._layout.places.args].reshape(-1, STEP_WORDS)
        for i in range(len(rows)):
            if i not in needed:
                rows[i, _BLOCKS] = 0
        arrays = [*state, *outputs]
        context.enter(arrays, deadline)
        if trace is not None:
            run_traced(self._plan, self._layout, context, arrays, trace, needed)
        elif team().run(context.address, threads):
            raise timed_out()
        count("kept_steps", len(needed))
