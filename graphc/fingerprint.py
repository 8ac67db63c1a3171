"""Which graphc this is: a hash that changes whenever what it compiles may change.

It follows from the source text of the package, so that nothing that another version, or an edited
copy, has left in the cache is ever taken for its own.  Reading all of it takes some milliseconds;
the result is itself kept in the cache, under the names, sizes and times of the files.
Imports: cache, version, NumPy (whose functions fold constants).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator

import numpy as np

from graphc.cache import KEY_BYTES, digest, open_cache
from graphc.version import LOADED, __version__

_PACKAGE = os.path.dirname(os.path.abspath(__file__))

_found: list[bytes] = []


def fingerprint() -> bytes | None:
    """The hash of this graphc; None where its source is not files, or not what was loaded."""
    if not _found:
        content = _source_digest()
        if content is None:
            return None
        python = f"{sys.implementation.name} {sys.hexversion:x} {sys.byteorder}"
        _found.append(digest(content, __version__, python, np.__version__))
    return _found[0]


def _source_digest() -> bytes | None:
    try:
        files = sorted(_files(_PACKAGE))
    except OSError:
        return None
    if not files or max(time for _, _, time in files) > LOADED * 1e9:
        return None  # edited since: what runs here is not what the files say
    listing = "\n".join(f"{path} {size} {time}" for path, size, time in files)
    key = digest("source", _PACKAGE, listing)
    cache = open_cache()
    known = cache.read("source", key) if cache is not None else None
    if known is not None and len(known) == KEY_BYTES:
        return known
    try:
        content = digest(*(part for path, _, _ in files for part in _named_content(path)))
    except OSError:
        return None
    if cache is not None:
        cache.write("source", key, content)
    return content


def _named_content(path: str) -> tuple[str, bytes]:
    with open(os.path.join(_PACKAGE, path), "rb") as file:
        return path, file.read()


def _files(folder: str, inside: str = "") -> Iterator[tuple[str, int, int]]:
    """(path in the package, size, time of change) of every source file."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.endswith(".py"):
                found = entry.stat()
                yield inside + entry.name, found.st_size, found.st_mtime_ns
            elif entry.is_dir() and not entry.name.startswith((".", "__")):
                yield from _files(entry.path, f"{inside}{entry.name}/")
