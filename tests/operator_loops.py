"""Running one node by its own scalar body or loop nest, with the interpreter of the kernel IR.

Imports: graphc, NumPy.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from graphc.backends.interpret import interpret_loop_kernel
from graphc.builder import Builder, making_nodes_in
from graphc.kernel import Access, Expr, LoopKernel, Stage, Store, Term
from graphc.nest import Nest, contiguous
from graphc.node import Node
from graphc.ops.define import ScalarBuilder
from graphc.types import TensorType

Array = np.ndarray[Any, Any]


def run_loops(node: Node, inputs: Sequence[Array]) -> list[Array]:
    """The outputs of a node by its own loops."""
    if node.kind == "elementwise":
        shape = tuple(node.outputs[0].dims)
        inputs = [np.broadcast_to(a, shape) for a in inputs]
        kernel = _map_kernel(node, int(np.prod(shape)))
    else:
        kernel = _nest_kernel(node)
    buffers = [np.array(a, order="C").reshape(-1) for a in inputs]
    outputs = [np.zeros(_static(t), t.dtype.numpy) for t in node.types]
    flat = [o.reshape(-1) for o in outputs]
    with np.errstate(all="ignore"):
        faults = interpret_loop_kernel(kernel, [*buffers, *flat], {})
    assert not faults, f"{node.name}: faults {faults}"
    return outputs


def _static(t: TensorType) -> tuple[int, ...]:
    assert t.shape is not None
    return tuple(int(str(d)) for d in t.shape)


def _map_kernel(node: Node, count: int) -> LoopKernel:
    bufs = (*(t.dtype for t in node.inputs), node.types[0].dtype)

    def access(i: int) -> Access:
        return Access(i, (Term(((0, 1),), 1),))

    loads = [Expr("load", (), (access(i), 0), t.dtype) for i, t in enumerate(node.inputs)]
    builder = ScalarBuilder()
    body = node.op.lower(builder, *loads, **node.attrs)
    assert body.dtype is bufs[-1], f"the body of {node.op.name} gives {body.dtype}"
    stage = Stage((), (), (Store(access(len(loads)), body),))
    return LoopKernel((count,), (0,), 0, bufs, (stage,), checks=len(builder.checks))


def _nest_kernel(node: Node) -> LoopKernel:
    types = [t.type for t in node.inputs]
    with making_nodes_in(Builder()):
        nest = Nest(types, node.types)
        node.op.lower(nest, **node.attrs)
    stores = []
    for output, expr in nest.results.items():
        shape = node.types[output].shape
        assert shape is not None
        terms = tuple(Term(p, s) for p, s in zip(nest.places, contiguous(shape), strict=True))
        stores.append(Store(Access(len(types) + output, terms), expr))
    stages = list(nest.stages)
    if stores:
        stages.append(Stage((), (), tuple(stores)))
    bufs = tuple(t.dtype for t in (*types, *node.types))
    vector = nest.par[-1] if nest.par else 0
    return LoopKernel(
        tuple(nest.axes), nest.par, vector, bufs, tuple(stages), checks=len(nest.checks)
    )
