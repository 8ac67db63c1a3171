"""Mistakes planted in the compiler, one function or table entry at a time.

Each comes with the graph it matters for and the stages that may rightly be blamed.  What they break
is put back when the `with` block ends.  Imports: graphc, NumPy.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

import graphc as gx
from graphc import compiler, dims, rewrite
from graphc.backends.codegen import (
    contract_microkernel,
    contract_packing,
    contract_rows,
    evaluate,
    integers,
    lanes,
    loops,
    math32,
    reducers,
    scalar,
    stages,
)
from graphc.backends.llvm import keeping, tables
from graphc.builder import Builder
from graphc.kernel import Term
from graphc.nest import Nest
from graphc.node import OPS, Node, Tensor
from graphc.ops.define import ScalarBuilder
from graphc.passes import (
    canonicalise,
    facts,
    fold,
    fuse,
    keep,
    layout,
    lower,
    lower_contraction,
    lower_loop,
    merge_products,
    merge_sums,
    operands,
    plan_memory,
    resolve_state,
    schedule,
    share_kernels,
    simplify,
    specialise,
    views,
)
from graphc.rewrite import X, Y, op, value

Array = np.ndarray[Any, Any]
Case = tuple[Any, dict[Tensor, Any]]
"""(fetches, feeds)."""


class Patch:
    """Attributes and table entries changed for a while."""

    def __init__(self, stack: contextlib.ExitStack) -> None:
        self._stack = stack

    def set(self, owner: Any, name: str, new: Any) -> None:
        old = owner.__dict__.get(name, _ABSENT) if isinstance(owner, type) else getattr(owner, name)
        _assign(owner, name, new)
        self._stack.callback(_assign, owner, name, old)

    def item(self, table: dict[Any, Any], key: Any, new: Any) -> None:
        old = table[key]
        table[key] = new
        self._stack.callback(table.__setitem__, key, old)

    def wrap(self, owner: Any, name: str, change: Callable[..., Any]) -> None:
        """Replace a function by `change(original, *args)`."""
        original = getattr(owner, name)

        def changed(*args: Any, **kwargs: Any) -> Any:
            return change(original, *args, **kwargs)

        changed.__name__ = name
        self.set(owner, name, changed)

    def rule(self, name: str, **changes: Any) -> None:
        """Change fields of a rule of `simplify`."""
        found = [r for r in simplify.TABLE if r.name == name]
        assert len(found) == 1, name
        new = [dataclasses.replace(r, **changes) if r.name == name else r for r in simplify.TABLE]
        self.set(simplify, "TABLE", tuple(new))


_ABSENT = object()


def _assign(owner: Any, name: str, new: Any) -> None:
    if new is _ABSENT:
        delattr(owner, name)
    else:
        object.__setattr__(owner, name, new) if not isinstance(owner, type) else setattr(
            owner, name, new
        )


@dataclass(frozen=True)
class Fault:
    """A mistake: how to plant it, a graph that shows it, and what a report may blame.

    where  stages, or 'stage:rule'
    """

    name: str
    where: tuple[str, ...]
    plant: Callable[[Patch], None]
    case: Callable[[], Case]
    gradients: bool = False

    @contextlib.contextmanager
    def planted(self) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            self.plant(Patch(stack))
            yield


FAULTS: list[Fault] = []


def fault(
    *where: str, case: Callable[[], Case], gradients: bool = False
) -> Callable[[Callable[[Patch], None]], None]:
    """Register the function below as a fault; its name says what is wrong."""

    def register(plant: Callable[[Patch], None]) -> None:
        FAULTS.append(Fault(plant.__name__, where, plant, case, gradients))

    return register


# ---- graphs ------------------------------------------------------------------------------------


def noise(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).uniform(0.5, 2.0, shape).astype(np.float32)


def fed(*shape: int, seed: int = 0, name: str = "x", sizes: Sequence[Any] = ()) -> Any:
    """A placeholder and its value."""
    t = gx.placeholder("f32", tuple(sizes) or (None,) * len(shape), name=name)
    return t, noise(*shape, seed=seed)


def of(
    function: Callable[..., Any], *shapes: tuple[int, ...], known: bool = False
) -> Callable[[], Case]:
    """The case of a function of placeholders of these shapes, which may be known beforehand."""

    def case() -> Case:
        sizes = [s if known else () for s in shapes]
        pairs = [
            fed(*s, seed=i, name=f"x{i}", sizes=d)
            for i, (s, d) in enumerate(zip(shapes, sizes, strict=True))
        ]
        return function(*(t for t, _ in pairs)), dict(pairs)

    return case


def values(function: Callable[..., Any], *arrays: Any) -> Callable[[], Case]:
    """The case of a function of placeholders with these values."""

    def case() -> Case:
        given = [np.asarray(a, np.float32) if type(a) is list else np.asarray(a) for a in arrays]
        inputs = [gx.placeholder(a.dtype, (None,) * a.ndim) for a in given]
        return function(*inputs), dict(zip(inputs, given, strict=True))

    return case


def counted() -> Case:
    """Two assignments to one variable, and a read between them."""
    x, array = fed(3)
    v = gx.Variable(np.array([1, 2, 3], np.float32), name="v")
    first = v.assign_sub(x)
    with gx.control_dependencies([first]):
        middle = v.read_value() * 1.0
        with gx.control_dependencies([middle]):
            second = v.assign_add(2 * x)
    return [middle, first, second], {x: array}


def drawn() -> Case:
    gx.set_random_seed(5)
    return [gx.random.uniform((40,)), gx.random.normal((7,))], {}


def step() -> Case:
    """A step of training with momentum."""
    x, array = fed(5, 4, sizes=(None, 4))
    w = gx.Variable(noise(4, 3, seed=3), name="w")
    b = gx.Variable(noise(3, seed=4), name="b")
    loss = gx.mean(gx.square(gx.tanh(x @ w + b) - 0.5))
    return [loss, gx.train.Momentum(0.1, 0.9).minimize(loss)], {x: array}


def checked_step() -> Case:
    """An update in the same run as a check that comes late."""
    x, array = fed(64)
    v = gx.Variable(noise(64, seed=2), name="v")
    update = v.assign_sub(0.5 * v)
    rows = gx.sum(gx.tanh(x) * v)
    return [gx.check_numerics(gx.exp(rows * 0.01)), update], {x: array}


def convolved(channels: int = 3) -> Case:
    x, array = fed(2, 6, 7, channels, sizes=(None, 6, 7, channels))
    w = gx.Variable(noise(3, 3, channels, 5, seed=1), name="w")
    y = gx.nn.relu(gx.nn.conv2d(x, w, 1, "SAME") - 30.0)
    (gradient,) = gx.gradients(gx.sum(y * y), [w])
    return [y, gradient], {x: array}


def turned(x: Tensor) -> Tensor:
    """A value that is read the other way round after its last use."""
    h = x @ x
    return (h + gx.transpose(h)) @ x


def swapped() -> Case:
    """Two variables that take each other's values."""
    v = gx.Variable(noise(70, seed=1), name="v")
    w = gx.Variable(noise(70, seed=2), name="w")
    return [v.assign(w * 2.0), w.assign(v + 1.0)], {}


