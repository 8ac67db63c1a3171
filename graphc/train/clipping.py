"""Clipping of gradients, by value and by norm, as in Pascanu, Mikolov and Bengio (2013).

Imports: ops, graph, errors.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from graphc.errors import GraphTypeError
from graphc.node import Tensor
from graphc.ops.arithmetic import astype, equal, maximum, minimum, where
from graphc.ops.define import as_tensor
from graphc.ops.logic import clip
from graphc.ops.math import sqrt, square
from graphc.ops.reduce import sum


def clip_by_value(t: Any, low: Any, high: Any, name: str | None = None) -> Tensor:
    """t with every element moved into [low, high]."""
    return clip(t, low, high, name=name)


def clip_by_norm(t: Any, clip_norm: Any, axes: Any = None) -> Tensor:
    """t scaled so that its 2-norm over `axes` (all if None) is at most `clip_norm`."""
    x = as_tensor(t)
    total = sum(square(x), axis=axes, keepdims=True)
    # the gradient of sqrt at 0 is infinite; a zero tensor needs no scaling
    norm = sqrt(where(equal(total, 0), 1, total))
    limit = as_tensor(clip_norm, x.dtype)
    return where(equal(total, 0), x, x * (limit / maximum(norm, limit)))


def global_norm(tensors: Sequence[Tensor | None]) -> Tensor:
    """The 2-norm of all the elements of all the tensors together; None entries count nothing."""
    present = [t for t in tensors if t is not None]
    if not present:
        raise GraphTypeError("global_norm: every tensor is None")
    total = sum(square(present[0]))
    for t in present[1:]:
        total = total + astype(sum(square(t)), total.dtype)
    return sqrt(total)


def clip_by_global_norm(
    tensors: Sequence[Tensor | None], clip_norm: Any, use_norm: Tensor | None = None
) -> tuple[list[Tensor | None], Tensor]:
    """The tensors, all scaled by one factor so that their global norm is at most `clip_norm`.

    Returns them, with None where None was given, and the norm before clipping.  If the norm is
    not finite the results are NaN, so that the fault is seen.
    """
    norm = global_norm(tensors) if use_norm is None else use_norm
    limit = as_tensor(clip_norm, norm.dtype)
    scale = limit * minimum(1.0 / norm, 1.0 / limit)
    # inf - inf is NaN, and 0 for every finite norm
    scale = scale + (norm - norm)
    clipped = [None if t is None else t * astype(scale, t.dtype) for t in tensors]
    return clipped, norm


__all__ = ["clip_by_global_norm", "clip_by_norm", "clip_by_value", "global_norm"]
