"""Emitted text: division that is exact, and values that are used again only where they may be."""

from __future__ import annotations

import ctypes
import random

import numpy as np
import pytest

from graphc.backends.codegen.text import FunctionText
from graphc.backends.llvm.jit import default_jit, module_text

KERNEL = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64)


def run(f: FunctionText, words: np.ndarray) -> None:
    """Run a kernel whose one buffer is `words`; the last thing it computes is stored by it."""
    f.close_kernel()
    address = default_jit().compile_text(module_text([f]), [f.name])[f.name]
    args = np.array([words.ctypes.data], np.int64)
    KERNEL(address)(args.ctypes.data, None, 0, len(words))


def pairs() -> np.ndarray:
    """(a, b, _, _) with a next to multiples of b, small and large."""
    rng = random.Random(0)
    rows = []
    for bits in range(1, 52):
        for _ in range(20):
            b = rng.randrange(1, 1 << rng.randrange(1, bits + 1))
            multiple = rng.randrange(1 << bits) // b * b
            rows += [(max(multiple + d, 0), b, 0, 0) for d in (-1, 0, 1)]
    limit = (1 << 52) - 1
    rows += [(limit, b, 0, 0) for b in (1, 2, 3, 7, limit - 1, limit)]
    rows += [(limit - 1, b, 0, 0) for b in (1, 2, 3, 7, limit - 1, limit)]
    return np.array(rows, np.int64)


def division(constant: int | None) -> FunctionText:
    """Divides column 0 by column 1, or by a constant, into columns 2 and 3."""
    f = FunctionText(f"divide_{constant}")
    f.open_kernel(1, [])
    loop = f.open_loop("%b0", "%b1", 1)
    at = f.offset(f.bases[0], f.mul(loop.index, 32))
    a = f.value(f"load i64, ptr {at}, align 8")
    b = f.value(f"load i64, ptr {f.offset(at, 8)}, align 8")
    divisor = b if constant is None else str(constant)
    f.emit(f"store i64 {f.udiv(a, divisor)}, ptr {f.offset(at, 16)}, align 8")
    f.emit(f"store i64 {f.urem(a, divisor)}, ptr {f.offset(at, 24)}, align 8")
    f.close_loop(loop)
    return f


@pytest.mark.parametrize("constant", [None, 1, 2, 3, 7, 12, 4096, 1_000_003])
def test_division_is_exact(constant: int | None) -> None:
    words = pairs()
    run(division(constant), words)
    a, b = words[:, 0], words[:, 1] if constant is None else constant
    assert np.array_equal(words[:, 2], a // b)
    assert np.array_equal(words[:, 3], a % b)


ROUNDINGS = {"x86_64": (0x400, 0x800, 0xC00), "aarch64": (0x400000, 0x800000, 0xC00000)}
"""FE_DOWNWARD, FE_UPWARD and FE_TOWARDZERO, in some order."""


def test_division_is_exact_however_numbers_are_rounded() -> None:
    modes = ROUNDINGS.get(default_jit().target.architecture)
    process = ctypes.CDLL(None) if modes else None
    if process is None or not hasattr(process, "fesetround"):
        pytest.skip("no way to change how numbers are rounded")
    expected = pairs()
    expected[:, 2] = expected[:, 0] // expected[:, 1]
    expected[:, 3] = expected[:, 0] % expected[:, 1]
    f = division(None)
    f.close_kernel()
    address = default_jit().compile_text(module_text([f]), [f.name])[f.name]
    for mode in modes or ():
        words = pairs()
        args = np.array([words.ctypes.data], np.int64)
        assert process.fesetround(mode) == 0
        try:
            KERNEL(address)(args.ctypes.data, None, 0, len(words))
        finally:
            process.fesetround(0)
        assert np.array_equal(words, expected)


def test_a_known_value_is_computed_once() -> None:
    f = FunctionText("once")
    f.open_kernel(1, [])
    x = f.add("%b0", "%b1")
    loop = f.open_loop(0, "%b1", 1)
    assert f.add("%b0", "%b1") == x
    inside = f.add(loop.index, x)
    assert f.add(loop.index, x) == inside
    f.close_loop(loop)
    assert f.add("%b0", "%b1") == x


def test_values_of_a_loop_or_a_branch_are_not_used_outside() -> None:
    """LLVM refuses a value used where it may not have been computed."""
    f = FunctionText("outside")
    f.open_kernel(1, [])
    loop = f.open_loop(0, "%b1", 1)
    inside = f.mul("%b1", 3)
    f.close_loop(loop)
    assert f.mul("%b1", 3) != inside
    condition = f.value("icmp eq i64 %b1, 2")
    yes, after = f.fresh("yes"), f.fresh("after")
    f.branch_if(condition, yes, after)
    f.label(yes)
    maybe = f.mul("%b1", 5)
    nested = f.open_loop(0, 2, 1)
    assert f.mul("%b1", 3) == f.mul("%b1", 3)
    f.close_loop(nested)
    f.branch(after)
    f.label(after)
    assert f.mul("%b1", 5) != maybe
    total = f.add(f.mul("%b1", 5), f.mul("%b1", 3))
    f.emit(f"store i64 {total}, ptr {f.bases[0]}, align 8")
    words = np.zeros(4, np.int64)
    run(f, words)
    assert words[0] == 4 * 8
