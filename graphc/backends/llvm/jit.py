"""LLVM text to machine code in memory, each distinct kernel once per process.

Every kernel is a module of its own, named by its content, so that modules are compiled side by side
and their object code does not depend on what else a plan holds.  Compiling happens under one lock;
calls may come from any thread.  Imports: object_code, image, signature, codegen, kernel, errors.
"""

from __future__ import annotations

import hashlib
import os
import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from graphc import flags
from graphc.backends.codegen.text import FunctionText
from graphc.backends.llvm.image import MappedImage, NotLinkable, joined, link
from graphc.backends.llvm.object_code import object_code
from graphc.backends.llvm.signature import signature
from graphc.backends.llvm.target import Target, binding, compile_lock, has_symbol
from graphc.errors import CompileError
from graphc.kernel import Contraction, Kernel


@dataclass
class CompileStats:
    """What compiling has cost this process so far."""

    modules: int = 0
    kernels: int = 0
    cache_hits: int = 0
    emit_seconds: float = 0.0
    llvm_seconds: float = 0.0


stats = CompileStats()

_DECLARED = re.compile(r'^declare .*?@"?([\w.$]+)"?\(', re.MULTILINE)


class JIT:
    """Compiles for one target and keeps what it compiled for as long as it lives."""

    def __init__(self, target: Target | None = None) -> None:
        self.target = target or Target()
        self._addresses: dict[str, int] = {}
        self._code: list[Any] = []  # what holds machine code in memory

    def compile_text(self, text: str, names: Iterable[str]) -> dict[str, int]:
        """The addresses of the named functions of a module; raises CompileError if it is wrong."""
        with compile_lock:
            started = time.perf_counter()
            _require_symbols(text)
            addresses = self.load_objects(object_code([text], self.target), names)
            stats.modules += 1
            stats.llvm_seconds += time.perf_counter() - started
        return addresses

    def load_objects(self, objects: Sequence[bytes], names: Iterable[str]) -> dict[str, int]:
        """Put object files into memory; the addresses of the named functions."""
        try:
            images = [link(data) for data in objects]
            together, starts = joined(images)
            mapped = MappedImage(together)
        except (NotLinkable, OSError, LookupError):
            return self._load_by_llvm(objects, names)
        self._code.append(mapped)
        places = {
            name: mapped.address + start + place
            for image, start in zip(images, starts, strict=True)
            for name, place in image.symbols.items()
        }
        return {name: places[name] for name in names}

    def _load_by_llvm(self, objects: Sequence[bytes], names: Iterable[str]) -> dict[str, int]:
        llvm = binding()
        with compile_lock:
            engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), self.target.new_machine())
            for data in objects:
                engine.add_object_file(llvm.ObjectFileRef.from_data(data))
            engine.finalize_object()
            self._code.append(engine)
            return {name: int(engine.get_function_address(name)) for name in names}

    def compile_kernels(self, kernels: Sequence[Kernel], threads: int | None = None) -> list[int]:
        """The address of each kernel.

        New ones are compiled by up to `threads` threads; None: as flags and the machine allow.
        """
        started = time.perf_counter()
        keys = [signature(kernel) for kernel in kernels]
        stats.emit_seconds += time.perf_counter() - started
        with compile_lock:
            new = {
                key: kernel
                for key, kernel in zip(keys, kernels, strict=True)
                if key not in self._addresses
            }
            stats.cache_hits += len(keys) - len(new)
            if new:
                self._compile_new(new, threads or compile_threads())
            return [self._addresses[key] for key in keys]

    def _compile_new(self, new: Mapping[str, Kernel], threads: int) -> None:
        started = time.perf_counter()
        emitting = 0.0
        names = {key: kernel_name(key) for key in new}

        def texts() -> Iterator[str]:
            """Long ones first: no thread is then left alone with a long one at the end."""
            nonlocal emitting
            for key in sorted(new, key=lambda key: not isinstance(new[key], Contraction)):
                begun = time.perf_counter()
                text = module_text([emit(new[key], names[key])])
                emitting += time.perf_counter() - begun
                yield text

        found = self.load_objects(object_code(texts(), self.target, threads), names.values())
        self._addresses.update((key, found[name]) for key, name in names.items())
        stats.modules += len(new)
        stats.kernels += len(new)
        stats.emit_seconds += emitting
        stats.llvm_seconds += time.perf_counter() - started - emitting


def kernel_name(key: str) -> str:
    """The name of the function of a kernel with this signature."""
    return f"kernel_{hashlib.blake2b(key.encode(), digest_size=16).hexdigest()}"


def compile_threads() -> int:
    """Threads that compiling may use where no one says: GRAPHC_THREADS, or the cores available."""
    allowed = getattr(os, "sched_getaffinity", None)
    return flags.THREADS.value or (len(allowed(0)) if allowed else os.cpu_count() or 1)


def emit(kernel: Kernel, name: str) -> FunctionText:
    """The LLVM function of a kernel."""
    if isinstance(kernel, Contraction):
        from graphc.backends.codegen.contraction import emit_contraction

        return emit_contraction(kernel, name)
    from graphc.backends.codegen.loops import emit_loop_kernel

    return emit_loop_kernel(kernel, name)


def module_text(functions: Sequence[FunctionText]) -> str:
    """One module of several functions, each intrinsic declared once."""
    declarations: dict[str, str] = {}
    for function in functions:
        declarations.update(function.declarations)
    return "\n".join([*declarations.values(), "", *(str(f) for f in functions)])


_default: JIT | None = None


def default_jit() -> JIT:
    """The process-wide compiler for the host."""
    global _default
    if _default is None:
        with compile_lock:
            if _default is None:
                _default = JIT()
    return _default


def _require_symbols(text: str) -> None:
    """Refuse calls to functions this process lacks: LLVM's linker would end the process."""
    for name in _DECLARED.findall(text):
        if not name.startswith("llvm.") and not has_symbol(name):
            raise CompileError(f"generated code calls {name}, which this process does not have")
