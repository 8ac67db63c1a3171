"""A plan's place in a block: the host memory of its copies, and the runs recorded there.

Blocks go from plan to plan; what a plan made of a block is kept with the block, for its next run
there.  Imports: device, layout.
"""

from __future__ import annotations

import weakref
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import numpy as np

from graphc.backends.gpu.device import Array, Device
from graphc.backends.gpu.layout import FAULT_BYTES, Border, Layout

REPLAYS = 8
"""How many recorded runs are kept in one seat."""

Replay = tuple[Callable[[], None], Callable[[], None] | None]
"""What does a recorded run: up to the look at its checks, if there is one, and from there on."""


class Block:
    """Memory of a device that one run has at a time, and host memory for its copies."""

    def __init__(self, address: int, size: int) -> None:
        self.address = address
        self.size = size
        self._staging: Array = np.empty(0, np.uint8)
        self._seats: weakref.WeakKeyDictionary[Bound, dict[bool, Seat]]
        self._seats = weakref.WeakKeyDictionary()
        self._last: Seat | None = None

    def seat(self, bound: Bound, on_device: bool, device: Device) -> Seat:
        """The place of a plan in this block, ready for a run; see `Seat`."""
        seats = self._seats.get(bound)
        found = seats.get(on_device) if seats is not None else None
        if found is None:
            size = bound.layout.staging_bytes
            if self._staging.nbytes < size:
                self._staging = device.staging(max(size, 1 << 12))
                self._seats.clear()
            found = Seat(bound.layout, self.address, self._staging, on_device)
            self._seats.setdefault(bound, {})[on_device] = found
        if self._last is not found:
            found.write_header()
            self._last = found
        return found


class Bound:
    """A plan's layout at some sizes."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.used = 0


class Seat:
    """Host memory that one copy fills the device's from, and that one copy back fills.

    on_device  whether outputs stay on the device
    slow       whether its runs take long enough to be interrupted
    """

    def __init__(self, layout: Layout, address: int, staging: Array, on_device: bool) -> None:
        self.layout = layout
        self.slow = False
        start, end = layout.copied_in
        low, high = layout.copied_out
        if on_device:
            high = layout.header_end
        self.stages_inputs = start == 0
        self.stages_outputs = high > layout.header_end
        self.from_host = staging[: end - start]
        self.to_device = address + start
        self.to_host = staging[end - start :][: high - low]
        self.from_device = address + low
        self._header = self.from_host[layout.header - start :]
        self.done = self.to_host[layout.done - low :][:8].view(np.int64)
        faults = self.to_host[: FAULT_BYTES * layout.faults]
        self.faults = faults.view(np.int64).reshape(-1, 4)
        inputs = layout.inputs if self.stages_inputs else ()
        outputs = layout.outputs if self.stages_outputs else ()
        self.inputs = [_view(self.from_host, b, 0) for b in inputs]
        self.outputs = [_view(self.to_host, b, low) for b in outputs]
        self._replays: OrderedDict[Any, Replay | None] = OrderedDict()

    def write_header(self) -> None:
        """No faults, and the word that comes back when the run is done."""
        self._header[:] = 0
        self._header[self.layout.done - self.layout.header :][:8].view(np.int64)[0] = 1

    def replay(self, key: Any, record: Callable[[], Replay]) -> Replay | None:
        """The run recorded with these arguments; it is recorded when they come again."""
        found = self._replays.get(key)
        if found is None:
            if key in self._replays:
                found = record()
            self._replays[key] = found
            if len(self._replays) > REPLAYS:
                self._replays.popitem(last=False)
        self._replays.move_to_end(key)
        return found


def _view(memory: Array, border: Border, start: int) -> Array:
    place = memory[border.offset - start :][: border.bytes]
    return place.view(border.dtype).reshape(border.shape)
