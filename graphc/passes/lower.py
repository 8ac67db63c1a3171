"""Lowering: each fusion group becomes a kernel (a split reduction: two).

Imports: fuse, views, uniform, kernel, nest, dims.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from graphc.errors import RunError
from graphc.graph import Tensor
from graphc.kernel import Kernel, Store
from graphc.location import Location
from graphc.passes.fuse import Fusion, Group
from graphc.passes.lower_contraction import lower_contraction
from graphc.passes.lower_loop import lower_loop
from graphc.passes.lower_nest import lower_nest
from graphc.passes.operands import LoweredStep

__all__ = ["LoweredStep", "lower"]


def lower(fusion: Fusion) -> list[LoweredStep]:
    """The steps of a fused program, in an order that respects dependencies."""
    steps: list[LoweredStep] = []
    for group in fusion.groups:
        steps.extend(lower_group(fusion, group))
    return steps


def lower_group(fusion: Fusion, group: Group) -> list[LoweredStep]:
    if group.kind == "loop":
        return lower_loop(fusion, group)
    if group.kind == "contraction":
        return lower_contraction(fusion, group)
    return lower_nest(fusion, group)
