"""Machine code checked: each kernel against its interpretation, then the whole plan.

Code is compiled by a compiler of its own, so that nothing kept from before is trusted.  Kernels run
between guard zones, block by block in several orders.  Imports: plan, kernel, dims,
backends.interpret_arrays, backends.llvm, debug.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from graphc.backends.interpret_arrays import Rounding, interpret
from graphc.backends.llvm.jit import JIT, emit
from graphc.backends.llvm.object_cache import ObjectCache
from graphc.backends.llvm.tables import PlanTables
from graphc.debug.kernels import elements
from graphc.debug.plans import Place
from graphc.debug.report import Finding, FoundError, unique
from graphc.debug.values import Difference, Moved, disagreement, first_wrong, narrowed, widened
from graphc.dims import Dim, Sizes, evaluate
from graphc.errors import GraphcError
from graphc.kernel import Contraction, Kernel, sizes_of
from graphc.passes.operands import LoweredStep
from graphc.plan import Plan, Step

Array = np.ndarray[Any, Any]

GUARD = 1024
"""Bytes before and after each argument that a kernel must leave alone."""

ALIGNMENT = 64

SINGLE_BLOCKS = 64
"""Blocks run one by one; a kernel of more is cut into about as many ranges."""

_KERNEL = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64)


def argument_places(plan: Plan, sizes: Sizes) -> list[list[Place]]:
    """Where each step's arguments lie, as the tables of a run have it; without fault records."""
    layout = PlanTables(plan, [0] * len(plan.kernels), 1).bind(sizes)
    starts = iter(layout.slot_offsets.tolist())
    found: list[list[Place]] = []
    for step in plan.steps:
        row: list[Place] = []
        for ref in step.args:
            if ref.kind == "slot":
                start = next(starts)
                row.append(("slot", start, start + plan.slots[ref.index].bytes(sizes)))
            elif ref.kind != "fault":
                row.append((ref.kind, ref.index, ref.index + 1))
        found.append(row)
    return found


