"""Merged products and sums: how many are left in networks that use their matrices many times, and
that values stay."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import graphc as gx
from graphc import nn
from graphc.backends.reference import interpret
from graphc.dims import atoms
from graphc.node import Tensor
from graphc.passes.canonicalise import canonicalise
from graphc.passes.merge_products import join_products, merge_products
from graphc.passes.merge_sums import merge_sums
from graphc.passes.pieces import join, piece_of, runs
from graphc.passes.resolve_state import resolve_state
from graphc.passes.simplify import simplify
from graphc.passes.specialise import specialise
from graphc.program import Program
from graphc.verify import verify

T, UNITS = 6, 48

# ---- networks ----------------------------------------------------------------------------------


def _weights(*shape: int, seed: int) -> gx.Variable:
    rng = np.random.RandomState(seed)
    return gx.Variable((rng.randn(*shape) / np.sqrt(shape[0])).astype(np.float32))


def _lstm(xs: list[Tensor], seed: int = 0) -> tuple[list[Tensor], list[gx.Variable]]:
    w, u = (
        _weights(xs[0].dims[-1], 4 * UNITS, seed=seed),
        _weights(UNITS, 4 * UNITS, seed=seed + 1),
    )
    b = _weights(4 * UNITS, seed=seed + 2)
    h = c = gx.zeros((xs[0].dims[0], UNITS))
    outputs = []
    for x in xs:
        i, f, o, g = gx.split(x @ w + h @ u + b, 4, axis=1)
        c = nn.sigmoid(f) * c + nn.sigmoid(i) * gx.tanh(g)
        h = nn.sigmoid(o) * gx.tanh(c)
        outputs.append(h)
    return outputs, [w, u, b]


def _input(batch: Any, first: bool = True) -> Tensor:
    shape = (T, batch, UNITS) if first else (batch, T, UNITS)
    return gx.placeholder("f32", shape, name="x")


def one_layer(batch: Any) -> list[Tensor]:
    """x[t] at every step; gradients of x and of the weights."""
    x = _input(batch)
    outputs, weights = _lstm([x[t] for t in range(T)])
    return gx.gradients(gx.mean(gx.square(gx.stack(outputs))), [x, *weights])


def batch_first(batch: Any) -> list[Tensor]:
    """x[:, t] at every step, the last output only."""
    x = _input(batch, first=False)
    outputs, weights = _lstm(gx.unstack(x, axis=1))
    return gx.gradients(gx.mean(gx.square(outputs[-1])), [x, *weights])


def two_layers(batch: Any) -> list[Tensor]:
    """The second layer reads the stacked outputs of the first."""
    x = _input(batch)
    first, weights = _lstm([x[t] for t in range(T)])
    between = gx.stack(first)
    second, more = _lstm([between[t] for t in range(T)], seed=5)
    return gx.gradients(gx.mean(gx.square(gx.stack(second))), [x, *weights, *more])


def both_ways(batch: Any) -> list[Tensor]:
    """One LSTM from the front and one from the back."""
    x = _input(batch)
    xs = [x[t] for t in range(T)]
    forward, weights = _lstm(xs)
    backward, more = _lstm(xs[::-1], seed=5)
    y = gx.concat([gx.stack(forward), gx.stack(backward[::-1])], axis=2)
    return gx.gradients(gx.mean(gx.square(y)), [x, *weights, *more])


def siamese(batch: Any) -> list[Tensor]:
    """Two inputs through the same two matrices."""
    a, b = (gx.placeholder("f32", (batch, 128), name=name) for name in "ab")
    w, v = _weights(128, 256, seed=1), _weights(256, 128, seed=2)
    y = gx.square(gx.tanh(a @ w) @ v - gx.tanh(b @ w) @ v)
    return gx.gradients(gx.sum(y), [w, v])


def solver(batch: Any) -> list[Tensor]:
    """Steps of Jacobi's method with one matrix, differentiated."""
    b = gx.placeholder("f32", (batch, 2 * UNITS), name="b")
    a = _weights(2 * UNITS, 2 * UNITS, seed=3)
    x = b
    for _ in range(T):
        x = b - x @ a * 0.1
    return gx.gradients(gx.sum(gx.square(x)), [b, a])


def batched(batch: Any) -> list[Tensor]:
    """Sequences times a matrix: its gradient sums over the batch and the steps."""
    x = _input(batch)
    w, v = _weights(UNITS, 24, seed=4), _weights(24, 8, seed=5)
    return gx.gradients(gx.mean(gx.square(gx.tanh(x @ w) @ v)), [x, w, v])


NETWORKS: dict[str, tuple[Callable[[Any], list[Tensor]], int]] = {
    "one_layer": (one_layer, 1 + T + T - 1 + 3),  # x w, h u, dg u', dx, dw, du
    "batch_first": (batch_first, 1 + T + T - 1 + 3),
    "two_layers": (two_layers, 2 * (1 + T + T - 1 + 3)),
    "both_ways": (both_ways, 2 * (1 + T + T - 1 + 3)),
    "siamese": (siamese, 4 + 2 + 2),
    "solver": (solver, T + T + 1),
    "batched": (batched, 6),
}
"""Each network, and how many products its gradients take."""


def _program(fetches: list[Tensor]) -> Program:
    nodes = gx.get_default_graph().nodes
    inputs = [n.outputs[0] for n in nodes if n.op.name == "placeholder"]
    return simplify(canonicalise(specialise(resolve_state(fetches, [], inputs), {})))


def _merged(program: Program) -> Program:
    for run in (merge_products, merge_sums, join_products):
        program = run(program)
        verify(program, after=run.__name__)
    return program


def _count(program: Program, name: str) -> int:
    return sum(n.op.name == name for n in program.order())


