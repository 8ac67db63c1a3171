"""An NVIDIA GPU, by PyCUDA.

The device's primary context is used, which other libraries of the process share, and is current in
a thread only while that uses the device.  All work goes to one stream that waits for no other.
Imports: device, cuda_graph, kernel_text, probe, ptx_cache, errors, statistics; PyCUDA when a device
is opened.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import struct
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

from graphc.arena import bytes_text
from graphc.backends.gpu import probe
from graphc.backends.gpu.cuda_graph import Graph, GraphDriver
from graphc.backends.gpu.device import Array, Stretch
from graphc.backends.gpu.kernel_text import GpuKernel
from graphc.backends.gpu.ptx_cache import kept_ptx
from graphc.dlpack import CUDA
from graphc.errors import DeviceError, OutOfMemoryError
from graphc.statistics import count

NEWEST = (9, 0)
"""Kernels are compiled for no later capability: the driver compiles them on for newer GPUs."""

RECENT = 512
"""Kernels that stay loaded though no program has them now."""

_NON_BLOCKING = 1


class _Thread(threading.local):
    """What a thread has of a device."""

    def __init__(self) -> None:
        self.pushed = 0
        self.inside = False
        self.stream: Any = None  # where its work goes, while it records


class _Function:
    """A kernel's code, loaded, and the shape of its CTAs."""

    __slots__ = ("__weakref__", "code", "threads")

    def __init__(self, code: Any, threads: tuple[int, int, int]) -> None:
        self.code = code
        self.threads = threads


class _Mark:
    """An event, which is the device's again when this goes: only there PyCUDA can free it."""

    __slots__ = ("_free", "event")

    def __init__(self, event: Any, free: deque[Any]) -> None:
        self.event = event
        self._free = free

    def __del__(self) -> None:
        self._free.append(self.event)


class _Active:
    """The device's context is current in this thread.

    A context left on PyCUDA's stack when its thread ends would end the process.  So what is pushed
    is counted before it is and after it has been popped, whatever a signal handler raises between.
    """

    __slots__ = ("_device",)

    def __init__(self, device: CudaDevice) -> None:
        self._device = device

    def __enter__(self) -> None:
        thread = self._device._thread
        thread.pushed += 1
        self._device._context.push()
        thread.inside = True

    def __exit__(self, *error: object) -> None:
        thread = self._device._thread
        thread.inside = False
        self._device._context.pop()
        thread.pushed -= 1


