"""Transposes of strided convolutions, phase by phase."""

from __future__ import annotations

import itertools
import math
import random
from typing import Any

import numpy as np
import pytest

import graphc as gx
from graphc.compiler import plan_cpu
from graphc.contraction_maps import ContractionMaps
from graphc.kernel import Contraction
from graphc.nest import Index
from graphc.node import OPS
from graphc.ops import convolution
from graphc.ops.conv import conv_input_grad, conv_primitive
from graphc.ops.windows import window_count
from graphc.passes.phases import MOST, phases
from graphc.passes.resolve_state import resolve_state
from graphc.passes.specialise import bind_ranks, specialise, substitution
from graphc.types import TensorType, float64

Array = np.ndarray[Any, Any]
INPUT_GRAD = OPS["conv_input_grad"]


class Case:
    """A window rule for each axis, and the operands of the transpose."""

    def __init__(self, seed: int, rank: int, most: int = 9) -> None:
        rng = random.Random(seed)
        self.rank = rank
        while True:
            strides = [rng.randint(1, 4) for _ in range(rank)]
            dilations = [rng.choice((1, 1, 2, 3, 4)) for _ in range(rank)]
            self.window = [rng.randint(1, 5) for _ in range(rank)]
            self.sizes = [rng.randint(0, most) for _ in range(rank)]
            pads = [(rng.randint(0, 4), rng.randint(0, 4)) for _ in range(rank)]
            spans = [d * (k - 1) + 1 for d, k in zip(dilations, self.window, strict=True)]
            if all(n + a + b >= s for n, s, (a, b) in zip(self.sizes, spans, pads, strict=True)):
                break
        self.groups = rng.choice((1, 1, 2))
        self.channels, self.filters = rng.randint(1, 3), rng.randint(1, 3)
        self.attrs = {
            "strides": tuple(strides),
            "pads": tuple(pads),
            "dilations": tuple(dilations),
            "groups": self.groups,
        }
        self.seed = seed

    def counts(self, sizes: Any) -> list[Any]:
        rules = zip(
            sizes,
            self.window,
            self.attrs["strides"],
            self.attrs["dilations"],
            self.attrs["pads"],
            strict=True,
        )
        return [window_count(*rule) for rule in rules]

    def shapes(self, batch: int = 2) -> tuple[tuple[int, ...], tuple[int, ...]]:
        filters = self.filters * self.groups
        return (
            (batch, *self.counts(self.sizes), filters),
            (*self.window, self.channels, filters),
        )

    def operands(self, dtype: str, batch: int = 2) -> tuple[Array, Array]:
        rng = np.random.default_rng(self.seed)
        g, w = (rng.standard_normal(s).astype(dtype) for s in self.shapes(batch))
        return g, w

    def wanted(self, g: Array, w: Array) -> Array:
        result: Array = INPUT_GRAD.reference({**self.attrs, "sizes": tuple(self.sizes)}, g, w)
        return result

    def maps(self) -> ContractionMaps:
        types = [TensorType(float64, s) for s in self.shapes()]
        channels = self.channels * self.groups
        out = TensorType(float64, (2, *self.sizes, channels))
        attrs = {**self.attrs, "sizes": tuple(self.sizes)}
        found: ContractionMaps = INPUT_GRAD.lower(types, out, attrs)
        return found


def _at(index: Index, axes: tuple[int, ...], size: int) -> int | None:
    total = sum(int(str(c)) * axes[a] for a, c in index.axes) + int(str(index.shift))
    if not index.guarded:
        assert 0 <= total < size
        return total
    assert index.div == 1
    return total if 0 <= total < size else None


def _add_products(maps: ContractionMaps, g: Array, w: Array, y: Array, times: Array) -> None:
    shift = maps.shift or (0,) * y.ndim
    batch = len(maps.batch) + len(maps.m) + len(maps.n)
    extents = [int(str(d)) for d in maps.extents]
    for outer in itertools.product(*map(range, extents[:batch])):
        to = tuple(
            sum(int(str(c)) * outer[a] for a, c in pairs) + int(str(s))
            for pairs, s in zip(maps.out, shift, strict=True)
        )
        times[to] += 1
        for inner in itertools.product(*map(range, extents[batch:])):
            axes = (*outer, *inner)
            i = tuple(_at(x, axes, n) for x, n in zip(maps.a, g.shape, strict=True))
            j = tuple(_at(x, axes, n) for x, n in zip(maps.b, w.shape, strict=True))
            if None not in i and None not in j:
                y[to] += g[i] * w[j]


@pytest.mark.parametrize("rank", [1, 2])
def test_phases_are_what_they_are_phases_of(rank: int) -> None:
    for seed in range(60 if rank == 1 else 25):
        case = Case(seed, rank, 9 if rank == 1 else 5)
        g, w = case.operands("f8")
        wanted = case.wanted(g, w)
        got, times = np.zeros_like(wanted), np.zeros(wanted.shape, int)
        for part in phases(case.maps()):
            _add_products(part, g, w, got, times)
        assert (times == 1).all(), case.attrs
        np.testing.assert_allclose(got, wanted, 1e-12, 1e-12, err_msg=str(case.attrs))


