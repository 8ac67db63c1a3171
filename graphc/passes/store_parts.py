"""Concatenations of what one group computes: the group stores each part where it belongs.

    before:  one group writes %a and %b    %c = concat(%a, %b) {axis=1} copies them
    after:   the group writes %a into the left columns of %c, and %b into the right ones

Imports: groups, views, nest, dims.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from graphc import dims
from graphc.nest import contiguous
from graphc.passes.groups import FULL, Group, Place

if TYPE_CHECKING:
    from graphc.node import Tensor
    from graphc.passes.views import Views


def store_parts(
    groups: Sequence[Group], group_of: dict[int, Group], views: Views, kept: set[int]
) -> dict[int, list[Place]]:
    """Where members are stored as parts, by their ids; groups that only joined these are emptied.

    kept  ids of what has memory of its own from before the run, or after it
    """
    placed: dict[int, list[Place]] = {}
    for group in groups:
        if group.kind != "nest" or group.head.op.name != "concat" or len(group.members) != 1:
            continue
        joined = group.members[0]
        owner = _owner(group, group_of, views)
        if owner is None or id(joined) in kept:
            continue
        axis = group.head.attrs["axis"]
        strides = contiguous(joined.dims)
        start: dims.DimLike = 0
        for part in group.head.inputs:
            place = Place(joined, strides, dims.mul(start, strides[axis]))
            placed.setdefault(id(views.of(part).base), []).append(place)
            start = dims.add(start, part.dims[axis])
        group.members, group.level = [], {}
        group_of[id(joined)] = owner
    return placed


def _owner(group: Group, group_of: dict[int, Group], views: Views) -> Group | None:
    """The group that computes all that a concatenation joins, each element of it at its place."""
    parts: list[Tensor] = list(group.head.inputs)
    owner = group_of.get(id(views.of(parts[0]).base))
    if owner is None or owner.kind != "loop" or owner.split:
        return None
    for part in parts:
        view = views.of(part)
        inside = owner.level.get(id(view.base)) == FULL
        if not inside or part.dims != owner.shape or not view.is_whole(part.dims):
            return None
    return owner
