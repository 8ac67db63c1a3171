"""Kernels that differ in numbers only are one kernel: how many a plan has, and that bits stay."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from contraction_reference import check, matmul, noise
from gpu_plans import training_plan
from loop_kernel_jit import agree

import graphc as gx
from graphc import nn, train
from graphc.backends.codegen.contraction import contraction_cut
from graphc.backends.gpu.kernels import gpu_blocks
from graphc.dims import Dim, DimLike, atoms, evaluate, factor, of_atom, symbol
from graphc.kernel import (
    Access,
    Accumulator,
    Contraction,
    Expr,
    Kernel,
    LoopKernel,
    Stage,
    Store,
    Term,
    sizes_of,
)
from graphc.passes import plan_memory
from graphc.passes.share_kernels import Shared, share_kernels
from graphc.types import DType, float32, float64, int64

layers = nn.layers
HALF = Expr("const", (), 0.5, float32)


def test_a_gpu_launches_as_many_blocks_as_what_is_compiled_wants() -> None:
    """Of a size that the program knows to be a multiple of 6, the shared kernel knows nothing."""
    a, b = gx.placeholder("f32", ("m", "k"), name="a"), gx.placeholder("f32", ("k", "n"), name="b")
    m = a.dims[0]
    outer = gx.reshape(a, (m, 1, -1)) * np.ones((1, 6, 1), "f4")
    product = gx.reshape(outer, (6 * m, -1)) @ b
    plan = training_plan(
        [product, gx.tanh(product), gx.tanh(a)], {a: np.ones((3, 5)), b: np.ones((5, 7))}
    )
    assert plan.steps
    for count in (1, 3, 64, 100):
        known = {atom: count for s in plan.steps for d in (*s.sizes, s.blocks) for atom in atoms(d)}
        for step in plan.steps:
            kernel = plan.kernels[step.kernel]
            named = zip(sizes_of(kernel), step.sizes, strict=True)
            here = {next(iter(atoms(d))): evaluate(v, known) // factor(d) for d, v in named}
            assert evaluate(step.blocks, known) == evaluate(gpu_blocks(kernel), here)


# ---- loop kernels ------------------------------------------------------------------------------


def symbols_of(shared: Shared) -> dict[Dim, int]:
    """The value of each symbol of a shared kernel, whose sizes are multiples of one each."""
    found: dict[Dim, int] = {}
    for d, value in zip(sizes_of(shared.kernel), shared.sizes, strict=True):
        (atom,) = atoms(d)
        name = of_atom(atom)
        assert isinstance(name, Dim) and isinstance(value, int)
        found[name] = value // factor(d)
    return found


def load(*strides: DimLike, offset: int = 0, dtype: DType = float32) -> Expr:
    terms = tuple(Term(((axis, 1),), s) for axis, s in enumerate(strides))
    return Expr("load", (), (Access(0, terms, offset), 0), dtype)


def scaled_map(rows: int, cols: int, scale: Any = 0.5, dtype: DType = float32) -> LoopKernel:
    """y[i, j] = x[i, j] * scale"""
    x = load(cols, 1, dtype=dtype)
    y = Access(1, (Term(((0, 1),), cols), Term(((1, 1),), 1)))
    stage = Stage((), (), (Store(y, x * Expr("const", (), scale, dtype)),))
    return LoopKernel((rows, cols), (0, 1), 1, (dtype, dtype), (stage,))


def row_sums(rows: int, cols: int, offset: int = 0) -> LoopKernel:
    """y[i] = sum over j of x[i, j] / 2, from an offset on"""
    total = Accumulator("sum", load(cols, 1, offset=offset) * HALF, float32)
    store = Store(Access(1, (Term(((0, 1),), 1),)), Expr("acc", (), 0, float32))
    stages = (Stage((1,), (total,)), Stage((), (), (store,)))
    return LoopKernel((rows, cols), (0,), 1, (float32, float32), stages)


def column_sums(rows: int, cols: int) -> LoopKernel:
    """y[j] = sum over i of x[i, j] / 2"""
    total = Accumulator("sum", load(cols, 1) * HALF, float32)
    store = Store(Access(1, (Term(((1, 1),), 1),)), Expr("acc", (), 0, float32))
    stages = (Stage((0,), (total,)), Stage((), (), (store,)))
    return LoopKernel((rows, cols), (1,), 1, (float32, float32), stages)


def window_sums(size: int, pad: int = 1) -> LoopKernel:
    """y[i] = x[i - 1] + x[i] + x[i + 1], outside 0"""
    x = Term(((0, 1), (1, 1)), 1, -pad, 1, size)
    total = Accumulator("sum", Expr("load", (), (Access(0, (x,)), 0), float32), float32)
    store = Store(Access(1, (Term(((0, 1),), 1),)), Expr("acc", (), 0, float32))
    stages = (Stage((1,), (total,)), Stage((), (), (store,)))
    return LoopKernel((size, 3), (0,), 0, (float32, float32), stages)


FAMILIES: dict[str, list[LoopKernel]] = {
    "maps": [scaled_map(r, c) for r, c in ((9, 16), (30, 48), (11, 128), (40, 64))],
    "maps with remainders": [scaled_map(r, c) for r, c in ((9, 70), (30, 131))],
    "row sums": [row_sums(9, 64, 0), row_sums(12, 128, 3), row_sums(10, 192, 1)],
    "row sums of whole vectors": [row_sums(9, 80), row_sums(12, 16)],
    "row sums with remainders": [row_sums(9, 70), row_sums(12, 213)],
    "column sums": [column_sums(9, 16), column_sums(33, 32), column_sums(8, 112)],
    "windows": [window_sums(70), window_sums(101)],
    "constants": [scaled_map(9, 16, s) for s in (0.5, -0.0, 3.0, float("inf"))],
    "wide constants": [scaled_map(9, 16, s, float64) for s in (0.1, -1e300, 2.0**-1074)],
    "integers": [scaled_map(9, 16, s, int64) for s in (7, -3, 2**31 - 1)],
}


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_is_one_kernel_that_does_what_each_member_does(name: str) -> None:
    members = FAMILIES[name]
    shared = share_kernels(members)
    assert len({s.kernel for s in shared}) == 1
    rng = np.random.default_rng(1)
    for member, s in zip(members, shared, strict=True):
        dtype = member.bufs[0].numpy
        size = int(np.prod(member.axes)) + 8
        buffers = [rng.integers(-8, 9, size).astype(dtype) for _ in range(2)]
        kernel = s.kernel
        assert isinstance(kernel, LoopKernel)
        together = agree(kernel, buffers, symbols_of(s))
        alone = agree(member, buffers)
        for x, y in zip(together, alone, strict=True):
            assert x.tobytes() == y.tobytes()


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (window_sums(70), replace(window_sums(101), axes=(101, 5))),  # windows unroll
        (scaled_map(9, 64), scaled_map(9, 70)),  # one has a remainder
        (row_sums(9, 10), row_sums(9, 20)),  # short rows are straight-line code
        (scaled_map(9, 64), scaled_map(9, 64, dtype=float64)),
        (scaled_map(9, 64), scaled_map(9, 64, 2**40, int64)),
    ],
)
def test_what_makes_code_good_keeps_kernels_apart(a: LoopKernel, b: LoopKernel) -> None:
    first, second = share_kernels([a, b])
    assert (first.kernel, second.kernel) == (a, b)


def test_a_kernel_without_relatives_stays_as_it_is() -> None:
    (alone,) = share_kernels([scaled_map(9, 16)])
    assert alone == Shared(scaled_map(9, 16), ())
    n = symbol("n")
    (symbolic,) = share_kernels([replace(scaled_map(9, 16), axes=(n, 16))])
    assert symbolic.sizes == (n,)


def test_numbers_that_go_together_are_one_size() -> None:
    (shared, _) = share_kernels([scaled_map(9, 64), scaled_map(12, 128)])
    assert shared.sizes == (9, 64)
    assert [factor(d) for d in sizes_of(shared.kernel)] == [1, 64]


# ---- contractions ------------------------------------------------------------------------------


def with_cut(c: Contraction) -> Contraction:
    return replace(c, cut=contraction_cut(c))


def test_contractions_of_one_cut_share_and_agree_with_the_reference() -> None:
    shapes = [(130, 64, 70), (300, 192, 300), (200, 128, 33)]
    members: list[Kernel] = [with_cut(matmul(*shape)) for shape in shapes]
    shared = share_kernels(members)
    assert len({s.kernel for s in shared}) == 1
    rng = np.random.default_rng(0)
    for (m, n, k), s in zip(shapes, shared, strict=True):
        sizes = {repr(d): v for d, v in symbols_of(s).items()}
        buffers = [noise(rng, size, float32) for size in (m * k, k * n, m * n)]
        assert isinstance(s.kernel, Contraction)
        check(s.kernel, buffers, sizes)


def test_contractions_without_a_cut_share_by_symbols_only() -> None:
    a, b = share_kernels([matmul(130, 64, 70), matmul(300, 64, 70)])
    assert a.kernel != b.kernel
    n, m = symbol("n"), symbol("m")
    a, b = share_kernels([matmul(m, 64, 70), matmul(n, 64, 70)])
    assert (a.kernel, a.sizes, b.sizes) == (b.kernel, (m,), (n,))
    a, b = share_kernels([matmul(196 * m, 64, 70), matmul(196 * n, 64, 70)])
    assert isinstance(a.kernel, Contraction)
    assert factor(a.kernel.m[0]) == 196
    assert (a.kernel, a.sizes, b.sizes) == (b.kernel, (196 * m,), (196 * n,))


# ---- networks ----------------------------------------------------------------------------------


def convnet(*widths: int) -> tuple[gx.Tensor, Any, Callable[[], dict[gx.Tensor, Any]]]:
    x = gx.placeholder("f32", ("batch", 8, 8, 3))
    h: gx.Tensor = x
    for width in widths:
        for _ in range(2):
            h = layers.conv2d(h, width, 3, padding=1, use_bias=False)
            h = nn.relu(layers.batch_normalization(h, True))
        h = gx.random.dropout(layers.conv2d(h, width, 1), 0.1 + width / 1000)
    loss = gx.mean(gx.square(nn.global_avg_pool(h) - 1))
    step = train.Adam(1e-2).minimize(loss)
    updates = gx.get_collection(gx.GraphKeys.UPDATE_OPS)
    rng = np.random.RandomState(0)
    return loss, gx.group(step, *updates), lambda: {x: rng.randn(3, 8, 8, 3)}


def mlp(*widths: int) -> tuple[gx.Tensor, Any, Callable[[], dict[gx.Tensor, Any]]]:
    x = gx.placeholder("f32", ("batch", 40))
    h: gx.Tensor = x
    for width in widths:
        h = layers.layer_normalization(layers.dense(h, width, gx.tanh))
    parts = gx.split(h, 2, axis=1)
    loss = gx.mean(nn.softmax(parts[0]) * parts[1])
    rng = np.random.RandomState(0)
    return loss, train.Momentum(0.1).minimize(loss), lambda: {x: rng.randn(7, 40)}


@pytest.mark.no_cover
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(("build", "widths"), [(convnet, (16, 32)), (mlp, (48, 64, 100, 128, 70))])
def test_bits_do_not_depend_on_sharing(
    build: Callable[..., Any], widths: tuple[int, ...], threads: int, monkeypatch: Any
) -> None:
    def trained() -> tuple[int, list[bytes]]:
        with gx.Graph(seed=3).as_default():
            loss, step, feeds = build(*widths)
            kernels = len(gx.explain([loss, step]).plan.kernels)
            with gx.Session(threads=threads) as session:
                session.run(gx.global_variables_initializer())
                losses = [session.run([loss, step], feeds())[0] for _ in range(3)]
                values = session.run(gx.global_variables())
        return kernels, [np.asarray(v).tobytes() for v in (*losses, *values)]

    few, together = trained()
    monkeypatch.setattr(
        plan_memory, "share_kernels", lambda ks: [share_kernels([k])[0] for k in ks]
    )
    many, apart = trained()
    assert few < many
    assert together == apart


@pytest.mark.no_cover
@pytest.mark.parametrize("build", [convnet, mlp])
def test_kernels_do_not_grow_in_number_with_the_number_of_widths(build: Any) -> None:
    def kernels(*widths: int) -> int:
        with gx.Graph(seed=3).as_default():
            loss, step, _ = build(*widths)
            return len(gx.explain([loss, step]).plan.kernels)

    assert kernels(*range(64, 576, 64)) <= kernels(*range(64, 384, 64))


def test_random_operators_share_kernels_whatever_their_keys() -> None:
    def kernels(count: int) -> int:
        with gx.Graph(seed=1).as_default():
            for i in range(count):
                gx.Variable(nn.initializers.glorot_uniform()((30, 20 + i)))
            return len(gx.explain(gx.global_variables_initializer()).plan.kernels)

    assert kernels(20) == kernels(6)


def test_random_operators_of_one_shape_draw_different_numbers() -> None:
    with gx.Graph(seed=1).as_default(), gx.Session() as session:
        first, second = session.run([gx.random.uniform((30, 20)), gx.random.uniform((30, 20))])
    assert not np.any(first == second)
