"""A kernel for a GPU, as LLVM text.

The text is one module without a target, which a device compiles to PTX and the emulator for the
host.  Imports: nothing of graphc.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class GpuKernel:
    """A module with one kernel, `define ptx_kernel void @name(ptr ..., i64 ...)`.

    buffers   how many pointers it takes, the last one the fault record if the kernel checks
    sizes     how many i64 sizes follow
    threads   how many threads a CTA has, a multiple of 32; the grid is one axis of CTAs
    """

    name: str
    text: str
    buffers: int
    sizes: int
    threads: int
