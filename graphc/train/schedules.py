"""Learning-rate schedules: graph functions of the global step.

Each takes the step as a tensor or number and returns a float32 scalar tensor; pass it to an
optimizer as its learning rate.  Imports: ops, graph, errors.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from graphc.errors import GraphTypeError
from graphc.node import Tensor
from graphc.ops.activation import sigmoid
from graphc.ops.arithmetic import astype, greater, less, maximum, minimum, where
from graphc.ops.define import as_tensor
from graphc.ops.math import ceil, cos, exp, floor, power
from graphc.types import float32


def _float(value: Any) -> Tensor:
    return astype(as_tensor(value), float32)


def _periods(step: Any, decay_steps: Any, staircase: bool) -> Tensor:
    passed = _float(step) / _float(decay_steps)
    return floor(passed) if staircase else passed


def exponential_decay(
    learning_rate: Any, global_step: Any, decay_steps: Any, decay_rate: Any, staircase: bool = False
) -> Tensor:
    """learning_rate * decay_rate ^ (step / decay_steps), the exponent rounded down if staircase."""
    exponent = _periods(global_step, decay_steps, staircase)
    return _float(learning_rate) * power(_float(decay_rate), exponent)


def natural_exp_decay(
    learning_rate: Any, global_step: Any, decay_steps: Any, decay_rate: Any, staircase: bool = False
) -> Tensor:
    """learning_rate * exp(-decay_rate * step / decay_steps)."""
    exponent = _periods(global_step, decay_steps, staircase)
    return _float(learning_rate) * exp(-_float(decay_rate) * exponent)


def inverse_time_decay(
    learning_rate: Any, global_step: Any, decay_steps: Any, decay_rate: Any, staircase: bool = False
) -> Tensor:
    """learning_rate / (1 + decay_rate * step / decay_steps)."""
    passed = _periods(global_step, decay_steps, staircase)
    return _float(learning_rate) / (1.0 + _float(decay_rate) * passed)


def polynomial_decay(
    learning_rate: Any,
    global_step: Any,
    decay_steps: Any,
    end_learning_rate: Any = 1e-4,
    power_of: float = 1.0,
    cycle: bool = False,
) -> Tensor:
    """From learning_rate to end_learning_rate in decay_steps, along (1 - t) ^ power_of.

    cycle: when the steps are used up, the period is lengthened to the next multiple of decay_steps;
    otherwise the rate stays at its end.
    """
    step, period = _float(global_step), _float(decay_steps)
    if cycle:
        period = period * maximum(1.0, ceil(step / period))
    else:
        step = minimum(step, period)
    end = _float(end_learning_rate)
    left = power(1.0 - step / period, power_of)
    return (_float(learning_rate) - end) * left + end


def piecewise_constant(
    global_step: Any, boundaries: Sequence[float], values: Sequence[float]
) -> Tensor:
    """values[0] up to and including boundaries[0], values[1] up to boundaries[1], and so on."""
    if len(values) != len(boundaries) + 1:
        raise GraphTypeError(
            f"piecewise_constant: {len(values)} values for {len(boundaries)} boundaries"
        )
    if list(boundaries) != sorted(boundaries):
        raise GraphTypeError("piecewise_constant: the boundaries are not in order")
    step = _float(global_step)
    rate = _float(values[0])
    for boundary, value in zip(boundaries, values[1:], strict=True):
        rate = where(greater(step, float(boundary)), _float(value), rate)
    return rate


def step_decay(learning_rate: Any, global_step: Any, step_size: Any, gamma: float = 0.1) -> Tensor:
    """learning_rate * gamma ^ floor(step / step_size): Caffe's "step" policy."""
    return exponential_decay(learning_rate, global_step, step_size, gamma, staircase=True)


def multistep_decay(
    learning_rate: float, global_step: Any, boundaries: Sequence[float], gamma: float = 0.1
) -> Tensor:
    """learning_rate, times gamma at each boundary reached: Caffe's "multistep" policy."""
    step = _float(global_step)
    rate = _float(learning_rate)
    for boundary in boundaries:
        rate = where(less(step, float(boundary)), rate, rate * gamma)
    return rate


def inverse_decay(learning_rate: Any, global_step: Any, gamma: float, power_of: float) -> Tensor:
    """learning_rate * (1 + gamma * step) ^ (-power_of): Caffe's "inv" policy."""
    return _float(learning_rate) * power(1.0 + gamma * _float(global_step), -power_of)


def sigmoid_decay(learning_rate: Any, global_step: Any, gamma: float, step_size: float) -> Tensor:
    """learning_rate / (1 + exp(-gamma * (step - step_size))): Caffe's "sigmoid" policy.

    A negative gamma lets the rate fall.
    """
    return _float(learning_rate) * sigmoid(gamma * (_float(global_step) - step_size))


def cosine_decay(
    learning_rate: Any, global_step: Any, decay_steps: Any, alpha: float = 0.0
) -> Tensor:
    """Half a cosine from learning_rate to alpha * learning_rate (Loshchilov and Hutter, 2017)."""
    passed = minimum(_float(global_step) / _float(decay_steps), 1.0)
    cosine = 0.5 * (1.0 + cos(math.pi * passed))
    return _float(learning_rate) * ((1.0 - alpha) * cosine + alpha)


def warm_up(learning_rate: Any, global_step: Any, warm_up_steps: Any, start: Any = 0.0) -> Tensor:
    """A line from `start` to learning_rate over warm_up_steps, then learning_rate.

    learning_rate may itself be a schedule of the same step (Goyal et al., 2017).
    """
    rate, first = _float(learning_rate), _float(start)
    passed = minimum(_float(global_step) / _float(warm_up_steps), 1.0)
    return first + (rate - first) * passed


__all__ = [
    "cosine_decay",
    "exponential_decay",
    "inverse_decay",
    "inverse_time_decay",
    "multistep_decay",
    "natural_exp_decay",
    "piecewise_constant",
    "polynomial_decay",
    "sigmoid_decay",
    "step_decay",
    "warm_up",
]
