"""CUDA graphs: work recorded from a stream and launched as one, which PyCUDA does not wrap.

The driver is called through ctypes; streams are PyCUDA's, by their handles.
Imports: probe, errors.
"""

from __future__ import annotations

import ctypes
import weakref
from collections import deque
from collections.abc import Callable
from typing import Any

from graphc.backends.gpu.probe import DRIVER
from graphc.errors import DeviceError

_THREAD_LOCAL = 1
"""The capture mode in which other threads may use the driver as they like."""

_Handle = ctypes.c_void_p


class GraphDriver:
    """The driver's functions for graphs."""

    def __init__(self) -> None:
        self._library: Any = ctypes.CDLL(DRIVER)
        self._launch = self._library.cuGraphLaunch
        self._launch.argtypes = [_Handle, _Handle]
        self._dead: deque[int] = deque()

    def capture(self, stream: int, record: Callable[[], None]) -> Graph:
        """The work that `record` gives to a stream, which does not do it."""
        while self._dead:
            self._library.cuGraphExecDestroy(_Handle(self._dead.popleft()))
        graph, made = _Handle(), _Handle()
        self._call("cuStreamBeginCapture_v2", _Handle(stream), _THREAD_LOCAL)
        try:
            record()
        except BaseException:
            self._library.cuStreamEndCapture(_Handle(stream), ctypes.byref(graph))
            if graph.value:
                self._library.cuGraphDestroy(graph)
            raise
        self._call("cuStreamEndCapture", _Handle(stream), ctypes.byref(graph))
        try:
            flags = ctypes.c_ulonglong(0)
            self._call("cuGraphInstantiateWithFlags", ctypes.byref(made), graph, flags)
        finally:
            self._library.cuGraphDestroy(graph)
        assert made.value
        found = Graph(made.value)
        weakref.finalize(found, self._dead.append, made.value).atexit = False
        return found

    def launch(self, graph: Graph, stream: int) -> None:
        """Give a graph's work to a stream, in one call."""
        code = self._launch(graph.handle, stream)
        if code:
            raise self._error("cuGraphLaunch", code)

    def wait(self, stream: int) -> None:
        """Wait for a stream of anybody's, by its handle."""
        self._call("cuStreamSynchronize", _Handle(stream))

    def _call(self, name: str, *arguments: Any) -> None:
        code = getattr(self._library, name)(*arguments)
        if code:
            raise self._error(name, code)

    def _error(self, name: str, code: int) -> DeviceError:
        text = ctypes.c_char_p()
        self._library.cuGetErrorString(code, ctypes.byref(text))
        said = text.value.decode(errors="replace") if text.value else "no explanation"
        return DeviceError(f"{name}: {said} (error {code})")


class Graph:
    """Recorded work, for `GraphDriver.launch`; gone some time after this is."""

    def __init__(self, handle: int) -> None:
        self.handle = handle
