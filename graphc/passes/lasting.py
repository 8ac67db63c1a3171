"""What of a program stays the same from run to run, as long as its variables do.

Imports: operands, kernel, program, node.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from graphc.kernel import sizes_of
from graphc.node import Node, Tensor
from graphc.program import Program

if TYPE_CHECKING:
    from graphc.passes.operands import LoweredStep, Value

FIXED = ("constant", "random_key")
"""Leaves whose value is known and lies in memory."""


def lasting_variables(program: Program) -> set[int]:
    """The variables, by id of their tensors, that stay as they are in a run of the program.

    A program that is fed nothing has none: all of it follows from its state, and who runs it again
    wants it done again.
    """
    if not program.inputs:
        return set()
    written = {id(v) for v, _ in program.updates}
    return {id(v) for v in program.variables() if id(v) not in written}


def lasting_first(program: Program) -> list[Node]:
    """The program's nodes, each after its inputs; first those that follow from what lasts alone.

        before:  %c = conv(%x, %k)  %s = rsqrt(%variance)  %y = %c * %s
        after:   %s = rsqrt(%variance)  %c = conv(%x, %k)  %y = %c * %s

    So what is made of fed values is always the later, and joins other such work: the product above
    is made where the convolution is.
    """
    variables = lasting_variables(program)
    changing = {id(t) for t in program.inputs}
    first: list[Node] = []
    rest: list[Node] = []
    for node in program.order():
        state = node.op.name == "variable"
        lasts = (
            id(node.outputs[0]) in variables
            if state
            else not any(id(t) in changing for t in (*node.inputs, *node.outputs))
        )
        if lasts:
            first.append(node)
        else:
            rest.append(node)
            changing.update(map(id, node.outputs))
    return [*first, *rest] if program.inputs else program.order()


def lasting_values(program: Program, steps: Sequence[LoweredStep]) -> set[int]:
    """What lasts of all that steps read, by id: leaves, and what steps make of these alone.

    A step that may fail, or whose sizes are not known, makes what it makes in every run.
    """
    if not program.inputs:
        return set()
    found = lasting_variables(program)
    for s in steps:
        read = [v for j, v in enumerate(s.args) if j not in s.writes]
        found.update(id(v) for v in read if is_fixed(v))
        if all(id(v) in found for v in read) and follows(s):
            found.update(id(s.args[w]) for w in s.writes)
    return found


def follows(step: LoweredStep) -> bool:
    """Whether what a step makes follows from what it reads, whatever is fed."""
    return not step.checks and not any(map(sizes_of, step.kernels))


def is_fixed(value: Value) -> bool:
    """Whether a value is known before any run, and in memory."""
    return isinstance(value, Tensor) and value.node.op.name in FIXED
