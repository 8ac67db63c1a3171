"""Rewriting by tables of rules: typed patterns, what replaces them, and one linear walk.

    Rule("mul_one", op("multiply", X, value(1)), X)
    Rule("log_add_one", op("log", op("add", X, value(1))), op("log1p", X), claim=STABLE)

A rule claims one of three things of its two sides: EXACT, the same bits for every input; STABLE,
at least as close to the mathematical value; FAST_MATH, the same value over the real numbers only.
Elementwise nodes have operands of one shape here (`specialise` saw to that), so a constant
operand is a view of a scalar: a *splat*.  Imports: graph, program.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Union

import numpy as np

from graphc.builder import Builder
from graphc.node import OPS, ConstantValue, Node, Tensor
from graphc.program import WATCH, Program, keep, rewrite
from graphc.types import DType, Shape, TensorType

EXACT, STABLE, FAST_MATH = "exact", "stable", "fast_math"

BUDGET = 64
"""Rules applied for one node of the program: every table here settles in fewer."""

DEPTH = 6
"""Rules applied inside replacements of replacements."""

LOOK_THROUGH = 8
"""Views looked through for a constant; chains of views are merged, so longer ones are rare."""

SMALL = 64
"""Elements of an array constant that is searched for being the same everywhere."""

# ---- patterns ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Var:
    """Any tensor; the same name twice is the same tensor."""

    name: str


@dataclass(frozen=True)
class Splat:
    """A constant that is equal everywhere: `value` to the sign of zero, or any that `where` admits.

    In a replacement: such a constant in the dtype and shape of its neighbours.
    """

    name: str = ""
    value: float | None = None
    where: Callable[[Any], bool] | None = None


@dataclass(frozen=True)
class Apply:
    """An application of an operator without attributes; operands of a commutative one swap."""

    op: str
    args: tuple[Pattern, ...]


Pattern = Union[Var, Splat, Apply]


def op(name: str, *args: Pattern) -> Apply:
    """The pattern of an operator's application."""
    return Apply(name, args)


def value(number: float) -> Splat:
    """The pattern of a constant that is `number` everywhere."""
    return Splat(value=number)


X, Y, Z = Var("x"), Var("y"), Var("z")

# ---- rules -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rule:
    """What `pattern` matches may be replaced by `to`.

    to      a pattern to build, or a function of the match that builds a tensor (None: no match)
    claim   EXACT, STABLE or FAST_MATH
    kinds   the kinds of dtype ('f', 'i', 'u', 'b') of the result it holds for
    when    a further condition
    """

    name: str
    pattern: Apply
    to: Pattern | Callable[[Match], Tensor | None]
    claim: str = EXACT
    kinds: str = "fiub"
    when: Callable[[Match], bool] | None = None


class Match:
    """Where a rule applies: the root, what the pattern's names stand for, who uses the root.

    `origin` is the node of the program that the root stands for; None inside replacements.
    """

    __slots__ = ("bound", "depth", "origin", "rewriter", "root")

    def __init__(self, rewriter: Rewriter, root: Tensor, origin: Node | None, depth: int) -> None:
        self.rewriter = rewriter
        self.root = root
        self.origin = origin
        self.depth = depth
        self.bound: dict[str, Any] = {}

    @property
    def consumers(self) -> Sequence[Node]:
        """The nodes that read the root in the program; none if it is no node of it."""
        return () if self.origin is None else self.rewriter.readers_of(self.origin)

    def __getitem__(self, name: str) -> Any:
        """The tensor (or a splat's NumPy scalar) that a name of the pattern stands for."""
        return self.bound[name]

    def apply(self, name: str, *inputs: Tensor, **attrs: Any) -> Tensor:
        """The application of an operator, itself simplified."""
        node = self.rewriter.builder.make(OPS[name], inputs, attrs)
        return self.rewriter.simplest(node.outputs[0], None, self.depth + 1)

    def splat(self, number: Any, dtype: DType, shape: Shape) -> Tensor:
        """A constant that is `number` everywhere."""
        array = np.asarray(number).astype(dtype.numpy)
        make = self.rewriter.builder.make
        scalar = make(OPS["constant"], (), {"value": ConstantValue(array)}).outputs[0]
        if shape == ():
            return scalar
        return make(OPS["broadcast_to"], (scalar,), {"shape": shape, "axes": ()}).outputs[0]

    def build(self, pattern: Pattern, like: TensorType) -> Tensor:
        """A replacement pattern as nodes; splats are typed `like`."""
        if isinstance(pattern, Var):
            found: Tensor = self.bound[pattern.name]
            return found
        if isinstance(pattern, Splat):
            number = self.bound[pattern.name] if pattern.name else pattern.value
            assert like.shape is not None
            return self.splat(number, like.dtype, like.shape)
        return self.apply(pattern.op, *self._operands(pattern, like))

    def _operands(self, pattern: Apply, like: TensorType) -> list[Tensor]:
        built = {
            i: self.build(a, like) for i, a in enumerate(pattern.args) if not isinstance(a, Splat)
        }
        typed = next((built[i].type for i in sorted(built, reverse=True)), like)
        return [
            built[i] if i in built else self.build(a, typed) for i, a in enumerate(pattern.args)
        ]


