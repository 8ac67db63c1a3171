"""Symbolic sizes: integers or canonical interned polynomials.

A dimension is an `int` or a `Dim`: a polynomial with integer coefficients over atoms.  An atom is a
symbol (a size known only at run time) or a function of other dimensions:

    floordiv(a, b)  ediv(a, b)  exact division, checked when sizes are known (reshape's -1)
    bc(a, b)        the broadcast of two unknown sizes
    min(a, b)  max(a, b)

Equal dimensions are the same object, so equality is identity and costs nothing.  Imports: errors.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from functools import lru_cache
from typing import Any, ClassVar, Union

from graphc.errors import ShapeError
from graphc.forks import new_rlock

DimLike = Union[int, "Dim"]
_lock = new_rlock()

REMEMBERED = 1 << 15
"""Sums and products of sizes that are remembered: a deep network asks for the same few again."""

LONG = 10_000  # characters of a size in text


class Atom:
    """A symbol (`kind == 'symbol'`) or a named function of dimensions; interned."""

    __slots__ = ("anonymous", "args", "kind", "name", "serial")
    _interned: ClassVar[dict[object, Atom]] = {}
    _serial: ClassVar[Iterator[int]] = itertools.count()

    kind: str
    name: str
    args: tuple[DimLike, ...]
    anonymous: bool
    serial: int

    @classmethod
    def of(cls, kind: str, args: tuple[DimLike, ...] = (), name: str = "") -> Atom:
        key = (kind, name, args)
        with _lock:
            atom = cls._interned.get(key)
            if atom is None:
                atom = object.__new__(cls)
                atom.kind, atom.name, atom.args = kind, name, args
                atom.anonymous = "?" in name
                atom.serial = next(cls._serial)
                cls._interned[key] = atom
        return atom

    def __lt__(self, other: Atom) -> bool:
        return self.serial < other.serial

    def __reduce__(self) -> tuple[Any, ...]:
        return Atom.of, (self.kind, self.args, self.name)

    def __repr__(self) -> str:
        return dim_text(of_atom(self))


Monomial = tuple[Atom, ...]


class Dim:
    """A symbolic size: an interned polynomial over atoms.  Arithmetic gives a Dim or an int."""

    __slots__ = ("__weakref__", "terms")
    _interned: ClassVar[dict[tuple[tuple[Monomial, int], ...], Dim]] = {}

    terms: tuple[tuple[Monomial, int], ...]

    def __add__(self, other: DimLike) -> DimLike:
        return add(self, other)

    __radd__ = __add__

    def __sub__(self, other: DimLike) -> DimLike:
        return add(self, mul(-1, other))

    def __rsub__(self, other: DimLike) -> DimLike:
        return add(other, mul(-1, self))

    def __neg__(self) -> DimLike:
        return mul(-1, self)

    def __mul__(self, other: DimLike) -> DimLike:
        return mul(self, other)

    __rmul__ = __mul__

    def __floordiv__(self, other: DimLike) -> DimLike:
        return floordiv(self, other)

    def __repr__(self) -> str:
        return dim_text(self)

    def __reduce__(self) -> tuple[Any, ...]:
        return _restored, (self.terms,)


def _make(terms: dict[Monomial, int]) -> DimLike:
    items = [(m, c) for m, c in terms.items() if c]
    if not items:
        return 0
    if len(items) == 1 and items[0][0] == ():
        return items[0][1]
    items.sort(key=_term_key)
    key = tuple(items)
    found = Dim._interned.get(key)
    if found is None:
        with _lock:
            found = Dim._interned.get(key)
            if found is None:
                found = object.__new__(Dim)
                found.terms = key
                Dim._interned[key] = found
    return found


def _restored(terms: tuple[tuple[Monomial, int], ...]) -> DimLike:
    return _make(dict(terms))


def polynomial(terms: Iterable[tuple[Iterable[Atom], int]]) -> DimLike:
    """The sum of coefficient * product of atoms; products and factors in any order."""
    return _make({tuple(sorted(factors)): coefficient for factors, coefficient in terms})


def _term_key(item: tuple[Monomial, int]) -> tuple[int, tuple[int, ...]]:
    return -len(item[0]), tuple(a.serial for a in item[0])


def _terms(d: DimLike) -> dict[Monomial, int]:
    return dict(d.terms) if isinstance(d, Dim) else {(): d}


def symbol(name: str) -> Dim:
    """The size called `name`; the same name is the same size."""
    made = _make({(Atom.of("symbol", name=name),): 1})
    assert isinstance(made, Dim)
    return made


def of_atom(atom: Atom, coefficient: int = 1) -> DimLike:
    """coefficient * atom."""
    return _make({(atom,): coefficient})


_fresh = itertools.count()


def fresh(hint: str = "") -> Dim:
    """A new unknown size, equal to no other; printed as `hint?7`."""
    return symbol(f"{hint}?{next(_fresh)}")


def add(a: DimLike, b: DimLike) -> DimLike:
    if isinstance(a, int) and isinstance(b, int):
        return a + b
    if isinstance(b, int) and b == 0:
        return a
    if isinstance(a, int) and a == 0:
        return b
    return _sum(a, b)


@lru_cache(REMEMBERED)
def _sum(a: DimLike, b: DimLike) -> DimLike:
    terms = _terms(a)
    for m, c in _terms(b).items():
        terms[m] = terms.get(m, 0) + c
    return _make(terms)


def mul(a: DimLike, b: DimLike) -> DimLike:
    if isinstance(a, int) and isinstance(b, int):
        return a * b
    if isinstance(b, int) and b == 1:
        return a
    if isinstance(a, int) and a == 1:
        return b
    return _product(a, b)


@lru_cache(REMEMBERED)
def _product(a: DimLike, b: DimLike) -> DimLike:
    terms: dict[Monomial, int] = {}
    for m, c in _terms(a).items():
        for n, d in _terms(b).items():
            for p, e in _cancel(tuple(sorted(m + n)), c * d).items():
                terms[p] = terms.get(p, 0) + e
    return _make(terms)


def _cancel(m: Monomial, c: int) -> dict[Monomial, int]:
    """Multiply out `k * ediv(e, k)`, which is exactly `e`."""
    for i, atom in enumerate(m):
        if atom.kind != "ediv":
            continue
        numerator, divisor = atom.args
        rest = m[:i] + m[i + 1 :]
        if isinstance(divisor, int):
            if c % divisor == 0:
                return _terms(mul(_make({rest: c // divisor}), numerator))
            continue
        quotient = _divide_exactly(_make({rest: c}), divisor)
        if quotient is not None:
            return _terms(mul(quotient, numerator))
    return {m: c}


def product(dims: Iterable[DimLike]) -> DimLike:
    result: DimLike = 1
    for d in dims:
        result = mul(result, d)
    return result


def total(dims: Iterable[DimLike]) -> DimLike:
    result: DimLike = 0
    for d in dims:
        result = add(result, d)
    return result


def _divide_exactly(a: DimLike, b: DimLike) -> DimLike | None:
    """a / b as a polynomial when that is exact for every size, else None."""
    if isinstance(a, int) and isinstance(b, int):
        return a // b if b and a % b == 0 else None
    if a is b:
        return 1
    divisor = _terms(b)
    if len(divisor) != 1:
        return None
    ((mb, cb),) = divisor.items()
    result: dict[Monomial, int] = {}
    for m, c in _terms(a).items():
        rest = list(m)
        for atom in mb:
            if atom not in rest:
                return None
            rest.remove(atom)
        if cb == 0 or c % cb:
            return None
        result[tuple(rest)] = c // cb
    return _make(result)


def divides(a: DimLike, b: DimLike) -> bool:
    """Whether b / a is a polynomial: a divides b for every size."""
    return _divide_exactly(b, a) is not None


def exact_div(a: DimLike, b: DimLike) -> DimLike:
    """a / b, where b must divide a: checked now if both are known, else when sizes are bound."""
    if isinstance(b, int) and b == 1:
        return a
    quotient = _divide_exactly(a, b)
    if quotient is not None:
        return quotient
    if isinstance(a, int) and isinstance(b, int):
        raise ShapeError(f"{a} is not a multiple of {b}")
    return _make({(Atom.of("ediv", (a, b)),): 1})


def floordiv(a: DimLike, b: DimLike) -> DimLike:
    """floor(a / b) for b > 0."""
    if isinstance(b, int) and b == 1:
        return a
    if isinstance(a, int) and isinstance(b, int):
        return a // b
    quotient = _divide_exactly(a, b)
    if quotient is not None:
        return quotient
    return _make({(Atom.of("floordiv", (a, b)),): 1})


def ceildiv(a: DimLike, b: DimLike) -> DimLike:
    """ceil(a / b) for b > 0."""
    if isinstance(a, int) and isinstance(b, int):
        return -(-a // b)
    return floordiv(add(a, add(b, -1)), b)


def factor(d: DimLike) -> int:
    """The largest number that certainly divides d; 0 divides by everything, and gives 0."""
    return abs(d) if isinstance(d, int) else math.gcd(*(c for _, c in d.terms))


def minimum(a: DimLike, b: DimLike) -> DimLike:
    return _extreme("min", min, a, b)


def maximum(a: DimLike, b: DimLike) -> DimLike:
    return _extreme("max", max, a, b)


def _extreme(kind: str, pick: Callable[[int, int], int], a: DimLike, b: DimLike) -> DimLike:
    if a is b:
        return a
    difference = add(a, mul(-1, b))
    if isinstance(difference, int):
        return a if pick(difference, 0) == difference else b
    if kind == "max":  # sizes are never negative, so max(size, 0) is the size
        if isinstance(b, int) and b <= 0 and is_size(a):
            return a
        if isinstance(a, int) and a <= 0 and is_size(b):
            return b
    return _make({(Atom.of(kind, (a, b)),): 1})


@lru_cache(REMEMBERED)
def is_size(d: DimLike) -> bool:
    """Whether d is certainly not negative (a sum of products of sizes)."""
    if isinstance(d, int):
        return d >= 0
    return all(c >= 0 and all(_is_size_atom(a) for a in m) for m, c in d.terms)


def _is_size_atom(atom: Atom) -> bool:
    if atom.kind in ("symbol", "bc", "ediv"):
        return True
    if atom.kind == "max":
        return any(is_size(a) for a in atom.args)
    return all(is_size(a) for a in atom.args)


def broadcast(a: DimLike, b: DimLike) -> DimLike:
    """The broadcast of two sizes; raises ShapeError when both are known and do not fit."""
    if a is b or a == b:
        return a
    if isinstance(b, int) and b == 1:
        return a
    if isinstance(a, int) and a == 1:
        return b
    if isinstance(a, int):
        if isinstance(b, int):
            raise ShapeError(f"{a} and {b} do not broadcast")
        return a
    if isinstance(b, int):
        return b
    if b in broadcast_parts(a):
        return a
    if a in broadcast_parts(b):
        return b
    return _make({(Atom.of("bc", (a, b)),): 1})


def broadcast_parts(d: DimLike) -> frozenset[DimLike]:
    """The sizes that went into a `bc` dimension."""
    found: set[DimLike] = set()
    stack = [d]
    while stack:
        e = stack.pop()
        if isinstance(e, Dim) and len(e.terms) == 1:
            monomial, c = e.terms[0]
            if c == 1 and len(monomial) == 1 and monomial[0].kind == "bc":
                stack.extend(a for a in monomial[0].args if a not in found)
                found.update(monomial[0].args)
    return frozenset(found)


def atoms(d: DimLike) -> frozenset[Atom]:
    """The symbols d depends on."""
    return frozenset(a for a in _all_atoms(d) if a.kind == "symbol")


def _all_atoms(d: DimLike, known: Container[Atom] = ()) -> Iterable[Atom]:
    """Every atom in d, each once and after those it is a function of; none inside `known` ones."""
    # sizes share what they are made of: going into the same one again takes exponential time
    found: dict[Atom, None] = {}
    entered: set[Atom] = set()
    stack = [a for m, _ in d.terms for a in m] if isinstance(d, Dim) else []
    while stack:
        atom = stack.pop()
        if atom in entered or not atom.args or atom in known:
            found[atom] = None
            continue
        entered.add(atom)
        stack.append(atom)
        for e in atom.args:
            if isinstance(e, Dim):
                stack.extend(a for m, _ in e.terms for a in m if a not in entered)
    return found


Sizes = Mapping[Atom, int]


def evaluate(d: DimLike, sizes: Sizes) -> int:
    """The value of d when every symbol has the size given; raises ShapeError where that is none."""
    if isinstance(d, int):
        return d
    result = 0
    for m, c in d.terms:
        for atom in m:
            value = sizes.get(atom)
            if value is None:
                return _evaluate_within(d, sizes)
            c *= value
        result += c
    return result


def _evaluate_within(d: Dim, sizes: Sizes) -> int:
    values: dict[Atom, int] = {}
    for atom in _all_atoms(d, sizes):
        given = sizes.get(atom)
        values[atom] = _evaluate_atom(atom, values) if given is None else given
    return evaluate(d, values)


def _evaluate_atom(atom: Atom, values: Sizes) -> int:
    if atom.kind == "symbol":
        raise ShapeError(f"the size {atom.name!r} is not known")
    a, b = (evaluate(x, values) for x in atom.args)
    if atom.kind == "ediv":
        if a % b if b else a:
            raise ShapeError(f"{a} is not a multiple of {b}")
        return a // b if b else 0
    if atom.kind == "floordiv":
        return a // b
    if atom.kind == "bc":
        if a != b and a != 1 and b != 1:
            raise ShapeError(f"{atom.args[0]} = {a} and {atom.args[1]} = {b} do not broadcast")
        return b if a == 1 else a
    return min(a, b) if atom.kind == "min" else max(a, b)


def substitute(d: DimLike, known: Mapping[Atom, DimLike]) -> DimLike:
    """d with symbols (or whole atoms) replaced."""
    if isinstance(d, int):
        return d
    new: dict[Atom, DimLike] = {}
    for atom in _all_atoms(d, known):
        found = known.get(atom)
        if found is None and atom.args:
            found = _BUILD[atom.kind](*[_substitute(a, new) for a in atom.args])
        new[atom] = of_atom(atom) if found is None else found
    return _substitute(d, new)


def _substitute(d: DimLike, new: Mapping[Atom, DimLike]) -> DimLike:
    if isinstance(d, int):
        return d
    result: DimLike = 0
    for m, c in d.terms:
        p: DimLike = c
        for atom in m:
            p = mul(p, new[atom])
        result = add(result, p)
    return result


_BUILD = {"floordiv": floordiv, "ediv": exact_div, "bc": broadcast, "min": minimum, "max": maximum}


def dim_text(d: DimLike) -> str:
    """d as text, as the graph's text form has it: `2*batch+1`, `floordiv(n, 2)`; cut if endless."""
    texts: dict[Atom, str] = {}
    for atom in _all_atoms(d):
        text = f"{atom.kind}({', '.join(_text(a, texts) for a in atom.args)})"
        text = text if atom.args else atom.name
        texts[atom] = text if len(text) < LONG else text[:LONG] + "..."
    return _text(d, texts)


def _text(d: DimLike, texts: Mapping[Atom, str]) -> str:
    if isinstance(d, int):
        return str(d)
    parts: list[str] = []
    for m, c in d.terms:
        factors = [texts[a] for a in m]
        if c != 1 or not factors:
            if c == -1 and factors:
                factors[0] = "-" + factors[0]
            else:
                factors.insert(0, str(c))
        text = "*".join(factors)
        parts.append(text if not parts or text.startswith("-") else "+" + text)
    return "".join(parts)


def static_product(dims: Iterable[DimLike]) -> int | None:
    """The product when every dimension is known, else None."""
    values = list(dims)
    known = [d for d in values if isinstance(d, int)]
    return math.prod(known) if len(known) == len(values) else None
