"""What of a program stays the same from run to run, as long as its variables do.

Imports: program, node.
"""

from __future__ import annotations

from graphc.node import Node
from graphc.program import Program


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
