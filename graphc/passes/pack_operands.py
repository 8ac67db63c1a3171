"""Right operands of contractions packed by steps of their own.

    before:  y = x @ w     each block of rows of y packs w again
    after:   p = w in panels;  y = x @ p

A panel is as many columns as the register tile is wide, so that code reads one contiguous stream.
Contractions that read the same elements in the same panels share a step, however many there are.
Bits do not change.  Imports: kernel, dims, types, fuse, lasting, lower_winograd, operands.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from graphc import dims
from graphc.dims import DimLike
from graphc.kernel import (
    Access,
    Contraction,
    Cut,
    Expr,
    Kernel,
    LoopKernel,
    Stage,
    Store,
    Term,
    packed_shape,
)
from graphc.node import Tensor
from graphc.passes.groups import Fusion
from graphc.passes.lasting import lasting_values
from graphc.passes.lower_winograd import filters_kernel
from graphc.passes.operands import LoweredStep, Partial, Value
from graphc.types import DType

CutOf = Callable[[Contraction], Cut]
"""How a back end cuts a contraction."""

BLOCK_ROWS = 384
"""Rows of C for which packing B in the blocks, out of a cache, costs what a step for it does."""

UNKNOWN_ROWS = 256
"""Rows of C where their number is known only at run time, and how many products share B."""

FEW_ROWS = 8
"""Up to so many rows read B where it lies."""

COMPUTED = 4
"""How many more times what was just computed has to be packed: it is still in a cache."""

GATHERED = 4
"""How many more times filters have to be transformed whose elements must be gathered."""

WORTH = 1 << 14
"""Elements whose packing again is to be saved before a step pays."""

FEW_ELEMENTS = 1 << 14
"""Fewest elements worth a step that is run once."""

STRIP = 8
"""Steps of k copied together: then sources far apart are read along several rows at once."""


Walk = tuple[DimLike, DimLike]
"""The extent of an axis, and how many elements B moves per step of it."""


@dataclass(frozen=True)
class Source:
    """What is packed of an array: its walks over the batch, along the columns and along k.

    winograd  as in `Contraction`: k is walked along tap rows, tap columns and channels then
    """

    batch: tuple[Walk, ...]
    column: Walk
    depth: tuple[Walk, ...]
    offset: DimLike
    dtype: DType
    winograd: int = 0


def pack_operands(
    fusion: Fusion,
    steps: Sequence[LoweredStep],
    cut_of: CutOf,
    packs: bool = True,
    keep: bool = True,
) -> list[LoweredStep]:
    """The steps with contractions cut, and if `packs` with steps that pack where those pay.

    keep  whether what is packed of variables alone will be kept between runs
    """
    return _Packer(fusion, steps, cut_of, packs, keep).steps()


def packed(c: Contraction, panel: int) -> Contraction:
    """The contraction that reads its right operand in panels so wide."""
    return replace(c, b=Access(1, ()), cut=None, panel=panel)


@dataclass
class _Operand:
    """A right operand and what reads it."""

    source: Source
    panel: int = 0
    rows: int = 0  # of all readers
    most: int = 0  # of one reader
    partial: Partial | None = None

    def read(self, rows: int, panel: int) -> None:
        """Note one more reader; the panels are as the one with most rows wants them."""
        self.rows += rows
        if rows > self.most:
            self.most, self.panel = rows, panel


class _Packer:
    def __init__(
        self,
        fusion: Fusion,
        steps: Sequence[LoweredStep],
        cut_of: CutOf,
        packs: bool,
        keep: bool,
    ) -> None:
        self.given = steps
        self.packs = packs
        self.kernels = [s.kernels for s in steps]  # kept, as what is known of them goes by identity
        self.cut_of = cut_of
        self.lasting = lasting_values(fusion.program, steps) if keep else set()
        self._cut: dict[tuple[int, int], Contraction] = {}
        self._sources: dict[int, Source | None] = {}
        self._operands: dict[tuple[int, Source], _Operand] = {}
        for s in steps:
            operand = self._operand(s)
            if operand is not None:
                assert isinstance(s.kernel, Contraction)
                panel = self._with_cut(s.kernel, 0).cut
                assert panel is not None
                operand.read(_assumed(s.kernel.m), panel.panel)

    def steps(self) -> list[LoweredStep]:
        result: list[LoweredStep] = []
        for s in self.given:
            c = s.kernel
            if not isinstance(c, Contraction):
                result.append(s)
                continue
            operand = self._operand(s)
            if operand is None or not self._pays(c, s.args[1], operand):
                s.kernel, s.others = self._with_cut(c, 0), tuple(map(self._cut_other, s.others))
                result.append(s)
                continue
            if operand.partial is None:
                shape = packed_shape(c, operand.panel)
                operand.partial = Partial("packed operand", c.dtype, shape)
                pack, label = pack_kernel(operand.source, operand.panel), "pack"
                if c.winograd:
                    label = f"filters of winograd F({c.winograd}x{c.winograd},3x3)"
                pair = (s.args[1], operand.partial)
                result.append(LoweredStep(pack, pair, (1,), label, s.locs))
            s.kernel = self._with_cut(c, operand.panel)
            s.args = (s.args[0], operand.partial, *s.args[2:])
            result.append(s)
        return result

    def _operand(self, step: LoweredStep) -> _Operand | None:
        """The right operand of a step, if it can be packed."""
        c = step.kernel
        if not isinstance(c, Contraction) or step.others or not self.packs:
            return None
        if id(c) not in self._sources:
            cut = self._with_cut(c, 0).cut
            assert cut is not None
            self._sources[id(c)] = source_of(c) if cut.panel else None
        source = self._sources[id(c)]
        if source is None:
            return None
        return self._operands.setdefault((id(step.args[1]), source), _Operand(source))

    def _with_cut(self, c: Contraction, panel: int) -> Contraction:
        """The contraction, reading panels if there is one, with its cut."""
        key = (id(c), panel)
        if key not in self._cut:
            made = packed(c, panel) if panel else c
            self._cut[key] = replace(made, cut=self.cut_of(made))
        return self._cut[key]

    def _cut_other(self, kernel: Kernel) -> Kernel:
        return self._with_cut(kernel, 0) if isinstance(kernel, Contraction) else kernel

    def _pays(self, c: Contraction, value: Value, operand: _Operand) -> bool:
        """Whether a step that packs takes less than packing in the blocks, of all readers."""
        elements = _assumed(c.k) * _assumed(c.n)
        if id(value) in self.lasting:
            return elements >= FEW_ELEMENTS  # packed once for many runs
        if operand.most <= FEW_ROWS or (c.batch and not _is_leaf(value)):
            return False
        again = operand.rows // BLOCK_ROWS - 1
        if not _is_leaf(value):
            again -= COMPUTED
        if c.winograd and operand.source.column[1] != 1:
            again -= GATHERED
        return again * elements >= WORTH


def _is_leaf(value: Value) -> bool:
    return isinstance(value, Tensor) and value.node.kind in ("leaf", "state")


def _assumed(extents: Iterable[DimLike]) -> int:
    size = dims.product(extents)
    return size if isinstance(size, int) else UNKNOWN_ROWS


# ---- the kernel that packs ---------------------------------------------------------------------


def source_of(c: Contraction) -> Source | None:
    """What there is to pack of the right operand of a contraction; None if that cannot be done."""
    if any(t.limit is not None for t in c.b.terms):
        return None
    if c.winograd:
        column, *walks = (walk for a in (3, 4, 5, 6) for walk in _walks(c, (a,)) or [(1, 0)])
        return Source((), column, tuple(walks), c.b.offset, c.dtype, c.winograd)
    first = len(c.batch) + len(c.m)
    columns = _walks(c, range(first, first + len(c.n)))
    depth = _walks(c, range(first + len(c.n), len(c.axes)))
    if len(columns) > 1 or not depth:
        return None
    offset = c.b.offset
    for t in c.b.terms:
        offset = dims.add(offset, dims.mul(t.shift, t.stride))
    batch = _walks(c, range(len(c.batch)))
    return Source(tuple(batch), columns[0] if columns else (1, 0), tuple(depth), offset, c.dtype)


def _walks(c: Contraction, axes: Iterable[int]) -> list[Walk]:
    """The axes as B walks them, those that follow each other evenly as one."""
    found: list[Walk] = []
    for axis in axes:
        extent = c.axes[axis]
        if extent == 1:
            continue
        step: DimLike = 0
        for term in c.b.terms:
            for moved, coefficient in term.axes:
                if moved == axis:
                    step = dims.add(step, dims.mul(coefficient, term.stride))
        if found and found[-1][1] == dims.mul(extent, step):
            found[-1] = (dims.mul(found[-1][0], extent), step)
        else:
            found.append((extent, step))
    return found


def pack_kernel(s: Source, panel: int) -> LoopKernel:
    """Copies a right operand to panels; columns that do not exist are 0.

    Axes are the batch, k, panels and columns of a panel.  Where the source is contiguous along k
    that is the inner loop, around vectors along the columns: each line is used up while it is near.
    """
    if s.winograd:
        return filters_kernel(s.winograd, s.column, s.depth, s.offset, s.dtype, panel)
    columns, stride = s.column
    last, step = s.depth[-1]
    panels = dims.ceildiv(columns, panel)
    steps = dims.product(extent for extent, _ in s.depth)
    transposed = step == 1 and stride != 1
    inner = 1 if transposed else _strip(last)
    split = [(dims.ceildiv(last, inner), dims.mul(inner, step)), (inner, step)]
    walks = [*s.batch, *s.depth[:-1], *(split if inner != 1 else s.depth[-1:])]
    axes: list[DimLike] = [extent for extent, _ in walks]
    across, within = len(axes), len(axes) + 1
    axes += [panels, panel]
    source = [Term(((a, 1),), s) for a, (_, s) in enumerate(walks) if s != 0]
    limit = None if dims.factor(columns) % panel == 0 else columns
    source.append(Term(((across, panel), (within, 1)), stride, 0, 1, limit))
    places = [Term(((within, 1),), 1), Term(((across, 1),), dims.mul(steps, panel))]
    place: DimLike = panel
    for a in reversed(range(len(walks))):
        if a == len(s.batch) - 1:
            place = dims.mul(dims.mul(steps, panels), panel)
        places.append(Term(((a, 1),), place))
        place = dims.mul(place, walks[a][0])
    load = Expr("load", (), (Access(0, tuple(source), s.offset), 0), s.dtype)
    store = Store(Access(1, tuple(places)), load)
    red = (across - 1,) if transposed else ()
    outer = list(range(len(s.batch) + len(s.depth) - (1 if transposed else 0)))
    par = [*outer, across, *([across - 1] if inner != 1 else []), within]
    stages = (Stage(red, (), (store,)),)
    return LoopKernel(tuple(axes), tuple(par), within, (s.dtype, s.dtype), stages)


def _strip(extent: DimLike) -> int:
    """Steps of k copied together: a divisor of their number."""
    factor = dims.factor(extent)
    return max(n for n in range(1, STRIP + 1) if factor % n == 0)
