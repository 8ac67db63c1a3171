"""A plan on a GPU: its kernels and constants, what is known of sizes, and who runs it.

Imports: base, device, layout, memory, seat, gpu_run, plan, dims, trace.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from graphc.arena import bytes_text
from graphc.backends.base import Residence, require_time
from graphc.backends.gpu.device import Array, Stretch
from graphc.backends.gpu.gpu_run import GpuRun
from graphc.backends.gpu.kernel_text import GpuKernel
from graphc.backends.gpu.layout import lay_out, padded
from graphc.backends.gpu.memory import DeviceMemory
from graphc.backends.gpu.seat import Bound
from graphc.dims import Atom, Sizes, evaluate
from graphc.errors import DeviceError, OutOfMemoryError
from graphc.forks import new_lock
from graphc.plan import Kept, Plan
from graphc.trace import Trace

BOUND_SIZES = 64
"""How many sets of sizes an executable remembers."""

LARGEST = 5
"""How many tensors an error names when memory runs out."""


class GpuExecutable:
    """A plan and its kernels on a device; see `backends.base.Executable`."""

    kept: tuple[Kept, ...] = ()

    def __init__(
        self,
        plan: Plan,
        kernels: Sequence[GpuKernel],
        memory: DeviceMemory,
    ) -> None:
        self.plan = plan
        self.memory = memory
        refs = [step.args[w] for step in plan.steps for w in step.writes]
        self.written = sorted({ref.index for ref in refs if ref.kind == "state"})
        self._lock = new_lock()
        self._clock = itertools.count(1)
        with memory.device.active():
            self.functions = memory.device.load(kernels)
            self.constants = self._place_constants()
        self._bound: dict[tuple[tuple[Atom, int], ...], Bound] = {}

    def _place_constants(self) -> list[Stretch]:
        """Where the constants are from now on."""
        offsets, total = [], 0
        for constant in self.plan.constants:
            offsets.append(total)
            total += padded(constant.nbytes)
        if not offsets:
            return []
        address = self.memory.allocate(total)
        self.memory.release_with(self, address)
        for constant, offset in zip(self.plan.constants, offsets, strict=True):
            self.memory.device.copy_in(address + offset, constant)
        self.memory.device.synchronize()
        sizes = [constant.nbytes for constant in self.plan.constants]
        return [(address + o, n) for o, n in zip(offsets, sizes, strict=True)]

    @property
    def residence(self) -> Residence:
        """Where the variables stay that it runs on."""
        return self.memory.residents

    def run(
        self,
        inputs: Sequence[Array],
        state: Sequence[Array],
        sizes: Sizes,
        threads: int,
        trace: Trace | None = None,
        deadline: float | None = None,
        kept: Sequence[Array] = (),
    ) -> list[Array]:
        return self.run_at(inputs, state, sizes, trace, deadline)

    def run_at(
        self,
        inputs: Sequence[Array],
        state: Sequence[Array],
        sizes: Sizes,
        trace: Trace | None = None,
        deadline: float | None = None,
        on_device: bool = False,
    ) -> list[Array]:
        """As `run`; `on_device` returns DeviceArrays."""
        require_time(deadline)
        bound = self._bound_to(sizes)
        with self.memory.device.active():
            try:
                run = GpuRun(self, bound, inputs, state, on_device)
            except OutOfMemoryError as error:
                raise self._too_large(error, sizes, bound) from None
            try:
                return run.go(trace, deadline)
            except DeviceError:
                failed = self.memory.device.failed
                if failed:
                    self.memory.residents.lose_all(failed)
                raise

    def on_device(self) -> OnDevice:
        """The same program, which leaves what it returns on the device."""
        return OnDevice(self)

    # ---- sizes

    def arena_bytes(self, sizes: Sizes) -> int:
        """Bytes of scratch memory a run with these sizes uses, besides inputs and outputs."""
        return self.plan.arena_bytes(sizes)

    def _bound_to(self, sizes: Sizes) -> Bound:
        key = tuple(sizes.items())
        bound = self._bound.get(key)
        if bound is None:
            bound = Bound(lay_out(self.plan, sizes))
            with self._lock:
                self._bound[key] = bound
                while len(self._bound) > BOUND_SIZES:
                    del self._bound[min(self._bound, key=lambda k: self._bound[k].used)]
        bound.used = next(self._clock)
        return bound

    def _too_large(self, error: OutOfMemoryError, sizes: Sizes, bound: Bound) -> OutOfMemoryError:
        """The error with what takes most of the memory."""
        named = [(evaluate(b.bytes, sizes), b.name) for b in self.plan.buffers]
        layout = bound.layout
        for values, borders in (
            (self.plan.inputs, layout.inputs),
            (self.plan.outputs, layout.outputs),
        ):
            named += [(b.bytes, v.name) for v, b in zip(values, borders, strict=True)]
        lines = [str(error), f"the run needs {bytes_text(layout.bytes)} besides variables"]
        for size, name in sorted(named, reverse=True)[:LARGEST]:
            lines.append(f"  {bytes_text(size):>10}  {name}")
        return OutOfMemoryError("\n".join(lines))


class OnDevice:
    """A program on a GPU that returns DeviceArrays; see `backends.base.Executable`."""

    kept: tuple[Kept, ...] = ()

    def __init__(self, executable: GpuExecutable) -> None:
        self._executable = executable

    @property
    def residence(self) -> Residence:
        return self._executable.residence

    def run(
        self,
        inputs: Sequence[Array],
        state: Sequence[Array],
        sizes: Sizes,
        threads: int,
        trace: Trace | None = None,
        deadline: float | None = None,
        kept: Sequence[Array] = (),
    ) -> list[Array]:
        return self._executable.run_at(inputs, state, sizes, trace, deadline, on_device=True)

    def arena_bytes(self, sizes: Sizes) -> int:
        return self._executable.arena_bytes(sizes)
