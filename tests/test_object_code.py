"""Object code of several modules at once: the same bytes, all errors, no thread left behind."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from graphc.backends.llvm import object_code as module
from graphc.backends.llvm.jit import JIT, kernel_name
from graphc.backends.llvm.object_code import library, object_code
from graphc.backends.llvm.target import Target
from graphc.dims import symbol
from graphc.errors import CompileError
from graphc.kernel import Access, Expr, LoopKernel, Stage, Store, Term
from graphc.types import float32

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

N = symbol("n")


def function_text(number: int) -> str:
    """A loop that takes LLVM a moment."""
    return f"""
define void @f{number}(ptr %p, i64 %n) nounwind {{
entry:
  br label %test
test:
  %i = phi i64 [ 0, %entry ], [ %j, %body ]
  %more = icmp slt i64 %i, %n
  br i1 %more, label %body, label %out
body:
  %at = getelementptr i64, ptr %p, i64 %i
  %x = load i64, ptr %at
  %y = add i64 %x, {number}
  store i64 %y, ptr %at
  %j = add nuw nsw i64 %i, 1
  br label %test
out:
  ret void
}}
"""


TEXTS = [function_text(i) for i in range(12)]
REFUSED = "define void @f() {\n  ret i64 %nothing\n}\n"
INVALID = "define i64 @f() {\n  %a = add i64 %b, 1\n  %b = add i64 %a, 1\n  ret i64 %b\n}\n"


def test_bytes_do_not_depend_on_threads() -> None:
    target = Target()
    alone = object_code(TEXTS, target, 1)
    before = threading.active_count()
    for threads in (2, 3, 8):
        assert object_code(TEXTS, target, threads) == alone
        assert threading.active_count() == before
    assert len(set(alone)) == len(TEXTS)
    assert object_code([], target, 4) == []


def test_llvmlite_alone_gives_the_same_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    assert library() is not None  # or nothing is tested here
    target = Target()
    expected = object_code(TEXTS[:3], target, 2)
    monkeypatch.setattr(module, "library", lambda: None)
    assert object_code(TEXTS[:3], target, 2) == expected
    for text in (REFUSED, INVALID):
        with pytest.raises(CompileError, match="LLVM refused generated code"):
            object_code([text], target)


@pytest.mark.parametrize("threads", [1, 3])
def test_a_refused_module_is_reported_whichever_thread_compiled_it(threads: int) -> None:
    target = Target()
    with pytest.raises(CompileError, match="%nothing") as caught:
        object_code([*TEXTS[:5], REFUSED, *TEXTS[5:]], target, threads)
    assert "     2   ret i64 %nothing" in str(caught.value).splitlines()
    assert caught.value.text == REFUSED  # type: ignore[attr-defined]
    with pytest.raises(CompileError, match="does not dominate"):
        object_code([*TEXTS[:5], INVALID], target, threads)
    assert len(object_code(TEXTS[:3], target, threads)) == 3


def test_an_interrupt_ends_all_threads() -> None:
    def texts() -> Iterator[str]:
        yield from TEXTS[:6]
        raise KeyboardInterrupt

    before = threading.active_count()
    with pytest.raises(KeyboardInterrupt):
        object_code(texts(), Target(), 3)
    assert threading.active_count() == before


def add_kernel(number: float) -> LoopKernel:
    access = (Term(((0, 1),), 1),)
    x = Expr("load", (), (Access(0, access), 0), float32)
    y = Expr("add", (x, Expr("const", (), number, float32)), None, float32)
    store = Store(Access(1, access), y)
    return LoopKernel((N,), (0,), 0, (float32, float32), (Stage((), (), (store,)),))


def test_an_interrupted_compilation_leaves_the_compiler_as_it_was(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    jit = JIT()
    kernels = [add_kernel(1.5 + i) for i in range(4)]
    first = jit.compile_kernels(kernels[:2], threads=2)

    def interrupted(*_: object) -> list[bytes]:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("graphc.backends.llvm.jit.object_code", interrupted)
        with pytest.raises(KeyboardInterrupt):
            jit.compile_kernels(kernels, threads=2)
    addresses = jit.compile_kernels(kernels, threads=2)
    assert addresses[:2] == first
    assert len(set(addresses)) == 4


@pytest.mark.parametrize("threads", [1, 3])
def test_what_is_done_while_kernels_compile_is_done_once(threads: int) -> None:
    jit = JIT()
    kernels = [add_kernel(20.5 + i) for i in range(4)]
    calls: list[int] = []
    first = jit.compile_kernels(kernels, threads=threads, meanwhile=lambda: calls.append(1))
    assert len(calls) == 1
    again = jit.compile_kernels(kernels, threads=threads, meanwhile=lambda: calls.append(2))
    assert calls == [1, 2]
    assert again == first


def test_an_error_of_what_is_done_meanwhile_ends_all_threads() -> None:
    jit = JIT()
    kernels = [add_kernel(30.5 + i) for i in range(4)]

    def refuse() -> None:
        raise KeyboardInterrupt

    before = threading.active_count()
    with pytest.raises(KeyboardInterrupt):
        jit.compile_kernels(kernels, threads=3, meanwhile=refuse)
    assert threading.active_count() == before
    assert len(set(jit.compile_kernels(kernels, threads=3))) == 4


def test_names_of_kernels_follow_from_their_content() -> None:
    assert kernel_name("a") == kernel_name("a") != kernel_name("b")


INTERRUPTED = """
import signal, sys, threading, time
sys.path[:0] = {path!r}
from test_object_code import TEXTS
from graphc.backends.llvm.object_code import object_code
from graphc.backends.llvm.target import Target, compile_lock

signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in a shell's background
target = Target()
def interrupt():
    time.sleep(0.1)
    signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

threading.Thread(target=interrupt).start()
try:
    object_code(TEXTS * 1000, target, 2)
except KeyboardInterrupt:
    assert threading.active_count() == 1
    thread = threading.Thread(target=lambda: print(compile_lock.acquire(timeout=5)))
    thread.start()
    thread.join()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no signals to threads on this system")
def test_control_c_while_compiling() -> None:
    script = INTERRUPTED.format(path=[os.path.join(ROOT, "tests"), ROOT])
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout) == (0, "True\n"), done.stderr


FORKING = """
import os, sys, threading, warnings
warnings.simplefilter("ignore", DeprecationWarning)
sys.path[:0] = {path!r}
from test_object_code import TEXTS
from graphc.backends.llvm.object_code import object_code
from graphc.backends.llvm.target import Target

target = Target()
expected = object_code(TEXTS, target, 1)
stop = threading.Event()
def busy():
    while not stop.is_set():
        assert object_code(TEXTS, target, 3) == expected

other = threading.Thread(target=busy)
other.start()
codes = []
for _ in range(5):
    child = os.fork()
    if child == 0:
        os._exit(object_code(TEXTS, target, 3) != expected)
    codes.append(os.waitpid(child, 0)[1])
stop.set()
other.join()
assert codes == [0] * 5, codes
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_fork_while_compiling() -> None:
    script = FORKING.format(path=[os.path.join(ROOT, "tests"), ROOT])
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
