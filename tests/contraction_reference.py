"""Support of test_contractions: compiled contractions, and a float64 reference for them.

The reference walks the same accesses with NumPy.
"""

from __future__ import annotations

import ctypes
import random
from collections.abc import Sequence
from typing import Any

import numpy as np
from llvmlite import binding

from graphc.backends.codegen.contraction import contraction_blocks, emit_contraction
from graphc.backends.codegen.targets import Target
from graphc.dims import DimLike, atoms, evaluate
from graphc.kernel import Access, Contraction, Expr, Store, Term, sizes_of
from graphc.types import DType, float32

binding.initialize_native_target()
binding.initialize_native_asmprinter()

HOST = dict(binding.get_host_cpu_features())


def host_features(without: Sequence[str] = ()) -> str:
    return ",".join(
        ("+" if on and not any(name.startswith(w) for w in without) else "-") + name
        for name, on in HOST.items()
    )


def jit(text: str, name: str, features: str | None = None) -> tuple[Any, Any]:
    module = binding.parse_assembly(text)
    machine = binding.Target.from_default_triple().create_target_machine(
        cpu=binding.get_host_cpu_name(),
        features=features or host_features(),
        opt=2,
        jit=True,
    )
    engine = binding.create_mcjit_compiler(module, machine)
    engine.finalize_object()
    i64, pointer = ctypes.c_int64, ctypes.c_void_p
    kind = ctypes.CFUNCTYPE(None, pointer, pointer, i64, i64)
    return kind(engine.get_function_address(name)), engine


def module_text(c: Contraction, target: Target | None) -> str:
    f = emit_contraction(c, "kernel", target)
    return "\n".join(f.declarations.values()) + "\n" + str(f)


class Compiled:
    """A contraction as a callable over NumPy buffers."""

    def __init__(
        self, c: Contraction, target: Target | None = None, features: str | None = None
    ) -> None:
        self.c, self.target = c, target
        self.function, self.engine = jit(module_text(c, target), "kernel", features)

    def blocks(self, sizes: dict[str, int]) -> int:
        return value(contraction_blocks(self.c, self.target), sizes)

    def tables(self, buffers: Sequence[np.ndarray], sizes: dict[str, int]) -> tuple[Any, Any]:
        args = (ctypes.c_void_p * len(buffers))(*(x.ctypes.data for x in buffers))
        numbers = [value(d, sizes) for d in sizes_of(self.c)]
        return args, (ctypes.c_int64 * max(len(numbers), 1))(*numbers)

    def __call__(
        self,
        buffers: Sequence[np.ndarray],
        sizes: dict[str, int],
        ranges: Sequence[tuple[int, int]] | None = None,
    ) -> None:
        args, table = self.tables(buffers, sizes)
        for b0, b1 in ranges or [(0, self.blocks(sizes))]:
            self.function(args, table, b0, b1)


def value(d: DimLike, sizes: dict[str, int]) -> int:
    return evaluate(d, {a: sizes[a.name] for a in atoms(d)})


# ---- the reference


def locate(access: Access, axes: Sequence[np.ndarray], sizes: dict[str, int]) -> tuple[Any, Any]:
    """Element index and whether it is inside, over broadcast axis indices."""
    at: Any = np.int64(value(access.offset, sizes))
    inside: Any = np.bool_(True)
    for term in access.terms:
        number: Any = np.int64(value(term.shift, sizes))
        for axis, coef in term.axes:
            number = number + axes[axis] * value(coef, sizes)
        index = number // term.div
        if term.limit is not None:
            inside = inside & (number % term.div == 0) & (index >= 0)
            inside = inside & (index < value(term.limit, sizes))
        at = at + index * value(term.stride, sizes)
    return at, inside


def fetch(buffer: np.ndarray, access: Access, axes: Any, sizes: Any, fill: Any) -> Any:
    at, inside = locate(access, axes, sizes)
    return np.where(inside, buffer[np.where(inside, at, 0)] if buffer.size else fill, fill)


def reference(c: Contraction, buffers: Sequence[np.ndarray], sizes: dict[str, int]) -> None:
    """Run a contraction in float64 on the buffers, one (batch, m, n) point per dot product."""
    shape = tuple(value(e, sizes) for e in c.axes)
    free = len(c.batch) + len(c.m) + len(c.n)
    if 0 in shape[:free]:
        return
    grid: list[Any] = list(np.ogrid[tuple(slice(0, e) for e in shape)])
    a = fetch(buffers[0].astype(np.float64), c.a, grid, sizes, 0.0)
    b = fetch(buffers[1].astype(np.float64), c.b, grid, sizes, 0.0)
    a = np.broadcast_to(a, np.broadcast_shapes(a.shape, (1,) * len(shape)))
    b = np.broadcast_to(b, np.broadcast_shapes(b.shape, (1,) * len(shape)))
    letters = "abcdefghijklmnop"[: len(shape)]

    def squeezed(x: np.ndarray) -> tuple[np.ndarray, str]:
        kept = [i for i in range(len(shape)) if x.shape[i] == shape[i]]
        index = tuple(slice(None) if i in kept else 0 for i in range(len(shape)))
        return x[index], "".join(letters[i] for i in kept)

    x, in_x = squeezed(a)
    y, in_y = squeezed(b)
    out = letters[:free]
    missing = "".join(s for s in letters if s not in in_x and s not in in_y)
    ones = np.ones(tuple(shape[letters.index(s)] for s in missing))
    acc = np.einsum(f"{in_x},{in_y},{missing}->{out}", x, y, ones, optimize=True)
    points = list(np.ogrid[tuple(slice(0, e) for e in shape[:free])])
    results = [evaluate_expr(s.expr, acc, points, buffers, sizes) for s in c.stores]
    for store, result in zip(c.stores, results, strict=True):
        at, inside = locate(store.access, points, sizes)
        at, inside = np.broadcast_to(at, shape[:free]), np.broadcast_to(inside, shape[:free])
        result = np.broadcast_to(result, shape[:free])
        target = buffers[store.access.buf]
        if store.add:
            target[at[inside]] += result[inside]
        else:
            target[at[inside]] = result[inside]


