"""A memory plan as readable text.  Imports: plan, dims."""

from __future__ import annotations

from graphc.dims import Sizes, dim_text, evaluate
from graphc.plan import Plan, Ref, Step

_SIGIL = {
    "slot": "slot",
    "input": "input",
    "constant": "const",
    "state": "var",
    "output": "out",
    "fault": "fault",
}


def plan_text(plan: Plan, sizes: Sizes | None = None) -> str:
    """Steps, buffers and the peak; in numbers where `sizes` are given, as formulas otherwise."""
    lines = [f"plan: {len(plan.steps)} steps, {len(plan.kernels)} distinct kernels"]
    for i, step in enumerate(plan.steps):
        if i == plan.commit:
            lines.append("  -- commit: nothing below can fail --")
        lines.append(f"  {i:4d}  {_step_text(plan, step)}")
    lines.append(f"arena: {len(plan.slots)} slots for {len(plan.buffers)} buffers")
    for b in plan.buffers:
        size = str(evaluate(b.bytes, sizes)) if sizes is not None else dim_text(b.bytes)
        shared = f"  in place of {b.in_place_of}" if b.in_place_of else ""
        where = f"slot {b.slot:<3d} steps {b.first:4d}..{b.last:<4d}"
        lines.append(f"  {where} {size:>16} bytes  {b.name}{shared}")
    lines.append(f"peak: {plan.peak_formula()} bytes")
    lines.append(f"that is {plan.peak_summary()}")
    if sizes is not None:
        lines.append(f"peak with these sizes: {plan.arena_bytes(sizes)} bytes")
    return "\n".join(lines) + "\n"


def _step_text(plan: Plan, step: Step) -> str:
    written = {step.args[w] for w in step.writes}
    outs = " ".join(_ref_text(plan, r) for r in dict.fromkeys(step.args) if r in written)
    ins = " ".join(_ref_text(plan, r) for r in dict.fromkeys(step.args) if r not in written)
    where = ", ".join(str(loc) for loc in step.locs[:3])
    return f"{outs} = {step.label}({ins})  k{step.kernel}  # {where}"


def _ref_text(plan: Plan, ref: Ref) -> str:
    table = {"input": plan.inputs, "state": plan.variables, "output": plan.outputs}
    if ref.kind in table:
        return f"{_SIGIL[ref.kind]}:{table[ref.kind][ref.index].name}"
    return f"{_SIGIL[ref.kind]}{ref.index}"
