"""Compiles loop kernels for tests and runs them on fenced buffers beside the interpreter."""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import llvmlite.binding as llvm
import numpy as np
from gpu_loop_kernels import emulate

from graphc.backends.codegen.loops import emit_loop_kernel
from graphc.backends.interpret import interpret_loop_kernel
from graphc.dims import Dim, atoms, evaluate
from graphc.kernel import LoopKernel, blocks, sizes_of

Array = np.ndarray[Any, Any]

llvm.initialize_native_target()
llvm.initialize_native_asmprinter()

_PAGE = mmap.PAGESIZE
_libc = ctypes.CDLL(None)


class Fenced:
    """A copy of an array that ends (or begins) exactly where unmapped memory begins (ends)."""

    def __init__(self, data: Array, at_end: bool) -> None:
        middle = -(-max(data.nbytes, 1) // _PAGE) * _PAGE
        self._map = mmap.mmap(-1, middle + 2 * _PAGE)
        start = ctypes.addressof(ctypes.c_char.from_buffer(self._map))
        for fence in (start, start + _PAGE + middle):
            assert _libc.mprotect(ctypes.c_void_p(fence), ctypes.c_size_t(_PAGE), 0) == 0
        self.address = start + _PAGE + (middle - data.nbytes if at_end else 0)
        kind = ctypes.c_char * data.nbytes
        self.array = np.frombuffer(kind.from_address(self.address), data.dtype)
        self.array[:] = data


class Compiled:
    """One kernel as machine code."""

    def __init__(self, kernel: LoopKernel) -> None:
        self.kernel = kernel
        text = emit_loop_kernel(kernel, "kernel")
        self.text = "\n".join(text.declarations.values()) + "\n" + str(text)
        module = llvm.parse_assembly(self.text)
        module.verify()
        target = llvm.Target.from_default_triple()
        features = llvm.get_host_cpu_features().flatten()
        machine = target.create_target_machine(
            cpu=llvm.get_host_cpu_name(), features=features, opt=2
        )
        self._engine = llvm.create_mcjit_compiler(module, machine)
        self._engine.finalize_object()
        address = self._engine.get_function_address("kernel")
        pointer, i64 = ctypes.c_void_p, ctypes.c_int64
        self._call = ctypes.CFUNCTYPE(None, pointer, pointer, i64, i64)(address)

    def run(
        self,
        addresses: Sequence[int],
        sizes: Mapping[Dim, int],
        ranges: Sequence[tuple[int, int]],
    ) -> None:
        args = (ctypes.c_void_p * max(1, len(addresses)))(*addresses)
        order = [sizes[d] for d in sizes_of(self.kernel)]
        table = (ctypes.c_int64 * max(1, len(order)))(*order)
        for first, last in ranges:
            self._call(ctypes.addressof(args), ctypes.addressof(table), first, last)


def table(kernel: LoopKernel, symbols: Mapping[Dim, int]) -> dict[Dim, int]:
    """The kernel's sizes for given symbols."""
    known = {a: n for d, n in symbols.items() for a in atoms(d)}
    return {d: evaluate(d, known) for d in sizes_of(kernel)}


def count_blocks(kernel: LoopKernel, symbols: Mapping[Dim, int]) -> int:
    known = {a: n for d, n in symbols.items() for a in atoms(d)}
    return evaluate(blocks(kernel), known)


def execute(
    compiled: Compiled,
    buffers: Sequence[Array],
    symbols: Mapping[Dim, int],
    ranges: Sequence[tuple[int, int]] | None = None,
    at_end: bool = True,
) -> tuple[list[Array], list[int]]:
    """Run machine code on fenced copies; returns the buffers after it and the fault record."""
    kernel = compiled.kernel
    fenced = [Fenced(b, at_end) for b in buffers]
    record = np.zeros(4, np.int64)
    addresses = [b.address for b in fenced] + [record.ctypes.data]
    if ranges is None:
        ranges = [(0, count_blocks(kernel, symbols))]
    compiled.run(addresses, table(kernel, symbols), ranges)
    return [b.array.copy() for b in fenced], record.tolist()


def _agree_on_gpu(
    kernel: LoopKernel,
    buffers: Sequence[Array],
    symbols: Mapping[Dim, int],
    expected: Sequence[Array],
    faults: Collection[Any],
    tolerance: float,
) -> None:
    """The same of the kernel that a GPU runs, in whatever order its threads come."""
    runs = [emulate(kernel, buffers, symbols, reverse) for reverse in (False, True)]
    for got, record in runs:
        for i, (want, have) in enumerate(zip(expected, got, strict=True)):
            message = f"buffer {i} on a GPU\n{kernel}"
            if want.dtype.kind == "f" and tolerance:
                np.testing.assert_allclose(have, want, tolerance, tolerance, err_msg=message)
            else:
                np.testing.assert_array_equal(have, want, err_msg=message)
        assert bool(record[0]) == bool(faults)
        assert not faults or tuple(record[1:]) in faults


def agree(
    kernel: LoopKernel,
    buffers: Sequence[Array],
    symbols: Mapping[Dim, int] | None = None,
    tolerance: float = 0.0,
    gpu: bool = True,
) -> list[Array]:
    """Assert that machine code does what the interpreter does, however it is cut into blocks, and
    so does the code for a GPU."""
    symbols = symbols or {}
    expected = [b.copy() for b in buffers]
    faults = interpret_loop_kernel(kernel, expected, table(kernel, symbols))
    compiled = Compiled(kernel)
    got, record = execute(compiled, buffers, symbols)
    for i, (want, have) in enumerate(zip(expected, got, strict=True)):
        message = f"buffer {i}\n{kernel}"
        if want.dtype.kind == "f" and tolerance:
            np.testing.assert_allclose(have, want, tolerance, tolerance, err_msg=message)
        else:
            np.testing.assert_array_equal(have, want, err_msg=message)
    assert bool(record[0]) == bool(faults)
    if faults:
        assert tuple(record[1:]) in faults
    if gpu:
        _agree_on_gpu(kernel, buffers, symbols, expected, faults, tolerance)
    count = count_blocks(kernel, symbols)
    singly, _ = execute(compiled, buffers, symbols, [(i, i + 1) for i in range(count)], False)
    for one, other in zip(got, singly, strict=True):
        assert one.tobytes() == other.tobytes(), f"blocks change bits\n{kernel}"
    return got
