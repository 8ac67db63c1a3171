"""The cache on disk: what compiling has made, for processes that come later.

One file per entry in one folder, named by a key: a hash of everything the entry follows from.  So
an entry is never changed and never out of date, and processes need no lock: a writer makes a
temporary file and gives it its name at the end, a reader takes a whole file or none.  An entry says
its kind, its key, its length and a checksum; what does not agree is as good as absent, and is
replaced.  Nothing here raises: where the folder cannot be read or written there is no cache.

The entries are machine code, so what others could have written is not read: neither a folder that
everybody may write to, nor a file that belongs to another user (but root) or that another may
change.
Imports: flags, errors.
"""

from __future__ import annotations

import contextlib
import os
import stat
import struct
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from graphc import flags

try:
    from _blake2 import blake2b  # the same function, without loading OpenSSL
except ImportError:
    from hashlib import blake2b

KEY_BYTES = 20
"""Length of a key."""

_MAGIC = b"graphc\x01\n"
_HEADER = struct.Struct("<8s8s20sQ16s")
"""Magic, kind, key, length of the contents, checksum of all of these."""

_SUFFIX = ".gxc"
_TEMPORARY = ".tmp"

_TOUCH_AFTER = 600.0
"""Seconds after which reading an entry marks it as used again."""

_ABANDONED_AFTER = 3600.0
"""Seconds after which a temporary file is one whose writer is gone."""

_PRUNE_EVERY = 1 << 24
"""Bytes a process writes between two looks at the size of the folder; it looks first thing too."""

_LARGEST = 0.25
"""The part of the limit that one entry may take, so that it does not push all others out."""

_PRUNE_TO = 0.8
"""The part of the limit that pruning leaves, so that it is not needed again at once."""


def digest(*parts: bytes | str | memoryview) -> bytes:
    """A key that follows from these parts, each with its length; memory is taken as bytes."""
    state = blake2b(digest_size=KEY_BYTES)
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        state.update(struct.pack("<Q", len(data)))
        state.update(data)
    return state.digest()


@dataclass(frozen=True)
class Entry:
    """One file of the cache: its kind, its size in bytes, when it was last used (Unix time)."""

    kind: str
    path: str
    bytes: int
    used: float


class Cache:
    """Entries by kind and key in one folder.

    limit  bytes that the folder may take
    """

    def __init__(self, folder: str, limit: int) -> None:
        self.folder = folder
        self.limit = limit
        self._written = _PRUNE_EVERY

    # ---- entries

    def read(self, kind: str, key: bytes) -> bytes | None:
        """The contents of an entry; None if there is none, or none that can be trusted."""
        path = self._path(kind, key)
        if self.refusal():
            return None
        try:
            data = _read_file(path)
        except OSError:
            return None
        contents = _checked(data, kind, key)
        if contents is not None:
            _touch(path)
        return contents

    def write(self, kind: str, key: bytes, contents: bytes) -> bool:
        """Keep an entry; False where that is not possible, which is no error."""
        size = _HEADER.size + len(contents)
        if size > _LARGEST * self.limit:
            return False
        if not os.path.isdir(self.folder):
            _make_folder(self.folder)
        if self.refusal():
            return False
        self._written += size
        if self._written > _PRUNE_EVERY:
            self._written = 0
            self.prune()
        header = _HEADER.pack(_MAGIC, kind.encode(), key, len(contents), bytes(16))
        checksum = _checksum(header, contents)
        return self._replace(self._path(kind, key), header[:-16] + checksum, contents)

    def _replace(self, path: str, *parts: bytes) -> bool:
        temporary = f"{path}.{os.getpid()}.{os.urandom(6).hex()}{_TEMPORARY}"
        try:
            flag = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
            with open(os.open(temporary, flag, 0o600), "wb") as file:
                for part in parts:
                    file.write(part)
            os.replace(temporary, path)
        except BaseException as error:
            _remove(temporary)
            if isinstance(error, OSError):
                return False
            raise
        return True

    def _path(self, kind: str, key: bytes) -> str:
        return os.path.join(self.folder, f"{kind}-{key.hex()}{_SUFFIX}")

    def keys(self, kind: str) -> list[bytes]:
        """The keys of all entries of a kind, newest first."""
        found = []
        for entry in self.entries():
            name = os.path.basename(entry.path)[len(kind) + 1 : -len(_SUFFIX)]
            if entry.kind == kind and len(name) == 2 * KEY_BYTES:
                with contextlib.suppress(ValueError):
                    found.append((-entry.used, bytes.fromhex(name)))
        return [key for _, key in sorted(found)]

    # ---- the folder

    def refusal(self) -> str:
        """Why nothing is read from this folder; "" if it is."""
        try:
            found = os.stat(self.folder)
        except OSError as error:
            return error.strerror or "it cannot be read"
        if not stat.S_ISDIR(found.st_mode):
            return "it is not a folder"
        if not _is_ours(found):
            return "it belongs to another user"
        if os.name == "posix" and found.st_mode & stat.S_IWOTH:
            return "everybody may write to it"
        return ""

    def entries(self) -> list[Entry]:
        """Every entry, whether it can be read or not, in no order."""
        return [entry for entry in self._files() if not entry.path.endswith(_TEMPORARY)]

    def _files(self) -> Iterator[Entry]:
        try:
            with os.scandir(self.folder) as files:
                for file in files:
                    if not file.name.endswith((_SUFFIX, _TEMPORARY)) or "-" not in file.name:
                        continue
                    with contextlib.suppress(OSError):
                        found = file.stat(follow_symlinks=False)
                        kind = file.name.partition("-")[0]
                        yield Entry(kind, file.path, found.st_size, found.st_mtime)
        except OSError:
            return

    def prune(self, limit: int | None = None, older_than: float | None = None) -> list[Entry]:
        """Remove what was used longest ago until the rest takes no more than `limit` bytes.

        limit       default: the cache's own, which where it is exceeded leaves some room
        older_than  remove what was last used so many seconds ago too
        Returns what was removed.  Others may read and write meanwhile.
        """
        now = time.time()
        files = sorted(self._files(), key=lambda e: e.used)
        total = sum(e.bytes for e in files)
        goal = total
        if limit is not None:
            goal = limit
        elif total > self.limit:
            goal = int(_PRUNE_TO * self.limit)
        removed: list[Entry] = []
        for entry in files:
            age = now - entry.used
            lost = entry.path.endswith(_TEMPORARY) and age > _ABANDONED_AFTER
            old = older_than is not None and age > older_than
            if (lost or old or total > goal) and _remove(entry.path):
                total -= entry.bytes
                removed.append(entry)
        return removed

    def clear(self) -> list[Entry]:
        """Remove every entry; returns what was removed."""
        return [entry for entry in list(self._files()) if _remove(entry.path)]


