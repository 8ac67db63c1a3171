"""Kernels tried in a child process first: one that crashes or never ends is named, no more.

Imports: debug.native, debug.report.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import select
import signal
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

from graphc.debug.native import KernelCode
from graphc.debug.report import FoundError

Array = np.ndarray[Any, Any]

PATIENCE = 60.0
"""Seconds that one kernel may take on the small arrays of a check."""


def require_survival(kernels: Sequence[tuple[KernelCode, list[Array]]]) -> None:
    """Raise FoundError naming a kernel whose machine code ends or never leaves the process.

    Runs each once in a child process; does nothing where processes cannot fork.
    """
    if not hasattr(os, "fork") or not kernels:
        return
    reading, writing = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # other threads do not matter to it
        child = os.fork()
    if child == 0:
        _try_all(kernels, writing)
    os.close(writing)
    try:
        last, stuck = _follow(reading)
    finally:
        os.close(reading)
    if stuck:
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    code = kernels[max(last, 0)][0]
    if stuck:
        raise code.found(f"its machine code does not end within {PATIENCE:.0f} seconds")
    if os.WIFSIGNALED(status):
        name = signal.Signals(os.WTERMSIG(status)).name
        raise code.found(f"its machine code ends the process with {name}")


def _try_all(kernels: Sequence[tuple[KernelCode, list[Array]]], writing: int) -> None:
    """In the child: run each kernel after telling its number."""
    try:
        faulthandler.disable()
        for number, (code, operands) in enumerate(kernels):
            os.write(writing, number.to_bytes(4, "little"))
            with contextlib.suppress(FoundError):
                code.run(operands, [(0, code.blocks)])
    finally:
        os._exit(0)


def _follow(reading: int) -> tuple[int, bool]:
    """The number the child told last, and whether it has been silent for too long."""
    last = -1
    while True:
        ready, _, _ = select.select([reading], [], [], PATIENCE)
        if not ready:
            return last, True
        told = os.read(reading, 4)
        if not told:
            return last, False
        last = int.from_bytes(told, "little")
