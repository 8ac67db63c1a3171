"""Machine code kept between processes: single modules, and batches of kernels.

A module is found by its text.  Kernels compiled together are kept as one batch, beside a list of
their names, so that any later plan finds those it shares with earlier ones: names are hashes of
what the kernels are.  All is for one target; see `Target.identity`.  Imports: target, image, cache.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Iterable, Mapping
from typing import Union

from graphc.backends.llvm.image import Image
from graphc.backends.llvm.target import Target
from graphc.cache import KEY_BYTES, Cache, digest, open_cache

Unit = Union[Image, bytes]
"""Machine code: an image, or the object file where that could not be linked."""

_HEADER = struct.Struct("<cIIII")
_PLACE = struct.Struct("<IH")
_PREFIX_BYTES = 8

_LISTS_READ = 2000
"""How many batches are looked through for a kernel; those used last come first."""

_LOOK_AGAIN = 5.0
"""Seconds before the folder is listed again for what other processes have added."""


class ObjectCache:
    """What is kept of the code for one target; nothing where the target has no identity."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self._batches: dict[str, bytes] = {}  # name of a kernel -> key of a batch that has it
        self._lists: set[bytes] = set()
        self._looked = -_LOOK_AGAIN

    def _cache(self) -> Cache | None:
        cache = open_cache()
        return cache if cache is not None and self.target.identity is not None else None

    def _key(self, *parts: str) -> bytes:
        """A key that begins with the target's, so that a listing shows what is for it."""
        identity = self.target.identity
        assert identity is not None
        inside = digest(identity, *parts)
        return identity[:_PREFIX_BYTES] + inside[: KEY_BYTES - _PREFIX_BYTES]

    # ---- modules

    def module(self, text: str) -> Unit | None:
        """The code of a module that has been kept."""
        cache = self._cache()
        data = cache.read("module", self._key("module", text)) if cache is not None else None
        return unpack(data) if data is not None else None

    def keep_module(self, text: str, unit: Unit) -> None:
        cache = self._cache()
        if cache is not None:
            cache.write("module", self._key("module", text), pack(unit))

    # ---- kernels

    def kernels(self, names: Iterable[str]) -> dict[str, Unit]:
        """The code of those of the named kernels that have been kept in any batch."""
        cache = self._cache()
        if cache is None:
            return {}
        self._read_lists(cache)
        wanted = [name for name in names if name in self._batches]
        return self.batches(dict.fromkeys(self._batches[name] for name in wanted), wanted)

    def batches(self, keys: Iterable[bytes], names: Iterable[str]) -> dict[str, Unit]:
        """The code of those of the named kernels that these batches hold."""
        cache = self._cache()
        found: dict[str, Unit] = {}
        wanted = set(names)
        for key in keys:
            data = cache.read("kernels", key) if cache is not None else None
            for name, unit in _batch(data or b"", wanted).items():
                found[name] = unit
                self._batches[name] = key
        return found

    def keep_kernels(self, units: Mapping[str, Unit]) -> None:
        cache = self._cache()
        if cache is None or not units:
            return
        names = sorted(units)
        key = self._key("kernels", *names)
        packed = [pack(units[name]) for name in names]
        rows = [
            struct.pack("<IH", len(data), len(name.encode())) + name.encode() + data
            for name, data in zip(names, packed, strict=True)
        ]
        if cache.write("kernels", key, b"".join(rows)):
            cache.write("names", key, "\n".join(names).encode())
            self._batches.update(dict.fromkeys(names, key))

    def batches_of(self, names: Iterable[str]) -> list[bytes] | None:
        """The keys of batches that hold all these kernels; None where one is not kept."""
        try:
            return list(dict.fromkeys(self._batches[name] for name in names))
        except KeyError:
            return None

    def _read_lists(self, cache: Cache) -> None:
        """Learn what batches for this target hold; those seen before are not read again."""
        now = time.monotonic()
        if now - self._looked < _LOOK_AGAIN:
            return
        self._looked = now
        assert self.target.identity is not None
        prefix = self.target.identity[:_PREFIX_BYTES]
        keys = [key for key in cache.keys("names") if key.startswith(prefix)]
        for key in reversed(keys[:_LISTS_READ]):
            if key not in self._lists:
                self._lists.add(key)
                for name in (cache.read("names", key) or b"").decode().split():
                    self._batches[name] = key


def _batch(data: bytes, wanted: set[str]) -> dict[str, Unit]:
    """The wanted kernels of a batch."""
    found: dict[str, Unit] = {}
    at = 0
    while at < len(data):
        size, length = _PLACE.unpack_from(data, at)
        start = at + _PLACE.size + length
        name = data[at + _PLACE.size : start].decode()
        if name in wanted:
            unit = unpack(data[start : start + size])
            if unit is not None:
                found[name] = unit
        at = start + size
    return found


# ---- one unit as bytes -------------------------------------------------------------------------


def pack(unit: Unit) -> bytes:
    """A unit as bytes."""
    if isinstance(unit, bytes):
        return b"O" + unit
    counts = len(unit.symbols), len(unit.imports)
    header = _HEADER.pack(b"I", len(unit.code), unit.data, *counts)
    places = b"".join(
        _PLACE.pack(place, len(name.encode())) + name.encode()
        for name, place in (*unit.symbols.items(), *unit.imports)
    )
    return header + places + unit.code


def unpack(data: bytes) -> Unit | None:
    """What `pack` made these bytes of; None if it made no such thing."""
    if data[:1] == b"O":
        return data[1:]
    try:
        return _unpack_image(data)
    except (struct.error, UnicodeDecodeError):
        return None


def _unpack_image(data: bytes) -> Image | None:
    mark, size, writable, symbols, imports = _HEADER.unpack_from(data)
    at = _HEADER.size
    places: list[tuple[str, int]] = []
    for _ in range(symbols + imports):
        place, length = _PLACE.unpack_from(data, at)
        at += _PLACE.size + length
        places.append((data[at - length : at].decode(), place))
    if mark != b"I" or len(data) != at + size or writable > size:
        return None
    if any(place >= size for _, place in places[:symbols]):
        return None
    if any(place + 8 > size for _, place in places[symbols:]):
        return None
    return Image(data[at:], dict(places[:symbols]), tuple(places[symbols:]), writable)
