"""Filter gradients and products with a transposed operand, which read an operand in place.

Against the float64 reference, and bit by bit against the form that packs both operands.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

import numpy as np
import pytest
from contraction_reference import Compiled, acc, check, matmul, noise, plain, strides

from graphc.backends.codegen import contraction
from graphc.backends.codegen.contract_lines_tiling import FAR_BYTES, FEW_COLUMNS, line_tiling
from graphc.backends.codegen.targets import AVX2, AVX512, NEON, SSE2, Target, host_target
from graphc.dims import DimLike, atoms, symbol
from graphc.kernel import Access, Contraction, Store, Term, sizes_of
from graphc.passes.contraction_axes import fewest_axes
from graphc.passes.share_kernels import share_kernels
from graphc.types import DType, float32, float64


@dataclass(frozen=True)
class Window:
    """One spatial dimension of a filter gradient."""

    size: int
    taps: int
    stride: int = 1
    dilation: int = 1
    before: int = 0
    after: int = 0

    @property
    def out(self) -> int:
        reach = (self.taps - 1) * self.dilation + 1
        return max((self.size + self.before + self.after - reach) // self.stride + 1, 0)


@dataclass(frozen=True)
class Gradient:
    """dw[taps, ic, groups, oc] of a convolution, channels last, whose sizes may be symbols."""

    images: int
    windows: tuple[Window, ...]
    channels: int
    filters: int
    groups: int = 1
    dtype: DType = float32
    symbolic: bool = False

    @property
    def sizes(self) -> dict[str, int]:
        if not self.symbolic:
            return {}
        spatial = {f"h{i}": w.size for i, w in enumerate(self.windows)}
        out = {f"o{i}": w.out for i, w in enumerate(self.windows)}
        return {"images": self.images, **spatial, **out}

    def contraction(self) -> Contraction:
        d, g = len(self.windows), int(self.groups > 1)
        named = self.symbolic
        images: DimLike = symbol("images") if named else self.images
        size: list[DimLike] = [
            symbol(f"h{i}") if named else w.size for i, w in enumerate(self.windows)
        ]
        out: list[DimLike] = [
            symbol(f"o{i}") if named else w.out for i, w in enumerate(self.windows)
        ]
        taps = [w.taps for w in self.windows]
        k, ic, f = list(range(g, g + d)), g + d, g + d + 1
        n, o = f + 1, list(range(f + 2, f + 2 + d))
        xs = strides((images, *size, self.channels * self.groups))
        ys = strides((images, *out, self.filters * self.groups))
        ws = strides((*taps, self.channels, self.filters * self.groups))
        inside = [
            Term(((o[i], w.stride), (k[i], w.dilation)), xs[1 + i], -w.before, 1, size[i])
            for i, w in enumerate(self.windows)
        ]
        group = ((0, 1),)
        x = (Term(((n, 1),), xs[0]), *inside, Term(((ic, 1),), 1))
        y = plain(1, (n, *o, f), ys).terms
        w = plain(2, (*k, ic, f), ws).terms
        if g:
            x, y = (*x, Term(group, self.channels)), (*y, Term(group, self.filters))
            w = (*w, Term(group, self.filters))
        stores = (Store(Access(2, w), acc(self.dtype)),)
        c = Contraction(
            (self.groups,) * g,
            (*taps, self.channels),
            (self.filters,),
            (images, *out),
            Access(0, x),
            Access(1, y),
            (self.dtype,) * 3,
            stores,
            self.dtype,
        )
        return fewest_axes(c)

    def buffers(self) -> list[np.ndarray]:
        rng = np.random.default_rng(6)
        x = [self.images, *(w.size for w in self.windows), self.channels * self.groups]
        y = [self.images, *(w.out for w in self.windows), self.filters * self.groups]
        w = [*(w.taps for w in self.windows), self.channels, self.filters * self.groups]
        return [noise(rng, int(np.prod(shape)), self.dtype) for shape in (x, y, w)]


def compare(
    monkeypatch: pytest.MonkeyPatch,
    c: Contraction,
    buffers: list[np.ndarray],
    sizes: dict[str, int],
    compiled: Compiled | None = None,
) -> None:
    """Right, and the same bits as by packing."""
    assert line_tiling(c, host_target()) is not None
    kernel = check(c, buffers, sizes, compiled=compiled)
    got, packed = [x.copy() for x in buffers], [x.copy() for x in buffers]
    kernel(got, sizes)
    with monkeypatch.context() as patch:
        patch.setattr(contraction, "line_tiling", lambda c, target: None)
        Compiled(replace(c, cut=None))(packed, sizes)
    assert got[2].tobytes() == packed[2].tobytes()


GRADIENTS = {
    "padded": Gradient(
        2, (Window(9, 3, before=1, after=1), Window(8, 3, before=1, after=1)), 6, 18
    ),
    "uneven": Gradient(3, (Window(9, 3, 2, 1, 0, 1), Window(8, 2, 1, 1, 1, 0)), 7, 9),
    "strided": Gradient(2, (Window(13, 5, 2, 1, 2, 2), Window(14, 3, 3, 1, 1, 1)), 8, 33),
    "dilated": Gradient(2, (Window(9, 3, 1, 3, 3, 3), Window(11, 3, 2, 2, 2, 2)), 5, 8),
    "outside": Gradient(12, (Window(3, 9, before=4, after=4), Window(3, 9, 2, 1, 4, 5)), 4, 24),
    "channels": Gradient(1, (Window(12, 3, before=1, after=1), Window(12, 1)), 67, 150),
    "line": Gradient(2, (Window(600, 3, before=1, after=1),), 12, 16),
    "volume": Gradient(2, (Window(5, 2), Window(6, 3, before=1), Window(7, 3, 2, 1, 1, 1)), 4, 10),
    "groups": Gradient(2, (Window(7, 3, before=1, after=1), Window(7, 3)), 4, 9, groups=3),
    "f64": Gradient(2, (Window(9, 3, before=1, after=1), Window(8, 1)), 6, 11, dtype=float64),
    "symbolic": Gradient(3, (Window(9, 3, 2, 1, 1, 1), Window(7, 3)), 16, 20, symbolic=True),
}


@pytest.mark.parametrize("name", GRADIENTS)
def test_filter_gradient(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    gradient = GRADIENTS[name]
    compare(monkeypatch, gradient.contraction(), gradient.buffers(), gradient.sizes)


WAYS = {
    "far": Gradient(2, (Window(9, 3, 4, 1, 1, 1), Window(22, 3, 4, 1, 1, 1)), 260, 24),
    "far_tail": Gradient(2, (Window(14, 2, 2), Window(15, 2, 2, 1, 1, 0)), 607, 17),
    "few_channels": Gradient(2, (Window(20, 7, 2, 1, 3, 3), Window(31, 7, 2, 1, 3, 2)), 3, 18),
    "one_channel": Gradient(3, (Window(9, 5, before=2, after=2), Window(80, 5, 1, 1, 7, 7)), 1, 7),
    "wide_stride": Gradient(2, (Window(29, 11, 4, 1, 2, 2), Window(30, 11, 4, 1, 2, 2)), 3, 16),
    "few_f64": Gradient(2, (Window(9, 3, 1, 2, 2, 2), Window(9, 3, before=1)), 2, 9, dtype=float64),
    "grouped": Gradient(
        2, (Window(9, 3, before=1, after=1), Window(21, 3, 1, 1, 1, 2)), 8, 8, groups=32
    ),
    "grouped_strided": Gradient(
        3, (Window(9, 3, 2, 1, 1, 1), Window(50, 5, 2, 1, 2, 2)), 11, 7, groups=24
    ),
}


@pytest.mark.parametrize("name", WAYS)
def test_copies_of_the_first_operand(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    gradient = WAYS[name]
    found = line_tiling(gradient.contraction(), AVX2)
    copies = "rows" if "far" in name else "pixels" if "grouped" in name else "margins"
    assert found is not None and found.copies == copies
    compare(monkeypatch, gradient.contraction(), gradient.buffers(), gradient.sizes)


@pytest.mark.parametrize("copies", ["rows", "margins", "pixels"])
def test_layers_share_a_kernel_that_copies(copies: str) -> None:
    layers = {
        "rows": [(1200, 2, 32, 1), (2600, 1, 80, 1)],
        "margins": [(3, 2, 16, 1), (3, 1, 64, 1)],
        "pixels": [(8, 2, 8, 32), (16, 1, 8, 24)],
    }
    share_a_kernel(
        [
            Gradient(2, (Window(9, 3, s, 1, 1, 1), Window(17, 3, s, 1, 1, 1)), ic, oc, groups)
            for ic, s, oc, groups in layers[copies]
        ]
    )


def test_one_kernel_for_every_size(monkeypatch: pytest.MonkeyPatch) -> None:
    base = GRADIENTS["symbolic"]
    c = base.contraction()
    kernel = Compiled(c)
    for images, high, wide in ((0, 9, 7), (1, 3, 3), (2, 300, 5), (5, 12, 300), (1, 1, 3)):
        windows = (replace(base.windows[0], size=high), replace(base.windows[1], size=wide))
        gradient = replace(base, images=images, windows=windows)
        compare(monkeypatch, c, gradient.buffers(), gradient.sizes, kernel)


def test_margins_of_lines_of_any_length(monkeypatch: pytest.MonkeyPatch) -> None:
    windows = (Window(9, 3, before=1, after=1), Window(9, 7, 1, 1, 3, 3))
    base = Gradient(2, windows, 3, 16, symbolic=True)
    c = base.contraction()
    found = line_tiling(c, AVX2)
    assert found is not None and found.copies == "margins"
    kernel = Compiled(c)
    for high, wide in ((40, 1), (30, 2), (2, 64), (3, 65), (1, 300)):
        sizes = (replace(windows[0], size=high), replace(windows[1], size=wide))
        gradient = replace(base, windows=sizes)
        compare(monkeypatch, c, gradient.buffers(), gradient.sizes, kernel)


@pytest.mark.parametrize("seed", range(10))
def test_random_filter_gradient(monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    r = random.Random(seed)
    windows = []
    for _ in range(r.choice([1, 2, 2, 3])):
        taps, stride, dilation = r.choice([1, 2, 3, 4]), r.choice([1, 1, 2, 3]), r.choice([1, 1, 2])
        reach = (taps - 1) * dilation + 1
        before, after = r.randint(0, reach), r.randint(0, reach)
        size = r.randint(max(reach - before - after, 1), reach + 9)
        windows.append(Window(size, taps, stride, dilation, before, after))
    gradient = Gradient(
        r.choice([64, 70]),
        tuple(windows),
        r.choice([4, 5, 6, 8, 13, 24]),
        r.choice([4, 8, 15, 16, 17, 40]),
        r.choice([1, 1, 2]),
        r.choice([float32, float32, float64]),
        r.random() < 0.3,
    )
    compare(monkeypatch, gradient.contraction(), gradient.buffers(), gradient.sizes)


@pytest.mark.parametrize(
    "m,n,k",
    [(64, 40, 100), (7, 96, 64), (130, 17, 700), (4, 8, 64), (53, 97, 300), (300, 40, 520)],
)
def test_transposed_first_operand(monkeypatch: pytest.MonkeyPatch, m: int, n: int, k: int) -> None:
    for batch in ((), (3,)):
        for depth in (k, symbol("k")):
            c = matmul(m, n, depth, ta=True, batch=batch)
            rng = np.random.default_rng(1)
            count = 3 if batch else 1
            buffers = [noise(rng, count * s, float32) for s in (k * m, k * n, m * n)]
            if n > FEW_COLUMNS or m * 4 >= FAR_BYTES:  # rows are better packed in strips
                assert line_tiling(c, AVX2) is None
                check(c, buffers, {"k": k})
            else:
                compare(monkeypatch, c, buffers, {"k": k})


def test_layers_of_different_sizes_share_a_kernel() -> None:
    share_a_kernel(
        [
            Gradient(2, (Window(9, 3, before=1, after=1), Window(8, 3, before=1, after=1)), 12, 32),
            Gradient(2, (Window(20, 3, 2, 1, 1, 1), Window(9, 3, 2, 1, 1, 1)), 24, 64),
            Gradient(
                3, (Window(40, 5, before=2, after=2), Window(20, 5, before=2, after=2)), 60, 96
            ),
        ]
    )


def share_a_kernel(gradients: list[Gradient]) -> None:
    """Their kernels become one, which computes each."""
    kernels = []
    for gradient in gradients:
        c = gradient.contraction()
        kernels.append(replace(c, cut=contraction.contraction_cut(c)))
    shared = share_kernels(kernels)
    assert len({s.kernel for s in shared}) == 1
    common = shared[0].kernel
    assert isinstance(common, Contraction)
    compiled = Compiled(common)
    for gradient, one in zip(gradients, shared, strict=True):
        sizes = {}
        for d, size in zip(sizes_of(common), one.sizes, strict=True):
            (atom,) = atoms(d)
            assert isinstance(size, int)
            sizes[atom.name] = size
        check(common, gradient.buffers(), sizes, compiled=compiled)


@pytest.mark.parametrize("target", [AVX512, AVX2, NEON, SSE2], ids=lambda t: t.name)
def test_every_target_gives_the_same_bits(target: Target) -> None:
    for gradient in (GRADIENTS["uneven"], GRADIENTS["f64"], WAYS["far"], WAYS["few_channels"]):
        c, buffers = gradient.contraction(), gradient.buffers()
        got, wanted = [x.copy() for x in buffers], [x.copy() for x in buffers]
        Compiled(c, target)(got, {})
        Compiled(c)(wanted, {})
        assert got[2].tobytes() == wanted[2].tobytes()


@pytest.mark.parametrize("target", [AVX512, AVX2, NEON, SSE2], ids=lambda t: t.name)
def test_every_target_has_a_tile(target: Target) -> None:
    for gradient in GRADIENTS.values():
        found = line_tiling(gradient.contraction(), target)
        assert found is not None
        assert isinstance(found.rows.size, int) and found.tile_rows <= found.rows.size
