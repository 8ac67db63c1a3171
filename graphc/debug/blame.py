"""A wrong kernel explained: was it lowered wrong, or was too much put into it?

The operators of its group are lowered once more, alone: the group without the rest of the program,
then each operator with the views it reads through.  Imports: program, passes, debug.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from graphc.builder import Builder, making_nodes_in
from graphc.debug.programs import described
from graphc.debug.report import Finding, FoundError
from graphc.debug.values import Samples
from graphc.errors import GraphcError
from graphc.node import Node, Tensor
from graphc.ops.state import placeholder_op
from graphc.passes.groups import Group
from graphc.program import Program, keep

Array = np.ndarray[Any, Any]
Check = Callable[[Program, Samples], None]
"""Raises FoundError if a program, alone, is lowered wrong."""


def blamed(finding: Finding, group: Group, samples: Samples, check: Check) -> Finding:
    """The finding about a kernel of `group`, with the pass and operator that are to blame."""
    try:
        return _blamed(finding, group, samples, check)
    except (GraphcError, LookupError, TypeError, ValueError, AssertionError):
        return finding  # what cannot stand alone cannot be judged alone


def _blamed(finding: Finding, group: Group, samples: Samples, check: Check) -> Finding:
    outputs = [t for t in group.members if t.node.kind not in ("leaf", "state")]
    if _is_right(outputs, outputs, samples, check):
        return replace(
            finding, message=f"{finding.message}; alone, its operators are lowered right"
        )
    for t in outputs:
        if not _is_right([t], [t], samples, check):
            return replace(finding, message=f"{finding.message}; {described(t)} is lowered wrong")
    if len(outputs) < 2:
        return finding
    message = f"{finding.message}; each of its operators is lowered right, but not together"
    return replace(finding, stage="fuse", message=message)


def _is_right(
    wanted: Sequence[Tensor], inside: Sequence[Tensor], samples: Samples, check: Check
) -> bool:
    """Whether the operators that make some tensors, cut off from others, are lowered right."""
    program, given = _cut(wanted, {t.node.id for t in inside}, samples)
    try:
        check(program, Samples(given, samples.base.state, samples.sizes))
    except FoundError:
        return False
    return True


def _cut(
    wanted: Sequence[Tensor], inside: set[int], samples: Samples
) -> tuple[Program, dict[Tensor, Array]]:
    """The program of these nodes and the views and constants they read; its inputs' values."""
    builder = Builder()
    new: dict[Tensor, Tensor] = {}
    given: dict[Tensor, Array] = {}
    with making_nodes_in(builder):
        for node in _order(wanted, inside):
            builder.loc = node.loc
            if node.id in inside or node.kind == "view" or _is_fixed(node):
                made = keep(node, [new[t] for t in node.inputs], builder)
            else:
                made = tuple(_input(t, builder) for t in node.outputs)
                given.update((m, samples.of(t)) for m, t in zip(made, node.outputs, strict=True))
            new.update(zip(node.outputs, made, strict=True))
    return Program(tuple(given), tuple(new[t] for t in wanted)), given


def _is_fixed(node: Node) -> bool:
    return not node.inputs and node.op is not placeholder_op and node.op.name != "variable"


def _input(t: Tensor, builder: Builder) -> Tensor:
    attrs = {"dtype": t.dtype, "shape": t.dims}
    return builder.make(placeholder_op, (), attrs, t.node.name or "value").outputs[0]


def _order(wanted: Sequence[Tensor], inside: set[int]) -> list[Node]:
    """The nodes to rebuild, each after what it needs."""
    order: list[Node] = []
    seen: set[int] = set()
    stack = [(t.node, False) for t in wanted]
    while stack:
        node, done = stack.pop()
        if done:
            order.append(node)
        elif node.id not in seen:
            seen.add(node.id)
            stack.append((node, True))
            if node.id in inside or node.kind == "view":
                stack.extend((t.node, False) for t in node.inputs)
    return order
