"""Contractions compiled by LLVM against a float64 reference that walks the same accesses."""

from __future__ import annotations

import ctypes
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from contraction_reference import (
    Compiled,
    acc,
    check,
    host_features,
    matmul,
    matmul_buffers,
    noise,
    op,
    plain,
    strides,
    value,
)

from graphc.backends.codegen.contraction import contraction_cut
from graphc.backends.codegen.targets import AVX2, AVX512, NEON, SSE2, Target, target_for
from graphc.dims import Dim, DimLike, product, symbol
from graphc.kernel import Access, Contraction, Expr, Store, Term, sizes_of
from graphc.types import DType, bool_, float32, float64, int64

# ---- matrix products


@pytest.mark.parametrize("ta", [False, True])
@pytest.mark.parametrize("tb", [False, True])
@pytest.mark.parametrize("dtype", [float32, float64], ids=str)
def test_symbolic_matmul(ta: bool, tb: bool, dtype: DType) -> None:
    m, n, k = symbol("m"), symbol("n"), symbol("k")
    c = matmul(m, n, k, dtype, ta=ta, tb=tb)
    kernel = Compiled(c)
    cases = [(0, 5, 3), (3, 0, 4), (3, 4, 0), (1, 1, 1), (15, 33, 17), (70, 130, 300), (129, 7, 5)]
    for rows, cols, depth in cases:
        buffers = matmul_buffers(c, rows, cols, depth)
        check(c, buffers, {"m": rows, "n": cols, "k": depth}, compiled=kernel)


def test_batched_matmul_with_shared_operand() -> None:
    g, m = symbol("g"), symbol("m")
    for shared in (False, True):
        c = matmul(m, 18, 21, batch=(g, 2), shared_b=shared)
        check(c, matmul_buffers(c, 37, 18, 21, batch=6), {"g": 3, "m": 37})


@pytest.mark.parametrize("m,n,k", [(1, 100, 300), (300, 1, 100), (33, 2, 64), (1, 1, 700)])
def test_thin_matmul(m: int, n: int, k: int) -> None:
    for tb in (False, True):
        c = matmul(m, n, k, tb=tb)
        check(c, matmul_buffers(c, m, n, k))


@pytest.mark.parametrize("rows", [1, 2, 3, 4])
def test_few_rows_read_the_other_operand_in_place(rows: int) -> None:
    n, k = symbol("n"), symbol("k")
    for dtype in (float32, float64):
        kernel = Compiled(matmul(rows, n, k, dtype, batch=(2,), shared_b=True))
        for cols, depth in [(1, 1), (7, 5), (300, 270), (16, 0), (64, 513)]:
            buffers = matmul_buffers(kernel.c, rows, cols, depth, batch=2)
            check(kernel.c, buffers, {"n": cols, "k": depth}, compiled=kernel)


@pytest.mark.parametrize("dtype", [float32, float64], ids=str)
def test_few_rows_are_seen_in_the_run(dtype: DType) -> None:
    kernel = Compiled(matmul(symbol("m"), 70, symbol("k"), dtype))
    for rows in (1, 2, 3, 4, 5, 6):
        for depth in (0, 1, 15, 16, 17, 300):
            buffers = matmul_buffers(kernel.c, rows, 70, depth)
            check(kernel.c, buffers, {"m": rows, "k": depth}, compiled=kernel)


@pytest.mark.parametrize("empty", ["m", "n", "k", "all"])
def test_axis_groups_may_be_empty(empty: str) -> None:
    groups: list[tuple[DimLike, ...]] = [
        () if empty in (name, "all") else (size,)
        for name, size in (("m", 21), ("n", 35), ("k", 18))
    ]
    m, n, k = groups
    in_m, in_n = list(range(len(m))), list(range(len(m), len(m) + len(n)))
    in_k = list(range(len(m) + len(n), len(m) + len(n) + len(k)))
    a = plain(0, in_m + in_k, strides(m + k))
    b = plain(1, in_k + in_n, strides(k + n))
    out = plain(2, in_m + in_n, strides(m + n))
    stores = (Store(out, acc(float32)),)
    c = Contraction((), m, n, k, a, b, (float32,) * 3, stores, float32)
    rng = np.random.default_rng(4)
    counts = (value(product(s), {}) for s in (m + k, k + n, m + n))
    check(c, [noise(rng, count, float32) for count in counts])