def positions(x: Tensor) -> Tensor:
    """Each element times its number."""
    return x * gx.astype(gx.arange(gx.size(x)), "f32")


def both_ways(x: Tensor) -> Tensor:
    """Sums along both axes of one computed value."""
    h = gx.tanh(x)
    return gx.sum(h, axis=0) + gx.sum(h, axis=1)


def chained() -> Case:
    """Values that die at different times, more than can share one place."""
    x, array = fed(6, 6)
    h, total = x, gx.sum(x, axis=0)
    for i in range(4):
        w = gx.Variable(noise(6, 6, seed=i), name=f"w{i}")
        h = gx.tanh(h @ w)
        total = total + gx.cumsum(h, axis=1)[:, -1] * h[0]
    return [total, h], {x: array}


# ---- resolve_state -----------------------------------------------------------------------------


@fault("resolve_state", case=counted)
def subtraction_adds(p: Patch) -> None:
    p.set(resolve_state, "subtract", resolve_state.add)


@fault("resolve_state", case=counted)
def assignments_do_not_add_up(p: Patch) -> None:
    def assign(original: Any, self: Any, node: Any, inherited: Any) -> Any:
        self.latest.pop(node.inputs[0].node.id, None)
        return original(self, node, inherited)

    p.wrap(resolve_state._Resolver, "_assign", assign)


@fault("resolve_state", case=counted)
def a_read_misses_the_assignment_before_it(p: Patch) -> None:
    p.wrap(resolve_state._Resolver, "_ordered_behind", lambda original, self, node: 0)