def matches(pattern: Pattern, t: Tensor, bound: dict[str, Any]) -> bool:
    """Whether t has the form of `pattern`; fills `bound`.  Depth is that of the pattern."""
    if isinstance(pattern, Var):
        return bound.setdefault(pattern.name, t) is t
    if isinstance(pattern, Splat):
        return _matches_splat(pattern, t, bound)
    node = t.node
    if node.op.name != pattern.op or len(node.inputs) != len(pattern.args):
        return False
    trial = dict(bound)
    if all(matches(p, i, trial) for p, i in zip(pattern.args, node.inputs, strict=True)):
        bound.update(trial)
        return True
    if not node.op.commutative or len(node.inputs) != 2:
        return False
    return all(matches(p, i, bound) for p, i in zip(pattern.args, node.inputs[::-1], strict=True))


def _matches_splat(pattern: Splat, t: Tensor, bound: dict[str, Any]) -> bool:
    number = splat_value(t)
    if number is None:
        return False
    if pattern.value is not None:
        wanted = pattern.value
        if number != wanted or np.signbit(float(number)) != np.signbit(float(wanted)):
            return False
    if pattern.where is not None and not pattern.where(number):
        return False
    if pattern.name:
        bound[pattern.name] = number
    return True


def splat_value(t: Tensor) -> Any:
    """The NumPy scalar that t is everywhere, or None if t is not such a constant."""
    node = t.node
    for _ in range(LOOK_THROUGH):
        kind = node.op.kind
        if kind == "leaf" and node.op.name == "constant":
            return uniform_element(node.attrs["value"].array)
        if kind != "view":
            return None
        node = node.inputs[0].node
    return None


def uniform_element(array: np.ndarray[Any, Any]) -> Any:
    """The one value of an array of equal elements (bit for bit); None for others and large ones."""
    if not 0 < array.size <= SMALL:
        return None
    first = array.reshape(-1)[0]
    return first if array.size == 1 or first.tobytes() * array.size == array.tobytes() else None


# ---- applying tables ---------------------------------------------------------------------------

SHARED = ("constant", "sizes", "iota", "random_key")
"""Leaves that are equal where their attributes are; other leaves are equal only to themselves."""

Step = Callable[[Match], "Tensor | None"]
"""A rewrite that is no rule of a table, tried at every node before the rules."""


