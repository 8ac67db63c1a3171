"""`explain`: every form a program goes through on its way to machine code, as text.

Imports: session, compiler, passes, text.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from graphc import compiler
from graphc.budget import Budget, parse_budget
from graphc.cache import cache_text
from graphc.compile_profile import (
    CompileProfile,
    compile_kernels,
    profile_of,
    why_outcomes,
    why_ranks,
)
from graphc.dims import Sizes, atoms
from graphc.errors import GraphTypeError
from graphc.feeds import bind_sizes, check_constraints
from graphc.fetches import flatten_fetches
from graphc.graph import Graph, get_default_graph
from graphc.memory import Memory, memory_of, named_sizes
from graphc.node import Node, Tensor, topological
from graphc.passes.estimate import TYPICAL
from graphc.passes.pipeline import Trace
from graphc.passes.resolve_state import resolve_state
from graphc.passes.specialise import (
    bind_ranks,
    broadcast_outcomes,
    specialise,
    substitution,
    unknown_broadcasts,
)
from graphc.plan import Plan
from graphc.plan_text import plan_text
from graphc.program import Program
from graphc.text import print_program


@dataclass
class Explanation:
    """What `explain` found; prints as one readable text.

    stages   (name of the pass, program after it), the first being the program as it was cut out
    plan     steps, buffers and arena
    seconds  time spent in each pass
    profile  the same, and what each pass made; prints as a table
    reasons  why the program was specialised: ranks that were bound, sizes that met in a broadcast
    """

    stages: list[tuple[str, Program]]
    plan: Plan
    seconds: dict[str, float] = field(default_factory=dict)
    profile: CompileProfile = field(default_factory=CompileProfile)
    reasons: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        parts = [f"== {name} ==\n{print_program(p)}" for name, p in self.stages]
        parts.append(f"== plan ==\n{plan_text(self.plan)}")
        if self.reasons:
            parts.append("== specialised ==\n" + "\n".join(self.reasons) + "\n")
        parts.append(f"== time ==\n{self.profile}\n")
        parts.append(f"== cache ==\n{cache_text()}\n")
        return "\n".join(parts)

    def peak_formula(self) -> str:
        """The size of arena and kept values in bytes, exactly, as a formula in the named sizes."""
        return self.plan.peak_formula()

    def peak_bytes(self, sizes: Mapping[Any, Any] | None = None) -> int:
        """The exact size of the arena, which is what a run allocates besides its results, and of
        what is kept between runs.

        sizes  of unknown dimensions by name, as in `{"batch": 64}`, or shapes by placeholder
        """
        return self.plan.peak_bytes(named_sizes(self.stages[0][1].inputs, sizes or {}))

    def memory(self, sizes: Mapping[Any, Any] | None = None) -> Memory:
        """Bytes of everything a run uses, for these sizes; see `peak_bytes`."""
        return memory_of(self.plan, named_sizes(self.stages[0][1].inputs, sizes or {}))


def explain(
    fetches: Any,
    feeds: Sequence[Tensor] | Mapping[Tensor, Any] | None = None,
    graph: Graph | None = None,
    memory_budget: int | str | None = None,
    sizes: Mapping[Any, Any] | None = None,
    compile: bool = False,
    fast_math: bool = False,
) -> Explanation:
    """How `fetches` would be compiled when `feeds` are fed (default: all placeholders they need).

    feeds          tensors, or as for `Session.run` their values, whose ranks and sizes then decide
    memory_budget  bytes of scratch memory, or text such as '512MB', that the plan must keep to
    sizes          where it must: sizes of unknown dimensions by name, or shapes by placeholder
                   (default: 64 for each)
    compile        compile the kernels too, for the profile of what that takes
    fast_math      as a session with `fast_math` would compile them
    Without values unknown sizes that meet in a broadcast are taken as equal (fed with a 1 there,
    the program has another plan).  Raises GraphTypeError for inputs of unknown rank without values:
    the plan depends on the feed; MemoryBudgetError where the budget is too small.
    """
    flat, _ = flatten_fetches(fetches, graph or _graph_of(fetches))
    tensors = [x for x in flat if isinstance(x, Tensor)]
    targets = [x for x in flat if isinstance(x, Node)]
    if feeds is None:
        roots = [t.node for t in tensors] + targets
        feeds = [n.outputs[0] for n in topological(roots) if n.op.name == "placeholder"]
    trace = Trace(keep=True)
    started = time.perf_counter()
    program = resolve_state(tuple(dict.fromkeys(tensors)), targets, tuple(feeds))
    trace.note("resolve_state", started)
    started = time.perf_counter()
    shapes = [np.shape(v) for v in feeds.values()] if isinstance(feeds, Mapping) else None
    specialised, reasons = _specialised(program, shapes)
    trace.note("specialise", started)
    limit = parse_budget(memory_budget)
    budget = None if limit is None else Budget(limit, _judged_at(specialised, sizes or {}))
    plan, lowered = compiler.plan_cpu(specialised, trace, budget, fast_math=fast_math)
    stages = [("program", program), ("specialise", specialised), *trace.programs]
    stages.append(("lowered", lowered))
    profile = profile_of(stages, plan, trace)
    if compile:
        compile_kernels(plan, profile)
    return Explanation(stages, plan, profile.seconds, profile, reasons)


def _specialised(
    program: Program, shapes: Sequence[tuple[int, ...]] | None
) -> tuple[Program, list[str]]:
    """The program for inputs of these shapes, and why it is no other."""
    reasons: list[str] = []
    if any(t.type.shape is None for t in program.inputs):
        if shapes is None:
            raise GraphTypeError("explain: an input has unknown rank; its plan depends on the feed")
        reasons += why_ranks(program, shapes)
        program = bind_ranks(program, [len(s) for s in shapes])
    meetings = unknown_broadcasts(program)
    outcome: tuple[Any, ...] = ("equal",) * len(meetings)
    if shapes is not None:
        sizes = bind_sizes(program.inputs, shapes)
        check_constraints(program.constraints(), sizes)
        outcome = broadcast_outcomes(meetings, sizes)
    reasons += why_outcomes(program, meetings, outcome, shapes is None)
    return specialise(program, substitution(meetings, outcome)), reasons


def _judged_at(program: Program, sizes: Mapping[Any, Any]) -> Sizes:
    known = named_sizes(program.inputs, sizes)
    unknown = {a for t in program.inputs for d in t.dims for a in atoms(d)}
    return {**dict.fromkeys(sorted(unknown), TYPICAL), **known}


def _graph_of(fetches: Any) -> Graph:
    stack = [fetches]
    while stack:
        item = stack.pop()
        if isinstance(item, (Tensor, Node)) and item.graph is not None:
            return item.graph
        if isinstance(item, dict):
            stack.extend(item.values())
        elif isinstance(item, (list, tuple)):
            stack.extend(item)
    return get_default_graph()