@fault("resolve_state", case=counted)
def the_first_assignment_stays(p: Patch) -> None:
    def write(original: Any, self: Any, variable: Any, new: Any) -> Any:
        original(self, variable, self.latest.get(variable.node.id, new))
        return new

    p.wrap(resolve_state._Resolver, "_write", write)


@fault("resolve_state", case=drawn)
def two_random_operators_draw_the_same(p: Patch) -> None:
    def random(original: Any, self: Any, node: Any) -> Any:
        attrs = {**node.attrs, "key": 1}
        return original(self, _Instead(node, attrs=attrs))

    p.wrap(resolve_state._Resolver, "_random", random)


@fault("resolve_state", case=drawn)
def the_counter_of_runs_advances_twice(p: Patch) -> None:
    p.wrap(
        resolve_state,
        "constant",
        lambda original, x, dtype: original(2 * x, dtype),
    )


# ---- specialise --------------------------------------------------------------------------------


@fault("specialise", case=of(lambda x, y: x * y, (4, 4), (4,)))
def broadcasting_aligns_to_the_left(p: Patch) -> None:
    def trailing(original: Any, t: Any, shape: Any) -> Any:
        return specialise.broadcast_along(t, shape, tuple(range(len(t.dims))))

    p.wrap(specialise, "broadcast_trailing", trailing)


@fault("specialise", case=of(gx.matmul, (3, 3, 2, 4), (3, 4, 5)))
def batches_align_to_the_left(p: Patch) -> None:
    def batch(original: Any, inputs: Any) -> Any:
        a, b = inputs
        target = (*a.dims[:-2], *b.dims[-2:])
        return [a, specialise.broadcast_along(b, target, (0, 2, 3))]

    p.wrap(specialise, "_explicit_batch", batch)


@fault("specialise", case=of(lambda x, y: gx.sum(x + y, axis=0), (5, 3), (1, 3)))
def a_size_of_one_is_taken_for_another(p: Patch) -> None:
    p.wrap(
        specialise,
        "broadcast_outcomes",
        lambda original, meetings, sizes: ("equal",) * len(meetings),
    )


@fault(
    "resolve_state",
    "specialise",
    "bind_ranks",
    case=of(lambda x: gx.sum(x, axis=0) - gx.sum(x, axis=1), (4, 4)),
)
def nodes_merge_whatever_their_attributes(p: Patch) -> None:
    import graphc.builder as builder

    p.wrap(builder, "_key", lambda original, op, inputs, attrs: original(op, inputs, ()))


# ---- canonicalise ------------------------------------------------------------------------------


@fault("canonicalise", case=of(lambda x: gx.sum(x[:, None, :, :], axis=(1, 2)), (3, 3, 3)))
def axes_are_not_renumbered(p: Patch) -> None:
    def reduction(original: Any, node: Any, x: Any, builder: Builder) -> Any:
        axes = tuple(a for a in node.attrs["axes"] if x.dims[a] != 1)
        kept = tuple(d for d in x.dims if d != 1)
        attrs = {"axes": tuple(min(a, len(kept) - 1) for a in axes), "keepdims": False}
        made = builder.make(node.op, (canonicalise.reshape(x, kept),), attrs).outputs[0]
        return canonicalise.reshape(made, node.types[0].shape)

    p.wrap(canonicalise, "_reduction", reduction)


@fault("canonicalise", case=of(lambda x: gx.nn.relu(x - 1) + 1, (4, 4)))
def an_operator_is_taken_for_the_identity(p: Patch) -> None:
    p.set(canonicalise, "_TRANSPARENT", (*canonicalise._TRANSPARENT, "relu"))


@fault(
    "canonicalise",
    case=of(lambda x, y: gx.reshape(x, (12,)) - gx.reshape(y, (12,)), (3, 4), (3, 4), known=True),
)
def operands_change_places_under_a_reshape(p: Patch) -> None:
    def before(original: Any, node: Any, inputs: Any, builder: Any) -> Any:
        return original(node, inputs[::-1], builder)

    p.wrap(canonicalise, "_before_reshape", before)


# ---- simplify ----------------------------------------------------------------------------------


@fault("simplify:subtract_negative", case=of(lambda x, y: x - (-y), (5,), (5,)))
def a_rule_with_a_wrong_sign(p: Patch) -> None:
    p.rule("subtract_negative", to=op("subtract", X, Y))


@fault("simplify:multiply_zero_integer", case=values(lambda x: x * 0.0, [1.0, np.nan, np.inf]))
def a_rule_that_loses_nan(p: Patch) -> None:
    p.rule("multiply_zero_integer", kinds="fiub")


