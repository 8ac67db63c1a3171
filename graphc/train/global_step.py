"""The global step: one int64 variable per graph that counts updates.

Imports: ops.state, graph.
"""

from __future__ import annotations

import numpy as np

from graphc.errors import GraphError
from graphc.graph import get_default_graph
from graphc.ops.state import Variable

GLOBAL_STEP = "global_step"
"""The name of the variable, and the collection it is in."""


def get_global_step() -> Variable | None:
    """The default graph's global step, or None."""
    found = get_default_graph().get_collection(GLOBAL_STEP)
    step: Variable | None = found[0] if found else None
    return step


def create_global_step() -> Variable:
    """A new global step, starting at 0; raises GraphError if the graph has one."""
    if get_global_step() is not None:
        raise GraphError("the graph has a global step already")
    step = Variable(np.zeros((), np.int64), name=GLOBAL_STEP, trainable=False)
    get_default_graph().add_to_collection(GLOBAL_STEP, step)
    return step


def get_or_create_global_step() -> Variable:
    """The default graph's global step, made if it has none."""
    found = get_global_step()
    return create_global_step() if found is None else found


__all__ = ["create_global_step", "get_global_step", "get_or_create_global_step"]
