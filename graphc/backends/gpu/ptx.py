"""LLVM text of GPU kernels to PTX.

Nothing but llvmlite is needed: no compiler of CUDA, no library of its functions.  An intrinsic that
LLVM cannot lower for a GPU would end the process, so only those in a list are let through.
Imports: llvm.target, errors.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

from graphc.backends.llvm.target import binding, compile_lock
from graphc.errors import CompileError

TRIPLE = "nvptx64-nvidia-cuda"

Capability = tuple[int, int]
"""What a GPU can do, as NVIDIA numbers it: (7, 5), (8, 0), (9, 0)."""

_OF_INTEGERS = {"abs", "ctlz", "cttz", "smax", "smin", "umax", "umin"}
_OF_FLOATS = {"ceil", "copysign", "fabs", "floor", "fma", "fptosi.sat", "fptoui.sat"}
_ROUNDED = {"maximum", "maxnum", "minimum", "minnum", "roundeven", "sqrt", "trunc"}
LOWERED = frozenset(_OF_INTEGERS | _OF_FLOATS | _ROUNDED)
"""Generic intrinsics that LLVM lowers for every GPU and every type that kernels use them with."""

_CALLED = re.compile(r"@\"?llvm\.([\w.]+)")


def to_ptx(text: str, capability: Capability) -> str:
    """The PTX of a module for GPUs of at least a compute capability.

    Raises CompileError where the module is wrong or calls what no GPU has.
    """
    _require_lowered(text)
    llvm = binding()
    header = f'target triple = "{TRIPLE}"\n'
    with compile_lock:
        machine = _machine(capability)
        try:
            module = llvm.parse_assembly(header + text)
            module.verify()
        except RuntimeError as error:
            raise CompileError(f"a GPU kernel is not valid LLVM: {error}") from None
        module.data_layout = str(machine.target_data)
        return str(machine.emit_assembly(module))


def _require_lowered(text: str) -> None:
    for name in set(_CALLED.findall(text)):
        if not name.startswith("nvvm.") and not any(
            name == known or name.startswith(known + ".") for known in LOWERED
        ):
            raise CompileError(f"a GPU kernel calls llvm.{name}, which no GPU has")


@lru_cache
def _machine(capability: Capability) -> Any:
    llvm = binding()
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    cpu = f"sm_{capability[0]}{capability[1]}"
    return llvm.Target.from_triple(TRIPLE).create_target_machine(cpu=cpu, opt=3)