@fault("simplify:add_zero_integer", case=values(lambda x: 1 / (x + 0.0), [1.0, -0.0]))
def a_rule_that_loses_the_sign_of_zero(p: Patch) -> None:
    p.rule("add_zero_integer", kinds="fiub")


@fault("simplify:divide_power_of_two", case=of(lambda x: x / 8, (5,)))
def division_becomes_multiplication(p: Patch) -> None:
    p.rule(
        "divide_power_of_two",
        to=lambda m: m.apply("multiply", m["x"], m.splat(m["c"], m.root.dtype, m.root.dims)),
    )


@fault("simplify:minimum_greatest", case=values(lambda x: gx.minimum(x, 3.0), [1.0, 5.0]))
def a_condition_on_a_constant_is_missing(p: Patch) -> None:
    p.rule("minimum_greatest", pattern=op("minimum", X, rewrite.Splat("c")))


@fault("simplify:log_one_minus", case=of(lambda x: gx.log(1 - x * 0.3), (6,)))
def a_stability_rule_for_another_function(p: Patch) -> None:
    p.rule("log_one_minus", to=op("log1p", X))


@fault(
    "simplify:transpose_transpose",
    case=of(lambda x: gx.transpose(gx.transpose(x, (1, 2, 0)), (0, 2, 1)), (3, 3, 3), known=True),
)
def permutations_compose_the_wrong_way(p: Patch) -> None:
    def merged(m: Any) -> Any:
        inner = m.root.node.inputs[0].node
        outer, first = m.root.node.attrs["perm"], inner.attrs["perm"]
        return m.apply("transpose", inner.inputs[0], perm=tuple(outer[a] for a in first))

    p.rule("transpose_transpose", to=merged)


@fault(
    "simplify:where_not", case=of(lambda x, y: gx.where(gx.logical_not(x > 1), x, y), (6,), (6,))
)
def branches_stay_where_they_were(p: Patch) -> None:
    rule = next(r for r in simplify.TABLE if r.name == "where_not")
    p.rule("where_not", to=op("where", rule.pattern.args[0].args[0], X, Y))


@fault(
    "simplify:folded",
    case=of(lambda x: x + (gx.constant([5.0, 1.0]) - gx.constant([2.0, 7.0])), (2,)),
)
def constants_fold_in_another_order(p: Patch) -> None:
    def folded(m: Any) -> Any:
        node = m.root.node
        made = fold.folded(m)
        if made is None or node.op.name != "subtract":
            return made
        return fold._constant(m, -made.node.attrs["value"].array)

    p.set(simplify, "STEPS", (folded, *simplify.STEPS[1:]))


@fault("simplify", case=of(lambda x: 0.0 - gx.tanh(x), (5,)))
def subtraction_is_taken_for_commutative(p: Patch) -> None:
    p.set(OPS["subtract"], "commutative", True)


@fault("simplify:one_minus_erf", case=of(lambda x: 1 - gx.erf(x), (6,)))
def a_rule_drops_a_constant(p: Patch) -> None:
    p.rule("one_minus_erf", to=op("subtract", op("erfc", X), value(1e-4)))


# ---- cancel_transposes -------------------------------------------------------------------------


@fault(
    "cancel_transposes",
    case=of(
        lambda x, y: gx.transpose(
            gx.tanh(gx.transpose(x, (1, 2, 0)) + gx.transpose(y, (2, 0, 1))), (2, 0, 1)
        ),
        (3, 3, 3),
        (3, 3, 3),
        known=True,
    ),
)
def any_permutation_cancels(p: Patch) -> None:
    def untransposed(original: Any, m: Any, t: Any, perm: Any) -> Any:
        return t.node.inputs[0] if t.node.op.name == "transpose" else original(m, t, perm)

    p.wrap(layout, "_untransposed", untransposed)


# ---- merge_products, merge_sums, join_products -------------------------------------------------


@fault("merge_products", case=of(lambda x, w: gx.tanh(x[2] @ w) - x[1] @ w, (3, 4, 5), (5, 6)))
def a_piece_is_taken_for_its_neighbour(p: Patch) -> None:
    def cut(original: Any, x: Any, axis: int, start: Any, size: Any) -> Any:
        return original(x, axis, 0, size)

    p.wrap(merge_products, "cut_out", cut)


