"""Every operator on a GPU and on the emulator: values, dtypes, shapes, gradients of two orders.

Tolerances are the operators' own, those the CPU is held to.
"""

from __future__ import annotations

import pytest
from operator_checks import check_device, check_gradient, check_shapes, sampled_records

from graphc.node import Op

RECORDS = sampled_records()
DIFFERENTIABLE = [r for r in RECORDS if r.vjp is not None and r.samples.gradient]
DEVICES = ["emulated-gpu", pytest.param("gpu", marks=pytest.mark.gpu)]

pytestmark = pytest.mark.parametrize("device", DEVICES)


def _named(records: list[Op]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("record", records, ids=[r.name for r in records])


@_named(RECORDS)
def test_values_are_those_of_the_reference(record: Op, device: str) -> None:
    check_device(record, device)


@_named(RECORDS)
def test_values_do_not_depend_on_what_is_known_of_shapes(record: Op, device: str) -> None:
    check_shapes(record, device)


@_named(DIFFERENTIABLE)
def test_gradients_of_first_and_second_order(record: Op, device: str) -> None:
    check_gradient(record, device)
