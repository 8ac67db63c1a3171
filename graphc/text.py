"""Graphs and programs as text: one typed line per node, the same for the same graph everywhere.

    graph {
      %x: f32[x?0,4] = placeholder()  # train.py:3
      %w: f32[4,2] = variable()  # train.py:4
      %y: f32[x?0,2] = matmul(%x, %w)  # train.py:5
    }

`graphc.parse` reads it back.  Sizes nobody named are numbered in the order they appear, and the
terms of sizes are sorted, so that text does not depend on what else the process did.  Arrays of
more than `INLINE` elements are printed as `@const0` and returned beside the text.
Imports: parse, parse_values, dims, graph, program, types.
"""

from __future__ import annotations

import json
import os
import re
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from graphc.dims import Atom, Dim, DimLike
from graphc.errors import GraphError
from graphc.graph import Graph
from graphc.location import Location
from graphc.node import ConstantValue, Node, Tensor, topological
from graphc.parse import DECLARED, parse_graph, parse_program
from graphc.parse_values import from_items
from graphc.program import Program
from graphc.types import DType, TensorType, as_dtype

__all__ = [
    "Printer",
    "parse_graph",
    "parse_program",
    "print_graph",
    "print_program",
    "store_graph",
    "store_program",
]

Array = np.ndarray[Any, Any]

INLINE = 8
"""Arrays of at most this many elements are printed where they are used."""

_LABEL = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_./-]*")
_SYMBOL = re.compile(r"[^\W\d]\w*")


def print_graph(graph: Graph) -> str:
    """The graph's text; large arrays only by name."""
    return store_graph(graph)[0]


def print_program(program: Program) -> str:
    """The program's text; large arrays only by name."""
    return store_program(program)[0]


def store_graph(graph: Graph, portable: bool = False) -> tuple[str, dict[str, Array]]:
    """The graph's text and the arrays it names: what `parse_graph` takes.

    portable   leave out of collections what has no text form, with a warning, and raise GraphError
               for an attribute that has none
    """
    printer = Printer(unique=False)
    rows = [_header(graph)]
    for node in graph.nodes:
        rows.append("  " + printer.node(node))
        if portable and printer.opaque:
            raise GraphError(f"{describe_node(node)} has no text form: {printer.opaque[0]}")
    rows.extend("  " + row for row in _sections(graph, printer, portable))
    rows.append("}\n")
    return "\n".join(rows), printer.constants


def store_program(program: Program) -> tuple[str, dict[str, Array]]:
    """The program's text and the arrays it names: what `parse_program` takes."""
    printer = Printer(unique=True)
    variables = tuple(v for v, _ in program.updates)
    tensors = (*program.inputs, *variables, *program.roots)
    nodes = topological([t.node for t in tensors], control=False)
    rows = ["program {", *("  " + printer.node(n) for n in nodes)]
    if program.inputs:
        rows.append("  input " + printer.tensors(program.inputs))
    if program.fetches:
        rows.append("  return " + printer.tensors(program.fetches))
    for variable, value in program.updates:
        rows.append(f"  update {printer.tensor(variable)} := {printer.tensor(value)}")
    rows.append("}\n")
    return "\n".join(rows), printer.constants


def _header(graph: Graph) -> str:
    options = {
        "seed": graph.seed,
        "strict_dtypes": graph.strict_dtypes or None,
        "random_ops": graph.random_ops or None,
        "finalized": graph.finalized or None,
    }
    given = [f"{k}={int(v) if k == 'seed' else v}" for k, v in options.items() if v is not None]
    return "graph {" + (", ".join(given) + "} {" if given else "")


def describe_node(node: Node) -> str:
    """A node for error messages: operator, name and the user's line."""
    return f"{node.op.name} {node.name!r} ({node.loc})"


def _sections(graph: Graph, printer: Printer, portable: bool) -> list[str]:
    """What a graph holds besides nodes: what variables start from, collections, the counter."""
    rows: list[str] = []
    for node in graph.nodes:
        v: Any = node.outputs[0] if node.op.name == "variable" else None
        if v is not None and hasattr(v, "initializer"):
            attrs = printer.attrs({"trainable": v.trainable, "lr_mult": v.lr_mult})
            initial = printer.tensor(v.initial_value)
            by = printer.operation(v.initializer)
            rows.append(f"variable {printer.tensor(v)}{attrs} = {initial} by {by}")
    for key in graph.collection_keys():
        values = _members(printer, key, graph.get_collection(key), portable)
        rows.append(f"collection {json.dumps(key)} = {', '.join(values)}".rstrip())
    if graph.random_counter is not None:
        rows.append(f"random_counter {printer.tensor(graph.random_counter)}")
    return rows


