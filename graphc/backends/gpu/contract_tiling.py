"""How a contraction is cut into tiles for a GPU: a table of tiles, and which of them serves.

The choice follows from the known sizes alone, so that kernels and their numbers of CTAs agree
everywhere.  Sizes that are not known are guessed.
Imports: contract_slices, contract_text, codegen.contract_access, dims, kernel.
"""

from __future__ import annotations

from dataclasses import dataclass

from graphc.backends.codegen.contract_access import Group, guarded
from graphc.backends.gpu.contract_slices import Slice, slice_of
from graphc.backends.gpu.contract_text import flat_step, groups
from graphc.dims import Dim, DimLike, ceildiv, factor, mul, product
from graphc.kernel import Contraction, expressions_of

USUAL = 128
"""What a size is taken for of which nothing is known: a batch, or tokens."""

FEW = 16
"""How often a size is taken for what is known to divide it: images in a batch."""

PROCESSORS = 128
"""Multiprocessors of the GPUs that matter: 108 to 144."""

WARPS = 16
"""Warps of a multiprocessor that most tiles leave registers for."""

ALONE = 0.93
"""How fast a tile of 256 threads is that leaves no registers for a second one."""

LEAST, WIDE = 4, 64
"""Fewer than LEAST rows or columns leave tiles mostly empty: a thread per element then, unless the
other has WIDE, when a tile's threads at least read what is multiplied together."""


@dataclass(frozen=True)
class Tile:
    """What a CTA computes: `m` x `n` elements of C, `k` steps at a time; each thread has `rows` x
    `cols` of them in registers.

    speed   products per cycle of a multiprocessor full of such tiles, beside those of the largest:
            how often what is read is used (an estimate)
    """

    m: int
    n: int
    k: int
    rows: int
    cols: int
    speed: float

    @property
    def threads(self) -> int:
        return self.m // self.rows * (self.n // self.cols)

    def registers(self, simple: bool) -> int:
        """The most registers a thread may use, so that enough threads find room beside it and none
        has to keep numbers in memory; `simple` as `is_simple` says it."""
        if self.rows * self.cols < 64:
            return 128
        return 255 if not simple else 128 if self.threads == 256 else 168


SINGLE = (
    Tile(128, 128, 8, 8, 8, 1.0),
    Tile(128, 64, 8, 8, 8, 0.95),
    Tile(64, 128, 8, 8, 8, 0.95),
    Tile(64, 64, 8, 8, 4, 0.85),
    Tile(128, 32, 8, 8, 4, 0.82),
    Tile(32, 128, 8, 4, 8, 0.82),
    Tile(64, 32, 16, 4, 4, 0.7),
    Tile(32, 64, 16, 4, 4, 0.7),
    Tile(32, 32, 16, 4, 4, 0.65),
    Tile(16, 64, 16, 2, 4, 0.5),
    Tile(64, 16, 16, 4, 2, 0.5),
    Tile(8, 64, 32, 1, 4, 0.35),
    Tile(64, 8, 32, 4, 1, 0.35),
)
"""Tiles of f32."""

DOUBLE = (
    Tile(64, 64, 8, 4, 4, 1.0),
    Tile(32, 32, 16, 4, 2, 0.6),
    Tile(8, 64, 16, 1, 4, 0.3),
    Tile(64, 8, 16, 4, 1, 0.3),
)
"""Tiles of f64."""


def tile_of(c: Contraction) -> Tile | None:
    """The tile of a contraction; None where each thread computes an element."""
    batch, m, n, _ = (_usual(group) for group in groups(c))
    if min(m, n) < LEAST and max(m, n) < WIDE:
        return None

    def cost(tile: Tile) -> float:
        ctas = batch * -(-m // tile.m) * -(-n // tile.n)
        each = -(-ctas // PROCESSORS)
        warps = min(each * tile.threads // 32, WARPS)
        # few warps wait for memory; one or two leave schedulers without any
        speed = tile.speed * min(warps / 4, warps / (warps + 1.5))
        if tile.threads == 256 and not is_simple(c, tile):
            speed *= ALONE
        return each * tile.m * tile.n / speed

    return min(_table(c), key=cost)


def is_simple(c: Contraction, tile: Tile) -> bool:
    """Whether a tile's operands are read 16 bytes at a time, without guards, and along k by equal
    steps, and its epilogue reads nothing: others need more registers for addresses."""
    return all(e.op not in ("load", "gather") for e in expressions_of(c)) and all(
        cut.width * c.dtype.itemsize == 16
        and not guarded(access)
        and flat_step(access, groups(c)[3]) is not None
        for cut, access in zip(slices(c, tile), (c.a, c.b), strict=True)
    )


def slices(
    c: Contraction, tile: Tile, threads: int = 0, depth: int = 0, pair: int = 1
) -> tuple[Slice, Slice]:
    """How the threads of a tile read A and B; threads and steps are the tile's, or those given."""
    _, m, n, k = groups(c)
    rest = depth or tile.k, threads or tile.threads, c.dtype.itemsize, pair
    return slice_of(c.a, m, k, tile.m, *rest), slice_of(c.b, n, k, tile.n, *rest)


def _table(c: Contraction) -> tuple[Tile, ...]:
    return SINGLE if c.dtype.name == "f32" else DOUBLE


def tile_blocks(c: Contraction, tile: Tile) -> DimLike:
    """How many tiles there are."""
    rows, cols = ceildiv(product(c.m), tile.m), ceildiv(product(c.n), tile.n)
    return mul(product(c.batch), mul(rows, cols))


def _usual(group: Group) -> int:
    """The size of a group, as far as it is known."""
    size = 1
    for extent in group.extents:
        size *= extent if isinstance(extent, int) else _usual_size(extent)
    return max(size, 1)


def _usual_size(d: Dim) -> int:
    """What an unknown size is taken for: pixels of a few images, or rows of a batch."""
    return max(factor(d) * FEW, USUAL)
