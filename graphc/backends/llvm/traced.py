"""A traced run: the steps of a context one by one on the calling thread, each timed.

Imports: driver, memory, tables, plan, trace.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Sequence

from graphc.backends.llvm.driver import HEADER_WORDS, STEP_WORDS
from graphc.backends.llvm.memory import Array, address_of
from graphc.backends.llvm.tables import Context, Layout
from graphc.plan import Plan
from graphc.trace import Trace

_KERNEL = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64)


def run_traced(
    plan: Plan, layout: Layout, context: Context, arrays: Sequence[Array], trace: Trace
) -> bool:
    """Run the plan on arrays (inputs, state, outputs); whether a check failed before commit."""
    words = context.words
    places = layout.places
    patches = words[places.patches : places.faults].reshape(-1, 2)
    for argument, border in patches.tolist():
        words[places.args + argument] = address_of(arrays[border])
    context.faults[:] = 0
    rows = words[HEADER_WORDS : HEADER_WORDS + STEP_WORDS * len(plan.steps)]
    table = rows.reshape(-1, STEP_WORDS)[:, :5].tolist()
    started = time.perf_counter()
    failed = False
    for i, (step, (function, args, sizes, _, blocks)) in enumerate(
        zip(plan.steps, table, strict=True)
    ):
        if plan.checks and i == plan.commit and context.faults[:, 0].any():
            failed = True
            break
        kernel = _KERNEL(function)
        begun = time.perf_counter()
        kernel(args, sizes, 0, blocks)
        now = time.perf_counter()
        trace.add(step.label, begun - started, now - begun, blocks, step.locs)
    for argument, _ in patches.tolist():
        words[places.args + argument] = 0
    return failed or bool(plan.checks and context.faults[:, 0].any())
