"""The plan: what lowering and memory planning hand to a backend.

An ordered table of steps over buffers.  Steps before `commit` may fail and write no state; steps
from `commit` on write variables in place and cannot fail, so a failed run changes nothing.
Imports: arena, kernel, types, dims, location.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from graphc.arena import ALIGNMENT, Slot, formula, peaks, stack, summary
from graphc.dims import DimLike, Sizes
from graphc.errors import RunError
from graphc.kernel import Contraction, Kernel, sizes_of
from graphc.location import Location
from graphc.types import TensorType

__all__ = ["ALIGNMENT", "BufferUse", "Check", "Plan", "Ref", "Slot", "Space", "Step", "Value"]


@dataclass(frozen=True)
class Ref:
    """Where a kernel argument lives.

    kind       index into
    'slot'     plan.slots: the arena
    'input'    plan.inputs: an array fed for this run, read only
    'constant' plan.constants
    'state'    plan.variables: the variable's current storage in the session
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

    def __post_init__(self) -> None:
        if not self.spaces:
            object.__setattr__(self, "spaces", tuple(map(space_of, self.kernels)))

    def arena_bytes(self, sizes: Sizes) -> int:
        """The exact size of the arena for these sizes: what a run allocates, no more, no less."""
        return stack(self.slots, [slot.bytes(sizes) for slot in self.slots])[1]

    def peak_formula(self) -> str:
        """The arena's size in bytes as text, a formula in the named sizes."""
        return formula(self.peaks())

    def peak_summary(self) -> str:
        """The same in a few words, to three digits: `12.4 MB + 0.81 MB*batch`."""
        return summary(self.peaks())

    def peaks(self) -> tuple[DimLike, ...]:
        """Expressions in the named sizes; the largest is the arena's size.  See `arena.peaks`."""
        found: tuple[DimLike, ...] | None = self.__dict__.get("_peaks")
        if found is None:
            found = self.__dict__["_peaks"] = peaks(self.slots)
        return found
