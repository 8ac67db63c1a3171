"""The order of blocks of many products whose elements lie between each other's, as in groups.

    y[p, 8g+o] = sum over k of x[p, k, 8g+..] * w[k, 8g+o]      g is the batch axis

Taking one group after the other over all of x would read every line of x several times from far
away.  Where all of B stays in the cache, the batch axes go inside rows instead, and blocks are so
low that their part of x stays too.  Imports: contract_access, kernel, dims.
"""

from __future__ import annotations

from graphc.backends.codegen.contract_access import linear
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
