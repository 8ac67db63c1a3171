"""Exponential moving averages of variables and tensors, often better to test with than the last.

Imports: ops, graph, errors.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from graphc.errors import GraphTypeError
from graphc.graph import get_default_graph
from graphc.node import Node, Tensor, describe
from graphc.ops.arithmetic import astype, minimum
from graphc.ops.define import as_tensor
from graphc.ops.shape import broadcast_to
from graphc.ops.state import Variable, group, trainable_variables
from graphc.types import float32


class ExponentialMovingAverage:
    """shadow -= (1 - decay) * (shadow - value), once for each run of `apply`'s operation.

    num_updates  a step count: then the decay is min(decay, (1 + n) / (10 + n)), so that averages
                 move fast at first
    The shadow of a variable starts at the variable's initial value, that of a tensor at zero.
    """

    def __init__(
        self, decay: float, num_updates: Any = None, name: str = "ExponentialMovingAverage"
    ) -> None:
        self.decay = decay
        self.num_updates = num_updates
        self.name = name
        self._shadows: dict[Tensor, Variable] = {}

    def apply(self, values: Sequence[Tensor] | None = None) -> Node:
        """One operation that updates the averages of `values` (default: trainable variables)."""
        listed = trainable_variables() if values is None else list(values)
        graph = get_default_graph()
        with graph.control_dependencies(None):  # initializing must not wait for a step
            for value in listed:
                self._make_shadow(value)
        with graph.name_scope(self.name):
            keep = self._decay()
            updates = []
            for value in listed:
                shadow = self._shadows[value]
                difference = shadow.current() - as_tensor(value)
                updates.append(shadow.assign_sub((1.0 - astype(keep, value.dtype)) * difference))
            return group(*updates, name="update")

    def average(self, value: Tensor) -> Variable | None:
        """The variable that holds the average of a value given to `apply`, or None."""
        return self._shadows.get(value)

    def _decay(self) -> Tensor:
        decay = as_tensor(self.decay, float32)
        if self.num_updates is None:
            return decay
        n = astype(as_tensor(self.num_updates), float32)
        return minimum(decay, (1.0 + n) / (10.0 + n))

    def _make_shadow(self, value: Tensor) -> None:
        if not value.dtype.is_float:
            raise GraphTypeError(f"{self.name}: {describe(value)} is not of a float dtype")
        if value in self._shadows:
            raise GraphTypeError(f"{self.name}: {describe(value)} is averaged already")
        if isinstance(value, Variable):
            start = value.initial_value
        else:
            start = broadcast_to(as_tensor(0, value.dtype), value.dims)
        self._shadows[value] = Variable(
            start, name=f"{value.node.name}/{self.name}", trainable=False
        )


__all__ = ["ExponentialMovingAverage"]