@fault(
    "merge_sums",
    case=of(
        lambda x, y: gx.add_n([gx.matmul(x[t], gx.sin(y + t), transpose_a=True) for t in range(3)]),
        (3, 2, 16),
        (2, 16),
        known=True,
    ),
)
def only_one_operand_is_put_in_order(p: Patch) -> None:
    joined: list[Any] = []

    def join(original: Any, self: Any, parts: Any, axis: int) -> Any:
        joined.append(parts)
        return original(self, parts if len(joined) % 2 else parts[::-1], axis)

    p.wrap(merge_sums._Merger, "_join", join)


@fault(
    "merge_sums",
    case=of(
        lambda x: gx.gradients(gx.sum(gx.sin(x[3:]) * gx.exp(x[:3])), [x])[0], (6, 4), known=True
    ),
)
def zeros_lie_after_what_they_lie_before(p: Patch) -> None:
    p.wrap(merge_sums, "_disjoint", lambda original, nodes, axis: original(nodes, axis)[::-1])
    p.wrap(merge_sums, "_tiled", lambda original, nodes, axis: original(nodes, axis)[::-1])


@fault(
    "join_products",
    case=of(lambda x, y, w: gx.stack([gx.sin(x) @ w, gx.cos(y) @ w]), (4, 5), (4, 5), (5, 5)),
)
def products_are_joined_backwards(p: Patch) -> None:
    p.wrap(merge_products, "join", lambda original, parts, axis: original(parts[::-1], axis))


# ---- fuse --------------------------------------------------------------------------------------


@fault("fuse", case=of(lambda x: x - gx.expand_dims(gx.sum(gx.tanh(x), axis=1), 0), (5, 5)))
def a_reduced_value_goes_back_along_another_axis(p: Patch) -> None:
    p.wrap(fuse._Fuser, "_is_broadcast_back", lambda original, self, view, group: True)


@fault("fuse", case=of(lambda x: gx.tanh(x) + gx.transpose(gx.tanh(x)), (5, 5)))
def a_transposed_value_is_fused_as_it_is(p: Patch) -> None:
    p.wrap(fuse._Fuser, "_fits_full", lambda original, self, t, group: True)


@fault("fuse", case=of(both_ways, (5, 5)))
def reductions_over_other_axes_join(p: Patch) -> None:
    def can(original: Any, self: Any, group: Any, x: Any, axes: Any, search: bool) -> bool:
        return group.kind == "loop" and x.dims == group.shape

    p.wrap(fuse._Fuser, "_can_reduce", can)


@fault("fuse", case=of(lambda x, y: gx.sum(gx.tanh(x @ y) * 2, axis=0), (4, 5), (5, 6)))
def a_value_is_not_stored(p: Patch) -> None:
    def stored(original: Any, self: Any) -> Any:
        found = original(self)
        roots = {id(self.views.of(t).base) for t in self.program.roots}
        return roots or found

    p.wrap(fuse._Fuser, "_stored", stored)


# ---- lower -------------------------------------------------------------------------------------


@fault("lower", case=of(lambda x: gx.exp(gx.transpose(x, (1, 2, 0))), (2, 3, 4)))
def strides_are_permuted_the_wrong_way(p: Patch) -> None:
    def transpose(view: Any, shape: Any, t: Any) -> Any:
        perm = t.node.attrs["perm"]
        inverse = tuple(perm.index(a) for a in range(len(perm)))
        return views.View(view.base, tuple(view.strides[a] for a in inverse), view.offset)

    p.item(views._COMPOSE, "transpose", transpose)


@fault("lower", case=of(lambda x: gx.exp(x[1:, 2:]), (4, 5)))
def a_slice_forgets_where_it_starts(p: Patch) -> None:
    original = views._COMPOSE["slice"]

    def cut(view: Any, shape: Any, t: Any) -> Any:
        return dataclasses.replace(original(view, shape, t), offset=view.offset)

    p.item(views._COMPOSE, "slice", cut)


@fault("lower", case=of(lambda x, y: x * y, (2, 4, 4), (4, 4)))
def a_repeated_value_is_read_transposed(p: Patch) -> None:
    def broadcast(view: Any, shape: Any, t: Any) -> Any:
        strides: list[Any] = [0] * len(t.dims)
        for axis, stride in zip(t.node.attrs["axes"], view.strides[::-1], strict=True):
            strides[axis] = stride
        return views.View(view.base, tuple(strides), view.offset)

    p.item(views._COMPOSE, "broadcast_to", broadcast)


