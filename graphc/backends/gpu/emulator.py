"""Kernels for a GPU, run by the host: the same text, every access checked, no thread at random.

A kernel is rewritten line by line (`emulator_rewrite`), compiled once per process, and launched
with the buffers it may touch.  Threads run one after another, in ascending or descending order, so
that a launch gives the same bits each time; what a GPU would leave undefined is a fault that names
the kernel, the line, the CTA and the thread.  Imports: emulator_context, emulator_rewrite,
emulator_text, kernel_text, backends.llvm, errors.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Sequence
from dataclasses import dataclass

from graphc.backends.gpu.emulator_context import CONTEXT, FAULTS, PARAMETER, context_word
from graphc.backends.gpu.emulator_rewrite import Site, loop_text
from graphc.backends.gpu.emulator_text import parse_kernel
from graphc.backends.gpu.kernel_text import GpuKernel
from graphc.backends.llvm.jit import JIT
from graphc.backends.llvm.target import Target, compile_lock
from graphc.errors import GraphcError

STEP_BUDGET = 1 << 28
"""How many iterations of loops one thread may make before it counts as one that never ends."""

_OPTIMIZATION = 1


class EmulatorError(GraphcError, RuntimeError):
    """A kernel did what a GPU leaves undefined."""


@dataclass(frozen=True)
class _Compiled:
    """A kernel's code on the host."""

    address: int
    sites: Sequence[Site]


class EmulatedKernel:
    """A kernel for a GPU, compiled for the host when it is first launched."""

    def __init__(self, kernel: GpuKernel) -> None:
        self.kernel = kernel

    def launch(
        self,
        blocks: int,
        buffers: Sequence[tuple[int, int]],
        sizes: Sequence[int],
        *,
        reverse: bool = False,
        budget: int = STEP_BUDGET,
    ) -> None:
        """Run `blocks` CTAs; a buffer is (address, bytes).  Raises EmulatorError for a fault.

        With `reverse` the last CTA and the last thread of each go first.
        """
        kernel = self.kernel
        if (len(buffers), len(sizes)) != (kernel.buffers, kernel.sizes):
            raise ValueError(
                f"{kernel.name} takes {kernel.buffers} buffers and {kernel.sizes} sizes, "
                f"not {len(buffers)} and {len(sizes)}"
            )
        compiled = _compiled(kernel)
        rows = [(address, size, 0) for address, size in buffers] + [(n, 0, 0) for n in sizes]
        table = (ctypes.c_int64 * (len(PARAMETER) * len(rows) + 1))(*(w for r in rows for w in r))
        context = (ctypes.c_int64 * len(CONTEXT))()
        for word, value in {
            "blocks": blocks,
            "threads": kernel.threads,
            "reversed": int(reverse),
            "budget": budget,
            "parameters": ctypes.addressof(table),
        }.items():
            context[context_word(word)] = value
        _ENTRY(compiled.address)(ctypes.addressof(context))
        if context[0]:
            raise EmulatorError(self._message(compiled, list(context), buffers))

    def _message(
        self, compiled: _Compiled, context: Sequence[int], buffers: Sequence[tuple[int, int]]
    ) -> str:
        found = dict(zip(CONTEXT, context, strict=True))
        site = compiled.sites[found["site"] - 1]
        what = _fault_text(FAULTS[found["fault"]], site, found["value"], buffers)
        return (
            f"{self.kernel.name}: {what}, CTA {found['cta']}, thread {found['thread']}, "
            f"at: {site.line}"
        )


def _fault_text(fault: str, site: Site, value: int, buffers: Sequence[tuple[int, int]]) -> str:
    """What went wrong, in words."""
    if fault == "budget":
        return "a loop that does not end"
    assert fault == "access" and site.access is not None
    access = site.access
    value %= 1 << 64
    if value % access.align:
        return f"misaligned {access.kind}: address {value:#x} is no multiple of {access.align}"
    places = []
    for root in site.roots:
        if root.space != "global":
            places.append(f"the {root.bytes} bytes of {root.space} {root.name}")
            continue
        address, size = buffers[root.number]
        places.append(f"argument {root.number}: byte {value - address} of {size}")
    return f"{access.kind} of {access.bytes} bytes outside {' and '.join(places)}"


# ---- code

_ENTRY = ctypes.CFUNCTYPE(None, ctypes.c_void_p)

_jit: JIT | None = None
_known: dict[tuple[str, int], _Compiled] = {}
_lock = threading.Lock()


def _compiled(kernel: GpuKernel) -> _Compiled:
    """The code of a kernel, compiled once per process."""
    key = kernel.text, kernel.threads
    found = _known.get(key)
    if found is None:
        with compile_lock:
            found = _known.get(key)
            if found is None:
                found = _known[key] = _compile(kernel)
    return found


def _compile(kernel: GpuKernel) -> _Compiled:
    global _jit
    if _jit is None:
        _jit = JIT(Target(optimization=_OPTIMIZATION))
    text, sites = loop_text(parse_kernel(kernel.text, kernel.name), kernel.threads)
    return _Compiled(_jit.compile_text(text, ["emulate"])["emulate"], sites)
