"""Variables that stay on a device between runs.

A session's store holds an array for every variable.  The first run on a device copies what is in it
there; a run that writes the variable leaves the array behind, and `bring_home` catches it up before
anything on the host reads it.  A variable that is set gets another array, and what was on the
device of the old one goes with it.  Imports: device, forks.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from graphc.backends.gpu.device import Array, Stretch
from graphc.forks import new_rlock

if TYPE_CHECKING:
    from graphc.backends.gpu.memory import DeviceMemory


class _Copy:
    """What a device holds of an array.

    newer  whether runs have written it since the array was the same
    lost   why neither has the value any more
    """

    __slots__ = ("address", "array", "lost", "newer")

    def __init__(self, address: int, array: weakref.ref[Array]) -> None:
        self.address = address
        self.array = array
        self.newer = False
        self.lost = ""


class Residents:
    """The variables on one device; see `backends.base.Residence`.

    Callers have a reader's or a writer's turn of the session whose arrays they name, so that no two
    disagree about one array.
    """

    def __init__(self, memory: DeviceMemory) -> None:
        self._memory = memory
        self._copies: dict[int, _Copy] = {}  # by the array's identity, while it lives
        self._lock = new_rlock()
        self.losses = 0

    def place(self, arrays: Sequence[Array]) -> list[Stretch]:
        """Where the device holds these arrays, which it does from now on."""
        found = []
        for array in arrays:
            copy = self._copies.get(id(array))
            if copy is None:
                with self._lock:
                    copy = self._copies.get(id(array)) or self._new_copy(array)
            found.append((copy.address, array.nbytes))
        return found

    def mark_written(self, arrays: Iterable[Array]) -> None:
        """A run is about to write the device's copies of these."""
        for array in arrays:
            self._copies[id(array)].newer = True

    def lose(self, arrays: Iterable[Array], why: str) -> None:
        """A run failed while it wrote these: nobody has their values."""
        for array in arrays:
            self._copies[id(array)].lost = why
        self.losses += 1

    def lose_all(self, why: str) -> None:
        """The device failed: what only it had is gone."""
        with self._lock:
            for key, copy in list(self._copies.items()):
                if copy.newer:
                    copy.lost = f"as it was lost: {why}"
                else:
                    del self._copies[key]
            self.losses += 1

    def bring_home(self, arrays: Iterable[Array]) -> None:
        """Make these arrays hold the variables' values."""
        behind = [a for a in arrays if (c := self._copies.get(id(a))) and (c.newer or c.lost)]
        if not behind:
            return
        device = self._memory.device
        with self._lock, device.active():
            for array in behind:
                device.copy_out(array, self._copies[id(array)].address)
            device.synchronize()
            for array in behind:
                self._copies[id(array)].newer = False

    def lost(self, array: Array) -> str:
        """Why nobody has the value of this array's variable, or ''."""
        copy = self._copies.get(id(array))
        return "" if copy is None else copy.lost

    def forget(self, arrays: Iterable[Array]) -> None:
        """The host has written these arrays: what the device holds of them is old."""
        for array in arrays:
            copy = self._copies.pop(id(array), None)
            if copy is not None:
                self._memory.release_later(copy.address)

    def release(self) -> None:
        """Give the device's memory back, as far as no run and no variable has it."""
        if not self._memory.device.failed:
            with self._memory.device.active():
                self._memory.trim()

    def _new_copy(self, array: Array) -> _Copy:
        device = self._memory.device
        key = id(array)
        address = self._memory.allocate(max(array.nbytes, 1))
        device.copy_in(address, array)

        def gone(reference: weakref.ref[Array], this: weakref.ref[Residents]) -> None:
            residents = this()
            if residents is None:
                return
            copy = residents._copies.get(key)
            if copy is not None and copy.array is reference:
                del residents._copies[key]
            residents._memory.release_later(address)

        this = weakref.ref(self)
        copy = _Copy(address, weakref.ref(array, lambda reference: gone(reference, this)))
        self._copies[key] = copy
        return copy
