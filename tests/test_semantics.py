"""What users of TensorFlow 1 rely on in sessions, one test per rule; its name is the rule's key.

Shapes, numbers, variables and gradients: tests/test_semantics_values.py.  Threads:
tests/test_concurrency.py.  Loops, branches and optimizers are tested with their modules.
"""

from __future__ import annotations

import collections
import gc
import resource
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import graphc as gx

DEVICES = ("reference", "cpu")


@pytest.fixture(autouse=True)
def fresh_graph() -> Iterator[None]:
    gx.reset_default_graph()
    yield
    gx.reset_default_graph()


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def value(fetches: Any, feeds: Any = None, device: str = "cpu") -> Any:
    """The fetches in a new session, variables initialized."""
    with gx.Session(device=device) as session:
        session.run(gx.global_variables_initializer())
        return session.run(fetches, feeds)


# ---- fetches -----------------------------------------------------------------------------------


def test_fetch_single(device: str) -> None:
    t, u = gx.constant([1.0, 2.0]), gx.constant([3.0])
    with gx.Session(device=device) as s:
        assert isinstance(s.run(t), np.ndarray)
        one = s.run([t])
        assert type(one) is list and len(one) == 1
        two = s.run((t, u))
        assert type(two) is tuple
        np.testing.assert_array_equal(two[0], [1, 2])
        np.testing.assert_array_equal(two[1], [3])


def test_fetch_nested(device: str) -> None:
    a, b = gx.constant(1.0), gx.constant(2.0)
    got = value({"x": [a, (b, a)], 3: {"y": b}, "none": []}, device=device)
    assert got == {"x": [1.0, (2.0, 1.0)], 3: {"y": 2.0}, "none": []}
    ordered = value(collections.OrderedDict([("b", b), ("a", a)]))
    assert type(ordered) is collections.OrderedDict and list(ordered) == ["b", "a"]


def test_fetch_namedtuple(device: str) -> None:
    pair = collections.namedtuple("pair", ["left", "right"])
    got = value(pair(gx.constant(1.0), gx.constant(2.0)), device=device)
    assert type(got) is pair and got.right == 2.0


def test_fetch_a_list_changed_between_runs() -> None:
    fetches = [gx.constant(1.0)]
    with gx.Session() as s:
        assert s.run(fetches) == [1.0]
        fetches.append(gx.constant(2.0))
        assert s.run(fetches) == [1.0, 2.0]


def test_fetch_duplicate(device: str) -> None:
    t = gx.constant([1.0, 2.0])
    first, second = value([t, t], device=device)
    first[0] = 9
    np.testing.assert_array_equal(second, [1, 2])


def test_fetch_empty(device: str) -> None:
    gx.constant(1.0)
    with gx.Session(device=device) as s:
        assert s.run([]) == []
        assert s.run({}) == {}
        assert s.run(()) == ()


@pytest.mark.parametrize("bad", [None, 3, 1.5, object(), [None]])
def test_fetch_none_bad(bad: Any) -> None:
    gx.constant(1.0)
    with gx.Session() as s, pytest.raises(TypeError):
        s.run(bad)


def test_fetch_op_none(device: str) -> None:
    v = gx.Variable(1.0)
    with gx.Session(device=device) as s:
        assert s.run(v.initializer) is None
        assert s.run(gx.group(v.assign_add(2.0))) is None
        assert s.run([v, v.assign(5.0).op]) == [3.0, None]


@pytest.mark.parametrize("dtype", ["f32", "f64", "i32", "i64"])
def test_fetch_scalar_type(dtype: str, device: str) -> None:
    got = value(gx.constant(3, dtype), device=device)
    assert isinstance(got, np.generic) and got.dtype == gx.as_dtype(dtype).numpy and got == 3


def test_fetch_by_name(device: str) -> None:
    x = gx.placeholder("f32", (2,), name="x")
    gx.multiply(x, 2.0, name="double")
    with gx.Session(device=device) as s:
        np.testing.assert_array_equal(s.run("double:0", {"x:0": [1, 2]}), [2, 4])
        np.testing.assert_array_equal(s.run(["double"], {"x": [1, 2]})[0], [2, 4])


