"""LLVM text to machine code in memory, each distinct kernel once per process.

Every kernel is a module of its own, named by its content, so that modules are compiled side by side
and their object code does not depend on what else a plan holds.  Compiling happens under one lock;
calls may come from any thread.  What the cache on disk has is not compiled.
Imports: object_code, object_cache, image, signature, codegen, kernel, threads, errors.
"""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from graphc.backends.codegen.text import FunctionText
from graphc.backends.llvm.image import Image, MappedImage, NotLinkable, joined, link
from graphc.backends.llvm.object_cache import ObjectCache, Unit
from graphc.backends.llvm.object_code import object_code
from graphc.backends.llvm.signature import signature
from graphc.backends.llvm.target import Target, binding, compile_lock, has_symbol
from graphc.cache import digest
from graphc.errors import CompileError
from graphc.kernel import Contraction, Kernel
from graphc.threads import default_threads, limit


@dataclass
class CompileStats:
    """What compiling has cost this process so far.

    modules         compiled by LLVM
    kernels         compiled
    cache_hits      asked for again
    kernels_loaded  read from the cache on disk
    """

    modules: int = 0
    kernels: int = 0
    cache_hits: int = 0
    kernels_loaded: int = 0
    emit_seconds: float = 0.0
    llvm_seconds: float = 0.0


stats = CompileStats()

_DECLARED = re.compile(r'^declare .*?@"?([\w.$]+)"?\(', re.MULTILINE)


KEPT_KERNELS = 1024
"""Kernels a compiler knows, in use or not; of more, it forgets those it was asked for first."""


class Address(int):
    """Where a function is; it is there for as long as this object."""

    code: Any  # what holds the machine code in memory

    @classmethod
    def of(cls, value: int, code: Any) -> Address:
        """This address, in memory that `code` holds."""
        made = cls(value)
        made.code = code
        return made


def _nothing() -> None:
    pass


