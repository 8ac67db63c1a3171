"""Checkpoints: the variables of a session in safetensors files, the newest few kept.

    saver = Saver(max_to_keep=3)
    saver.save(session, "run/model", global_step=100)      # run/model-100.safetensors
    saver.restore(session, latest_checkpoint("run"))

`checkpoint.json` beside the files lists them, oldest first.  A file also holds the random counter,
so training resumed from it goes on as if it had not stopped.
Imports: checkpoint_file, restore_report, files, tensor_file, ops, version.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from graphc.errors import CheckpointError, GraphTypeError
from graphc.files import write_all, write_atomically
from graphc.graph import Graph
from graphc.node import Tensor
from graphc.tensor_file import pack, type_text
from graphc.train.checkpoint_file import (
    FORMAT,
    SUFFIX,
    list_variables,
    load_variable,
    read_arrays,
)
from graphc.train.restore_report import RestoreReport, compare
from graphc.version import __version__

__all__ = [
    "RestoreReport",
    "Saver",
    "latest_checkpoint",
    "list_variables",
    "load_variable",
]

Array = np.ndarray[Any, Any]

INDEX = "checkpoint.json"
MAX_INDEX = 1 << 22
_UNSET = "graphc.unset"


class Saver:
    """Saves and restores variables.

    variables     which (a list, or a mapping from names in the file); None: all of the session's
                  graph, with the optimizers' state and the random counter
    max_to_keep   how many checkpoints of one name stay on disk; None or 0: all
    """

    def __init__(
        self,
        variables: Iterable[Any] | Mapping[str, Any] | None = None,
        max_to_keep: int | None = 5,
    ) -> None:
        if max_to_keep is not None and max_to_keep < 0:
            raise GraphTypeError(f"Saver: max_to_keep must not be negative, not {max_to_keep}")
        self.max_to_keep = max_to_keep
        self._variables: dict[str, Any] | None = None
        if isinstance(variables, Mapping):
            self._variables = dict(variables)
        elif variables is not None:
            listed = list(variables)
            self._variables = {v.node.name: v for v in listed}
            if len(self._variables) != len(listed):
                raise GraphTypeError("Saver: two of the variables have one name")

    # ---- saving

    def save(self, session: Any, path: str | os.PathLike[str], global_step: Any = None) -> str:
        """Write the variables to `path-step.safetensors` and return that name.

        global_step   a number, or a variable that holds it; None: no step in the name
        Raises UninitializedError for a variable without a value, CheckpointError if writing fails;
        then the older files are as they were.
        """
        prefix = os.fspath(path).removesuffix(SUFFIX)
        step = _step(session, global_step)
        target = f"{prefix}{'' if step is None else f'-{step}'}{SUFFIX}"
        arrays: dict[str, Array] = {}
        unset: list[str] = []
        for name, v in self._chosen(session).items():
            if v is session.graph.random_counter and not session.is_initialized(v):
                if session.graph.seed is None:
                    unset.append(name)
                else:  # where a seeded graph begins
                    arrays[name] = np.zeros((), v.dtype.numpy)
            else:
                arrays[name] = session.get_value(v)
        metadata = {"graphc.format": FORMAT, "graphc.version": __version__}
        metadata[_UNSET] = json.dumps(unset)
        if step is not None:
            metadata["global_step"] = str(step)
        data = pack(arrays, metadata)
        write_atomically(target, lambda file: write_all(file, data))
        self._keep(os.path.dirname(target), os.path.basename(prefix), os.path.basename(target))
        return target

    def _chosen(self, session: Any) -> dict[str, Any]:
        return all_variables(session.graph) if self._variables is None else self._variables

    def _keep(self, folder: str, prefix: str, newest: str) -> None:
        """Enter `newest` in the index; drop the oldest checkpoints of its prefix."""
        try:
            listed = read_index(folder)
        except CheckpointError:
            listed = _found(folder)  # an unreadable index is no reason to lose training
        listed = [n for n in listed if n != newest] + [newest]
        mine = [n for n in listed if _is_of(n, prefix)]
        surplus = mine[: -self.max_to_keep] if self.max_to_keep else []
        kept = [n for n in listed if n not in surplus]
        data = json.dumps({"format": 1, "checkpoints": kept}, indent=1).encode()
        write_atomically(os.path.join(folder, INDEX), lambda file: write_all(file, data))
        for name in surplus:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(os.path.join(folder, name))

    # ---- restoring

    def restore(
        self,
        session: Any,
        path: str | os.PathLike[str],
        strict: bool = True,
        rename: Mapping[str, str] | None = None,
    ) -> RestoreReport:
        """Set variables from a checkpoint (safetensors or npz), all that match or none.

        strict   raise CheckpointError, with the report, unless file and variables match fully
        rename   variable name by name in the file
        The whole file is read and checked before the first variable changes.
        """
        arrays, metadata = read_arrays(path)
        variables = self._chosen(session)
        arrays = _renamed(arrays, rename or {}, os.fspath(path))
        types = {name: str(v.type) for name, v in variables.items()}
        stored = {name: type_text(array) for name, array in arrays.items()}
        report = compare(os.fspath(path), types, stored, _unset(metadata, variables, session))
        if strict and not report.complete:
            raise CheckpointError(str(report))
        for name in report.matched:
            session.set_value(variables[name], arrays[name])
        return report


def all_variables(graph: Graph) -> dict[str, Any]:
    """Every variable of a graph by name, the random counter among them."""
    found: dict[str, Any] = {n.name: n.outputs[0] for n in graph.nodes if n.op.name == "variable"}
    if graph.random_counter is not None:
        found.setdefault(graph.random_counter.node.name, graph.random_counter)
    return found


def _step(session: Any, global_step: Any) -> int | None:
    if global_step is None:
        return None
    if isinstance(global_step, Tensor):
        global_step = session.get_value(global_step)
    step = int(global_step)
    if step != global_step or step < 0:
        raise GraphTypeError(f"Saver: not a step: {global_step!r}")
    return step


def _renamed(arrays: dict[str, Array], rename: Mapping[str, str], file: str) -> dict[str, Array]:
    unknown = [n for n in rename if n not in arrays]
    if unknown:
        raise CheckpointError(f"{file!r} has no {unknown[0]!r} to rename")
    result: dict[str, Array] = {}
    for name, array in arrays.items():
        new = rename.get(name, name)
        if new in result:
            raise CheckpointError(f"{file!r}: two arrays would be called {new!r}")
        result[new] = array
    return result


def _unset(metadata: Mapping[str, str], variables: Mapping[str, Any], session: Any) -> list[str]:
    """Names that may be missing: the random counter, had it no value yet when saving."""
    counter = session.graph.random_counter
    try:
        listed = json.loads(metadata.get(_UNSET, "[]"))
    except ValueError:
        return []
    return [n for n, v in variables.items() if v is counter and n in listed]


# ---- the index ---------------------------------------------------------------------------------


def read_index(folder: str) -> list[str]:
    """The checkpoints that a folder's index lists, oldest first; [] without an index."""
    path = os.path.join(folder, INDEX)
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_INDEX)
        found = json.loads(data)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise CheckpointError(f"cannot read {path!r}: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path!r} is not a checkpoint index: {error}") from None
    names = found.get("checkpoints") if isinstance(found, dict) else None
    if not isinstance(names, list) or not all(_is_plain(n) for n in names):
        raise CheckpointError(f"{path!r} is not a checkpoint index")
    return names


def _is_plain(name: Any) -> bool:
    """A file name of a checkpoint without folders: what may be opened or deleted."""
    return isinstance(name, str) and name.endswith(SUFFIX) and os.path.basename(name) == name


def _is_of(name: str, prefix: str) -> bool:
    return re.fullmatch(rf"{re.escape(prefix)}(-\d+)?{re.escape(SUFFIX)}", name) is not None


def _found(folder: str) -> list[str]:
    """The checkpoint files in a folder, oldest first."""
    with os.scandir(folder or ".") as entries:
        files = [(e.stat().st_mtime_ns, e.name) for e in entries if e.name.endswith(SUFFIX)]
    return [name for _, name in sorted(files)]


def latest_checkpoint(folder: str | os.PathLike[str]) -> str | None:
    """The newest checkpoint that the folder's index lists and that exists, or None."""
    where = os.fspath(folder)
    for name in reversed(read_index(where)):
        path = os.path.join(where, name)
        if os.path.isfile(path):
            return path
    return None
