"""The plan: what lowering and memory planning hand to a backend.

An ordered table of steps over buffers.  Steps before `commit` may fail and write no state; steps
from `commit` on write variables in place and cannot fail, so a failed run changes nothing.  What
follows from variables and constants alone may be made by a plan of its own, `keeping`, and stay
between runs.  Imports: arena, kernel, types, dims, location.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from graphc.arena import ALIGNMENT, Slot, formula, peaks, stack, summary
from graphc.dims import DimLike, Sizes, add, evaluate, product
from graphc.errors import RunError
from graphc.kernel import Contraction, Kernel, sizes_of
from graphc.location import Location
from graphc.types import TensorType

__all__ = [
    "ALIGNMENT",
    "BufferUse",
    "Check",
    "Kept",
    "Plan",
    "Ref",
    "Slot",
    "Space",
    "Step",
    "Value",
]


@dataclass(frozen=True)
class Ref:
    """Where a kernel argument lives.

    kind       index into
    'slot'     plan.slots: the arena
    'input'    plan.inputs: an array fed for this run, read only
    'constant' plan.constants
    'state'    plan.variables: the variable's current storage in the session
    'kept'     plan.kept: a value that stays between runs, read only
    'output'   plan.outputs: an array made for this run and returned
    'fault'    plan.checks: the fault record of the step (four i64, see LoopKernel)
    """

    kind: str
    index: int


@dataclass(frozen=True)
class Value:
    """A named array at the border of a plan: fed, fetched or kept as state."""

    name: str
    type: TensorType
    loc: Location


@dataclass(frozen=True)
class Kept:
    """A value that stays between runs, until one of the variables that it follows from changes.

    sources  those variables, by number in the plan
    """

    value: Value
    sources: tuple[int, ...]

    @property
    def bytes(self) -> int:
        """What it takes; its size is always known."""
        return evaluate(product(self.value.type.shape or ()), {}) * self.value.type.dtype.itemsize


@dataclass(frozen=True)
class Check:
    """A run-time check inside a step: what a fault means and whose line it is.

    `message` may name the `{value}` that failed and its `{position}` in row-major order.
    """

    error: type[RunError]
    message: str
    loc: Location
    op: str

    def make_error(self, position: int, value: int) -> RunError:
        """The error of a fault that was recorded."""
        text = self.message.replace("{value}", str(value)).replace("{position}", str(position))
        return self.error(f"{self.op}: {text}\n  at {self.loc}   {self.loc.source}")


@dataclass(frozen=True)
class Space:
    """A kernel's iteration space: each extent, -1 - i for the i-th of its symbolic sizes."""

    axes: tuple[int, ...]
    contraction: bool


def space_of(kernel: Kernel) -> Space:
    """The iteration space of a kernel."""
    columns = {d: -1 - i for i, d in enumerate(sizes_of(kernel))}
    axes = tuple(a if isinstance(a, int) else columns[a] for a in kernel.axes)
    return Space(axes, isinstance(kernel, Contraction))


@dataclass(frozen=True)
class Step:
    """One kernel launch.

    `sizes` are the kernel's symbolic sizes in the order of `kernel.sizes_of`.  `wait_from` is the
    first step whose completion must be awaited (all steps from it to this one), or -1.
    """

    kernel: int  # index into plan.kernels
    args: tuple[Ref, ...]
    writes: tuple[int, ...]  # positions in args that the kernel writes
    sizes: tuple[DimLike, ...]
    blocks: DimLike
    wait_from: int = -1
    label: str = ""
    locs: tuple[Location, ...] = ()


@dataclass(frozen=True)
class BufferUse:
    """A buffer's place in the plan, for printing and for the overlap property test."""

    name: str
    slot: int
    bytes: DimLike
    first: int
    last: int
    in_place_of: str = ""  # the buffer whose memory this one takes over at its first step


@dataclass(frozen=True)
class Plan:
    """Kernels and the steps that launch them, over buffers.

    One that was read from the cache has no kernels and no buffers, only the kernels' `spaces`.
    The outputs of `keeping` are what is `kept`; it has the same kernels and variables, is fed
    nothing, writes no state and cannot fail.
    """

    kernels: tuple[Kernel, ...]
    steps: tuple[Step, ...]
    commit: int
    slots: tuple[Slot, ...]
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    variables: tuple[Value, ...]
    constants: tuple[np.ndarray[Any, Any], ...]
    checks: tuple[tuple[Check, ...], ...] = ()
    buffers: tuple[BufferUse, ...] = field(default=(), compare=False)
    spaces: tuple[Space, ...] = field(default=(), compare=False)  # of the kernels
    kept: tuple[Kept, ...] = ()
    keeping: Plan | None = None

    def __post_init__(self) -> None:
        if not self.spaces:
            object.__setattr__(self, "spaces", tuple(map(space_of, self.kernels)))

    def arena_bytes(self, sizes: Sizes) -> int:
        """The exact size of the arena for these sizes: what a run allocates, no more, no less.

        What is kept is made in the same arena, before the run.
        """
        own = stack(self.slots, [slot.bytes(sizes) for slot in self.slots])[1]
        return own if self.keeping is None else max(own, self.keeping.arena_bytes({}))

    @property
    def kept_bytes(self) -> int:
        """What the values kept between runs take."""
        return sum(kept.bytes for kept in self.kept)

    def peak_bytes(self, sizes: Sizes) -> int:
        """The exact size of the arena and of what is kept, for these sizes."""
        return self.arena_bytes(sizes) + self.kept_bytes

    def without_kernels(self) -> Plan:
        """What is kept of a plan on disk."""
        keeping = None if self.keeping is None else self.keeping.without_kernels()
        return replace(self, kernels=(), buffers=(), keeping=keeping)

    def peak_formula(self) -> str:
        """The size of arena and kept values in bytes as text, a formula in the named sizes."""
        return formula(self.peaks())

    def peak_summary(self) -> str:
        """The same in a few words, to three digits: `12.4 MB + 0.81 MB*batch`."""
        return summary(self.peaks())

    def peaks(self) -> tuple[DimLike, ...]:
        """Expressions in the named sizes; the largest is `peak_bytes`.  See `arena.peaks`."""
        found: tuple[DimLike, ...] | None = self.__dict__.get("_peaks")
        if found is None:
            found = peaks(self.slots)
            if self.keeping is not None:
                least = self.keeping.arena_bytes({})
                found = tuple(d for d in found if not isinstance(d, int) or d > least)
                ground = (least,) if least or not found else ()
                found = tuple(add(d, self.kept_bytes) for d in (*found, *ground))
            self.__dict__["_peaks"] = found
        return found