def test_fetch_bad_name() -> None:
    gx.constant(1.0)
    with gx.Session() as s:
        with pytest.raises(ValueError, match="nothing_such"):
            s.run("nothing_such:0")
        with pytest.raises(KeyError, match="nothing_such"):
            s.run("nothing_such")


def test_fetch_wrong_graph() -> None:
    gx.constant(1.0)
    with gx.Graph().as_default():
        other = gx.constant(1.0)
    with gx.Session() as s, pytest.raises(ValueError, match="another graph"):
        s.run(other)


def test_graph_mix() -> None:
    a = gx.constant(1.0)
    with gx.Graph().as_default():
        b = gx.constant(1.0)
        with pytest.raises(ValueError, match="another graph"):
            gx.add(a, b)


# ---- feeds -------------------------------------------------------------------------------------


def test_feed_missing() -> None:
    x = gx.placeholder("f32", (2,), name="pixels")
    with gx.Session() as s, pytest.raises(ValueError, match="pixels"):
        s.run(x * 2)


def test_feed_not_needed(device: str) -> None:
    x = gx.placeholder("f32", (2,))
    y = gx.placeholder("f32", (2,))
    got = value(x * 2, {x: [1, 2], y: [0, 0]}, device)
    np.testing.assert_array_equal(got, [2, 4])
    np.testing.assert_array_equal(value(x * 2, {x: [1, 2]}, device), [2, 4])


def test_feed_bad_rank_shape() -> None:
    x = gx.placeholder("f32", (None, 3), name="x")
    with gx.Session() as s:
        for bad in (np.zeros((2, 4)), np.zeros(3), np.zeros((1, 2, 3)), 1.0):
            with pytest.raises(ValueError) as caught:
                s.run(x, {x: bad})
            assert "3]" in str(caught.value) and str(np.shape(bad)) in str(caught.value)


@pytest.mark.parametrize(
    "fed", [[1, 2], (1.0, 2.0), np.array([1.0, 2.0]), np.array([1, 2], "i8"), [True, np.int64(2)]]
)
def test_feed_list_converts(fed: Any, device: str) -> None:
    x = gx.placeholder("f32", (2,))
    got = value(x + 0, {x: fed}, device)
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got, np.array(fed, "f4"))


@pytest.mark.parametrize(
    ("dtype", "fed"),
    [("i8", 128), ("u8", -1), ("i32", 2**31), ("i64", 2**63), ("u8", [1, 256]), ("i32", 1.5)],
)
def test_feed_lossy_int(dtype: str, fed: Any) -> None:
    x = gx.placeholder(dtype)
    with gx.Session() as s, pytest.raises((TypeError, ValueError)):
        s.run(x, {x: fed})


@pytest.mark.parametrize("fed", ["abc", ["1", "2"], [[1], [2, 3]], 1j, object(), None, {}])
def test_feed_string_to_float(fed: Any) -> None:
    x = gx.placeholder("f32")
    with gx.Session() as s, pytest.raises((TypeError, ValueError)):
        s.run(x, {x: fed})


def test_feed_tensor_value() -> None:
    x = gx.placeholder("f32")
    with gx.Session() as s, pytest.raises(TypeError, match="symbolic"):
        s.run(x, {x: gx.constant(1.0)})


@pytest.mark.parametrize("key", [3, None, ("x",), "no_such", 1.5])
def test_feed_bad_key(key: Any) -> None:
    t = gx.constant(1.0)
    with gx.Session() as s, pytest.raises(TypeError):
        s.run(t, {key: 1.0})


def test_feed_override_intermediate(device: str) -> None:
    x = gx.placeholder("f32", (2,))
    h = x * 2
    y = h + 1
    np.testing.assert_array_equal(value(y, {h: [10, 20]}, device), [11, 21])
    np.testing.assert_array_equal(value([h, y], {h: [10, 20]}, device)[0], [10, 20])


