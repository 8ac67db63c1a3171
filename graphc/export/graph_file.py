"""The native file: one `.graphc` archive with a graph, its arrays, its state and its signatures.

    header.json            format, graphc version, size and SHA-256 of every member, signatures
    graph.txt              the graph's text
    constants.safetensors  the arrays that the text names
    weights.safetensors    variables (optimizer state too) and the random counter

Members are stored, not compressed, so a file can never unpack to more than its own size.  Files are
not trusted: every member is checked against the header, and the header against itself.
Imports: files, tensor_file, text, parse, graph, train.saver.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np

from graphc.errors import CheckpointError, GraphError, GraphTypeError
from graphc.files import write_atomically
from graphc.graph import Graph, get_default_graph
from graphc.node import Node, Tensor
from graphc.parse import parse_graph
from graphc.tensor_file import pack, unpack
from graphc.text import store_graph
from graphc.train.saver import all_variables
from graphc.version import __version__

Array = np.ndarray[Any, Any]
Names = dict[str, str]

FORMAT = 1
HEADER = "header.json"
MEMBERS = ("graph.txt", "constants.safetensors", "weights.safetensors")
MAX_HEADER = 1 << 26

_FAULTS = (
    zipfile.BadZipFile,
    ValueError,
    KeyError,
    EOFError,
    OSError,
    RuntimeError,  # an encrypted member; RecursionError of nested JSON
    NotImplementedError,
    OverflowError,
)


@dataclass(frozen=True)
class Signature:
    """What a loaded model is called with: tensor names by argument and by result.

    A result may also be an operation, such as a training step; its value is None.
    """

    inputs: Names
    outputs: Names


@dataclass(frozen=True)
class Contents:
    """All that a file holds."""

    graph: Graph
    weights: dict[str, Array]
    signatures: dict[str, Signature]
    version: str


# ---- writing -----------------------------------------------------------------------------------


def save_graph(
    path: str | os.PathLike[str],
    graph: Graph | None = None,
    session: Any = None,
    signatures: Mapping[str, tuple[Mapping[str, Tensor], Mapping[str, Tensor]]] | None = None,
) -> str:
    """Write a graph to one file, and with it the values that variables have in `session`.

    signatures   name -> (inputs by argument name, outputs by result name): how others call it
    Returns the path.  The old file, if any, is replaced only when the new one is complete.
    """
    if graph is None:
        graph = session.graph if session is not None else get_default_graph()
    if graph.gradient_rules:
        warnings.warn(
            "gradient overrides are functions and are not saved: the loaded graph "
            "differentiates those operators by their own rules",
            stacklevel=2,
        )
    checked = {k: _signature(graph, k, v) for k, v in (signatures or {}).items()}
    text, constants = store_graph(graph, portable=True)
    members = {
        "graph.txt": text.encode(),
        "constants.safetensors": pack(constants, {}),
        "weights.safetensors": pack(_weights(graph, session), {}),
    }
    header = {
        "format": FORMAT,
        "graphc": __version__,
        "members": {name: _summary(data) for name, data in members.items()},
        "signatures": {k: {"inputs": s.inputs, "outputs": s.outputs} for k, s in checked.items()},
    }
    header["sha256"] = _header_digest(header)
    members = {HEADER: json.dumps(header, indent=1).encode(), **members}
    write_atomically(path, lambda file: _write_archive(file, members))
    return os.fspath(path)


def _signature(
    graph: Graph, name: str, value: tuple[Mapping[str, Tensor], Mapping[str, Tensor]]
) -> Signature:
    named: list[Names] = []
    kinds: tuple[tuple[type, ...], ...] = ((Tensor,), (Tensor, Node))
    for allowed, part in zip(kinds, value, strict=True):
        names: Names = {}
        for key, t in part.items():
            if not isinstance(t, allowed):
                raise GraphTypeError(f"signature {name!r}: {key!r} is not a tensor: {t!r}")
            if t.graph is not graph:
                raise GraphError(f"signature {name!r}: {key!r} belongs to another graph")
            names[key] = t.name
        named.append(names)
    inputs, outputs = named
    return Signature(inputs, outputs)


def _weights(graph: Graph, session: Any) -> dict[str, Array]:
    if session is None:
        return {}
    if session.graph is not graph:
        raise GraphError("save_graph: the session runs another graph")
    return {
        name: session.get_value(v)
        for name, v in all_variables(graph).items()
        if session.is_initialized(v)
    }


def _summary(data: bytes) -> dict[str, Any]:
    return {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def _header_digest(header: Mapping[str, Any]) -> str:
    others = {k: v for k, v in header.items() if k != "sha256"}
    return hashlib.sha256(json.dumps(others, sort_keys=True).encode()).hexdigest()


def _write_archive(file: BinaryIO, members: Mapping[str, bytes]) -> None:
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name, data in members.items():
            # a fixed date, so that equal graphs are equal files
            archive.writestr(zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0)), data)


# ---- reading -----------------------------------------------------------------------------------


def read_graph_file(path: str | os.PathLike[str]) -> Contents:
    """All of a file, checked; raises CheckpointError naming the file and what is wrong."""
    name = os.fspath(path)
    try:
        with open(path, "rb") as file:
            data = file.read()
    except OSError as error:
        raise CheckpointError(f"cannot read {name!r}: {error.strerror or error}") from None
    try:
        members = _read_archive(data)
        header = _read_header(members)
    except CheckpointError as error:
        raise CheckpointError(f"{name!r}: {error}") from None
    except _FAULTS as error:
        raise CheckpointError(f"{name!r} is not a sound graphc file: {error}") from None
    constants, _ = unpack(members["constants.safetensors"], f"{name}:constants")
    weights, _ = unpack(members["weights.safetensors"], f"{name}:weights")
    try:
        graph = parse_graph(members["graph.txt"].decode(), constants)
        signatures = _read_signatures(header["signatures"], graph)
    except (GraphError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{name!r}: the graph in it is ill-formed: {error}") from None
    return Contents(graph, weights, signatures, str(header["graphc"]))


def _read_archive(data: bytes) -> dict[str, bytes]:
    members: dict[str, bytes] = {}
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        entries = archive.infolist()
        names = [e.filename for e in entries]
        if sorted(names) != sorted((HEADER, *MEMBERS)):
            raise CheckpointError(f"it holds {', '.join(names)[:200] or 'nothing'}")
        for entry in entries:
            if entry.compress_type != zipfile.ZIP_STORED or entry.file_size > len(data):
                raise CheckpointError(f"its member {entry.filename} is compressed or too large")
            members[entry.filename] = archive.read(entry)
    return members


def _read_header(members: Mapping[str, bytes]) -> dict[str, Any]:
    if len(members[HEADER]) > MAX_HEADER:
        raise CheckpointError("its header is too large")
    header = json.loads(members[HEADER].decode())
    if not isinstance(header, dict) or type(header.get("format")) is not int:
        raise CheckpointError("its header does not say which format it has")
    if header["format"] != FORMAT:
        raise CheckpointError(
            f"it has format {header['format']} (written by graphc {header.get('graphc')!r:.20}); "
            f"this graphc reads format {FORMAT}"
        )
    if header.get("sha256") != _header_digest(header):
        raise CheckpointError("its header is not what was written (digest differs)")
    if not {"graphc", "members", "signatures"} <= set(header):
        raise CheckpointError("its header is incomplete")
    for member in MEMBERS:
        if header["members"].get(member) != _summary(members[member]):
            raise CheckpointError(f"{member} in it is not what was written (digest differs)")
    return header


def _read_signatures(found: Any, graph: Graph) -> dict[str, Signature]:
    if not isinstance(found, dict):
        raise GraphError("signatures are not a table")
    made: dict[str, Signature] = {}
    for name, entry in found.items():
        if not isinstance(entry, dict):
            raise GraphError(f"signature {name!r} is not a table")
        inputs, outputs = (_read_names(entry.get(part), graph) for part in ("inputs", "outputs"))
        made[name] = Signature(inputs, outputs)
    return made


def _read_names(found: Any, graph: Graph) -> Names:
    if not isinstance(found, dict):
        raise GraphError("a signature has no inputs or outputs")
    for name in found.values():
        if ":" in str(name):
            graph.get_tensor_by_name(str(name))
        else:
            graph.get_operation_by_name(str(name))
    return {key: str(name) for key, name in found.items()}
