"""Which device runs what: what `gx.device` blocks ask for, what is there, and a log of it.

A program runs as a whole on one device, but for Python functions in it, which run on the host.
Imports: device_names, node, ops.host, backends.gpu when a GPU is asked for, errors.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from graphc.device_names import device_name, is_gpu
from graphc.errors import DeviceError
from graphc.node import Node, Tensor, topological
from graphc.ops.host import host_op

Roots = Sequence[Tensor | Node]

KEPT = 256
"""How many entries a log keeps."""


@dataclass(frozen=True)
class Placement:
    """Where a session runs a program, or an operator of it, and why.

    what    the program's fetches, or the operator
    device  where it runs
    reason  why there
    """

    what: str
    device: str
    reason: str

    def __str__(self) -> str:
        return f"{self.what}: {self.device} ({self.reason})"


class Placer:
    """Finds the device of every program of a session.

    device  what the session was given, or None to go by what nodes were made for
    soft    whether a program runs on the CPU where its GPU cannot be used; else DeviceError
    shows   whether placements are printed to standard error as well
    Raises DeviceError at once where the session was given a GPU that cannot be used.
    """

    def __init__(self, device: str | None, soft: bool, shows: bool) -> None:
        self.device = None if device is None else device_name(device)
        self.soft = soft
        self.shows = shows
        self.log: list[Placement] = []
        missing = _missing_on(self.device) if self.device is not None else ""
        if missing:
            raise DeviceError(f"Session: {self.device} cannot be used: {missing}")

    def settings(self) -> dict[str, Any]:
        """The arguments of a session that places programs as this one."""
        return {
            "device": self.device,
            "allow_soft_placement": self.soft,
            "log_device_placement": self.shows,
        }

    def device_of(self, roots: Roots) -> str:
        """Where a program of these fetches and targets runs."""
        if self.device is not None and not is_gpu(self.device):
            return self.device
        graphs = {n.graph for n in _nodes(roots) if n.graph is not None}
        if self.device is None and not any(g.devices for g in graphs):
            return "cpu"
        placement = self._placement(roots)
        self._note(placement)
        if is_gpu(placement.device):
            for node in topological(_nodes(roots)):
                if node.op is host_op:
                    what = f"{node.op.name} {node.name!r} ({node.loc})"
                    self._note(Placement(what, "cpu", "a Python function runs on the host"))
        return placement.device

    def _placement(self, roots: Roots) -> Placement:
        what = ", ".join(n.name or n.op.name for n in _nodes(roots)[:3]) or "nothing"
        if self.device is not None:
            return Placement(what, self.device, "the session's device")
        name, why = _wanted(roots)
        if not name:
            return Placement(what, "cpu", "nothing in it was made for a device")
        missing = _missing_on(name)
        if not missing:
            return Placement(what, name, why)
        if not self.soft:
            raise DeviceError(f"{what} cannot run on {name}: {missing}\n  {why}")
        return Placement(what, "cpu", f"{why}, but {missing}")

    def _note(self, placement: Placement) -> None:
        if placement in self.log:
            return
        self.log.append(placement)
        del self.log[:-KEPT]
        if self.shows:
            print(placement, file=sys.stderr)


def _nodes(roots: Roots) -> list[Node]:
    return [r.node if isinstance(r, Tensor) else r for r in roots]


def _missing_on(name: str) -> str:
    """Why a device cannot be used, or '' if it can."""
    if not is_gpu(name):
        return ""
    from graphc.backends.gpu.devices import open_device

    try:
        open_device(name)
    except DeviceError as error:
        return str(error)
    return ""


def _wanted(roots: Roots) -> tuple[str, str]:
    """The device that nodes of a program were made for, and which node says so; '' for none.

    A GPU that any node was made for is the whole program's.
    """
    found = "", ""
    for node in topological(_nodes(roots)):
        name = node.graph.devices.get(node) if node.graph is not None else None
        if name is None or (found[0] and not is_gpu(name)):
            continue
        found = name, f"{node.op.name} {node.name!r} ({node.loc}) was made for {name}"
        if is_gpu(name):
            break
    return found
