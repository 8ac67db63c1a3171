"""The machine code is made for: triple, CPU and features.

LLVM is loaded when the first target is made, never when graphc is imported.  Imports: nothing of
graphc.
"""

from __future__ import annotations

import ctypes
import importlib
import os
import threading
from collections.abc import Sequence
from typing import Any

OPTIMIZATION = 2
"""Code generation level; no pass pipeline runs, since the emitted text is final."""

compile_lock = threading.RLock()
"""Held while compiling and across `fork`: a child never inherits half a compilation."""

_binding: Any = None


def binding() -> Any:
    """The module `llvmlite.binding`, loaded and initialised once."""
    global _binding
    if _binding is None:
        with compile_lock:
            if _binding is None:
                llvm = importlib.import_module("llvmlite.binding")
                llvm.initialize_native_target()
                llvm.initialize_native_asmprinter()
                _binding = llvm
    return _binding


class Target:
    """The host, without the CPU features whose names start with one of `without`.

    `Target(without=["avx512"])` makes the code an AVX2 machine would run; `optimization` 0 compiles
    in a fifth of the time.
    """

    def __init__(self, without: Sequence[str] = (), optimization: int = OPTIMIZATION) -> None:
        llvm = binding()
        features = llvm.get_host_cpu_features()
        for name in features:
            if name.startswith(tuple(without)):
                features[name] = False
        self.triple: str = llvm.get_process_triple()
        self.cpu: str = llvm.get_host_cpu_name()
        self.features: str = features.flatten()
        self.optimization = optimization
        self.machine: Any = self.new_machine()
        self.layout = str(self.machine.target_data)

    def new_machine(self) -> Any:
        """A machine of LLVM's of its own, for one owner: code at any address, near its constants."""
        return (
            binding()
            .Target.from_triple(self.triple)
            .create_target_machine(
                cpu=self.cpu,
                features=self.features,
                opt=self.optimization,
                reloc="pic",
                codemodel="small",
                jit=True,
            )
        )

    @property
    def architecture(self) -> str:
        """The first part of the triple: x86_64, aarch64, arm64."""
        return self.triple.split("-")[0]


def _llvmlite_lock() -> Any:
    """The lock llvmlite takes around each LLVM call, some of which garbage collection makes."""
    return getattr(_binding.ffi.lib, "_lock", None) if _binding is not None else None


def _before_fork() -> None:
    compile_lock.acquire()
    lock = _llvmlite_lock()
    if lock is not None:
        lock.__enter__()


def _after_fork() -> None:
    lock = _llvmlite_lock()
    if lock is not None:
        lock.__exit__(None, None, None)
    compile_lock.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork
    )


def has_symbol(name: str) -> bool:
    """Whether generated code can call the C function `name` of this process."""
    if binding().address_of_symbol(name) is not None:
        return True
    # LLVM opens the process's own symbols only with its first engine; the loader knows them now.
    try:
        process = ctypes.CDLL(None)
    except TypeError:  # Windows has no such handle
        return False
    return hasattr(process, name)
