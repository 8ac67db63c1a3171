"""The order of blocks of many products whose elements lie between each other's, as in groups.

    y[p, 8g+o] = sum over k of x[p, k, 8g+..] * w[k, 8g+o]      g is the batch axis

Taking one group after the other over all of x would read every line of x several times from far
away.  Where all of B stays in the cache, the batch axes go inside rows instead, and blocks are so
low that their part of x stays too.  Where columns of a group fill register tiles, groups are even
taken as columns side by side: each panel of columns reads A some elements further, and where the
rows of a tile lie is worked out once for all groups.
Imports: contract_access, kernel, dims.
"""

from __future__ import annotations

from graphc.backends.codegen.contract_access import Group, fused_axes, guards_axis, linear
from graphc.dims import product
from graphc.kernel import Contraction

NEAR_BYTES = 192 * 1024
"""Of each operand, that stay in the L2 cache."""


def near_rows(c: Contraction) -> int:
    """Most rows of a block with the batch axes inside rows, 0 if they are better outside."""
    count, columns = product(c.batch), product((*c.n, *c.k))
    if not isinstance(count, int) or not isinstance(columns, int) or count < 2:
        return 0
    rows = range(len(c.batch), len(c.batch) + len(c.m))
    steps = [linear(c.a, a) for a in rows if c.axes[a] != 1]
    apart = [linear(c.a, a) for a in range(len(c.batch)) if c.axes[a] != 1]
    pitch = min((abs(s) for s in steps if isinstance(s, int)), default=0)
    size = c.dtype.itemsize
    if count * columns * size > NEAR_BYTES * 2 or pitch == 0:
        return 0
    if not all(isinstance(s, int) and 0 < s < pitch for s in apart):
        return 0
    return NEAR_BYTES // (pitch * size)


def groups_as_columns(c: Contraction, tile_cols: int) -> Group | None:
    """The batch axis and the columns as one group of columns, if tiles so wide fit into both."""
    if len(c.batch) != 1 or len(c.n) != 1 or not near_rows(c):
        return None
    (count,), (width,) = c.batch, c.n
    column = 1 + len(c.m)
    if not isinstance(count, int) or not isinstance(width, int) or width % tile_cols:
        return None
    if guards_axis(c.a, 0) or guards_axis(c.b, 0) or not isinstance(linear(c.a, 0), int):
        return None
    columns = Group((0, column), (count, width))
    if not c.stores or fused_axes(c.stores[0].access, columns) < 2:
        return None
    return columns


def reach_of_groups(c: Contraction) -> int:
    """How many elements of A the last group lies behind the first."""
    (count,), apart = c.batch, linear(c.a, 0)
    assert isinstance(count, int) and isinstance(apart, int)
    return (count - 1) * apart