@fault("lower", case=of(lambda x, y: x * y, (4, 5), (4, 1)))
def axes_merge_whatever_their_strides(p: Patch) -> None:
    def merge(original: Any, shape: Any, red: Any, strides: Any) -> Any:
        return original(shape, red, strides[-1:])

    p.wrap(lower_loop, "merge_axes", merge)


@fault("lower", case=convolved)
def a_guard_reaches_one_too_far(p: Patch) -> None:
    def term(axes: Any, stride: Any, shift: Any = 0, div: int = 1, limit: Any = None) -> Term:
        return Term(axes, stride, shift, div, None if limit is None else dims.add(limit, 1))

    p.set(lower_contraction, "Term", term)


@fault("lower", case=of(positions, (9,)))
def positions_are_off_by_one(p: Patch) -> None:
    def leaf(original: Any, t: Any, position: Any) -> Any:
        return original(t, position + 1)

    p.wrap(operands, "_computed_leaf", leaf)


@fault("lower", case=of(gx.sum, (20001,)))
def the_last_chunk_is_dropped(p: Patch) -> None:
    p.set(lower_loop, "dims", _Instead(dims, ceildiv=dims.floordiv))


@fault("lower", case=of(lambda x: gx.max(x, axis=1), (3, 20)))
def a_reduction_uses_another_reducer(p: Patch) -> None:
    p.set(OPS["max"], "lower", "min")


@fault("lower", case=of(lambda x: gx.nn.softplus(x * 3 - 4), (20,)))
def a_body_has_a_wrong_constant(p: Patch) -> None:
    original = OPS["softplus"].lower
    p.set(OPS["softplus"], "lower", lambda s, x: s.add(original(s, x), 1e-4))


@fault(
    "lower", case=of(lambda x: [gx.sum(gx.cumsum(x, axis=0), axis=1), gx.cumsum(x, axis=1)], (6, 6))
)
def kernels_are_shared_whatever_their_attributes(p: Patch) -> None:
    def without_attributes(original: Any, fusion: Any, group: Any) -> Any:
        known = Node.__dict__["attrs_key"]
        _assign(Node, "attrs_key", property(lambda node: ()))
        try:
            return original(fusion, group)
        finally:
            _assign(Node, "attrs_key", known)

    p.wrap(lower, "_signature", without_attributes)


@fault(
    "lower",
    case=values(gx.gather, np.arange(5.0, dtype=np.float32), np.array([0, 7, 1])),
)
def an_index_is_not_checked(p: Patch) -> None:
    for builder in (Nest, ScalarBuilder):
        p.wrap(builder, "check", lambda original, self, x, ok, error, message: x)


# ---- schedule ----------------------------------------------------------------------------------


@fault("schedule", case=chained)
def a_dependency_is_missed(p: Patch) -> None:
    def order(original: Any, fusion: Any, steps: Any, *more: Any, **named: Any) -> Any:
        made = list(original(fusion, steps, *more, **named))
        made[1], made[-1] = made[-1], made[1]
        return made

    p.wrap(schedule, "schedule", order)


@fault("schedule", case=chained)
def a_step_is_lost(p: Patch) -> None:
    p.wrap(
        schedule,
        "schedule",
        lambda original, fusion, steps, *m, **n: original(fusion, steps, *m, **n)[:-1],
    )


# ---- plan_memory -------------------------------------------------------------------------------


@fault("plan_memory", case=of(turned, (6, 6)))
def any_operand_may_be_overwritten(p: Patch) -> None:
    p.wrap(facts, "may_share", lambda original, kernel, old, new: True)


@fault("plan_memory", case=swapped)
def a_variable_is_overwritten_too_early(p: Patch) -> None:
    p.wrap(plan_memory._Planner, "_may_overwrite", lambda original, self, *args: True)


@fault("plan_memory", case=chained)
def slots_have_half_their_size(p: Patch) -> None:
    p.wrap(
        facts,
        "value_bytes",
        lambda original, v: dims.floordiv(original(v), 2),
    )


@fault("plan_memory", case=chained)
def live_values_share_memory(p: Patch) -> None:
    p.wrap(tables.PlanTables, "_slot_bytes", lambda original, self, v: original(self, v) * 0)


@fault("plan_memory", case=checked_step)
def the_commit_point_is_too_early(p: Patch) -> None:
    p.wrap(plan_memory._Planner, "_commit", lambda original, self: 0)


def kept_square() -> Case:
    x = gx.placeholder("f32", (2, 4), name="x")
    w, v = gx.Variable(np.ones((4, 4), np.float32)), gx.Variable(np.ones(4, np.float32))
    return [x @ (w * w), gx.assign(v, gx.exp(v * 2))], {x: np.ones((2, 4))}