# ---- files -------------------------------------------------------------------------------------


def _make_folder(path: str) -> None:
    """Make a folder for this user alone, where possible; nothing of root's in others' homes."""
    above = os.path.dirname(path)
    with contextlib.suppress(OSError):
        if not os.path.isdir(above) and above != path:
            _make_folder(above)
        if _is_ours(os.stat(above)) or os.geteuid() != 0:
            os.mkdir(path, 0o700)


def _read_file(path: str) -> bytes:
    """The bytes of a file that only this user or root can have written; raises OSError."""
    flag = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    with open(os.open(path, flag), "rb") as file:
        found = os.fstat(file.fileno())
        writable = os.name == "posix" and found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
        if not stat.S_ISREG(found.st_mode) or not _is_ours(found) or writable:
            raise PermissionError(path)
        return file.read()


def _is_ours(found: os.stat_result) -> bool:
    """Whether a file belongs to this user, or to root."""
    return not hasattr(os, "geteuid") or found.st_uid in (os.geteuid(), 0)


def _checked(data: bytes, kind: str, key: bytes) -> bytes | None:
    """The contents of an entry's bytes, or None if anything about them is wrong."""
    if len(data) < _HEADER.size:
        return None
    magic, its_kind, its_key, length, checksum = _HEADER.unpack_from(data)
    contents = data[_HEADER.size :]
    header = data[: _HEADER.size - 16] + bytes(16)
    if (
        magic != _MAGIC
        or its_kind.rstrip(b"\0") != kind.encode()
        or its_key != key
        or length != len(contents)
        or checksum != _checksum(header, contents)
    ):
        return None
    return contents


def _checksum(*parts: bytes) -> bytes:
    state = blake2b(digest_size=16)
    for part in parts:
        state.update(part)
    return state.digest()


def _touch(path: str) -> None:
    """Mark an entry as used now, if its mark is not recent; in a read-only folder, do nothing."""
    with contextlib.suppress(OSError):
        if time.time() - os.stat(path).st_mtime > _TOUCH_AFTER:
            os.utime(path)


def _remove(path: str) -> bool:
    try:
        os.unlink(path)
    except OSError:
        return False
    return True


# ---- where it is -------------------------------------------------------------------------------


_opened: dict[tuple[str, int], Cache] = {}


def open_cache() -> Cache | None:
    """The cache as the environment flags now say; None if there is to be none."""
    named = flags.CACHE.value
    if named is not None and named.lower() == "off":
        return None
    folder = os.path.expanduser(named) if named else flags.default_cache_folder()
    if folder is None:
        return None
    where = os.path.abspath(folder), flags.CACHE_SIZE.value
    found = _opened.get(where)
    if found is None:
        found = _opened.setdefault(where, Cache(*where))
    return found


def cache_text() -> str:
    """Where the cache is, or why there is none."""
    cache = open_cache()
    if cache is None:
        return "off"
    refusal = cache.refusal() if os.path.lexists(cache.folder) else ""
    return f"{cache.folder}, not used: {refusal}" if refusal else cache.folder


def total_bytes(entries: Iterable[Entry]) -> int:
    """What entries take together."""
    return sum(entry.bytes for entry in entries)
