"""LLVM text to machine code in memory, each distinct kernel once per process.

Compiling happens under one lock; calls may come from any thread.  Imports: codegen, kernel, errors.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from graphc.backends.codegen.text import FunctionText
from graphc.backends.llvm.image import MappedImage, NotLinkable, link
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
_MESSAGE_LINE = re.compile(r":(\d+):\d+: error")


class JIT:
    """Compiles for one target and keeps what it compiled for as long as it lives."""

    def __init__(self, target: Target | None = None) -> None:
        self.target = target or Target()
        self._addresses: dict[str, int] = {}
        self._code: list[Any] = []  # what holds machine code in memory

    def compile_text(self, text: str, names: Iterable[str]) -> dict[str, int]:
        """The addresses of the named functions of a module; raises CompileError if it is wrong."""
        llvm = binding()
        with compile_lock:
            started = time.perf_counter()
            _require_symbols(text)
            try:
                module = llvm.parse_assembly(text)
                module.verify()
            except RuntimeError as error:
                raise _refused(text, str(error)) from None
            module.triple = self.target.triple
            module.data_layout = self.target.layout
            addresses = self.load_object(self.target.machine.emit_object(module), names)
            stats.modules += 1
            stats.llvm_seconds += time.perf_counter() - started
        return addresses

    def load_object(self, data: bytes, names: Iterable[str]) -> dict[str, int]:
        """Put an object file into memory; the addresses of the named functions."""
        try:
            image = link(data)
            mapped = MappedImage(image)
        except (NotLinkable, OSError, LookupError):
            return self._load_by_llvm(data, names)
        self._code.append(mapped)
        return {name: mapped.address + image.symbols[name] for name in names}

    def _load_by_llvm(self, data: bytes, names: Iterable[str]) -> dict[str, int]:
        llvm = binding()
        with compile_lock:
            engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), self.target.new_machine())
            engine.add_object_file(llvm.ObjectFileRef.from_data(data))
            engine.finalize_object()
            self._code.append(engine)
            return {name: int(engine.get_function_address(name)) for name in names}

    def compile_kernels(self, kernels: Sequence[Kernel]) -> list[int]:
        """The address of each kernel; the new ones are compiled together as one module."""
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
                self._compile_new(new)
            return [self._addresses[key] for key in keys]

    def _compile_new(self, new: Mapping[str, Kernel]) -> None:
        started = time.perf_counter()
        first = len(self._addresses)
        names = [f"kernel_{first + i}" for i in range(len(new))]
        text = module_text(
            [emit(kernel, name) for kernel, name in zip(new.values(), names, strict=True)]
        )
        stats.emit_seconds += time.perf_counter() - started
        found = self.compile_text(text, names)
        self._addresses.update(zip(new, (found[name] for name in names), strict=True))
        stats.kernels += len(new)


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


def _refused(text: str, message: str) -> CompileError:
    """LLVM's message with the lines of text around the place it names; `.text` has all of it."""
    lines = text.splitlines()
    found = _MESSAGE_LINE.search(message)
    at = int(found.group(1)) if found else 1
    first = max(at - 6, 0)
    excerpt = [f"{i + 1:6} {lines[i]}" for i in range(first, min(at + 6, len(lines)))]
    error = CompileError("\n".join([f"LLVM refused generated code: {message.strip()}", *excerpt]))
    error.text = text  # type: ignore[attr-defined]
    return error
