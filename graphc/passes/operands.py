"""What the lowerings share: kernel buffers, and expressions for members of a group.

Imports: fuse, views, kernel, dims.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Union

from graphc import dims
from graphc.dims import DimLike
from graphc.errors import RunError
from graphc.kernel import Access, Expr, Kernel, Term
from graphc.location import Location
from graphc.nest import contiguous
from graphc.node import Node, Tensor
from graphc.ops.define import ScalarBuilder
from graphc.passes.groups import Fusion, Group
from graphc.passes.views import View
from graphc.types import DType, bool_, int64


@dataclass(frozen=True, eq=False)
class Partial:
    """What a split reduction keeps per chunk, between its two kernels."""

    name: str
    dtype: DType
    shape: tuple[DimLike, ...]

    @property
    def bytes(self) -> DimLike:
        return dims.mul(dims.product(self.shape), self.dtype.itemsize)


Value = Union[Tensor, Partial]
"""What a kernel buffer holds."""


def value_bytes(value: Value) -> DimLike:
    """How much memory a value takes."""
    if isinstance(value, Partial):
        return value.bytes
    return dims.mul(dims.product(value.dims), value.dtype.itemsize)


@dataclass(frozen=True)
class CheckSite:
    """A run-time check in a kernel: which error, with what message, on whose line.

    `member` is the position in its group of the member that checks, so that a kernel lowered once
    and launched for several groups blames each group's own lines.
    """

    error: type[RunError]
    message: str
    member: int
    loc: Location
    op: str


@dataclass(eq=False)
class LoweredStep:
    """A kernel and the values it is launched on.

    Kernels in `others` are launched on the same values, at the same time or in any order: each
    makes elements of its own, at positions where alone it reads what it writes over.
    """

    kernel: Kernel
    args: tuple[Value, ...]
    writes: tuple[int, ...]
    label: str
    locs: tuple[Location, ...]
    checks: tuple[CheckSite, ...] = ()
    others: tuple[Kernel, ...] = ()

    @property
    def kernels(self) -> tuple[Kernel, ...]:
        return (self.kernel, *self.others)


class Buffers:
    """Numbers the values a kernel touches."""

    def __init__(self) -> None:
        self.values: list[Value] = []
        self.written: list[int] = []
        self._number: dict[int, int] = {}

    def of(self, value: Value, write: bool = False) -> int:
        number = self._number.get(id(value))
        if number is None:
            number = self._number[id(value)] = len(self.values)
            self.values.append(value)
        if write and number not in self.written:
            self.written.append(number)
        return number

    def dtypes(self) -> tuple[DType, ...]:
        return tuple(v.dtype for v in self.values)


class Checks:
    """A scalar builder shared by a kernel, and the user's line of each check made through it."""

    def __init__(self) -> None:
        self.scalars = ScalarBuilder()
        self.sites: list[CheckSite] = []

    def attribute(self, member: int, node: Node) -> None:
        """Attribute the checks made since the last call to a member of the group, and its node."""
        for error, message in self.scalars.checks[len(self.sites) :]:
            self.sites.append(CheckSite(error, message, member, node.loc, node.title))


AccessOf = Callable[[View, bool], "tuple[tuple[Term, ...], DimLike]"]
"""(view, whether it is over the kept axes only) -> terms over the kernel's axes, and offset."""


class Expressions:
    """Scalar expressions for the members of a group, over axes that `terms_of` knows."""

    def __init__(
        self,
        fusion: Fusion,
        group: Group,
        buffers: Buffers,
        checks: Checks,
        terms_of: AccessOf,
    ) -> None:
        self.fusion = fusion
        self.group = group
        self.buffers = buffers
        self.checks = checks
        self.terms_of = terms_of
        self.made: dict[int, Expr] = {}
        self._position = {id(t): i for i, t in enumerate(group.members)}

    def operand(self, t: Tensor, reduced: bool) -> Expr:
        """An input of a member: a uniform, another member's value, or a load."""
        uniform = self.fusion.uniforms.of(t, self.fusion.views)
        if uniform is not None:
            return uniform
        view = self.fusion.views.of(t)
        made = self.made.get(id(view.base))
        if made is not None and id(view.base) in self.group.level:
            return made
        return self.load(view, reduced)

    def load(self, view: View, reduced: bool) -> Expr:
        terms, offset = self.terms_of(view, reduced)
        node = view.base.node
        in_memory = self.fusion.group_of.get(id(view.base)) is not None
        if not in_memory and node.op.name in ("iota", "sizes"):
            return _computed_leaf(view.base, _linear(terms, offset))
        access = Access(self.buffers.of(view.base), terms, offset)
        return Expr("load", (), (access, 0), view.base.dtype)

    def elementwise(self, t: Tensor, reduced: bool) -> Expr:
        """The value of an elementwise member (or of a view that becomes an array)."""
        node = t.node
        if node.kind == "view":
            source = self.fusion.views.source(t)
            uniform = self.fusion.uniforms.of(t, self.fusion.views)
            expr = uniform if uniform is not None else self.load(source, reduced)
        elif node.kind in ("leaf", "state"):
            terms, offset = self.terms_of(View(t, contiguous(t.dims)), reduced)
            expr = _computed_leaf(t, _linear(terms, offset))
        else:
            inputs = [self.operand(i, reduced) for i in node.inputs]
            expr = node.op.lower(self.checks.scalars, *inputs, **node.attrs)
            self.checks.attribute(self._position[id(t)], node)
        self.made[id(t)] = expr
        return expr


def _linear(terms: Sequence[Term], offset: DimLike) -> Expr:
    """The element offset that terms address, as an i64 expression."""
    parts = [] if offset == 0 else [size_expr(offset)]
    for term in terms:
        for axis, coefficient in term.axes:
            step = dims.mul(coefficient, term.stride)
            index = Expr("axis", (), axis, int64)
            parts.append(index if step == 1 else index * size_expr(step))
    if not parts:
        return size_expr(0)
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total


def size_expr(d: DimLike) -> Expr:
    """A size as an i64 expression."""
    if isinstance(d, int):
        return Expr("const", (), d, int64)
    return Expr("size", (), d, int64)


def _computed_leaf(t: Tensor, position: Expr) -> Expr:
    """The element of `iota` or of a vector of sizes at a position."""
    if t.node.op.name == "iota":
        return position if t.dtype is int64 else Expr("cast", (position,), None, t.dtype)
    values: tuple[DimLike, ...] = t.node.attrs["dims"]
    result = _size_as(values[-1], t.dtype)
    for i in reversed(range(len(values) - 1)):
        here = Expr("eq", (position, Expr("const", (), i, int64)), None, bool_)
        result = Expr("select", (here, _size_as(values[i], t.dtype), result), None, t.dtype)
    return result


def _size_as(d: DimLike, dtype: DType) -> Expr:
    if isinstance(d, int):
        return Expr("const", (), d, dtype)
    return Expr("size", (), d, dtype)


def label_of(group: Group) -> str:
    """A group's name in listings: its operators in order."""
    names = [t.node.op.name for t in group.members]
    shown = "+".join(names[:6])
    return shown if len(names) <= 6 else f"{shown}+{len(names) - 6} more"


def locations_of(group: Group) -> tuple[Location, ...]:
    """The user's lines that went into a group."""
    return tuple(dict.fromkeys(t.node.loc for t in group.members))
