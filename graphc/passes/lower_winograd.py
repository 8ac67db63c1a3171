"""3x3 convolutions of stride 1 by Winograd's minimal filtering, where that pays.

    before:  m = (batch, 56, 56)  n = (64,)  k = (3, 3, 64)      y[h, w] = sum of x[h + i - 1, ..]
    after:   the same contraction, marked winograd = 2

The input gradient is such a convolution with the taps in opposite order:

    before:  A = g[h - i + 1, w - j + 1, c]    B = w[i, j, n, c]
    after:   A = g[h + i - 1, w + j - 1, c]    B = w[2 - i, 2 - j, n, c]

Whether it pays is decided by the sizes of one image, never by the batch, so that an image has the
same bits alone and among others.  Imports: contraction_maps, kernel, winograd, dims, types.
"""

from __future__ import annotations

from dataclasses import replace

from graphc import dims
from graphc.contraction_maps import ContractionMaps
from graphc.dims import DimLike
from graphc.kernel import Access, Contraction, Expr, LoopKernel, Stage, Store, Term
from graphc.types import DType, Shape, float32
from graphc.winograd import FILTERINGS, TAPS, filter_transform

GAIN = 1.1
"""How many times faster Winograd must be, by the model below, to be chosen."""

UNKNOWN_SIDE = 56
"""Height and width of an image whose size is known only at run time."""

ROWS, COLUMNS, CHANNELS = 1, 2, 3
"""Dimensions of the input; its row and column go with m axes 1 and 2 and with k axes 4 and 5."""


def winograd_form(
    c: Contraction, maps: ContractionMaps, x: Shape, fast_math: bool
) -> Contraction | None:
    """The contraction marked, or None where it is no such convolution or has too little to gain.

    c          with its axes as in `maps`
    x          the sizes of what A reads
    fast_math  whether the errors of tiles of 4 x 4 outputs may be made
    """
    if not (c.dtype is float32 and _is_convolution(c, maps)):
        return None
    tile = max(FILTERINGS if fast_math else (2,), key=lambda side: gain(c, side))
    if gain(c, tile) < GAIN:
        return None
    a, b = c.a, c.b
    for dimension in (ROWS, COLUMNS):
        index = maps.a[dimension]
        position, tap = index.axes
        if not index.guarded:
            a = _with_limit(a, position[0], x[dimension])
        if tap[1] == -1:
            a, b = _reversed(a, tap[0], position[0]), _reversed_taps(b, tap[0])
    if not _contiguous(a, 6) or not (_contiguous(b, 3) or _contiguous(b, 6)):
        return None
    return replace(c, a=a, b=b, winograd=tile)


def _is_convolution(c: Contraction, maps: ContractionMaps) -> bool:
    if (len(c.batch), len(c.m), len(c.n), len(c.k)) != (0, 3, 1, 3) or c.k[:2] != (TAPS, TAPS):
        return False
    if len(maps.a) != 4 or any(i.div != 1 for i in (*maps.a, *maps.b)):
        return False
    image, *windows, channel = maps.a
    if image.axes != ((0, 1),) or channel.axes != ((6, 1),) or image.guarded or channel.guarded:
        return False
    for d, index in zip((ROWS, COLUMNS), windows, strict=True):
        if index.axes not in (((d, 1), (d + 3, 1)), ((d, 1), (d + 3, -1))):
            return False
        if not index.guarded and (index.shift != 0 or index.axes[1][1] != 1):
            return False
    return all(not i.guarded and len(i.axes) == 1 and i.axes[0][1] == 1 for i in maps.b)


def _with_limit(a: Access, axis: int, limit: DimLike) -> Access:
    """Tiles at the edge reach beyond an image, even where no window does."""
    terms = (replace(t, limit=limit) if _moves(t, axis) else t for t in a.terms)
    return replace(a, terms=tuple(terms))


def _reversed(a: Access, tap: int, position: int) -> Access:
    """position - tap + shift is position + (2 - tap) + shift - 2."""
    terms = (
        replace(t, axes=((position, 1), (tap, 1)), shift=dims.add(t.shift, 1 - TAPS))
        if _moves(t, tap)
        else t
        for t in a.terms
    )
    return replace(a, terms=tuple(terms))


