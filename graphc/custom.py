"""Gradients of the user's own: `custom_gradient`, `gradient_override`, and barriers built on them.

Imports: graph, ops, errors.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from graphc.errors import GradientError, GraphTypeError
from graphc.graph import get_default_graph, make
from graphc.node import Attrs, Tensor
from graphc.ops.arithmetic import maximum, minimum
from graphc.ops.define import as_tensor, constant, op
from graphc.ops.shape import broadcast_like
from graphc.ops.state import stop_gradient
from graphc.types import TensorType

__all__ = [
    "custom_gradient",
    "disconnected_grad",
    "grad_clip",
    "grad_scale",
    "gradient_override",
    "zero_grad",
]

# ---- custom_gradient ---------------------------------------------------------------------------
# Inputs are the results, then the arguments; outputs are the results.  The node exists for the
# differentiator only: resolving state replaces its outputs by its first inputs.


def _infer_custom(types: Sequence[TensorType], attrs: Attrs) -> tuple[TensorType, ...]:
    return tuple(types[: attrs["results"]])


def _custom_vjp(y: Any, g: Any, *inputs: Tensor) -> list[Tensor | None]:
    ys: tuple[Tensor, ...] = y if isinstance(y, tuple) else (y,)
    gs = g if isinstance(g, tuple) else (g,)
    attrs = ys[0].node.attrs
    arguments = inputs[len(ys) :]
    filled = [_zeros_like(t) if c is None else c for t, c in zip(ys, gs, strict=True)]
    found = attrs["grad"](*filled)
    listed = list(found) if isinstance(found, (list, tuple)) else [found]
    if len(listed) != len(arguments):
        raise GradientError(
            f"the gradient function of {attrs['name']!r} gave {len(listed)} gradients for "
            f"{len(arguments)} arguments"
        )
    cotangents = [None if c is None else as_tensor(c) for c in listed]
    return [None] * len(ys) + cotangents


def _zeros_like(t: Tensor) -> Tensor:
    return broadcast_like(constant(0, t.dtype), t)


_custom = op(
    "custom_gradient",
    "state",
    infer=_infer_custom,
    reference=None,
    vjp=_custom_vjp,
    stateful=True,
)


def custom_gradient(function: Callable[..., Any]) -> Callable[..., Any]:
    """Decorate `f(*tensors) -> (y, grad)` into `f(*tensors) -> y` with gradient `grad`.

    y     a tensor, or a tuple of tensors
    grad  (cotangent of each y) -> cotangent of each argument, or a sequence of them; written with
          graph operators, so it differentiates again
    What the function takes from outside its arguments counts as constant.
    """

    @functools.wraps(function)
    def wrapped(*arguments: Any) -> Any:
        xs = [as_tensor(a) for a in arguments]
        made = function(*xs)
        if not isinstance(made, tuple) or len(made) != 2 or not callable(made[1]):
            raise GraphTypeError(
                f"{_name(function)!r} must return (result, gradient function), not {made!r:.60}"
            )
        y, grad = made
        several = isinstance(y, (list, tuple))
        ys = [as_tensor(t) for t in y] if several else [as_tensor(y)]
        attrs = {"grad": grad, "results": len(ys), "name": _name(function)}
        outputs = make(_custom, [*ys, *xs], attrs).outputs
        return outputs if several else outputs[0]

    return wrapped


def _name(function: Callable[..., Any]) -> str:
    return str(getattr(function, "__name__", function))


def gradient_override(
    rules: Mapping[str, Callable[..., Any]],
) -> contextlib.AbstractContextManager[None]:
    """Operators made inside use these gradient rules: {operator name: vjp}.

    vjp  (y, g, *inputs) -> one cotangent or None per input
    """
    return get_default_graph().gradient_override(rules)


# ---- identities with another gradient ----------------------------------------------------------


def _with_gradient(x: Any, rule: Callable[[Tensor], Tensor]) -> Tensor:
    tensor = as_tensor(x)
    result: Tensor = custom_gradient(lambda t: (t, rule))(tensor)
    return result


def zero_grad(x: Any) -> Tensor:
    """x itself; its gradient is zero, and counts as connected."""
    return _with_gradient(x, _zeros_like)


def disconnected_grad(x: Any) -> Tensor:
    """x itself, taken as a constant by gradients."""
    result: Tensor = stop_gradient(x)
    return result


def grad_clip(x: Any, low: Any, high: Any) -> Tensor:
    """x itself; its gradient is clipped to [low, high], element by element."""
    return _with_gradient(x, lambda g: minimum(maximum(g, low), high))


def grad_scale(x: Any, factor: Any) -> Tensor:
    """x itself; its gradient is multiplied by `factor`."""
    return _with_gradient(x, lambda g: g * factor)
