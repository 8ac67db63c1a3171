"""The machine code is made for: triple, CPU and features.

LLVM is loaded when something is compiled, never when graphc is imported.
Imports: host, image, cache, fingerprint.
"""

from __future__ import annotations

import importlib
import os
import platform
import struct
import sys
import threading
from collections.abc import Sequence
from functools import cached_property
from typing import Any

from graphc.backends.llvm.host import processor
from graphc.backends.llvm.image import process_address
from graphc.cache import digest
from graphc.fingerprint import fingerprint

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
    in a fifth of the time.  LLVM is loaded when something is to be compiled, not before.
    """

    def __init__(self, without: Sequence[str] = (), optimization: int = OPTIMIZATION) -> None:
        self.without = tuple(without)
        self.optimization = optimization

    @cached_property
    def triple(self) -> str:
        return str(binding().get_process_triple())

    @cached_property
    def cpu(self) -> str:
        return str(binding().get_host_cpu_name())

    @cached_property
    def features(self) -> str:
        features = binding().get_host_cpu_features()
        for name in features:
            if name.startswith(self.without):
                features[name] = False
        return str(features.flatten())

    @cached_property
    def machine(self) -> Any:
        return self.new_machine()

    @cached_property
    def layout(self) -> str:
        return str(self.machine.target_data)

    def new_machine(self) -> Any:
        """A machine of LLVM's of its own, for one owner: code at any address, constants nearby."""
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
        """x86_64, aarch64, or what the triple begins with."""
        machine = platform.machine().lower()
        if struct.calcsize("P") == 8 and machine in _ARCHITECTURES:
            return _ARCHITECTURES[machine]
        return self.triple.split("-")[0]

    @cached_property
    def identity(self) -> bytes | None:
        """A key of everything that code for this target follows from but its text; None: unknown.

        That is this graphc, this LLVM, the processor and how it is used.
        """
        own = fingerprint()
        if own is None:
            return None
        host = processor() or f"{self.triple} {self.cpu} {self.features}".encode()
        how = f"{sys.platform} {self.without} {self.optimization}"
        return digest(own, _compiler(), host, how)


_ARCHITECTURES = {
    "x86_64": "x86_64",
    "amd64": "x86_64",
    "aarch64": "aarch64",
    "arm64": "aarch64",
}


def _compiler() -> str:
    """Which llvmlite this is, with the LLVM in it, without loading that."""
    package = importlib.import_module("llvmlite")
    folder = os.path.join(os.path.dirname(str(package.__file__)), "binding")
    libraries = [f for f in os.scandir(folder) if "llvmlite" in f.name and not f.is_dir()]
    sizes = sorted(f"{f.name} {f.stat().st_size}" for f in libraries)
    return " ".join([str(package.__version__), *sizes])


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
    try:
        process_address(name)
        return True
    except LookupError:
        return binding().address_of_symbol(name) is not None
