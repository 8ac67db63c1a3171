"""Graph passes: what they make of small programs, that values stay, and that twice is once.

`golden/NAME.gir` holds a program, the pass it goes through and the program that comes out;
`pytest --update-golden` rewrites the second.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import graphc as gx
from graphc.backends.reference import interpret
from graphc.dims import atoms
from graphc.node import Tensor
from graphc.ops import activation
from graphc.ops.statistics import softmax
from graphc.passes.canonicalise import canonicalise
from graphc.passes.fold import fold_constants
from graphc.passes.layout import cancel_transposes
from graphc.passes.merge_products import join_products, merge_products
from graphc.passes.merge_sums import merge_sums
from graphc.passes.resolve_state import resolve_state
from graphc.passes.simplify import simplify, simplify_exact, simplify_fast_math
from graphc.passes.specialise import specialise
from graphc.program import Program
from graphc.text import parse_program, store_program
from graphc.verify import verify
from tests.random_graphs import random_graph
from tests.test_random_graphs import specialised

GOLDEN = Path(__file__).parent / "golden"
ARROW = "\n---- {} ---->\n\n"

PASSES: dict[str, Callable[[Program], Program]] = {
    "canonicalise": canonicalise,
    "fold_constants": fold_constants,
    "simplify": simplify,
    "simplify_exact": simplify_exact,
    "simplify_fast_math": simplify_fast_math,
    "merge_sums": merge_sums,
    "merge_products": merge_products,
    "join_products": join_products,
    "cancel_transposes": cancel_transposes,
}

# ---- programs ----------------------------------------------------------------------------------


def _x() -> Tensor:
    return gx.placeholder("f32", ("n", 4), name="x")


def _image() -> Tensor:
    return gx.placeholder("f32", ("n", 3, 8, 8), name="image")


def _scaled_layers() -> list[Tensor]:
    """Channels last inside channels first, twice in a row: two inner transposes cancel."""
    y = gx.transpose(_image(), (0, 2, 3, 1)) * np.arange(3, dtype=np.float32)
    back = gx.transpose(gx.tanh(y), (0, 3, 1, 2))
    return [gx.max(activation.relu(back), axis=(2, 3))]


def _steps() -> Tensor:
    """A few steps of a batch, once for each graph."""
    nodes = gx.get_default_graph().nodes
    made = [n.outputs[0] for n in nodes if n.name == "steps"]
    return made[0] if made else gx.placeholder("f32", (5, "n", 4), name="steps")


def _matrix(name: str) -> Tensor:
    nodes = gx.get_default_graph().nodes
    made = [n.outputs[0] for n in nodes if n.name == name]
    return made[0] if made else gx.placeholder("f32", (4, 64), name=name)


def _summed_products() -> list[Tensor]:
    """The gradient of a matrix used at several steps, the last first."""
    steps = gx.placeholder("f32", (5, 3, 64), name="wide")
    w = gx.placeholder("f32", (64, 32), name="w")
    y = gx.add_n([gx.sin(steps[t] @ w) for t in range(3)])
    return gx.gradients(y, [w])


def _placed_parts() -> list[Tensor]:
    """The gradient of what was cut in parts of which one is not used."""
    x = _x()
    a, _, c = gx.split(x, [1, 2, 1], axis=1)
    return gx.gradients(gx.sin(a) * gx.exp(c), [x])


PROGRAMS: dict[str, tuple[str, Callable[[], list[Tensor]]]] = {
    "keepdims": ("canonicalise", lambda: [gx.sum(_x(), axis=1, keepdims=True) * 2]),
    "constants": ("fold_constants", lambda: [_x() + gx.tanh(gx.constant([1.0, 2, 3, 4]) * 2)]),
    "failing_constant": ("fold_constants", lambda: [gx.constant(1) // gx.constant(0)]),
    "identities": ("simplify", lambda: [gx.negative(gx.negative(_x() * 1 - 0)) / 2]),
    "signed_zero": ("simplify", lambda: [_x() + 0]),
    "signed_zero_fast": ("simplify_fast_math", lambda: [_x() + 0]),
    "log_sum_exp": ("simplify", lambda: [gx.log(gx.sum(gx.exp(_x()), axis=1))]),
    "log_softmax": ("simplify", lambda: [gx.log(softmax(_x()))]),
    "naive_softmax": (
        "simplify",
        lambda: [gx.exp(x := _x()) / gx.sum(gx.exp(x), axis=1, keepdims=True)],
    ),
    "variance": (
        "simplify",
        lambda: [gx.mean((x := _x()) * x, axis=1) - gx.square(gx.mean(x, axis=1))],
    ),
    "naive_softmax_exact": (
        "simplify_exact",
        lambda: [gx.exp(x := _x()) / gx.sum(gx.exp(x), axis=1, keepdims=True)],
    ),
    "sunk_broadcast": ("simplify", lambda: [gx.log(gx.broadcast_to(gx.sum(_x(), axis=0), (5, 4)))]),
    "matmul_flags": ("simplify", lambda: [gx.matmul(gx.transpose(x := _x()), gx.tanh(x))]),
    "summed_products": ("merge_sums", _summed_products),
    "summed_batch": (
        "merge_sums",
        lambda: [gx.sum(gx.matmul(y := _steps(), gx.tanh(y), transpose_a=True), axis=0)],
    ),
    "placed_parts": ("merge_sums", _placed_parts),
    "products_of_pieces": (
        "merge_products",
        lambda: [gx.tanh(_steps()[t] @ _matrix("w")) for t in (3, 1, 2)],
    ),
    "joined_products": (
        "join_products",
        lambda: [gx.stack([gx.tanh(_steps()[t]) @ _matrix("w") for t in range(2)], axis=1)],
    ),
    "cancelled": ("cancel_transposes", _scaled_layers),
    "not_cancelled": ("cancel_transposes", lambda: [gx.tanh(gx.transpose(_x()))]),
}


def program_of(fetches: list[Tensor]) -> Program:
    """A program as the passes get it, and canonical."""
    placeholders = [
        n.outputs[0] for n in gx.get_default_graph().nodes if n.op.name == "placeholder"
    ]
    return specialise(resolve_state(fetches, [], placeholders), {})


# ---- golden ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PROGRAMS)
def test_golden(name: str, update_golden: bool) -> None:
    pass_name, build = PROGRAMS[name]
    before = program_of(build())
    if pass_name not in ("canonicalise", "fold_constants"):
        before = canonicalise(before)
    text, constants = store_program(before)
    before = parse_program(text, constants)
    after = PASSES[pass_name](before)
    verify(after, after=pass_name)
    found = text + ARROW.format(pass_name) + store_program(after)[0]
    path = GOLDEN / f"{name}.gir"
    if update_golden:
        path.parent.mkdir(exist_ok=True)
        path.write_text(found)
    assert _without_lines(found) == _without_lines(path.read_text())


def _without_lines(text: str) -> str:
    return "\n".join(row.partition("  # ")[0] for row in text.splitlines())


def test_every_golden_file_has_its_program() -> None:
    assert {p.stem for p in GOLDEN.glob("*.gir")} == set(PROGRAMS)


# ---- meaning -----------------------------------------------------------------------------------


def _all_values(program: Program, *state: Any) -> list[Any]:
    fetched, updated = interpret(program, *state)
    return [*fetched, *updated]


@pytest.mark.parametrize("pass_name", PASSES)
@pytest.mark.parametrize("seed", range(100, 112))
def test_values_stay_and_twice_is_once(pass_name: str, seed: int) -> None:
    made = random_graph(seed, 20)
    program, arrays, sizes = specialised(made)
    program = canonicalise(program)
    state = {v.node.id: np.ones(v.shape, "f4") for v in made.variables}
    once = PASSES[pass_name](program)
    verify(once, after=pass_name)
    wanted = _all_values(program, arrays, state, sizes)
    found = _all_values(once, arrays, state, sizes)
    for a, b in zip(found, wanted, strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5, err_msg=f"seed {seed}")
    twice = PASSES[pass_name](once)
    assert _without_lines(store_program(twice)[0]) == _without_lines(store_program(once)[0])


def test_folding_leaves_large_constants_and_failures() -> None:
    big = gx.broadcast_to(gx.constant(2.0), (1000, 1000)) * 1
    failing = gx.constant(1) // gx.constant(0)
    after = simplify(program_of([big, failing]))
    assert max(n.attrs["value"].array.size for n in after.order() if n.op.name == "constant") == 1
    assert after.fetches[1].node.op.name == "floor_divide"


def test_stateful_nodes_stay() -> None:
    x = _x()
    v = gx.Variable(np.zeros(4, "f4"))
    with gx.Session() as session:
        session.run(gx.global_variables_initializer())
        session.run(v.assign_add(gx.sum(x * 1, axis=0)), {x: np.ones((2, 4))})
        np.testing.assert_array_equal(session.run(v), [2, 2, 2, 2])


# ---- stability: the written form fails where the rewritten one does not ------------------------


def _values(t: Tensor, x: Tensor, fed: Any, pass_name: str) -> np.ndarray[Any, Any]:
    array = np.asarray(fed, np.float32)
    program = canonicalise(program_of([t]))
    if pass_name:
        program = PASSES[pass_name](program)
    (symbol,) = atoms(x.dims[0])
    ((found,), _) = interpret(program, [array], {}, {symbol: len(array)})
    return found


def _log_sum_exp(x: Any) -> Any:
    top = x.max(1, keepdims=True)
    return np.log(np.exp(x - top).sum(1)) + top[:, 0]


ROWS = [[1000, 1001, 999, 0], [-1000, -1001, -999, -1002], [1, 2, 3, 4]]
SMALL_ROWS = [[1e-9, -1e-9, 3e-8, 2e-12]]
LARGE_ROWS = [[100, 200, -100, -200]]
STABLE: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Any], Any], Any]] = {
    "log(sum(exp))": (lambda x: gx.log(gx.sum(gx.exp(x), axis=1)), _log_sum_exp, ROWS),
    "log(softmax)": (
        lambda x: gx.log(softmax(x)),
        lambda x: x - _log_sum_exp(x)[:, None],
        ROWS,
    ),
    "softmax": (
        lambda x: gx.exp(x) / gx.sum(gx.exp(x), axis=1, keepdims=True),
        lambda x: np.exp(x - _log_sum_exp(x)[:, None]),
        ROWS,
    ),
    "log(1 + x)": (lambda x: gx.log(1 + x), np.log1p, SMALL_ROWS),
    "log(1 - x)": (lambda x: gx.log(1 - x), lambda x: np.log1p(-x), SMALL_ROWS),
    "exp(x) - 1": (lambda x: gx.exp(x) - 1, np.expm1, SMALL_ROWS),
    "log(1 + exp(x))": (
        lambda x: gx.log(1 + gx.exp(x)),
        lambda x: np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x))),
        LARGE_ROWS,
    ),
    "log(sigmoid)": (
        lambda x: gx.log(activation.sigmoid(x)),
        lambda x: np.minimum(x, 0) - np.log1p(np.exp(-np.abs(x))),
        LARGE_ROWS,
    ),
    "log(1 - sigmoid)": (
        lambda x: gx.log(1 - activation.sigmoid(x)),
        lambda x: np.minimum(-x, 0) - np.log1p(np.exp(-np.abs(x))),
        LARGE_ROWS,
    ),
    "1 - sigmoid": (
        lambda x: 1 - activation.sigmoid(x),
        lambda x: 1 / (1 + np.exp(x)),
        [[30, 40, 50, 60]],
    ),
    "exp / (1 + exp)": (
        lambda x: gx.exp(x) / (1 + gx.exp(x)),
        lambda x: 1 / (1 + np.exp(-x)),
        LARGE_ROWS,
    ),
    "log(exp)": (lambda x: gx.log(gx.exp(x)), lambda x: x, LARGE_ROWS),
    "log(exp + exp)": (
        lambda x: gx.log(gx.exp(x) + gx.exp(x * 0.5)),
        lambda x: np.logaddexp(x, x * 0.5),
        LARGE_ROWS,
    ),
    "sqrt(square)": (lambda x: gx.sqrt(gx.square(x)), np.abs, [[1e30, -1e-30, 3, -4]]),
    "hypotenuse": (
        lambda x: gx.sqrt(gx.square(x) + gx.square(x * 2)),
        lambda x: np.hypot(x, 2 * x),
        [[1e30, -1e-30, 3, -4]],
    ),
    "variance": (
        lambda x: gx.mean(x * x, axis=1) - gx.square(gx.mean(x, axis=1)),
        lambda x: x.var(1),
        [[10000, 10001, 10002, 10003], [-5000, -5001, -5000, -5001]],
    ),
    "1 - erf": (
        lambda x: 1 - gx.erf(x),
        lambda x: np.array([[2.2090497e-05, 1.5417258e-08, 1.5374597e-12, 2.1519737e-17]]),
        [[3, 4, 5, 6]],
    ),
}


@pytest.mark.parametrize("name", STABLE)
def test_stability(name: str) -> None:
    build, meaning, rows = STABLE[name]
    x = gx.placeholder("f32", (None, 4), name="x")
    y = build(x)
    with np.errstate(all="ignore"):
        wanted = meaning(np.asarray(rows, np.float32).astype(np.float64))
    naive = _values(y, x, rows, "")
    better = _values(y, x, rows, "simplify")
    np.testing.assert_allclose(better, wanted, rtol=1e-6, atol=1e-37)
    assert not np.allclose(naive, wanted, rtol=1e-6, atol=1e-37), "the written form is fine"


@pytest.mark.parametrize("device", ["reference", "cpu"])
def test_gradient_of_naive_softplus_is_finite(device: str) -> None:
    x = gx.placeholder("f32", (None, 4), name="x")
    (g,) = gx.gradients(gx.sum(gx.log(1 + gx.exp(x))), [x])
    with gx.Session(device=device) as session:
        found = session.run(g, {x: [[0, 1, -1, 2]]})
    np.testing.assert_allclose(found, [[0.5, 0.7310586, 0.26894143, 0.880797]], rtol=1e-6)
