"""Arrays in safetensors form, with a digest over names, types, values and metadata.

Safetensors checks only that a file's parts fit; the digest tells whether the content is what was
written.  Files of other programs have none and are read all the same.  Imports: errors, types.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from graphc.errors import CheckpointError, GraphTypeError
from graphc.types import as_dtype

Array = np.ndarray[Any, Any]

DIGEST = "graphc.sha256"
MAX_HEADER = 100_000_000
MAX_RANK = 64

_CODES = {
    "float32": "F32",
    "float64": "F64",
    "float16": "F16",
    "int8": "I8",
    "int16": "I16",
    "int32": "I32",
    "int64": "I64",
    "uint8": "U8",
    "uint16": "U16",
    "uint32": "U32",
    "uint64": "U64",
    "bool": "BOOL",
}
_NUMPY = {code: np.dtype(name) for name, code in _CODES.items()}


def pack(arrays: Mapping[str, Array], metadata: Mapping[str, str]) -> bytes:
    """A safetensors file with the arrays, the metadata and their digest."""
    ready = {n: np.asarray(a, a.dtype.newbyteorder("<"), order="C") for n, a in arrays.items()}
    header: dict[str, Any] = {"__metadata__": {**metadata, DIGEST: digest(ready, metadata)}}
    chunks: list[bytes] = []
    at = 0
    # widest elements first, so that every array is aligned to its element size
    for name in sorted(ready, key=lambda n: (-ready[n].itemsize, n)):
        array = ready[name]
        if name in header or array.dtype.name not in _CODES:
            raise CheckpointError(f"cannot store an array {name!r} of dtype {array.dtype}")
        header[name] = {
            "dtype": _CODES[array.dtype.name],
            "shape": list(array.shape),
            "data_offsets": [at, at + array.nbytes],
        }
        chunks.append(array.tobytes())
        at += array.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return b"".join((len(text).to_bytes(8, "little"), text, *chunks))


def digest(arrays: Mapping[str, Array], metadata: Mapping[str, str]) -> str:
    """SHA-256 of everything in a file but the digest itself."""
    state = hashlib.sha256()
    described = {name: [a.dtype.name, list(a.shape)] for name, a in arrays.items()}
    others = {k: v for k, v in metadata.items() if k != DIGEST}
    state.update(json.dumps([described, others], sort_keys=True).encode())
    for name in sorted(arrays):
        state.update(np.ascontiguousarray(arrays[name]).view(np.uint8).reshape(-1).data)
    return state.hexdigest()


def unpack(data: bytes, file: str) -> tuple[dict[str, Array], dict[str, str]]:
    """Arrays and metadata of a safetensors file; raises CheckpointError naming `file`."""
    try:
        header, values = _header(data)
        metadata = _metadata(header.pop("__metadata__", None))
        arrays = _arrays(header, values)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{file!r} is not a sound safetensors file: {error}") from None
    expected = metadata.get(DIGEST)
    if expected is not None and expected != digest(arrays, metadata):
        raise CheckpointError(f"{file!r}: the content is not what was written (digest differs)")
    return arrays, metadata


def _header(data: bytes) -> tuple[dict[str, Any], memoryview]:
    if len(data) < 8:
        raise ValueError(f"it has only {len(data)} bytes")
    length = int.from_bytes(data[:8], "little")
    if length > min(MAX_HEADER, len(data) - 8):
        raise ValueError(f"a header of {length} bytes in a file of {len(data)}")
    header = json.loads(data[8 : 8 + length].decode(), object_pairs_hook=_unique)
    if not isinstance(header, dict):
        raise ValueError("its header is not an object")
    return header, memoryview(data)[8 + length :]


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name occurs twice in its header")
    return found


def _metadata(found: Any) -> dict[str, str]:
    if found is None:
        return {}
    if not isinstance(found, dict) or not all(isinstance(v, str) for v in found.values()):
        raise ValueError("its metadata are not text")
    return found


def _arrays(header: Mapping[str, Any], values: memoryview) -> dict[str, Array]:
    """The arrays; together they must cover the values exactly, each byte once."""
    arrays: dict[str, Array] = {}
    spans: list[tuple[int, int]] = []
    for name, entry in header.items():
        if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
            raise ValueError(f"array {name!r:.60} is not described by dtype, shape and offsets")
        shape, span = entry["shape"], entry["data_offsets"]
        if not (_sizes(shape) and _sizes(span) and len(span) == 2 and len(shape) <= MAX_RANK):
            raise ValueError(f"array {name!r:.60} has an ill-formed shape or place")
        begin, end = span
        if not begin <= end <= len(values):
            raise ValueError(f"array {name!r:.60} lies outside the file")
        spans.append((begin, end))
        arrays[name] = _array(name, entry["dtype"], shape, values[begin:end])
    at = 0
    for begin, end in sorted(spans):
        if begin != at:
            raise ValueError("its arrays overlap or leave gaps")
        at = end
    if at != len(values):
        raise ValueError(f"{len(values) - at} bytes belong to no array")
    return arrays


def _sizes(value: Any) -> bool:
    return isinstance(value, list) and all(type(v) is int and v >= 0 for v in value)


def _array(name: str, code: Any, shape: list[int], data: memoryview) -> Array:
    numpy = np.dtype("uint16") if code == "BF16" else _NUMPY.get(str(code))
    if numpy is None:
        raise ValueError(f"array {name!r:.60} has dtype {code!r:.20}, which is not supported")
    if math.prod(shape) * numpy.itemsize != len(data):
        raise ValueError(f"array {name!r:.60} of shape {shape} does not have {len(data)} bytes")
    if code == "BOOL" and len(data) and np.frombuffer(data, np.uint8).max() > 1:
        raise ValueError(f"array {name!r:.60} is bool and holds other bytes than 0 and 1")
    array = np.frombuffer(data, numpy.newbyteorder("<")).reshape(shape).astype(numpy)
    return _widened(array) if code == "BF16" else array


def _widened(bits: Array) -> Array:
    """bfloat16 bits as float32."""
    shifted = bits.astype(np.uint32) << np.uint32(16)
    return shifted.view(np.float32).reshape(bits.shape)


def type_text(array: Array) -> str:
    """`f32[3,4]`, as graph text writes types."""
    try:
        name = as_dtype(array.dtype).name
    except GraphTypeError:
        name = str(array.dtype)
    return f"{name}[{','.join(map(str, array.shape))}]"
