"""The epilogue of a contraction: scalar expressions over a finished tile of C, then stores.

Runs along the rows of the tile, LANES columns at a time.  Columns at the edge are masked.
Imports: text, scalar, contract_access, kernel, dims, types.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from graphc.backends.codegen.contract_access import (
    Group,
    Operand,
    Record,
    advanced,
    fused_axes,
    guards_axis,
    linear,
    sum_records,
)
from graphc.backends.codegen.scalar import emit_scalar
from graphc.backends.codegen.text import (
    LANE_INDEX,
    LANES,
    FunctionText,
    literal,
    memory_type,
    scalar_type,
    splat_literal,
    suffix,
    vector,
)
from graphc.dims import mul
from graphc.kernel import Access, Contraction, Expr, Store, expressions_of
from graphc.types import DType, int64

MASK = vector("i1")
WIDE = vector("i64")
DOUBLES = vector("double")

_LANE_DOUBLES = "<" + ", ".join(f"double {float(i)}" for i in range(LANES)) + ">"
_LANES32 = LANE_INDEX.replace("i64", "i32")
_ALL = "splat (i1 true)"
_SHIFT = splat_literal(2.0**52, "double")
"""Added to a double below 2**52 it leaves no room for a fraction."""


@dataclass(frozen=True)
class Place:
    """LANES elements of the tile: coordinates of row and batch axes, first column, mask ('' for
    all of them)."""

    scalars: Mapping[int, str]
    column: str
    mask: str
    acc: str


@dataclass(frozen=True)
class Rows:
    """`count` rows of the tile: their axes, coordinates of the first, those of batch axes."""

    group: Group
    first: Mapping[int, str]
    count: str
    batch: Mapping[int, str]


@dataclass(frozen=True)
class Columns:
    """`count` columns of the tile: LANES at a time (`full`), fewer left over (`rest`), or both.

    With `again` at least LANES columns exist, and what is left over is finished with some that were
    finished before: processors are slow to store under a mask.  See `finishes_again`.
    """

    first: str
    count: str
    full: bool
    rest: bool
    again: bool = False


class Epilogue:
    """Emits the expressions and stores of a contraction; `cols` is the vector axis group."""

    def __init__(self, f: FunctionText, c: Contraction, cols: Group) -> None:
        self.f = f
        self.c = c
        self.cols = cols
        self.operands: dict[Access, Operand] = {}
        self.place = Place({}, "", "", "")
        self.values: dict[Expr, str] = {}
        self.columns: dict[int, str] = {}
        for store in c.stores:
            self._prepare(store.access)
            self._prepare_expr(store.expr)
            if store.index is not None:
                self._prepare_expr(store.index)

    def _prepare(self, access: Access) -> None:
        if access not in self.operands:
            axes = range(len(self.c.axes))
            itemsize = self.c.bufs[access.buf].itemsize
            self.operands[access] = Operand(self.f, access, itemsize, axes)

    def _prepare_expr(self, e: Expr) -> None:
        if e.op in ("load", "gather"):
            self._prepare(e.value[0])
        for operand in e.args:
            self._prepare_expr(operand)

    def over(self, rows: Rows, columns: Columns, c: str, c_row: int) -> None:
        """The epilogue of a tile of C at `c`, whose rows are `c_row` bytes apart."""
        f = self.f
        start = [("ptr", c), *(("i64", at) for at in rows.first.values())]
        down = f.open_loop(0, rows.count, 1, start)
        here = dict(zip(rows.first, down.carried[1:], strict=True))
        self.across(columns, {**rows.batch, **here}, down.carried[0])
        following = advanced(f, rows.group, here)
        f.close_loop(down, [f.offset(down.carried[0], c_row), *(following[a] for a in here)])

    def across(self, columns: Columns, scalars: Mapping[int, str], c: str) -> None:
        """The epilogue of one row of the tile, at `c`."""
        f, itemsize = self.f, self.c.dtype.itemsize
        whole = f.value(f"and i64 {columns.count}, {-LANES}") if columns.full else "0"
        if columns.full:
            end = whole if columns.rest else columns.count
            self._along(columns, ("0", end), scalars, c, False)
        if columns.again:
            self._vector(columns, f.sub(columns.count, LANES), scalars, c, "", itemsize)
        elif columns.rest:
            self._along(columns, (whole, columns.count), scalars, c, True)

    def fetch_ahead(
        self, rows: Rows, column: str, tile_rows: int, tile_cols: int, wanted: str
    ) -> None:
        """If `wanted`, ask for what the epilogue of a tile at some column reads and writes: where
        its rows are along one axis."""
        f = self.f
        if len(rows.group.axes) != 1:
            return
        axis = rows.group.axes[0]
        ask, after = f.fresh("ask"), f.fresh("after")
        f.branch_if(wanted, ask, after)
        f.label(ask)
        for operand, written in self.along_rows(axis):
            part = operand.part(f, {**rows.batch, **rows.first})
            record = sum_records(f, operand.origin(), part)
            record[0] = f.add(record[0], column)
            address, _ = operand.locate(f, record)
            for r in range(tile_rows):
                row = f.offset(address, f.mul(operand.strides[axis], r * operand.itemsize))
                for line in range(0, tile_cols * operand.itemsize, 64):
                    f.prefetch(f.offset(row, line), write=written)
        f.branch(after)
        f.label(after)

    def along_rows(self, axis: int) -> list[tuple[Operand, bool]]:
        """What has columns that lie side by side, and other ones at each index of an axis; and
        whether it is written."""
        written = {store.access for store in self.c.stores}
        return [
            (operand, a in written)
            for a, operand in self.operands.items()
            if self._contiguous(a) and not operand.guards and operand.strides[axis] != "0"
        ]

    def _along(
        self,
        columns: Columns,
        part: tuple[str, str],
        scalars: Mapping[int, str],
        c: str,
        masked: bool,
    ) -> None:
        """The epilogue of a part of the columns of a row; `masked` if some lanes may be missing."""
        f = self.f
        across = f.open_loop(*part, LANES)
        mask = ""
        if masked:
            left = f.value(f"trunc i64 {f.sub(part[1], across.index)} to i32")
            mask = f.value(f"icmp slt {vector('i32')} {_LANES32}, {f.splat('i32', left)}")
        aligned = LANES * self.c.dtype.itemsize // 2
        self._vector(columns, across.index, scalars, c, mask, aligned)
        f.close_loop(across)

    def _vector(
        self,
        columns: Columns,
        at: str,
        scalars: Mapping[int, str],
        c: str,
        mask: str,
        aligned: int,
    ) -> None:
        """The epilogue of LANES columns of a row, from one on."""
        f, scalar = self.f, scalar_type(self.c.dtype)
        address = f.offset(c, f.mul(at, self.c.dtype.itemsize))
        acc = f.value(f"load {vector(scalar)}, ptr {address}, align {aligned}")
        self.emit(Place(scalars, f.add(columns.first, at), mask, acc))

    def emit(self, place: Place) -> None:
        """All stores for LANES elements: every expression is read before the first is written."""
        self.place = place
        self.values = {}
        self.columns = {}
        results = [self._value(store.expr) for store in self.c.stores]
        for store, result in zip(self.c.stores, results, strict=True):
            self._store(store, result)

    # ---- expressions

    def _value(self, e: Expr) -> str:
        found = self.values.get(e)
        if found is None:
            found = self.values[e] = self._compute(e)
        return found

    def _compute(self, e: Expr) -> str:
        f, scalar = self.f, scalar_type(e.dtype)
        if e.op == "acc":
            return self.place.acc
        if e.op == "const":
            return splat_literal(e.value, scalar)
        if e.op == "size":
            return self._number(f.splat("i64", f.dim(e.value)), e.dtype)
        if e.op == "axis":
            return self._axis(e.value)
        if e.op == "load":
            access, fill = e.value
            return self._load(access, literal(fill, scalar), e.dtype)
        if e.op == "gather":
            access, extent = e.value
            index = self._value(e.args[0])
            below = f.value(f"icmp ult {WIDE} {index}, {f.splat('i64', f.dim(extent))}")
            return self._gather(access, literal(0, scalar), e.dtype, index, below)
        operand = e.args[1].dtype if e.op == "select" else e.args[0].dtype
        return emit_scalar(f, e.op, [self._value(x) for x in e.args], operand, e.dtype)

    def _number(self, wide: str, dtype: DType) -> str:
        return wide if dtype is int64 else emit_scalar(self.f, "cast", [wide], int64, dtype)

    def _axis(self, axis: int) -> str:
        if axis in self.place.scalars:
            return self.f.splat("i64", self.place.scalars[axis])
        return self._column_coordinates()[axis]

    def _column_coordinates(self) -> dict[int, str]:
        """Indices along the column axes, a vector each.

        Worked out as numbers of floating point, as `FunctionText.udiv` does; whole numbers below
        2**52 are the low bits of their sum with 2**52.
        """
        f, axes = self.f, self.cols.axes
        if self.columns or not axes:
            return self.columns
        if len(axes) == 1:
            splat = f.splat("i64", self.place.column)
            self.columns[axes[0]] = f.value(f"add {WIDE} {splat}, {LANE_INDEX}")
        else:
            first = f.splat("double", f.known(f"sitofp i64 {self.place.column} to double"))
            flat = f.value(f"fadd {DOUBLES} {first}, {_LANE_DOUBLES}")
            for i in range(len(axes) - 1, 0, -1):
                extent = f.smax(f.dim(self.cols.extents[i]), 1)
                flat, here = self._divided(flat, extent)
                self.columns[axes[i]] = self._whole(here)
            self.columns[axes[0]] = self._whole(flat)
        return self.columns

    def _divided(self, flat: str, extent: str) -> tuple[str, str]:
        """Quotient and rest of whole numbers in vectors of doubles."""
        f = self.f
        scalar = f.known(f"sitofp i64 {extent} to double")
        divisor = f.splat("double", scalar)
        near = f.value(f"fdiv {DOUBLES} {flat}, {divisor}")
        near = f.value(f"fadd {DOUBLES} {near}, {_SHIFT}")
        near = f.value(f"fsub {DOUBLES} {near}, {_SHIFT}")
        above = f.value(f"fcmp ogt {DOUBLES} {self._times(near, divisor)}, {flat}")
        below = f.value(f"fsub {DOUBLES} {near}, {splat_literal(1.0, 'double')}")
        quotient = f.value(f"select {MASK} {above}, {DOUBLES} {below}, {DOUBLES} {near}")
        covered = self._times(quotient, divisor)
        return quotient, f.value(f"fsub {DOUBLES} {flat}, {covered}")

    def _times(self, a: str, b: str) -> str:
        return self.f.value(f"fmul {DOUBLES} {a}, {b}")

    def _whole(self, x: str) -> str:
        shifted = self.f.value(f"fadd {DOUBLES} {x}, {_SHIFT}")
        bits = self.f.value(f"bitcast {DOUBLES} {shifted} to {WIDE}")
        return self.f.value(f"and {WIDE} {bits}, splat (i64 {2**52 - 1})")

    # ---- memory

    def _uniform(self, access: Access) -> bool:
        return all(linear(access, a) == 0 and not guards_axis(access, a) for a in self.cols.axes)

    def _contiguous(self, access: Access) -> bool:
        return fused_axes(access, self.cols) == len(self.cols.axes) > 0

    def _row_record(self, operand: Operand) -> Record:
        return sum_records(self.f, operand.origin(), operand.part(self.f, self.place.scalars))

    def _along_columns(self, access: Access) -> tuple[str, str]:
        """First address and mask of LANES contiguous elements."""
        f, operand = self.f, self.operands[access]
        record = self._row_record(operand)
        record[0] = f.add(record[0], self.place.column)
        address, inside = operand.locate(f, record)
        if inside:
            return address, self._and(self.place.mask, f.splat("i1", inside))
        return address, self.place.mask

    def _scattered(self, access: Access, index: str, below: str) -> tuple[str, str]:
        """LANES addresses and a mask, for any access."""
        f, operand = self.f, self.operands[access]
        columns = self._column_coordinates()
        record = self._row_record(operand)
        words = [f.splat("i64", word) for word in record]
        for axis, coords in columns.items():
            factors = [operand.strides[axis]]
            factors += [guard.coefs.get(axis, "0") for guard in operand.guards]
            for i, factor in enumerate(factors):
                if factor != "0":
                    moved = f.value(f"mul {WIDE} {coords}, {f.splat('i64', factor)}")
                    words[i] = f.value(f"add {WIDE} {words[i]}, {moved}")
        offset, mask = words[0], self.place.mask
        for guard, numerator in zip(operand.guards, words[1:], strict=True):
            at = numerator
            if guard.div != 1:
                divisor = f.splat("i64", str(guard.div))
                at = f.value(f"sdiv {WIDE} {numerator}, {divisor}")
                back = f.value(f"mul {WIDE} {at}, {divisor}")
                mask = self._and(mask, f.value(f"icmp eq {WIDE} {back}, {numerator}"))
                moved = f.value(f"mul {WIDE} {at}, {f.splat('i64', guard.stride)}")
                offset = f.value(f"add {WIDE} {offset}, {moved}")
            limit = f.splat("i64", guard.limit)
            mask = self._and(mask, f.value(f"icmp ult {WIDE} {at}, {limit}"))
        if index:
            offset = f.value(f"add {WIDE} {offset}, {index}")
        if below:
            mask = self._and(mask, below)
        kind = memory_type(self.c.bufs[access.buf])
        return f.value(f"getelementptr {kind}, ptr {operand.base}, {WIDE} {offset}"), mask

    def _and(self, a: str, b: str) -> str:
        if not a or not b:
            return a or b
        return self.f.value(f"and {MASK} {a}, {b}")

    def _load(self, access: Access, fill: str, dtype: DType) -> str:
        f, kind = self.f, memory_type(dtype)
        if self._uniform(access):
            return self._load_one(access, fill, dtype)
        if not self._contiguous(access):
            return self._gather(access, fill, dtype, "", "")
        address, mask = self._along_columns(access)
        if not mask:
            x = f.value(f"load {vector(kind)}, ptr {address}, align {dtype.itemsize}")
            return self._from_memory(x, dtype)
        x = f.call(
            vector(kind),
            f"llvm.masked.load.{suffix(kind)}.p0",
            ("ptr", address),
            ("i32", str(dtype.itemsize)),
            (MASK, mask),
            (vector(kind), _fill(fill, kind)),
        )
        return self._from_memory(x, dtype)

    def _load_one(self, access: Access, fill: str, dtype: DType) -> str:
        """A value that all columns share."""
        f, kind, operand = self.f, memory_type(dtype), self.operands[access]
        address, inside = operand.locate(f, self._row_record(operand))
        if not inside:
            one = f.value(f"load {kind}, ptr {address}, align {dtype.itemsize}")
            return self._from_memory(f.splat(kind, one), dtype)
        before, yes, no = f.block, f.fresh("in"), f.fresh("out")
        f.branch_if(inside, yes, no)
        f.label(yes)
        one = f.value(f"load {kind}, ptr {address}, align {dtype.itemsize}")
        f.branch(no)
        f.label(no)
        one = f.value(f"phi {kind} [ {_bit(fill)}, %{before} ], [ {one}, %{yes} ]")
        return self._from_memory(f.splat(kind, one), dtype)

    def _gather(self, access: Access, fill: str, dtype: DType, index: str, below: str) -> str:
        f, kind = self.f, memory_type(dtype)
        addresses, mask = self._scattered(access, index, below)
        x = f.call(
            vector(kind),
            f"llvm.masked.gather.{suffix(kind)}.v{LANES}p0",
            (vector("ptr"), addresses),
            ("i32", str(dtype.itemsize)),
            (MASK, mask or _ALL),
            (vector(kind), _fill(fill, kind)),
        )
        return self._from_memory(x, dtype)

    def _from_memory(self, x: str, dtype: DType) -> str:
        if not dtype.is_bool:
            return x
        return self.f.value(f"icmp ne {vector('i8')} {x}, zeroinitializer")

    def _store(self, store: Store, x: str) -> None:
        f, dtype = self.f, self.c.bufs[store.access.buf]
        kind = memory_type(dtype)
        if store.add:
            old = self._load(store.access, literal(0, scalar_type(dtype)), dtype)
            x = emit_scalar(f, "add", [old, x], dtype, dtype)
        if dtype.is_bool:
            x = f.value(f"zext {MASK} {x} to {vector('i8')}")
        if store.index is None and self._contiguous(store.access):
            address, mask = self._along_columns(store.access)
            if not mask:
                f.emit(f"store {vector(kind)} {x}, ptr {address}, align {dtype.itemsize}")
                return
            f.call(
                "void",
                f"llvm.masked.store.{suffix(kind)}.p0",
                (vector(kind), x),
                ("ptr", address),
                ("i32", str(dtype.itemsize)),
                (MASK, mask),
            )
            return
        index, below = "", ""
        if store.index is not None:
            index = self._value(store.index)
            extent = f.splat("i64", f.dim(store.extent or 0))
            below = f.value(f"icmp ult {WIDE} {index}, {extent}")
        addresses, mask = self._scattered(store.access, index, below)
        f.call(
            "void",
            f"llvm.masked.scatter.{suffix(kind)}.v{LANES}p0",
            (vector(kind), x),
            (vector("ptr"), addresses),
            ("i32", str(dtype.itemsize)),
            (MASK, mask or _ALL),
        )


def walks_as_one(c: Contraction, rows: Group) -> bool:
    """Whether all that the epilogue reads and writes lies a constant stride apart, row by row."""
    if len(rows.axes) < 2:
        return True
    found = [store.access for store in c.stores]
    for e in expressions_of(c):
        if e.op == "axis" and e.value in rows.axes:
            return False
        if e.op in ("load", "gather"):
            found.append(e.value[0])
    for access in found:
        steps = [linear(access, axis) for axis in rows.axes]
        whole = [mul(n, step) for n, step in zip(rows.extents, steps, strict=True)]
        if steps[:-1] != whole[1:] or any(guards_axis(access, axis) for axis in rows.axes):
            return False
    return True


def finishes_again(c: Contraction, cols: Group) -> bool:
    """Whether columns may be finished twice: nothing that the epilogue reads is overwritten by it,
    and it writes along the columns."""
    stored = {(s.access.terms, s.access.offset) for s in c.stores}
    for store in c.stores:
        if store.add or store.index is not None:
            return False
        if fused_axes(store.access, cols) < max(len(cols.axes), 1):
            return False
    for e in expressions_of(c):
        if e.op in ("gather", "check"):
            return False
        if e.op == "load" and (e.value[0].terms, e.value[0].offset) in stored:
            return False
    return True


def _bit(fill: str) -> str:
    """A scalar constant as it is in memory."""
    return {"true": "1", "false": "0"}.get(fill, fill)


def _fill(fill: str, kind: str) -> str:
    return f"splat ({kind} {_bit(fill)})"
