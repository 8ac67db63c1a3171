"""Rules that keep digits the written form loses, or avoid an overflow on the way to a finite value.

    before:  %e = exp(%x)  %s = sum(%e) {axes=(1,)}  %y = log(%s)          inf for x = 1000
    after:   the same with the row maximum subtracted before and added after

Equal over the real numbers, and at least as close to them in floating point.  On by default.
Imports: rewrite, dims, graph, passes.simplify_arithmetic.
"""

from __future__ import annotations

from graphc import dims
from graphc.node import Node, Tensor
from graphc.passes.simplify_arithmetic import ONE, add, div, mul, neg, sub
from graphc.rewrite import STABLE, Apply, Match, Pattern, Rule, Var, X, Y, op, splat_value, value
from graphc.types import Shape

G = Var("g")


def exp(a: Pattern) -> Apply:
    return op("exp", a)


def log(a: Pattern) -> Apply:
    return op("log", a)


def sigmoid(a: Pattern) -> Apply:
    return op("sigmoid", a)


def softplus(a: Pattern) -> Apply:
    return op("softplus", a)


# ---- sums of exponentials ----------------------------------------------------------------------


def _below_views(t: Tensor) -> Tensor:
    while t.node.op.name in ("broadcast_to", "reshape"):
        t = t.node.inputs[0]
    return t


def _is_shifted(x: Tensor) -> bool:
    """Whether a maximum has been subtracted from x, or x cannot be large."""
    if x.node.op.name != "subtract":
        return False
    top = _below_views(x.node.inputs[1])
    if top.node.op.name == "where":  # the maximum where it is finite, else 0
        return any(_below_views(t).node.op.name == "max" for t in top.node.inputs[1:])
    return top.node.op.name == "max"


def _row_maximum(m: Match, x: Tensor, axes: tuple[int, ...]) -> Tensor:
    """The maximum over `axes`; 0 where it is not finite, as inf - inf would be NaN."""
    top = m.apply("max", x, axes=axes, keepdims=False)
    zero = m.splat(0, top.dtype, top.dims)
    return m.apply("where", m.apply("isfinite", top), top, zero)


