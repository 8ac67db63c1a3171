"""Random small loop kernels whose arithmetic is exact, so that any order of summation agrees."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from graphc.dims import Dim, DimLike, atoms, evaluate, product, symbol
from graphc.kernel import Access, Accumulator, Expr, LoopKernel, Stage, Store, Term
from graphc.types import DTYPES, DType, bool_, float32, float64, int64

Array = np.ndarray[Any, Any]

_VECTOR_EXTENTS = (0, 1, 2, 7, 15, 16, 17, 31, 33, 48, 63, 64, 65, 100, 129, 150)
_EXTENTS = (0, 1, 1, 2, 3, 4, 5)
_SAFE_OPS = ("add", "sub", "mul", "max", "min", "neg", "abs")


@dataclass
class Random:
    """One random kernel with its buffers and symbol values."""

    seed: int
    symbols: dict[Dim, int] = field(default_factory=dict)
    bufs: list[DType] = field(default_factory=list)
    data: list[Array] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.rng = np.random.default_rng(self.seed)

    def pick(self, options: Any) -> Any:
        return options[int(self.rng.integers(len(options)))]

    def chance(self, p: float) -> bool:
        return bool(self.rng.random() < p)

    def number(self, d: DimLike) -> int:
        return evaluate(d, {a: n for s, n in self.symbols.items() for a in atoms(s)})

    def extent(self, vector: bool) -> DimLike:
        n = self.pick(_VECTOR_EXTENTS if vector else _EXTENTS)
        if self.chance(0.5):
            return n
        made = symbol(f"s{len(self.symbols)}")
        self.symbols[made] = n
        return made

    # ---- buffers and accesses

    def buffer(self, dtype: DType, size: int) -> int:
        if dtype.is_bool:
            values = self.rng.integers(0, 2, size)
        elif dtype.is_float:
            values = self.rng.integers(-8, 9, size) / 4
        else:
            values = self.rng.integers(-20 if dtype.is_signed else 0, 21, size)
        self.bufs.append(dtype)
        self.data.append(np.asarray(values, dtype.numpy))
        return len(self.bufs) - 1

    def term(self, axis: int, others: list[int]) -> tuple[Term, DimLike]:
        """A term over an axis, without its stride, and how many indices it needs."""
        extent = self.axes[axis]
        kind = self.pick(("plain", "plain", "reversed", "strided", "guarded", "guarded", "pair"))
        if kind == "reversed":
            return Term(((axis, -1),), 1, shift=extent - 1), extent
        if kind == "strided":
            return Term(((axis, 2),), 1, shift=1), 2 * extent + 1
        if kind == "guarded":
            limit = max(0, self.number(extent) + int(self.rng.integers(-3, 4)))
            terms = [(axis, self.pick((1, 1, 2, -1, 3)))]
            if others and self.chance(0.4):
                terms.append((self.pick(others), self.pick((1, -1, 2))))
            shift = int(self.rng.integers(-3, 4))
            return Term(tuple(terms), 1, shift, self.pick((1, 1, 2, 3)), limit), limit
        if kind == "pair" and others:
            other = self.pick(others)
            if other != axis:
                return Term(((axis, 1), (other, 1)), 1), extent + self.axes[other]
        return Term(((axis, 1),), 1), extent

    def lay_out(self, terms: list[tuple[Term, DimLike]], dtype: DType, extra: int) -> Access:
        """Strides and a buffer for some terms, in a random order of axes."""
        order = [terms[i] for i in self.rng.permutation(len(terms))]
        done = []
        for i, (term, _) in enumerate(order):
            stride = product([count for _, count in order[i + 1 :]])
            done.append(Term(term.axes, stride, term.shift, term.div, term.limit))
        offset = int(self.rng.integers(3))
        size = self.number(product([count for _, count in order])) + offset + extra
        return Access(self.buffer(dtype, size), tuple(done), offset)

    def load(self, axes: list[int], dtype: DType) -> Expr:
        used = [a for a in axes if self.chance(0.8)]
        terms = [self.term(a, axes) for a in used]
        access = self.lay_out(terms, dtype, 1)
        fill = self.pick((0, 1)) if any(t.limit is not None for t, _ in terms) else 0
        return Expr("load", (), (access, fill), dtype)

    def gather(self, axes: list[int], dtype: DType) -> Expr:
        index = self.load(axes, int64)
        extent = int(self.rng.integers(1, 12))
        access = self.lay_out([], dtype, extent)
        return Expr("gather", (index,), (access, extent), dtype)

    # ---- expressions

    def leaf(self, axes: list[int], dtype: DType, accs: list[Expr]) -> Expr:
        known = [a for a in accs if a.dtype is dtype]
        if known and self.chance(0.5):
            return self.pick(known)
        kind = self.rng.random()
        if kind < 0.1 and not dtype.is_bool:
            return Expr("const", (), self.pick((0, 1, 2)), dtype)
        if kind < 0.2 and axes and not dtype.is_bool:
            index = Expr("axis", (), self.pick(axes), int64)
            return Expr("cast", (index,), None, dtype)
        if kind < 0.25 and not dtype.is_bool:
            return Expr("size", (), self.pick(self.axes), dtype)
        if kind < 0.4:
            return self.gather(axes, dtype)
        return self.load(axes, dtype)

    def expr(self, axes: list[int], dtype: DType, accs: list[Expr], depth: int = 2) -> Expr:
        if depth == 0 or self.chance(0.2):
            return self.leaf(axes, dtype, accs)
        a = self.expr(axes, dtype, accs, depth - 1)
        b = self.expr(axes, dtype, accs, depth - 1)
        if self.chance(0.2):
            other = self.pick((float32, float64, int64))
            x = self.expr(axes, other, accs, depth - 1)
            y = self.expr(axes, other, accs, depth - 1)
            test = Expr(self.pick(("lt", "le", "eq", "ne", "gt", "ge")), (x, y), None, bool_)
            return Expr("select", (test, a, b), None, dtype)
        if dtype.is_bool:
            return Expr(self.pick(("and", "or", "xor")), (a, b), None, dtype)
        name = self.pick(_SAFE_OPS)
        if name == "mul" and depth > 1:
            name = "add"  # products stay small enough to be exact
        return Expr(name, (a,) if name in ("neg", "abs") else (a, b), None, dtype)

    # ---- stages

    def accumulator(self, axes: list[int], accs: list[Expr]) -> Accumulator:
        dtype = self.pick(DTYPES)
        x = self.expr(axes, dtype, accs)
        if dtype.is_bool:
            return Accumulator(self.pick(("any", "all")), x, dtype)
        name = self.pick(("sum", "sum", "prod", "max", "min", "argmax", "argmin"))
        if name == "prod" and dtype.is_float:
            zero, one, two = (Expr("const", (), v, dtype) for v in (0, 1, -1))
            test = Expr("lt", (x, zero), None, bool_)
            x = Expr("select", (test, two, one), None, dtype)
        return Accumulator(name, x, int64 if name.startswith("arg") else dtype)

    def store(self, par: list[int], red: list[int], accs: list[Expr]) -> Store:
        dtype = self.pick([a.dtype for a in accs]) if accs else self.pick(DTYPES)
        value = self.expr(par + red, dtype, accs)
        kept = [a for a in red if self.chance(0.7)]
        terms = []
        for axis in par + kept:
            extent = self.axes[axis]
            if self.chance(0.2):
                limit = max(0, self.number(extent) - 1)
                shift = int(self.rng.integers(-1, 2))
                terms.append((Term(((axis, 1),), 1, shift=shift, limit=limit), limit))
            elif self.chance(0.2):
                terms.append((Term(((axis, -1),), 1, shift=extent - 1), extent))
            else:
                terms.append((Term(((axis, 1),), 1), extent))
        add = self.chance(0.3)
        if self.chance(0.8):
            return Store(self.lay_out(terms, dtype, 1), value, add=add)
        extent = int(self.rng.integers(1, 6))
        index = self.load(par + red, int64)
        elements = (Term((), 1), extent)
        scaled = [(t, n) for t, n in terms]
        order = [*scaled, elements]
        done = []
        for i, (term, _) in enumerate(order):
            stride = product([count for _, count in order[i + 1 :]])
            done.append(Term(term.axes, stride, term.shift, term.div, term.limit))
        size = self.number(product([count for _, count in order]))
        access = Access(self.buffer(dtype, size), tuple(done))
        return Store(access, value, index, extent, add)

    def kernel(self) -> LoopKernel:
        rank = int(self.rng.integers(1, 5))
        rows = self.chance(0.5)
        vec = int(self.rng.integers(rank))
        self.axes = [self.extent(a == vec) for a in range(rank)]
        rest = [int(a) for a in self.rng.permutation(rank) if a != vec]
        cut = int(self.rng.integers(len(rest) + 1))
        par, red = rest[:cut], rest[cut:]
        if rows:
            red = [*red, vec]
        else:
            par = [*par, vec]
        stages, accs = [], []
        for _ in range(int(self.rng.integers(1, 4))):
            if red and self.chance(0.6):
                made = [self.accumulator(par + red, accs) for _ in range(self.pick((0, 1, 1, 2)))]
                own = [Expr("acc", (), len(accs) + i, a.dtype) for i, a in enumerate(made)]
                running = accs + own if self.chance(0.3) else accs
                stores = [
                    self.store(par, red, running) for _ in range(self.pick((0, 1)) if made else 1)
                ]
                accs = accs + own
                stages.append(Stage(tuple(red), tuple(made), tuple(stores)))
            else:
                stages.append(Stage((), (), (self.store(par, [], accs),)))
        if accs:
            stages.append(Stage((), (), tuple(self._output(par, acc) for acc in accs)))
        return LoopKernel(tuple(self.axes), tuple(par), vec, tuple(self.bufs), tuple(stages))

    def _output(self, par: list[int], acc: Expr) -> Store:
        terms = [(Term(((a, 1),), 1), self.axes[a]) for a in par]
        return Store(self.lay_out(terms, acc.dtype, 1), acc)
