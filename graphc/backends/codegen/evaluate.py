"""Emits the values of a loop kernel, each in the outermost open loop that defines it.

`Evaluator` keeps one scope per open loop: the values and address cursors computed there.  A value
is a vector of LANES, or one number of each thread; `unit` tells apart the vectors of one step along
the vector axis.
Imports: address, memory, numbering, scalar, text, kernel, types.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from graphc.backends.codegen.address import Cursor, advance, prepare, resolve, start
from graphc.backends.codegen.faults import record_fault
from graphc.backends.codegen.memory import Place, load, store
from graphc.backends.codegen.numbering import Numbering
from graphc.backends.codegen.scalar import emit_scalar
from graphc.backends.codegen.text import (
    LANE_INDEX,
    LANES,
    FunctionText,
    scalar_type,
)
from graphc.kernel import Access, Expr, LoopKernel, Store
from graphc.types import DType, int64


@dataclass
class _Scope:
    opened: int
    values: dict[tuple[int, int], str] = field(default_factory=dict)
    cursors: dict[Access, Cursor] = field(default_factory=dict)


class Evaluator:
    """The open loops of a kernel and every value known in them."""

    def __init__(self, f: FunctionText, kernel: LoopKernel, numbering: Numbering) -> None:
        self.f = f
        self.kernel = kernel
        self.numbering = numbering
        self.index: dict[int, str] = {}
        self.mask: str | None = None
        self.accs: dict[tuple[int, int], str] = {}
        self.available = 0
        self.aligned: Mapping[Access, int] = {}
        """Bytes that divide addresses of one lane, where they are more than usual."""
        self._ragged = {r.axis: r for r in kernel.ragged}
        self._scopes = [_Scope(0)]
        accesses = dict.fromkeys(a for found in numbering.accesses for a in found)
        self._addresses = {a: prepare(f, a, kernel.bufs[a.buf].itemsize) for a in accesses}
        for access, address in self._addresses.items():
            self._scopes[0].cursors[access] = start(f, address)

    def extent(self, axis: int) -> str:
        """How many indices an axis has here (ragged axes: in the current chunk)."""
        f = self.f
        ragged = self._ragged.get(axis)
        if ragged is None:
            return f.dim(self.kernel.axes[axis])
        chunk = f.dim(ragged.chunk)
        first = f.mul(self.index[ragged.chunk_axis], chunk)
        return f.smax(f.smin(chunk, f.sub(f.dim(ragged.total), first)), 0)

    # ---- scopes

    def enter(self, index: dict[int, str], stages: Sequence[int]) -> None:
        """Begin the body of loops over some axes, around some stages."""
        opened = sum(1 << a for a in index)
        self.index.update(index)
        self.available |= opened
        scope = _Scope(opened)
        for stage in stages:
            for access in self.numbering.accesses[stage]:
                if access in scope.cursors:
                    continue
                old = self._cursor(access)
                new = advance(
                    self.f,
                    self._addresses[access],
                    old,
                    opened,
                    self.available,
                    self.index,
                    self.kernel.vec if self.f.lanes > 1 else None,
                )
                if new is not old:
                    scope.cursors[access] = new
        self._scopes.append(scope)

    def leave(self) -> None:
        self.available &= ~self._scopes.pop().opened

    def define_acc(self, acc: int, unit: int, value: str) -> None:
        """The final value of an accumulator, for later stages."""
        self.accs[acc, unit] = value
        self.available |= self.numbering.acc_bit(acc)

    def forget_accs(self, accs: Sequence[int]) -> None:
        for acc in accs:
            self.available &= ~self.numbering.acc_bit(acc)

    def hoist(self, stage: int, units: int) -> None:
        """Emit here what later loops of a stage need and is defined already."""
        numbering = self.numbering
        for value in numbering.stages[stage]:
            uses = numbering.uses[value]
            if uses & ~self.available or numbering.stored[value]:
                continue
            # A check may not be moved before a loop that might not run.
            if numbering.checked[value] and not uses:
                continue
            if numbering.exprs[value].op == "const":
                continue
            for unit in range(units if numbering.depends_on_lane(value) else 1):
                self._value(value, unit)

    def forget_reads(self, buffers: int) -> None:
        """Drop every value read from some buffers, which are about to change."""
        stored = self.numbering.stored
        if not self.numbering.reread & buffers:
            return
        for scope in self._scopes:
            for key in [k for k in scope.values if stored[k[0]] & buffers]:
                del scope.values[key]

    def guard_of(self, access: Access) -> str | None:
        """What must hold for an access to be inside, as far as the open loops tell."""
        return self._cursor(access).guard

    def assume(self, guard: str, stage: int) -> None:
        """In the loop opened last, a guard of accesses of a stage holds."""
        for access in self.numbering.accesses[stage]:
            cursor = self._cursor(access)
            if cursor.guard == guard:
                self._scopes[-1].cursors[access] = Cursor(cursor.pointer)

    def _cursor(self, access: Access) -> Cursor:
        for scope in reversed(self._scopes):
            found = scope.cursors.get(access)
            if found is not None:
                return found
        raise KeyError(access)

    # ---- values

    def value(self, expr: Expr, unit: int) -> str:
        return self._value(self.numbering.of(expr), unit)

    def _find(self, value: int, unit: int) -> str | None:
        expr = self.numbering.exprs[value]
        if expr.op == "const":
            return self.f.constant(expr.value, scalar_type(expr.dtype))
        key = (value, unit if self.numbering.depends_on_lane(value) else 0)
        for scope in reversed(self._scopes):
            found = scope.values.get(key)
            if found is not None:
                return found
        return None

    def _value(self, value: int, unit: int) -> str:
        found = self._find(value, unit)
        if found is not None:
            return found
        stack = [value]
        while stack:
            top = stack[-1]
            if self._find(top, unit) is not None:
                stack.pop()
                continue
            missing = [a for a in self.numbering.args[top] if self._find(a, unit) is None]
            if missing:
                stack.extend(missing)
                continue
            stack.pop()
            args = [self._known(a, unit) for a in self.numbering.args[top]]
            key = (top, unit if self.numbering.depends_on_lane(top) else 0)
            self._scopes[-1].values[key] = self._emit(top, args, unit)
        return self._known(value, unit)

    def _known(self, value: int, unit: int) -> str:
        found = self._find(value, unit)
        assert found is not None
        return found

    def _emit(self, value: int, args: list[str], unit: int) -> str:
        f = self.f
        expr = self.numbering.exprs[value]
        dtype = expr.dtype
        if expr.op == "load":
            access, fill = expr.value
            place = self._place(access, unit)
            return load(f, self.kernel.bufs[access.buf], place, self.mask, fill)
        if expr.op == "gather":
            access, extent = expr.value
            differs = self.numbering.depends_on_lane(self.numbering.args[value][0])
            place = self._place(access, unit, (args[0], f.dim(extent), differs))
            return load(f, self.kernel.bufs[access.buf], place, self.mask)
        if expr.op == "axis":
            return self._axis(expr.value, unit, int64)
        if expr.op == "cast" and expr.args[0].op == "axis" and dtype.is_integer:
            return self._axis(expr.args[0].value, unit, dtype)
        if expr.op == "size":
            number = f.splat("i64", f.dim(expr.value))
            return emit_scalar(f, "cast", (number,), int64, dtype)
        if expr.op == "acc":
            return self.accs[expr.value, unit if self.kernel.vec in self.kernel.par else 0]
        if expr.op == "check":
            self._check(expr, args, unit)
            return args[0]
        operand = expr.args[1] if expr.op == "select" else expr.args[0]
        return emit_scalar(f, expr.op, args, operand.dtype, dtype)

    def _axis(self, axis: int, unit: int, dtype: DType) -> str:
        """The indices along an axis as integers, counted in the width that is asked for."""
        f, scalar = self.f, scalar_type(dtype)
        along = axis == self.kernel.vec and f.lanes > 1
        first = f.add(self.index[axis], LANES * unit) if along else self.index[axis]
        if dtype.bits < 64:
            first = f.known(f"trunc i64 {first} to {scalar}")
        if not along:
            return f.splat(scalar, first)
        lanes = LANE_INDEX.replace("i64", scalar)
        return f.value(f"add {f.vector(scalar)} {f.splat(scalar, first)}, {lanes}")

    # ---- memory

    @property
    def vector_open(self) -> bool:
        return bool(self.available >> self.kernel.vec & 1)

    def _place(
        self,
        access: Access,
        unit: int,
        element: tuple[str, str | None, bool] | None = None,
    ) -> Place:
        vec = self.kernel.vec if self.vector_open and self.f.lanes > 1 else None
        if vec is None and element is not None:
            element = (element[0], element[1], False)
        address, cursor = self._addresses[access], self._cursor(access)
        place = resolve(self.f, address, cursor, self.index, vec, unit, element)
        aligned = self.aligned.get(access, 0) if self.aligned else 0
        return replace(place, aligned=aligned) if aligned else place

    def stores(self, items: Sequence[Store], unit: int) -> None:
        """Emit the stores of one iteration of a stage, and forget values they make stale.

        Every value is computed before the first is written: an output may be an input's memory.
        """
        self.write(self.evaluated(items, unit))

    def evaluated(self, items: Sequence[Store], unit: int) -> list[tuple[Store, str, Place]]:
        """What stores will write, and where."""
        made = []
        for item in items:
            element = None
            if item.index is not None:
                index = self.numbering.of(item.index)
                extent = None if item.extent is None else self.f.dim(item.extent)
                element = (
                    self._value(index, unit),
                    extent,
                    self.numbering.depends_on_lane(index),
                )
            value = self.value(item.expr, unit)
            made.append((item, value, self._place(item.access, unit, element)))
        return made

    def write(self, made: Sequence[tuple[Store, str, Place]]) -> None:
        """Emit stores of values that are known, and forget those that they make stale."""
        for item, value, place in made:
            dtype = self.kernel.bufs[item.access.buf]
            store(self.f, dtype, place, self.mask, value, item.add, self.vector_open)
        for item, _, _ in made:
            self.forget_reads(1 << item.access.buf)

    def _check(self, expr: Expr, args: list[str], unit: int) -> None:
        record_fault(
            self.f,
            self.kernel,
            expr.value,
            args[0],
            args[1],
            expr.dtype,
            self.mask if self.vector_open else None,
            self._position(unit),
            self.vector_open and self.kernel.vec in self.kernel.par,
        )

    def _position(self, unit: int) -> list[tuple[str, str]]:
        """(index, extent) of each parallel axis; axes whose loops are not open count as 0."""
        parts = []
        for axis in self.kernel.par:
            index = self.index[axis] if self.available >> axis & 1 else "0"
            if axis == self.kernel.vec and self.vector_open:
                index = self.f.add(index, LANES * unit)
            parts.append((index, self.f.dim(self.kernel.axes[axis])))
        return parts
