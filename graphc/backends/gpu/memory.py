"""The memory of one device: blocks that runs borrow, and variables that stay.

Blocks are kept between runs, and a run takes one that is free, whichever plan had it before.  When
memory runs out, free blocks go first.  What Python frees at any moment, on any thread, is put on a
list and given back later.  Imports: device, residents, seat, forks, errors.
"""

from __future__ import annotations

import weakref
from collections import deque
from typing import Any

from graphc.backends.gpu.device import Device
from graphc.backends.gpu.residents import Residents
from graphc.backends.gpu.seat import Block
from graphc.errors import OutOfMemoryError
from graphc.forks import new_lock

LARGEST_PART = 4
"""A run takes a block of at most so many times the size it needs."""

SMALL_BLOCK = 1 << 20
"""A block of this size serves any smaller run."""


class DeviceMemory:
    """What is allocated on a device; one per device and process."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self.residents = Residents(self)
        self._idle: list[Block] = []
        self._released: deque[int | Block] = deque()
        self._lock = new_lock()

    # ---- blocks

    def take(self, size: int) -> Block:
        """A block of at least this size that nobody else has; raises OutOfMemoryError."""
        if self._released:
            self._settle()
        most = max(LARGEST_PART * size, SMALL_BLOCK)
        found: Block | None = None
        with self._lock:
            for block in self._idle:
                if size <= block.size <= most and (found is None or block.size < found.size):
                    found = block
            if found is not None:
                self._idle.remove(found)
                return found
        size = max(size, SMALL_BLOCK)
        return Block(self.allocate(size), size)

    def give(self, block: Block) -> None:
        """Take a block back whose run is over."""
        with self._lock:
            self._idle.append(block)

    def idle_bytes(self) -> int:
        """Bytes in blocks that no run has now."""
        with self._lock:
            return sum(b.size for b in self._idle)

    # ---- memory that stays

    def allocate(self, size: int) -> int:
        """Fresh memory; free blocks are given up for it where that is needed."""
        self._settle()
        try:
            return self.device.allocate(size)
        except OutOfMemoryError:
            self.trim()
        return self.device.allocate(size)

    def trim(self) -> None:
        """Free every block that no run has."""
        self._settle()
        with self._lock:
            idle, self._idle = self._idle, []
        for block in idle:
            self.device.free(block.address)

    def release_later(self, memory: int | Block) -> None:
        """Free an address, or take a block back, the next time somebody asks for memory.

        Calls nothing of the device, so that it may be called whenever Python frees an object.
        """
        self._released.append(memory)

    def release_with(self, owner: Any, memory: int | Block) -> None:
        """The same, as soon as `owner` is gone."""
        weakref.finalize(owner, self._released.append, memory).atexit = False

    def _settle(self) -> None:
        while True:
            try:
                memory = self._released.popleft()
            except IndexError:
                return
            if isinstance(memory, Block):
                self.give(memory)
            else:
                self.device.free(memory)