class _Guarded:
    """An array between two guard zones."""

    def __init__(self, data: Array, fill: int) -> None:
        room = -(-max(data.nbytes, 1) // ALIGNMENT) * ALIGNMENT
        memory = np.full(room + 2 * GUARD + ALIGNMENT, fill, np.uint8)
        skip = -(memory.ctypes.data) % ALIGNMENT
        self._whole = memory[skip : skip + room + 2 * GUARD]
        self._inside = slice(GUARD, GUARD + data.nbytes)
        self.array = self._whole[self._inside].view(data.dtype)
        self.array[:] = data
        self._fill = fill
        self.address = self._whole.ctypes.data + GUARD

    def intact(self) -> bool:
        """Whether the guard zones are as they were."""
        before, after = self._whole[: self._inside.start], self._whole[self._inside.stop :]
        return bool((before == self._fill).all() and (after == self._fill).all())


class KernelCode:
    """One step's machine code, to run on arrays of its own."""

    def __init__(
        self,
        plan: Plan,
        step: Step,
        lowered: LoweredStep | None,
        addresses: Sequence[int],
        sizes: Sizes,
    ) -> None:
        self.step = step
        self.kernel: Kernel = plan.kernels[step.kernel]
        self.sizes: dict[Dim, int] = dict(
            zip(sizes_of(self.kernel), (evaluate(d, sizes) for d in step.sizes), strict=True)
        )
        self.blocks = evaluate(step.blocks, sizes)
        self.key = (step.kernel, tuple(self.sizes.values()))
        self._function = _KERNEL(addresses[step.kernel])
        self._lowered = lowered

    def found(self, message: str, difference: Difference | None = None) -> FoundError:
        replay = "graphc.backends.llvm.jit.emit the finding's `subject`, a kernel"
        node = f"kernel '{self.step.label}'"
        locs = unique(self.step.locs)
        return FoundError(
            Finding("codegen", message, "", node, locs, difference, self.kernel, replay)
        )

    def run(
        self, arrays: Sequence[Array], ranges: Sequence[tuple[int, int]], fill: int = 0xA5
    ) -> tuple[list[Array], list[int]]:
        """The arrays after the blocks of these ranges have run, and the fault record."""
        guarded = [_Guarded(a, fill) for a in arrays]
        record = np.zeros(4, np.int64)
        addresses = [g.address for g in guarded] + [record.ctypes.data]
        args = (ctypes.c_void_p * len(addresses))(*addresses)
        table = (ctypes.c_int64 * max(1, len(self.sizes)))(*self.sizes.values())
        for first, last in ranges:
            self._function(ctypes.addressof(args), ctypes.addressof(table), first, last)
        for j, g in enumerate(guarded):
            if not g.intact():
                raise self.found(f"it writes outside of argument {j}")
        return [g.array.copy() for g in guarded], record.tolist()

    def check(self, operands: Sequence[Array]) -> None:
        """Raise FoundError unless it does on these arrays (narrow) what the kernel means."""
        expected = [widened(a).copy() for a in operands]
        faults = interpret(self.kernel, expected, self.sizes)
        got, record = self.run(operands, [(0, self.blocks)])
        if bool(record[0]) != bool(faults):
            raise self.found("a check fails that should not" if record[0] else "a check is missed")
        written = set(self.step.writes)
        for j, (before, after) in enumerate(zip(operands, got, strict=True)):
            if j not in written and before.tobytes() != after.tobytes():
                raise self.found(f"it changes argument {j}, which it should only read")
        guards = isinstance(self.kernel, Contraction) and any(
            t.limit is not None for a in (self.kernel.a, self.kernel.b) for t in a.terms
        )
        for j in self.step.writes:
            self._compare(j, expected[j], got[j], operands, infinities=not guards)
        self._orders(operands, got)

    def _compare(
        self, j: int, expected: Array, got: Array, operands: Sequence[Array], infinities: bool
    ) -> None:
        def moved(count: int) -> list[Moved]:
            runs = []
            for seed in range(count):
                again = [widened(a).copy() for a in operands]
                interpret(self.kernel, again, self.sizes, Rounding(seed))
                runs.append((expected, again[j]))
            return runs

        dtype = self.kernel.bufs[j]
        difference = disagreement(expected, widened(got), dtype, moved, infinities)
        if difference is not None:
            raise self.found(f"machine code gives another argument {j} than the kernel", difference)

    def _orders(self, operands: Sequence[Array], whole: Sequence[Array]) -> None:
        """The blocks one by one in any order, on memory with other contents: the same bits."""
        if self.blocks <= 0:
            return
        step = -(-self.blocks // SINGLE_BLOCKS)
        ranges = [(i, min(self.blocks, i + step)) for i in range(0, self.blocks, step)]
        shuffled = [ranges[i] for i in np.random.default_rng(0).permutation(len(ranges))]
        made = self._made(operands)
        other = [a.copy() for a in operands]
        for j in self.step.writes:
            other[j].view(np.uint8)[:] = 0x3C if other[j].dtype != np.bool_ else 1
        for order, start, what in (
            (shuffled, operands, "run in another order"),
            (ranges[::-1], other, "run backwards on memory with other contents"),
        ):
            again, _ = self.run(start, order, 0x5B)
            for j in self.step.writes:
                mask = _unlike(again[j], whole[j]) & made[j]
                if mask.any():
                    difference = first_wrong(whole[j], again[j], mask)
                    raise self.found(f"its blocks, {what}, give other bits", difference)
        self._apart(operands, ranges)

    def _made(self, operands: Sequence[Array]) -> dict[int, Array]:
        """Where each result is written: everywhere, but for a step of several kernels."""
        if self._lowered is None or not self._lowered.others:
            return {j: np.ones(operands[j].shape, bool) for j in self.step.writes}
        return self._written(self._filled(operands), (0, self.blocks))

    def _filled(self, operands: Sequence[Array]) -> list[list[Array]]:
        """The operands beside results that hold zeros, and others."""
        runs = []
        for fill in (0x00, 0x01):
            start = [a.copy() for a in operands]
            for j in self.step.writes:
                start[j].view(np.uint8)[:] = fill
            runs.append(start)
        return runs

    def _written(self, runs: Sequence[Sequence[Array]], piece: tuple[int, int]) -> dict[int, Array]:
        """Where a range of blocks writes: elements whose bits do not depend on what was there."""
        one, two = [self.run(start, [piece])[0] for start in runs]
        return {j: ~_unlike(one[j], two[j]) for j in self.step.writes}

    def _apart(self, operands: Sequence[Array], ranges: Sequence[tuple[int, int]]) -> None:
        """No element is written by two ranges of blocks."""
        if len(ranges) < 2:
            return
        runs = self._filled(operands)
        owner = {j: np.full(operands[j].shape, -1) for j in self.step.writes}
        for number, piece in enumerate(ranges):
            for j, written in self._written(runs, piece).items():
                twice = written & (owner[j] >= 0)
                if twice.any():
                    at = int(np.argmax(twice))
                    raise self.found(
                        f"blocks {ranges[owner[j][at]]} and {piece} both write element {at} of "
                        f"argument {j}"
                    )
                owner[j][written] = number


def _unlike(a: Array, b: Array) -> Array:
    """Which elements differ in any bit."""
    different: Array = a.view(np.uint8) != b.view(np.uint8)
    return np.asarray(different.reshape(-1, a.dtype.itemsize).any(1))


def step_operands(lowered: LoweredStep, known: Mapping[int, Array], sizes: Sizes) -> list[Array]:
    """Narrow arrays to run a step on: right operands, results spoiled."""
    made: list[Array] = []
    for j, value in enumerate(lowered.args):
        if j in lowered.writes:
            size = elements(value, sizes)
            array = np.zeros(size, value.dtype.numpy)
            array.view(np.uint8)[:] = 0 if value.dtype.is_bool else 0xC3
        else:
            array = narrowed(known[id(value)], value.dtype)
        made.append(array)
    return made


class _Forgetful(ObjectCache):
    """Neither reads nor keeps code on disk."""

    def _cache(self) -> None:
        return None


def _private_jit() -> JIT:
    jit = JIT()
    jit.cache = _Forgetful(jit.target)
    return jit


def compile_kernels(plan: Plan) -> tuple[JIT, list[int]]:
    """Code for a plan's kernels by a compiler of its own; FoundError names one that fails."""
    jit = _private_jit()
    try:
        return jit, jit.compile_kernels(plan.kernels)
    except (GraphcError, ArithmeticError, LookupError, TypeError, ValueError, AssertionError):
        pass
    labels = {s.kernel: s for s in reversed(plan.steps)}
    for i, kernel in enumerate(plan.kernels):
        step = labels[i]
        try:
            emit(kernel, "kernel")
            _private_jit().compile_kernels([kernel])
        except (GraphcError, ArithmeticError, LookupError, TypeError, ValueError) as error:
            message = f"it raised {type(error).__name__}: {error}"
        except AssertionError as error:
            message = f"an assertion failed: {error}"
        else:
            continue
        node = f"kernel '{step.label}'"
        raise FoundError(Finding("codegen", message, "", node, unique(step.locs), subject=kernel))
    raise FoundError(Finding("codegen", "the kernels compile one by one but not together"))
