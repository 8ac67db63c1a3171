"""Gradient rules checked: each against numeric differentiation of its operator's meaning.

For an operator y = f(x), a random cotangent g and a random direction v, what the rule says of
<g, df(x) v> is compared with the difference quotient of <g, f(x)> along v, all in float64.
Imports: graph, program, passes.differentiate, passes.specialise, debug.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from graphc.debug.programs import described
from graphc.debug.report import Finding, FoundError
from graphc.debug.values import Difference, Samples, Values, evaluate
from graphc.errors import GradientError, RunError
from graphc.graph import Graph
from graphc.node import Node, Tensor
from graphc.ops.state import placeholder
from graphc.passes.differentiate import gradients
from graphc.program import Program, evaluate_attrs
from graphc.types import float64

Array = np.ndarray[Any, Any]

STEPS = (1e-6, 1e-5, 1e-7, 1e-4)
"""Steps of the difference quotient, relative to the operand; one that agrees will do."""

TOLERANCE = 2e-4

DIRECTIONS = 2

_SKIPPED = ("leaf", "state", "random")


def check_gradients(program: Program, samples: Samples) -> int:
    """Raise FoundError at the first operator whose gradient rule is wrong; how many were tried.

    Each operator is tried once for each kind of operands and attributes it has in the program.
    """
    tried: set[Any] = set()
    for node in program.order():
        if node.op.vjp is None or node.kind in _SKIPPED or node.op.reference is None:
            continue
        if not any(t.dtype.is_float for t in node.inputs) or not node.types[0].dtype.is_float:
            continue
        key = (
            node.op,
            tuple(t.type for t in node.inputs),
            repr(sorted(node.attrs.items(), key=str)),
        )
        if key in tried:
            continue
        tried.add(key)
        _check_rule(node, [samples.of(t) for t in node.inputs], samples.sizes)
    return len(tried)


def _check_rule(node: Node, arrays: Sequence[Array], sizes: Any) -> None:
    wide = [np.asarray(a) for a in arrays]
    rng = np.random.default_rng(node.id % 1000)
    points = [_nearby(a, rng) for a in wide]
    try:
        outputs = evaluate(node, points, {}, sizes)
    except RunError:
        points, outputs = wide, evaluate(node, wide, {}, sizes)
    weights = [np.asarray(rng.standard_normal(y.shape)) for y in outputs]
    rules = _pulled_back(node, points, weights, sizes)
    for i, (t, pulled) in enumerate(zip(node.inputs, rules, strict=True)):
        if not t.dtype.is_float or pulled is None or not np.isfinite(pulled).all():
            continue
        for _ in range(DIRECTIONS):
            direction = np.asarray(rng.standard_normal(points[i].shape))
            claimed = float(np.sum(pulled * direction))
            size = float(np.sum(np.abs(pulled * direction)))
            wrong = _numerically(node, points, i, direction, weights, sizes, claimed, size)
            if wrong is not None:
                message = f"the gradient rule of {node.op.name} is wrong for operand {i}"
                difference = Difference((), wrong, claimed, 1, 1)
                raise FoundError(
                    Finding(
                        "gradients",
                        message,
                        node.op.name,
                        described(node.outputs[0]),
                        (node.loc,),
                        difference,
                        node,
                    )
                )


def _nearby(x: Array, rng: np.random.Generator) -> Array:
    """x moved a little, so that no two elements are equal by chance."""
    if x.dtype.kind != "f":
        return x
    return np.asarray(x * (1 + 1e-3 * rng.uniform(-1, 1, x.shape)))


def _pulled_back(
    node: Node, points: Sequence[Array], weights: Sequence[Array], sizes: Any
) -> list[Array | None]:
    """What the rule gives for each operand, in float64."""
    with Graph().as_default() as graph:
        inputs = [
            placeholder(float64 if t.dtype.is_float else t.dtype, a.shape)
            for t, a in zip(node.inputs, points, strict=True)
        ]
        attrs = evaluate_attrs(node.attrs, sizes)
        attrs = {
            k: float64 if v is node.inputs[0].dtype and node.op.name == "astype" else v
            for k, v in attrs.items()
        }
        made = graph.make(node.op, inputs, attrs)
        seeds = [placeholder(float64, w.shape) for w in weights]
        floats = [t for t in inputs if t.dtype.is_float]
        try:
            found = gradients(list(made.outputs), floats, grad_ys=seeds)
        except GradientError:
            return [None] * len(inputs)
    given = dict(zip([*inputs, *seeds], [*points, *weights], strict=True))
    values = Values(given, {}, sizes)
    by_input: dict[Tensor, Array | None] = {
        t: None if g is None else values.of(g) for t, g in zip(floats, found, strict=True)
    }
    return [by_input.get(t) for t in inputs]


def _numerically(
    node: Node,
    points: Sequence[Array],
    operand: int,
    direction: Array,
    weights: Sequence[Array],
    sizes: Any,
    claimed: float,
    size: float,
) -> float | None:
    """The derivative by difference quotients if no step size agrees with the claim, else None."""
    scale = float(np.mean(np.abs(points[operand]))) if points[operand].size else 1.0
    central = 0.0

    def along(step: float) -> float:
        moved = list(points)
        moved[operand] = points[operand] + step * direction
        outputs = evaluate(node, moved, {}, sizes)
        terms = [np.sum(w * y) for w, y in zip(weights, outputs, strict=True)]
        return float(np.sum(terms))

    for relative in STEPS:
        step = relative * max(scale, 1e-3)
        try:
            ahead, here, behind = along(step), along(0.0), along(-step)
        except RunError:
            continue
        central = (ahead - behind) / (2 * step)
        if not np.isfinite(central):
            return None
        sides = sorted([(ahead - here) / step, (here - behind) / step])
        noise = 1e-15 * max(abs(ahead), abs(behind)) / step
        slack = TOLERANCE * max(size, abs(central)) + 8 * noise + 1e-9
        if sides[0] - slack <= claimed <= sides[1] + slack:
            return None
    return central