def test_indexed_store_and_gather() -> None:
    base = matmul(9, 20, 6)
    table = plain(3, (0,), (4,))
    index = Expr("load", (), (plain(4, (1,), (1,)), 0), int64)
    found = Expr("gather", (index,), (table, 4), float32)
    store = Store(plain(2, (0,), (20,)), op("add", acc(float32), found), index, 20)
    c = Contraction(
        (), (9,), (20,), (6,), base.a, base.b, (*(float32,) * 4, int64), (store,), float32
    )
    rng = np.random.default_rng(4)
    buffers = [noise(rng, n, float32) for n in (54, 120, 180, 36)]
    where = rng.permutation(24)[:20].astype(np.int64) - 2
    got = buffers[2].copy()
    Compiled(c)([*buffers[:2], got, buffers[3], where], {})
    dense = buffers[0].reshape(9, 6).astype(np.float64) @ buffers[1].reshape(6, 20)
    wanted = buffers[2].reshape(9, 20).copy()
    for row in range(9):
        for col, at in enumerate(where):
            if 0 <= at < 20:
                extra = buffers[3][4 * row + at] if at < 4 else 0.0
                wanted[row, at] = dense[row, col] + extra
    np.testing.assert_allclose(got.reshape(9, 20), wanted, atol=1e-5)


def test_strided_operands_without_any_contiguous_axis() -> None:
    a, b = plain(0, (0, 2), (1, 0)), plain(1, (2, 1), (3, 200))
    a = Access(0, (Term(((0, 130),), 1), Term(((2, 3),), 1)), 5)
    out = plain(2, (0, 1), (26, 2))
    c = Contraction(
        (), (30,), (13,), (40,), a, b, (float32,) * 3, (Store(out, acc(float32)),), float32
    )
    rng = np.random.default_rng(0)
    check(c, [noise(rng, n, float32) for n in (4200, 2800, 800)])


# ---- convolutions


