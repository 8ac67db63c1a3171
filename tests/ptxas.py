"""Kernels made into PTX by LLVM, and that into machine code by ptxas, to see that it can be done.

What LLVM cannot lower for a GPU ends the process, so a process beside this one does the lowering.
Imports: graphc.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from graphc.backends.gpu.kernel_text import GpuKernel

Capability = tuple[int, int]

CAPABILITIES: tuple[Capability, ...] = ((7, 5), (8, 0), (9, 0))

PTXAS = shutil.which("ptxas")
REASON = "ptxas is not on the path: pip install nvidia-cuda-nvcc"

_ROOT = str(Path(__file__).resolve().parent.parent)

_WORKER = f"""
import json, sys
sys.path.insert(0, {_ROOT!r})
from graphc.backends.gpu.ptx import to_ptx
for line in sys.stdin:
    text, capability = json.loads(line)
    try:
        answer = [to_ptx(text, tuple(capability)), ""]
    except Exception as error:
        answer = ["", f"{{type(error).__name__}}: {{error}}"]
    print(json.dumps(answer), flush=True)
"""


@dataclass(frozen=True)
class Usage:
    """What ptxas says of a kernel: registers, and bytes of spills and of the stack."""

    registers: int
    spills: int
    stack: int


class LoweringError(Exception):
    """A kernel that LLVM does not lower, or that ends the process."""


class _Lowering:
    """The process that lowers; another is started where one has died."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[str] | None = None

    def ptx(self, text: str, capability: Capability) -> str:
        if self.process is None:
            self.process = subprocess.Popen(
                [sys.executable, "-c", _WORKER],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps([text, capability]) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            self.close()
            raise LoweringError("LLVM ended the process")
        ptx, error = json.loads(answer)
        if error:
            raise LoweringError(error)
        return str(ptx)

    def close(self) -> None:
        process, self.process = self.process, None
        if process is not None:
            process.communicate()


_lowering = _Lowering()


def close() -> None:
    """End the process that lowers."""
    _lowering.close()


def lower(kernel: GpuKernel, capability: Capability) -> str:
    """A kernel's PTX; raises LoweringError."""
    try:
        return _lowering.ptx(kernel.text, capability)
    except LoweringError as error:
        major, minor = capability
        raise LoweringError(f"{kernel.name} for {major}.{minor}: {error}\n{kernel.text}") from None


def assemble(kernels: Sequence[GpuKernel], capability: Capability) -> dict[str, Usage]:
    """Machine code of kernels, in one run of ptxas, and what it says of each, by name."""
    if not kernels:
        return {}
    header, bodies = "", []
    for kernel in kernels:
        # what modules share has names of its own in each, since they become one file
        own = replace(kernel, text=kernel.text.replace("@graphc.", f"@{kernel.name}."))
        header, body = _split(lower(own, capability))
        bodies.append(body)
    return run_ptxas("\n".join([header, *bodies]), capability)


def _split(ptx: str) -> tuple[str, str]:
    """What stands once in a file, and the rest."""
    end = ".address_size 64\n"
    head, body = ptx.split(end, 1)
    return head + end, body


def run_ptxas(ptx: str, capability: Capability) -> dict[str, Usage]:
    """What ptxas says of the kernels of a file; AssertionError if it does not assemble."""
    assert PTXAS is not None, REASON
    done = subprocess.run(
        [PTXAS, f"-arch=sm_{capability[0]}{capability[1]}", "-v", "-o", "/dev/null", "/dev/stdin"],
        input=ptx,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{done.stderr}\n{ptx}"
    return dict(_usages(done.stderr))


_ENTRY = re.compile(
    r"Compiling entry function '(\w+)'.*?(\d+) bytes stack frame, (\d+) bytes spill stores, "
    r"(\d+) bytes spill loads.*?Used (\d+) registers",
    re.DOTALL,
)


def _usages(said: str) -> list[tuple[str, Usage]]:
    return [
        (name, Usage(int(registers), int(stores) + int(loads), int(stack)))
        for name, stack, stores, loads, registers in _ENTRY.findall(said)
    ]


def check_kernels(kernels: Sequence[GpuKernel], capability: Capability) -> dict[str, Usage]:
    """All kernels assemble, and none spills."""
    used = assemble(kernels, capability)
    assert set(used) == {k.name for k in kernels}
    spilling = {name: usage for name, usage in used.items() if usage.spills}
    assert not spilling, f"for {capability}: {spilling}"
    return used


@cache
def llvm_major() -> int:
    """LLVM's major version."""
    import llvmlite.binding

    version: Any = llvmlite.binding.llvm_version_info
    return int(version[0])
