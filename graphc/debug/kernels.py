"""Lowered kernels checked: each, interpreted on right operands, gives what its operators mean.

Imports: kernel, dims, backends.interpret_arrays, passes.groups, passes.operands, debug.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from graphc.backends.interpret_arrays import OutsideBufferError, Rounding, interpret
from graphc.debug.programs import described
from graphc.debug.report import Finding, FoundError, unique
from graphc.debug.values import Difference, Moved, Samples, disagreement
from graphc.dims import Dim, Sizes, evaluate
from graphc.kernel import Kernel, sizes_of
from graphc.node import Tensor
from graphc.passes.groups import Fusion, Group
from graphc.passes.operands import LoweredStep, Partial, Value, value_bytes

Array = np.ndarray[Any, Any]

REPLAY = "graphc.backends.interpret_arrays.interpret the finding's `subject`, a lowered step"


class Buffers:
    """What the arrays of a lowered program hold when it is right, flat and widened.

    The values of tensors are those of the reference; what a split reduction keeps between its two
    kernels is known once the first is interpreted.
    """

    def __init__(self, samples: Samples) -> None:
        self.samples = samples
        self._partials: dict[int, tuple[Array, Callable[[int], list[Moved]]]] = {}
        self._kept: list[Partial] = []

    def of(self, value: Value) -> Array:
        if isinstance(value, Partial):
            return self._partials[id(value)][0]
        return np.ascontiguousarray(self.samples.of(value)).reshape(-1)

    def has(self, value: Value) -> bool:
        """Whether it is known: tensors are, a partial result after its first kernel."""
        return not isinstance(value, Partial) or id(value) in self._partials

    def keep(self, value: Partial, array: Array, moved: Callable[[int], list[Moved]]) -> None:
        self._partials[id(value)] = array, moved
        self._kept.append(value)

    def moved(self, value: Value, count: int) -> list[Moved]:
        """The array, and the array in runs with roundings."""
        if isinstance(value, Partial):
            return self._partials[id(value)][1](count)
        return [(a.reshape(-1), b.reshape(-1)) for a, b in self.samples.moved(value, count)]


def kernel_sizes(kernel: Kernel, sizes: Sizes) -> dict[Dim, int]:
    """The symbolic sizes of a kernel as numbers."""
    return {d: evaluate(d, sizes) for d in sizes_of(kernel)}


def elements(value: Value, sizes: Sizes) -> int:
    """How many elements a value's array has."""
    return evaluate(value_bytes(value), sizes) // value.dtype.itemsize


def spoiled(array: Array) -> Array:
    """Something else than `array` in every element."""
    if array.dtype.kind == "f":
        return np.where(np.isnan(array), 12345.0, np.nan)
    return np.asarray(~array)


def step_buffers(step: LoweredStep, buffers: Buffers, sizes: Sizes) -> list[Array]:
    """Arrays to interpret a step on: right operands, results spoiled."""
    made: list[Array] = []
    for j, value in enumerate(step.args):
        if isinstance(value, Partial) and j in step.writes:
            wide = np.dtype(np.float64) if value.dtype.is_float else value.dtype.numpy
            made.append(spoiled(np.zeros(elements(value, sizes), wide)))
        else:
            array = buffers.of(value)
            made.append(spoiled(array) if j in step.writes else array.copy())
    return made


def check_steps(
    fusion: Fusion,
    steps: Sequence[LoweredStep],
    buffers: Buffers,
    sizes: Sizes,
    explain: Callable[[Finding, Group], Finding] | None = None,
) -> None:
    """Raise FoundError at the first lowered step that gives other values than its operators.

    explain  looks closer at a finding about a kernel of a group
    """
    made: set[int] = set()
    for step in steps:
        judge = Judge("lower", step, buffers, sizes)
        for j, value in enumerate(step.args):
            computed = not isinstance(value, Tensor) or id(value) in fusion.group_of
            if j not in step.writes and computed and id(value) not in made:
                error = judge.found(f"it reads {_name(value)}, which no kernel before it has made")
                unstored = isinstance(value, Tensor) and id(value) not in fusion.stored
                raise FoundError(replace(error.finding, stage="fuse")) if unstored else error
        try:
            judge.run([(k, kernel_sizes(k, sizes)) for k in step.kernels])
        except FoundError as error:
            group = _group(fusion, step)
            if explain is None or group is None:
                raise
            raise FoundError(explain(error.finding, group)) from None
        made.update(id(step.args[w]) for w in step.writes)
    for t in fusion.program.roots:
        if id(fusion.views.of(t).base) not in made:
            raise FoundError(
                Finding("lower", "no kernel computes it", "", described(t), (t.node.loc,))
            )


def _group(fusion: Fusion, step: LoweredStep) -> Group | None:
    """The group a step belongs to."""
    for w in step.writes:
        found = fusion.group_of.get(id(step.args[w]))
        if found is not None:
            return found
    return None


class Judge:
    """Compares what a step's kernels give, interpreted on right operands, with the reference."""

    def __init__(self, stage: str, step: LoweredStep, buffers: Buffers, sizes: Sizes) -> None:
        self.stage = stage
        self.step = step
        self.buffers = buffers
        self.sizes = sizes

    def found(self, message: str, difference: Difference | None = None) -> FoundError:
        step = self.step
        node = f"kernel '{step.label}'"
        locs = unique(step.locs)
        return FoundError(
            Finding(self.stage, message, "", node, locs, difference, step, replay=REPLAY)
        )

    def run(self, kernels: Sequence[tuple[Kernel, dict[Dim, int]]]) -> None:
        """Raise FoundError where kernels with these sizes are not what the step means."""
        step, buffers = self.step, self.buffers
        arrays = step_buffers(step, buffers, self.sizes)
        try:
            faults = [f for kernel, known in kernels for f in interpret(kernel, arrays, known)]
        except OutsideBufferError as error:
            raise self.found(str(error)) from None
        except (LookupError, TypeError, ValueError) as error:
            raise self.found(f"it means nothing: {type(error).__name__}: {error}") from error
        if faults:
            number, position, value_at = faults[0]
            message = step.checks[number].message.replace("{value}", str(value_at))
            raise self.found(f"a check fails that should not, at element {position}: {message}")

        def interpreted(j: int, count: int) -> list[Moved]:
            runs = []
            for seed in range(count):
                again = step_buffers(step, buffers, self.sizes)
                for kernel, known in kernels:
                    interpret(kernel, again, known, Rounding(seed))
                runs.append((arrays[j], again[j]))
            return runs

        for j in step.writes:
            value = step.args[j]
            if isinstance(value, Partial) and not buffers.has(value):
                buffers.keep(value, arrays[j], functools.partial(interpreted, j))
                continue

            def runs(count: int, j: int = j, value: Value = value) -> list[Moved]:
                return interpreted(j, count) + buffers.moved(value, count)

            difference = disagreement(buffers.of(value), arrays[j], value.dtype, runs)
            if difference is not None:
                raise self.found(f"it gives another value of {_name(value)}", difference)


def _name(value: Value) -> str:
    return described(value) if isinstance(value, Tensor) else value.name
