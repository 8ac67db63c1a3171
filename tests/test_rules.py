"""Every rule of every table keeps what it claims, on random and on special values.

Both sides of a rule are evaluated by the reference back end.  A rule whose pattern is an expression
is built from the pattern; the others say in EXAMPLES what they are tried on.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import pytest

import graphc as gx
from graphc.backends.reference import interpret
from graphc.builder import Builder, making_nodes_in
from graphc.node import OPS, ConstantValue, Tensor
from graphc.ops.math import exp, square
from graphc.ops.reduce import sum as reduce_sum
from graphc.ops.shape import broadcast_along, expand_dims, slice_axes
from graphc.passes.simplify import ALL_RULES
from graphc.passes.simplify_arithmetic import FAST_MATH_RULES
from graphc.program import Program
from graphc.rewrite import (
    EXACT,
    FAST_MATH,
    STABLE,
    Apply,
    Pattern,
    Rewriter,
    Rule,
    Splat,
    Var,
    X,
    op,
    value,
)
from graphc.types import DType, bool_, float32, float64, int8, int32, uint8

SHAPE = (6, 8)
SPECIAL = (0.0, -0.0, 1.0, -1.0, np.inf, -np.inf, np.nan, 1e-30, 3e38, 2.0, 0.5, 100.0)
RTOL = {"f32": 2e-5, "f64": 1e-12}

CONDITIONS = ("where", "invert", "bitwise_and", "bitwise_or", "bitwise_xor")

EXAMPLES: dict[str, Callable[[Tensor], Tensor]] = {
    "reshape_whole": lambda x: _make("reshape", x, shape=SHAPE),
    "transpose_whole": lambda x: _make("transpose", x, perm=(0, 1)),
    "broadcast_to_whole": lambda x: _make("broadcast_to", x, shape=SHAPE, axes=(0, 1)),
    "slice_whole": lambda x: _make("slice", x, starts=(0, 0), sizes=SHAPE, steps=(1, 1)),
    "reshape_splat": lambda x: gx.reshape(_splat((2, 3)), (6,)),
    "transpose_splat": lambda x: gx.transpose(_splat((2, 3))),
    "broadcast_to_splat": lambda x: _make(
        "broadcast_to", _splat((2, 3)), shape=(4, 2, 3), axes=(1, 2)
    ),
    "slice_splat": lambda x: slice_axes(_splat((4, 3)), (1, 0), (2, 3)),
    "reshape_reshape": lambda x: gx.reshape(gx.reshape(x, (48,)), (4, 12)),
    "transpose_transpose": lambda x: gx.transpose(
        gx.transpose(gx.reshape(x, (2, 3, 8)), (1, 2, 0)), (0, 2, 1)
    ),
    "broadcast_broadcast": lambda x: broadcast_along(
        broadcast_along(x, (6, 2, 8), (0, 2)), (3, 6, 2, 8), (1, 2, 3)
    ),
    "slice_slice": lambda x: slice_axes(
        slice_axes(x, (1, 7), (4, 8), (1, -1)), (3, 1), (2, 3), (-2, 2)
    ),
    "broadcast_expanded": lambda x: broadcast_along(expand_dims(x, 1), (6, 5, 8), (0, 1, 2)),
    "broadcast_units": lambda x: broadcast_along(
        _make("reshape", x, shape=(1, 48)), (3, 48), (0, 1)
    ),
    "transpose_units": lambda x: gx.transpose(gx.reshape(x, (6, 1, 8)), (1, 0, 2)),
    "matmul_transposed": lambda x: gx.matmul(x, gx.transpose(x)),
    "cast_same": lambda x: _make("cast", x, dtype=x.dtype),
    "cast_cast": lambda x: gx.astype(gx.astype(x, float64), int32),
    "log_sum_exp": lambda x: gx.log(reduce_sum(exp(x), axis=1)),
    "softmax": lambda x: exp(x) / broadcast_along(reduce_sum(exp(x), axis=1), SHAPE, (0,)),
    "variance": lambda x: _mean(square(x)) - square(_mean(x)),
    **{
        f"{name}_transposed": lambda x, name=name: _make(
            name,
            gx.transpose(
                x
                if name in ("max", "min")
                else gx.astype(x, "bool" if name in ("any", "all") else "i32")
            ),
            axes=(0,),
            keepdims=False,
        )
        for name in ("max", "min", "any", "all", "sum", "prod")
    },
}


def _make(name: str, *inputs: Tensor, **attrs: object) -> Tensor:
    from graphc.graph import make

    return make(OPS[name], inputs, attrs).outputs[0]


def _splat(shape: tuple[int, ...]) -> Tensor:
    return broadcast_along(gx.constant(3.5), shape, ())


def _mean(x: Tensor) -> Tensor:
    return reduce_sum(x, axis=1) / broadcast_along(gx.constant(8.0, x.dtype), (6,), ())


@dataclass
class Sides:
    """Both sides of a rule as programs over the same inputs."""

    inputs: list[Tensor] = field(default_factory=list)
    left: Tensor | None = None
    right: Tensor | None = None

    def values(self, arrays: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        assert self.left is not None and self.right is not None
        program = Program(tuple(self.inputs), (self.left, self.right))
        (a, b), _ = interpret(program, arrays, {}, {})
        return a, b


def _placeholder(sides: Sides, dtype: DType, name: str) -> Tensor:
    made = _make("placeholder", dtype=dtype, shape=SHAPE)
    sides.inputs.append(made)
    return made


# ---- building the left side --------------------------------------------------------------------


class Unbuildable(Exception):
    """The pattern has no instance of this dtype."""


def _build(pattern: Pattern, dtype: DType, sides: Sides, bound: dict[str, Tensor]) -> Tensor:
    if isinstance(pattern, Var):
        if pattern.name not in bound:
            bound[pattern.name] = _placeholder(sides, dtype, pattern.name)
        return bound[pattern.name]
    if isinstance(pattern, Splat):
        array = _splat_array(pattern, dtype)
        scalar = _make("constant", value=ConstantValue(array))
        return broadcast_along(scalar, SHAPE, ())
    args = []
    for i, a in enumerate(pattern.args):
        args.append(_build(a, _operand_dtype(pattern, i, dtype), sides, bound))
    try:
        return _make(pattern.op, *args)
    except gx.errors.GraphcError as error:
        raise Unbuildable(str(error)) from None


def _operand_dtype(pattern: Apply, i: int, dtype: DType) -> DType:
    if pattern.op == "where" and i == 0:
        return bool_
    if pattern.op in ("equal", "not_equal"):
        return float32
    return dtype


def _splat_array(pattern: Splat, dtype: DType) -> np.ndarray:
    candidates = [pattern.value] if pattern.value is not None else [3.0, 4.0, 0.5, -1, 255, 1]
    for c in candidates:
        if not dtype.is_float and not _is_element(c, dtype):
            continue
        array = np.asarray(c).astype(dtype.numpy)
        if pattern.where is None or pattern.where(array[()]):
            return array
    raise Unbuildable("no such constant")


def _is_element(c: float, dtype: DType) -> bool:
    if dtype.is_bool:
        return c in (0, 1)
    info = np.iinfo(dtype.numpy)
    return bool(np.isfinite(c)) and c == int(c) and info.min <= c <= info.max


def sides_of(rule: Rule, dtype: DType) -> Sides:
    """Both sides; raises Unbuildable where the rule has no instance of this dtype."""
    sides = Sides()
    builder = Builder()
    with making_nodes_in(builder):
        if rule.name in EXAMPLES:
            sides.left = EXAMPLES[rule.name](_placeholder(sides, dtype, "x"))
        else:
            sides.left = _build(rule.pattern, dtype, sides, {})
        rewriter = Rewriter((), builder)
        sides.right = rewriter._apply(rule, sides.left, None, 0)
    return sides


def dtypes_of(rule: Rule) -> Iterator[DType]:
    """The dtypes a rule has instances in."""
    for dtype in (float32, float64, int8, int32, uint8, bool_):
        if rule.claim != EXACT and not dtype.is_float:
            continue
        try:
            if sides_of(rule, dtype).right is not None:
                yield dtype
        except (Unbuildable, gx.errors.GraphcError):
            continue


# ---- the check ---------------------------------------------------------------------------------


def arrays_for(sides: Sides, seed: int, special: bool) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    arrays = []
    for t in sides.inputs:
        if t.dtype.is_bool:
            arrays.append(rng.random(SHAPE) < 0.5)
        elif t.dtype.is_integer:
            info = np.iinfo(t.dtype.numpy)
            arrays.append(rng.integers(info.min, info.max, SHAPE, t.dtype.numpy, endpoint=True))
        else:
            drawn = rng.uniform(-4, 4, SHAPE)
            if special:
                drawn = np.where(rng.random(SHAPE) < 0.6, rng.choice(SPECIAL, SHAPE), drawn)
            with np.errstate(over="ignore"):
                arrays.append(drawn.astype(t.dtype.numpy))
    return arrays


def check_rule(rule: Rule, dtype: DType) -> None:
    """Raise AssertionError unless both sides agree as the rule claims."""
    sides = sides_of(rule, dtype)
    assert sides.right is not None, f"{rule.name} does not fire on {sides.left}"
    assert sides.right.type == sides.left.type
    for seed, special in itertools.product(range(4), (False, True)):
        if special and rule.claim != EXACT:
            continue
        a, b = sides.values(arrays_for(sides, seed, special))
        label = f"{rule.name} {dtype} seed={seed}"
        if rule.claim == EXACT:
            same = (a == b) & (np.signbit(a) == np.signbit(b)) if a.dtype.kind == "f" else a == b
            same |= (a != a) & (b != b)
            assert same.all(), f"{label}: {a[~same][:3]} and {b[~same][:3]}"
        else:
            defined = np.isfinite(a)
            assert defined.any(), label
            scale = RTOL.get(a.dtype.name.replace("float", "f"), 0)
            np.testing.assert_allclose(a[defined], b[defined], scale, 50 * scale, err_msg=label)


CASES = [
    pytest.param(rule, dtype, id=f"{rule.name}-{dtype}")
    for rule in ALL_RULES
    for dtype in dtypes_of(rule)
]


@pytest.mark.parametrize(("rule", "dtype"), CASES)
def test_both_sides_agree_as_claimed(rule: Rule, dtype: DType) -> None:
    check_rule(rule, dtype)


def test_every_rule_is_tried() -> None:
    tried = {case.values[0].name for case in CASES}
    assert [r.name for r in ALL_RULES if r.name not in tried] == []


def test_names_are_unique() -> None:
    names = [r.name for r in ALL_RULES]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize(
    "rule",
    [
        Rule("wrong_sign", op("negative", op("negative", X)), op("negative", X)),
        Rule("wrong_zero", op("add", X, value(0.0)), X),
        Rule("wrong_nan", op("subtract", X, X), value(0.0)),
        Rule("wrong_value", op("log", op("add", X, value(1.0))), op("log", X), STABLE),
    ],
    ids=lambda rule: rule.name,
)
def test_a_wrong_rule_is_caught(rule: Rule) -> None:
    with pytest.raises(AssertionError):
        check_rule(rule, float32)


@pytest.mark.parametrize("rule", FAST_MATH_RULES, ids=lambda rule: rule.name)
def test_fast_math_rules_are_not_exact(rule: Rule) -> None:
    """A rule that is exact belongs into the table that is on by default."""
    claimed = Rule(rule.name, rule.pattern, rule.to, EXACT, rule.kinds, rule.when)
    assert rule.claim == FAST_MATH
    with pytest.raises(AssertionError):
        check_rule(claimed, float32)
