"""The pipeline: the ordered lists of passes from the user's graph to a plan.

One place verifies, dumps and times between passes.  Imports: every pass, program, plan.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from graphc import flags
from graphc.budget import Budget
from graphc.kernel import Kernel
from graphc.passes.canonicalise import canonicalise
from graphc.passes.estimate import Estimate
from graphc.passes.facts import Facts
from graphc.passes.forms import FORMS, Forms
from graphc.passes.fuse import fuse
from graphc.passes.groups import Fusion
from graphc.passes.keep import find_kept
from graphc.passes.layout import cancel_transposes
from graphc.passes.lower import CutOf, lower
from graphc.passes.meet_budget import meet_budget
from graphc.passes.merge_products import join_products, merge_products
from graphc.passes.merge_sums import merge_sums
from graphc.passes.operands import LoweredStep
from graphc.passes.plan_memory import BlocksOf, plan_memory, shared_kernels
from graphc.passes.schedule import schedule
from graphc.passes.share_kernels import Shared
from graphc.passes.simplify import simplify, simplify_fast_math
from graphc.plan import Plan
from graphc.plan_text import plan_text
from graphc.program import Program
from graphc.text import print_program
from graphc.verify import verify

GraphPass = Callable[[Program], Program]

Beside = Callable[[Sequence[Kernel], Callable[[], None]], None]
"""(kernels, what makes a plan of them): calls that once, and may have the kernels compiled
meanwhile.  A plan may have others too, which copy."""

GRAPH_PASSES: list[tuple[str, GraphPass]] = [
    # fusion knows only reductions that drop their axes
    ("canonicalise", canonicalise),
    # its tables match reductions without kept axes, and no identities between operators; folds on
    # the way, as rules make new constants
    ("simplify", simplify),
    # after simplify, which leaves one view where products read one; before merge_sums, which would
    # join what can stay where it is
    ("merge_products", merge_products),
    # after simplify, which turns transposed operands into flags
    ("merge_sums", merge_sums),
    # after merge_sums, which concatenates what was placed into zeros
    ("join_products", join_products),
    # after simplify, which merges chains of views: a transpose is looked for right below its reader
    ("cancel_transposes", cancel_transposes),
]
"""Program -> program, in order.  resolve_state, bind_ranks and specialise have run before."""

OWN_PASSES = tuple(GRAPH_PASSES)
"""The list as it was before the user changed it."""


@dataclass
class Trace:
    """What the pipeline did: seconds per pass, and the program after each (if kept)."""

    seconds: dict[str, float] = field(default_factory=dict)
    programs: list[tuple[str, Program]] = field(default_factory=list)
    keep: bool = False

    def note(self, name: str, started: float, program: Program | None = None) -> None:
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - started
        if self.keep and program is not None:
            self.programs.append((name, program))


def optimize(
    program: Program,
    passes: Sequence[tuple[str, GraphPass]] | None = None,
    trace: Trace | None = None,
    fast_math: bool = False,
) -> Program:
    """Run the graph passes; between them verify and dump as the environment flags say.

    fast_math  also by rules that are right for real numbers only
    """
    trace = trace or Trace()
    dump = _Dump()
    dump.program("input", program)
    for name, run in GRAPH_PASSES if passes is None else passes:
        started = time.perf_counter()
        program = (simplify_fast_math if fast_math and run is simplify else run)(program)
        trace.note(name, started, program)
        if flags.VERIFY.value:
            verify(program, after=name)
        dump.program(name, program)
    return program


def build_plan(
    program: Program,
    blocks_of: BlocksOf,
    trace: Trace | None = None,
    budget: Budget | None = None,
    cut_of: CutOf | None = None,
    keep: bool = True,
    fast_math: bool = False,
    forms: Forms = FORMS,
    beside: Beside | None = None,
) -> tuple[Plan, Program]:
    """Fuse, lower and plan an optimized program; also the program as it was lowered.

    keep  whether values may stay between runs, which takes memory that a budget must have room for
    forms  of kernels that the back end wants
    beside  told the kernels before there is a plan, unless there is a budget
    Raises MemoryBudgetError where the arena is larger than the budget at the budget's sizes.
    """
    trace = trace or Trace()
    facts = Facts()
    started = time.perf_counter()
    fusion = fuse(program, forms.chunk)
    trace.note("fuse", started)
    started = time.perf_counter()
    steps = lower(fusion, cut_of, fast_math=fast_math, keep=keep, forms=forms)
    trace.note("lower", started)
    beside = None if budget is not None else beside
    plan = _plan_beside(fusion, steps, facts, blocks_of, trace, keep, beside)
    started = time.perf_counter()
    if budget is not None and plan.kept and plan.peak_bytes(budget.sizes) > budget.bytes:
        steps = lower(fusion, cut_of, fast_math=fast_math, keep=False, forms=forms)
        plan = plan_memory(fusion, schedule(fusion, steps, facts), blocks_of, facts)
    if budget is not None and plan.arena_bytes(budget.sizes) > budget.bytes:
        facts = Facts(Estimate(budget.sizes))
        steps = lower(fusion, cut_of, packs=False, fast_math=fast_math, forms=forms)
        plan = meet_budget(fusion, schedule(fusion, steps, facts), blocks_of, facts, budget)
    trace.note("plan_memory", started)
    _Dump().plan(plan)
    return plan, fusion.program


def _plan_beside(
    fusion: Fusion,
    steps: Sequence[LoweredStep],
    facts: Facts,
    blocks_of: BlocksOf,
    trace: Trace,
    keep: bool,
    beside: Beside | None,
) -> Plan:
    """The plan of the steps, made while `beside` does what it wants with their kernels."""
    plans: list[Plan] = []
    shared: dict[int, Shared] | None = None

    def make() -> None:
        started = time.perf_counter()
        ordered = schedule(fusion, steps, facts)
        trace.note("schedule", started)
        started = time.perf_counter()
        kept = find_kept(fusion, ordered) if keep else None
        plans.append(plan_memory(fusion, ordered, blocks_of, facts, kept, shared))
        trace.note("plan_memory", started)

    if beside is None:
        make()
    else:
        started = time.perf_counter()
        shared = shared_kernels(steps)
        trace.note("plan_memory", started)
        beside(list({id(s.kernel): s.kernel for s in shared.values()}.values()), make)
    return plans[0]


_dumps = itertools.count()


class _Dump:
    """Writes what passes through the pipeline to the folder named by GRAPHC_DUMP, if it is set."""

    def __init__(self) -> None:
        self.folder = flags.DUMP.value

    def program(self, name: str, program: Program) -> None:
        if self.folder:
            self._write(f"{name}.gir", print_program(program))

    def plan(self, plan: Plan) -> None:
        if self.folder:
            self._write("plan.txt", plan_text(plan))

    def _write(self, name: str, text: str) -> None:
        folder = Path(self.folder or ".")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{next(_dumps):04d}_{name}").write_text(text)
