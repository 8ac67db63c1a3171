"""Writing files so that a failure leaves the old one.  Imports: errors."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Callable
from typing import BinaryIO

from graphc.errors import CheckpointError


def write_atomically(path: str | os.PathLike[str], writer: Callable[[BinaryIO], None]) -> None:
    """Replace the file at `path` by what `writer` writes, wholly or not at all.

    The bytes go to a temporary file beside it, reach the disk, and then take its name.  If anything
    fails the temporary file is removed and the old file is as it was; CheckpointError says why.
    """
    target = os.path.realpath(os.fspath(path))
    folder, base = os.path.split(target)
    temporary = os.path.join(folder, f".{base}.{secrets.token_hex(6)}.tmp")
    try:
        # not mkstemp: the file gets the permissions that any other new file of the user gets
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        try:
            with os.fdopen(descriptor, "wb") as file:
                writer(file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, target)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise
        _sync_folder(folder)
    except OSError as error:
        if isinstance(error, CheckpointError):
            raise
        reason = error.strerror or str(error)
        raise CheckpointError(f"cannot write {os.fspath(path)!r}: {reason}") from None


def write_all(file: BinaryIO, data: bytes) -> None:
    """A writer of bytes that are ready."""
    file.write(data)


def _sync_folder(folder: str) -> None:
    """Make the rename itself durable, where the system lets folders be synced."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
