"""The kernel IR: what fusion and lowering produce and every backend prints as machine code.

A kernel is a loop nest (`LoopKernel`) or a `Contraction`, a matrix product over affine operand
maps.  Both address memory by `Access`: guarded affine index maps with symbolic strides, so one
kernel serves every size.  Both compute with `Expr`, a typed scalar DAG over primitive scalar
operations (`SCALAR_OPS`).  ABI: `void kernel(ptr args, ptr sizes, i64 block0, i64 block1)`: blocks,
never threads; `blocks(kernel)` says how many there are.  Imports: types, dims.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Union

from graphc.dims import Dim, DimLike, ceildiv, mul, product
from graphc.forks import new_lock
from graphc.types import DType
from graphc.winograd import FILTERINGS

VIRTUAL_LANES = 64
"""A reduction along the vector axis sends element i to lane i mod 64, on every target."""

MAP_BLOCK = 4096
"""Elements a block of a one-dimensional map covers (a multiple of VIRTUAL_LANES)."""

COLUMN_BLOCK = 64
"""Columns a block covers when the only parallel axis is the vector axis and rows are reduced."""


@dataclass(frozen=True)
class Term:
    """One index: `i = (sum(coef * axis) + shift) / div`, times an element stride.

    With a `limit` the index is guarded: it is inside when `0 <= i < limit` and `div` divides the
    numerator exactly; a load with any index outside yields its fill value and touches no memory.
    Without a limit the index is always inside, and `div` rounds down: only loads of loop kernels
    have such a term, along the vector axis alone and with no shift.
    """

    axes: tuple[tuple[int, DimLike], ...]  # (kernel axis, coefficient)
    stride: DimLike
    shift: DimLike = 0
    div: int = 1
    limit: DimLike | None = None


@dataclass(frozen=True)
class Access:
    """Element `offset + sum(index * stride)` of buffer `buf`."""

    buf: int
    terms: tuple[Term, ...]
    offset: DimLike = 0


class Expr:
    """A typed scalar expression, interned: equal expressions are one object, computed once.

    op          args            value
    'load'      ()              (Access, fill)     fill: the number a guarded load yields outside
    'gather'    (index,)        (Access, extent)   element at the Access plus index (i64, in
                                                   elements); reads 0 unless 0 <= index < extent
    'const'     ()              Python number
    'axis'      ()              kernel axis        its index, i64
    'size'      ()              DimLike            a size, as a number of this dtype
    'acc'       ()              accumulator number: the final value in later stages, the running
                                value in stores of its own stage
    'check'     (value, ok)     check number       value; where not ok, records a fault and
                                                   continues (the run is abandoned before commit)
    other       operands        None               a scalar operation of SCALAR_OPS

    Arithmetic operators build expressions; Python numbers become constants of the same dtype.
    """

    __slots__ = ("__weakref__", "args", "dtype", "op", "value")
    _interned: ClassVar[weakref.WeakValueDictionary[Any, Expr]] = weakref.WeakValueDictionary()
    _lock: ClassVar[threading.Lock] = new_lock()

    op: str
    args: tuple[Expr, ...]
    value: Any
    dtype: DType

    def __new__(cls, op: str, args: tuple[Expr, ...], value: Any, dtype: DType) -> Expr:
        # 1, 1.0, True, 0.0 and -0.0 are different constants though Python calls some of them equal
        exact = (type(value), repr(value)) if op == "const" else value
        key = (op, args, exact, dtype.name)
        with cls._lock:
            found = cls._interned.get(key)
            if found is None:
                found = object.__new__(cls)
                found.op, found.args, found.value, found.dtype = op, args, value, dtype
                cls._interned[key] = found
        return found

    def __reduce__(self) -> Any:
        return Expr, (self.op, self.args, self.value, self.dtype)

    def __repr__(self) -> str:
        if self.op == "const":
            return f"{self.value!r}:{self.dtype}"
        inside = [repr(a) for a in self.args]
        if self.value is not None:
            inside.append(repr(self.value))
        return f"{self.op}({', '.join(inside)}):{self.dtype}"

    def _with(self, op: str, other: Expr | float, swap: bool = False) -> Expr:
        if not isinstance(other, Expr):
            other = Expr("const", (), other, self.dtype)
        pair = (other, self) if swap else (self, other)
        return Expr(op, pair, None, self.dtype)

    def __add__(self, other: Expr | float) -> Expr:
        return self._with("add", other)

    def __radd__(self, other: float) -> Expr:
        return self._with("add", other, True)

    def __sub__(self, other: Expr | float) -> Expr:
        return self._with("sub", other)

    def __rsub__(self, other: float) -> Expr:
        return self._with("sub", other, True)

    def __mul__(self, other: Expr | float) -> Expr:
        return self._with("mul", other)

    def __rmul__(self, other: float) -> Expr:
        return self._with("mul", other, True)

    def __truediv__(self, other: Expr | float) -> Expr:
        return self._with("div", other)

    def __rtruediv__(self, other: float) -> Expr:
        return self._with("div", other, True)

    def __neg__(self) -> Expr:
        return Expr("neg", (self,), None, self.dtype)


# name -> (number of operands, result): 'same' the operand dtype, 'bool', or 'cast' (Expr.dtype)
# Integer arithmetic wraps.  Comparisons are ordered (false on NaN) except 'ne'.
SCALAR_OPS: dict[str, tuple[int, str]] = {
    # arithmetic, all number dtypes; 'div' is float only; integer 'floordiv' and 'mod' follow
    # Python's signs, 'fmod' C's; lowering guards a zero integer divisor by 'check' and 'select'
    "add": (2, "same"),
    "sub": (2, "same"),
    "mul": (2, "same"),
    "div": (2, "same"),
    "floordiv": (2, "same"),
    "mod": (2, "same"),
    "fmod": (2, "same"),
    "fma": (3, "same"),  # a * b + c, rounded once; float only
    "neg": (1, "same"),
    "abs": (1, "same"),
    "max": (2, "same"),  # NaN if either is, as np.maximum
    "min": (2, "same"),
    # comparison, logic, bits
    "eq": (2, "bool"),
    "ne": (2, "bool"),
    "lt": (2, "bool"),
    "le": (2, "bool"),
    "gt": (2, "bool"),
    "ge": (2, "bool"),
    "and": (2, "same"),  # bool or integer bits
    "or": (2, "same"),
    "xor": (2, "same"),
    "not": (1, "same"),
    "shl": (2, "same"),  # integer; shift count below the width
    "shr": (2, "same"),  # arithmetic for signed, logical for unsigned
    "mulhi": (2, "same"),  # high half of the u32 x u32 product
    "select": (3, "same"),  # (bool, a, b)
    # C rules; float to int truncates and saturates, NaN gives 0; to bool: != 0
    "cast": (1, "cast"),
    "bitcast": (1, "cast"),  # same width
    # float only
    "floor": (1, "same"),
    "ceil": (1, "same"),
    "round": (1, "same"),  # half to even
    "trunc": (1, "same"),
    "copysign": (2, "same"),
    "isnan": (1, "bool"),
    "isinf": (1, "bool"),
    "isfinite": (1, "bool"),
    "sqrt": (1, "same"),
    "exp": (1, "same"),
    "expm1": (1, "same"),
    "exp2": (1, "same"),
    "log": (1, "same"),
    "log1p": (1, "same"),
    "log2": (1, "same"),
    "log10": (1, "same"),
    "sin": (1, "same"),
    "cos": (1, "same"),
    "tan": (1, "same"),
    "asin": (1, "same"),
    "acos": (1, "same"),
    "atan": (1, "same"),
    "atan2": (2, "same"),
    "sinh": (1, "same"),
    "cosh": (1, "same"),
    "tanh": (1, "same"),
    "asinh": (1, "same"),
    "acosh": (1, "same"),
    "atanh": (1, "same"),
    "erf": (1, "same"),
    "erfc": (1, "same"),
    "cbrt": (1, "same"),
    "pow": (2, "same"),  # float as C99 pow; integer: exponent >= 0, wraps
    "sigmoid": (1, "same"),
}

_HYPERBOLIC = {"sinh", "cosh", "tanh", "asinh", "acosh", "atanh", "sigmoid"}
_TRIGONOMETRIC = {"sin", "cos", "tan", "asin", "acos", "atan", "atan2"}
_EXPONENTIAL = {"exp", "expm1", "exp2", "log", "log1p", "log2", "log10", "pow", "cbrt"}
_OTHER = {"erf", "erfc", "mod", "fmod"}
HEAVY = frozenset(_HYPERBOLIC | _TRIGONOMETRIC | _EXPONENTIAL | _OTHER)
"""Operations of many instructions: copies of them are not worth their code or their time."""

REDUCERS = ("sum", "prod", "max", "min", "any", "all", "argmax", "argmin")
"""'max' and 'min' yield NaN if any element is; 'argmax' and 'argmin' give the first best position
(row-major over the stage's reduce axes, NaN counts as best), as i64; 'any' and 'all' take bool."""


@dataclass(frozen=True)
class Accumulator:
    """A value reduced over a stage's loop.  'sum' of floats adds in a fixed order (VIRTUAL_LANES
    along the vector axis, of several rows `abreast` a share each; ascending otherwise)."""

    op: str  # one of REDUCERS
    expr: Expr
    dtype: DType


@dataclass(frozen=True)
class Store:
    """Write `expr` (cast to nothing: dtypes must agree) to an access.

    `index` adds a data-dependent element offset (i64).  `add` accumulates into memory instead of
    overwriting; such stores run in ascending order of the stage's loop.  Where any term of the
    access is guarded and outside, or `index` is outside [0, extent), nothing is written.
    """

    access: Access
    expr: Expr
    index: Expr | None = None
    extent: DimLike | None = None
    add: bool = False


@dataclass(frozen=True)
class Stage:
    """A loop over `red` axes that updates accumulators and performs stores in each iteration.

    `red = ()` is straight-line code.  Later stages may use the accumulators of earlier ones.  In
    each iteration every expression is evaluated before the first store, so an output may take over
    the memory of an input that is read at the same place.
    """

    red: tuple[int, ...]
    accs: tuple[Accumulator, ...] = ()
    stores: tuple[Store, ...] = ()


@dataclass(frozen=True)
class Ragged:
    """Axis `axis` covers rows `chunk_axis * chunk ...` of `total`, at most `chunk` of them."""

    axis: int
    chunk_axis: int
    chunk: DimLike
    total: DimLike


@dataclass(frozen=True)
class LoopKernel:
    """Parallel axes around a list of stages; one axis is the vector axis.

    `axes` are extents (64-bit); `par` lists parallel axes outer first; `vec` is the last parallel
    axis, or the last reduce axis of every stage that has one.  Buffers `0 .. len(bufs)-1` are
    `args[i]`; when `checks > 0`, `args[len(bufs)]` is the fault record: four i64, zeroed before the
    run (flag, check number, linear position in row-major order of `par`, the offending value).

    `abreast` rows may be summed side by side where there are two stages, a sum along `vec` and what
    follows from it, and one parallel axis is not of size 1.
    """

    axes: tuple[DimLike, ...]
    par: tuple[int, ...]
    vec: int
    bufs: tuple[DType, ...]
    stages: tuple[Stage, ...]
    ragged: tuple[Ragged, ...] = ()
    checks: int = 0
    abreast: int = 1


@dataclass(frozen=True)
class Cut:
    """How code generation cuts a contraction, decided from all that was known of its sizes.

    code      what the code is written for: its own business
    numbers   what the code can also read at run time, so that contractions that differ in nothing
              else can share a kernel
    most      for each of the numbers the largest it may be; () if the numbers are known
    panel     columns of the panels B may be packed in by a step of its own, 0 if it may not be:
              what lowering asks for, see `Contraction`; no part of what the kernel does
    """

    code: tuple[Any, ...]
    numbers: tuple[DimLike, ...]
    most: tuple[int, ...] = ()
    panel: int = 0


@dataclass(frozen=True)
class Contraction:
    """C[batch, m, n] = sum over k of A(batch, m, k) * B(batch, k, n), then an epilogue.

    Axes are numbered batch first, then m, n, k.  Buffer 0 is A, buffer 1 is B; the epilogue's
    stores address batch, m and n axes and use Expr 'acc' 0.  k is summed in ascending row-major
    order with one fused multiply-add each, so tiling never changes bits.  An element outside its
    guards contributes nothing: its step is skipped, or adds a product with zero where the other
    factor is finite; beside infinities and NaN a kernel may do either.

    winograd   0, or the side of the tiles of outputs that Winograd's minimal filtering makes
               (see graphc.winograd).  The contraction is a convolution then: m is image, row and
               column, n a filter, k tap row, tap column (3 each) and channel; A has one guarded
               term for row + tap row and one for column + tap column, and its channels are
               contiguous.  It means the same sum, but only within the error of that filtering:
               bits follow from the place of an element in its image alone, and what is not finite
               in A may reach all outputs of a tile.

    With a `panel` buffer 1 holds B packed, and `b` only names it.  Batch, n and k then count as one
    axis each, row-major, and buffer 1 is [batch][panel of n][k][column of the panel], contiguous:

        B(batch, k, n) is element
        ((batch * ceil(N / panel) + n // panel) * K + k) * panel + n % panel

    Columns of the last panel from N on hold zeros.  With Winograd's filtering it is the filters
    transformed, and K counts points (row-major in their square) and channels.
    """

    batch: tuple[DimLike, ...]
    m: tuple[DimLike, ...]
    n: tuple[DimLike, ...]
    k: tuple[DimLike, ...]
    a: Access
    b: Access
    bufs: tuple[DType, ...]
    stores: tuple[Store, ...]
    dtype: DType
    cut: Cut | None = None
    winograd: int = 0
    panel: int = 0

    @property
    def axes(self) -> tuple[DimLike, ...]:
        return self.batch + self.m + self.n + self.k


Kernel = Union[LoopKernel, Contraction]


def packed_shape(c: Contraction, panel: int) -> tuple[DimLike, DimLike, DimLike, int]:
    """The sizes of B packed: batch, panels, k and columns of a panel."""
    steps = mul(FILTERINGS[c.winograd].points, c.k[-1]) if c.winograd else product(c.k)
    return product(c.batch), ceildiv(product(c.n), panel), steps, panel


_PARTS = (LoopKernel, Contraction, Stage, Store, Accumulator, Access, Term, Ragged, Cut)
"""What a kernel consists of besides expressions, sizes and numbers."""

_FIELDS: dict[Any, tuple[str, ...]] = {p: tuple(f.name for f in fields(p)) for p in _PARTS}

_HOLDERS = frozenset((LoopKernel, Contraction, Stage, Store, Accumulator))
"""The parts that have expressions."""

_DONE = object()
"""Marks an expression whose operands have been visited."""


def sizes_of(kernel: Kernel) -> tuple[Dim, ...]:
    """The symbolic sizes a kernel reads, in the order of its `sizes` table."""
    found: dict[Dim, None] = {}
    visited: set[int] = set()
    stack: list[Any] = [kernel]
    while stack:
        part = stack.pop()
        kind = type(part)
        if kind is tuple:
            stack.extend(part[::-1])
        elif kind is Dim:
            found[part] = None
        elif kind is Expr:
            if id(part) not in visited:
                visited.add(id(part))
                stack += (part.args, part.value)
        elif kind in _FIELDS:
            stack.extend([getattr(part, name) for name in reversed(_FIELDS[kind])])
    return tuple(found)


def rebuild(kernel: Kernel, changed: Callable[[Any], Any]) -> Kernel:
    """The kernel with parts replaced: `changed(part)` is what takes a part's place, or None where
    the part stays and its own parts are looked at.  Parts are the classes of this module, and Dim.
    Expressions are asked about once each, operands first, when their own parts have been replaced.
    """
    done: dict[int, Expr] = {}

    def rebuilt(part: Any) -> Any:
        kind: Callable[..., Any] = type(part)
        if kind is tuple:
            return tuple([rebuilt(x) for x in part])
        if kind is Expr:
            return done[id(part)]
        names = _FIELDS.get(kind)
        if names is None and kind is not Dim:
            return part
        new = changed(part)
        if new is not None:
            return new
        return part if names is None else kind(*[rebuilt(getattr(part, name)) for name in names])

    for e in expressions_of(kernel):
        made = Expr(e.op, rebuilt(e.args), rebuilt(e.value), e.dtype)
        new = changed(made)
        done[id(e)] = made if new is None else new
    result: Kernel = rebuilt(kernel)
    return result


def expressions_of(kernel: Kernel) -> list[Expr]:
    """Every expression of a kernel, each after its operands.  Depth is not limited."""
    order: list[Expr] = []
    visited: set[int] = set()
    stack: list[Any] = [kernel]
    while stack:
        part = stack.pop()
        kind = type(part)
        if part is _DONE:
            order.append(stack.pop())
        elif kind is tuple:
            stack.extend(part)
        elif kind is Expr:
            if id(part) not in visited:
                visited.add(id(part))
                stack += (part, _DONE, *part.args)
        elif kind in _HOLDERS:
            stack.extend([getattr(part, name) for name in _FIELDS[kind]])
    return order


def grid_axes(kernel: LoopKernel) -> tuple[int, ...]:
    """The parallel axes that blocks enumerate, row-major: at most two besides the vector axis."""
    return tuple(a for a in kernel.par if a != kernel.vec)[:2]


def row_axis(kernel: LoopKernel) -> int:
    """The parallel axis of a kernel with rows abreast that is not of size 1."""
    return next(a for a in kernel.par if kernel.axes[a] != 1)


def blocks(kernel: Kernel) -> DimLike:
    """How many independent blocks a loop kernel has: a formula in sizes, never in threads."""
    assert isinstance(kernel, LoopKernel)
    if kernel.abreast > 1:
        return ceildiv(kernel.axes[row_axis(kernel)], kernel.abreast)
    grid = grid_axes(kernel)
    if grid:
        return product(kernel.axes[a] for a in grid)
    if kernel.vec in kernel.par:
        reduces = any(stage.red for stage in kernel.stages)
        return ceildiv(kernel.axes[kernel.vec], COLUMN_BLOCK if reduces else MAP_BLOCK)
    return 1


def elements(kernel: LoopKernel) -> DimLike:
    """Size of a loop kernel's whole iteration space."""
    return product(kernel.axes)
