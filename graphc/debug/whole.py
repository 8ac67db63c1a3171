"""A whole plan run: the results against the reference, on one thread and on several.

Imports: plan, backends.llvm, passes.groups, debug.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from graphc.backends.llvm.executable import LLVMExecutable
from graphc.backends.llvm.jit import JIT
from graphc.backends.llvm.memory import aligned_bytes
from graphc.debug.programs import described
from graphc.debug.report import Finding, FoundError
from graphc.debug.values import (
    Difference,
    Moved,
    Samples,
    disagreement,
    narrowed,
    same_bits,
    widened,
)
from graphc.errors import RunError
from graphc.node import Tensor
from graphc.passes.groups import Fusion
from graphc.plan import Kept, Plan
from graphc.trace import Trace

Array = np.ndarray[Any, Any]

SLACK = 256.0
"""Roundings of the largest element: inside an operator there may be many."""

THREADS = (1, 1, 2, 2, 4)


def check_run(
    plan: Plan, addresses: Sequence[int], jit: JIT, fusion: Fusion, samples: Samples
) -> str:
    """Raise FoundError unless the plan computes the program; what was compared."""
    executable = LLVMExecutable(plan, addresses, jit)
    program = fusion.program
    variables = program.variables()
    base = samples.base
    inputs = [narrowed(base.of(t), t.dtype) for t in program.inputs]
    updated = dict(program.updates)

    def found(message: str, t: Tensor | None, difference: Difference | None) -> FoundError:
        node, locs = ("", ()) if t is None else (described(t), (t.node.loc,))
        return FoundError(Finding("run", message, "", node, locs, difference, plan))

    def run(threads: int, trace: Trace | None = None) -> list[Array]:
        state = [np.array(base.state[v.node.id]) for v in variables]
        copies = [a.copy() for a in inputs]
        how = samples.sizes, threads, trace
        kept = [_spoiled(value) for value in executable.kept]
        try:
            executable.make_kept(range(len(kept)), kept, state, *how)
            first = [a.copy() for a in kept]
            fetched = executable.run(copies, state, *how, None, kept)
        except RunError as error:
            raise found(f"it fails: {error}", None, None) from None
        for t, before, after in zip(program.inputs, inputs, copies, strict=True):
            if before.tobytes() != after.tobytes():
                raise found("it changes an array that was fed", t, None)
        if any(a.tobytes() != b.tobytes() for a, b in zip(first, kept, strict=True)):
            raise found("it changes a value that is kept between runs", None, None)
        return [*fetched, *state]

    results = [run(threads) for threads in THREADS]
    results.append(run(1, Trace()))
    wanted = [*program.fetches, *(updated.get(v, v) for v in variables)]
    for t, got in zip(wanted, results[0], strict=True):
        expected = samples.of(t)

        def moved(count: int, t: Tensor = t) -> list[Moved]:
            return samples.moved(t, count)

        # kernels have been judged one by one; here it only matters that nothing is mixed up
        difference = disagreement(expected, widened(got), t.dtype, moved, slack=SLACK)
        if difference is not None:
            raise found("the whole plan gives another value", t, difference)
    for other, threads in zip(results[1:], (*THREADS[1:], 0), strict=True):
        for t, a, b in zip(wanted, results[0], other, strict=True):
            difference = same_bits(a, b)
            if difference is not None:
                how = f"with {threads} threads" if threads else "step by step"
                raise found(f"run {how} it gives other bits", t, difference)
    return f"{len(results)} runs on up to {max(THREADS)} threads, the same bits"


def _spoiled(kept: Kept) -> Array:
    """An array for a value that is kept, aligned as code expects it; nothing of use is in it."""
    shape = tuple(int(str(d)) for d in kept.value.type.shape or ())
    memory = aligned_bytes(kept.bytes)
    memory[...] = 0
    return memory.view(kept.value.type.dtype.numpy).reshape(shape)
