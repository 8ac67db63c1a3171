"""A device in host memory whose kernels the emulator runs: slow, and every access is checked.

Work is done when it is asked for, so nothing is ever waited for.  Imports: device, emulator,
kernel_text, uninterrupted, errors, forks.
"""

from __future__ import annotations

import contextlib
import ctypes
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np

from graphc.backends.gpu.device import Array, Stretch
from graphc.backends.gpu.emulator import EmulatedKernel, EmulatorError
from graphc.backends.gpu.kernel_text import GpuKernel
from graphc.backends.gpu.uninterrupted import uninterrupted
from graphc.errors import DeviceError, OutOfMemoryError
from graphc.forks import new_rlock
from graphc.statistics import count

ALIGNMENT = 256

GIBIBYTE = 1 << 30


class EmulatedDevice:
    """A GPU that is not there.

    capacity  bytes of memory it pretends to have
    """

    failed = ""
    stream: int | None = None

    def __init__(
        self,
        name: str = "emulated-gpu",
        capability: tuple[int, int] = (9, 0),
        capacity: int = 4 * GIBIBYTE,
    ) -> None:
        self.name = name
        self.capability = capability
        self.description = f"emulated GPU of compute capability {capability[0]}.{capability[1]}"
        self.dlpack = (1, 0)  # its memory is the host's
        self.capacity = capacity
        self._memory: dict[int, Array] = {}
        self._lock = new_rlock()
        self._recording = threading.local()

    def active(self) -> AbstractContextManager[Any]:
        return contextlib.nullcontext()

    # ---- memory

    def memory_info(self) -> tuple[int, int]:
        with self._lock:
            return self.capacity - sum(m.nbytes for m in self._memory.values()), self.capacity

    def allocate(self, size: int) -> int:
        with self._lock:
            free, _ = self.memory_info()
            if size + ALIGNMENT > free:
                raise OutOfMemoryError(
                    f"{self.name} has no room for {size} bytes: {max(free, 0)} are free"
                )
            memory = np.empty(size + ALIGNMENT, np.uint8)
            address = -(-memory.ctypes.data // ALIGNMENT) * ALIGNMENT
            self._memory[address] = memory
            return int(address)

    def free(self, address: int) -> None:
        with self._lock:
            del self._memory[address]

    def staging(self, size: int) -> Array:
        return np.empty(size, np.uint8)

    # ---- work

    def copy_in(self, address: int, array: Array) -> None:
        self._do(lambda: _move(address, array.ctypes.data, array.nbytes))

    def copy_out(self, array: Array, address: int) -> None:
        self._do(lambda: _move(array.ctypes.data, address, array.nbytes))

    def copy_within(self, to: int, source: int, size: int) -> None:
        self._do(lambda: _move(to, source, size))

    def load(self, kernels: Sequence[GpuKernel]) -> list[Any]:
        count("kernels", len(kernels))
        return [EmulatedKernel(kernel) for kernel in kernels]

    def launch(
        self, function: Any, blocks: int, buffers: Sequence[Stretch], sizes: Sequence[int]
    ) -> None:
        def work() -> None:
            try:
                function.launch(blocks, buffers, sizes)
            except EmulatorError as error:
                raise DeviceError(str(error)) from error

        self._do(work)

    def synchronize(self) -> None:
        pass

    def mark(self) -> float:
        return time.perf_counter()

    def seconds(self, begun: float, ended: float) -> float:
        return ended - begun

    def capture(self, record: Callable[[], None]) -> Callable[[], None]:
        recorded: list[Callable[[], None]] = []
        self._recording.work = recorded
        try:
            record()
        finally:
            self._recording.work = None

        def replay() -> None:
            def all_of_it(stop: threading.Event) -> None:
                for work in recorded:
                    work()

            interrupt = uninterrupted(all_of_it)[1]
            if interrupt is not None:
                raise interrupt

        return replay

    def wait_for(self, stream: int | None) -> None:
        pass

    def _do(self, work: Callable[[], None]) -> None:
        recorded = getattr(self._recording, "work", None)
        if recorded is None:
            work()
        else:
            recorded.append(work)


def _move(to: int, source: int, size: int) -> None:
    ctypes.memmove(to, source, size)
