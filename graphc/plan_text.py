"""A memory plan as readable text.  Imports: plan, dims."""

from __future__ import annotations

from graphc.dims import Sizes, dim_text, evaluate
from graphc.plan import Plan, Ref, Step

_SIGIL = {
    "slot": "slot",
    "input": "input",
    "constant": "const",
    "state": "var",
    "kept": "kept",
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
    lines += _kept_lines(plan)
    lines.append(f"arena: {len(plan.slots)} slots for {len(plan.buffers)} buffers")
    for b in plan.buffers:
        size = str(evaluate(b.bytes, sizes)) if sizes is not None else dim_text(b.bytes)
        shared = f"  in place of {b.in_place_of}" if b.in_place_of else ""
        where = f"slot {b.slot:<3d} steps {b.first:4d}..{b.last:<4d}"
        lines.append(f"  {where} {size:>16} bytes  {b.name}{shared}")
    lines.append(f"peak: {plan.peak_formula()} bytes")
    lines.append(f"that is {plan.peak_summary()}")
    if sizes is not None:
        lines.append(f"peak with these sizes: {plan.peak_bytes(sizes)} bytes")
    return "\n".join(lines) + "\n"


def _kept_lines(plan: Plan) -> list[str]:
    """What stays between runs: the steps that make it, and each value's size."""
    if plan.keeping is None:
        return []
    total = f"{len(plan.kept)} values of {plan.kept_bytes} bytes"
    lines = [f"kept until their variables change: {total}"]
    steps = plan.keeping.steps
    lines += [f"  {i:4d}  {_step_text(plan.keeping, step)}" for i, step in enumerate(steps)]
    for i, kept in enumerate(plan.kept):
        names = ", ".join(plan.variables[n].name for n in kept.sources) or "constants"
        lines.append(f"  kept {i:<3d} {kept.bytes:>16} bytes  {kept.value.name}  of {names}")
    return lines


def _step_text(plan: Plan, step: Step) -> str:
    written = {step.args[w] for w in step.writes}
    outs = " ".join(_ref_text(plan, r) for r in dict.fromkeys(step.args) if r in written)
    ins = " ".join(_ref_text(plan, r) for r in dict.fromkeys(step.args) if r not in written)
    where = ", ".join(str(loc) for loc in step.locs[:3])
    return f"{outs} = {step.label}({ins})  k{step.kernel}  # {where}"


def _ref_text(plan: Plan, ref: Ref) -> str:
    table = {"input": plan.inputs, "state": plan.variables, "output": plan.outputs}
    if ref.kind == "kept":
        return f"kept:{plan.kept[ref.index].value.name}"
    if ref.kind in table:
        return f"{_SIGIL[ref.kind]}:{table[ref.kind][ref.index].name}"
    return f"{_SIGIL[ref.kind]}{ref.index}"
