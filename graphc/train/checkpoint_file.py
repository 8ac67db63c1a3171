"""One checkpoint file: named arrays from safetensors or npz, whoever wrote it.

Imports: tensor_file, errors.
"""

from __future__ import annotations

import io
import os
import zipfile
import zlib
from typing import Any

import numpy as np

from graphc.errors import CheckpointError
from graphc.tensor_file import type_text, unpack

Array = np.ndarray[Any, Any]

SUFFIX = ".safetensors"
FORMAT = "1"

MAX_UNPACKED = 1 << 30
MAX_RATIO = 100
"""An npz file may unpack to this many bytes, or to this many times its own size."""


def read_arrays(path: str | os.PathLike[str]) -> tuple[dict[str, Array], dict[str, str]]:
    """Arrays and metadata of a checkpoint; raises CheckpointError naming the file."""
    name = os.fspath(path)
    try:
        with open(path, "rb") as file:
            data = file.read()
    except OSError as error:
        raise CheckpointError(f"cannot read {name!r}: {error.strerror or error}") from None
    if name.endswith(".npz"):
        return _read_npz(data, name), {}
    arrays, metadata = unpack(data, name)
    if metadata.get("graphc.format", FORMAT) != FORMAT:
        raise CheckpointError(
            f"{name!r} has format {metadata['graphc.format']!r:.20}; "
            f"this graphc reads format {FORMAT}"
        )
    return arrays, metadata


def _read_npz(data: bytes, name: str) -> dict[str, Array]:
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            total = sum(entry.file_size for entry in archive.infolist())
        if total > max(MAX_UNPACKED, MAX_RATIO * len(data)):
            raise CheckpointError(f"{name!r} would unpack to {total} bytes: refused")
        with np.load(io.BytesIO(data), allow_pickle=False) as archive:
            arrays = {key: np.asarray(archive[key]) for key in archive.files}
    except CheckpointError:
        raise
    except (
        zipfile.BadZipFile,
        zlib.error,
        ValueError,
        KeyError,
        TypeError,
        SyntaxError,
        EOFError,
        OSError,
        RuntimeError,
        NotImplementedError,
        MemoryError,
        OverflowError,
    ) as error:
        raise CheckpointError(f"{name!r} is not a sound npz file: {error}") from None
    for key, array in arrays.items():
        if array.dtype.kind not in "fiub":
            raise CheckpointError(f"{name!r}: {key!r:.60} has dtype {array.dtype}")
    return {k: a.astype(a.dtype.newbyteorder("="), copy=False) for k, a in arrays.items()}


def list_variables(path: str | os.PathLike[str]) -> list[tuple[str, str]]:
    """(name, type) of every array in a checkpoint, by name: `[("w", "f32[3,4]")]`."""
    arrays, _ = read_arrays(path)
    return sorted((name, type_text(array)) for name, array in arrays.items())


def load_variable(path: str | os.PathLike[str], name: str) -> Array:
    """One array of a checkpoint; raises CheckpointError if there is none of that name."""
    arrays, _ = read_arrays(path)
    if name not in arrays:
        listed = ", ".join(sorted(arrays)[:10]) or "nothing"
        raise CheckpointError(f"{os.fspath(path)!r} has no {name!r} (it has {listed})")
    return arrays[name]