NUMPY: dict[str, Any] = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "max": np.maximum,
    "gt": np.greater,
    "select": np.where,
    "cast": np.float64,
}


def evaluate_expr(e: Expr, acc: Any, points: Any, buffers: Any, sizes: Any) -> Any:
    if e.op == "acc":
        return acc
    if e.op == "const":
        return e.value
    if e.op == "size":
        return value(e.value, sizes)
    if e.op == "axis":
        return points[e.value]
    if e.op == "load":
        return fetch(buffers[e.value[0].buf], e.value[0], points, sizes, e.value[1])
    operands = [evaluate_expr(x, acc, points, buffers, sizes) for x in e.args]
    return NUMPY[e.op](*operands)


# ---- building contractions


def strides(shape: Sequence[DimLike]) -> list[DimLike]:
    found: list[DimLike] = []
    step: DimLike = 1
    for extent in reversed(shape):
        found.insert(0, step)
        step = step * extent
    return found


def plain(buf: int, axes: Sequence[int], steps: Sequence[DimLike], offset: int = 0) -> Access:
    terms = (Term(((a, 1),), s) for a, s in zip(axes, steps, strict=True))
    return Access(buf, tuple(terms), offset)


def op(name: str, *args: Expr, dtype: DType | None = None) -> Expr:
    return Expr(name, args, None, dtype or args[-1].dtype)


def acc(dtype: DType) -> Expr:
    return Expr("acc", (), 0, dtype)


def matmul(
    m: DimLike,
    n: DimLike,
    k: DimLike,
    dtype: DType = float32,
    *,
    ta: bool = False,
    tb: bool = False,
    batch: tuple[DimLike, ...] = (),
    shared_b: bool = False,
) -> Contraction:
    g = len(batch)
    axes = tuple(range(g))
    a_shape = (*batch, k, m) if ta else (*batch, m, k)
    b_shape = (*batch, n, k) if tb else (*batch, k, n)
    a_axes = (*axes, g + 2, g) if ta else (*axes, g, g + 2)
    b_axes = (*axes, g + 1, g + 2) if tb else (*axes, g + 2, g + 1)
    a = plain(0, a_axes, strides(a_shape))
    b = plain(1, b_axes, strides(b_shape))
    if shared_b:
        b = plain(1, b_axes[g:], strides(b_shape[g:]))
    out = plain(2, (*axes, g, g + 1), strides((*batch, m, n)))
    stores = (Store(out, acc(dtype)),)
    return Contraction(batch, (m,), (n,), (k,), a, b, (dtype,) * 3, stores, dtype)


def noise(rng: np.random.Generator, size: int, dtype: DType) -> np.ndarray:
    return rng.standard_normal(max(size, 1)).astype(dtype.numpy)


def check(
    c: Contraction,
    buffers: Sequence[np.ndarray],
    sizes: dict[str, int] | None = None,
    target: Target | None = None,
    features: str | None = None,
    compiled: Compiled | None = None,
) -> Compiled:
    """The kernel agrees with the reference, and any block order gives the same bits."""
    sizes = sizes or {}
    kernel = compiled or Compiled(c, target, features)
    wanted = [x.astype(np.float64) if x.dtype.kind == "f" else x.copy() for x in buffers]
    reference(c, wanted, sizes)
    got = [x.copy() for x in buffers]
    kernel(got, sizes)
    size = [value(e, sizes) for e in c.axes]
    depth = max(int(np.prod(size[len(size) - len(c.k) :])), 1)
    tolerance = (1e-6 if c.dtype is float32 else 1e-14) * max(depth, 4) ** 0.5
    for x, y in zip(got, wanted, strict=True):
        largest = max(np.abs(y).max(initial=1), 1)
        np.testing.assert_allclose(x, y, rtol=0, atol=tolerance * largest)
    count = kernel.blocks(sizes)
    order = list(range(count))
    random.Random(count).shuffle(order)
    again = [x.copy() for x in buffers]
    if count:
        kernel(again, sizes, [(i, i + 1) for i in order])
    for x, y in zip(got, again, strict=True):
        assert x.tobytes() == y.tobytes()
    return kernel


def matmul_buffers(c: Contraction, m: int, n: int, k: int, batch: int = 1) -> list[np.ndarray]:
    rng = np.random.default_rng(m * 7 + n * 3 + k)
    return [noise(rng, batch * s, c.dtype) for s in (m * k, k * n, m * n)]
