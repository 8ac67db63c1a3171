"""Rows of the left operand read in place: the same bits as when they are packed, at every edge."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from contraction_reference import (
    Compiled,
    acc,
    check,
    matmul,
    matmul_buffers,
    module_text,
    noise,
    plain,
    strides,
    value,
)

from graphc.backends.codegen import contract_tiling
from graphc.backends.codegen.contract_tiling import cut_of, tile
from graphc.backends.codegen.contraction import contraction_blocks
from graphc.backends.codegen.targets import AVX2, AVX512, NEON, Target, host_target
from graphc.dims import DimLike, symbol
from graphc.kernel import Access, Contraction, Expr, Store, Term
from graphc.types import DType, float32, float64

Pair = tuple[int, int]


def windows(
    size: tuple[DimLike, DimLike],
    channels: int,
    filters: int,
    kernel: Pair,
    *,
    before: Pair = (0, 0),
    out: tuple[DimLike, DimLike],
    stride: Pair = (1, 1),
    dilation: Pair = (1, 1),
    images: DimLike = 2,
    dtype: DType = float32,
) -> Contraction:
    """Windows over images, channels last; `before` counts what is padded above and to the left,
    and as many as `out` asks for are padded below and to the right."""
    xs = strides((images, *size, channels))
    ws, ys = strides((*kernel, channels, filters)), strides((images, *out, filters))

    def along(i: int) -> Term:
        axes = ((1 + i, stride[i]), (4 + i, dilation[i]))
        return Term(axes, xs[1 + i], -before[i], 1, size[i])

    x = Access(0, (Term(((0, 1),), xs[0]), along(0), along(1), Term(((6, 1),), 1)))
    w, y = plain(1, (4, 5, 6, 3), ws), plain(2, (0, 1, 2, 3), ys)
    m, k = (images, *out), (*kernel, channels)
    stores = (Store(y, acc(dtype)),)
    return Contraction((), m, (filters,), k, x, w, (dtype,) * 3, stores, dtype)


def sizes_of_buffers(c: Contraction, size: Any, sizes: dict[str, int]) -> list[int]:
    images, height, width, filters, *kernel, channels = (value(e, sizes) for e in c.axes)
    h, w = (value(e, sizes) for e in size)
    taps = int(np.prod(kernel))
    out = images * height * width * filters
    return [images * h * w * channels, taps * channels * filters, out]


def packed(c: Contraction, monkeypatch: Any, target: Target | None = None) -> Compiled:
    """The contraction with its left operand packed."""
    with monkeypatch.context() as m:
        m.setattr(contract_tiling, "_axes_in_runs", lambda *_: 0)
        c = replace(c, cut=cut_of(c, target or host_target()))
    assert tile(c, target or host_target()).pack_left.mode != "direct"
    return Compiled(c, target)


def same_bits(
    c: Contraction, buffers: list[np.ndarray], sizes: dict[str, int], monkeypatch: Any
) -> None:
    """In place the kernel agrees with the reference, and with packed operands bit for bit."""
    assert tile(c, host_target()).pack_left.mode == "direct"
    kernel = check(c, buffers, sizes)
    results = []
    for k in (kernel, packed(c, monkeypatch)):
        got = [x.copy() for x in buffers]
        k(got, sizes)
        results.append(got[2].tobytes())
    assert results[0] == results[1]


H, W, N = symbol("h"), symbol("w"), symbol("n")

CASES: dict[str, dict[str, Any]] = {
    "above": {"before": (2, 0), "out": (9, 7)},
    "left": {"before": (0, 2), "out": (7, 9)},
    "below": {"out": (10, 7)},
    "right": {"out": (7, 11)},
    "all": {"before": (1, 1), "out": (9, 9)},
    "far outside": {"before": (7, 8), "out": (20, 19)},
    "strided": {"before": (1, 1), "out": (5, 4), "stride": (2, 3)},
    "dilated": {"before": (2, 2), "out": (9, 9), "dilation": (2, 2)},
    "dilated down": {"before": (2, 1), "out": (9, 9), "dilation": (2, 1)},
    "one wide": {"before": (1, 1), "out": (1, 1)},
    "narrow": {"before": (1, 1), "out": (9, 2)},
    "f64": {"before": (1, 1), "out": (9, 9), "dtype": float64},
}


@pytest.mark.parametrize("channels", [1, 3, 19])
@pytest.mark.parametrize("name", CASES)
def test_windows(name: str, channels: int, monkeypatch: Any) -> None:
    size = (9, 9)
    kernel = (3, 3) if channels > 3 else (4, 5)
    c = windows(size, channels, 21, kernel, **CASES[name])
    if name == "dilated" and channels < 4:  # no runs to speak of
        assert tile(c, host_target()).pack_left.mode != "direct"
        return
    rng = np.random.default_rng(len(name))
    buffers = [noise(rng, n, c.dtype) for n in sizes_of_buffers(c, size, {})]
    same_bits(c, buffers, {}, monkeypatch)


@pytest.mark.parametrize("images", [0, 1, 3])
def test_sizes_known_in_the_run(images: int, monkeypatch: Any) -> None:
    sizes = {"h": 6, "w": 10, "n": images}
    c = windows((H, W), 16, 33, (3, 3), before=(1, 1), out=(H, W), images=N)
    rng = np.random.default_rng(images)
    buffers = [noise(rng, n, c.dtype) for n in sizes_of_buffers(c, (H, W), sizes)]
    same_bits(c, buffers, sizes, monkeypatch)


@pytest.mark.parametrize("rows", [1, 2, 5, 6, 7, 12, 13])
def test_every_number_of_rows_and_columns(rows: int, monkeypatch: Any) -> None:
    for cols, depth in [(1, 5), (8, 4), (15, 9), (17, 33), (40, 258)]:
        c = matmul(rows, cols, depth)
        if tile(c, host_target()).pack_left.mode == "direct":
            same_bits(c, matmul_buffers(c, rows, cols, depth), {}, monkeypatch)


@pytest.mark.parametrize("tb", [False, True])
@pytest.mark.parametrize("dtype", [float32, float64], ids=str)
def test_sums_over_several_slices(tb: bool, dtype: DType, monkeypatch: Any) -> None:
    m, k = symbol("m"), symbol("k")
    c = matmul(m, 300, k, dtype, tb=tb)
    for rows, depth in [(0, 3), (3, 300), (5, 0), (310, 1), (29, 257), (31, 600)]:
        buffers = matmul_buffers(c, rows, 300, depth)
        same_bits(c, buffers, {"m": rows, "k": depth}, monkeypatch)
    c = windows((5, 5), 300, 200, (3, 3), before=(1, 1), out=(5, 5))
    rng = np.random.default_rng(0)
    buffers = [noise(rng, n, c.dtype) for n in sizes_of_buffers(c, (5, 5), {})]
    same_bits(c, buffers, {}, monkeypatch)


def test_rows_that_do_not_exist_are_not_read() -> None:
    """Behind the last row of A there is memory full of what would be seen in a sum."""
    c = matmul(7, 16, 12)
    a, b, out = matmul_buffers(c, 7, 16, 12)
    wide = np.full(a.size + 1024, np.nan, np.float32)
    wide[: a.size] = a
    Compiled(c)([wide, b, out], {})
    np.testing.assert_allclose(out.reshape(7, 16), a.reshape(7, 12) @ b.reshape(12, 16), atol=1e-5)


def test_what_lies_outside_is_not_read(monkeypatch: Any) -> None:
    """Padding adds nothing, though the elements beside an image are not numbers."""
    c = windows((6, 6), 3, 16, (3, 3), before=(1, 1), out=(6, 6), images=1)
    rng = np.random.default_rng(2)
    x, w, y = (noise(rng, n, float32) for n in sizes_of_buffers(c, (6, 6), {}))
    kernel, wanted = Compiled(c), y.copy()
    kernel([x, w, wanted], {})
    guarded = np.full(x.size + 400, np.nan, np.float32)
    inside = guarded[200 : 200 + x.size]
    inside[:] = x
    kernel([inside, w, y], {})
    assert y.tobytes() == wanted.tobytes()
    assert np.isfinite(y).all()


@pytest.mark.parametrize("target", [AVX2, AVX512, NEON], ids=lambda t: t.name)
def test_every_target_reads_rows_in_place(target: Target) -> None:
    for channels, kernel in ((16, (3, 3)), (3, (7, 7))):
        c = windows((20, 20), channels, 64, kernel, before=(1, 1), out=(20, 20))
        assert tile(c, target).pack_left.mode == "direct"
        assert "llvm.fma" in module_text(c, target)


@pytest.mark.parametrize("channels", [3, 16])
def test_epilogues_that_walk_rows_as_one_or_by_axes(channels: int, monkeypatch: Any) -> None:
    """Channels last the rows of the result are one axis, channels first they are not."""
    size = (7, 6)
    base = windows(size, channels, 24, (3, 3), before=(1, 1), out=size)
    residual = Expr("load", (), (plain(3, (0, 1, 2, 3), strides((2, *size, 24))), 0.0), float32)
    total = Expr("add", (acc(float32), residual), None, float32)
    last = Store(base.stores[0].access, total)
    first = Store(plain(4, (0, 3, 1, 2), strides((2, 24, *size))), acc(float32))
    for stores, flat in (((last,), True), ((last, first), False)):
        c = replace(base, bufs=(float32,) * 5, stores=stores)
        assert tile(c, host_target()).flat == flat
        x, w, y = sizes_of_buffers(c, size, {})
        rng = np.random.default_rng(channels)
        same_bits(c, [noise(rng, n, float32) for n in (x, w, y, y, y)], {}, monkeypatch)


@pytest.mark.parametrize("kernel", [(7, 7), (90, 3), (60, 5)])
def test_windows_of_few_channels_over_sizes_known_in_the_run(
    kernel: Pair, monkeypatch: Any
) -> None:
    size = (H, W)
    c = windows(size, 1, 16, kernel, before=(1, 2), out=(3, W), images=N)
    for images, width in ((0, 9), (1, 8), (2, 13)):
        sizes = {"h": 91, "w": width, "n": images}
        rng = np.random.default_rng(width)
        buffers = [noise(rng, n, c.dtype) for n in sizes_of_buffers(c, size, sizes)]
        if kernel == (90, 3):  # too many runs for one slice of k, and too short to cut it at
            assert tile(c, host_target()).pack_left.mode != "direct"
            check(c, buffers, sizes)
        else:
            same_bits(c, buffers, sizes, monkeypatch)


@pytest.mark.parametrize(("pixels", "n", "k"), [(3136, 64, 64), (784, 128, 512), (196, 384, 64)])
def test_rows_of_unknown_number_are_divided_evenly_among_cores(pixels: int, n: int, k: int) -> None:
    c = matmul(symbol("images") * pixels, n, k)
    for images in (1, 3):
        sizes = {"images": images}
        assert value(contraction_blocks(c), sizes) % contract_tiling.EVEN == 0
    check(c, matmul_buffers(c, pixels, n, k), {"images": 1})
