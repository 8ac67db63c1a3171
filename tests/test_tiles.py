"""Every register tile and tail that code generation makes of a matrix product, on this machine.

Which kernel a product gets follows from its shape; so all small shapes are asked for theirs, and
one shape of each kernel is run.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from contraction_reference import check, matmul, matmul_buffers

from graphc.backends.codegen.contraction import contraction_cut
from graphc.backends.codegen.targets import host_target
from graphc.types import DType, float32, float64

DEPTHS = (1, 19)


def _shapes(ta: bool, tb: bool, dtype: DType) -> Iterator[tuple[int, int, int]]:
    """A shape for each kernel that a small product can get."""
    target = host_target()
    rows, cols = 2 * target.rows[0] + 1, 4 * target.lanes(dtype.itemsize) + 1
    seen = set()
    for k in DEPTHS:
        for m in range(1, rows + 1):
            for n in range(1, cols + 1):
                code = contraction_cut(matmul(m, n, k, ta=ta, tb=tb, dtype=dtype)).code
                if code not in seen:
                    seen.add(code)
                    yield m, n, k


@pytest.mark.no_cover
@pytest.mark.parametrize("ta", [False, True])
@pytest.mark.parametrize("tb", [False, True])
def test_every_tile_of_float32(ta: bool, tb: bool) -> None:
    found = list(_shapes(ta, tb, float32))
    assert len(found) > 20
    for m, n, k in found:
        c = matmul(m, n, k, ta=ta, tb=tb)
        check(c, matmul_buffers(c, m, n, k))


@pytest.mark.no_cover
def test_every_tile_of_float64() -> None:
    for m, n, k in _shapes(False, False, float64):
        c = matmul(m, n, k, dtype=float64)
        check(c, matmul_buffers(c, m, n, k))
