"""Vector functions in float32 beside NumPy and PyTorch: `python benchmarks/vector_math.py [NAME]`.

Kernels of one function each, on numbers that lie in the second-level cache, one thread, the fastest
of many short runs, in 10^9 elements a second.  `goal` is what a core with AVX-512 that did 277
GFLOP/s of multiply-adds reached by programs written for it, scaled by the multiply-adds that this
core is measured to do; they flushed denormal results of sigmoid to zero, graphc's do not.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib
import time
from collections.abc import Callable
from typing import Any

import numpy as np

import graphc as gx
from graphc.backends.codegen.loops import emit_loop_kernel
from graphc.backends.codegen.scalar import MAX_ULP
from graphc.backends.llvm.jit import default_jit
from graphc.dims import symbol
from graphc.kernel import MAP_BLOCK, SCALAR_OPS, Access, Expr, LoopKernel, Stage, Store, Term
from graphc.types import float32

ELEMENTS = 1 << 15
REACHED = {"exp": 9.5, "log": 4.8, "tanh": 4.8, "erf": 3.9, "sigmoid": 7.3}
REACHED_AT = 277e9
POSITIVE = ("log", "log2", "log10", "acosh")
NUMPY = {"asin": "arcsin", "acos": "arccos", "atan": "arctan", "pow": "power"}
NUMPY |= {"asinh": "arcsinh", "acosh": "arccosh", "atanh": "arctanh", "atan2": "arctan2"}

Array = np.ndarray[Any, Any]


def kernel(op: str) -> LoopKernel:
    """out[i] = op(x[i], ...)."""
    n, arity = symbol("n"), SCALAR_OPS[op][0]
    places = [Access(i, (Term(((0, 1),), 1),)) for i in range(arity + 1)]
    operands = tuple(Expr("load", (), (p, 0), float32) for p in places[:-1])
    stored = Store(places[-1], Expr(op, operands, None, float32))
    return LoopKernel((n,), (0,), 0, (float32,) * (arity + 1), (Stage((), (), (stored,)),))


def native(op: str, arrays: list[Array]) -> Callable[[], None]:
    """A call of the kernel on arrays, the last of which it fills."""
    text = emit_loop_kernel(kernel(op), "kernel")
    module = "\n".join(text.declarations.values()) + "\n" + str(text)
    address = default_jit().compile_text(module, ["kernel"])["kernel"]
    pointer, i64 = ctypes.c_void_p, ctypes.c_int64
    function = ctypes.CFUNCTYPE(None, pointer, pointer, i64, i64)(address)
    table = (pointer * len(arrays))(*(a.ctypes.data for a in arrays))
    sizes = (i64 * 1)(ELEMENTS)
    places = ctypes.addressof(table), ctypes.addressof(sizes)

    def call(kept: Any = (table, sizes, arrays)) -> None:
        function(*places, 0, ELEMENTS // MAP_BLOCK)

    return call


def peers(op: str, arrays: list[Array]) -> dict[str, Callable[[], Any]]:
    """The same by NumPy and, where it is installed and has the function, PyTorch."""
    *inputs, out = arrays
    found: dict[str, Callable[[], Any]] = {}
    ufunc = getattr(np, NUMPY.get(op, op), None)
    if ufunc is not None:
        found["numpy"] = lambda: ufunc(*inputs, out=out)
    try:
        torch = importlib.import_module("torch")
    except ImportError:
        return found
    torch.set_num_threads(1)
    if hasattr(torch, op):
        tensors, result = [torch.from_numpy(x) for x in inputs], torch.from_numpy(out)
        found["torch"] = lambda: getattr(torch, op)(*tensors, out=result)
    return found


def fastest(calls: dict[str, Callable[[], Any]], seconds: float) -> dict[str, float]:
    """The shortest time of each, measured in turns."""
    best = dict.fromkeys(calls, np.inf)
    end = time.perf_counter() + seconds * len(calls)
    while time.perf_counter() < end:
        for name, call in calls.items():
            call()
            for _ in range(20):
                started = time.perf_counter()
                call()
                best[name] = min(best[name], time.perf_counter() - started)
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"default: {' '.join(REACHED)}")
    parser.add_argument("--secs", type=float, default=0.4, help="for each program")
    arguments = parser.parse_args()
    unknown = [name for name in arguments.names if name not in MAX_ULP]
    if unknown:
        parser.error(f"{unknown[0]} is none of {', '.join(MAX_ULP)}")
    scale = gx.measure_roofline().flops / REACHED_AT
    print(f"multiply-adds: {scale * REACHED_AT / 1e9:.0f} GFLOP/s; goals are scaled by {scale:.3f}")
    rng = np.random.default_rng(0)
    for op in arguments.names or REACHED:
        arrays = [rng.normal(0, 4, ELEMENTS).astype("f4") for _ in range(SCALAR_OPS[op][0] + 1)]
        if op in POSITIVE:
            arrays[0] = np.abs(arrays[0]) + np.float32(1 + 1e-3)
        calls = {"graphc": native(op, arrays)} | peers(op, arrays)
        with np.errstate(all="ignore"):
            times = fastest(calls, arguments.secs)
        rates = {name: ELEMENTS / t / 1e9 for name, t in times.items()}
        row = f"{op:8s} {MAX_ULP[op][0]:.2f} ulp  graphc {rates['graphc']:5.2f}"
        if op in REACHED:
            goal = REACHED[op] * scale
            row += f"   goal {goal:5.2f}, ratio {rates['graphc'] / goal:4.2f}"
        for name in [n for n in rates if n != "graphc"]:
            row += f"   {name} {rates[name]:5.2f}, ratio {rates['graphc'] / rates[name]:5.2f}"
        print(row, flush=True)


if __name__ == "__main__":
    main()
