"""What compiling a program took and made, pass by pass, and why it was specialised.

Imports: kernel, plan, program, passes, backends (the LLVM one when kernels are compiled).
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from graphc.dims import broadcast_parts, dim_text
from graphc.kernel import Contraction
from graphc.node import Tensor
from graphc.passes.pipeline import Trace
from graphc.passes.specialise import Meeting, node_broadcasts
from graphc.plan import Plan
from graphc.program import Program


@dataclass
class CompileProfile:
    """Seconds of each pass, in order, and what it left.

    seconds  'emit' and 'llvm' are there if the kernels were compiled; work of several threads is
             added up
    made     for each pass, in words: nodes of the program after it, steps, kernels
    """

    seconds: dict[str, float] = field(default_factory=dict)
    made: dict[str, str] = field(default_factory=dict)

    @property
    def total(self) -> float:
        """Seconds of all passes together."""
        return sum(self.seconds.values())

    def __str__(self) -> str:
        width = max(map(len, self.seconds), default=0)
        lines = [
            f"{name:{width}} {1e3 * s:9.1f} ms  {self.made.get(name, '')}".rstrip()
            for name, s in self.seconds.items()
        ]
        lines.append(f"{'total':{width}} {1e3 * self.total:9.1f} ms")
        return "\n".join(lines)


def profile_of(stages: Sequence[tuple[str, Program]], plan: Plan, trace: Trace) -> CompileProfile:
    """The profile of the passes that a trace has timed."""
    made = {name: f"{len(program.order())} nodes" for name, program in stages}
    made["resolve_state"] = made.pop("program", "")
    made["fuse"] = made.pop("lowered", "")
    made["lower"] = f"{len(plan.steps)} steps"
    products = sum(isinstance(k, Contraction) for k in plan.kernels)
    kernels = f"{len(plan.kernels)} distinct kernels, {products} of them contractions"
    made["plan_memory"] = f"{kernels}; {len(plan.slots)} slots"
    return CompileProfile(dict(trace.seconds), made)


def compile_kernels(plan: Plan, profile: CompileProfile) -> None:
    """Compile a plan's kernels for this machine, and note what that took."""
    from graphc.backends.llvm.jit import default_jit, stats

    before = (stats.kernels, stats.kernels_loaded, stats.emit_seconds, stats.llvm_seconds)
    started = time.perf_counter()
    default_jit().compile_kernels(plan.kernels)
    elapsed = time.perf_counter() - started
    compiled, loaded = stats.kernels - before[0], stats.kernels_loaded - before[1]
    profile.seconds["emit"] = stats.emit_seconds - before[2]
    profile.seconds["llvm"] = max(stats.llvm_seconds - before[3], 0.0)
    known = len(plan.kernels) - compiled - loaded
    profile.made["emit"] = f"{compiled} kernels, {loaded} from the cache, {known} known before"
    profile.made["llvm"] = f"{1e3 * elapsed:.1f} ms from first to last"


def why_ranks(program: Program, shapes: Sequence[tuple[int, ...]]) -> list[str]:
    """Which inputs have a rank only because they were fed."""
    return [
        f"{_input(t)} has the rank it was fed with, {len(shape)}"
        for t, shape in zip(program.inputs, shapes, strict=True)
        if t.type.shape is None
    ]


def why_outcomes(
    program: Program, meetings: Sequence[Meeting], outcome: Sequence[object], assumed: bool
) -> list[str]:
    """For each two sizes that met in a broadcast: where, and what they were taken for."""
    where: Mapping[Meeting, str] = {}
    for node in reversed(program.order()):
        where = {**where, **dict.fromkeys(node_broadcasts(node), f"{node.title} ({node.loc})")}
    lines = []
    for meeting, which in zip(meetings, outcome, strict=True):
        size, target = meeting
        others = broadcast_parts(target) - {size} or {target}
        a, b = dim_text(size), " and ".join(sorted(dim_text(d) for d in others))
        if which == "equal":
            told = "taken as equal" if assumed else "equal as fed"
        elif which == "one":
            told = f"{a} is 1 as fed, and repeated"
        else:
            told = "fixed to the sizes fed"
        lines.append(f"{a} meets {b} in {where.get(meeting, 'a broadcast')}: {told}")
    return lines


def _input(t: Tensor) -> str:
    return f"{t.node.op.name} {t.node.name!r} ({t.node.loc})"
