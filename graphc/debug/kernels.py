"""Lowered kernels checked: each, interpreted on right operands, gives what its operators mean.

Imports: kernel, dims, backends.interpret_arrays, passes.fuse, passes.operands, debug.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from graphc.backends.interpret_arrays import OutsideBufferError, Rounding, interpret
from graphc.debug.programs import described
from graphc.debug.report import Finding, FoundError, unique
from graphc.debug.values import Samples, disagreement
from graphc.dims import Dim, Sizes, evaluate
from graphc.kernel import Kernel, sizes_of
from graphc.node import Tensor
from graphc.passes.fuse import Fusion
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
        self._partials: dict[int, tuple[Array, Callable[[int], list[Array]]]] = {}
        self._kept: list[Partial] = []

    def of(self, value: Value) -> Array:
        if isinstance(value, Partial):
            return self._partials[id(value)][0]
        return np.ascontiguousarray(self.samples.of(value)).reshape(-1)

    def has(self, value: Value) -> bool:
        """Whether it is known: tensors are, a partial result after its first kernel."""
        return not isinstance(value, Partial) or id(value) in self._partials

    def keep(self, value: Partial, array: Array, moved: Callable[[int], list[Array]]) -> None:
        self._partials[id(value)] = array, moved
        self._kept.append(value)

    def moved(self, value: Value, count: int) -> list[Array]:
        """The array in runs with roundings."""
        if isinstance(value, Partial):
            return self._partials[id(value)][1](count)
        return [a.reshape(-1) for a in self.samples.moved(value, count)]


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
    fusion: Fusion, steps: Sequence[LoweredStep], buffers: Buffers, sizes: Sizes
) -> None:
    """Raise FoundError at the first lowered step that gives other values than its operators."""
    made: set[int] = set()
    for step in steps:
        _check_step(step, buffers, sizes)
        made.update(id(step.args[w]) for w in step.writes)
    for t in fusion.program.roots:
        if id(fusion.views.of(t).base) not in made:
            raise FoundError(
                Finding("lower", "no kernel computes it", "", described(t), (t.node.loc,))
            )


def _check_step(step: LoweredStep, buffers: Buffers, sizes: Sizes) -> None:
    def found(message: str, **more: Any) -> FoundError:
        node = f"kernel '{step.label}'"
        locs = unique(step.locs)
        return FoundError(
            Finding("lower", message, "", node, locs, subject=step, replay=REPLAY, **more)
        )

    for j, value in enumerate(step.args):
        if j not in step.writes and not buffers.has(value):
            raise found("it reads chunks that no kernel before it has made")
    arrays = step_buffers(step, buffers, sizes)
    known = kernel_sizes(step.kernel, sizes)
    try:
        faults = interpret(step.kernel, arrays, known)
    except OutsideBufferError as error:
        raise found(str(error)) from None
    if faults:
        number, position, value_at = faults[0]
        message = step.checks[number].message.replace("{value}", str(value_at))
        raise found(f"a check fails that should not, at element {position}: {message}")

    def interpreted(j: int, count: int) -> list[Array]:
        runs = []
        for seed in range(count):
            again = step_buffers(step, buffers, sizes)
            interpret(step.kernel, again, known, Rounding(seed))
            runs.append(again[j])
        return runs

    for j in step.writes:
        value = step.args[j]
        got = arrays[j]
        if isinstance(value, Partial):
            buffers.keep(value, got, lambda n, j=j: interpreted(j, n))  # type: ignore[misc]
            continue
        expected = buffers.of(value)

        def runs(count: int, j: int = j, value: Value = value) -> list[Array]:
            return interpreted(j, count) + buffers.moved(value, count)

        difference = disagreement(expected, got, value.dtype, runs)
        if difference is not None:
            raise found(f"it gives another value of {_name(value)}", difference=difference)


def _name(value: Value) -> str:
    return described(value) if isinstance(value, Tensor) else value.name