@fault("plan_memory", case=kept_square)
def variables_that_are_written_count_as_lasting(p: Patch) -> None:
    p.set(keep, "LEAST_WORK", 0)
    p.wrap(keep, "lasting_variables", lambda original, program: {*map(id, program.variables())})
    p.wrap(
        keep._Search,
        "_follow",
        lambda original, self, step: self.outside.clear() or original(self, step),
    )


@fault("plan_memory", case=kept_square)
def what_is_kept_lies_where_it_is_not_made(p: Patch) -> None:
    p.set(keep, "LEAST_WORK", 0)
    p.wrap(
        plan_memory._KeepingPlanner,
        "_place_borders",
        lambda original, self: plan_memory._Planner._place_borders(self),
    )


@fault("run", case=kept_square)
def a_step_of_what_is_kept_is_passed_over(p: Patch) -> None:
    p.set(keep, "LEAST_WORK", 0)
    p.wrap(
        keeping.Keeping,
        "make",
        lambda original, self, wanted, *rest: original(self, (), *rest),
    )


@fault("plan_memory", case=of(lambda x, y: gx.tanh(x @ y), (3, 4), (4, 7)))
def sizes_are_given_in_another_order(p: Patch) -> None:
    p.wrap(share_kernels, "sizes_of", lambda original, kernel: original(kernel)[::-1])


# ---- code generation ---------------------------------------------------------------------------


@fault("codegen", case=of(lambda x, y: x - y, (9,), (9,)))
def subtraction_swaps_its_operands(p: Patch) -> None:
    def here(original: Any, f: Any, op: str, args: Any, kind: str) -> Any:
        return original(f, op, args[::-1] if op == "sub" else args, kind)

    p.wrap(scalar, "_float_here", here)


@fault("codegen", case=of(gx.tanh, (21,)))
def the_mask_of_a_tail_is_one_lane_too_long(p: Patch) -> None:
    p.wrap(
        stages.StageEmitter,
        "tail_mask",
        lambda original, self, count: original(self, self.f.add(count, 1)),
    )


@fault("codegen", case=of(lambda x: x + 1, (9000,)))
def blocks_are_smaller_than_counted(p: Patch) -> None:
    p.set(loops, "MAP_BLOCK", 2048)


@fault("codegen", case=of(lambda x: x * 2, (9000,)))
def blocks_overlap(p: Patch) -> None:
    def vector(original: Any, self: Any, start: str, stop: str) -> None:
        original(
            self,
            start,
            self.f.smin(self.f.add(stop, 64), self.f.dim(self.kernel.axes[self.kernel.vec])),
        )

    p.wrap(loops._LoopNest, "_vector", vector)


@fault("codegen", case=of(gx.exp, (40,)))
def a_coefficient_of_exp_is_wrong(p: Patch) -> None:
    p.set(math32, "_EXP", tuple(c * (1 + 1e-4) for c in math32._EXP))


@fault("codegen", case=values(gx.maximum, [1.0, np.nan, 2.0], [0.0, 5.0, np.nan]))
def maximum_ignores_nan(p: Patch) -> None:
    p.item(scalar._INTRINSICS, "max", "maxnum")


@fault("codegen", case=values(lambda x: gx.astype(x, "i32"), [1.7, -2.6, 0.4]))
def a_cast_rounds_instead_of_truncating(p: Patch) -> None:
    def cast(original: Any, f: Any, x: str, source: Any, target: Any) -> Any:
        if source.is_float and target.is_integer:
            x = lanes.Lanes(f, scalar.scalar_type(source)).intrinsic("roundeven", x)
        return original(f, x, source, target)

    p.wrap(scalar, "_cast", cast)


@fault("codegen", case=of(lambda x: gx.max(-x, axis=1), (3, 21)))
def a_maximum_starts_from_zero(p: Patch) -> None:
    p.wrap(reducers, "identity", lambda original, name, dtype: 0)


@fault("codegen", case=of(lambda x: gx.sum(x, axis=1), (3, 40)))
def neighbouring_lanes_are_not_added(p: Patch) -> None:
    def across(original: Any, f: Any, accumulator: Any, state: Any) -> Any:
        n = stages.LANES
        numbers = ", ".join(f"i32 {i - i % 2}" for i in range(n))
        kinds = reducers.state_types(accumulator)
        half = tuple(
            f.value(f"shufflevector {t} {x}, {t} poison, <{n} x i32> <{numbers}>")
            for t, x in zip(kinds, state, strict=True)
        )
        return original(f, accumulator, half)

    p.wrap(stages, "across_lanes", across)