@dataclass
class Conv:
    """A convolution over any number of spatial axes, channels last."""

    images: DimLike
    size: tuple[DimLike, ...]
    channels: int
    kernel: tuple[int, ...]
    filters: int
    stride: int = 1
    padding: int = 0
    dilation: int = 1
    groups: int = 1
    dtype: DType = float32

    @property
    def out(self) -> tuple[DimLike, ...]:
        spans = ((k - 1) * self.dilation + 1 for k in self.kernel)
        return tuple(
            (s + 2 * self.padding - span) // self.stride + 1
            for s, span in zip(self.size, spans, strict=True)
        )

    @property
    def x_shape(self) -> tuple[DimLike, ...]:
        return (self.images, *self.size, self.channels * self.groups)

    @property
    def w_shape(self) -> tuple[DimLike, ...]:
        return (*self.kernel, self.channels, self.filters * self.groups)

    @property
    def y_shape(self) -> tuple[DimLike, ...]:
        return (self.images, *self.out, self.filters * self.groups)

    def tap(self, o: int, k: int, step: DimLike, size: DimLike) -> Term:
        """Input position of an output position and a kernel tap."""
        limit = size if self.padding else None
        return Term(((o, self.stride), (k, self.dilation)), step, -self.padding, 1, limit)

    def back(self, i: int, k: int, step: DimLike, size: DimLike) -> Term:
        """Output position that an input position and a kernel tap came from."""
        return Term(((i, 1), (k, -self.dilation)), step, self.padding, self.stride, size)

    def forward(self, stores: tuple[Store, ...] | None = None) -> Contraction:
        d = len(self.size)
        g = 1 if self.groups > 1 else 0
        n, o, f = g, list(range(g + 1, g + 1 + d)), g + 1 + d
        k, ic = list(range(f + 1, f + 1 + d)), f + 1 + d
        xs, ws, ys = strides(self.x_shape), strides(self.w_shape), strides(self.y_shape)
        taps = [self.tap(o[i], k[i], xs[1 + i], self.size[i]) for i in range(d)]
        group = [Term(((0, self.channels),), 1)] * g
        x = Access(0, (Term(((n, 1),), xs[0]), *taps, Term(((ic, 1),), 1), *group))
        into = [Term(((0, self.filters),), 1)] * g
        kw = [Term(((a, 1),), s) for a, s in zip((*k, ic, f), ws, strict=True)]
        yw = [Term(((a, 1),), s) for a, s in zip((n, *o, f), ys, strict=True)]
        w, y = Access(1, (*kw, *into)), Access(2, (*yw, *into))
        return Contraction(
            (self.groups,) * g,
            (self.images, *self.out),
            (self.filters,),
            (*self.kernel, self.channels),
            x,
            w,
            (self.dtype,) * 3,
            stores or (Store(y, acc(self.dtype)),),
            self.dtype,
        )

    def input_gradient(self) -> Contraction:
        d = len(self.size)
        i, f = list(range(1, 1 + d)), 1 + d
        k, oc = list(range(f + 1, f + 1 + d)), f + 1 + d
        xs, ws, ys = strides(self.x_shape), strides(self.w_shape), strides(self.y_shape)
        taps = [self.back(i[j], k[j], ys[1 + j], self.out[j]) for j in range(d)]
        g = Access(0, (Term(((0, 1),), ys[0]), *taps, Term(((oc, 1),), 1)))
        w = plain(1, (*k, f, oc), ws)
        dx = plain(2, (0, *i, f), xs)
        return Contraction(
            (),
            (self.images, *self.size),
            (self.channels,),
            (*self.kernel, self.filters),
            g,
            w,
            (self.dtype,) * 3,
            (Store(dx, acc(self.dtype)),),
            self.dtype,
        )

    def filter_gradient(self) -> Contraction:
        d = len(self.size)
        k, ic, f = list(range(d)), d, d + 1
        n, o = d + 2, list(range(d + 3, 2 * d + 3))
        xs, ws, ys = strides(self.x_shape), strides(self.w_shape), strides(self.y_shape)
        taps = [self.tap(o[i], k[i], xs[1 + i], self.size[i]) for i in range(d)]
        x = Access(0, (Term(((n, 1),), xs[0]), *taps, Term(((ic, 1),), 1)))
        g = plain(1, (n, *o, f), ys)
        dw = plain(2, (*k, ic, f), ws)
        return Contraction(
            (),
            (*self.kernel, self.channels),
            (self.filters,),
            (self.images, *self.out),
            x,
            g,
            (self.dtype,) * 3,
            (Store(dw, acc(self.dtype)),),
            self.dtype,
        )

    def shapes(self, kind: str) -> tuple[Sequence[DimLike], ...]:
        x, w, y = self.x_shape, self.w_shape, self.y_shape
        return {"forward": (x, w, y), "input_gradient": (y, w, x), "filter_gradient": (x, y, w)}[
            kind
        ]

    def buffers(self, kind: str, sizes: dict[str, int]) -> list[np.ndarray]:
        rng = np.random.default_rng(5)
        counts = (int(np.prod([value(e, sizes) for e in s])) for s in self.shapes(kind))
        return [noise(rng, n, self.dtype) for n in counts]


