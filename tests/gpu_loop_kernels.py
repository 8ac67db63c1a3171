"""Runs loop kernels for a GPU in the emulator, on copies of buffers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from graphc.backends.gpu.emulator import EmulatedKernel
from graphc.backends.gpu.kernels import emit_gpu_kernel, gpu_blocks
from graphc.dims import Dim, atoms, evaluate
from graphc.kernel import LoopKernel, sizes_of

Array = np.ndarray[Any, Any]

_ALIGNMENT = 16


def emulate(
    kernel: LoopKernel,
    buffers: Sequence[Array],
    symbols: Mapping[Dim, int],
    reverse: bool = False,
) -> tuple[list[Array], list[int]]:
    """The buffers after the kernel, and its fault record."""
    known = {a: n for d, n in symbols.items() for a in atoms(d)}
    copies = [_aligned(b) for b in buffers]
    record = np.zeros(4, np.int64)
    places = [(b.ctypes.data, b.nbytes) for b in (*copies, *([record] if kernel.checks else []))]
    EmulatedKernel(emit_gpu_kernel(kernel, "kernel")).launch(
        evaluate(gpu_blocks(kernel), known),
        places,
        [evaluate(d, known) for d in sizes_of(kernel)],
        reverse=reverse,
        races="global",
    )
    return copies, record.tolist()


def _aligned(data: Array) -> Array:
    """A copy that begins where a device's buffers begin."""
    room = np.empty(data.nbytes + _ALIGNMENT, np.uint8)
    start = -room.ctypes.data % _ALIGNMENT
    copy = room[start : start + data.nbytes].view(data.dtype)
    copy[:] = data
    return copy
