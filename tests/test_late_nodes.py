"""Expressions built while a graph is run: shared, freed, and warned about."""

from __future__ import annotations

import gc
import warnings
import weakref
from typing import Any

import numpy as np
import pytest

import graphc as gx
from graphc import late_nodes
from graphc import session as session_module
from graphc.errors import GraphError, GraphGrowthWarning

X = np.arange(3, dtype=np.float32)


def started() -> tuple[gx.Session, Any]:
    """A session that has run its graph, and a placeholder."""
    x = gx.placeholder("f32", (None,), name="x")
    s = gx.Session()
    s.run(x + 1.0, {x: X})
    return s, x


def test_the_same_expression_on_the_same_line_is_the_same_node() -> None:
    s, x = started()
    before = gx.stats()
    made = []
    for _ in range(300):
        y = gx.sum(-x * 2.0 + [1.0, 2.0, 3.0])
        made.append(y)
        assert s.run(y, {x: X}) == 0
    assert len(set(map(id, made))) == 1
    after = gx.stats()
    assert after.programs - before.programs == 1
    assert len(gx.get_default_graph().nodes) < 20


def test_what_is_not_shared() -> None:
    _, x = started()
    v = gx.Variable(np.zeros(3, "f4"), name="v")
    pairs: list[Any] = [
        lambda: gx.identity(x),
        lambda: gx.placeholder("f32", ()),
        lambda: gx.Variable(np.zeros(1, "f4")),
        lambda: gx.random.uniform((2,)),
        lambda: v.assign_add(x),
        lambda: gx.negative(x, name="named"),
        lambda: gx.constant(np.zeros(1 << 12)),
    ]
    for make in pairs:
        first, second = [make() for _ in range(2)]
        assert first is not second
    assert (-x) is not (-x + 0.0)
    first, second = -x, -x
    assert first is second  # one line
    third = -x
    assert third is not first
    graph = gx.get_default_graph()
    inside = []
    for scope in ("a", "b"):
        with graph.name_scope(scope):
            inside.append(-x)
    assert inside[0].name != inside[1].name
    nodes = [x.node, v.initializer]
    with_control = []
    for n in nodes:
        with graph.control_dependencies([n]):
            with_control.append(-x)
    assert with_control[0] is not with_control[1]


def test_before_the_first_run_nothing_is_shared() -> None:
    x = gx.placeholder("f32", (None,), name="x")
    first, second = [-x for _ in range(2)]
    assert first is not second
    assert [n.name for n in gx.get_default_graph().nodes] == ["x", "negative", "negative_1"]


def test_late_nodes_live_while_something_refers_to_them() -> None:
    _, x = started()
    graph = gx.get_default_graph()
    count = len(graph.nodes)
    y = gx.tanh(x) * 3.0
    name = y.node.name
    assert graph.get_operation_by_name(name) is y.node
    assert y.node in graph.nodes
    assert [n.id for n in graph.nodes] == sorted(n.id for n in graph.nodes)
    seen = weakref.ref(y)
    del y
    gc.collect()
    assert seen() is None
    assert len(graph.nodes) == count
    with pytest.raises(GraphError, match="no operation"):
        graph.get_operation_by_name(name)
    kept = gx.tanh(x, name="kept")
    del kept
    gc.collect()
    assert graph.get_operation_by_name("kept") in graph.nodes
    consumer = gx.exp(gx.sin(x), name="consumer")
    del consumer
    gc.collect()
    text = str(graph)  # the sine too, which the consumer needs
    assert "sin(" in text
    assert "consumer" in text


def test_names_stay_unique() -> None:
    _, x = started()
    graph = gx.get_default_graph()
    names: set[str] = set()
    kept = []
    for i in range(20):
        y = gx.tanh(x + float(i))
        assert y.node.name not in names
        names.add(y.node.name)
        kept.append(y)
    taken = kept[5].node.name
    named = gx.negative(x, name=taken)
    assert named.node.name != taken
    assert graph.get_operation_by_name(taken) is kept[5].node


def grow(s: gx.Session, x: Any, times: int) -> None:
    for i in range(times):
        s.run(x + float(i), {x: X})


def test_a_growing_line_is_warned_about_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(late_nodes, "GROWING", 5)
    s, x = started()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        grow(s, x, 20)
    (warning,) = caught
    assert warning.category is GraphGrowthWarning
    assert warning.filename == __file__
    text = str(warning.message)
    assert "'add'" in text
    assert "5 runs" in text
    assert "s.run(x + float(i), {x: X})" in text


def test_building_much_between_two_runs_is_no_growth(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(late_nodes, "GROWING", 5)
    s, x = started()
    y = x
    for i in range(50):
        y = gx.tanh(y + float(i))
    s.run(y, {x: X})
    for _ in range(20):
        s.run(y, {x: X})


def test_memory_is_bounded_by_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_module, "CALL_CACHE_SIZE", 4)
    s, _ = started()
    graph = gx.get_default_graph()
    v = gx.Variable(np.zeros(3, "f4"), name="v")
    s.run(v.initializer)

    def round_of(number: int) -> int:
        for i in range(10):
            s.run(v.assign(X + float(number * 10 + i)))
        gc.collect()
        return len(graph.nodes)

    first = round_of(0)
    assert [round_of(n) for n in range(1, 4)] == [first] * 3
    assert len(graph._used) < 20


def test_seeds_do_not_depend_on_what_was_freed() -> None:
    from graphc.nn.initializers import orthogonal

    found = []
    for collect in (True, False):
        with gx.Graph(seed=3).as_default():
            s, x = started()
            for i in range(5):
                s.run(x * float(i), {x: X})
                if collect:
                    gc.collect()
            found.append(s.run(orthogonal()((3, 3))))
    np.testing.assert_array_equal(found[0], found[1])


def test_code_goes_when_nobody_needs_it(
    monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    from graphc.backends.llvm import jit
    from graphc.backends.llvm.image import MappedImage

    def mapped() -> int:
        gc.collect()
        return sum(isinstance(o, MappedImage) for o in gc.get_objects())

    monkeypatch.setattr(jit, "KEPT_KERNELS", 3)
    monkeypatch.setattr(session_module, "CALL_CACHE_SIZE", 4)
    gc.freeze()  # what other tests left takes seconds to look through
    request.addfinalizer(gc.unfreeze)
    s, x = started()
    first = s.make_callable(gx.tanh(x) * 1234.5, [x])
    wanted = first(X)
    counts = []
    for i in range(24):
        y = gx.exp(x) * (i + 0.25)
        np.testing.assert_allclose(s.run(y, {x: X}), np.exp(X) * (i + 0.25), rtol=1e-6)
        counts.append(mapped())
    assert 0 < max(counts[12:]) == max(counts[:12])
    for _ in range(40):  # long forgotten by the compiler
        np.testing.assert_array_equal(first(X), wanted)
    np.testing.assert_allclose(s.run(gx.tanh(x) * 1234.5, {x: X}), wanted)
