"""Kernels of the kernel IR for a GPU: their text, and how many CTAs they have.

Imports: kernel_text, loops, contraction, codegen, kernel.
"""

from __future__ import annotations

from graphc.backends.gpu.contraction import emit_gpu_contraction, gpu_contraction_blocks
from graphc.backends.gpu.kernel_text import GpuKernel
from graphc.backends.gpu.loops import emit_gpu_loop, loop_blocks, loop_threads
from graphc.dims import DimLike
from graphc.kernel import Contraction, Kernel, sizes_of


def emit_gpu_kernel(kernel: Kernel, name: str, precision: str = "f32") -> GpuKernel:
    """A kernel's text for every GPU.

    precision  'f32', or 'tf32' or 'bf16' for what contractions may round their operands to
    """
    if isinstance(kernel, Contraction):
        return emit_gpu_contraction(kernel, name, precision)
    f = emit_gpu_loop(kernel, name)
    buffers = len(kernel.bufs) + (1 if kernel.checks else 0)
    text = "\n".join([*f.declarations.values(), "", str(f)])
    return GpuKernel(name, text, buffers, len(sizes_of(kernel)), loop_threads(kernel))


def gpu_blocks(kernel: Kernel) -> DimLike:
    """How many CTAs a kernel has: a formula in sizes."""
    if isinstance(kernel, Contraction):
        return gpu_contraction_blocks(kernel)
    return loop_blocks(kernel)
