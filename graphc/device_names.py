"""How devices are called: 'cpu', 'gpu', 'gpu:1', '/gpu:0', 'emulated-gpu', 'reference'.

Imports: errors.
"""

from __future__ import annotations

import re

from graphc.errors import GraphTypeError

_GPU = re.compile(r"/?(?:device:)?gpu(?::(\d+))?", re.IGNORECASE)
_CPU = re.compile(r"/?(?:device:)?cpu(?::0)?", re.IGNORECASE)

OTHERS = ("reference", "emulated-gpu")

PRECISIONS = ("f32", "tf32", "bf16")
"""What GPUs may round the operands of contractions to; the CPU never does."""


def device_name(given: str) -> str:
    """The name by which a device is known: 'cpu', 'gpu:0', 'emulated-gpu' or 'reference'.

    Raises GraphTypeError for what names no device.
    """
    if isinstance(given, str):
        found = _GPU.fullmatch(given)
        if found is not None:
            return f"gpu:{int(found[1] or 0)}"
        if _CPU.fullmatch(given):
            return "cpu"
        if given.lstrip("/").lower() in OTHERS:
            return given.lstrip("/").lower()
    raise GraphTypeError(
        "device must be one of 'reference', 'cpu', 'gpu' (or 'gpu:1', ...), 'emulated-gpu', "
        f"not {given!r}"
    )


def is_gpu(name: str) -> bool:
    """Whether a device, by the name it has here, is a GPU or stands for one."""
    return name.startswith("gpu:") or name == "emulated-gpu"


def require_precision(given: str) -> None:
    """Raise GraphTypeError for what is no precision."""
    if given not in PRECISIONS:
        raise GraphTypeError(f"Session: precision is one of {PRECISIONS}, not {given!r}")