def _reversed_taps(b: Access, tap: int) -> Access:
    terms, offset = [], b.offset
    for t in b.terms:
        if _moves(t, tap):
            offset = dims.add(offset, dims.mul(TAPS - 1, t.stride))
            t = replace(t, stride=dims.mul(-1, t.stride))
        terms.append(t)
    return replace(b, terms=tuple(terms), offset=offset)


def _moves(t: Term, axis: int) -> bool:
    return any(a == axis for a, _ in t.axes)


def _contiguous(access: Access, axis: int) -> bool:
    return any(t.axes == ((axis, 1),) and t.stride == 1 for t in access.terms)


def gain(c: Contraction, tile: int) -> float:
    """How many times faster Winograd is than the sum over taps, roughly: the cycles of both per
    image, in multiply-adds of 16 elements."""
    rule = FILTERINGS[tile]
    height, width = (_assumed(n, UNKNOWN_SIDE) for n in c.m[1:])
    filters, channels = _assumed(c.n[0], 1), _assumed(c.k[-1], 1)
    if not (height and width and filters and channels):
        return 0.0
    tiles = -(-height // tile) * -(-width // tile)
    narrow, whole = (-(-filters // n) * n for n in (8, 16))
    direct = TAPS * TAPS * channels * narrow * height * width / 16
    products = rule.points * (PRODUCT * channels + START) * whole * tiles / 16
    inputs = TRANSFORM * rule.points * channels * tiles * -(-filters // 64) / 8
    outputs = TRANSFORM * rule.points * whole * tiles / 8
    weights = TRANSFORM * rule.points * channels * whole * max(tiles / BLOCK[tile], 1) / 8
    return direct / (products + inputs + outputs + weights)


BLOCK = {2: 72, 4: 36}
"""Tiles for which filters are transformed once, by the side of a tile."""

TRANSFORM = 1.5
"""Cycles of a transform per vector of eight and point."""

PRODUCT, START = 1.1, 6
"""Cost of a product in slices of channels against one over all of k, and of beginning it."""


# ---- filters transformed by a step of their own ------------------------------------------------


class _Expressions:
    """The algebra of scalar expressions."""

    def scaled(self, c: float, x: Expr) -> Expr:
        return x * c

    def added(self, total: Expr, c: float, x: Expr) -> Expr:
        if c in (1, -1):
            return total + x if c == 1 else total - x
        return Expr("fma", (x, Expr("const", (), c, x.dtype), total), None, x.dtype)


def filters_kernel(
    winograd: int,
    column: tuple[DimLike, DimLike],
    taps: tuple[tuple[DimLike, DimLike], ...],
    offset: DimLike,
    dtype: DType,
    panel: int,
) -> LoopKernel:
    """Filters transformed, in panels: see `kernel.Contraction`.

    column, taps  extent and stride of the filters; of tap rows, tap columns and channels
    The axes are channels, panels and filters of a panel.  Bits are those of a contraction that
    transforms filters itself.
    """
    rule = FILTERINGS[winograd]
    (filters, step), (_, down), (_, across), (channels, inner) = column, *taps
    limit = None if dims.factor(filters) % panel == 0 else filters
    moving = (Term(((0, 1),), inner), Term(((1, panel), (2, 1)), step, 0, 1, limit))

    def tap(i: int, j: int) -> Expr:
        start = dims.total((offset, dims.mul(i, down), dims.mul(j, across)))
        return Expr("load", (), (Access(0, moving, start), 0), dtype)

    square = [[tap(i, j) for j in range(TAPS)] for i in range(TAPS)]
    made = filter_transform(rule, _Expressions(), square)
    row = dims.mul(channels, panel)
    across_panels = Term(((1, 1),), dims.mul(rule.points, row))
    places = (across_panels, Term(((0, 1),), panel), Term(((2, 1),), 1))
    stores = tuple(
        Store(Access(1, places, dims.mul(point, row)), x)
        for point, x in enumerate(x for line in made for x in line)
    )
    axes = (channels, dims.ceildiv(filters, panel), panel)
    return LoopKernel(axes, (0, 1, 2), 2, (dtype, dtype), (Stage((), (), stores),))


def _assumed(size: DimLike, unknown: int) -> int:
    return size if isinstance(size, int) else unknown
