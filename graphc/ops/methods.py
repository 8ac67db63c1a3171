"""The array methods of tensors: `x.sum()`, with ndarray's names and arguments.

Imports: the modules of the functions behind them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from graphc.node import METHODS, Tensor
from graphc.ops.arithmetic import astype
from graphc.ops.arrange import swapaxes
from graphc.ops.diagonal import diagonal, trace
from graphc.ops.einsum import dot
from graphc.ops.indexed import take
from graphc.ops.join import repeat
from graphc.ops.logic import clip
from graphc.ops.math import round
from graphc.ops.reduce import all, any, argmax, argmin, max, mean, min, prod, sum
from graphc.ops.shape import expand_dims, reshape, squeeze, transpose
from graphc.ops.statistics import cumprod, cumsum, std, var


def _listed(values: tuple[Any, ...]) -> Any:
    """`x.reshape(2, 3)` and `x.reshape((2, 3))` mean the same."""
    return values[0] if len(values) == 1 and not isinstance(values[0], int) else values


def _reshape(x: Tensor, *shape: Any) -> Tensor:
    return reshape(x, _listed(shape))


def _transpose(x: Tensor, *axes: Any) -> Tensor:
    order: Sequence[int] | None = _listed(axes) if axes else None
    return transpose(x, order)


def _flatten(x: Tensor) -> Tensor:
    return reshape(x, (-1,))


METHODS.update(
    all=all,
    any=any,
    argmax=argmax,
    argmin=argmin,
    astype=astype,
    clip=clip,
    cumprod=cumprod,
    cumsum=cumsum,
    diagonal=diagonal,
    dot=dot,
    expand_dims=expand_dims,
    flatten=_flatten,
    max=max,
    mean=mean,
    min=min,
    prod=prod,
    ravel=_flatten,
    repeat=repeat,
    reshape=_reshape,
    round=round,
    squeeze=squeeze,
    std=std,
    sum=sum,
    swapaxes=swapaxes,
    take=take,
    trace=trace,
    transpose=_transpose,
    var=var,
)