def test_no_phase_multiplies_zeros_between_elements() -> None:
    """The products of all phases: those whose position and tap share a window, if it is there."""
    for seed in range(60):
        case = Case(seed, 2)
        s, d, p = (case.attrs[n] for n in ("strides", "dilations", "pads"))
        shared = [
            sum((x + p[i][0] - o * d[i]) % s[i] == 0 for x in range(n) for o in range(k))
            for i, (n, k) in enumerate(zip(case.sizes, case.window, strict=True))
        ]
        other = 2 * case.groups * case.channels * case.filters
        found = sum(math.prod(int(str(e)) for e in part.extents) for part in phases(case.maps()))
        assert found == math.prod(shared) * other, case.attrs


def test_many_phases_stay_one_contraction() -> None:
    side = math.isqrt(MOST) + 1
    attrs = {"strides": (side,) * 2, "pads": ((0, 0),) * 2, "dilations": (1, 1), "groups": 1}
    types = [TensorType(float64, (1, 2, 2, 1)), TensorType(float64, (side, side, 1, 1))]
    out = TensorType(float64, (1, 2 * side, 2 * side, 1))
    maps = INPUT_GRAD.lower(types, out, {**attrs, "sizes": (2 * side, 2 * side)})
    assert len(phases(maps)) == 1


@pytest.mark.parametrize("seed", range(8))
def test_compiled_phases_with_an_epilogue(seed: int) -> None:
    """Known sizes; the epilogue's operand dies there, so that results take over its memory."""
    case = Case(1000 + seed, 1 + seed % 3, 6)
    g, w = case.operands("f4")
    wanted = case.wanted(g, w)
    other = np.random.default_rng(1).standard_normal(wanted.shape).astype(np.float32)
    with gx.Graph().as_default() as graph:
        fed = [gx.placeholder("f32", a.shape) for a in (g, w, other)]
        x = conv_input_grad(fed[0], fed[1], sizes=tuple(case.sizes), **case.attrs)
        made = gx.exp(fed[2]) * 0.5
        y = gx.where(made > 0.4, x + made, 0.25) * made
        with gx.Session(graph) as session:
            got = session.run(y, dict(zip(fed, (g, w, other), strict=True)))
    e = np.exp(other) * 0.5
    np.testing.assert_allclose(got, np.where(e > 0.4, wanted + e, 0.25) * e, 1e-4, 1e-4)


@pytest.mark.parametrize("seed", range(6))
def test_compiled_phases_of_any_size(seed: int) -> None:
    """One compilation for sizes that are odd, even and less than the stride."""
    case = Case(2000 + seed, 1 + seed % 2)
    w_shape = case.shapes()[1]
    with gx.Graph().as_default() as graph:
        x = gx.placeholder("f32", (*[None] * (1 + case.rank), case.channels * case.groups))
        w = gx.placeholder("f32", w_shape)
        y = conv_primitive(x, w, sizes=tuple(case.counts(x.dims[1:-1])), **case.attrs)
        (dx,) = gx.gradients(gx.sum(y * y), [x])
        dx = dx + x
    rules = zip(case.window, case.attrs["dilations"], case.attrs["pads"], strict=True)
    least = [max(0, d * (k - 1) + 1 - a - b) for k, d, (a, b) in rules]
    with gx.Session(graph) as session:
        for more in range(5):
            case.sizes = [n + more for n in least]
            _, w_value = case.operands("f4")
            shape = (1 + more % 2, *case.sizes, case.channels * case.groups)
            x_value = np.random.default_rng(more).standard_normal(shape).astype(np.float32)
            attrs = {**case.attrs, "sizes": tuple(case.counts(case.sizes))}
            g_value = 2 * OPS["conv"].reference(attrs, x_value, w_value)
            wanted = case.wanted(g_value, w_value) + x_value
            got = session.run(dx, {x: x_value, w: w_value})
            np.testing.assert_allclose(got, wanted, 1e-4, 1e-3)


def test_second_order_gradients_through_phases() -> None:
    rng = np.random.default_rng(0)
    x_value, w_value = rng.standard_normal((2, 7, 6, 3)), rng.standard_normal((3, 2, 3, 4))

    def results(device: str) -> list[Array]:
        with gx.Graph().as_default() as graph:
            x, w = gx.placeholder("f64", x_value.shape), gx.placeholder("f64", w_value.shape)
            y = convolution.conv2d(x, w, strides=2, padding="same")
            first = gx.gradients(gx.sum(y * y * y), [x, w])
            second = gx.gradients(gx.sum(first[0] * first[0]) + gx.sum(gx.sin(first[1])), [x, w])
            with gx.Session(graph, device=device) as session:
                found: list[Array] = session.run(second, {x: x_value, w: w_value})
        return found

    for got, wanted in zip(results("cpu"), results("reference"), strict=True):
        np.testing.assert_allclose(got, wanted, 1e-9, 1e-9)


def test_phases_write_one_result_without_waiting_for_each_other() -> None:
    g, w = gx.placeholder("f32", (8, 14, 14, 64)), gx.placeholder("f32", (3, 3, 64, 64))
    attrs = {"strides": (2, 2), "pads": ((1, 1),) * 2, "dilations": (1, 1), "groups": 1}
    before = gx.placeholder("f32", (8, 28, 28, 64))
    y = gx.tanh(before) * conv_input_grad(g, w, sizes=(28, 28), **attrs)
    fed = (g, w, before)
    program = bind_ranks(resolve_state((gx.exp(y),), [], fed), [4] * 3)
    plan, _ = plan_cpu(specialise(program, substitution((), ())))
    steps = [s for s in plan.steps if isinstance(plan.kernels[s.kernel], Contraction)]
    assert len(steps) == 4
    assert [s.wait_from for s in steps[1:]] == [-1] * 3
    assert len({s.args for s in steps}) == 1
