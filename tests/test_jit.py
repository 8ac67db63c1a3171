"""Compiling text and kernels in memory: errors, targets, and when two kernels are one."""

from __future__ import annotations

import threading

import pytest
from hand_written_plans import TEXT, N, softmax_plan

from graphc.backends.llvm.executable import LLVMExecutable, compile_plan
from graphc.backends.llvm.jit import JIT, default_jit, stats
from graphc.backends.llvm.signature import signature
from graphc.backends.llvm.target import Target
from graphc.errors import CompileError
from graphc.kernel import Access, Expr, LoopKernel, Stage, Store, Term
from graphc.types import float32


def test_refused_text_is_a_compile_error() -> None:
    with pytest.raises(CompileError, match="LLVM refused") as caught:
        default_jit().compile_text("define void @f() {\n  ret i64 %nothing\n}\n", ["f"])
    assert "%nothing" in str(caught.value)
    with pytest.raises(CompileError, match="no_such_function_here"):
        default_jit().compile_text("declare void @no_such_function_here()\n", [])


def test_target_without_a_feature() -> None:
    target = Target(without=["avx512"])
    assert "+avx512" not in target.features
    assert JIT(target).compile_text(TEXT, ["affine"])["affine"]


def test_equal_kernels_compile_once_from_many_threads() -> None:
    compile_plan(softmax_plan())
    before = stats.kernels
    programs: list[LLVMExecutable] = []
    threads = [
        threading.Thread(target=lambda: programs.append(compile_plan(softmax_plan())))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(programs) == 8
    assert stats.kernels == before


def constant_kernel(number: float | bool) -> LoopKernel:
    store = Store(Access(0, (Term(((0, 1),), 1),)), Expr("const", (), number, float32))
    return LoopKernel((N,), (0,), 0, (float32,), (Stage((), (), (store,)),))


def test_signatures_tell_apart_what_equality_does_not() -> None:
    kernels = [constant_kernel(number) for number in (0.0, -0.0, 1, 1.0, True)]
    assert len({signature(kernel) for kernel in kernels}) == len(kernels)
    assert signature(constant_kernel(0.5)) == signature(constant_kernel(0.5))


def test_signature_of_a_deep_shared_expression_is_short() -> None:
    x = Expr("load", (), (Access(0, (Term(((0, 1),), 1),)), 0), float32)
    for _ in range(5_000):
        x = Expr("add", (x, x), None, float32)
    store = Store(Access(1, (Term(((0, 1),), 1),)), x)
    kernel = LoopKernel((N,), (0,), 0, (float32, float32), (Stage((), (), (store,)),))
    assert len(signature(kernel)) < 200_000
