"""Which forms of kernels a back end wants: what passes ask about it.

Imports: groups, lower_parts.
"""

from __future__ import annotations

from dataclasses import dataclass

from graphc.passes.groups import CHUNK
from graphc.passes.lower_parts import GPU_SHARES, SHARES, Shares


@dataclass(frozen=True)
class Forms:
    """Which forms of kernels a back end wants.

    winograd  whether it has kernels of Winograd's minimal filtering
    chunk     elements of one chunk of a split reduction
    shares    which sums of contractions are made in parts
    abreast   rows of a matrix that are summed side by side in its product with a vector
    """

    winograd: bool = True
    chunk: int = CHUNK
    shares: Shares = SHARES
    abreast: int = 4


FORMS = Forms()

GPU_FORMS = Forms(winograd=False, chunk=4096, shares=GPU_SHARES, abreast=1)
"""Long reductions and sums are made in parts for thousands of warps."""