class Rewriter:
    """Applies rules at one node until none fires.

    Rules are indexed by what their patterns tell at a glance: the operators of the root and of its
    operands.
    """

    def __init__(
        self,
        rules: Iterable[Rule],
        builder: Builder,
        steps: Sequence[Step] = (),
        program: Program | None = None,
    ) -> None:
        self.builder = builder
        self.steps = tuple(steps)
        self.program = program
        self.fired: dict[str, int] = {}
        self._left = BUDGET
        self._readers: dict[int, list[Node]] | None = None
        self._candidates: dict[tuple[Any, ...], tuple[Rule, ...]] = {}
        self._table: dict[str, list[Rule]] = {}
        for r in rules:
            self._table.setdefault(r.pattern.op, []).append(r)

    def readers_of(self, node: Node) -> Sequence[Node]:
        """The nodes of the program that read one of its nodes; found when first asked for."""
        if self._readers is None:
            self._readers = {} if self.program is None else consumers_of(self.program)
        return self._readers.get(node.id, ())

    def simplest(self, t: Tensor, origin: Node | None, depth: int = 0) -> Tensor:
        """t after every rule that applies to it; bounded, whatever the rules are."""
        if depth == 0:
            self._left = BUDGET
        while depth <= DEPTH and self._left > 0:
            replaced = self._once(t, origin, depth)
            if replaced is None:
                break
            self._left -= 1
            t = replaced
        return t

    def _once(self, t: Tensor, origin: Node | None, depth: int) -> Tensor | None:
        if t.node.op.stateful or len(t.node.outputs) != 1:
            return None
        if self.steps:
            match = Match(self, t, origin, depth)
            for step in self.steps:
                made = step(match)
                if made is not None and self._fits(made, t):
                    if WATCH.see is not None:
                        WATCH.see(step.__name__, [(t, made)])
                    return made
        if t.node.op.name not in self._table:
            return None
        for rule in self._rules_for(t):
            made = self._apply(rule, t, origin, depth)
            if made is not None and self._fits(made, t):
                self.fired[rule.name] = self.fired.get(rule.name, 0) + 1
                if WATCH.see is not None:
                    WATCH.see(rule.name, [(t, made)])
                return made
        return None

    def _rules_for(self, t: Tensor) -> tuple[Rule, ...]:
        """The rules that have a chance at t, in the order of the table."""
        operands = t.node.inputs
        operators = [i.node.op.name for i in operands]
        splat = any(splat_value(i) is not None for i in operands)
        repeated = len(operands) == 2 and operands[0] is operands[1]
        key = (t.node.op.name, splat, repeated, *operators)
        found = self._candidates.get(key)
        if found is None:
            rules = self._table[t.node.op.name]
            found = tuple(r for r in rules if _may_match(r.pattern, operators, splat, repeated))
            self._candidates[key] = found
        return found

    def _apply(self, rule: Rule, t: Tensor, origin: Node | None, depth: int) -> Tensor | None:
        if t.dtype.kind not in rule.kinds:
            return None
        match = Match(self, t, origin, depth)
        if not matches(rule.pattern, t, match.bound):
            return None
        if rule.when is not None and not rule.when(match):
            return None
        if isinstance(rule.to, (Var, Splat, Apply)):
            return match.build(rule.to, t.type)
        return rule.to(match)

    @staticmethod
    def _fits(made: Tensor, t: Tensor) -> bool:
        # sizes that are equal but written differently would change what later nodes infer
        return made is not t and made.type == t.type


def _may_match(pattern: Apply, operators: Sequence[str], splat: bool, repeated: bool) -> bool:
    """Whether operands made by these operators can have the form of the pattern's.

    splat     whether one of them is a constant that is equal everywhere
    repeated  whether there are two and they are the same tensor
    """
    args = pattern.args
    if len(args) != len(operators):
        return False
    if not all(a.op in operators for a in args if isinstance(a, Apply)):
        return False
    if not splat and any(isinstance(a, Splat) for a in args):
        return False
    same = len(args) == 2 and isinstance(args[0], Var) and args[0] == args[1]
    return repeated or not same


def apply_rules(program: Program, rules: Iterable[Rule], steps: Sequence[Step] = ()) -> Program:
    """Walk the program once in topological order, applying the rules at every node."""
    builder = Builder()
    rewriter = Rewriter(rules, builder, steps, program)

    def rebuild(node: Node, inputs: list[Tensor]) -> Sequence[Tensor] | None:
        if node.op.name in SHARED:
            outputs = builder.apply_again(node, ()).outputs
        else:
            outputs = keep(node, inputs, builder)
        if len(outputs) != 1:
            return outputs
        return (rewriter.simplest(outputs[0], node),)

    return rewrite(program, rebuild, builder)


def consumers_of(program: Program) -> dict[int, list[Node]]:
    """The nodes that read each node, by id; nodes that are only fetched have none."""
    found: dict[int, list[Node]] = {}
    for node in program.order():
        for t in node.inputs:
            found.setdefault(t.node.id, []).append(node)
    return found
