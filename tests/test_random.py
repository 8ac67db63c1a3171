"""Random numbers: the generator, distributions, seeds and dropout."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import graphc as gx
from graphc.errors import GraphTypeError
from graphc.ops import random
from graphc.ops.random_bits import philox_words

DEVICES = ("reference", "cpu")
Array = np.ndarray[Any, Any]


def _draw(
    make: Callable[[], gx.Tensor], device: str = "cpu", seed: int | None = 1, runs: int = 1
) -> list[Array]:
    with gx.Graph(seed=seed).as_default() as graph:
        y = make()
        with gx.Session(graph, device=device) as session:
            return [np.asarray(session.run(y)) for _ in range(runs)]


# ---- the generator -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("index", "counter", "key", "wanted"),
    [  # the known-answer vectors published with the algorithm
        (0, 0, 0, (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        (
            2**64 - 1,
            2**64 - 1,
            2**64 - 1,
            (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD),
        ),
        (
            0x85A308D3243F6A88,
            0x0370734413198A2E,
            0x299F31D0A4093822,
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_gives_the_published_words(
    index: int, counter: int, key: int, wanted: tuple[int, ...]
) -> None:
    words = philox_words(np.array(index, np.uint64), np.uint64(counter), key)
    assert tuple(int(w) for w in words) == wanted


def test_both_devices_draw_the_same_numbers() -> None:
    def make() -> gx.Tensor:
        return random.uniform((3, 5, 7), dtype="f64")

    reference, cpu = _draw(make, "reference", runs=3), _draw(make, "cpu", runs=3)
    np.testing.assert_array_equal(reference, cpu)


def test_numbers_do_not_depend_on_threads() -> None:
    with gx.Graph(seed=5).as_default() as graph:
        y = random.normal((300, 400))
        values = []
        for threads in (1, 3):
            with gx.Session(graph, threads=threads) as session:
                values.append(session.run(y))
    np.testing.assert_array_equal(*values)


def test_sizes_may_be_known_at_run_time() -> None:
    with gx.Graph(seed=5).as_default() as graph:
        x = gx.placeholder("f32", (None, 3))
        y = random.uniform(gx.shape(x))
        with gx.Session(graph) as session:
            small = session.run(y, {x: np.zeros((2, 3))})
        with gx.Session(graph) as session:
            large = session.run(y, {x: np.zeros((9, 3))})
    assert small.shape == (2, 3)
    np.testing.assert_array_equal(small, large[:2])


# ---- distributions -----------------------------------------------------------------------------

N = 200_000


def _moments(values: Array) -> tuple[float, float, float, float]:
    v = values.astype(np.float64)
    z = (v - v.mean()) / v.std()
    return float(v.mean()), float(v.var()), float((z**3).mean()), float((z**4).mean())


def _truncated_variance() -> float:
    from math import erf, exp, pi, sqrt

    return 1 - 2 * 2 * exp(-2) / sqrt(2 * pi) / erf(sqrt(2))


DISTRIBUTIONS: list[tuple[str, Callable[[str], gx.Tensor], float, float, float]] = [
    ("uniform", lambda d: random.uniform((N,), -1, 3, d), 1, 16 / 12, 1.8),
    ("normal", lambda d: random.normal((N,), 2, 3, d), 2, 9, 3),
    ("truncated", lambda d: random.truncated_normal((N,), dtype=d), 0, _truncated_variance(), 2.37),
]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", ["f32", "f64"])
@pytest.mark.parametrize(
    ("name", "make", "mean", "variance", "kurtosis"), DISTRIBUTIONS, ids=lambda v: str(v)[:9]
)
def test_moments(
    name: str,
    make: Callable[[str], gx.Tensor],
    mean: float,
    variance: float,
    kurtosis: float,
    dtype: str,
    device: str,
) -> None:
    (values,) = _draw(lambda: make(dtype), device)
    assert values.dtype == np.dtype("float32" if dtype == "f32" else "float64")
    m, v, skew, fourth = _moments(values)
    error = 5 * np.sqrt(variance / N)
    assert abs(m - mean) < error
    assert abs(v / variance - 1) < 0.02
    assert abs(skew) < 0.03
    assert abs(fourth - kurtosis) < 0.1


@pytest.mark.parametrize("device", DEVICES)
def test_bounds(device: str) -> None:
    (u,) = _draw(lambda: random.uniform((N,)), device)
    assert u.min() >= 0
    assert u.max() < 1
    (t,) = _draw(lambda: random.truncated_normal((N,), 1, 0.5), device)
    assert -1e-6 <= t.min() < 0.01 and 1.99 < t.max() <= 2 + 1e-6
    (i,) = _draw(lambda: random.randint(-3, 4, (N,)), device)
    counts = np.bincount(i + 3, minlength=7)
    assert i.dtype == np.int32 and len(counts) == 7
    assert abs(counts / (N / 7) - 1).max() < 0.05
    (b,) = _draw(lambda: random.bernoulli((N,), 0.3), device)
    assert set(np.unique(b)) == {0.0, 1.0} and abs(b.mean() - 0.3) < 0.01


@pytest.mark.parametrize("device", DEVICES)
def test_categorical_draws_by_softmax(device: str) -> None:
    logits = np.log(np.array([[0.1, 0.2, 0.7], [0.5, 0.5, 1e-9]], np.float32))
    (drawn,) = _draw(lambda: random.categorical(logits, 20_000), device)
    assert drawn.shape == (2, 20_000) and drawn.dtype == np.int64
    shares = np.stack([np.bincount(row, minlength=3) for row in drawn]) / 20_000
    np.testing.assert_allclose(shares, np.exp(logits), atol=0.02)


# ---- seeds -------------------------------------------------------------------------------------


def test_a_graph_seed_repeats_in_every_session_but_not_from_run_to_run() -> None:
    def make() -> gx.Tensor:
        return random.uniform((4,))

    first, second = _draw(make, seed=3, runs=2), _draw(make, seed=3, runs=2)
    np.testing.assert_array_equal(first, second)
    assert not np.array_equal(first[0], first[1])
    assert not np.array_equal(first[0], _draw(make, seed=4)[0])


def test_operators_of_a_seeded_graph_differ() -> None:
    (alone,) = _draw(lambda: random.uniform((2, 4)))
    with gx.Graph(seed=1).as_default() as graph:
        x, y = random.uniform((2, 4)), random.uniform((2, 4))
        with gx.Session(graph) as session:
            first, second = session.run([x, y])
    np.testing.assert_array_equal(first, alone)
    assert not np.array_equal(first, second)


def test_without_seeds_sessions_differ() -> None:
    with gx.Graph().as_default() as graph:
        y = random.uniform((4,))
        values = []
        for _ in range(2):
            with gx.Session(graph) as session:
                values.append(session.run(y))
    assert not np.array_equal(*values)


def test_an_operator_seed_repeats_in_every_session() -> None:
    with gx.Graph().as_default() as graph:
        y, z = random.uniform((4,), seed=9), random.uniform((4,))
        values = []
        for _ in range(2):
            with gx.Session(graph) as session:
                values.append([session.run([y, z]) for _ in range(2)])
    for run in range(2):
        np.testing.assert_array_equal(values[0][run][0], values[1][run][0])
        assert not np.array_equal(values[0][run][1], values[1][run][1])
    assert not np.array_equal(values[0][0][0], values[0][1][0])


def test_one_node_has_one_value_in_a_run() -> None:
    with gx.Graph().as_default() as graph:
        y = random.normal((50,))
        with gx.Session(graph) as session:
            zero, value, again = session.run([y - y, y, y])
    np.testing.assert_array_equal(zero, np.zeros(50))
    np.testing.assert_array_equal(value, again)


def test_set_random_seed() -> None:
    def make() -> gx.Tensor:
        random.set_random_seed(17)
        return random.uniform((4,))

    np.testing.assert_array_equal(*(_draw(make, seed=None)[0] for _ in range(2)))


def test_the_counter_is_in_no_collection() -> None:
    with gx.Graph(seed=1).as_default() as graph:
        random.uniform((4,))
        assert gx.global_variables() == []
        assert graph.random_counter is not None


# ---- dropout -----------------------------------------------------------------------------------


@pytest.mark.parametrize("device", DEVICES)
def test_dropout_keeps_the_mean_and_its_gradient_uses_the_same_mask(device: str) -> None:
    with gx.Graph(seed=2).as_default() as graph:
        x = gx.placeholder("f32", (None, 100))
        y = random.dropout(x, 0.25)
        (g,) = gx.gradients(y, [x])
        with gx.Session(graph, device=device) as session:
            value, gradient = session.run([y, g], {x: np.ones((1000, 100))})
    assert set(np.unique(value)) == {np.float32(0), np.float32(4 / 3)}
    assert abs((value == 0).mean() - 0.25) < 0.01
    np.testing.assert_array_equal(value, gradient)


def test_a_rate_may_be_fed_and_a_noise_shape_shares_draws() -> None:
    with gx.Graph(seed=2).as_default() as graph:
        x, rate = gx.constant(np.ones((40, 50), "f4")), gx.placeholder("f32", ())
        y = random.dropout(x, rate, noise_shape=(40, 1))
        with gx.Session(graph) as session:
            none, half = session.run(y, {rate: 0.0}), session.run(y, {rate: 0.5})
    np.testing.assert_array_equal(none, np.ones((40, 50)))
    np.testing.assert_array_equal(half, np.repeat(half[:, :1], 50, 1))
    assert 0 < (half == 0).mean() < 1
    assert set(np.unique(half)) == {0.0, 2.0}


def test_wrong_parameters_are_refused() -> None:
    with gx.Graph().as_default():
        with pytest.raises(GraphTypeError, match=r"rate must be in \[0, 1\), not 1"):
            random.dropout(gx.constant([1.0]), 1)
        with pytest.raises(GraphTypeError, match=r"no integers in \[3, 3\)"):
            random.randint(3, 3)
        with pytest.raises(GraphTypeError, match="dtype f32 or f64, not bool"):
            random.uniform((2,), dtype="bool")