class CudaDevice:
    """A GPU with a stream of its own; raises DeviceError saying what is missing for it."""

    def __init__(self, number: int) -> None:
        missing = probe.missing_for_gpu()
        if missing:
            raise DeviceError(missing)
        import pycuda.driver as cuda

        self._cuda: Any = cuda
        self.name = f"gpu:{number}"
        self.failed = ""
        self.dlpack = (CUDA, number)
        self._thread = _Thread()
        self._lock = threading.RLock()
        self._allocations: dict[int, Any] = {}
        self._functions: weakref.WeakValueDictionary[str, _Function]
        self._functions = weakref.WeakValueDictionary()
        self._modules: dict[int, Any] = {}  # by what was made of each
        self._unused: deque[int] = deque()
        self._events: deque[Any] = deque()  # that nobody uses
        self._recent: deque[_Function] = deque(maxlen=RECENT)
        try:
            cuda.init()
            count = cuda.Device.count()
            if number >= count:
                raise DeviceError(f"there is no {self.name}: the driver has {count} devices")
            device = cuda.Device(number)
            self.capability: tuple[int, int] = device.compute_capability()
            self.description = f"{device.name()}, {bytes_text(device.total_memory())}"
            if self.capability < probe.CAPABILITY:
                major, minor = probe.CAPABILITY
                raise DeviceError(
                    f"{self.name} ({self.description}) is too old: it has compute capability "
                    f"{self.capability[0]}.{self.capability[1]}, {major}.{minor} is needed"
                )
            self._context = device.retain_primary_context()
            with self.active():
                self._stream = cuda.Stream(_NON_BLOCKING)
                self.stream: int | None = int(self._stream.handle)
                self._recording_stream = cuda.Stream(_NON_BLOCKING)
        except cuda.Error as error:
            raise DeviceError(f"{self.name} cannot be used: {error}") from None
        self._graphs = GraphDriver()
        _open.add(self)
        atexit.register(self._close)

    def active(self) -> AbstractContextManager[Any]:
        if self._thread.inside:
            return contextlib.nullcontext()
        if self.failed:
            raise DeviceError(self.failed)
        return _Active(self)

    def _close(self) -> None:
        """At exit: wait for the device and drop everything while there is a context for it."""
        if self in _forked:
            return
        self._thread.inside = False
        for _ in range(self._thread.pushed):
            with contextlib.suppress(Exception):
                self._context.pop()
        with contextlib.suppress(Exception), self.active():
            if not self.failed:
                self._stream.synchronize()
            self._recent.clear()
            self._modules.clear()
            self._events.clear()
            self._allocations.clear()
            del self._stream, self._recording_stream

    # ---- memory

    def memory_info(self) -> tuple[int, int]:
        free, total = self._cuda.mem_get_info()
        return int(free), int(total)

    def allocate(self, size: int) -> int:
        self._require_sound()
        try:
            allocation = self._cuda.mem_alloc(size)
        except self._cuda.MemoryError:
            free, total = self.memory_info()
            raise OutOfMemoryError(
                f"{self.name} ({self.description}) has no room for {bytes_text(size)}: "
                f"{bytes_text(free)} of {bytes_text(total)} are free"
            ) from None
        except self._cuda.Error as error:
            raise self._failure(error) from None
        address = int(allocation)
        self._allocations[address] = allocation
        return address

    def free(self, address: int) -> None:
        allocation = self._allocations.pop(address)
        with contextlib.suppress(self._cuda.Error):  # of a device that has failed
            allocation.free()

    def staging(self, size: int) -> Array:
        try:
            memory: Array = self._cuda.pagelocked_empty(size, "u1")
        except self._cuda.MemoryError:
            raise OutOfMemoryError(
                f"the host has no page-locked memory of {bytes_text(size)} for {self.name}"
            ) from None
        return memory

    # ---- work

    @property
    def _queue(self) -> Any:
        return self._thread.stream or self._stream

    def copy_in(self, address: int, array: Array) -> None:
        if array.nbytes:
            with self._failures():
                self._cuda.memcpy_htod_async(address, _bytes_of(array), self._queue)

    def copy_out(self, array: Array, address: int) -> None:
        if array.nbytes:
            with self._failures():
                self._cuda.memcpy_dtoh_async(_bytes_of(array), address, self._queue)

    def copy_within(self, to: int, source: int, size: int) -> None:
        if size:
            with self._failures():
                self._cuda.memcpy_dtod_async(to, source, size, self._queue)

    def load(self, kernels: Sequence[GpuKernel]) -> list[Any]:
        while self._unused:
            self._modules.pop(self._unused.popleft(), None)
        return [self._loaded(kernel) for kernel in kernels]

    def _loaded(self, kernel: GpuKernel) -> _Function:
        """A kernel's code, which equal kernels share while one of them is of use."""
        with self._lock:
            found = self._functions.get(kernel.text)
            count("kernels" if found is None else "kernel_hits")
            if found is None:
                text = kept_ptx(kernel.text, min(self.capability, NEWEST))
                with self._failures():
                    module = self._cuda.module_from_buffer(text.encode() + b"\0")
                    code = module.get_function(kernel.name)
                found = _Function(code, (kernel.threads, 1, 1))
                self._functions[kernel.text] = found
                # PyCUDA unloads a module only where the context is current: that is not where
                # Python happens to find that nobody needs it
                self._modules[id(found)] = module, code
                weakref.finalize(found, self._unused.append, id(found)).atexit = False
            self._recent.append(found)
            return found

    def launch(
        self, function: Any, blocks: int, buffers: Sequence[Stretch], sizes: Sequence[int]
    ) -> None:
        packed = struct.pack(f"{len(buffers)}Q{len(sizes)}q", *[a for a, _ in buffers], *sizes)
        with self._failures():
            launch = function.code._launch_kernel
            launch((blocks, 1, 1), function.threads, packed, 0, self._queue)

    def synchronize(self) -> None:
        self._require_sound()
        try:
            self._queue.synchronize()
        except self._cuda.Error as error:
            raise self._failure(error) from None

    def mark(self) -> _Mark:
        event = self._events.pop() if self._events else self._cuda.Event()
        with self._failures():
            event.record(self._queue)
        return _Mark(event, self._events)

    def seconds(self, begun: _Mark, ended: _Mark) -> float:
        with self._failures():
            return 1e-3 * float(begun.event.time_till(ended.event))

    def capture(self, record: Callable[[], None]) -> Callable[[], None]:
        with self._lock:
            self._thread.stream = self._recording_stream
            try:
                graph = self._graphs.capture(self._recording_stream.handle, record)
            finally:
                self._thread.stream = None

        def replay(graph: Graph = graph, stream: int = self._stream.handle) -> None:
            self._graphs.launch(graph, stream)

        return replay

    def wait_for(self, stream: int | None) -> None:
        if stream is None:
            self._cuda.Context.synchronize()
        else:
            self._graphs.wait(stream)

    # ---- failures

    def _require_sound(self) -> None:
        if self.failed:
            raise DeviceError(self.failed)

    @contextlib.contextmanager
    def _failures(self) -> Iterator[None]:
        try:
            yield
        except self._cuda.Error as error:
            raise self._failure(error) from None

    def _failure(self, error: Exception) -> DeviceError:
        """The error of a call that failed.  After a fault in a kernel every other one fails."""
        try:
            self._cuda.Context.synchronize()
        except self._cuda.Error:
            self.failed = f"{self.name} failed and cannot be used any more in this process: {error}"
            return DeviceError(self.failed)
        return DeviceError(f"{self.name}: {error}")


_open: weakref.WeakSet[CudaDevice] = weakref.WeakSet()
_forked: weakref.WeakSet[CudaDevice] = weakref.WeakSet()
"""Devices that the parent of this process opened."""


def _in_child() -> None:
    for device in list(_open):
        _forked.add(device)
        device.failed = (
            f"{device.name} was used before this process was forked, which no GPU survives: start "
            "processes with the 'spawn' method"
        )


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)


def _bytes_of(array: Array) -> Any:
    return array.reshape(-1).view("u1")