@pytest.mark.parametrize("dtype", ["f32", "f64", "i8", "u8", "i16", "i32", "i64", "u64", "bool"])
@pytest.mark.parametrize("shape", [(), (3,), (2, 0, 6), (0, 0, 0), (32, 64)])
def test_feed_back(dtype: str, shape: tuple[int, ...], device: str) -> None:
    x = gx.placeholder(dtype, shape)
    fed = np.random.default_rng(0).integers(0, 2, shape).astype(x.dtype.numpy)
    got = value(x, {x: fed}, device)
    assert np.shape(got) == shape and got.dtype == fed.dtype
    np.testing.assert_array_equal(got, fed)


def test_feed_noncontig(device: str) -> None:
    x = gx.placeholder("f32", (None, None))
    y = x * 2 + 1
    base = np.arange(24, dtype="f4").reshape(4, 6)
    frozen = base.copy()
    frozen.flags.writeable = False
    layouts = [
        base[:, ::2],
        np.asfortranarray(base),
        base[::-1, ::-1],
        frozen,
        np.broadcast_to(base[0], (5, 6)),
        base.T,
        base.astype(">f4"),
    ]
    with gx.Session(device=device) as s:
        for a in layouts:
            np.testing.assert_array_equal(s.run(y, {x: a}), a.astype("f4") * 2 + 1)


def test_feed_default(device: str) -> None:
    x = gx.placeholder_with_default(gx.constant([1.0, 2.0]))
    y = x * 2
    np.testing.assert_array_equal(value(y, device=device), [2, 4])
    np.testing.assert_array_equal(value(y, {x: [5, 6]}, device), [10, 12])


def test_feed_alias_out(device: str) -> None:
    x = gx.placeholder("f32", (3,))
    v = gx.Variable(np.ones(3, "f4"))
    fed = np.zeros(3, "f4")
    with gx.Session(device=device) as s:
        s.run(v.initializer)
        same, read = s.run([x, v], {x: fed})
        fed[:] = 7
        np.testing.assert_array_equal(same, [0, 0, 0])
        same[:] = 8
        assert fed[0] == 7
        read[:] = 9
        np.testing.assert_array_equal(s.run(v), [1, 1, 1])
        s.run(v.assign_add(np.ones(3, "f4")))
        np.testing.assert_array_equal(read, [9, 9, 9])
        s.get_value(v)[:] = 5
        np.testing.assert_array_equal(s.run(v), [2, 2, 2])


def test_feed_var_override(device: str) -> None:
    v = gx.Variable(2.0)
    y = v * 10
    with gx.Session(device=device) as s:
        s.run(v.initializer)
        assert s.run(y, {v: 5.0}) == 50
        assert s.run(y) == 20


# ---- sessions ----------------------------------------------------------------------------------


def test_sess_closed() -> None:
    t = gx.constant(1.0)
    s = gx.Session()
    s.run(t)
    s.close()
    s.close()
    with pytest.raises(RuntimeError, match="closed"):
        s.run(t)


def test_sess_empty_graph() -> None:
    with gx.Session() as s, pytest.raises(RuntimeError, match="empty"):
        s.run([])


def test_sess_two(device: str) -> None:
    v = gx.Variable(0.0)
    up = v.assign_add(1.0)
    a, b = gx.Session(device=device), gx.Session(device=device)
    a.run(v.initializer)
    b.run(v.initializer)
    a.run([up])
    a.run([up])
    assert (a.run(v), b.run(v)) == (2, 0)


def test_sess_extend(device: str) -> None:
    v = gx.Variable(1.0)
    with gx.Session(device=device) as s:
        s.run(v.initializer)
        y = v * 2
        assert s.run(y) == 2
        w = gx.Variable(5.0)
        z = y + w
        s.run(w.initializer)
        assert s.run(z) == 7
        assert s.run(y) == 2


def test_sess_default_eval(device: str) -> None:
    x = gx.placeholder("f32")
    y = x + 1
    with pytest.raises(ValueError, match="session"):
        y.eval({x: 1.0})
    with gx.Session(device=device) as s:
        assert y.eval({x: 1.0}) == s.run(y, {x: 1.0}) == 2
    with pytest.raises(ValueError, match="session"):
        y.eval({x: 1.0})


def test_sess_reentry() -> None:
    s = gx.Session()
    with s, pytest.raises(RuntimeError, match="entered"), s:
        pass


