"""LLVM text to object code, several modules at once.

Each thread has a context and a target machine of its own, which is all that LLVM asks for.
llvmlite lets one thread at a time into LLVM, whatever it does there; so the few functions needed
are called through a handle of their own to llvmlite's library, by the prototypes llvmlite gives
them, and touch nothing that llvmlite or another thread knows.  Where its library has no such
functions, modules are compiled one after another through llvmlite.  Imports: target, errors.
"""

from __future__ import annotations

import ctypes
import queue
import re
import threading
from collections.abc import Iterable
from functools import cache
from typing import Any

from graphc.backends.llvm.target import Target, binding, compile_lock
from graphc.errors import CompileError

_FUNCTIONS = (
    "LLVMPY_ContextCreate",
    "LLVMPY_ContextDispose",
    "LLVMPY_ParseAssembly",
    "LLVMPY_VerifyModule",
    "LLVMPY_SetTarget",
    "LLVMPY_SetDataLayout",
    "LLVMPY_DisposeModule",
    "LLVMPY_TargetMachineEmitToMemory",
    "LLVMPY_GetBufferStart",
    "LLVMPY_GetBufferSize",
    "LLVMPY_DisposeMemoryBuffer",
    "LLVMPY_DisposeString",
)

_MESSAGE_LINE = re.compile(r":(\d+):\d+: error")


def object_code(texts: Iterable[str], target: Target, threads: int = 1) -> list[bytes]:
    """The object file of each module, in order; raises CompileError for one that LLVM refuses.

    Up to `threads` threads compile while the next texts are drawn from `texts`.  The bytes do not
    depend on threads.  All threads have ended when this returns or raises.
    """
    with compile_lock:  # held across forks: a child never inherits a thread inside LLVM
        batch = _Batch(target, threads)
        try:
            for text in texts:
                batch.add(text)
            batch.work()
        except BaseException:
            batch.cancel()
            raise
        finally:
            batch.join()
    return batch.results()


class _Batch:
    """Modules to compile and what came of them."""

    def __init__(self, target: Target, threads: int) -> None:
        self.target = target
        self.allowed = threads if library() is not None else 1
        self.count = 0
        self.threads: list[threading.Thread] = []
        # None where a thread should end
        self._waiting: queue.SimpleQueue[tuple[int, str] | None] = queue.SimpleQueue()
        self._done: dict[int, bytes] = {}
        self._failed: dict[int, BaseException] = {}

    def add(self, text: str) -> None:
        """One more module; one more thread if others wait."""
        self._waiting.put((self.count, text))
        self.count += 1
        if self._waiting.qsize() > 1 and len(self.threads) + 1 < self.allowed:
            # its machine is made, and later let go, on this thread: that goes through llvmlite
            machine = self.target.new_machine()
            self.threads.append(threading.Thread(target=self._work, args=(machine,)))
            self.threads[-1].start()

    def work(self) -> None:
        """Compile on this thread until no module waits; the others then end too."""
        self._end()
        self._work(self.target.machine)

    def cancel(self) -> None:
        """Let each thread end after the module it is at."""
        try:
            while True:
                self._waiting.get_nowait()
        except queue.Empty:
            self._end()

    def _end(self) -> None:
        for _ in range(len(self.threads) + 1):
            self._waiting.put(None)

    def _work(self, machine: Any) -> None:
        while (waiting := self._waiting.get()) is not None:
            number, text = waiting
            try:
                self._done[number] = _compile(text, self.target, machine)
            except BaseException as error:
                self._failed[number] = error
                self.cancel()

    def join(self) -> None:
        """Wait for the threads, through interrupts, of which the last is then raised."""
        interrupt: KeyboardInterrupt | None = None
        for thread in self.threads:
            while thread.is_alive():
                try:
                    thread.join()
                except KeyboardInterrupt as error:
                    self.cancel()
                    interrupt = error
        if interrupt is not None:
            raise interrupt

    def results(self) -> list[bytes]:
        for number in sorted(self._failed):
            raise self._failed[number]
        return [self._done[number] for number in range(self.count)]


# ---- one module --------------------------------------------------------------------------------


@cache
def library() -> Any:
    """llvmlite's library without llvmlite's lock; None where it is not as expected."""
    shared = binding().ffi.lib
    try:
        private = ctypes.CDLL(shared._name)
        for function in _FUNCTIONS:
            known, own = getattr(shared, function), getattr(private, function)
            own.argtypes, own.restype = known.argtypes, known.restype
    except (AttributeError, OSError):
        return None
    return private


def _compile(text: str, target: Target, machine: Any) -> bytes:
    llvm = library()
    if llvm is None:
        return _compile_by_llvmlite(text, target, machine)
    context = llvm.LLVMPY_ContextCreate()
    try:
        message = _Message()
        module = llvm.LLVMPY_ParseAssembly(context, text.encode(), message.place)
        said = message.taken(llvm)
        if not module:
            raise refused(text, said)
        try:
            return _emit(llvm, text, module, target, machine)
        finally:
            llvm.LLVMPY_DisposeModule(module)
    finally:
        llvm.LLVMPY_ContextDispose(context)


def _emit(llvm: Any, text: str, module: Any, target: Target, machine: Any) -> bytes:
    message = _Message()
    wrong = llvm.LLVMPY_VerifyModule(module, message.place)
    said = message.taken(llvm)
    if wrong:
        raise refused(text, said)
    llvm.LLVMPY_SetTarget(module, target.triple.encode())
    llvm.LLVMPY_SetDataLayout(module, target.layout.encode())
    message = _Message()
    buffer = llvm.LLVMPY_TargetMachineEmitToMemory(machine, module, 1, message.place)
    said = message.taken(llvm)
    if not buffer:
        raise refused(text, said)
    try:
        start, size = llvm.LLVMPY_GetBufferStart(buffer), llvm.LLVMPY_GetBufferSize(buffer)
        return ctypes.string_at(start, size)
    finally:
        llvm.LLVMPY_DisposeMemoryBuffer(buffer)


class _Message:
    """Where LLVM leaves what it has to say."""

    def __init__(self) -> None:
        self._text = ctypes.c_char_p()
        self.place = ctypes.byref(self._text)

    def taken(self, llvm: Any) -> str:
        """The message, given back to LLVM."""
        said = self._text.value
        if said is None:
            return ""
        llvm.LLVMPY_DisposeString(self._text)
        return said.decode(errors="replace")


def _compile_by_llvmlite(text: str, target: Target, machine: Any) -> bytes:
    try:
        module = binding().parse_assembly(text)
        module.verify()
        module.triple = target.triple
        module.data_layout = target.layout
        return bytes(machine.emit_object(module))
    except RuntimeError as error:
        raise refused(text, str(error)) from None


def refused(text: str, message: str) -> CompileError:
    """LLVM's message with the lines of text around the place it names; `.text` has all of it."""
    lines = text.splitlines()
    found = _MESSAGE_LINE.search(message)
    at = int(found.group(1)) if found else 1
    first = max(at - 6, 0)
    excerpt = [f"{i + 1:6} {lines[i]}" for i in range(first, min(at + 6, len(lines)))]
    error = CompileError("\n".join([f"LLVM refused generated code: {message.strip()}", *excerpt]))
    error.text = text  # type: ignore[attr-defined]
    return error
