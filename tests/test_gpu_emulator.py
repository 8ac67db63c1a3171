"""The GPU emulator: kernels compute what they say, and faults are named."""

from __future__ import annotations

import numpy as np
import pytest

from graphc.backends.gpu.emulator import EmulatedKernel, EmulatorError
from graphc.backends.gpu.kernel_text import GpuKernel


def buffer(array: np.ndarray) -> tuple[int, int]:
    return array.ctypes.data, array.nbytes


def kernel_of(body: str, buffers: int, sizes: int, threads: int, before: str = "") -> GpuKernel:
    """A kernel `k` with the thread's number in %t, the CTA's in %c and both together in %i."""
    parameters = [f"ptr %a{i}" for i in range(buffers)] + [f"i64 %s{i}" for i in range(sizes)]
    text = f"""
declare i32 @llvm.nvvm.read.ptx.sreg.tid.x()
declare i32 @llvm.nvvm.read.ptx.sreg.ctaid.x()
{before}
define ptx_kernel void @k({", ".join(parameters)}) {{
entry:
  %t = call i32 @llvm.nvvm.read.ptx.sreg.tid.x()
  %c = call i32 @llvm.nvvm.read.ptx.sreg.ctaid.x()
  %first = mul i32 %c, {threads}
  %i32 = add i32 %first, %t
  %i = zext i32 %i32 to i64
{body}
}}
"""
    return GpuKernel("k", text, buffers, sizes, threads)


AXPY = kernel_of(
    """
  %in = icmp slt i64 %i, %s0
  br i1 %in, label %do, label %out
do:
  %p = getelementptr float, ptr %a0, i64 %i
  %x = load float, ptr %p, align 4
  br label %h
h:
  %k = phi i64 [ 0, %do ], [ %k1, %h ]
  %sum = phi float [ %x, %do ], [ %sum1, %h ]
  %sum1 = fadd float %sum, %x
  %k1 = add i64 %k, 1
  %m = icmp slt i64 %k1, 3
  br i1 %m, label %h, label %w
w:
  %q = getelementptr float, ptr %a1, i64 %i
  store float %sum1, ptr %q, align 4
  br label %out
out:
  ret void""",
    buffers=2,
    sizes=1,
    threads=128,
)


@pytest.mark.parametrize("reverse", [False, True])
def test_threads_of_a_loop_kernel(reverse: bool) -> None:
    x, y = np.arange(1000, dtype=np.float32), np.zeros(1000, np.float32)
    EmulatedKernel(AXPY).launch(8, [buffer(x), buffer(y)], [1000], reverse=reverse)
    np.testing.assert_array_equal(y, 4 * x)


def test_an_access_outside_an_argument_is_found() -> None:
    x, y = np.zeros(1000, np.float32), np.zeros(1000, np.float32)
    kernel = EmulatedKernel(AXPY)
    with pytest.raises(EmulatorError, match=r"k: load of 4 bytes outside argument 0: byte 4000 of"):
        kernel.launch(8, [buffer(x), buffer(y)], [1001])
    with pytest.raises(EmulatorError, match=r"outside argument 1: byte 3996.*CTA 7, thread 103"):
        kernel.launch(8, [buffer(x), buffer(y[:-1])], [1000], reverse=True)


def test_a_misaligned_access_is_found() -> None:
    x = np.zeros(1000, np.float32)
    with pytest.raises(EmulatorError, match="misaligned load"):
        EmulatedKernel(AXPY).launch(8, [(x.ctypes.data + 2, 80), buffer(x)], [10])


def test_a_loop_that_does_not_end_is_found() -> None:
    x = np.zeros(10, np.float32)
    with pytest.raises(EmulatorError, match="a loop that does not end"):
        EmulatedKernel(AXPY).launch(1, [buffer(x), buffer(x)], [10], budget=2)
