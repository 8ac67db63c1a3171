"""The kernels of programs planned for a GPU, gathered without one: values come from the reference.

Imports: graphc.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import graphc as gx
from graphc.backends.gpu.kernel_text import GpuKernel
from graphc.backends.gpu.kernels import emit_gpu_kernel
from graphc.compiler import plan_gpu
from graphc.execution import COMPILERS
from graphc.kernel import Contraction
from graphc.plan import Plan

DEVICE = "reference"


class _PlannedError(Exception):
    """The plan is made: nothing shall run."""


@contextmanager
def planning(run: bool = True) -> Iterator[list[Plan]]:
    """Inside, sessions on `DEVICE` plan for a GPU, and compute as the reference does.

    run  False: a run ends once its plan is made
    """
    plans: list[Plan] = []

    def compiler(program: Any, **options: Any) -> Any:
        plans.append(plan_gpu(program, fast_math=options.get("fast_math", False))[0])
        if not run:
            raise _PlannedError
        return reference(program, **options)

    reference = COMPILERS[DEVICE]
    COMPILERS[DEVICE] = compiler
    try:
        yield plans
    finally:
        COMPILERS[DEVICE] = reference


def training_plan(fetches: Any, feeds: dict[gx.Tensor, Any], graph: gx.Graph | None = None) -> Plan:
    """The plan of what would be run, which is not."""
    with planning(run=False) as plans, suppress(_PlannedError):
        gx.Session(graph, device=DEVICE).run(fetches, feeds)
    (plan,) = plans
    return plan


def kernels_of(plans: Sequence[Plan], precision: str = "f32") -> list[GpuKernel]:
    """Every distinct kernel of some plans, under names of their own.

    Where products are rounded, the kernels that have none are left out: they are the same.
    """
    distinct = dict.fromkeys(k for plan in plans for k in plan.kernels)
    return [
        emit_gpu_kernel(k, f"k{i}", precision)
        for i, k in enumerate(distinct)
        if precision == "f32" or isinstance(k, Contraction)
    ]
