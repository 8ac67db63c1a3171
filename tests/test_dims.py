"""Symbolic sizes: canonical and interned, and equal to integer arithmetic for every binding."""

from __future__ import annotations

import copy
import operator
import pickle
from collections.abc import Callable, Mapping
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphc import dims
from graphc.dims import Atom, DimLike
from graphc.errors import ShapeError
from graphc.parse_values import Symbols

NAMES = ("batch", "height", "width")
N, M = dims.symbol("n"), dims.symbol("m")

FUNCTIONS: dict[str, tuple[Callable[..., DimLike], Callable[[int, int], int]]] = {
    "add": (dims.add, operator.add),
    "mul": (dims.mul, operator.mul),
    "min": (dims.minimum, min),
    "max": (dims.maximum, max),
    "floordiv": (dims.floordiv, operator.floordiv),
    "ceildiv": (dims.ceildiv, lambda a, b: -(-a // b)),
}
"""By name: the symbolic function, and the integer function that it stands for."""

Tree = Any
"""An int, a name, or (function name, tree, tree)."""

positive = st.one_of(st.integers(1, 9), st.sampled_from(NAMES))
trees: st.SearchStrategy[Tree] = st.recursive(
    st.one_of(st.integers(-6, 9), st.sampled_from(NAMES)),
    lambda inner: st.one_of(
        st.tuples(st.sampled_from(("add", "mul", "min", "max")), inner, inner),
        st.tuples(st.sampled_from(("floordiv", "ceildiv")), inner, positive),
    ),
    max_leaves=8,
)
bindings = st.fixed_dictionaries({name: st.integers(1, 40) for name in NAMES})


def build(tree: Tree) -> DimLike:
    """The symbolic size of a tree."""
    if isinstance(tree, str):
        return dims.symbol(tree)
    if isinstance(tree, int):
        return tree
    name, a, b = tree
    return FUNCTIONS[name][0](build(a), build(b))


def compute(tree: Tree, sizes: Mapping[str, int]) -> int:
    """The value of a tree in integer arithmetic."""
    if isinstance(tree, str):
        return sizes[tree]
    if isinstance(tree, int):
        return tree
    name, a, b = tree
    return FUNCTIONS[name][1](compute(a, sizes), compute(b, sizes))


def bound(sizes: Mapping[str, int]) -> dict[Atom, int]:
    return {Atom.of("symbol", name=name): size for name, size in sizes.items()}


@settings(max_examples=300, deadline=None)
@given(trees, bindings)
def test_arithmetic_means_what_it_says(tree: Tree, sizes: dict[str, int]) -> None:
    assert dims.evaluate(build(tree), bound(sizes)) == compute(tree, sizes)


@settings(max_examples=200, deadline=None)
@given(trees)
def test_what_prints_parses_to_the_same_object(tree: Tree) -> None:
    d = build(tree)
    assert Symbols().parse(dims.dim_text(d)) is d or isinstance(d, int)
    assert Symbols().parse(dims.dim_text(d)) == d


@settings(max_examples=200, deadline=None)
@given(trees)
def test_equal_sizes_are_one_object(tree: Tree) -> None:
    d = build(tree)
    again = build(tree)
    assert again is d or (isinstance(d, int) and again == d)
    assert pickle.loads(pickle.dumps(d)) == d
    assert copy.deepcopy(d) == d


@settings(max_examples=200, deadline=None)
@given(trees, bindings, st.sampled_from(NAMES))
def test_substituting_a_number_is_binding_it(tree: Tree, sizes: dict[str, int], name: str) -> None:
    d = build(tree)
    atom = Atom.of("symbol", name=name)
    partly = dims.substitute(d, {atom: sizes[name]})
    assert atom not in dims.atoms(partly)
    assert dims.evaluate(partly, bound(sizes)) == dims.evaluate(d, bound(sizes))


@settings(max_examples=200, deadline=None)
@given(trees, bindings)
def test_a_size_is_never_negative(tree: Tree, sizes: dict[str, int]) -> None:
    d = build(tree)
    if dims.is_size(d):
        assert dims.evaluate(d, bound(sizes)) >= 0


def test_polynomials_are_canonical() -> None:
    assert dims.mul(dims.add(N, 1), dims.add(M, -1)) is dims.add(
        dims.mul(N, M), dims.add(dims.add(M, -1), dims.mul(-1, N))
    )
    assert dims.add(N, dims.mul(-1, N)) == 0
    assert dims.floordiv(dims.mul(6, dims.mul(N, M)), dims.mul(2, M)) is dims.mul(3, N)
    assert dims.maximum(N, 0) is N
    assert dims.minimum(dims.add(N, 2), dims.add(N, 5)) is dims.add(N, 2)


def test_exact_division_is_checked_when_sizes_are_known() -> None:
    half = dims.exact_div(N, 2)
    n = Atom.of("symbol", name="n")
    assert dims.mul(2, half) is N
    assert dims.evaluate(half, {n: 8}) == 4
    with pytest.raises(ShapeError, match=r"^7 is not a multiple of 2$"):
        dims.evaluate(half, {n: 7})
    with pytest.raises(ShapeError, match=r"^7 is not a multiple of 2$"):
        dims.exact_div(7, 2)


def test_broadcasting_two_unknown_sizes() -> None:
    both = dims.broadcast(N, M)
    n, m = Atom.of("symbol", name="n"), Atom.of("symbol", name="m")
    assert dims.broadcast(both, N) is both
    assert dims.broadcast(N, 1) is N
    assert dims.broadcast(N, 5) == 5
    assert [dims.evaluate(both, {n: a, m: b}) for a, b in ((1, 4), (4, 1), (3, 3))] == [4, 4, 3]
    with pytest.raises(ShapeError, match=r"^n = 2 and m = 3 do not broadcast$"):
        dims.evaluate(both, {n: 2, m: 3})
    with pytest.raises(ShapeError, match=r"^2 and 3 do not broadcast$"):
        dims.broadcast(2, 3)


def test_a_fresh_size_equals_no_other() -> None:
    assert dims.fresh("n") is not dims.fresh("n")
    with pytest.raises(ShapeError, match=r"^the size 'n' is not known$"):
        dims.evaluate(N, {})
