"""Groups of channels as columns side by side: the same bits as one group after the other."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from contraction_reference import Compiled, acc, check, noise, op, plain, strides, value

from graphc.backends.codegen import contract_tiling
from graphc.backends.codegen.contract_tiling import cut_of, tile
from graphc.backends.codegen.contraction import contraction_cut
from graphc.backends.codegen.targets import AVX2, AVX512, NEON, SSE2, Target, host_target
from graphc.dims import DimLike, atoms, symbol
from graphc.kernel import Access, Contraction, Expr, Store, Term, sizes_of
from graphc.passes.share_kernels import share_kernels
from graphc.types import float32


def grouped(
    size: int,
    groups: int,
    channels: int,
    filters: int,
    *,
    stride: int = 1,
    turned: bool = False,
    images: DimLike = 2,
) -> Contraction:
    """A padded 3 x 3 convolution and a bias; `turned` filters are contiguous along channels."""
    out = (size - 1) // stride + 1
    xs = strides((images, size, size, groups * channels))
    ys = strides((images, out, out, groups * filters))
    # axes: group, image, row, column, filter, taps, channel
    inside = [Term(((2 + i, stride), (5 + i, 1)), xs[1 + i], -1, 1, size) for i in range(2)]
    x = Access(0, (Term(((0, 1),), channels), Term(((1, 1),), xs[0]), *inside, Term(((7, 1),), 1)))
    if turned:
        ws = strides((3, 3, filters, groups * channels))
        w = plain(1, (5, 6, 4, 7, 0), (*ws, channels))
    else:
        ws = strides((3, 3, channels, groups * filters))
        w = plain(1, (5, 6, 7, 4, 0), (*ws, filters))
    y = plain(2, (1, 2, 3, 4, 0), (*ys, filters))
    bias = Expr("load", (), (plain(3, (4, 0), (1, filters)), 0), float32)
    stores = (Store(y, op("max", acc(float32) + bias, Expr("const", (), 0.0, float32))),)
    m = (images, out, out)
    k = (3, 3, channels)
    return Contraction((groups,), m, (filters,), k, x, w, (float32,) * 4, stores, float32)


def buffers_of(c: Contraction, size: int, sizes: dict[str, int]) -> list[np.ndarray]:
    groups, images, out, _, filters, _, _, channels = (value(e, sizes) for e in c.axes)
    rng = np.random.default_rng(filters)
    counts = [images * size * size * groups * channels, 9 * channels * groups * filters]
    counts += [images * out * out * groups * filters, groups * filters]
    return [noise(rng, n, c.dtype) for n in counts]


def same_bits(c: Contraction, size: int, sizes: dict[str, int], monkeypatch: Any) -> None:
    assert tile(c, host_target()).grouped
    buffers = buffers_of(c, size, sizes)
    kernel = check(c, buffers, sizes)
    with monkeypatch.context() as m:
        m.setattr(contract_tiling, "groups_as_columns", lambda *_: None)
        apart = replace(c, cut=cut_of(c, host_target()))
    assert not tile(apart, host_target()).grouped
    got, wanted = [x.copy() for x in buffers], [x.copy() for x in buffers]
    kernel(got, sizes)
    Compiled(apart)(wanted, sizes)
    assert got[2].tobytes() == wanted[2].tobytes()


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize(
    ("size", "groups", "channels", "filters", "stride"),
    [(9, 5, 16, 16, 1), (8, 32, 8, 16, 1), (11, 3, 24, 32, 2), (7, 33, 5, 48, 1)],
)
def test_groups(
    size: int,
    groups: int,
    channels: int,
    filters: int,
    stride: int,
    turned: bool,
    monkeypatch: Any,
) -> None:
    c = grouped(size, groups, channels, filters, stride=stride, turned=turned)
    same_bits(c, size, {}, monkeypatch)


@pytest.mark.parametrize("images", [1, 3])
def test_images_known_in_the_run(images: int, monkeypatch: Any) -> None:
    same_bits(grouped(7, 6, 8, 16, images=symbol("n")), 7, {"n": images}, monkeypatch)


def test_layers_share_a_kernel() -> None:
    layers = [(9, 5, 16), (12, 9, 16)]
    kernels = []
    for size, groups, channels in layers:
        c = grouped(size, groups, channels, 16)
        kernels.append(replace(c, cut=contraction_cut(c)))
    shared = share_kernels(kernels)
    assert len({s.kernel for s in shared}) == 1
    common = shared[0].kernel
    assert isinstance(common, Contraction)
    compiled = Compiled(common)
    for (size, groups, channels), one in zip(layers, shared, strict=True):
        sizes: dict[str, int] = {}
        for d, number in zip(sizes_of(common), one.sizes, strict=True):
            (atom,) = atoms(d)
            assert isinstance(number, int)
            sizes[atom.name] = number
        known = buffers_of(grouped(size, groups, channels, 16), size, {})
        check(common, known, sizes, compiled=compiled)


@pytest.mark.parametrize("target", [AVX512, AVX2, NEON, SSE2], ids=lambda t: t.name)
def test_every_target(target: Target) -> None:
    c = grouped(6, 4, 8, 16)
    assert tile(c, target).grouped
    check(c, buffers_of(c, 6, {}), target=target)
