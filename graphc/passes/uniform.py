"""Uniform values: known before the run and equal everywhere, so never kernels of their own.

Constants with one value, sizes, and arithmetic on them become expressions inside the kernels that
use them.  Imports: graph, kernel, passes.views, ops.
"""

from __future__ import annotations

import numpy as np

from graphc.kernel import Expr
from graphc.node import Tensor
from graphc.ops.define import ScalarBuilder
from graphc.passes.views import Views

MAX_DEPTH = 24
"""Longer chains of arithmetic on uniform values become kernels: expressions stay shallow."""


class Uniforms:
    """Finds the expression of a uniform tensor.  Ask in topological order: answers are kept."""

    def __init__(self) -> None:
        self._found: dict[int, Expr | None] = {}
        self._depth: dict[int, int] = {}

    def of(self, t: Tensor, views: Views) -> Expr | None:
        """The expression of t's one value, or None when t is not uniform."""
        key = id(t)
        if key in self._found:
            return self._found[key]
        found = self._found[key] = self._find(t, views)
        return found

    def _find(self, t: Tensor, views: Views) -> Expr | None:
        node = t.node
        if node.op.name == "constant":
            return constant_expr(t)
        if node.op.name == "sizes":
            d = node.attrs["dims"]
            return None if isinstance(d, tuple) else Expr("size", (), d, t.dtype)
        if node.kind == "view":
            return self.of(node.inputs[0], views)
        if node.kind != "elementwise" or node.op.stateful or t.dims != ():
            return None
        inputs = [self.of(i, views) for i in node.inputs]
        depth = 1 + max([self._depth.get(id(i), 0) for i in node.inputs], default=0)
        if not inputs or any(i is None for i in inputs) or depth > MAX_DEPTH:
            return None
        self._depth[id(t)] = depth
        scalars = ScalarBuilder()
        made = node.op.lower(scalars, *inputs, **node.attrs)
        return None if scalars.checks else made


def constant_expr(t: Tensor) -> Expr | None:
    """A constant whose elements are all the same number, as an expression."""
    array = t.node.attrs["value"].array
    if array.size == 0:
        return None
    first = array.reshape(-1)[0]
    if array.size > 1:
        bits = array.reshape(-1).view(np.uint8).reshape(array.size, -1)
        if not (bits == bits[0]).all():
            return None
    return Expr("const", (), first.item(), t.dtype)
