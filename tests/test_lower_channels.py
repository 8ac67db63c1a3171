"""Contractions that are a vector's product for each of many channels: loops along the channels."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import graphc as gx
from graphc.backends.codegen.contract_tiling import tile
from graphc.backends.codegen.targets import AVX2
from graphc.compiler import plan_cpu
from graphc.kernel import Contraction
from graphc.node import OPS
from graphc.ops.conv import conv_filter_grad, conv_primitive
from graphc.ops.windows import window_count
from graphc.passes import lower_chunks
from graphc.passes.resolve_state import resolve_state
from graphc.passes.specialise import bind_ranks, specialise, substitution

Array = np.ndarray[Any, Any]


def _check(
    groups: int, per_group: int, filters: int, rule: tuple[int, int, int, int], symbolic: bool
) -> None:
    """A convolution with an epilogue and its gradients, beside the reference."""
    window, stride, dilation, pad = rule
    rng = np.random.default_rng(groups)
    x_value = rng.standard_normal((2, 9, 8, groups * per_group)).astype(np.float32)
    w_shape = (window, window, per_group, groups * filters)
    w_value = rng.standard_normal(w_shape).astype(np.float32)
    attrs = {
        "strides": (stride,) * 2,
        "pads": ((pad, pad),) * 2,
        "dilations": (dilation,) * 2,
        "groups": groups,
    }
    windows = (window, stride, dilation, (pad, pad))
    with gx.Graph().as_default() as graph:
        shape = [None, None, None, x_value.shape[-1]] if symbolic else x_value.shape
        x, w = gx.placeholder("f32", shape), gx.placeholder("f32", w_value.shape)
        counts = tuple(window_count(n, *windows) for n in x.dims[1:3])
        y = conv_primitive(x, w, sizes=counts, **attrs)
        results = [gx.maximum(y, 0), *gx.gradients(gx.sum(y * y), [x, w])]
        with gx.Session(graph) as session:
            got = session.run(results, {x: x_value, w: w_value})
    counts = tuple(window_count(n, *windows) for n in x_value.shape[1:3])
    out = OPS["conv"].reference({**attrs, "sizes": counts}, x_value, w_value)
    dx = OPS["conv_input_grad"].reference({**attrs, "sizes": (9, 8)}, 2 * out, w_value)
    dw = OPS["conv_filter_grad"].reference({**attrs, "sizes": (window,) * 2}, x_value, 2 * out)
    for a, b in zip(got, (np.maximum(out, 0), dx, dw), strict=True):
        np.testing.assert_allclose(a, b, 1e-4, 2e-3)


RULES = [(3, 1, 1, 1), (3, 2, 1, 1), (5, 2, 1, 2), (1, 1, 1, 0), (2, 3, 2, 0), (3, 1, 3, 4)]
"""Window, stride, dilation, padding."""


@pytest.mark.parametrize("symbolic", [False, True])
@pytest.mark.parametrize(
    ("groups", "per_group", "filters"),
    [
        *((19, 1, 1), (64, 1, 1), (5, 1, 2), (17, 1, 3), (9, 2, 1)),
        *((16, 4, 4), (5, 4, 4), (6, 2, 8), (3, 8, 2), (4, 3, 5)),
    ],
)
def test_groups_of_few_channels_and_their_gradients(
    groups: int, per_group: int, filters: int, symbolic: bool
) -> None:
    _check(groups, per_group, filters, RULES[groups % len(RULES)], symbolic)


@pytest.mark.parametrize("symbolic", [False, True])
@pytest.mark.parametrize(("groups", "per_group"), [(33, 1), (8, 4)])
def test_sums_over_many_chunks(
    groups: int, per_group: int, symbolic: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Chunks of two rows, of nine and of five: the last is short."""
    monkeypatch.setattr(lower_chunks, "ELEMENTS", 8 * groups * per_group * 2)
    for rule in RULES:
        _check(groups, per_group, per_group, rule, symbolic)


def test_a_chunk_at_a_time_has_the_bits_of_any_number_of_threads() -> None:
    rng = np.random.default_rng(0)
    x_value = rng.standard_normal((2, 40, 40, 64)).astype(np.float32)
    x = gx.placeholder("f32", x_value.shape)
    attrs = {"strides": (1, 1), "pads": ((1, 1),) * 2, "dilations": (1, 1), "groups": 16}
    dw = conv_filter_grad(x, gx.tanh(x), sizes=(3, 3), **attrs)
    runs = []
    for threads in (1, 2, 3):
        with gx.Session(threads=threads) as session:
            runs.append(session.run(dw, {x: x_value}).tobytes())
    assert runs[0] == runs[1] == runs[2]


