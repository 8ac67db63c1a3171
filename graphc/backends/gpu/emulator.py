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
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache

from graphc.backends.gpu.emulator_context import CONTEXT, RUNTIME, context_word
from graphc.backends.gpu.emulator_faults import fault_message
from graphc.backends.gpu.emulator_memory import LaunchMemory, Shape
from graphc.backends.gpu.emulator_rewrite import Called, granules_of, loop_text
from graphc.backends.gpu.emulator_runtime import runtime_text
from graphc.backends.gpu.emulator_text import parse_kernel
from graphc.backends.gpu.emulator_threads import copies, thread_text, waits
from graphc.backends.gpu.emulator_warp import PRODUCTS, Product, product_text
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

_QUICK, _USUAL = 0, 1
"""Code generation levels: the first takes a quarter of the time, for code twice as slow."""

_LONG = 0.3
"""Seconds after which what was compiled quickly is compiled again."""


class EmulatorError(GraphcError, RuntimeError):
    """A kernel did what a GPU leaves undefined."""


@dataclass
class _Compiled:
    """A kernel's code on the host, what memory a launch of it needs, and what it calls.

    quick   whether it was compiled in little time, to run slower
    ran     how many seconds it has run
    """

    address: int
    shape: Shape
    called: Called
    functions: Sequence[int]
    quick: bool
    ran: float = 0.0


@dataclass(frozen=True)
class EmulatedKernel:
    """A kernel for a GPU, compiled for the host when it is first launched."""

    kernel: GpuKernel
    _made: dict[str, _Compiled] = field(default_factory=dict, repr=False, compare=False)
    _ways: set[tuple[int, ...]] = field(default_factory=set, repr=False, compare=False)

    def launch(
        self,
        blocks: int,
        buffers: Sequence[tuple[int, int]],
        sizes: Sequence[int],
        *,
        reverse: bool = False,
        races: str | None = None,
        budget: int = STEP_BUDGET,
    ) -> None:
        """Run `blocks` CTAs; a buffer is (address, bytes).  Raises EmulatorError for a fault.

        With `reverse` the last CTA and the last thread of each go first.  `races` says where two
        threads that nothing orders must not touch the same bytes, one of them writing: 'none',
        'shared' memory, which takes five times as long, or 'global' memory too, which takes six
        times the memory; None: in shared memory, where a kernel is launched in a way it has not
        been launched in before.
        """
        kernel = self.kernel
        if (len(buffers), len(sizes)) != (kernel.buffers, kernel.sizes):
            raise ValueError(
                f"{kernel.name} takes {kernel.buffers} buffers and {kernel.sizes} sizes, "
                f"not {len(buffers)} and {len(sizes)}"
            )
        if races is None:
            way = blocks, *sizes
            races = "none" if way in self._ways else "shared"
            self._ways.add(way)
        compiled = self._code(races)
        shape = compiled.shape if races != "none" else compiled.shape.unordered()
        memory = LaunchMemory(shape, buffers, sizes)
        context = memory.context(
            compiled.functions,
            compiled.called.rows,
            blocks=blocks,
            reversed=int(reverse),
            budget=budget,
        )
        begun = time.perf_counter()
        _ENTRY(compiled.address)(ctypes.addressof(context))
        compiled.ran += time.perf_counter() - begun
        if context[context_word("fault")]:
            found = dict(zip(CONTEXT, context, strict=True))
            raise EmulatorError(fault_message(kernel.name, found, compiled.called.sites, buffers))

    def _code(self, races: str) -> _Compiled:
        """The code for a launch; while that is quickly compiled code, races or not."""
        found = self._made.get(races)
        if found is None:
            checked = "shared" if races == "none" else races
            found = self._made[races] = _compiled(self.kernel, checked, quick=True)
        elif found.quick and found.ran > _LONG:
            found = self._made[races] = _compiled(self.kernel, races, quick=False)
        return found


# ---- code

_ENTRY = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
_THREAD = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)

_known: dict[tuple[GpuKernel, str, bool], _Compiled] = {}


def _compiled(kernel: GpuKernel, races: str, quick: bool) -> _Compiled:
    """The code of a kernel, compiled once per process, and again if it turns out to run long."""
    if races == "shared" and "addrspace(3)" not in kernel.text:
        races = "none"
    with compile_lock:
        found = _known.get((kernel, races, quick))
        if found is None:
            found = _known[kernel, races, quick] = _compile(kernel, RACES[races], quick)
    return found


def _compile(kernel: GpuKernel, spaces: Sequence[str], quick: bool) -> _Compiled:
    parsed = parse_kernel(kernel.text, kernel.name)
    granules = granules_of(parsed, spaces)
    shape = Shape(
        kernel.threads, parsed.shared_bytes, len(parsed.parameters), granules, copies(parsed)
    )
    jit = _jit(_QUICK if quick else _USUAL)
    if not waits(parsed):
        text, called = loop_text(parsed, kernel.threads, granules)
        address = jit.compile_text(text, ["emulate"])["emulate"]
        return _Compiled(address, shape, called, _functions(called), quick)
    text, called = thread_text(parsed, kernel.threads, granules, quick)
    address = jit.compile_text(text, ["emulate.thread"], split_coroutines)["emulate.thread"]
    shape = shape.of_threads(address, _frame_bytes(address, shape))
    return _Compiled(_runtime()["emu.grid"], shape, called, _functions(called), quick)


def _frame_bytes(address: int, shape: Shape) -> int:
    """How large the frame of a thread is: it says so where it finds none at all."""
    memory = LaunchMemory(shape, (), [0] * (3 * shape.parameters))
    context = memory.context([0] * (len(RUNTIME) + len(PRODUCTS)), (), stride=0)
    _THREAD(address)(ctypes.addressof(context), 0)
    return int(context[context_word("needed")])


@cache
def _jit(optimization: int) -> JIT:
    return JIT(Target(optimization=optimization))


@cache
def _runtime() -> Mapping[str, int]:
    """The functions that kernels share, but matrix products."""
    names = ["emu.grid", *(f"emu.{name}" for name in RUNTIME)]
    return _jit(_USUAL).compile_text(runtime_text(), names, split_coroutines)


@cache
def _product(product: Product) -> int:
    """The function of a matrix product."""
    name = f"emu.{product.name}"
    return _jit(_USUAL).compile_text(product_text(product), [name])[name]


def _functions(called: Called) -> Sequence[int]:
    """The addresses of the functions of RUNTIME, and of those products that are called."""
    products = [_product(p) if p.name in called.functions else 0 for p in PRODUCTS.values()]
    return [*(_runtime()[f"emu.{name}"] for name in RUNTIME), *products]
