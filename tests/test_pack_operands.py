"""Right operands of contractions packed by steps of their own."""

from __future__ import annotations

import functools
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from contraction_reference import Compiled, check, matmul, matmul_buffers, value

import graphc as gx
from graphc.backends import interpret_arrays
from graphc.backends.codegen.contraction import contraction_cut
from graphc.backends.codegen.targets import AVX2, AVX512, NEON, Target
from graphc.backends.interpret import interpret_contraction
from graphc.dims import symbol
from graphc.kernel import Contraction, Term, packed_shape, sizes_of
from graphc.kernel_work import work
from graphc.passes.pack_operands import pack_kernel, packed, source_of
from graphc.types import DType, float32, float64

Array = np.ndarray[Any, Any]


def packed_form(
    c: Contraction, target: Target, buffers: Sequence[Array], sizes: dict[str, int]
) -> tuple[Contraction, list[Array]]:
    """A contraction that reads packed panels, and the buffers for it."""
    panel = contraction_cut(c, target).panel
    source = source_of(c)
    assert source is not None
    pack = pack_kernel(source, panel)
    shape = [value(d, sizes) for d in packed_shape(c, panel)]
    panels = np.full(max(1, int(np.prod(shape))), np.nan, c.dtype.numpy)
    known = {d: value(d, sizes) for d in sizes_of(pack)}
    interpret_arrays.interpret(pack, [buffers[1], panels], known)
    return packed(c, panel), [buffers[0], panels, *buffers[2:]]


@functools.lru_cache(maxsize=2)
def compiled(c: Contraction, target: Target) -> Compiled:
    return Compiled(c, target)


def compare(c: Contraction, target: Target, buffers: list[Array], sizes: dict[str, int]) -> None:
    """The same bits as without packing, in any order of blocks; and the interpreters agree."""
    plain = compiled(c, target)
    wanted = [x.copy() for x in buffers]
    plain(wanted, sizes)
    contraction, got = packed_form(c, target, buffers, sizes)
    kernel = compiled(contraction, target)
    blocks = list(range(kernel.blocks(sizes)))
    random.Random(len(blocks)).shuffle(blocks)
    kernel(got, sizes, [(i, i + 1) for i in blocks] or [(0, 0)])
    for x, y in zip(wanted[2:], got[2:], strict=True):
        assert x.tobytes() == y.tobytes()
    again = [x.copy() for x in (*got[:2], *buffers[2:])]
    known = {d: value(d, sizes) for d in sizes_of(contraction)}
    interpret_arrays.interpret(contraction, again, known)
    np.testing.assert_allclose(again[2], got[2], rtol=0, atol=1e-3)


@pytest.mark.parametrize("target", [AVX2, AVX512, NEON], ids=lambda t: t.name)
@pytest.mark.parametrize("seed", range(4))
def test_packed_panels_give_the_same_bits(target: Target, seed: int) -> None:
    rng = random.Random(seed)
    dtype = rng.choice([float32, float64])
    m = rng.choice([9, 11, 12, 13, 14, 61, 150])
    n = rng.choice([9, 16, 17, 24, 40, 130, 270])
    k = rng.choice([2, 16, 33, 256, 300, 700])
    c = matmul(m, n, k, dtype, tb=rng.random() < 0.5)
    if contraction_cut(c, target).panel == 0:
        c = matmul(m, n, k, dtype)
    compare(c, target, matmul_buffers(c, m, n, k), {})


@pytest.mark.parametrize("dtype", [float32, float64], ids=str)
def test_one_kernel_serves_every_size(dtype: DType) -> None:
    c = matmul(symbol("m"), symbol("n"), symbol("k"), dtype)
    cases = [(0, 5, 3), (3, 0, 4), (3, 4, 0), (1, 1, 1), (1, 40, 50), (4, 33, 9), (130, 130, 300)]
    for m, n, k in cases:
        compare(c, AVX2, matmul_buffers(c, m, n, k), {"m": m, "n": n, "k": k})


@pytest.mark.parametrize("target", [AVX2, AVX512, NEON], ids=lambda t: t.name)
@pytest.mark.parametrize("ta", [False, True])
def test_few_rows_take_one_panel_after_the_other(ta: bool, target: Target) -> None:
    c = matmul(symbol("m"), 70, 300, ta=ta)
    for m in range(1, 19):
        compare(c, target, matmul_buffers(c, m, 70, 300), {"m": m})


