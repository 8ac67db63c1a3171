"""Contractions as kernels for a GPU.

A CTA computes a tile of C, or each thread an element where tiles do not pay.
Imports: the contract modules beside this one, kernel_text, kernel, dims.
"""

from __future__ import annotations

from graphc.backends.gpu.contract_mma import MmaEmitter, warps_of
from graphc.backends.gpu.contract_text import DeviceText
from graphc.backends.gpu.contract_threads import THREADS, emit_threads, thread_blocks
from graphc.backends.gpu.contract_tiles import TileEmitter
from graphc.backends.gpu.contract_tiling import Tile, is_simple, tile_blocks, tile_of
from graphc.backends.gpu.kernel_text import GpuKernel
from graphc.dims import DimLike
from graphc.kernel import Contraction, sizes_of


def gpu_contraction_blocks(c: Contraction, tile: Tile | None = None) -> DimLike:
    """How many CTAs the kernel of a contraction has: a formula in sizes."""
    tile = tile or tile_of(c)
    return thread_blocks(c) if tile is None else tile_blocks(c, tile)


def emit_gpu_contraction(
    c: Contraction, name: str, precision: str = "f32", tile: Tile | None = None
) -> GpuKernel:
    """The kernel of a contraction; `precision` is that of products of f32: 'f32', 'tf32' or 'bf16',
    the latter two from compute capability 8.0 on.  A `tile` takes the place of its own."""
    assert not c.winograd and not c.panel, "kernels for a GPU have neither"
    tile = tile or tile_of(c)
    warps = warps_of(c, tile, precision)
    f = DeviceText(name)
    if tile is None:
        threads = THREADS
        f.open_grid(c, threads)
        emit_threads(f, c)
    elif warps is not None:
        threads = warps.threads
        f.open_grid(c, threads, warps.registers(is_simple(c, tile), precision))
        MmaEmitter(f, c, tile, warps, precision).emit()
    else:
        threads = tile.threads
        f.open_grid(c, threads, tile.registers(is_simple(c, tile)))
        TileEmitter(f, c, tile).emit()
    f.close_kernel()
    return GpuKernel(name, f.module(), len(c.bufs), len(sizes_of(c)), threads)
