"""The verifier accepts what the package builds and names each kind of fault."""

from __future__ import annotations

import re

import numpy as np
import pytest

import graphc as gx
from graphc.builder import Builder
from graphc.errors import VerifyError
from graphc.graph import Graph
from graphc.location import UNKNOWN
from graphc.node import OPS, Node, Tensor
from graphc.passes.resolve_state import resolve_state
from graphc.program import Program
from graphc.types import TensorType, float32, float64
from graphc.verify import verify


def small() -> tuple[Graph, Program]:
    graph = gx.Graph()
    with graph.as_default():
        x = gx.placeholder("f32", (2, 3), name="x")
        w = gx.Variable(np.ones((2, 3), "f4"), name="w")
        y = gx.multiply(x, w, name="y")
        step = w.assign_sub(y, name="step")
    return graph, resolve_state([y], [step.node], [x])


def node(
    op: str, inputs: tuple[Tensor, ...], types: tuple[TensorType, ...], **more: object
) -> Node:
    return Node(OPS[op], inputs, {}, types, UNKNOWN, **more)  # type: ignore[arg-type]


def test_sound_graphs_and_programs_pass() -> None:
    graph, program = small()
    verify(graph)
    verify(program)


def test_error_shows_the_pass_and_the_line() -> None:
    _, program = small()
    x = program.inputs[0]
    wrong = node("negative", (x,), (TensorType(float64, (2, 3)),), name="z")
    with pytest.raises(VerifyError) as caught:
        verify(Program((x,), wrong.outputs), after="break_types")
    text = re.sub(r"  # \S+:\d+", "", str(caught.value))
    assert text == (
        "after pass break_types: its operator infers f32[2,3]\n"
        "  %x: f32[2,3] = placeholder()\n"
        "> %z: f64[2,3] = negative(%x)"
    )


def fails(subject: Program | Graph, message: str) -> None:
    with pytest.raises(VerifyError) as caught:
        verify(subject)
    assert str(caught.value).splitlines()[0] == message
    assert sum(line.startswith(">") for line in str(caught.value).splitlines()) == 1


def test_faults_of_programs() -> None:
    _, program = small()
    (x,) = program.inputs
    ((w, value),) = program.updates
    (y,) = program.fetches
    shape = TensorType(float32, (2, 3))
    fails(
        Program((), program.fetches),
        "a placeholder that is not an input of the program",
    )
    fails(
        Program((x, x), program.fetches, program.updates),
        "an input of the program is listed twice",
    )
    fails(Program((x, y), (y,)), "an input of the program that is computed")
    fails(
        Program((x,), (y,), ((w, value), (w, value))),
        "an updated variable is listed twice",
    )
    fails(Program((x,), (y,), ((x, value),)), "an update of what is not a variable")
    builder = Builder()
    total = builder.make(OPS["sum"], (x,), {"axes": (0,), "keepdims": False}).outputs[0]
    fails(Program((x,), (), ((w, total),)), "an update of type f32[3] for 'w' f32[2,3]")
    stray = Tensor(x.node, 0)
    fails(
        Program((x,), node("negative", (stray,), (shape,)).outputs),
        "operand 0 is not an output of 'x'",
    )
    fails(Program((x,), (Tensor(y.node, 0),)), "a fetch is not an output of 'y'")


def test_cycles_are_found() -> None:
    _, program = small()
    (x,) = program.inputs
    shape = (TensorType(float32, (2, 3)),)
    first = node("negative", (x,), shape, name="first")
    second = node("negative", first.outputs, shape, name="second")
    object.__setattr__(first, "inputs", second.outputs)
    fails(
        Program((x,), second.outputs),
        "operand 0 is 'second', which is not defined before it",
    )


def test_nodes_of_two_graphs_are_found() -> None:
    _, program = small()
    _, other = small()
    builder = Builder()
    mixed = builder.make(OPS["add"], (program.fetches[0], other.fetches[0]), {}).outputs
    fails(
        Program((*program.inputs, *other.inputs), mixed),
        "the node belongs to another graph than those before it",
    )


def test_faults_of_graphs() -> None:
    graph, _ = small()
    x = graph.get_tensor_by_name("x")
    shape = (TensorType(float32, (2, 3)),)
    graph.nodes.append(node("negative", (x,), shape, name="y", graph=graph))
    fails(graph, "the name 'y' is taken by an earlier node")
    graph.nodes[-1] = node("negative", (x,), shape, name="", graph=graph)
    fails(graph, "the node has no name")
    graph.nodes[-1] = node("negative", (x,), shape, name="z")
    fails(graph, "the node belongs to another graph")
    later = node("negative", (x,), shape, name="later", graph=graph)
    graph.nodes[-1] = node("negative", (x,), shape, name="z", graph=graph, control=(later,))
    fails(graph, "it is ordered after 'later', which is not before it")
    graph.nodes[-1] = node("negative", later.outputs, shape, name="z", graph=graph)
    fails(graph, "operand 0 is 'later', which is not defined before it")
