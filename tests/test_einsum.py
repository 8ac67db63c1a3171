"""Sums of products over named axes, against NumPy."""

from __future__ import annotations

import numpy as np
import pytest

import graphc as gx
from graphc.errors import ShapeError
from graphc.ops.einsum import dot, einsum, inner, outer, tensordot, vdot

DEVICES = ("reference", "cpu")


def _arrays(*shapes: tuple[int, ...]) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.standard_normal(s) for s in shapes]


def _run(function: object, arrays: list[np.ndarray], device: str, symbolic: bool = False):
    graph = gx.Graph()
    with graph.as_default():
        inputs = [gx.placeholder("f64", (None,) * a.ndim if symbolic else a.shape) for a in arrays]
        y = function(*inputs)
        gradients = gx.gradients(gx.sum(y * y), inputs)
        with gx.Session(graph, device=device) as session:
            return session.run([y, gradients], dict(zip(inputs, arrays, strict=True)))


CASES = [
    ("ij,jk->ik", ((3, 4), (4, 5))),
    ("ij,jk->ki", ((3, 4), (4, 5))),
    ("ij,jk", ((3, 4), (4, 5))),
    ("bij,bjk->bik", ((2, 3, 4), (2, 4, 5))),
    ("bhqd,bkhd->bhqk", ((2, 3, 4, 5), (2, 6, 3, 5))),
    ("bhqk,bkhd->bqhd", ((2, 3, 4, 6), (2, 6, 3, 5))),
    ("i,i->", ((3,), (3,))),
    ("i,j->ij", ((3,), (4,))),
    ("ij,ij->ij", ((3, 4), (3, 4))),
    ("ij,ij->", ((3, 4), (3, 4))),
    ("ij->ji", ((3, 4),)),
    ("ij->j", ((3, 4),)),
    ("ij->", ((3, 4),)),
    ("ii->i", ((4, 4),)),
    ("ii", ((4, 4),)),
    ("iji->j", ((4, 3, 4),)),
    ("ijk,k->ij", ((2, 3, 4), (4,))),
    ("...ij,...jk->...ik", ((2, 3, 4), (2, 4, 5))),
    ("...ij,jk->...ik", ((2, 6, 3, 4), (4, 5))),
    ("...i,...i->...", ((2, 3, 4), (3, 4))),
    ("ab,bc,cd->ad", ((2, 3), (3, 4), (4, 5))),
    ("ab,cb,b->ac", ((2, 3), (4, 3), (3,))),
    ("ij,k->ik", ((2, 3), (4,))),
    ("abc,cd->d", ((2, 3, 4), (4, 5))),
    ("ij,jk->ik", ((3, 1), (4, 5))),
]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("equation", "shapes"), CASES, ids=[f"{e} {s}" for e, s in CASES])
def test_einsum_is_that_of_numpy(equation: str, shapes: tuple, device: str) -> None:
    arrays = _arrays(*shapes)
    y, gradients = _run(lambda *xs: einsum(equation, *xs), arrays, device)
    wanted = np.einsum(equation, *arrays)
    np.testing.assert_allclose(y, wanted, 1e-12, 1e-12)
    for i, g in enumerate(gradients):
        direction = np.random.default_rng(i).standard_normal(arrays[i].shape)
        up, down = list(arrays), list(arrays)
        up[i], down[i] = arrays[i] + 1e-6 * direction, arrays[i] - 1e-6 * direction
        values = [(np.einsum(equation, *v) ** 2).sum() for v in (up, down)]
        slope = (values[0] - values[1]) / 2e-6
        assert abs((g * direction).sum() - slope) < 1e-6 * (1 + abs(slope))


@pytest.mark.parametrize("device", DEVICES)
def test_einsum_on_sizes_known_at_run_time(device: str) -> None:
    arrays = _arrays((2, 3, 4, 5), (2, 6, 3, 5))
    equation = "bhqd,bkhd->bhqk"
    y, _ = _run(lambda *xs: einsum(equation, *xs), arrays, device, symbolic=True)
    np.testing.assert_allclose(y, np.einsum(equation, *arrays), 1e-12, 1e-12)


PRODUCTS = [
    (tensordot, np.tensordot, ((2, 3, 4), (3, 4, 5)), {}),
    (tensordot, np.tensordot, ((2, 3, 4), (4, 5)), {"axes": 1}),
    (tensordot, np.tensordot, ((2, 3), (4, 5)), {"axes": 0}),
    (tensordot, np.tensordot, ((2, 3, 4), (4, 2)), {"axes": ((0, 2), (1, 0))}),
    (tensordot, np.tensordot, ((2, 3), (3,)), {"axes": (-1, 0)}),
    (dot, np.dot, ((3,), (3,)), {}),
    (dot, np.dot, ((2, 3), (3,)), {}),
    (dot, np.dot, ((2, 3), (4, 3, 5)), {}),
    (dot, np.dot, ((), (3,)), {}),
    (inner, np.inner, ((2, 3), (4, 3)), {}),
    (outer, np.outer, ((2, 3), (4,)), {}),
    (vdot, np.vdot, ((2, 3), (2, 3)), {}),
]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("ours", "numpys", "shapes", "kwargs"), PRODUCTS)
def test_products_are_those_of_numpy(
    ours: object, numpys: object, shapes: tuple, kwargs: dict, device: str
) -> None:
    arrays = _arrays(*shapes)
    y, _ = _run(lambda *xs: ours(*xs, **kwargs), arrays, device)
    np.testing.assert_allclose(y, numpys(*arrays, **kwargs), 1e-12, 1e-12)


@pytest.mark.parametrize(
    ("equation", "message"),
    [
        ("ij,jk->ik", "einsum: 'j' is 3 and 4 in 'ij,jk->ik'"),
        ("ij->ij", "einsum: 1 terms in 'ij->ij' for 2 operands"),
        ("ijk,jk->ik", "einsum: 3 labels in 'ijk,jk->ik' for f64[2,3]"),
        ("ij,kl->iz", "einsum: label 'z' of the result is in no term of 'ij,kl->iz'"),
        ("ij,kl->ii", "einsum: a label is repeated in the result of 'ij,kl->ii'"),
    ],
)
def test_a_wrong_equation_is_refused_in_words(equation: str, message: str) -> None:
    with gx.Graph().as_default():
        a, b = gx.placeholder("f64", (2, 3)), gx.placeholder("f64", (4, 5))
        with pytest.raises(ShapeError) as caught:
            einsum(equation, a, b)
    assert str(caught.value) == message
