"""Compute what does not depend on feeds or state while compiling.

    before:  %a = constant() {value=f32[2](1, 2)}      after:  %b = constant() {value=f32[2](2, 4)}
             %b = add(%a, %a)

A value is computed by its operator's NumPy meaning.  Nothing grows: a result is folded if it is no
larger than its operands together, or small.  An operation that fails is left, to fail when run.
Keeps: values.  Imports: rewrite, graph, program, types.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from graphc.dims import static_product
from graphc.errors import RunError
from graphc.node import OPS, ConstantValue, Node, Tensor
from graphc.program import Program, has_dims
from graphc.rewrite import Match, apply_rules

SMALL = 1024
"""Elements of a result that may be larger than its operands."""

_FOLDABLE = ("elementwise", "view", "reduce", "contraction", "nest")


def fold_constants(program: Program) -> Program:
    """Replace every operation on constants by a constant."""
    return apply_rules(program, (), (folded,))


def folded(match: Match) -> Tensor | None:
    """The root as a constant, if all it depends on is constant."""
    node = match.root.node
    if node.op.name == "sizes" and not any(has_dims(v) for v in node.attrs.values()):
        return _constant(match, np.asarray(node.attrs["dims"], node.attrs["dtype"].numpy))
    if node.kind not in _FOLDABLE or not node.inputs or node.op.reference is None:
        return None
    if any(t.node.op.name != "constant" for t in node.inputs) or not _worth_folding(node):
        return None
    try:
        result = node.op.reference(node.attrs, *[t.node.attrs["value"].array for t in node.inputs])
    except RunError:
        return None
    return _constant(match, np.asarray(result).astype(match.root.dtype.numpy))


def _worth_folding(node: Node) -> bool:
    (out,) = node.types
    size = None if out.shape is None else static_product(out.shape)
    if size is None or any(has_dims(v) for v in node.attrs.values()):
        return False
    operands = sum(t.node.attrs["value"].array.size for t in node.inputs)
    # a repeated scalar is better known as one: rules look for it, kernels hold it in a register
    return size <= operands or (size <= SMALL and node.op.name != "broadcast_to")


def _constant(match: Match, array: np.ndarray[Any, Any]) -> Tensor:
    made = match.rewriter.builder.make(OPS["constant"], (), {"value": ConstantValue(array)})
    return made.outputs[0]