def _kept(shape: Shape, axes: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(a for a in range(len(shape)) if a not in axes)


def _shifted(m: Match, x: Tensor, axes: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """x less its maximum over `axes`, and that maximum."""
    top = _row_maximum(m, x, axes)
    spread = m.apply("broadcast_to", top, shape=x.dims, axes=_kept(x.dims, axes))
    return m.apply("subtract", x, spread), top


def _log_sum_exp(m: Match) -> Tensor | None:
    """log(sum(exp(x))) with the maximum taken out."""
    x, total = m["x"], m.root.node.inputs[0].node
    if _is_shifted(x) or total.attrs["keepdims"]:
        return None
    axes = total.attrs["axes"]
    shifted, top = _shifted(m, x, axes)
    summed = m.apply("sum", m.apply("exp", shifted), axes=axes, keepdims=False)
    return m.apply("add", m.apply("log", summed), top)


def _softmax(m: Match) -> Tensor | None:
    """exp(x) / sum(exp(x)) with the maximum taken out of both."""
    x, divisor = m["x"], m["y"]
    total = _below_views(divisor)
    if total.node.op.name != "sum" or total.node.inputs[0] is not m.root.node.inputs[0]:
        return None
    axes = total.node.attrs["axes"]
    placed = divisor.node.op.name == "broadcast_to" and divisor.node.inputs[0] is total
    if _is_shifted(x) or not placed or divisor.node.attrs["axes"] != _kept(x.dims, axes):
        return None
    shifted, _ = _shifted(m, x, axes)
    e = m.apply("exp", shifted)
    summed = m.apply("sum", e, axes=axes, keepdims=False)
    spread = m.apply("broadcast_to", summed, **divisor.node.attrs)
    return m.apply("divide", e, spread)


# ---- variance ----------------------------------------------------------------------------------


def _mean_of(t: Tensor) -> tuple[Node, Tensor] | None:
    """(sum node, divisor or factor) if t is a sum over the number of its elements."""
    node = t.node
    if node.op.name not in ("divide", "multiply"):
        return None
    total, scale = node.inputs
    if total.node.op.name != "sum" or total.node.attrs["keepdims"]:
        return None
    shape, axes = total.node.inputs[0].dims, total.node.attrs["axes"]
    count = dims.product(shape[a] for a in axes)
    number = splat_value(scale)
    if number is not None:
        wanted = count if node.op.name == "divide" else isinstance(count, int) and 1 / count
        return (total.node, scale) if number == wanted else None
    size = _below_views(scale).node
    known = size.op.name == "sizes" and node.op.name == "divide" and size.attrs["dims"] == count
    return (total.node, scale) if known else None


def _centred_variance(m: Match) -> Tensor | None:
    """mean(x*x) - mean(x)**2 as mean((x - mean(x))**2): no cancellation, never negative."""
    squares, mean = _mean_of(m["x"]), _mean_of(m["y"])
    if squares is None or mean is None:
        return None
    x, axes = mean[0].inputs[0], mean[0].attrs["axes"]
    squared = squares[0].inputs[0].node
    if (
        squared.op.name != "square"
        or squared.inputs[0] is not x
        or squares[0].attrs["axes"] != axes
    ):
        return None
    spread = m.apply("broadcast_to", m["y"], shape=x.dims, axes=_kept(x.dims, axes))
    centred = m.apply("square", m.apply("subtract", x, spread))
    total = m.apply("sum", centred, axes=axes, keepdims=False)
    return m.apply(m["x"].node.op.name, total, squares[1])


# ---- the table ---------------------------------------------------------------------------------


def _not_only_scaled(m: Match) -> bool:
    """Whether someone reads 1 - y for more than a product.

    Where y * (1 - y) is computed from y alone, as the gradient of the sigmoid is, x need not be
    kept in memory.
    """
    return not m.consumers or any(n.op.name != "multiply" for n in m.consumers)


_PLUS_ONE = add(X, ONE)
_EXP_PLUS_ONE = add(exp(X), ONE)

LOGARITHMS = (
    Rule("log_one_plus", log(_PLUS_ONE), op("log1p", X), STABLE),
    Rule("log_one_minus", log(sub(ONE, X)), op("log1p", neg(X)), STABLE),
    Rule("log_exp", log(exp(X)), X, STABLE),
    Rule("log_one_plus_exp", op("log1p", exp(X)), softplus(X), STABLE),
    Rule("log_sigmoid", log(sigmoid(X)), neg(softplus(neg(X))), STABLE),
    Rule("log_sum_exp", log(op("sum", exp(X))), _log_sum_exp, STABLE),
    Rule("log_add_exp", log(add(exp(X), exp(Y))), op("logaddexp", X, Y), STABLE),
    Rule("log_quotient", log(div(exp(X), Y)), sub(X, log(Y)), STABLE),
    Rule("exp_minus_one", sub(exp(X), ONE), op("expm1", X), STABLE),
    Rule("exp_plus_minus_one", add(exp(X), value(-1.0)), op("expm1", X), STABLE),
)

SIGMOIDS = (
    Rule("one_minus_sigmoid", sub(ONE, sigmoid(X)), sigmoid(neg(X)), STABLE, when=_not_only_scaled),
    Rule("reciprocal_one_plus_exp", op("reciprocal", _EXP_PLUS_ONE), sigmoid(neg(X)), STABLE),
    Rule("sigmoid_quotient", div(exp(X), _EXP_PLUS_ONE), sigmoid(X), STABLE),
    Rule("sigmoid_times_exp", mul(sigmoid(neg(X)), exp(X)), sigmoid(X), STABLE),
    Rule("over_one_plus_exp", div(G, _EXP_PLUS_ONE), mul(G, sigmoid(neg(X))), STABLE),
    Rule("scaled_sigmoid", mul(mul(G, sigmoid(neg(X))), exp(X)), mul(G, sigmoid(X)), STABLE),
)

OTHERS = (
    Rule("softmax", div(exp(X), Y), _softmax, STABLE),
    Rule("sqrt_square", op("sqrt", op("square", X)), op("abs", X), STABLE),
    Rule(
        "hypotenuse",
        op("sqrt", add(op("square", X), op("square", Y))),
        op("hypot", X, Y),
        STABLE,
    ),
    Rule("variance", sub(X, op("square", Y)), _centred_variance, STABLE),
    Rule("power_two", op("power", X, value(2.0)), op("square", X), STABLE, kinds="f"),
    Rule("one_minus_erf", sub(ONE, op("erf", X)), op("erfc", X), STABLE),
)

STABILITY_RULES = (*LOGARITHMS, *SIGMOIDS, *OTHERS)
