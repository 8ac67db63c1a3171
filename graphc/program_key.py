"""What a program is, as a key: equal keys mean that one plan serves both programs.

Nodes, sizes and the user's lines are numbered in the order they are met, so that the key holds no
name of this process's making: not the serial numbers of symbols, and of lines only which are the
same.  A plan made for one program refers to these by number and is taken to mean the other's.
Imports: program, node, ops, dims, types, location.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from graphc.cache import digest
from graphc.dims import Atom, Dim
from graphc.location import Location
from graphc.node import ConstantValue, Node, Op, Tensor
from graphc.ops import BUILT_IN
from graphc.ops.state import placeholder_op
from graphc.program import Program
from graphc.types import DType

if TYPE_CHECKING:
    from graphc.late_program import LateProgram

_WORD = 1 << 63
_INT, _LONG, _FLOAT, _BOOL, _NONE, _TEXT, _TUPLE, _DTYPE, _DIM, _ARRAY = range(10)

_CUSTOM = "custom_gradient"
"""Passes its inputs through; made where functions are, above the operators."""

_HASHABLE = frozenset({int, str, bool, DType, Dim})


class NotKeyable(Exception):
    """The program holds something without a lasting identity, such as a Python function."""


class ProgramKey:
    """A key of nodes and of what of them is wanted, and the numbers behind it.

    digest   20 bytes
    nodes    every node, by number; `numbers` has the number of each by id
    atoms    every symbol and function of symbols in a size, by number
    lines    every line of the user's, by number
    Use `key_of_program` or `key_of_graph`.  Raises NotKeyable.
    """

    def __init__(
        self,
        nodes: list[Node],
        groups: Sequence[Iterable[Tensor]],
        targets: Iterable[Node] = (),
    ) -> None:
        self.nodes = nodes
        self.atoms: dict[Atom, int] = {}
        self.lines: dict[Location, int] = {}
        self.numbers: dict[int, int] = {}  # by id of the node
        self._words: list[int] = []
        self._text: list[str] = []
        self._bytes: list[bytes] = []
        self._values: dict[Any, int] = {}
        self._blocks: dict[int, int] = {}
        self._ops: dict[Op, int] = {}
        self._names: dict[tuple[str, ...], tuple[int, tuple[str, ...]]] = {}
        for number, node in enumerate(nodes):
            self.numbers[id(node)] = number
            self._node(node)
        for group in groups:
            self._words.append(-3)
            for t in group:
                self._words += (self.numbers[id(t.node)], t.index)
        self._words += (-8, *(self.numbers[id(node)] for node in targets))
        self.digest = self.finish()

    def finish(self) -> bytes:
        """The hash of everything noted."""
        joined = "\0".join(self._text)
        if joined.count("\0") >= max(len(self._text), 1):
            raise NotKeyable("a name holds a null character")
        return digest(array("q", self._words).tobytes(), joined, *self._bytes)

    def _node(self, node: Node) -> None:
        words = self._words
        number = self._ops.get(node.op)
        if number is None:
            number = self._op(node.op)
        lines = self.lines
        words += (-1, number, lines.setdefault(node.loc, len(lines)))
        numbers = self.numbers
        for t in node.inputs:
            words += (numbers[id(t.node)], t.index)
        attrs = node.attrs
        if attrs and node.op.name != _CUSTOM:  # whose rule has been used by now
            number, names = self._names.get(tuple(attrs)) or self._attributes(tuple(attrs))
            values = [self._value(attrs[name]) for name in names]
            words += (-2, number, *values)
        if node.control and node.op is not placeholder_op:
            words += (-6, self._block(node.control))
        self._text.append(node.name)

    def _op(self, op: Op) -> int:
        """The number of an operator met for the first time."""
        if op not in BUILT_IN and op.name != _CUSTOM:
            raise NotKeyable(f"operator {op.name} is the user's")
        found = self._ops[op] = self._value(op.name)
        return found

    def _attributes(self, names: tuple[str, ...]) -> tuple[int, tuple[str, ...]]:
        """The number of a set of names of attributes, and the order that it lists them in."""
        ordered = tuple(sorted(names))
        found = self._names[names] = self._value(ordered), ordered
        return found

    def _block(self, control: tuple[Node, ...]) -> int:
        """The number of a tuple of nodes to wait for, which all nodes of a block share."""
        found = self._blocks.get(id(control))
        if found is None:
            members = [self.numbers[id(node)] for node in control]
            self._words += (-7, len(members), *members)
            found = self._blocks[id(control)] = len(self._blocks)
        return found

    def variable(self, number: int) -> Node:
        """The variable with this number; raises LookupError if it is none."""
        node = self.nodes[number]
        if number < 0 or node.op.name != "variable":
            raise LookupError(f"node {number} is no variable")
        return node

    def text_of(self, outcome: Sequence[Any]) -> str:
        """The outcome of broadcasts: words, or symbols and their sizes."""
        parts = [
            which
            if isinstance(which, str)
            else ",".join(f"{self.atoms[atom]}={size}" for atom, size in which)
            for which in outcome
        ]
        return ";".join(parts)

    # ---- values, each written out once

    def _value(self, value: Any) -> int:
        kind = value.__class__
        if kind in _HASHABLE:
            key: Any = (kind, value)
        elif kind is tuple:
            key = (_TUPLE, *map(self._value, value))
        elif kind is float:
            key = (_FLOAT, struct.unpack("<q", struct.pack("<d", value))[0])
        elif kind is ConstantValue:
            key = (kind, id(value))  # the program holds it
        elif value is None:
            key = _NONE
        else:
            raise NotKeyable(f"a {kind.__name__}")
        found = self._values.get(key)
        if found is None:
            words = self._words_of(value, key)
            found = self._values[key] = len(self._values)
            self._words += (-4, len(words), *words)
        return found

    def _words_of(self, value: Any, key: Any) -> tuple[int, ...]:
        """The definition of a value met for the first time."""
        if isinstance(value, Dim):
            return (_DIM, *self._dim(value))
        if isinstance(value, ConstantValue):
            return (_ARRAY, *self._array(value))
        if isinstance(value, DType):
            return _DTYPE, self._named(value.name)
        if isinstance(value, str):
            return _TEXT, self._named(value)
        if isinstance(value, bool):
            return _BOOL, int(value)
        if isinstance(value, int):
            if -_WORD <= value < _WORD:
                return _INT, value
            return _LONG, self._named(str(value))
        if value is None:
            return (_NONE,)
        words: tuple[int, ...] = key
        return words

    def _named(self, text: str) -> int:
        self._text.append(text)
        return len(self._text)

    def _dim(self, value: Dim) -> list[int]:
        words = [len(value.terms)]
        for monomial, coefficient in value.terms:
            words += (coefficient, len(monomial), *map(self._atom, monomial))
        return words

    def _atom(self, atom: Atom) -> int:
        found = self.atoms.get(atom)
        if found is None:
            arguments = [self._value(a) for a in atom.args]
            found = self.atoms[atom] = len(self.atoms)
            self._words += (-5, self._value(atom.kind), len(arguments), *arguments)
        return found

    def _array(self, value: ConstantValue) -> tuple[int, ...]:
        array_ = value.array
        flat = array_.reshape(-1)
        self._bytes.append(digest(flat.view("u1").data if flat.size else b""))
        return (*array_.shape, self._named(array_.dtype.str))


def key_of_program(program: Program) -> ProgramKey:
    """The key of a program; inputs and variables that no root depends on have numbers too."""
    nodes = list(program.order())
    known = {id(node) for node in nodes}
    for t in (*program.inputs, *(variable for variable, _ in program.updates)):
        if id(t.node) not in known:
            known.add(id(t.node))
            nodes.append(t.node)
    variables = [variable for variable, _ in program.updates]
    values = [value for _, value in program.updates]
    return ProgramKey(nodes, (program.inputs, program.fetches, variables, values))


def key_of_graph(late: LateProgram) -> ProgramKey:
    """The key of what a session is to run, before a program is made of it.

    Raises NotKeyable where more than placeholders is fed.
    """
    if not late.takes_placeholders:
        raise NotKeyable("a tensor that is no placeholder is fed")
    nodes = late.order()
    counters = dict.fromkeys(
        n.graph.random_counter for n in nodes if n.kind == "random" and n.graph is not None
    )
    counted = [t for t in counters if t is not None]
    known = set(nodes)
    leaves = dict.fromkeys(t.node for t in (*late.feeds, *counted) if t.node not in known)
    return ProgramKey([*leaves, *nodes], (late.feeds, late.fetches, counted), late.targets)
