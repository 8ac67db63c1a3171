"""Kernels for a GPU, run by the host: the same text, every access checked, no thread at random.

A kernel is rewritten line by line (`emulator_rewrite`, `emulator_threads`), compiled once per
process, and launched with the buffers it may touch.  Threads run one after another, in ascending or
descending order, so that a launch gives the same bits each time; what a GPU would leave undefined
is a fault that names the kernel, the line, the CTA and the thread.
Imports: emulator_context, emulator_faults, emulator_memory, emulator_rewrite, emulator_runtime,
emulator_text, emulator_threads, emulator_warp, kernel_text, backends.llvm, errors.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache

from graphc.backends.gpu.emulator_context import CONTEXT, RUNTIME, context_word
from graphc.backends.gpu.emulator_faults import fault_message
from graphc.backends.gpu.emulator_memory import LaunchMemory, Shape
from graphc.backends.gpu.emulator_rewrite import Site, granules_of, loop_text
from graphc.backends.gpu.emulator_runtime import runtime_text
from graphc.backends.gpu.emulator_text import parse_kernel
from graphc.backends.gpu.emulator_threads import copies, thread_text, waits
from graphc.backends.gpu.emulator_warp import PRODUCTS, product_text, warp_text
from graphc.backends.gpu.kernel_text import GpuKernel
from graphc.backends.llvm.coroutines import split_coroutines
from graphc.backends.llvm.jit import JIT
from graphc.backends.llvm.target import Target, compile_lock
from graphc.errors import GraphcError

STEP_BUDGET = 1 << 28
"""How many iterations of loops one thread may make before it counts as one that never ends."""

RACES: dict[str, tuple[str, ...]] = {
    "none": (),
    "shared": ("shared",),
    "global": ("shared", "global"),
}
"""In which memory the order of accesses is checked, by what a launch asks for."""

_OPTIMIZATION = 1


class EmulatorError(GraphcError, RuntimeError):
    """A kernel did what a GPU leaves undefined."""


@dataclass(frozen=True)
class _Compiled:
    """A kernel's code on the host, what memory a launch of it needs, and what it calls."""

    address: int
    sites: Sequence[Site]
    shape: Shape
    functions: Sequence[int]


@dataclass(frozen=True)
class EmulatedKernel:
    """A kernel for a GPU, compiled for the host when it is first launched."""

    kernel: GpuKernel
    _made: dict[str, _Compiled] = field(default_factory=dict, repr=False, compare=False)

    def launch(
        self,
        blocks: int,
        buffers: Sequence[tuple[int, int]],
        sizes: Sequence[int],
        *,
        reverse: bool = False,
        races: str = "shared",
        budget: int = STEP_BUDGET,
    ) -> None:
        """Run `blocks` CTAs; a buffer is (address, bytes).  Raises EmulatorError for a fault.

        With `reverse` the last CTA and the last thread of each go first.  `races` says where two
        threads that nothing orders must not touch the same bytes, one of them writing: 'none',
        'shared' memory, or 'global' memory too, which takes twice as long and eight times the
        memory.
        """
        kernel = self.kernel
        if (len(buffers), len(sizes)) != (kernel.buffers, kernel.sizes):
            raise ValueError(
                f"{kernel.name} takes {kernel.buffers} buffers and {kernel.sizes} sizes, "
                f"not {len(buffers)} and {len(sizes)}"
            )
        compiled = self._made.get(races)
        if compiled is None:
            compiled = self._made[races] = _compiled(kernel, races)
        memory = LaunchMemory(compiled.shape, buffers, sizes)
        context = memory.context(
            compiled.functions, blocks=blocks, reversed=int(reverse), budget=budget
        )
        _ENTRY(compiled.address)(ctypes.addressof(context))
        if context[context_word("fault")]:
            found = dict(zip(CONTEXT, context, strict=True))
            raise EmulatorError(fault_message(kernel.name, found, compiled.sites, buffers))


# ---- code

_ENTRY = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
_THREAD = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64)

_known: dict[tuple[str, str, int, str], _Compiled] = {}


def _compiled(kernel: GpuKernel, races: str) -> _Compiled:
    """The code of a kernel, compiled once per process."""
    key = kernel.name, kernel.text, kernel.threads, races
    with compile_lock:
        found = _known.get(key)
        if found is None:
            found = _known[key] = _compile(kernel, RACES[races])
    return found


def _compile(kernel: GpuKernel, spaces: Sequence[str]) -> _Compiled:
    parsed = parse_kernel(kernel.text, kernel.name)
    granules = granules_of(parsed, spaces)
    shape = Shape(
        kernel.threads, parsed.shared_bytes, len(parsed.parameters), granules, copies(parsed)
    )
    if not waits(parsed):
        text, sites, called = loop_text(parsed, kernel.threads, granules)
        address = _jit().compile_text(text, ["emulate"])["emulate"]
        return _Compiled(address, sites, shape, _functions(called))
    text, sites, called = thread_text(parsed, kernel.threads, granules)
    address = _jit().compile_text(text, ["emulate.thread"], split_coroutines)["emulate.thread"]
    return _Compiled(
        _runtime()["emu.grid"],
        sites,
        shape.of_threads(address, _frame_bytes(address, shape)),
        _functions(called),
    )


def _frame_bytes(address: int, shape: Shape) -> int:
    """How large the frame of a thread is: it says so where it finds none at all."""
    memory = LaunchMemory(shape, (), [0] * shape.parameters)
    context = memory.context(_functions(()), stride=0)
    _THREAD(address)(ctypes.addressof(context), 0, 0)
    return int(context[context_word("needed")])


@cache
def _jit() -> JIT:
    return JIT(Target(optimization=_OPTIMIZATION))


@cache
def _runtime() -> Mapping[str, int]:
    """The functions that kernels share, but matrix products."""
    names = ["emu.grid", *(f"emu.{name}" for name in RUNTIME)]
    return _jit().compile_text(runtime_text() + warp_text(), names, split_coroutines)


@cache
def _product(name: str) -> int:
    """The function of a matrix product."""
    product = next(p for p in PRODUCTS.values() if p.name == name)
    return _jit().compile_text(product_text(product), [f"emu.{name}"])[f"emu.{name}"]


def _functions(called: Sequence[str]) -> Sequence[int]:
    """The addresses of the functions of RUNTIME, and of those products that are called."""
    with compile_lock:
        products = [_product(p.name) if p.name in called else 0 for p in PRODUCTS.values()]
        return [*(_runtime()[f"emu.{name}"] for name in RUNTIME), *products]