def test_batches_have_panels_of_their_own() -> None:
    c = matmul(20, 36, 21, batch=(3, 2))
    compare(c, AVX2, matmul_buffers(c, 20, 36, 21, batch=6), {})


def test_the_interpreter_of_scalars_reads_panels() -> None:
    c = matmul(9, 19, 4, batch=(2,))
    buffers = matmul_buffers(c, 9, 19, 4, batch=2)
    wanted = [x.copy() for x in buffers]
    interpret_contraction(c, wanted, {})
    contraction, got = packed_form(c, AVX2, buffers, {})
    interpret_contraction(contraction, got, {})
    assert wanted[2].tobytes() == got[2].tobytes()


def test_work_counts_each_element_once() -> None:
    c = matmul(20, 36, 21)
    assert work(packed(c, 16), {}) == work(c, {})


def test_guarded_operands_stay_where_they_are() -> None:
    c = matmul(40, 36, 21)
    guarded = tuple(replace(t, limit=21) if t.axes[0][0] == 2 else t for t in c.b.terms)
    assert source_of(replace(c, b=replace(c.b, terms=guarded))) is None
    check(c, matmul_buffers(c, 40, 36, 21))


def test_k_of_several_axes_and_an_operand_that_is_shifted() -> None:
    """k over (3, 5), which B does not walk as one, in reverse."""
    c = matmul(30, 20, 15)
    b = c.b
    terms = (Term(((3, 1),), 21), Term(((2, -1),), 5 * 21 + 40, 2), Term(((1, 1),), 1))
    a = replace(c.a, terms=(Term(((0, 1),), 15), Term(((2, 5),), 1), Term(((3, 1),), 1)))
    c = replace(c, k=(3, 5), a=a, b=replace(b, terms=terms, offset=7))
    rng = np.random.default_rng(0)
    buffers = [rng.standard_normal(n).astype(np.float32) for n in (450, 500, 600)]
    compare(c, AVX2, buffers, {})


# ---- in whole programs


def labels(fetches: Any) -> Counter[str]:
    """The labels of a plan's steps, and of those whose results stay between runs."""
    plan = gx.explain(fetches).plan
    kept = plan.keeping.steps if plan.keeping is not None else ()
    return Counter(s.label.removeprefix("keep ") for s in (*plan.steps, *kept))


def test_products_with_one_matrix_share_its_panels() -> None:
    rng = np.random.default_rng(0)
    with gx.Graph().as_default():
        w = gx.Variable(rng.standard_normal((128, 160)).astype(np.float32))
        x = gx.placeholder("f32", (20, 128))
        y = gx.placeholder("f32", (7, 128))
        results = [gx.tanh(x @ w), gx.exp(y @ w), gx.tanh(gx.tanh(x) @ w)]
        assert labels(results)["pack"] == 1


def test_a_matrix_and_its_transpose_have_panels_each() -> None:
    rng = np.random.default_rng(0)
    values = rng.standard_normal((130, 130)).astype(np.float32)
    with gx.Graph().as_default():
        w = gx.Variable(values)
        x = gx.placeholder("f32", (None, 130))
        fetch = [x @ w, gx.matmul(x, w, transpose_b=True)]
        session = gx.Session()
        session.run(gx.global_variables_initializer())
        for rows in (1, 3, 40, 200):
            fed = rng.standard_normal((rows, 130)).astype(np.float32)
            got = session.run(fetch, {x: fed})
            np.testing.assert_allclose(got[0], fed @ values, atol=1e-4)
            np.testing.assert_allclose(got[1], fed @ values.T, atol=1e-4)


def test_panels_follow_their_variable() -> None:
    with gx.Graph().as_default():
        w = gx.Variable(np.eye(130, dtype=np.float32))
        x = gx.placeholder("f32", (30, 130))
        y = x @ w
        double = w.assign(w * 2.0)
        session = gx.Session()
        session.run(gx.global_variables_initializer())
        fed = np.random.default_rng(0).standard_normal((30, 130)).astype(np.float32)
        for i in range(4):
            assert session.run(y, {x: fed}).tobytes() == (fed * 2.0**i).tobytes()
            session.run(double)
        got, _ = session.run([y, double], {x: fed})
        assert got.tobytes() == (fed * 16).tobytes()