def _members(printer: Printer, key: str, members: list[Any], portable: bool) -> list[str]:
    texts: list[str] = []
    for member in members:
        printer.opaque.clear()
        text = printer.member(member)
        if portable and printer.opaque:
            warnings.warn(
                f"collection {key!r}: a value of type {printer.opaque[0]} is not saved",
                stacklevel=5,
            )
        else:
            texts.append(text)
    return texts


class Printer:
    """Prints nodes; remembers what it called them, and their unknown sizes and large arrays.

    unique   give names only once, and numbers to nodes without a name of their own
    """

    def __init__(self, unique: bool) -> None:
        self.unique = unique
        self.labels: dict[int, str] = {}
        self.taken: set[str] = set()
        self.unnamed = 0
        self.symbols: dict[Atom, str] = {}
        self.hints: dict[str, int] = {}
        self.constants: dict[str, Array] = {}
        self.stored: dict[ConstantValue, str] = {}
        self.opaque: list[str] = []

    # ---- nodes

    def node(self, node: Node) -> str:
        """`%name: type = op(%input, ...) {attrs} after %node  # file:line`"""
        self._number_sizes(node)
        inputs = self.tensors(node.inputs)
        control = "" if self.unique else ", ".join(self.operation(n) for n in node.control)
        label = self._label(node)
        types = ", ".join(self.type(t) for t in node.types)
        if len(node.types) != 1:
            types = f"({types})"
        row = f"%{label}: {types} = {node.op.name}({inputs})"
        if not _is_declared(node):
            row += self.attrs(node.attrs)
        if control:
            row += f" after {control}"
        return row + _comment(node.loc)

    def _label(self, node: Node) -> str:
        name = node.name
        if self.unique and (not name or name in self.taken):
            label = str(self.unnamed)
            self.unnamed += 1
        else:
            self.taken.add(name)
            plain = _LABEL.fullmatch(name) and not name.isdigit()
            label = name if plain else json.dumps(name)
        self.labels[node.id] = label
        return label

    def operation(self, node: Node) -> str:
        return "%" + self._known(node)

    def tensor(self, t: Tensor) -> str:
        suffix = f":{t.index}" if len(t.node.outputs) > 1 else ""
        return f"%{self._known(t.node)}{suffix}"

    def _known(self, node: Node) -> str:
        """The label of a node; one that was not printed keeps its name, for ill-formed graphs."""
        return self.labels.get(node.id) or json.dumps(node.name)

    def tensors(self, tensors: Iterable[Tensor]) -> str:
        return ", ".join(self.tensor(t) for t in tensors)

    def member(self, value: Any) -> str:
        """A value in a collection: `%tensor`, `^operation` or a plain value."""
        if isinstance(value, Tensor):
            return self.tensor(value)
        if isinstance(value, Node):
            return "^" + self._known(value)
        return self.value(value)

    # ---- types and sizes

    def type(self, t: TensorType) -> str:
        if t.shape is None:
            return f"{t.dtype}[*]"
        return f"{t.dtype}[{','.join(self.size(d) for d in t.shape)}]"

    def size(self, d: DimLike) -> str:
        """A size with its terms in alphabetical order, longest products first."""
        if not isinstance(d, Dim):
            return str(d)
        self._number(_unknown(d))
        terms = [(sorted(map(self._atom, monomial)), c) for monomial, c in d.terms]
        terms.sort(key=lambda term: (-len(term[0]), term[0]))
        text = ""
        for factors, c in terms:
            sign = "-" if c < 0 else "+" if text else ""
            scale = [str(abs(c))] if abs(c) != 1 or not factors else []
            text += sign + "*".join(scale + factors)
        return text

    def _atom(self, atom: Atom) -> str:
        if atom.kind != "symbol":
            return f"{atom.kind}({', '.join(map(self.size, atom.args))})"
        if atom.anonymous:
            return self.symbols[atom]
        plain = _SYMBOL.fullmatch(atom.name)
        return atom.name if plain else json.dumps(atom.name)

    def _number_sizes(self, node: Node) -> None:
        """Name the unknown sizes of a line together, so that reading it names them alike."""
        found: set[Atom] = set()
        for t in node.types:
            _collect(t.shape, found)
        for value in node.attrs.values():
            _collect(value, found)
        self._number(found)

    def _number(self, atoms: set[Atom]) -> None:
        new = [(_hint(a.name), a.serial, a) for a in atoms if a not in self.symbols]
        for hint, _, atom in sorted(new, key=lambda item: item[:2]):
            count = self.hints.get(hint, 0)
            self.hints[hint] = count + 1
            self.symbols[atom] = f"{hint}?{count}"

    # ---- attribute values

    def attrs(self, attrs: Mapping[str, Any]) -> str:
        if not attrs:
            return ""
        return " {" + ", ".join(f"{k}={self.value(v)}" for k, v in sorted(attrs.items())) + "}"

    def value(self, value: Any) -> str:
        """An attribute value; `!Type` for what has no text form and cannot be read back."""
        if value is None or isinstance(value, (bool, np.bool_)):
            return str(value)
        if isinstance(value, (int, np.integer)):
            return str(int(value))
        if isinstance(value, (float, np.floating)):
            return repr(float(value))
        if isinstance(value, str):
            return json.dumps(value)
        if isinstance(value, DType):
            return value.name
        if isinstance(value, Dim):
            return f"<{self.size(value)}>"
        if isinstance(value, (tuple, list)):
            items = [self.value(v) for v in value]
            return f"({', '.join(items)}{',' * (len(items) == 1)})"
        if isinstance(value, ConstantValue):
            return self._constant(value)
        self.opaque.append(type(value).__name__)
        return f"!{type(value).__name__}"

    def _constant(self, value: ConstantValue) -> str:
        array = value.array
        dtype = as_dtype(array.dtype)
        head = f"{dtype}[{','.join(map(str, array.shape))}]"
        if array.size > INLINE:
            name = self.stored.get(value)
            if name is None:
                name = self.stored[value] = f"const{len(self.stored)}"
                self.constants[name] = array
            return f"{head}@{name}"
        items = [_element_text(x) for x in array.reshape(-1)]
        if from_items(items, dtype, array.shape).tobytes() == array.tobytes():
            return f"{head}({', '.join(items)})"
        # NaNs with other bits than the usual ones
        little = array.astype(array.dtype.newbyteorder("<"), copy=False)
        return f"{head}0x{little.tobytes().hex()}"


