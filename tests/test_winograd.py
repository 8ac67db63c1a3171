"""Winograd's minimal filtering: its matrices, its kernels at every size, and where it is chosen."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from contraction_reference import Compiled, acc, host_features, op, reference, strides

import graphc as gx
from graphc import dims
from graphc.backends.codegen.contract_winograd_tiling import winograd_cut
from graphc.backends.codegen.targets import AVX2, AVX512, NEON, SSE2, Target, host_target
from graphc.backends.interpret_arrays import Rounding, interpret
from graphc.debug.values import disagreement
from graphc.dims import DimLike
from graphc.kernel import Access, Contraction, Expr, Store, Term, sizes_of
from graphc.types import float32
from graphc.winograd import FILTERINGS

Array = np.ndarray[Any, Any]

ERROR = {2: 8e-7, 4: 1.3e-5}
"""Most error of a result, relative to the largest element."""


@pytest.mark.parametrize("tile", FILTERINGS)
def test_the_matrices_compute_convolutions(tile: int) -> None:
    rule = FILTERINGS[tile]
    rng = np.random.default_rng(0)
    d, g = rng.standard_normal((rule.span, rule.span)), rng.standard_normal((3, 3))
    before, taps, after = (np.array(m) for m in (rule.input, rule.filter, rule.output))
    made = after @ ((taps @ g @ taps.T) * (before @ d @ before.T)) @ after.T
    wanted = [
        [(d[i : i + 3, j : j + 3] * g).sum() for j in range(rule.tile)] for i in range(rule.tile)
    ]
    np.testing.assert_allclose(made, wanted, atol=1e-13)


# ---- kernels -----------------------------------------------------------------------------------


def convolution(
    tile: int,
    image: tuple[DimLike, DimLike, DimLike],
    channels: DimLike,
    filters: DimLike,
    low: DimLike,
    out: tuple[DimLike, DimLike],
    transposed: bool = False,
) -> Contraction:
    """y = relu(conv(x, w) + bias) + x2; `transposed`: weights [3, 3, filters, channels] with taps
    in opposite order, as in an input gradient.  Buffers x, w, bias, x2, y."""
    n, h, w = image
    steps = strides((n, h, w, channels))
    windows = (Term(((d, 1), (d + 3, 1)), steps[d], -1 * low, 1, image[d]) for d in (1, 2))
    a = Access(0, (Term(((0, 1),), steps[0]), *windows, Term(((6, 1),), 1)))
    if transposed:
        i, j, o, _ = strides((3, 3, filters, channels))
        terms = (Term(((4, 1),), -1 * i), Term(((5, 1),), -1 * j), Term(((3, 1),), o))
        b = Access(1, (*terms, Term(((6, 1),), 1)), 2 * i + 2 * j)
    else:
        i, j, c, _ = strides((3, 3, channels, filters))
        terms = (Term(((4, 1),), i), Term(((5, 1),), j), Term(((6, 1),), c))
        b = Access(1, (*terms, Term(((3, 1),), 1)))
    whole = tuple(Term(((d, 1),), s) for d, s in enumerate(strides((n, *out, filters))))
    bias = Expr("load", (), (Access(2, (Term(((3, 1),), 1),)), 0), float32)
    other = Expr("load", (), (Access(3, whole), 0), float32)
    biased = op("add", acc(float32), bias)
    relu = op("max", biased, Expr("const", (), 0.0, float32))
    stores = (Store(Access(4, whole), op("add", relu, other)),)
    k = (3, 3, channels)
    return Contraction(
        (), (n, *out), (filters,), k, a, b, (float32,) * 5, stores, float32, None, tile
    )


def arrays(n: int, h: int, w: int, c: int, o: int, out: tuple[int, int], seed: int) -> list[Array]:
    rng = np.random.default_rng(seed)
    count = n * out[0] * out[1] * o
    sizes = (n * h * w * c, 9 * c * o, o, count)
    return [
        *(rng.standard_normal(s).astype(np.float32) for s in sizes),
        np.full(count, np.nan, np.float32),
    ]


def check(run: Compiled, c: Contraction, buffers: list[Array], sizes: dict[str, int]) -> Array:
    expected = [b.astype(np.float64) for b in buffers]
    reference(c, expected, sizes)
    run(buffers, sizes)
    got, wanted = buffers[-1], expected[-1]
    scale = float(np.abs(wanted).max(initial=0)) or 1.0
    assert np.isfinite(got).all()
    assert np.abs(got - wanted).max(initial=0) <= ERROR[c.winograd] * scale
    return got


NAMES = ("n", "h", "w", "oh", "ow", "low", "c", "o")


@pytest.mark.parametrize("transposed", [False, True], ids=["forward", "input_grad"])
@pytest.mark.parametrize("tile", FILTERINGS)
def test_every_small_size_with_every_padding(tile: int, transposed: bool) -> None:
    n, h, w, oh, ow, low, c, o = (dims.symbol(s) for s in NAMES)
    kernel = convolution(tile, (n, h, w), c, o, low, (oh, ow), transposed)
    run = Compiled(kernel)
    tails = itertools.cycle([(1, 1), (3, 17), (8, 16), (20, 5), (7, 33), (70, 70)])
    for height, width, pad, high in itertools.product(
        range(1, 10), (1, 4, 5, 9), (0, 1, 2), (0, 2)
    ):
        out = (height + pad + high - 2, width + pad + high - 2)
        if min(out) < 1:
            continue
        channels, filters = next(tails)
        images = 1 + height % 3
        values = (images, height, width, *out, pad, channels, filters)
        buffers = arrays(images, height, width, channels, filters, out, height)
        check(run, kernel, buffers, dict(zip(NAMES, values, strict=True)))


@pytest.mark.parametrize("images", [1, 2, 5])
@pytest.mark.parametrize(("side", "filters"), [(8, 40), (7, 192), (14, 320), (26, 64), (40, 20)])
def test_two_cores_have_the_same_number_of_blocks(side: int, filters: int, images: int) -> None:
    n = dims.symbol("n")
    kernel = convolution(2, (n, side, side), 8, filters, 1, (side, side))
    run = Compiled(kernel, AVX2)
    assert run.blocks({"n": images}) % 2 == 0
    buffers = arrays(images, side, side, 8, filters, (side, side), side)
    check(run, kernel, buffers, {"n": images})


def test_sizes_of_nothing() -> None:
    n, h, w, oh, ow, low, c, o = (dims.symbol(s) for s in NAMES)
    kernel = convolution(2, (n, h, w), c, o, low, (oh, ow))
    run = Compiled(kernel)
    for values in ((0, 4, 4, 4, 4, 1, 8, 8), (2, 4, 4, 4, 4, 1, 0, 8), (1, 4, 4, 4, 4, 1, 8, 0)):
        images, height, width, *out, _, channels, filters = values
        place = (out[0], out[1])
        buffers = arrays(images, height, width, channels, filters, place, 0)
        check(run, kernel, buffers, dict(zip(NAMES, values, strict=True)))


@pytest.mark.parametrize("transposed", [False, True], ids=["forward", "input_grad"])
@pytest.mark.parametrize("target", [AVX512, AVX2, NEON, SSE2], ids=lambda t: t.name)
def test_every_target(target: Target, transposed: bool) -> None:
    features = host_features(("avx512", "evex512", "avx10"))
    for channels, filters in ((64, 64), (130, 72), (20, 8)):
        kernel = convolution(2, (2, 9, 8), channels, filters, 1, (9, 8), transposed)
        buffers = arrays(2, 9, 8, channels, filters, (9, 8), 1)
        check(Compiled(kernel, target, features), kernel, buffers, {})


def test_bits_depend_on_no_cut_and_no_order() -> None:
    kernel = convolution(2, (2, 11, 13), 150, 90, 1, (11, 13))
    buffers = arrays(2, 11, 13, 150, 90, (11, 13), 2)
    run = Compiled(kernel)
    want = check(run, kernel, buffers, {}).copy()
    blocks = run.blocks({})
    assert blocks > 2
    buffers[-1][:] = np.nan
    run(buffers, {}, [(i, i + 1) for i in reversed(range(blocks))])
    np.testing.assert_array_equal(buffers[-1], want)
    cut = winograd_cut(kernel, host_target())
    panel = int(str(cut.numbers[1]))
    rows = cut.code[1]
    for numbers in ((rows, panel, 8), (5 * rows, 2 * panel, 40)):
        buffers[-1][:] = np.nan
        Compiled(replace(kernel, cut=replace(cut, numbers=numbers)))(buffers, {})
        np.testing.assert_array_equal(buffers[-1], want)


def test_neighbours_that_are_not_finite_stay_in_their_tiles() -> None:
    kernel = convolution(2, (1, 8, 8), 8, 16, 1, (8, 8))
    buffers = arrays(1, 8, 8, 8, 16, (8, 8), 3)
    run = Compiled(kernel)
    run(buffers, {})
    want = buffers[-1].reshape(8, 8, 16).copy()
    buffers[0].reshape(8, 8, 8)[1, 1, 3] = np.inf
    run(buffers, {})
    got = buffers[-1].reshape(8, 8, 16)
    np.testing.assert_array_equal(got[4:], want[4:])
    np.testing.assert_array_equal(got[:, 4:], want[:, 4:])
    assert not np.isfinite(got[:4, :4]).all()


@pytest.mark.parametrize("tile", FILTERINGS)
@pytest.mark.parametrize("spread", [0.0, 6.0, np.inf], ids=["even", "uneven", "infinite"])
def test_the_interpreter_explains_the_kernel(tile: int, spread: float) -> None:
    """The rounding errors of the filtering are within what the interpreter expects; beside what is
    not finite it expects nothing."""
    kernel = convolution(tile, (1, 7, 9), 33, 20, 1, (7, 9))
    buffers = arrays(1, 7, 9, 33, 20, (7, 9), 4)
    rng = np.random.default_rng(5)
    if spread == np.inf:
        buffers[0][-5] = np.inf
    else:
        for b in buffers[:2]:
            b *= 10.0 ** rng.uniform(-spread, 0, b.shape)
    wide = [b.astype(np.float64) for b in buffers]
    interpret(kernel, wide, {})
    Compiled(kernel)(buffers, {})

    def moved(count: int) -> list[tuple[Array, Array]]:
        runs = []
        for seed in range(count):
            again = [b.astype(np.float64) for b in buffers]
            interpret(kernel, again, {}, Rounding(seed))
            runs.append((wide[-1], again[-1]))
        return runs

    assert disagreement(wide[-1], buffers[-1].astype(np.float64), float32, moved) is None
    if spread != np.inf:
        wrong = buffers[-1].astype(np.float64)
        wrong[7] += 0.01 * np.abs(wrong).max()
        assert disagreement(wide[-1], wrong, float32, moved) is not None


def test_it_reads_symbolic_sizes() -> None:
    n = dims.symbol("n")
    kernel = convolution(2, (n, 8, 8), 32, 32, 1, (8, 8))
    assert sizes_of(kernel) == (n,)


# ---- in sessions -------------------------------------------------------------------------------


MARK = "(winograd F(2x2,3x3))"


def plan_of(fetches: Any) -> str:
    return str(gx.explain(fetches).plan)


def network(batch: int | None, side: int | None, channels: int = 32) -> tuple[Any, Any, Any]:
    x = gx.placeholder("f32", (batch, side, side, channels), name="x")
    w = gx.placeholder("f32", (3, 3, channels, 48), name="w")
    return x, w, gx.nn.relu(gx.nn.conv2d(x, w) * 2.0 + 1.0)


def feeds(x: Any, w: Any, batch: int, side: int, channels: int = 32) -> dict[Any, Array]:
    rng = np.random.default_rng(side)
    taps = rng.standard_normal((3, 3, channels, 48)) / np.sqrt(9 * channels)
    image = rng.standard_normal((batch, side, side, channels))
    return {x: image.astype(np.float32), w: taps.astype(np.float32)}


def test_a_plan_says_so() -> None:
    x, _, y = network(None, 14)
    assert MARK in plan_of(y)
    text = plan_of(gx.gradients(y, x)[0])
    assert text.count(MARK) == 2


@pytest.mark.parametrize("window", [1, 2, 5])
def test_only_3x3_convolutions(window: int) -> None:
    x = gx.placeholder("f32", (1, 28, 28, 64))
    w = gx.placeholder("f32", (window, window, 64, 64))
    assert MARK not in plan_of(gx.nn.conv2d(x, w))


def test_only_steps_of_one() -> None:
    x = gx.placeholder("f32", (1, 28, 28, 64))
    w = gx.placeholder("f32", (3, 3, 64, 64))
    assert MARK not in plan_of(gx.nn.conv2d(x, w, strides=2))
    assert MARK not in plan_of(gx.nn.conv2d(x, w, dilations=2))
    few = gx.placeholder("f32", (3, 3, 3, 64))
    rgb = gx.placeholder("f32", (1, 28, 28, 3))
    assert MARK not in plan_of(gx.nn.conv2d(rgb, few))
    double = gx.nn.conv2d(gx.cast(x, "f64"), gx.cast(w, "f64"))
    assert MARK not in plan_of(double)


@pytest.mark.parametrize("padding", ["SAME", "VALID"])
@pytest.mark.parametrize("side", [None, 13])
def test_values_and_gradients(side: int | None, padding: str) -> None:
    x, w, _ = network(None, side)
    y = gx.tanh(gx.nn.conv2d(x, w, padding=padding))
    dx, dw = gx.gradients(gx.sum(y * y), [x, w])
    second = gx.gradients(gx.sum(dx * dx), [x, w])
    fetches = [y, dx, dw, *second]
    assert plan_of(fetches).count(MARK) >= 3
    values = feeds(x, w, 2, 13)
    with gx.Session() as session:
        got = session.run(fetches, values)
    with gx.Session(device="reference") as session:
        wanted = session.run(fetches, values)
    for a, b in zip(got, wanted, strict=True):
        assert np.abs(a - b).max() <= 3e-6 * np.abs(b).max()


def test_an_image_has_the_same_bits_alone_and_among_others_on_any_threads() -> None:
    x, w, y = network(None, 14)
    dx = gx.gradients(gx.sum(y * y), x)[0]
    values = feeds(x, w, 5, 14)
    with gx.Session(threads=1) as session:
        wanted = session.run([y, dx], values)
        alone = session.run([y, dx], {x: values[x][3:4], w: values[w]})
    for threads in (2, 3):
        with gx.Session(threads=threads) as session:
            for a, b in zip(session.run([y, dx], values), wanted, strict=True):
                np.testing.assert_array_equal(a, b)
    for a, b in zip(alone, wanted, strict=True):
        np.testing.assert_array_equal(a[0], b[3])


def test_debug_check_accepts_it() -> None:
    x, w, y = network(None, 10)
    dx = gx.gradients(gx.sum(y * y), x)[0]
    values = feeds(x, w, 2, 10)
    with gx.Session():
        assert gx.debug.check([y, dx], values).ok


# ---- filters transformed by a step of their own ------------------------------------------------

STEP = "filters of winograd F("


@pytest.mark.parametrize("fast_math", [False, True], ids=["f2", "f4"])
@pytest.mark.parametrize(("side", "filters"), [(28, 48), (28, 40), (14, 48), (9, 80)])
def test_filters_that_stay_are_transformed_once_to_the_same_bits(
    side: int, filters: int, fast_math: bool
) -> None:
    with gx.Graph().as_default() as graph:
        x = gx.placeholder("f32", (None, side, side, 52), name="x")
        w = gx.placeholder("f32", (3, 3, 52, filters), name="w")
        rng = np.random.default_rng(0)
        taps = rng.standard_normal((3, 3, 52, filters)).astype(np.float32)
        image = rng.standard_normal((1, side, side, 52)).astype(np.float32)
        kept = gx.Variable(taps, name="kept")
        fed, stays = gx.nn.conv2d(x, w), gx.nn.conv2d(x, kept)
        turned = gx.gradients(gx.sum(stays * stays), x)[0]
        plan = str(gx.explain(stays, fast_math=fast_math).plan)
        assert plan.count(STEP) == 1
        with gx.Session(graph, fast_math=fast_math) as session:
            session.run(gx.global_variables_initializer())
            one = session.run(fed, {x: image, w: taps})
            two, dx = session.run([stays, turned], {x: image})
            np.testing.assert_array_equal(one, two)
            session.run(gx.assign(kept, 2.0 * taps))
            three = session.run(stays, {x: image})
            np.testing.assert_array_equal(three, 2.0 * one)
            report = gx.debug.check([stays, turned], {x: image})
            assert report.ok, report
        with gx.Session(graph, device="reference") as session:
            session.run(gx.global_variables_initializer())
            wanted = session.run(turned, {x: image})
    assert np.abs(dx - wanted).max() <= 2e-5 * np.abs(wanted).max()


# ---- fast mathematics --------------------------------------------------------------------------


FAST = "(winograd F(4x4,3x3))"


def test_larger_tiles_under_fast_math_only() -> None:
    x, w, y = network(None, 28)
    assert FAST not in plan_of(y)
    assert FAST in str(gx.explain(y, fast_math=True).plan)
    dx = gx.gradients(gx.sum(y * y), x)[0]
    values = feeds(x, w, 2, 28)
    with gx.Session(device="reference") as session:
        wanted = session.run([y, dx], values)
    with gx.Session() as session, gx.Session(fast_math=True) as fast:
        exact, got = (s.run([y, dx], values) for s in (session, fast))
    for a, b, c in zip(got, wanted, exact, strict=True):
        assert np.abs(a - b).max() <= 2e-5 * np.abs(b).max()
        assert (a != c).any()


def test_functions_and_kept_plans_know_of_fast_math() -> None:
    x, w, y = network(None, 28)
    values = feeds(x, w, 1, 28)
    convolved = gx.function([x, w], y)
    results = []
    for fast_math in (False, True, False, True):
        with gx.Session(fast_math=fast_math):
            results.append(convolved(values[x], values[w]))
    np.testing.assert_array_equal(results[0], results[2])
    np.testing.assert_array_equal(results[1], results[3])
    assert (results[0] != results[1]).any()
