"""The optimizer: from a loss to one operation that updates the trainable variables.

An update is ordinary graph code, so it is fused like any other.  All updates of a run read the
values from the start of the run.  Imports: ops, passes.differentiate, graph, errors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from graphc.errors import GradientError, GraphTypeError
from graphc.graph import get_default_graph
from graphc.node import Node, Tensor
from graphc.ops.arithmetic import astype
from graphc.ops.define import as_tensor, constant
from graphc.ops.shape import broadcast_to
from graphc.ops.state import Variable, group, trainable_variables
from graphc.passes.differentiate import gradients
from graphc.train.global_step import get_global_step
from graphc.types import float32

GradientPair = tuple[Tensor | None, Variable]
LearningRate = float | Tensor | Callable[[Tensor], Tensor]


class Optimizer:
    """Updates variables along the gradient of a loss.

    learning_rate  a number, a scalar tensor (such as a schedule), or a function from the global
                   step to one
    A variable's `lr_mult` multiplies its learning rate; with 0 it gets no update at all.
    Operations in the collection UPDATE_OPS, such as the moving averages of `batch_norm`, are not
    run by the update: make it inside `graph.control_dependencies(updates)`, or run them too.
    """

    def __init__(self, learning_rate: LearningRate, name: str) -> None:
        if not isinstance(learning_rate, (int, float, Tensor)) and not callable(learning_rate):
            raise GraphTypeError(f"{name}: not a learning rate: {learning_rate!r}")
        self.learning_rate = learning_rate
        self.name = name
        self._slots: dict[str, dict[Variable, Variable]] = {}
        self._step: Tensor | None = None

    # ---- what users call

    def minimize(
        self,
        loss: Tensor,
        global_step: Variable | None = None,
        var_list: Sequence[Variable] | None = None,
        grad_loss: Any = None,
        name: str | None = None,
    ) -> Node:
        """One operation that updates `var_list` (default: all trainable variables).

        global_step is counted up by it.  Raises GradientError if the loss depends on none of them.
        """
        pairs = self.compute_gradients(loss, var_list, grad_loss)
        return self.apply_gradients(pairs, global_step, name)

    def compute_gradients(
        self, loss: Tensor, var_list: Sequence[Variable] | None = None, grad_loss: Any = None
    ) -> list[GradientPair]:
        """(gradient, variable) pairs; None for a variable that is frozen or not reached."""
        if not isinstance(loss, Tensor):
            raise GraphTypeError(f"{self.name}: the loss is a tensor, not {loss!r:.60}")
        variables = trainable_variables() if var_list is None else list(var_list)
        for v in variables:
            if not isinstance(v, Variable):
                raise GraphTypeError(f"{self.name}: not a variable: {v!r}")
        moving = [v for v in variables if v.lr_mult != 0]
        found = dict(zip(moving, gradients(loss, moving, grad_ys=grad_loss), strict=True))
        return [(found.get(v), v) for v in variables]

    def apply_gradients(
        self,
        grads_and_vars: Iterable[GradientPair],
        global_step: Variable | None = None,
        name: str | None = None,
    ) -> Node:
        """One operation that updates each variable with its gradient and counts the step up."""
        pairs = [(g, v) for g, v in grads_and_vars if g is not None and v.lr_mult != 0]
        if not pairs:
            raise GradientError(f"{self.name}: no variable has a gradient")
        variables = [v for _, v in pairs]
        if len(set(variables)) != len(variables):
            raise GradientError(f"{self.name}: a variable is listed twice")
        graph = get_default_graph()
        with graph.control_dependencies(None):  # initializing a slot must not wait for a step
            self.create_slots(variables)
        with graph.name_scope(name or self.name):
            updates: list[Any] = self.prepare(variables)
            rate = self._rate(global_step)
            for g, v in pairs:
                updates.extend(self.update(g, v, self._rate_of(rate, v)))
            if global_step is not None:
                updates.append(global_step.assign_add(1))
            return group(*updates, name="update")

    def get_slot(self, variable: Variable, name: str) -> Variable | None:
        """The optimizer's state `name` for a variable, or None if it has none."""
        return self._slots.get(name, {}).get(variable)

    def get_slot_names(self) -> list[str]:
        return sorted(self._slots)

    def variables(self) -> list[Variable]:
        """Every variable that this optimizer made."""
        return [v for slot in self._slots.values() for v in slot.values()]

    # ---- what an optimizer defines

    def create_slots(self, variables: Sequence[Variable]) -> None:
        """Make the state that updates of `variables` need."""

    def prepare(self, variables: Sequence[Variable]) -> list[Tensor]:
        """Make the tensors that all updates share; returns updates of shared state."""
        return []

    def update(self, g: Tensor, v: Variable, rate: Tensor) -> list[Tensor]:
        """The assignments that move v; `rate` is a scalar of v's dtype, lr_mult included."""
        raise NotImplementedError

    # ---- parts of an optimizer

    def slot(self, variable: Variable, name: str, value: float = 0.0) -> Variable:
        """The state `name` of a variable, called '<variable>/<name>'; made if there is none."""
        made = self._slots.setdefault(name, {})
        if variable not in made:
            start = constant(value, variable.dtype)
            made[variable] = Variable(
                lambda: broadcast_to(start, variable.dims),
                name=f"{variable.node.name}/{name}",
                trainable=False,
            )
        return made[variable]

    def _rate(self, global_step: Variable | None) -> Tensor | float:
        rate = self.learning_rate
        if isinstance(rate, (int, float, Tensor)):
            return rate
        step = global_step if global_step is not None else get_global_step()
        if step is None:
            raise GraphTypeError(
                f"{self.name}: a learning rate that is a function of the global "
                "step needs minimize(loss, global_step=...)"
            )
        return as_tensor(rate(step))

    def _rate_of(self, rate: Tensor | float, v: Variable) -> Tensor:
        if not isinstance(rate, Tensor):
            return constant(rate * v.lr_mult, v.dtype)
        scaled = rate if v.lr_mult == 1 else astype(rate, float32) * v.lr_mult
        return astype(scaled, v.dtype)


__all__ = ["Optimizer"]
