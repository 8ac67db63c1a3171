"""Runs that must fail: every form of the program fails where the user's graph does.

Where an assertion, an index or a divisor of the user's is wrong there are no values to compare;
what can be lost is the check itself.  Imports: passes, backends, debug.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from graphc.backends.interpret_arrays import OutsideBufferError, interpret
from graphc.backends.llvm.executable import LLVMExecutable
from graphc.debug.kernels import elements, kernel_sizes
from graphc.debug.native import compile_kernels
from graphc.debug.report import Finding, FoundError, unique
from graphc.debug.values import Values, narrowed, widened
from graphc.dims import Sizes
from graphc.errors import RunError
from graphc.node import Tensor
from graphc.passes.groups import Fusion
from graphc.passes.operands import LoweredStep
from graphc.plan import Plan
from graphc.program import Program

Array = np.ndarray[Any, Any]


class Failing:
    """A run that fails with `error`, on these inputs, state and sizes."""

    def __init__(self, error: RunError, state: Mapping[int, Array], sizes: Sizes) -> None:
        self.error = error
        self.state = state
        self.sizes = sizes

    def _lost(self, stage: str, subject: Any, got: RunError | None) -> FoundError:
        instead = "nothing fails" if got is None else f"it fails with {type(got).__name__}: {got}"
        message = f"a run-time check is lost; {instead}, but the graph fails with {self.error}"
        return FoundError(Finding(stage, message, subject=subject))

    def _require(self, stage: str, subject: Any, run: Callable[[], object]) -> None:
        got: RunError | None = None
        try:
            run()
        except RunError as error:
            got = error
        if type(got) is not type(self.error):
            raise self._lost(stage, subject, got)

    def program(self, stage: str, program: Program, inputs: Mapping[Tensor, Array]) -> None:
        """Raise FoundError unless the program fails too."""
        values = Values(inputs, self.state, self.sizes)
        self._require(stage, program, lambda: values.compute(program.roots))

    def kernels(
        self, fusion: Fusion, steps: list[LoweredStep], inputs: Mapping[Tensor, Array]
    ) -> None:
        """Raise FoundError unless a check of the lowered kernels fails, interpreted in order."""
        arrays: dict[int, Array] = {}
        for step in steps:
            operands = []
            for j, value in enumerate(step.args):
                if id(value) not in arrays:
                    arrays[id(value)] = self._start(step, j, inputs)
                operands.append(arrays[id(value)])
            try:
                faults = [
                    fault
                    for kernel in step.kernels
                    for fault in interpret(kernel, operands, kernel_sizes(kernel, self.sizes))
                ]
            except OutsideBufferError as error:
                node = f"kernel '{step.label}'"
                raise FoundError(
                    Finding("lower", str(error), "", node, unique(step.locs), subject=step)
                ) from None
            if faults:
                if not issubclass(step.checks[faults[0][0]].error, type(self.error)):
                    raise self._lost("lower", step, None)
                return
        raise self._lost("lower", fusion.program, None)

    def _start(self, step: LoweredStep, j: int, inputs: Mapping[Tensor, Array]) -> Array:
        value = step.args[j]
        if isinstance(value, Tensor) and j not in step.writes:
            return np.array(Values(inputs, self.state, self.sizes).of(value)).reshape(-1)
        kind = np.dtype(np.float64) if value.dtype.is_float else value.dtype.numpy
        return np.zeros(elements(value, self.sizes), kind)

    def plan(self, plan: Plan, fusion: Fusion, inputs: Mapping[Tensor, Array]) -> None:
        """Raise FoundError unless the compiled plan fails and leaves variables alone."""
        jit, addresses = compile_kernels(plan)
        executable = LLVMExecutable(plan, addresses, jit)
        program = fusion.program
        given = [narrowed(widened(inputs[t]), t.dtype) for t in program.inputs]
        before = [np.array(self.state[v.node.id]) for v in program.variables()]
        state = [a.copy() for a in before]
        self._require("codegen", plan, lambda: executable.run(given, state, self.sizes, 1))
        for v, a, b in zip(program.variables(), before, state, strict=True):
            if a.tobytes() != b.tobytes():
                message = f"a failed run changes variable {v.node.name!r}"
                raise FoundError(Finding("run", message, locs=(v.node.loc,), subject=plan))
