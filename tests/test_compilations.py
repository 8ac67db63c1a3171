"""What a session and a function say about what they compiled."""

from __future__ import annotations

import numpy as np
import pytest

import graphc as gx
from graphc import compilations

X = np.ones((2, 3), "f4")


@pytest.fixture(params=["cpu", "reference"])
def session(request: pytest.FixtureRequest) -> gx.Session:
    return gx.Session(device=request.param)


def reasons(s: gx.Session) -> list[str]:
    return [c.reason for c in s.compiled()]


def test_new_sizes_and_orders_add_nothing(session: gx.Session) -> None:
    x = gx.placeholder("f32", ("n", 3), name="x")
    y = gx.placeholder("f32", ("n", 3), name="y")
    z = gx.add(x, y, name="z")
    for n in range(4):
        session.run(z, {x: np.ones((n, 3)), y: np.ones((n, 3))})
        session.run([z], {y: np.ones((n, 3)), x: np.ones((n, 3))})
    (made,) = session.compiled()
    assert (made.fetches, made.feeds) == (("z",), ("x", "y"))
    assert made.reason == "first run of these fetches"
    assert made.seconds > 0


def test_fetches_and_feeds(session: gx.Session) -> None:
    x = gx.placeholder("f32", (2, 3), name="x")
    h = gx.tanh(x, name="h")
    y = gx.exp(h, name="y")
    session.run(y, {x: X})
    session.run([y, h], {x: X})
    session.run(y, {h: X})
    session.run(y, {x: X, h: X})
    session.nan_guard = True
    session.run(y, {x: X})
    assert reasons(session) == [
        "first run of these fetches",
        "first run of these fetches",
        "these fetches with other feeds than before: 'h' also fed, 'x' no longer fed",
        "these fetches with other feeds than before: 'h' also fed",
        "the same fetches and feeds under another NaN guard or memory budget",
    ]


def test_ranks(session: gx.Session) -> None:
    x = gx.placeholder("f32", name="x")
    k = gx.placeholder("f32", (), name="k")
    y = gx.sum(x * k)
    for shape in ((3,), (2, 3), (4,), (1, 1, 1), (5, 5)):
        session.run(y, {x: np.ones(shape), k: 2.0})
    assert reasons(session)[1:] == [
        "new ranks: 'x' has rank 2, and had 1",
        "new ranks: 'x' has rank 3, and had 1 or 2",
    ]


def test_sizes_that_meet(session: gx.Session) -> None:
    a = gx.placeholder("f32", ("p",), name="a")
    b = gx.placeholder("f32", ("q",), name="b")
    y = a + b
    for p, q in ((3, 3), (1, 4), (5, 5), (4, 1), (1, 7)):
        session.run(y, {a: np.ones(p), b: np.ones(q)})
    found = reasons(session)
    assert len(found) == 3
    assert found[0] == "first run of these fetches"
    for reason in found[1:]:
        assert reason.startswith("sizes that broadcast against each other met in a new way: ")
        assert " is 1 beside " in reason


def test_functions_tell_too() -> None:
    x = gx.placeholder("f32", name="x")
    v = gx.shared(np.zeros(3, "f4"), name="v")
    f = gx.function([x], gx.sum(x, name="total"), updates=[(v, v + 1.0)])
    f([1.0])
    f([1.0, 2.0])
    f([[1.0, 2.0]])
    first, second = f.compiled()
    assert first.fetches == ("total", "v")
    assert first.feeds == ("x",)
    assert first.reason == "first call"
    assert second.reason == "new ranks: 'x' has rank 2, and had 1"


def test_a_record_reads_as_a_line() -> None:
    s = gx.Session()
    x = gx.placeholder("f32", (2, 3), name="x")
    s.run(gx.sin(x, name="y"), {x: X})
    (made,) = s.compiled()
    assert made.kernels + made.kernel_hits >= 1
    text = str(made)
    assert text.startswith(("compiled in 0.", "loaded in 0.", "compiled in "))
    assert text.endswith("'y' from 'x'; first run of these fetches")


def test_the_latest_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compilations, "RECORDS", 3)
    s = gx.Session(device="reference")
    x = gx.placeholder("f32", (2, 3), name="x")
    for i in range(5):
        s.run(gx.add(x, 1.0, name=f"y{i}"), {x: X})
    assert [c.fetches for c in s.compiled()] == [("y2",), ("y3",), ("y4",)]
