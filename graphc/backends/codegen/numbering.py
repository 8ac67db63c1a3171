"""Values of a loop kernel, numbered: equal expressions get one number, and each number knows what
it depends on.  Sets of axes and accumulators are int bit masks, so tests of availability are cheap.

Imports: kernel.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from graphc.kernel import HEAVY, Access, Expr, LoopKernel, Stage


def access_axes(access: Access) -> int:
    """The mask of kernel axes an access depends on."""
    mask = 0
    for term in access.terms:
        for axis, coefficient in term.axes:
            if coefficient != 0:
                mask |= 1 << axis
    return mask


def stage_roots(stage: Stage) -> Iterator[Expr]:
    """The expressions a stage needs, in the order it needs them."""
    for accumulator in stage.accs:
        yield accumulator.expr
    for store in stage.stores:
        if store.index is not None:
            yield store.index
        yield store.expr


class Numbering:
    """The values of a kernel.  Lists are indexed by value number; operands precede users."""

    def __init__(self, kernel: LoopKernel) -> None:
        self.kernel = kernel
        self.exprs: list[Expr] = []
        self.args: list[tuple[int, ...]] = []
        self.uses: list[int] = []
        """Axes and accumulators a value depends on."""
        self.stored: list[int] = []
        """Buffers this kernel writes that the value reads, as a mask of buffer numbers."""
        self.checked: list[bool] = []
        """Whether computing the value may record a fault."""
        self._first_acc = max([len(kernel.axes), kernel.vec + 1, *(a + 1 for a in kernel.par)])
        self._written = 0
        for stage in kernel.stages:
            for store in stage.stores:
                self._written |= 1 << store.access.buf
        self._by_key: dict[tuple[Any, ...], int] = {}
        self._by_object: dict[int, int] = {}
        self.lane_accs = self._running_in_rows()
        self.stages = [self._stage_order(stage) for stage in kernel.stages]
        self.reread = 0
        for stored in self.stored:
            self.reread |= stored
        self.accesses = [self._stage_accesses(i) for i in range(len(kernel.stages))]

    def acc_bit(self, acc: int) -> int:
        return 1 << (self._first_acc + acc)

    def depends_on_lane(self, value: int) -> bool:
        """Whether the lanes of a value may differ."""
        return bool(self.uses[value] >> self.kernel.vec & 1)

    def of(self, root: Expr) -> int:
        """The number of an expression; numbers its operands first."""
        found = self._by_object.get(id(root))
        if found is not None:
            return found
        stack = [root]
        while stack:
            expr = stack[-1]
            if id(expr) in self._by_object:
                stack.pop()
                continue
            missing = [a for a in expr.args if id(a) not in self._by_object]
            if missing:
                stack.extend(missing)
                continue
            stack.pop()
            self._by_object[id(expr)] = self._number(expr)
        return self._by_object[id(root)]

    def _number(self, expr: Expr) -> int:
        args = tuple(self._by_object[id(a)] for a in expr.args)
        # 0.0 == -0.0 and NaN != NaN: constants are told apart by their text.
        value = repr(expr.value) if expr.op == "const" else expr.value
        if expr.op == "load":
            value = (expr.value[0], repr(expr.value[1]))
        key = (expr.op, args, value, expr.dtype.name)
        found = self._by_key.get(key)
        if found is None:
            found = self._by_key[key] = len(self.exprs)
            self.exprs.append(expr)
            self.args.append(args)
            self._describe(expr, args)
        return found

    def _describe(self, expr: Expr, args: tuple[int, ...]) -> None:
        uses, stored, checked = 0, 0, expr.op == "check"
        if expr.op in ("load", "gather"):
            access = expr.value[0]
            uses = access_axes(access)
            stored = self._written & (1 << access.buf)
        elif expr.op == "axis":
            uses = 1 << expr.value
        elif expr.op == "acc":
            uses = self.acc_bit(expr.value)
            if self.kernel.vec in self.kernel.par or expr.value in self.lane_accs:
                uses |= 1 << self.kernel.vec
        for arg in args:
            uses |= self.uses[arg]
            stored |= self.stored[arg]
            checked = checked or self.checked[arg]
        self.uses.append(uses)
        self.stored.append(stored)
        self.checked.append(checked)

    def _running_in_rows(self) -> frozenset[int]:
        """Accumulators along the vector axis whose running values their own stage stores."""
        if self.kernel.vec in self.kernel.par:
            return frozenset()
        found: set[int] = set()
        first = 0
        for stage in self.kernel.stages:
            own = range(first, first + len(stage.accs))
            first = own.stop
            roots = [x for s in stage.stores for x in (s.expr, s.index) if x is not None]
            found.update(n for n in accumulators(roots) if n in own)
        return frozenset(found)

    def _stage_order(self, stage: Stage) -> list[int]:
        """The values a stage needs, operands first."""
        order: list[int] = []
        seen: set[int] = set()
        for root in stage_roots(stage):
            stack = [self.of(root)]
            while stack:
                value = stack.pop()
                if value in seen:
                    continue
                seen.add(value)
                order.append(value)
                stack.extend(self.args[value])
        order.sort()  # operands have smaller numbers
        return order

    def _stage_accesses(self, stage: int) -> list[Access]:
        found: dict[Access, None] = {}
        for value in self.stages[stage]:
            if self.exprs[value].op in ("load", "gather"):
                found[self.exprs[value].value[0]] = None
        for store in self.kernel.stages[stage].stores:
            found[store.access] = None
        return list(found)

    def weight(self, stage: int) -> int:
        """Roughly how many instructions one vector of a stage takes."""
        total = 0
        for value in self.stages[stage]:
            expr = self.exprs[value]
            if expr.op in ("const", "acc", "axis", "size"):
                continue
            cost = 20 if expr.op in HEAVY else 4 if expr.op in ("div", "floordiv", "gather") else 1
            total += cost * max(1, expr.dtype.itemsize // 4)
        return total


def accumulators(roots: Sequence[Expr]) -> set[int]:
    """The accumulator numbers some expressions use."""
    found: set[int] = set()
    seen: set[int] = set()
    stack = list(roots)
    while stack:
        expr = stack.pop()
        if id(expr) in seen:
            continue
        seen.add(id(expr))
        if expr.op == "acc":
            found.add(expr.value)
        stack.extend(expr.args)
    return found