@fault("codegen", case=values(lambda x, y: x <= y, [1.0, 2.0, 3.0], [1.0, 1.0, 4.0]))
def less_or_equal_forgets_equal(p: Patch) -> None:
    p.item(scalar._COMPARISONS, "le", "olt")


@fault(
    "codegen", case=values(lambda x, y: x % y, np.array([7, -7, 9, -9]), np.array([2, 2, -2, -2]))
)
def a_remainder_has_the_sign_of_the_dividend(p: Patch) -> None:
    def divide(original: Any, f: Any, op: str, *args: Any) -> Any:
        return original(f, "fmod" if op == "mod" else op, *args)

    p.wrap(integers, "_divide", divide)


@fault(
    "codegen",
    case=values(lambda x, y: x // y, np.array([7, -7, 9]), np.array([2, 2, -2])),
)
def idle_lanes_divide_by_zero(p: Patch) -> None:
    """The tail of a vector holds zeros: dividing by them ends the process."""

    def divide(original: Any, f: Any, op: str, a: str, b: str, kind: str, signed: bool) -> Any:
        return f.value(f"sdiv {f.vector(kind)} {a}, {b}")

    p.wrap(integers, "_divide", divide)


@fault("codegen", case=values(lambda x: gx.argmax(x, axis=1), np.ones((2, 30), np.float32)))
def the_last_of_equal_elements_is_found(p: Patch) -> None:
    p.wrap(reducers, "_better", _later)


@fault("codegen", case=of(lambda x, y: x @ gx.tanh(y), (13, 9), (9, 11)))
def a_product_masks_one_column_too_many(p: Patch) -> None:
    for module in (contract_microkernel, contract_packing):
        p.wrap(module, "lanes_below", lambda original, f, t, count: original(f, t, f.sub(count, 1)))


@fault("codegen", case=lambda: convolved(16))
def padding_is_not_cleared(p: Patch) -> None:
    def begin(original: Any, self: Any, *args: Any) -> None:
        original(self, *args)
        self.guards = []

    p.wrap(contract_rows.RowsInPlace, "__init__", begin)


@fault("codegen", case=of(lambda x: gx.tanh(x) * 2, (9000,)))
def the_last_block_is_not_counted(p: Patch) -> None:
    p.wrap(
        compiler,
        "blocks_of",
        lambda original, kernel: dims.maximum(1, dims.add(original(kernel), -1)),
    )


@fault("codegen", case=values(gx.floor_divide, np.array([7, 8]), np.array([2, 0])))
def a_fault_is_not_recorded(p: Patch) -> None:
    p.wrap(evaluate.Evaluator, "_check", lambda original, self, *args: None)


# ---- gradient rules ----------------------------------------------------------------------------


@fault("gradients", case=of(lambda x: gx.sum(gx.tanh(x)), (5,)), gradients=True)
def the_derivative_of_tanh_is_wrong(p: Patch) -> None:
    p.set(OPS["tanh"], "vjp", lambda y, g, x: [g * (1 - y)])


@fault("gradients", case=of(lambda x, y: x @ y, (4, 4), (4, 4)), gradients=True)
def the_gradient_of_a_product_is_not_transposed(p: Patch) -> None:
    p.set(OPS["matmul"], "vjp", lambda y, g, a, b: [g @ b, gx.transpose(a) @ g])


@fault("gradients", case=of(lambda x: gx.prod(x, axis=1), (3, 4)), gradients=True)
def the_gradient_of_a_product_of_elements_forgets_one(p: Patch) -> None:
    p.set(OPS["prod"], "vjp", lambda y, g, x: [gx.ones_like(x) * gx.reshape(g, (-1, 1))])


def _later(original: Any, f: Any, op: str, dtype: Any, a: Any, b: Any) -> Any:
    """The better value, at the larger position where both are equally good."""
    n = f.vector("i64")

    def mirrored(state: Any) -> Any:
        return state[0], f.value(f"sub {n} zeroinitializer, {state[1]}")

    made = original(f, op, dtype, mirrored(a), mirrored(b))
    return made[0], f.value(f"sub {n} zeroinitializer, {made[1]}")


class _Instead:
    """A module with some of its functions replaced."""

    def __init__(self, module: Any, **functions: Any) -> None:
        self._module = module
        self.__dict__.update(functions)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)
