"""The reference back end: runs a program node by node with each operator's NumPy meaning.

Slow and obvious on purpose: it is the oracle for every pass and every other back end.  The one
back end that reads graph IR.  Imports: base, program, graph, dims, errors.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from graphc.backends.base import mark_committed, require_time
from graphc.dims import Sizes
from graphc.errors import RunError
from graphc.node import Node, Tensor
from graphc.program import Program, evaluate_attrs, has_dims
from graphc.trace import Trace

Array = np.ndarray[Any, Any]


def interpret(
    program: Program,
    inputs: Sequence[Array],
    state: Mapping[int, Array],
    sizes: Sizes,
    trace: Trace | None = None,
) -> tuple[list[Array], list[Array]]:
    """Values of the fetches, and the new value of each updated variable.

    `state` maps variable node ids to arrays.  Raises the RunError of a failed check with the
    user's line.
    """
    order = program.order()
    values: dict[int, Array] = {}
    for t, array in zip(program.inputs, inputs, strict=True):
        values[id(t)] = array
    pending = _uses(order)
    roots = {id(t) for t in program.roots}
    started = time.perf_counter()
    for node in order:
        if all(id(t) in values for t in node.outputs) and node.outputs:
            continue
        begun = time.perf_counter()
        results = evaluate(node, [values[id(t)] for t in node.inputs], state, sizes)
        if trace is not None:
            now = time.perf_counter()
            trace.add(node.op.name, begun - started, now - begun, 1, (node.loc,))
        for t, value in zip(node.outputs, results, strict=True):
            values[id(t)] = value
        for t in node.inputs:  # drop what nobody will read again
            pending[id(t)] -= 1
            if not pending[id(t)] and id(t) not in roots:
                del values[id(t)]
    fetched = [values[id(t)] for t in program.fetches]
    updated = [values[id(t)] for _, t in program.updates]
    return fetched, updated


def _uses(order: Sequence[Node]) -> dict[int, int]:
    count: dict[int, int] = {}
    for node in order:
        for t in node.inputs:
            count[id(t)] = count.get(id(t), 0) + 1
    return count


def evaluate(
    node: Node, inputs: Sequence[Array], state: Mapping[int, Array], sizes: Sizes
) -> tuple[Array, ...]:
    """One node's outputs in NumPy."""
    if node.op.name == "variable":
        return (state[node.id],)
    attrs = node.attrs
    if any(has_dims(v) for v in attrs.values()):
        attrs = evaluate_attrs(attrs, sizes)
    if node.op.name == "sizes":
        return (np.asarray(attrs["dims"], attrs["dtype"].numpy),)
    function: Callable[..., Any] | None = node.op.reference
    if function is None:
        raise RunError(f"{node.op.name} {node.name!r} cannot be evaluated ({node.loc})")
    try:
        result = function(attrs, *inputs)
    except RunError as error:
        raise type(error)(f"{node.title}: {error}\n  at {node.loc}   {node.loc.source}") from None
    results = result if len(node.types) > 1 else (result,)
    return tuple(_typed(node.outputs[i], value) for i, value in enumerate(results))


def _typed(t: Tensor, value: Any) -> Array:
    array = np.asarray(value)
    if array.dtype != t.dtype.numpy:
        array = array.astype(t.dtype.numpy)
    return array


def _commit(values: Sequence[tuple[Array, Array]]) -> None:
    """Set each first array to the second: all of them, whatever a signal handler raises."""
    interrupt: BaseException | None = None
    for _ in range(_COMMIT_TRIES):
        try:
            for variable, value in values:
                variable[...] = value
            break
        except BaseException as error:  # copying again does no harm
            interrupt = error
    if interrupt is not None:
        mark_committed(interrupt)
        raise interrupt


_COMMIT_TRIES = 100
"""More signals than this do not come while arrays are copied."""


class ReferenceExecutable:
    """A program run by `interpret`; see backends.base.Executable."""

    kept = ()
    residence = None

    def __init__(self, program: Program) -> None:
        self.program = program
        self.variables = program.variables()

    def run(
        self,
        inputs: Sequence[Array],
        state: Sequence[Array],
        sizes: Sizes,
        threads: int,
        trace: Trace | None = None,
        deadline: float | None = None,
        kept: Sequence[Array] = (),
    ) -> list[Array]:
        require_time(deadline)
        by_node = {v.node.id: a for v, a in zip(self.variables, state, strict=True)}
        fetched, updated = interpret(self.program, inputs, by_node, sizes, trace)
        copies = [np.array(a, order="C") for a in fetched]
        fresh = [np.array(a) for a in updated]
        require_time(deadline)
        variables = [by_node[v.node.id] for v, _ in self.program.updates]
        _commit(list(zip(variables, fresh, strict=True)))
        return copies

    def arena_bytes(self, sizes: Sizes) -> int:
        return 0
