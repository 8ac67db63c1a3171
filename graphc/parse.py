"""Read the text of graphs and programs that `graphc.text` prints.

Nodes are made again through the operator registry: their types are inferred and must equal the
printed ones.  Text may come from a file that nobody vouches for: whatever is wrong with it is a
GraphError that names the line.  Imports: parse_values, dims, errors, graph, program, types.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from graphc import dims
from graphc.builder import infer_node
from graphc.dims import Dim, DimLike
from graphc.errors import GraphcError, GraphError
from graphc.graph import Graph
from graphc.node import OPS, Node, Op, Tensor
from graphc.parse_values import (
    STRING,
    Cursor,
    Symbols,
    SyntaxFault,
    Values,
    fail,
    integer,
    unquoted,
)
from graphc.program import Program, map_dims
from graphc.types import TensorType

Array = np.ndarray[Any, Any]

MAX_TEXT = 1 << 28
"""Characters of text that are read at most."""

DECLARED = ("placeholder", "variable")
"""Operators whose attributes are their printed type."""


class _Reader:
    """What has been read so far: nodes by their printed name."""

    def __init__(self, constants: Mapping[str, Array], graph: Graph | None) -> None:
        self.symbols = Symbols()
        self.values = Values(constants, self.symbols)
        self.graph = graph
        self.nodes: dict[str, Node] = {}

    def node(self, cursor: Cursor) -> Node:
        """`%name: type = op(%input, ...) {attrs} after %node, ...`"""
        self.symbols.declare(cursor.text)
        label, index = split_reference(cursor.kind("ref"))
        if index is not None or label in self.nodes:
            fail(f"%{label} is defined twice" if index is None else "a node has no index")
        cursor.expect(":")
        types = self._types(cursor)
        cursor.expect("=")
        name = cursor.kind("word")
        op = OPS.get(name)
        if op is None:
            fail(f"no operator is called {name!r}")
        inputs = self._arguments(cursor)
        attrs = self.values.attrs(cursor) if cursor.taken("{") else {}
        control = self._control(cursor)
        cursor.end()
        if name in DECLARED and not attrs and len(types) == 1:
            attrs = {"dtype": types[0].dtype, "shape": types[0].shape}
        attrs, inferred, constraints = infer_node(op, inputs, attrs)
        self._check_types(op, types, inferred, inputs, attrs)
        title = "" if self.graph is None and label.isdigit() else _name(label)
        node = Node(
            op, inputs, attrs, inferred, cursor.loc, title, control, self.graph, constraints
        )
        self.nodes[label] = node
        return node

    def _check_types(
        self,
        op: Op,
        printed: tuple[TensorType, ...],
        inferred: tuple[TensorType, ...],
        inputs: tuple[Tensor, ...],
        attrs: Mapping[str, Any],
    ) -> None:
        """The printed types are the inferred ones; a size that inference made takes its name."""
        if printed == inferred:
            return
        made = new_sizes(inferred, inputs, attrs)
        same = len(printed) == len(inferred)
        for a, b in zip(printed, inferred, strict=False):
            if a.dtype is not b.dtype or (a.shape is None) != (b.shape is None):
                same = False
            same = same and a.rank == b.rank
            for d, e in zip(a.shape or (), b.shape or (), strict=False):
                if e in made and self.symbols.rename(d, e):
                    continue
                same = same and d == e
        if not same:
            fail(f"{op.name} gives {_types_text(inferred)}, not {_types_text(printed)}")

    def _types(self, cursor: Cursor) -> tuple[TensorType, ...]:
        if not cursor.taken("("):
            return (self.symbols.type(cursor.kind("type")),)
        found: list[TensorType] = []
        while not cursor.taken(")"):
            found.append(self.symbols.type(cursor.kind("type")))
            if not cursor.taken(","):
                cursor.expect(")")
                break
        return tuple(found)

    def _arguments(self, cursor: Cursor) -> tuple[Tensor, ...]:
        cursor.expect("(")
        found: list[Tensor] = []
        while not cursor.taken(")"):
            found.append(self.tensor(cursor))
            if not cursor.taken(","):
                cursor.expect(")")
                break
        return tuple(found)

    def _control(self, cursor: Cursor) -> tuple[Node, ...]:
        if not cursor.taken("after"):
            return ()
        found = [self.operation(cursor)]
        while cursor.taken(","):
            found.append(self.operation(cursor))
        return tuple(found)

    def operation(self, cursor: Cursor) -> Node:
        label, index = split_reference(cursor.kind("ref"))
        if index is not None:
            fail(f"%{label} names an operation, which has no index")
        return self._defined(label)

    def tensor(self, cursor: Cursor) -> Tensor:
        label, index = split_reference(cursor.kind("ref"))
        node = self._defined(label)
        if (index or 0) >= len(node.outputs):
            fail(f"%{label} has {len(node.outputs)} outputs")
        return node.outputs[index or 0]

    def _defined(self, label: str) -> Node:
        node = self.nodes.get(label)
        if node is None:
            fail(f"%{label} is used before its definition")
        return node

    def tensors(self, cursor: Cursor) -> tuple[Tensor, ...]:
        """The rest of the line: `%a, %b`."""
        found: list[Tensor] = []
        while cursor.peek()[0] != "end":
            if found:
                cursor.expect(",")
            found.append(self.tensor(cursor))
        return tuple(found)


def split_reference(text: str) -> tuple[str, int | None]:
    """The label and output index in `%label:1` (the index is None where it is left out)."""
    found = re.fullmatch(rf"[%^]({STRING}|[\w./-]+)(?::(\d+))?", text)
    assert found is not None
    return found[1], None if found[2] is None else integer(found[2])


def _name(label: str) -> str:
    return unquoted(label) if label.startswith('"') else label


def new_sizes(
    inferred: tuple[TensorType, ...], inputs: tuple[Tensor, ...], attrs: Mapping[str, Any]
) -> set[DimLike]:
    """The inferred sizes that come from no input and no attribute: inference made them."""
    given: set[object] = set()

    def note(d: DimLike) -> DimLike:
        given.update(dims.atoms(d))
        return d

    for t in inputs:
        map_dims(t.type.shape, note)
    for value in attrs.values():
        map_dims(value, note)
    found = [d for t in inferred for d in t.shape or () if isinstance(d, Dim)]
    return {d for d in found if not dims.atoms(d) <= given}


def _types_text(types: tuple[TensorType, ...]) -> str:
    return ", ".join(map(str, types)) or "nothing"


# ---- graphs and programs -----------------------------------------------------------------------


def parse_graph(text: str, constants: Mapping[str, Array] | None = None) -> Graph:
    """The graph that `print_graph` wrote, with new nodes; raises GraphError naming the line.

    constants   the arrays the text refers to as `@const0`, ...
    """
    with _reading(text) as lines:
        cursor = lines.next()
        cursor.expect("graph")
        graph = _graph_header(cursor, Values({}, Symbols()))
        reader = _Reader(constants or {}, graph)
        for cursor in lines.body():
            _graph_line(cursor, reader, graph)
    return graph


def _graph_header(cursor: Cursor, values: Values) -> Graph:
    """`graph {seed=3, strict_dtypes=True, random_ops=2} {`"""
    cursor.expect("{")
    options: dict[str, Any] = {}
    if cursor.peek()[0] != "end":
        options = values.attrs(cursor)
        cursor.expect("{")
    kinds = {"seed": int, "strict_dtypes": bool, "random_ops": int, "finalized": bool}
    for name, value in options.items():
        if name not in kinds or type(value) is not kinds[name]:
            fail(f"not an option of a graph: {name}={value!r:.40}")
    cursor.end()
    graph = Graph(options.get("seed"), options.get("strict_dtypes", False))
    graph.random_ops = options.get("random_ops", 0)
    graph.finalized = options.get("finalized", False)
    return graph


def _graph_line(cursor: Cursor, reader: _Reader, graph: Graph) -> None:
    if cursor.peek()[0] == "ref":
        insert_node(graph, reader.node(cursor))
    elif cursor.taken("variable"):
        _read_variable(cursor, reader)
    elif cursor.taken("collection"):
        _read_collection(cursor, reader, graph)
    elif cursor.taken("random_counter"):
        graph.random_counter = reader.tensor(cursor)
    else:
        fail(f"expected a node or a section, found {cursor.peek()[1]!r}")
    cursor.end()


def insert_node(graph: Graph, node: Node) -> None:
    """Add a node under the name it has, and keep that name and its scopes from being reused."""
    parts = node.name.split("/")
    for i in range(1, len(parts) + 1):
        graph._used.setdefault("/".join(parts[:i]), 1)
    graph._kept.append(node)
    graph.nodes_made += 1
    graph._by_name[node.name] = node
    if node.op.name == "variable":
        _make_variable(node)


def _make_variable(node: Node) -> None:
    # the operator's record names the class of what users hold
    kind: Any = node.op.function
    made = kind.__new__(kind)
    Tensor.__init__(made, node, 0)
    made.trainable, made.lr_mult = False, 1.0  # what the random counter is; others say it below
    object.__setattr__(node, "outputs", (made,))


def _read_variable(cursor: Cursor, reader: _Reader) -> None:
    """`variable %w {trainable=True, lr_mult=1.0} = %w/initial_value by %w/assign`"""
    variable: Any = reader.tensor(cursor)
    if variable.node.op.name != "variable":
        fail(f"{variable.node.name!r} is not a variable")
    cursor.expect("{")
    attrs = reader.values.attrs(cursor)
    if set(attrs) != {"trainable", "lr_mult"}:
        fail("a variable has the attributes trainable and lr_mult")
    if type(attrs["trainable"]) is not bool or type(attrs["lr_mult"]) is not float:
        fail("trainable is a bool and lr_mult a float")
    variable.trainable = attrs["trainable"]
    variable.lr_mult = attrs["lr_mult"]
    cursor.expect("=")
    variable.initial_value = reader.tensor(cursor)
    if variable.initial_value.dtype is not variable.dtype:
        fail(f"an initial value of another dtype than {variable.node.name!r}")
    cursor.expect("by")
    variable.initializer = reader.operation(cursor)


def _read_collection(cursor: Cursor, reader: _Reader, graph: Graph) -> None:
    """`collection "losses" = %loss, ^train, 3`: tensors, operations and plain values."""
    key = unquoted(cursor.kind("string"))
    cursor.expect("=")
    while cursor.peek()[0] != "end":
        kind, token = cursor.peek()
        if kind == "ref":
            read: Callable[[Cursor], Any] = reader.operation if token[0] == "^" else reader.tensor
        else:
            read = reader.values.value
        graph.add_to_collection(key, read(cursor))
        if not cursor.taken(","):
            break


def parse_program(text: str, constants: Mapping[str, Array] | None = None) -> Program:
    """The program that `print_program` wrote, with new nodes; raises GraphError."""
    with _reading(text) as lines:
        cursor = lines.next()
        cursor.expect("program")
        cursor.expect("{")
        cursor.end()
        reader = _Reader(constants or {}, None)
        inputs: tuple[Tensor, ...] = ()
        fetches: tuple[Tensor, ...] = ()
        updates: list[tuple[Tensor, Tensor]] = []
        for cursor in lines.body():
            if cursor.peek()[0] == "ref":
                reader.node(cursor)
            elif cursor.taken("input"):
                inputs = reader.tensors(cursor)
            elif cursor.taken("return"):
                fetches = reader.tensors(cursor)
            elif cursor.taken("update"):
                variable = reader.tensor(cursor)
                cursor.expect(":=")
                updates.append((variable, reader.tensor(cursor)))
            else:
                fail(f"expected a node, found {cursor.peek()[1]!r}")
            cursor.end()
    return Program(inputs, fetches, tuple(updates))


@contextlib.contextmanager
def _reading(text: str) -> Iterator[_Lines]:
    """The lines of a text; whatever goes wrong with one is a GraphError with its number.

    Operators infer types from attributes that may be anything here, and their rules may assume
    attributes that their own functions checked, so any exception is a fault of the text.
    """
    lines = _Lines(text)
    try:
        yield lines
    except (SyntaxFault, GraphcError) as error:
        raise GraphError(f"line {lines.number}: {error}") from None
    except Exception as error:
        what = f"ill-formed attributes ({type(error).__name__}: {error!s:.80})"
        raise GraphError(f"line {lines.number}: {what}") from None


class _Lines:
    """The lines of a text up to its closing brace."""

    def __init__(self, text: str) -> None:
        if len(text) > MAX_TEXT:
            raise GraphError(f"text of {len(text)} characters is too long for a graph")
        self.lines = enumerate(text.split("\n"), 1)
        self.number = 0

    def next(self) -> Cursor:
        for number, line in self.lines:
            self.number = number
            cursor = Cursor(line)
            if cursor.tokens:
                return cursor
        fail("the text ends before its closing brace")

    def body(self) -> Iterator[Cursor]:
        """The lines between the braces; nothing may follow them."""
        while True:
            cursor = self.next()
            if cursor.taken("}"):
                cursor.end()
                break
            yield cursor
        for number, line in self.lines:
            self.number = number
            if Cursor(line).tokens:
                fail("text after the closing brace")
