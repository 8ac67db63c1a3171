"""Shared variables, in Theano's way, and the session they live in outside of any other.

Imports: session, graph, ops.state.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from graphc.forks import new_rlock
from graphc.graph import Graph
from graphc.node import Tensor, topological
from graphc.ops.state import Variable, graph_of
from graphc.session import Session, get_default_session

__all__ = ["SharedVariable", "initialize", "session_of", "shared"]

Array = np.ndarray[Any, Any]

_lock = new_rlock()


def session_of(graph: Graph) -> Session:
    """The default session if it runs `graph`, else the one the graph keeps for its functions."""
    entered = get_default_session()
    if entered is not None and entered.graph is graph:
        return entered
    if graph.function_session is None:
        with _lock:
            if graph.function_session is None:
                graph.function_session = Session(graph)
    session: Session = graph.function_session
    return session


def initialize(session: Session, variables: Iterable[Tensor]) -> None:
    """Give each variable that has no value in the session its initial value."""
    missing = [v for v in variables if isinstance(v, Variable) and v not in session.variables]
    if not missing:
        return
    with _lock:  # a second thread must not set what the first has begun to update
        _initialize(session, [v for v in missing if v not in session.variables])


def _initialize(session: Session, missing: Sequence[Variable]) -> None:
    needed = [v.initial_value.node for v in missing] + [v.node for v in missing]
    for node in sorted(topological(needed), key=lambda n: n.id):
        v = node.outputs[0] if node.op.name == "variable" else None
        if isinstance(v, Variable) and v not in session.variables:
            session.run(v.initializer)


class SharedVariable(Variable):
    """A variable read and set without a session at hand: see `session_of`.

    default_update  if set, the new value that every function using the variable gives it, unless
                    its own updates say otherwise; bound when the function is made
    """

    __slots__ = ("default_update",)

    def __init__(self, value: Any, name: str | None = None, dtype: Any = None) -> None:
        self.default_update: Any = None
        super().__init__(value, name or "shared", dtype=dtype)

    def get_value(self, borrow: bool = False) -> Array:
        """A copy of the value (`borrow` is accepted and not used)."""
        session = session_of(graph_of([self]))
        initialize(session, [self])
        return session.get_value(self)

    def set_value(self, value: Any, borrow: bool = False) -> None:
        """Set the value from an array, which is copied."""
        session_of(graph_of([self])).set_value(self, value)


def shared(value: Any, name: str | None = None, borrow: bool = False) -> SharedVariable:
    """A variable with `get_value`, `set_value` and `default_update`; `value` is copied."""
    return SharedVariable(value, name)
