"""A plan at given sizes: what is launched, and where everything lies in the block of one run.

    inputs | header | outputs | arena

The header is what the host reads to learn how a run went: fault records, and a word that says that
the last step is done.  Inputs and header are one copy to the device, header and outputs one copy
back.  Imports: device, arena, plan, dims.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from graphc.arena import stack
from graphc.dims import DimLike, Sizes, evaluate
from graphc.errors import SizeError
from graphc.plan import Plan, Ref

ALIGNMENT = 256
"""Every buffer starts at a multiple of this: rows of memory stay whole."""

FAULT_BYTES = 32

MAX_BYTES = 1 << 62

STAGED_BYTES = 1 << 26
"""More than this is copied from and to the arrays themselves, not by way of other memory."""


def padded(size: int) -> int:
    """A size up to a multiple of ALIGNMENT."""
    return -(-size // ALIGNMENT) * ALIGNMENT


@dataclass(frozen=True)
class Border:
    """An input or output: where it lies, relative to the block, and what it is."""

    offset: int
    bytes: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]


@dataclass(frozen=True)
class Launch:
    """A step with its sizes; what is bound to a run are its arguments' addresses."""

    step: int
    kernel: int
    blocks: int
    args: tuple[tuple[Ref, int], ...]  # with the bytes that it may use
    sizes: tuple[int, ...]


@dataclass(frozen=True)
class Layout:
    """A plan at given sizes."""

    before: tuple[Launch, ...]  # the first that writes state
    after: tuple[Launch, ...]
    inputs: tuple[Border, ...]
    outputs: tuple[Border, ...]
    header: int  # where it lies
    done: int  # where the word lies that is 1 when the run is done
    faults: int  # how many records the header begins with
    outputs_end: int
    slots: tuple[int, ...]
    bytes: int

    @property
    def header_end(self) -> int:
        """Where the header ends and outputs begin."""
        return padded(self.done + 8)

    @property
    def copied_in(self) -> tuple[int, int]:
        """What of the block one copy fills, from host memory of its own: large inputs are left
        out."""
        return self.header if self.header > STAGED_BYTES else 0, self.header_end

    @property
    def copied_out(self) -> tuple[int, int]:
        """What of the block one copy reads."""
        large = self.outputs_end - self.header > STAGED_BYTES
        return self.header, self.header_end if large else self.outputs_end

    @property
    def staging_bytes(self) -> int:
        """Host memory for both copies, the one behind the other."""
        (a, b), (c, d) = self.copied_in, self.copied_out
        return b - a + d - c

    def address(self, ref: Ref, block: int) -> int:
        """Where an argument lies that is in the block."""
        if ref.kind == "slot":
            return block + self.slots[ref.index]
        if ref.kind == "fault":
            return block + self.header + FAULT_BYTES * ref.index
        borders = self.inputs if ref.kind == "input" else self.outputs
        return block + borders[ref.index].offset


def first_write(plan: Plan) -> int:
    """The first step that writes state, or how many steps there are."""
    writing = (
        i for i, s in enumerate(plan.steps) if any(s.args[w].kind == "state" for w in s.writes)
    )
    return max(plan.commit, next(writing, len(plan.steps)))


def lay_out(plan: Plan, sizes: Sizes) -> Layout:
    """Evaluate every size of a plan and place its buffers; raises SizeError."""
    known: dict[DimLike, int] = {}

    def value(dim: DimLike) -> int:
        if isinstance(dim, int):
            return dim
        found = known.get(dim)
        if found is None:
            found = known[dim] = evaluate(dim, sizes)
        return found

    def borders(values: Sequence[Any], at: int) -> tuple[tuple[Border, ...], int]:
        made = []
        for v in values:
            shape = tuple(value(d) for d in v.type.shape or ())
            dtype = v.type.dtype.numpy
            size = _checked(int(np.prod([1, *shape], dtype=object)) * dtype.itemsize)
            made.append(Border(at, size, shape, dtype))
            at += padded(size)
        return tuple(made), at

    inputs, header = borders(plan.inputs, 0)
    done = header + FAULT_BYTES * len(plan.checks)
    outputs, outputs_end = borders(plan.outputs, padded(done + 8))
    lengths = [padded(_checked(max(map(value, slot.members)))) for slot in plan.slots]
    starts, arena = stack(plan.slots, lengths)
    exact = _Extents(plan, value, lengths, (inputs, outputs))
    split = first_write(plan)
    launches: tuple[list[Launch], list[Launch]] = ([], [])
    for i, step in enumerate(plan.steps):
        blocks = value(step.blocks)
        if blocks:
            args = tuple((ref, exact.bytes_of(i, ref)) for ref in step.args)
            numbers = tuple(map(value, step.sizes))
            launches[i >= split].append(Launch(i, step.kernel, blocks, args, numbers))
    return Layout(
        tuple(launches[0]),
        tuple(launches[1]),
        inputs,
        outputs,
        header,
        done,
        len(plan.checks),
        outputs_end,
        tuple(outputs_end + s for s in starts),
        _checked(outputs_end + arena),
    )


def _checked(size: int) -> int:
    if size > MAX_BYTES:
        raise SizeError(f"a buffer of {size} bytes is more than memory can hold")
    return size


class _Extents:
    """How many bytes each argument may use: those of the very buffer where the plan says which."""

    def __init__(self, plan: Plan, value: Any, lengths: Sequence[int], borders: Any) -> None:
        self.plan = plan
        self.lengths = lengths
        self.inputs, self.outputs = borders
        self.buffers: Mapping[int, list[tuple[int, int, int]]] = {}
        found: dict[int, list[tuple[int, int, int]]] = {}
        for b in plan.buffers:
            found.setdefault(b.slot, []).append((b.first, b.last, value(b.bytes)))
        self.buffers = found

    def bytes_of(self, step: int, ref: Ref) -> int:
        """The bytes of a step's argument."""
        if ref.kind == "slot":
            sizes = [n for a, b, n in self.buffers.get(ref.index, ()) if a <= step <= b]
            return max(sizes, default=self.lengths[ref.index])
        if ref.kind == "fault":
            return FAULT_BYTES
        if ref.kind == "constant":
            return self.plan.constants[ref.index].nbytes
        if ref.kind == "state":
            shape = self.plan.variables[ref.index].type
            count = int(np.prod([1, *map(_known, shape.shape or ())], dtype=object))
            return count * shape.dtype.numpy.itemsize
        borders = self.inputs if ref.kind == "input" else self.outputs
        size: int = borders[ref.index].bytes
        return size


def _known(dim: DimLike) -> int:
    return evaluate(dim, {})