class JIT:
    """Compiles for one target.

    What `compile_text` made is there for as long as the compiler; a kernel also for as long as
    somebody holds its address.
    """

    def __init__(self, target: Target | None = None) -> None:
        self.target = target or Target()
        self.cache = ObjectCache(self.target)
        self._addresses: dict[str, Address] = {}
        self._texts: list[Address] = []

    def compile_text(
        self,
        text: str,
        names: Iterable[str],
        lower: Callable[[str, Target], str] | None = None,
    ) -> Mapping[str, int]:
        """The addresses of the named functions of a module; raises CompileError if it is wrong.

        `lower` makes the module that is compiled of the text, which it is kept by.
        """
        names = list(names)
        with compile_lock:
            started = time.perf_counter()
            kept = self.cache.module(text)
            addresses = self._load([kept], names) if kept is not None else None
            if addresses is None:
                _require_symbols(text)
                lowered = text if lower is None else lower(text, self.target)
                objects = object_code([lowered], self.target)
                addresses, (unit,) = self._load_new(objects, names)
                self.cache.keep_module(text, unit)
                stats.modules += 1
            stats.llvm_seconds += time.perf_counter() - started
            self._texts += addresses.values()
        return addresses

    def compile_kernels(
        self,
        kernels: Sequence[Kernel],
        names: Sequence[str] | None = None,
        threads: int | None = None,
        meanwhile: Callable[[], None] = _nothing,
    ) -> list[int]:
        """The address of each kernel; `names` are their `kernel_names`, if these are known.

        New ones are compiled by up to `threads` threads; None: as flags and the machine allow.
        This one calls `meanwhile` before it compiles with the others.
        """
        names = names or kernel_names(kernels)
        with compile_lock:
            new = {
                name: kernel
                for name, kernel in zip(names, kernels, strict=True)
                if name not in self._addresses
            }
            stats.cache_hits += len(names) - len(new)
            if new:
                self._load_kept(self.cache.kernels(new))
                new = {name: kernel for name, kernel in new.items() if name not in self._addresses}
            if new:
                self._compile_new(new, threads or compile_threads(), meanwhile)
            else:
                meanwhile()
            return self._known(names)

    def load_kernels(self, names: Sequence[str], batches: Sequence[bytes]) -> list[int] | None:
        """The address of each kernel, which some process has compiled into these batches.

        None where one is in neither.
        """
        with compile_lock:
            new = [name for name in dict.fromkeys(names) if name not in self._addresses]
            if new:
                self._load_kept(self.cache.batches(batches, new))
            if not all(name in self._addresses for name in names):
                return None
            stats.cache_hits += len(names) - len(new)
            return self._known(names)

    def _known(self, names: Sequence[str]) -> list[int]:
        """The addresses of these kernels, which are the last to be forgotten from now on."""
        found = {name: self._addresses.pop(name) for name in dict.fromkeys(names)}
        self._addresses.update(found)
        while len(self._addresses) > max(KEPT_KERNELS, len(found)):
            del self._addresses[next(iter(self._addresses))]
        return [found[name] for name in names]

    def _load_kept(self, units: Mapping[str, Unit]) -> None:
        found = self._load(list(units.values()), units) if units else None
        if found:
            self._addresses.update(found)
            stats.kernels_loaded += len(found)

    def _compile_new(
        self, new: Mapping[str, Kernel], threads: int, meanwhile: Callable[[], None]
    ) -> None:
        started = time.perf_counter()
        emitting = waiting = 0.0
        # long ones first: no thread is then left alone with a long one at the end
        order = sorted(new, key=lambda name: not isinstance(new[name], Contraction))

        def texts() -> Iterator[str]:
            nonlocal emitting, waiting
            for name in order:
                begun = time.perf_counter()
                text = module_text([emit(new[name], name)])
                emitting += time.perf_counter() - begun
                yield text
            begun = time.perf_counter()
            meanwhile()  # the others have what they need
            waiting = time.perf_counter() - begun

        found, units = self._load_new(object_code(texts(), self.target, threads), order)
        self._addresses.update(found)
        self.cache.keep_kernels(dict(zip(order, units, strict=True)))
        stats.modules += len(new)
        stats.kernels += len(new)
        stats.emit_seconds += emitting
        stats.llvm_seconds += time.perf_counter() - started - emitting - waiting

    # ---- code in memory

    def _load_new(
        self, objects: Sequence[bytes], names: Sequence[str]
    ) -> tuple[dict[str, Address], Sequence[Unit]]:
        """Put object files into memory: where the named functions are, and what to keep."""
        units: Sequence[Unit] = objects
        with contextlib.suppress(NotLinkable):
            units = [link(data) for data in objects]
        found = self._load(units, names)
        return (self._load_by_llvm(objects, names) if found is None else found), units

    def _load(self, units: Sequence[Unit], names: Iterable[str]) -> dict[str, Address] | None:
        """Put code into memory; the addresses of the named functions, or None if that failed."""
        images = [unit for unit in units if isinstance(unit, Image)]
        objects = [unit for unit in units if isinstance(unit, bytes)]
        if objects:
            return None if images else self._load_by_llvm(objects, names)
        try:
            together, starts = joined(images)
            mapped = MappedImage(together)
        except (OSError, LookupError):
            return None
        places = {
            name: mapped.address + start + place
            for image, start in zip(images, starts, strict=True)
            for name, place in image.symbols.items()
        }
        if not all(name in places for name in names):
            return None
        return {name: Address.of(places[name], mapped) for name in names}

    def _load_by_llvm(self, objects: Sequence[bytes], names: Iterable[str]) -> dict[str, Address]:
        llvm = binding()
        with compile_lock:
            engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), self.target.new_machine())
            for data in objects:
                engine.add_object_file(llvm.ObjectFileRef.from_data(data))
            engine.finalize_object()
            return {n: Address.of(int(engine.get_function_address(n)), engine) for n in names}


def kernel_name(key: str) -> str:
    """The name of the function of a kernel with this signature."""
    return f"kernel_{digest(key).hex()}"


def kernel_names(kernels: Sequence[Kernel]) -> list[str]:
    """The name of each kernel's function, which says by a hash what it computes."""
    started = time.perf_counter()
    names = [kernel_name(signature(kernel)) for kernel in kernels]
    stats.emit_seconds += time.perf_counter() - started
    return names


def compile_threads() -> int:
    """Threads that compiling may use where no one says: as many as a run may."""
    return min(default_threads(), limit())


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