@pytest.mark.parametrize("groups", [16, 12])
def test_every_stage_of_a_grouped_convolution_is_right(groups: int) -> None:
    x = gx.placeholder("f32", (2, 7, 6, 4 * groups))
    w = gx.placeholder("f32", (3, 3, 4, 4 * groups))
    attrs = {"strides": (2, 2), "pads": ((1, 1),) * 2, "dilations": (1, 1), "groups": groups}
    y = gx.tanh(conv_primitive(x, w, sizes=(4, 3), **attrs))
    results = [y, *gx.gradients(gx.sum(y * y), [x, w])]
    rng = np.random.default_rng(0)
    feeds = {t: rng.standard_normal(t.shape).astype(np.float32) for t in (x, w)}
    with gx.Session() as session:
        report = gx.check(results, feeds, session)
    assert report.ok, str(report)


@pytest.mark.parametrize("per_group", [1, 4])
def test_few_channels_of_each_group_need_no_matrix_kernel(per_group: int) -> None:
    x, w = gx.placeholder("f32", (2, 9, 8, 32)), gx.placeholder("f32", (3, 3, per_group, 32))
    groups = 32 // per_group
    attrs = {"strides": (2, 2), "pads": ((1, 1),) * 2, "dilations": (1, 1), "groups": groups}
    y = conv_primitive(x, w, sizes=(5, 4), **attrs)
    results = (y, *gx.gradients(gx.sum(y * y), [x, w]))
    program = bind_ranks(resolve_state(results, [], (x, w)), [4] * 2)
    plan, _ = plan_cpu(specialise(program, substitution((), ())))
    assert not any(isinstance(k, Contraction) for k in plan.kernels)


@pytest.mark.parametrize("symbolic", [False, True])
@pytest.mark.parametrize("filters", [6, 8, 16])
def test_groups_of_some_rows_follow_each_other(filters: int, symbolic: bool) -> None:
    """As blocks, or as columns where a group fills register tiles."""
    rng = np.random.default_rng(0)
    x_value = rng.standard_normal((2, 40, 41, 64)).astype(np.float32)
    w_value = rng.standard_normal((3, 3, 8, 8 * filters)).astype(np.float32)
    attrs = {"strides": (1, 1), "pads": ((1, 1),) * 2, "dilations": (1, 1), "groups": 8}
    with gx.Graph().as_default() as graph:
        x = gx.placeholder("f32", [None, None, None, 64] if symbolic else x_value.shape)
        w = gx.placeholder("f32", w_value.shape)
        y = conv_primitive(x, w, sizes=x.dims[1:3], **attrs)
        with gx.Session(graph, threads=2) as session:
            got = session.run(y, {x: x_value, w: w_value})
    wanted = OPS["conv"].reference({**attrs, "sizes": (40, 41)}, x_value, w_value)
    np.testing.assert_allclose(got, wanted, 1e-4, 1e-4)
    program = bind_ranks(resolve_state((y,), [], (x, w)), [4] * 2)
    plan, _ = plan_cpu(specialise(program, substitution((), ())))
    (kernel,) = (k for k in plan.kernels if isinstance(k, Contraction))
    found = tile(kernel, AVX2)
    assert (found.grouped, found.batch_inside) == (filters % 8 == 0, filters % 8 != 0)


@pytest.mark.parametrize("channels", [17, 24, 40, 56, 104, 120])
def test_channels_left_over_by_whole_vectors(channels: int) -> None:
    """They are summed with some before them, unless the output lies where something is read."""
    x = gx.placeholder("f32", (2, 5, 6, channels))
    w = gx.placeholder("f32", (3, 3, 1, channels))
    a, b = gx.placeholder("f32", (60, 7)), gx.placeholder("f32", (7, channels))
    y = gx.nn.conv(x, w, 1, [(1, 1)] * 2, 1, channels)
    product = gx.reshape(a @ b, (2, 5, 6, channels))
    rng = np.random.default_rng(channels)
    later = gx.nn.conv(x * gx.mean(product), w, 1, [(1, 1)] * 2, 1, channels)
    into = gx.reshape(later * 2 + product, (60, channels)) @ gx.transpose(b)
    feeds = {t: rng.standard_normal(t.shape).astype(np.float32) for t in (x, w, a, b)}
    with gx.Session() as session:
        assert (report := gx.check([y], feeds, session)).ok, str(report)
        assert (report := gx.check([into], feeds, session)).ok, str(report)
