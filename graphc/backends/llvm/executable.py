"""A compiled plan: binds sizes, keeps contexts for reuse, runs.

A plan is read only.  What a run changes lives in a `Context`, taken from a pool for the length of
the run, so any number of threads may run one executable at once.  Imports: jit, contexts, keeping,
tables, team, driver_stop, base, plan.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Mapping, Sequence
from types import MappingProxyType

from graphc.backends.base import Made, fault_error, mark_committed, require_time, timed_out
from graphc.backends.llvm.contexts import IDLE_BYTES, Bound
from graphc.backends.llvm.driver_stop import EXPIRED_RUN
from graphc.backends.llvm.jit import JIT, default_jit, kernel_names
from graphc.backends.llvm.keeping import Keeping
from graphc.backends.llvm.memory import Array
from graphc.backends.llvm.tables import Context, Layout, PlanTables, default_workers
from graphc.backends.llvm.team import team
from graphc.backends.llvm.traced import run_traced
from graphc.dims import Sizes
from graphc.plan import Kept, Plan
from graphc.trace import Trace

BOUND_SIZES = 64
"""How many sets of sizes an executable remembers."""


class LLVMExecutable:
    """A plan and its machine code; see `backends.base.Executable`."""

    residence = None

    def __init__(
        self,
        plan: Plan,
        functions: Sequence[int],
        jit: JIT | None = None,
        names: Sequence[str] = (),
    ) -> None:
        self.plan = plan
        self.names = names  # of the kernels' code
        self._code = (jit, list(functions))  # which hold the machine code
        self._tables = PlanTables(plan, functions, default_workers())
        self._keeping = Keeping(plan, functions, names) if plan.kept else None
        self._atoms = self._tables.atoms
        self._bound: dict[tuple[int | None, ...], Bound] = {}
        self._clock = itertools.count(1)

    def run(
        self,
        inputs: Sequence[Array],
        state: Sequence[Array],
        sizes: Sizes,
        threads: int,
        trace: Trace | None = None,
        deadline: float | None = None,
        kept: Sequence[Array] = (),
    ) -> list[Array]:
        require_time(deadline)
        bound = self._bound.get(tuple(map(sizes.get, self._atoms)))
        if bound is None:
            bound = self._bind(sizes)
        bound.used = next(self._clock)
        outputs = [make() for make in bound.outputs]
        try:
            context = bound.idle.pop()
        except IndexError:
            context = bound.new_context()
        arrays = [*inputs, *state, *kept, *outputs]
        context.enter(arrays, deadline)
        try:
            if trace is None:
                failed = team().run(context.address, threads)
            else:
                failed = run_traced(self.plan, bound.layout, context, arrays, trace)
            if failed:
                raise (
                    timed_out() if failed == EXPIRED_RUN else fault_error(self.plan, context.faults)
                )
        except BaseException as error:
            if context.committed:
                mark_committed(error)
            raise
        finally:
            bound.keep(context)
        return outputs

    # ---- what stays between runs

    @property
    def kept(self) -> tuple[Kept, ...]:
        """The values it keeps, in the order in which runs take them."""
        return self.plan.kept

    def made(self) -> list[Made]:
        """What they are: equal for equal values of whatever executables."""
        return [] if self._keeping is None else self._keeping.made()

    def make_kept(
        self,
        wanted: Collection[int],
        kept: Sequence[Array],
        state: Sequence[Array],
        sizes: Sizes,
        threads: int,
        trace: Trace | None = None,
        deadline: float | None = None,
    ) -> None:
        """Make some of them, in the arena that the run with these sizes will have."""
        require_time(deadline)
        if self._keeping is None:
            return
        bound = self._bound.get(tuple(map(sizes.get, self._atoms))) or self._bind(sizes)
        try:
            context = bound.idle.pop()
        except IndexError:
            context = bound.new_context()
        try:
            self._keeping.make(wanted, kept, state, context.memory, threads, trace, deadline)
        finally:
            bound.keep(context)

    # ---- sizes

    def layout(self, sizes: Sizes) -> Layout:
        """The tables for sizes of a run that has been."""
        bound = self._bound.get(tuple(map(sizes.get, self._atoms)))
        return (bound or self._bind(sizes)).layout

    def lend(self, sizes: Sizes) -> Context:
        """A context for whoever makes many runs with these sizes by itself; never given back."""
        bound = self._bound.get(tuple(map(sizes.get, self._atoms))) or self._bind(sizes)
        try:
            context = bound.idle.pop()
        except IndexError:
            context = bound.new_context()
        context.without_limit()
        return context

    def arena_bytes(self, sizes: Sizes) -> int:
        """Bytes of scratch memory a run with these sizes uses."""
        return self.plan.arena_bytes(sizes)

    def _bind(self, sizes: Sizes) -> Bound:
        """Make the tables for these sizes and drop the least recently used ones.

        Two threads may bind the same sizes at once: one result is kept, both are right.
        """
        bound = Bound(self._tables.bind(sizes))
        bound.used = next(self._clock)
        self._bound[tuple(map(sizes.get, self._atoms))] = bound
        self._forget_stale()
        return bound

    def _forget_stale(self) -> None:
        """Drop sizes, the least recently used first, until number and bytes are within bounds."""
        known = self._bound.copy()
        total = sum([bound.bytes for bound in known.values()])
        while len(known) > 1 and (len(known) > BOUND_SIZES or total > IDLE_BYTES):
            key = min(known, key=lambda k: known[k].used)
            total -= known.pop(key).bytes
            self._bound.pop(key, None)


def compile_plan(
    plan: Plan, jit: JIT | None = None, code: Mapping[int, tuple[str, int]] = MappingProxyType({})
) -> LLVMExecutable:
    """Machine code for a plan: its distinct kernels, compiled together where they are new.

    code  by id of a kernel its name and address, of those that `jit` has been asked for already
    """
    jit = jit or default_jit()
    rest = [k for k in plan.kernels if id(k) not in code]
    names = kernel_names(rest)
    functions = jit.compile_kernels(rest, names)
    more = dict(zip(map(id, rest), zip(names, functions, strict=True), strict=True))
    found = [code.get(id(k)) or more[id(k)] for k in plan.kernels]
    return LLVMExecutable(plan, [place for _, place in found], jit, [name for name, _ in found])