def _element_text(x: Any) -> str:
    """The shortest decimal that reads back as the same element."""
    if x.dtype.kind != "f":
        return str(x)
    short = str(x)
    return short if x.dtype.type(float(short)) == x or np.isnan(x) else repr(float(x))


def _is_declared(node: Node) -> bool:
    """Whether the printed type says everything that the attributes do."""
    if node.op.name not in DECLARED or len(node.types) != 1:
        return False
    declared = {"dtype": node.types[0].dtype, "shape": node.types[0].shape}
    return dict(node.attrs) == declared


def _comment(loc: Location) -> str:
    if not loc.file:
        return ""
    name = os.path.basename(loc.file).strip("<>")
    clean = "".join(c if c.isprintable() else "?" for c in name) or "?"
    return f"  # {clean}:{loc.line}"


def _hint(name: str) -> str:
    plain = re.sub(r"[^A-Za-z0-9_]", "_", name.partition("?")[0])
    return f"_{plain}" if not plain or plain[0].isdigit() else plain


def _collect(value: Any, found: set[Atom]) -> None:
    if isinstance(value, Dim):
        found |= _unknown(value)
    elif isinstance(value, tuple):
        for v in value:
            _collect(v, found)


def _unknown(d: DimLike) -> set[Atom]:
    """The symbols of d that nobody named."""
    found: set[Atom] = set()
    stack = [d]
    while stack:
        e = stack.pop()
        if isinstance(e, Dim):
            for monomial, _ in e.terms:
                found.update(a for a in monomial if a.kind == "symbol" and a.anonymous)
                stack.extend(arg for a in monomial for arg in a.args)
    return found