@pytest.mark.parametrize("arguments", [{"graph": 37}, {"threads": 0}, {"device": "abacus"}])
def test_sess_bad_args(arguments: dict[str, Any]) -> None:
    with pytest.raises(TypeError):
        gx.Session(**arguments)


def test_sess_callable(device: str) -> None:
    x = gx.placeholder("f32", (None,))
    y = gx.placeholder("f32", ())
    z = {"z": x * y, "t": [x]}
    with gx.Session(device=device) as s:
        call = s.make_callable(z, [x, y])
        for n in (1, 3):
            fed = np.arange(n, dtype="f4")
            got, want = call(fed, 2.0), s.run(z, {x: fed, y: 2.0})
            np.testing.assert_array_equal(got["z"], want["z"])
            np.testing.assert_array_equal(got["t"][0], want["t"][0])
        with pytest.raises(TypeError, match="takes 2 values, got 1"):
            call(1.0)
    with pytest.raises(RuntimeError, match="closed"):
        call(fed, 2.0)


# ---- the graph ---------------------------------------------------------------------------------


def test_graph_finalize(device: str) -> None:
    x = gx.constant(1.0)
    gx.get_default_graph().finalize()
    with pytest.raises(RuntimeError, match="finalized"):
        gx.constant(2.0)
    with gx.Session(device=device) as s:
        assert s.run(x) == 1


def test_graph_names_unique() -> None:
    a, b = gx.constant(1.0, name="c"), gx.constant(2.0, name="c")
    assert (a.op.name, b.op.name) == ("c", "c_1")
    with gx.get_default_graph().name_scope("layer"):
        assert gx.constant(1.0, name="c").op.name == "layer/c"
    with gx.get_default_graph().name_scope("layer"):
        assert gx.constant(1.0, name="c").op.name == "layer_1/c"


def test_graph_no_growth(device: str) -> None:
    x = gx.placeholder("f32", (None,))
    v = gx.Variable(0.0)
    y = gx.sum(x * v)
    (g,) = gx.gradients(y, v)
    up = v.assign_sub(g)
    init = gx.global_variables_initializer()
    with gx.Session(device=device) as s:
        before = len(gx.get_default_graph().nodes)
        s.run(init)
        for n in (1, 2, 5):
            s.run([y, up], {x: np.ones(n)})
        assert len(gx.get_default_graph().nodes) == before


def test_tensor_bool() -> None:
    x = gx.placeholder("f32", (None,))
    with pytest.raises(TypeError):
        bool(x > 0)
    with pytest.raises(TypeError):
        iter(x)
    assert len(list(gx.placeholder("f32", (3,)))) == 3


def test_err_recover(device: str) -> None:
    x = gx.placeholder("f32", (None,))
    y = gx.placeholder("f32", (None,))
    v = gx.Variable(1.0)
    up = v.assign_add(gx.sum(x * y))
    with gx.Session(device=device) as s:
        s.run(v.initializer)
        with pytest.raises(ValueError):
            s.run(up, {x: [1, 2, 3], y: [1, 2]})
        assert s.run(v) == 1
        assert s.run(up, {x: [1, 2], y: [1, 2]}) == 6


# ---- cost --------------------------------------------------------------------------------------


def test_perf_recompile(device: str) -> None:
    x = gx.placeholder("f32", (None, 4))
    y = gx.sum(x * 2 + 1)
    with gx.Session(device=device) as s:
        s.run(y, {x: np.ones((3, 4), "f4")})
        before = gx.stats()
        for i in range(300):
            s.run(y, {x: np.ones((1 + i % 7, 4), "f4")})
        after = gx.stats()
    assert (after.programs, after.plans, after.kernels) == (
        before.programs,
        before.plans,
        before.kernels,
    )


def test_mem_leak(device: str) -> None:
    x = gx.placeholder("f32", (None,))
    y = x + 1
    fed = np.ones(2**18, "f4")
    with gx.Session(device=device) as s:
        for _ in range(50):
            s.run(y, {x: fed})
        gc.collect()
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for _ in range(600):
            s.run(y, {x: fed})
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 60_000
