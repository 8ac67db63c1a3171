"""Kernels that differ in numbers only are one kernel: how many a plan has, and that bits stay."""

from __future__ import annotations

import numpy as np

import graphc as gx
from graphc import nn


def test_random_operators_share_kernels_whatever_their_keys() -> None:
    def kernels(count: int) -> int:
        with gx.Graph(seed=1).as_default():
            for _ in range(count):
                gx.Variable(nn.initializers.glorot_uniform()((30, 20)))
            return len(gx.explain(gx.global_variables_initializer()).plan.kernels)

    assert kernels(2) == kernels(20)


def test_random_operators_of_one_shape_draw_different_numbers() -> None:
    with gx.Graph(seed=1).as_default(), gx.Session() as session:
        first, second = session.run([gx.random.uniform((30, 20)), gx.random.uniform((30, 20))])
    assert not np.any(first == second)
