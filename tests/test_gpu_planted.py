"""Mistakes planted in the texts of real kernels for a GPU: the emulator finds each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pytest
from contraction_reference import matmul, matmul_buffers, value
from test_gpu_contractions import on_device
from test_gpu_loops import _reduction

from graphc.backends.gpu.contract_tiling import SINGLE
from graphc.backends.gpu.contraction import emit_gpu_contraction, gpu_contraction_blocks
from graphc.backends.gpu.emulator import EmulatedKernel, EmulatorError
from graphc.backends.gpu.kernel_text import GpuKernel
from graphc.backends.gpu.kernels import emit_gpu_kernel, gpu_blocks
from graphc.dims import symbol
from graphc.kernel import sizes_of
from graphc.types import float32

SIZE = 72


@dataclass
class Case:
    """A kernel and what it is launched with."""

    kernel: GpuKernel
    blocks: int
    buffers: Sequence[np.ndarray]
    sizes: Sequence[int]

    def launch(self, text: str, reverse: bool, races: str = "shared") -> None:
        places = [(x.ctypes.data, x.nbytes) for x in self.buffers]
        kernel = EmulatedKernel(replace(self.kernel, text=text))
        kernel.launch(self.blocks, places, self.sizes, reverse=reverse, races=races)

    def found(self, text: str, races: str = "shared") -> None:
        """In either order of threads."""
        for reverse in (False, True):
            with pytest.raises(EmulatorError):
                self.launch(text, reverse, races)


def product(precision: str, tiled: bool = True) -> Case:
    c = matmul(symbol("m"), symbol("n"), symbol("k"))
    tile = next(t for t in SINGLE if (t.m, t.n, t.k) == (64, 64, 8))
    sizes = dict.fromkeys("mnk", SIZE if tiled else 3)
    buffers = [on_device(x) for x in matmul_buffers(c, *sizes.values())]
    if not tiled:
        c = matmul(3, 3, 3)
    kernel = emit_gpu_contraction(c, "kernel", precision, tile if tiled else None)
    blocks = value(gpu_contraction_blocks(c, tile if tiled else None), sizes)
    return Case(kernel, blocks, buffers, [value(d, sizes) for d in sizes_of(c)])


def row_sums() -> Case:
    kernel = _reduction("sum", 3001, float32)
    buffers = [on_device(np.ones(n, np.float32)) for n in (3 * 3001, 3)]
    blocks = gpu_blocks(kernel)
    assert isinstance(blocks, int)
    return Case(emit_gpu_kernel(kernel, "kernel"), blocks, buffers, [])


CASES = {
    "f32": lambda: product("f32"),
    "tf32": lambda: product("tf32"),
    "bf16": lambda: product("bf16"),
    "row sums": row_sums,
}


def calls(text: str, part: str) -> list[int]:
    """The lines that call what has this in its name."""
    lines = enumerate(text.splitlines())
    return [i for i, line in lines if line.lstrip().startswith("call ") and part in line]


def without(text: str, number: int) -> str:
    lines = text.splitlines()
    return "\n".join(lines[:number] + lines[number + 1 :])


@pytest.mark.parametrize("name", CASES)
def test_each_barrier_is_missed(name: str) -> None:
    case = CASES[name]()
    text = case.kernel.text
    for reverse in (False, True):
        case.launch(text, reverse, "global")
    barriers = calls(text, "nvvm.barrier")
    assert barriers
    for number in barriers:
        case.found(without(text, number))


@pytest.mark.parametrize("part", ["cp.async.wait", "cp.async.commit"])
def test_each_wait_for_copies_is_missed(part: str) -> None:
    case = product("tf32")
    lines = calls(case.kernel.text, part)
    assert lines
    for number in lines:
        case.found(without(case.kernel.text, number))


@pytest.mark.parametrize("name", CASES)
def test_a_barrier_for_some_threads_only_is_found(name: str) -> None:
    case = CASES[name]()
    lines = case.kernel.text.splitlines()
    number = calls(case.kernel.text, "nvvm.barrier")[0]
    label = next(line[:-1] for line in reversed(lines[:number]) if line.endswith(":"))
    before, rest = "\n".join(lines[:number]), "\n".join(lines[number + 1 :])
    text = f"""{before}
  %planted = call i32 @llvm.nvvm.read.ptx.sreg.tid.x()
  %few = icmp ult i32 %planted, 40
  br i1 %few, label %planting, label %rejoined
planting:
{lines[number]}
  br label %rejoined
rejoined:
{rest}"""
    text = text.replace(f", %{label} ]", ", %rejoined ]")
    for reverse in (False, True):
        with pytest.raises(EmulatorError, match=r"a divergent barrier|lanes of a warp diverge"):
            case.launch(text, reverse, "none")


@pytest.mark.parametrize("name", CASES)
def test_a_buffer_that_is_too_short_is_found(name: str) -> None:
    case = CASES[name]()
    for i, whole in enumerate(case.buffers):
        case.buffers = [x[:-1] if j == i else x for j, x in enumerate((*case.buffers,))]
        with pytest.raises(EmulatorError, match=f"outside argument {i}: byte"):
            case.launch(case.kernel.text, reverse=False)
        case.buffers = [whole if j == i else x for j, x in enumerate(case.buffers)]


def test_a_bound_off_by_one_is_found() -> None:
    case = product("f32", tiled=False)
    text = case.kernel.text
    case.launch(text, reverse=False)
    assert text.count("icmp slt i64") == 2  # elements, and steps of their sums
    # one thread more computes the first element again
    case.found(text.replace("icmp slt i64", "icmp sle i64", 1), "global")
    head, tail = text.rsplit("icmp slt i64", 1)
    case.found(f"{head}icmp sle i64{tail}")