@pytest.mark.parametrize("batch", [3, "n"], ids=["known", "unknown"])
@pytest.mark.parametrize("name", NETWORKS)
def test_networks_keep_their_values_in_fewer_products(name: str, batch: int | str) -> None:
    build, products = NETWORKS[name]
    before = _program(build(batch))
    after = _merged(before)
    assert _count(after, "matmul") == products
    assert _count(after, "unslice") == 0
    rng = np.random.RandomState(7)
    symbols = {s for t in before.inputs for d in t.dims for s in atoms(d)}
    sizes = dict.fromkeys(symbols, 3)
    fed = [
        rng.randn(*[d if isinstance(d, int) else 3 for d in t.dims]).astype(np.float32)
        for t in before.inputs
    ]
    state = {v.node.id: rng.randn(*v.dims).astype(np.float32) / 4 for v in before.variables()}
    wanted, _ = interpret(before, fed, state, sizes)
    found, _ = interpret(after, fed, state, sizes)
    for a, b in zip(found, wanted, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_agree_on_every_device(name: str) -> None:
    fetches = NETWORKS[name][0]("n")
    nodes = gx.get_default_graph().nodes
    inputs = [n.outputs[0] for n in nodes if n.op.name == "placeholder"]
    rng = np.random.RandomState(7)
    feeds = {
        t: rng.randn(*[d if isinstance(d, int) else 5 for d in t.dims]).astype(np.float32)
        for t in inputs
    }
    results = []
    for device in ("reference", "cpu"):
        with gx.Session(device=device) as session:
            session.run(gx.global_variables_initializer())
            results.append(session.run(fetches, feeds))
    for a, b in zip(*results, strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-5)


# ---- what is not merged ------------------------------------------------------------------------


def test_long_sums_stay_apart() -> None:
    """Few terms with long sums: joining their operands would move more than adding them."""
    x = [gx.placeholder("f32", (512, 32), name=f"x{i}") for i in range(2)]
    y = [gx.placeholder("f32", (512, 32), name=f"y{i}") for i in range(2)]
    total = gx.add_n([gx.matmul(a, b, transpose_a=True) for a, b in zip(x, y, strict=True)])
    assert _count(_merged(_program([total])), "matmul") == 2


def test_two_products_with_different_matrices_are_added_as_they_are() -> None:
    x, h = (gx.placeholder("f32", (32, 256), name=name) for name in "xh")
    w, u = (gx.placeholder("f32", (256, 1024), name=name) for name in "wu")
    program = _program([x @ w + h @ u])
    assert _count(_merged(program), "matmul") == 2


def test_terms_that_somebody_else_reads_stay() -> None:
    x = [gx.placeholder("f32", (2, 32), name=f"x{i}") for i in range(3)]
    y = [gx.placeholder("f32", (2, 32), name=f"y{i}") for i in range(3)]
    products = [gx.matmul(a, b, transpose_a=True) for a, b in zip(x, y, strict=True)]
    after = _merged(_program([gx.add_n(products), gx.tanh(products[1])]))
    assert _count(after, "matmul") == 2


def test_stretches_that_overlap_are_added() -> None:
    x = gx.placeholder("f32", (6, 4), name="x")
    y = gx.sin(x[0:3]) * gx.cos(x[2:5]) * gx.exp(x[3:6])
    program = _program(gx.gradients(gx.sum(y), [x]))
    after = _merged(program)
    assert _count(after, "unslice") == 1
    fed = [np.random.RandomState(1).randn(6, 4).astype(np.float32)]
    (wanted,), _ = interpret(program, fed, {}, {})
    (found,), _ = interpret(after, fed, {}, {})
    np.testing.assert_allclose(found, wanted, rtol=1e-6)


def test_many_rows_are_many_enough() -> None:
    """Products with hundreds of rows each gain nothing by having more, and take more memory."""
    x = gx.placeholder("f32", (4, 512, 32), name="x")
    w = gx.placeholder("f32", (32, 32), name="w")
    program = _program([gx.tanh(x[t] @ w) for t in range(4)])
    assert _count(_merged(program), "matmul") == 4


# ---- pieces ------------------------------------------------------------------------------------


def test_runs_of_pieces() -> None:
    x = gx.placeholder("f32", (9, 4), name="x")
    bounds = [(4, 6), (0, 2), (2, 3), (7, 9), (6, 7), (1, 2)]
    pieces = [piece_of(x[a:b]) for a, b in bounds]
    assert all(p is not None for p in pieces)
    found = runs([p for p in pieces if p is not None])
    assert sorted(found) == [[0, 4, 3], [1, 2], [5]]


def test_what_is_no_piece() -> None:
    x = gx.placeholder("f32", (9, 4), name="x")
    for t in (x, x[::2], x[1:, 1:], gx.tanh(x), gx.reshape(x[0:1], (2, 2))):
        assert piece_of(t) is None


@pytest.mark.parametrize("dropped", [0, 1, 2])
@pytest.mark.parametrize("axis", [0, 1])
def test_joined_pieces_are_what_concat_gives(dropped: int, axis: int) -> None:
    x = gx.placeholder("f32", (3, 4, 5), name="x")
    where = [(slice(None),) * dropped + (i,) for i in range(3)]
    parts = _program([x[w] for w in where[1:]]).fetches
    joined = join(parts, axis)
    assert not any(n.op.name == "concat" for n in Program((x,), (joined,)).order())
    fed = np.random.RandomState(2).randn(3, 4, 5).astype(np.float32)
    (found,), _ = interpret(_program([joined]), [fed], {}, {})
    np.testing.assert_array_equal(found, np.concatenate([fed[w] for w in where[1:]], axis))
