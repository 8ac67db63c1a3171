"""The functions that read and write at computed positions, in one place.

Imports: ops.indexed, ops.scatter, ops.create.
"""

from __future__ import annotations

from graphc.ops.create import one_hot
from graphc.ops.indexed import checked_index, gather, scatter_sum, take, take_along_axis
from graphc.ops.scatter import (
    gather_nd,
    put_along_axis,
    scatter_add,
    scatter_nd,
    scatter_update,
)

__all__ = [
    "checked_index",
    "gather",
    "gather_nd",
    "one_hot",
    "put_along_axis",
    "scatter_add",
    "scatter_nd",
    "scatter_sum",
    "scatter_update",
    "take",
    "take_along_axis",
]
