"""What a user's graph means, run node by node without any pass: the state it starts from, the
order in which assignments count, the numbers it draws.

Written apart from `resolve_state`, which it judges.  Imports: node, program,
ops.random_bits, debug.values.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from graphc.debug.values import evaluate, widened
from graphc.dims import Sizes
from graphc.node import Node, Tensor, topological
from graphc.ops.random_bits import philox_words
from graphc.program import evaluate_attrs
from graphc.types import uint32

Array = np.ndarray[Any, Any]


def run_graph(
    fetches: Sequence[Tensor],
    targets: Sequence[Node],
    feeds: Mapping[Tensor, Array],
    state: Mapping[int, Array],
    sizes: Sizes,
) -> tuple[list[Array], dict[int, Array]]:
    """Values of the fetches, and the new value of each variable (by node id) that is assigned.

    Within a run a variable has the value from its start, but for `read_variable` nodes behind an
    assignment, which see what that one wrote.  Assignments count in the order they were made.
    Raises the RunError of a check that fails.
    """
    values: dict[Tensor, Array] = {t: widened(a) for t, a in feeds.items()}
    stop = {t.node.id for t in feeds if all(o in feeds for o in t.node.outputs)}
    order = topological([t.node for t in fetches] + list(targets), stop=stop)
    written: dict[int, Array] = {}  # variable -> what was assigned last
    result: dict[Node, Array] = {}  # assignment -> what it wrote
    behind: dict[int, dict[int, Node]] = {}  # node -> variable -> the last assignment before it
    for node in sorted((n for n in order if n.id not in stop), key=lambda n: n.id):
        seen: dict[int, Node] = {}
        for parent in [t.node for t in node.inputs] + list(node.control):
            for written_to, assignment in behind.get(parent.id, {}).items():
                if written_to not in seen or seen[written_to].id < assignment.id:
                    seen[written_to] = assignment
        if node.op.name == "assign":
            variable, value = node.inputs
            key = variable.node.id
            new = _assigned(node, values[value], written.get(key, values[variable]))
            written[key] = result[node] = new
            seen[key] = node
            outputs: Sequence[Array] = (new,)
        elif node.op.name == "read_variable":
            (variable,) = node.inputs
            before = seen.get(variable.node.id)
            outputs = (values[variable] if before is None else result[before],)
        elif node.kind == "random":
            outputs = (_drawn(node, state, sizes, written),)
        elif node.op.name == "group":
            outputs = ()
        elif node.op.name == "custom_gradient":
            outputs = [values[t] for t in node.inputs[: len(node.outputs)]]
        else:
            outputs = evaluate(node, [values[t] for t in node.inputs], state, sizes)
        behind[node.id] = seen
        for t, array in zip(node.outputs, outputs, strict=True):
            values.setdefault(t, array)
    return [values[t] for t in fetches], written


def _assigned(node: Node, value: Array, latest: Array) -> Array:
    how = node.attrs["how"]
    if how == "set":
        return value
    with np.errstate(all="ignore"):
        return np.asarray(latest + value if how == "add" else latest - value)


def _drawn(
    node: Node, state: Mapping[int, Array], sizes: Sizes, written: dict[int, Array]
) -> Array:
    """Random bits: a function of the counter this run starts from, which it advances by one."""
    assert node.graph is not None and node.graph.random_counter is not None
    counter = node.graph.random_counter
    start = state[counter.node.id]
    written[counter.node.id] = np.asarray(start + np.uint64(1)).astype(start.dtype)
    attrs = evaluate_attrs(node.attrs, sizes)
    counted = start % np.uint64(2**32) if attrs["seeded"] else start
    positions = np.arange(math.prod(attrs["shape"]), dtype=np.uint64)
    words = philox_words(positions, counted, np.uint64(attrs["key"]))
    part = attrs["part"]
    if attrs["dtype"] is uint32:
        bits = words[part].astype(np.uint32)
    else:
        bits = words[2 * part] | (words[2 * part + 1] << np.uint64(32))
    return np.asarray(bits.reshape(attrs["shape"]))
