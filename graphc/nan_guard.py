"""The NaN guard: a program whose fetches and updates must be finite, and where one went wrong.

    before:  fetch %l: f32[] = log(%x)
    after:   fetch %c: f32[] = check_finite(%l)
Keeps: values.  Imports: program, ops, backends.reference, errors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from graphc.backends.reference import evaluate
from graphc.builder import Builder, making_nodes_in
from graphc.dims import Sizes
from graphc.errors import NonFiniteError, RunError
from graphc.node import Node, Tensor
from graphc.ops.check import check_finite
from graphc.program import Program

Array = np.ndarray[Any, Any]


def guard(program: Program) -> Program:
    """The program with every floating fetch and update checked."""
    builder = Builder()

    def checked(t: Tensor) -> Tensor:
        if not t.dtype.is_float:
            return t
        builder.loc = t.node.loc
        result: Tensor = check_finite(t)
        return result

    with making_nodes_in(builder):
        return replace(
            program,
            fetches=tuple(checked(t) for t in program.fetches),
            updates=tuple((v, checked(t)) for v, t in program.updates),
        )


def located(
    error: NonFiniteError,
    program: Program,
    inputs: Sequence[Array],
    state: Mapping[int, Array],
    sizes: Sizes,
) -> RunError:
    """The error of the first operator whose result is not finite though its operands are.

    Runs the program again node by node, which costs a slow run and needs no checks in the code.
    `error` itself if nothing of the kind is found.
    """
    values = {id(t): a for t, a in zip(program.inputs, inputs, strict=True)}
    fed = {t.node.id for t in program.inputs}
    for node in program.order():
        operands = [] if node.id in fed else [values[id(t)] for t in node.inputs]
        if node.id not in fed:
            results = evaluate(node, operands, state, sizes)
            values.update((id(t), a) for t, a in zip(node.outputs, results, strict=True))
        for t in node.outputs:
            if t.dtype.is_float and not np.isfinite(values[id(t)]).all():
                return NonFiniteError(_message(node, values[id(t)], operands))
    return error


def _message(node: Node, array: Array, operands: Sequence[Array]) -> str:
    flat = int(np.argmin(np.isfinite(array)))
    index = tuple(int(i) for i in np.unravel_index(flat, array.shape))
    name = f"{node.op.name} {node.name!r}" if node.name else node.op.name
    verb = "is" if node.op.kind in ("leaf", "state") else "gave"
    where = f" at index {index}" if array.ndim else ""
    lines = [f"{name} {verb} {array[index]}{where}"]
    lines.append(f"  at {node.loc}   {node.loc.source}".rstrip())
    for i, (t, x) in enumerate(zip(node.inputs, operands, strict=False)):
        lines.append(f"  operand {i}: {t.dtype} {x.shape} {_range(x)}{_here(x, array, index)}")
    return "\n".join(lines)


def _range(x: Array) -> str:
    """The least and the greatest of an operand's elements."""
    if not x.size:
        return "without elements"
    low, high = x.min(), x.max()
    return f"is {low}" if low == high else f"from {low} to {high}"


def _here(x: Array, result: Array, index: tuple[int, ...]) -> str:
    """An operand's element where the result went wrong, if it has the result's shape."""
    if x.shape != result.shape or not x.ndim or x.min() == x.max():
        return ""
    return f", {x[index]} there"
