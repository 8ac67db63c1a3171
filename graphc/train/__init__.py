"""Training: optimizers, learning-rate schedules, gradient clipping, checkpoints.

What saves and restores is imported on first use.  Imports: train.*.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from graphc.train.clipping import clip_by_global_norm, clip_by_norm, clip_by_value, global_norm
from graphc.train.global_step import create_global_step, get_global_step, get_or_create_global_step
from graphc.train.moving_average import ExponentialMovingAverage
from graphc.train.optimizer import Optimizer
from graphc.train.optimizers import (
    SGD,
    AdaDelta,
    AdadeltaOptimizer,
    AdaGrad,
    AdagradOptimizer,
    Adam,
    AdamOptimizer,
    GradientDescentOptimizer,
    Momentum,
    MomentumOptimizer,
    RMSProp,
    RMSPropOptimizer,
)
from graphc.train.schedules import (
    cosine_decay,
    exponential_decay,
    inverse_decay,
    inverse_time_decay,
    multistep_decay,
    natural_exp_decay,
    piecewise_constant,
    polynomial_decay,
    sigmoid_decay,
    step_decay,
    warm_up,
)

if TYPE_CHECKING:
    from graphc.train.saver import Saver, latest_checkpoint, list_variables, load_variable

_SAVER = ("Saver", "latest_checkpoint", "list_variables", "load_variable")


def __getattr__(name: str) -> Any:
    if name not in _SAVER:
        raise AttributeError(f"module 'graphc.train' has no attribute {name!r}")
    from graphc.train import saver

    return getattr(saver, name)


__all__ = [
    "SGD",
    "AdaDelta",
    "AdaGrad",
    "AdadeltaOptimizer",
    "AdagradOptimizer",
    "Adam",
    "AdamOptimizer",
    "ExponentialMovingAverage",
    "GradientDescentOptimizer",
    "Momentum",
    "MomentumOptimizer",
    "Optimizer",
    "RMSProp",
    "RMSPropOptimizer",
    "Saver",
    "clip_by_global_norm",
    "clip_by_norm",
    "clip_by_value",
    "cosine_decay",
    "create_global_step",
    "exponential_decay",
    "get_global_step",
    "get_or_create_global_step",
    "global_norm",
    "inverse_decay",
    "inverse_time_decay",
    "latest_checkpoint",
    "list_variables",
    "load_variable",
    "multistep_decay",
    "natural_exp_decay",
    "piecewise_constant",
    "polynomial_decay",
    "sigmoid_decay",
    "step_decay",
    "warm_up",
]
