"""Epilogues that read many arrays become loops of their own."""

from __future__ import annotations

import numpy as np
import pytest

import graphc as gx
from graphc.debug import check
from graphc.node import Tensor
from graphc.passes.epilogues import ARRAYS


def _product_with(arrays: int) -> tuple[list[Tensor], Tensor]:
    x = gx.placeholder("f32", ("n", 24), name="x")
    w = gx.placeholder("f32", (24, 40), name="w")
    bias = gx.placeholder("f32", (40,), name="bias")
    others = [gx.placeholder("f32", ("n", 40), name=f"a{i}") for i in range(arrays)]
    y = gx.tanh(x @ w + bias)
    for i, a in enumerate(others):
        y = gx.sin(y * a) if i % 2 else y + a * y
    return [x, w, bias, *others], y


def _fed(inputs: list[Tensor]) -> dict[Tensor, np.ndarray]:
    rng = np.random.RandomState(0)
    return {
        t: rng.randn(*[d if isinstance(d, int) else 13 for d in t.dims]).astype(np.float32)
        for t in inputs
    }


@pytest.mark.parametrize("arrays", [1, ARRAYS, ARRAYS + 1, ARRAYS + 6])
def test_an_epilogue_reads_few_arrays(arrays: int) -> None:
    inputs, y = _product_with(arrays)
    steps = [s for s in gx.explain(y).plan.steps if "pack" not in s.label]
    if arrays <= ARRAYS:
        assert len(steps) == 1
    else:
        product, loop = steps
        assert product.label.startswith("matmul+") and "matmul" not in loop.label
        assert len(product.writes) == 1, "what is handed on is one array"
        assert len(product.args) <= 4 + ARRAYS
    feeds = _fed(inputs)
    with gx.Session() as session, gx.Session(device="reference") as reference:
        np.testing.assert_allclose(
            session.run(y, feeds), reference.run(y, feeds), rtol=1e-4, atol=1e-5
        )


def test_values_read_elsewhere_are_still_written() -> None:
    inputs, y = _product_with(ARRAYS + 3)
    between = y.node.inputs[0]
    with gx.Session() as session:
        report = check([y, between, gx.sum(between, axis=0)], _fed(inputs), session)
    assert report.ok, str(report)
