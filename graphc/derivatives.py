"""Derivatives in Theano's words: `grad` of a scalar cost, `jacobian`, `hessian`, `subgraph_grad`.

Imports: passes.differentiate, custom, ops, errors.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from graphc.errors import GradientError
from graphc.graph import get_default_graph
from graphc.node import Tensor, describe
from graphc.ops.define import constant
from graphc.ops.join import stack
from graphc.ops.shape import reshape
from graphc.passes.differentiate import gradients, zeros_for

__all__ = ["grad", "hessian", "jacobian", "subgraph_grad"]


def grad(
    cost: Tensor | None,
    wrt: Any,
    consider_constant: Sequence[Tensor] | None = None,
    disconnected_inputs: str = "raise",
    known_grads: Mapping[Tensor, Any] | None = None,
    return_disconnected: str = "zero",
) -> Any:
    """The gradient of a scalar `cost`: a tensor for one `wrt`, a list for a list.

    consider_constant    tensors taken as constants
    disconnected_inputs  what to do for a wrt that the cost does not depend on: 'raise'
                         (GradientError), 'warn' or 'ignore'
    known_grads          {tensor: its gradient}, besides or in place of the cost
    return_disconnected  'zero' or 'none': what stands for a disconnected gradient
    Raises GradientError (a TypeError) for a cost that is not a scalar of a floating dtype.
    """
    _choice("disconnected_inputs", disconnected_inputs, ("raise", "warn", "ignore"))
    _choice("return_disconnected", return_disconnected, ("zero", "none"))
    if cost is not None and cost.ndim != 0:
        raise GradientError(f"the cost must be a scalar, not {describe(cost)}")
    known = dict(known_grads or {})
    if cost is None and not known:
        raise GradientError("grad needs a cost or known_grads")
    listed = list(wrt) if isinstance(wrt, (list, tuple)) else [wrt]
    ys = ([cost] if cost is not None else []) + list(known)
    weights = ([None] if cost is not None else []) + list(known.values())
    found: list[Tensor | None] = list(
        gradients(ys, listed, weights, stop_gradients=consider_constant)
    )
    for i, (x, g) in enumerate(zip(listed, found, strict=True)):
        if g is not None or not x.dtype.is_float:
            continue
        text = f"the cost does not depend on {describe(x)}"
        if disconnected_inputs == "raise":
            raise GradientError(text)
        if disconnected_inputs == "warn":
            warnings.warn(text, stacklevel=2)
        if return_disconnected == "zero":
            found[i] = zeros_for(x)
    return found if isinstance(wrt, (list, tuple)) else found[0]


def _choice(name: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        raise GradientError(f"{name} is one of {', '.join(map(repr, known))}, not {value!r}")


def subgraph_grad(
    wrt: Sequence[Tensor],
    end: Sequence[Tensor],
    start: Mapping[Tensor, Any] | None = None,
    cost: Tensor | None = None,
) -> tuple[list[Tensor | None], list[Tensor | None]]:
    """Gradients from `cost` and known gradients `start` back to `wrt` and `end`, no further.

    Returns those of `wrt` and those of `end`, which a call further back takes as its `start`.
    """
    known = dict(start or {})
    ys = ([cost] if cost is not None else []) + list(known)
    weights = ([None] if cost is not None else []) + list(known.values())
    found = gradients(ys, [*wrt, *end], weights)
    return found[: len(wrt)], found[len(wrt) :]


def jacobian(y: Tensor, wrt: Any) -> Any:
    """dy/dx for every pair of elements, of shape y.shape + x.shape; row by row.

    Raises GradientError while the size of y is not known: each element is a gradient of its own.
    """
    listed = list(wrt) if isinstance(wrt, (list, tuple)) else [wrt]
    shape = y.type.shape
    if shape is None or not y.type.is_static:
        raise GradientError(f"jacobian needs a tensor of known shape, not {describe(y)}")
    with get_default_graph().name_scope("jacobian"):
        rows = [gradients(y, listed, unit, unconnected_gradients="zero") for unit in _units(y)]
        made = [_stacked([row[k] for row in rows], y, x) for k, x in enumerate(listed)]
    return made if isinstance(wrt, (list, tuple)) else made[0]


def _units(y: Tensor) -> Iterator[Tensor]:
    """For each element of y, ones there and zeros elsewhere."""
    shape = tuple(int(str(d)) for d in y.dims)
    for index in np.ndindex(*shape):
        unit = np.zeros(shape, y.dtype.numpy)
        unit[index] = 1
        yield constant(unit)


def _stacked(rows: Sequence[Tensor | None], y: Tensor, x: Tensor) -> Tensor:
    known = [row for row in rows if row is not None]
    if not known:
        raise GradientError(f"jacobian of {describe(y)}, which has no elements")
    return reshape(stack(known, 0), (*y.dims, *x.dims))


def hessian(cost: Tensor, wrt: Any) -> Any:
    """d²cost / dx², of shape x.shape + x.shape, for a scalar cost and each x."""
    listed = list(wrt) if isinstance(wrt, (list, tuple)) else [wrt]
    made = [jacobian(grad(cost, x), x) for x in listed]
    return made if isinstance(wrt, (list, tuple)) else made[0]