S = symbol("s")
N = symbol("images")
KINDS = ("forward", "input_gradient", "filter_gradient")
CONVS = {
    "valid": Conv(3, (12, 12), 20, (5, 5), 50),
    "one_channel": Conv(2, (11, 13), 1, (5, 5), 20),
    "one_channel_padded": Conv(2, (9, 8), 1, (3, 3), 7, padding=1),
    "padded": Conv(N, (7, 9), 6, (3, 3), 18, padding=1),
    "strided": Conv(2, (9, 10), 5, (3, 3), 8, stride=2, padding=1),
    "dilated": Conv(2, (11, 11), 4, (3, 3), 5, dilation=2, padding=2),
    "symbolic": Conv(N, (S, S), 16, (3, 3), 16, stride=2, padding=1),
    "pointwise": Conv(2, (6, 5), 24, (1, 1), 40),
    "line": Conv(3, (30,), 8, (5,), 9, padding=2),
    "volume": Conv(1, (5, 6, 7), 3, (3, 3, 3), 10, padding=1),
    "f64": Conv(2, (8, 8), 5, (3, 3), 11, padding=1, dtype=float64),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", CONVS)
def test_convolution(name: str, kind: str) -> None:
    conv = CONVS[name]
    sizes = {"images": 3, "s": 10}
    check(getattr(conv, kind)(), conv.buffers(kind, sizes), sizes)


def test_grouped_convolution() -> None:
    conv = Conv(2, (7, 7), 4, (3, 3), 6, padding=1, groups=3)
    check(conv.forward(), conv.buffers("forward", {}))


# ---- epilogues


def test_epilogue_with_bias_residual_relu_and_two_stores() -> None:
    m = symbol("m")
    base = matmul(m, 45, 30)
    bias = Expr("load", (), (plain(3, (1,), (1,)), 0.0), float32)
    row = Expr("load", (), (plain(4, (0,), (1,)), 0.0), float32)
    residual = Expr("load", (), (plain(5, (0, 1), (45, 1)), 0.0), float32)
    total = op("add", op("add", op("add", acc(float32), bias), row), residual)
    positive = op("gt", total, Expr("const", (), 0.0, float32), dtype=bool_)
    relu = op("select", positive, total, Expr("const", (), 0.0, float32))
    scaled = op("mul", acc(float32), Expr("size", (), m, float32))
    stores = (
        Store(plain(2, (0, 1), (45, 1)), relu),
        Store(plain(6, (1, 0), (m, 1)), scaled),
        Store(plain(7, (0, 1), (45, 1)), positive),
    )
    c = Contraction(
        (), (m,), (45,), (30,), base.a, base.b, (*(float32,) * 7, bool_), stores, float32
    )
    rng = np.random.default_rng(3)
    rows = 39
    counts = (rows * 30, 30 * 45, rows * 45, 45, rows, rows * 45, rows * 45)
    buffers = [noise(rng, n, float32) for n in counts]
    buffers.append(np.zeros(rows * 45, np.bool_))
    check(c, buffers, {"m": rows})


def test_epilogue_with_guards_axes_and_accumulation() -> None:
    base = matmul(20, 37, 16, float64)
    shifted = Access(3, (Term(((0, 1),), 37), Term(((1, 1),), 1, -2, 1, 33)))
    beside = Expr("load", (), (shifted, 0.5), float64)
    column = Expr("load", (), (Access(3, (Term(((0, 1),), 1, 1, 2, 8),)), 2.0), float64)
    index = op("cast", Expr("axis", (), 1, int64), dtype=float64)
    number = op("add", op("add", op("mul", acc(float64), index), beside), column)
    cropped = Access(4, (Term(((0, 1),), 30, -1, 1, 15), Term(((1, 1),), 1, 0, 1, 30)))
    stores = (
        Store(plain(2, (0, 1), (37, 1)), number, add=True),
        Store(cropped, acc(float64)),
    )
    c = Contraction((), (20,), (37,), (16,), base.a, base.b, (float64,) * 5, stores, float64)
    rng = np.random.default_rng(3)
    buffers = [noise(rng, n, float64) for n in (320, 592, 740, 740, 450)]
    check(c, buffers)


@pytest.mark.parametrize("cols", [17, 20, 37])
@pytest.mark.parametrize("in_place", [False, True])
def test_columns_left_over_are_finished_once_if_in_place(cols: int, in_place: bool) -> None:
    base = matmul(13, cols, 9)
    out = plain(2, (0, 1), (cols, 1))
    bias = plain(3, (0, 1) if in_place else (1,), (cols, 1) if in_place else (1,))
    total = op("add", acc(float32), Expr("load", (), (bias, 0.0), float32))
    stores = (Store(out, total),)
    c = Contraction((), (13,), (cols,), (9,), base.a, base.b, (float32,) * 4, stores, float32)
    again = contraction_cut(c, AVX2).code[8][2]
    assert again is not in_place, "both ways to finish columns are to be tried"
    rng = np.random.default_rng(cols)
    x, w = (noise(rng, n, float32) for n in (13 * 9, 9 * cols))
    added = noise(rng, 13 * cols if in_place else cols, float32)
    got = added.copy() if in_place else np.zeros(13 * cols, np.float32)
    # the output takes over the memory of what is added to it
    Compiled(c, AVX2)([x, w, got, got if in_place else added], {})
    wanted = x.reshape(13, 9).astype(np.float64) @ w.reshape(9, cols)
    wanted += added.reshape(-1, cols)
    np.testing.assert_allclose(got.reshape(13, cols), wanted, atol=1e-5)


def test_columns_of_several_axes() -> None:
    steps: list[DimLike] = [40, 300, 1]
    b = plain(1, (3, 1, 2), steps)
    out = plain(2, (0, 2, 1), (70, 10, 1))
    stores = (Store(out, acc(float32)),)
    c = Contraction(
        (), (9,), (10, 7), (7,), plain(0, (0, 3), (7, 1)), b, (float32,) * 3, stores, float32
    )
    rng = np.random.default_rng(1)
    check(c, [noise(rng, n, float32) for n in (63, 3300, 630)])


# ---- targets and bits


def test_sum_is_one_chain_of_fused_multiply_adds() -> None:
    k = 601
    c = matmul(5, 3, k)
    buffers = matmul_buffers(c, 5, 3, k)
    Compiled(c)(buffers, {})
    fma = ctypes.CDLL(None).fmaf
    fma.restype, fma.argtypes = ctypes.c_float, [ctypes.c_float] * 3
    for i in range(5):
        for j in range(3):
            total = 0.0
            for p in range(k):
                total = fma(buffers[0][i * k + p], buffers[1][p * 3 + j], total)
            assert np.float32(total) == buffers[2][i * 3 + j]


@pytest.mark.parametrize("target", [AVX512, AVX2, NEON, SSE2], ids=lambda t: t.name)
def test_every_target_gives_the_same_bits(target: Target) -> None:
    cases: list[tuple[Contraction, list[np.ndarray]]] = []
    for tb in (False, True):
        c = matmul(37, 50, 300, tb=tb)
        cases.append((c, matmul_buffers(c, 37, 50, 300)))
    conv = CONVS["padded"]
    cases.append((conv.forward(), conv.buffers("forward", {"images": 2})))
    features = host_features(("avx512", "evex512", "avx10"))
    for c, buffers in cases:
        got = [x.copy() for x in buffers]
        Compiled(c)(got, {"images": 2})
        restricted = check(c, buffers, {"images": 2}, target, features)
        again = [x.copy() for x in buffers]
        restricted(again, {"images": 2})
        assert got[2].tobytes() == again[2].tobytes()


def test_target_for_features() -> None:
    assert target_for("+avx2,+fma,-avx512f") is AVX2
    assert target_for({"avx2": True, "fma": True, "avx512f": False}) is AVX2
    assert target_for(["neon"]) is NEON
    assert target_for("") is SSE2
    full = "+avx512f,+avx512vl,+avx512dq,+avx512bw,+avx2,+fma"
    assert target_for(full) is AVX512


@pytest.mark.parametrize("seed", range(12))
def test_random_contraction(seed: int) -> None:
    r = random.Random(seed)
    counts = [r.randint(0, 1), r.randint(1, 2), r.randint(1, 2), r.randint(1, 3)]
    sizes: dict[str, int] = {}
    parts: list[tuple[DimLike, ...]] = []
    for count in counts:
        part: list[DimLike] = []
        for _ in range(count):
            extent = r.choice([1, 2, 3, 5, 8, 17])
            if r.random() < 0.3:
                name = f"r{seed}_{len(sizes)}"
                sizes[name] = extent
                part.append(symbol(name))
            else:
                part.append(extent)
        parts.append(tuple(part))
    batch, m, n, k = parts
    b_axes = list(range(len(batch)))
    m_axes = list(range(len(batch), len(batch) + len(m)))
    n_axes = list(range(len(batch) + len(m), len(batch) + len(m) + len(n)))
    k_axes = list(range(n_axes[-1] + 1, n_axes[-1] + 1 + len(k)))
    extents = [*batch, *m, *n, *k]

    def access(buf: int, axes: list[int], guard: bool) -> tuple[Access, int]:
        order = axes.copy()
        r.shuffle(order)
        steps = strides([extents[a] for a in order])
        terms = list(plain(buf, order, steps).terms)
        slack = 0
        if guard:
            i = r.randrange(len(terms))
            div = r.choice([1, 2])
            limit: Any = max(value(extents[order[i]], sizes) - 1, 1)
            terms[i] = Term(terms[i].axes, terms[i].stride, r.choice([-1, 0, 1]), div, limit)
        total = int(np.prod([value(extents[a], sizes) for a in axes]))
        return Access(buf, tuple(terms), slack), total

    a, na = access(0, b_axes + m_axes + k_axes, r.random() < 0.5)
    b, nb = access(1, b_axes + k_axes + n_axes, r.random() < 0.3)
    out, ny = access(2, b_axes + m_axes + n_axes, False)
    dtype = r.choice([float32, float64])
    stores = (Store(out, acc(dtype)),)
    c = Contraction(batch, m, n, k, a, b, (dtype,) * 3, stores, dtype)
    rng = np.random.default_rng(seed)
    check(c, [noise(rng, s, dtype) for s in (na, nb, ny)], sizes)


def test_symbols_are_read_from_the_size_table() -> None:
    m = symbol("m")
    assert isinstance(m, Dim)
    assert sizes_of(matmul(m, 3, 4)) == (m,)
