"""Kernels for GPUs become PTX and machine code: every operator, and the networks that are trained.

A selection runs always: GRAPHC_TEST_PTXAS=all assembles every sample of every operator, in every
dtype, for every compute capability.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))

import networks
import ptxas
from gpu_plans import DEVICE, kernels_of, planning, training_plan
from operator_checks import all_calls, build, operands, run_calls, sampled_records
from ptxas import CAPABILITIES, PTXAS, REASON, LoweringError, check_kernels, lower

import graphc as gx
from graphc.backends.gpu.kernel_text import GpuKernel
from graphc.backends.gpu.ptx import LOWERED, to_ptx
from graphc.errors import CompileError
from graphc.node import Op
from graphc.plan import Plan

ALL = os.environ.get("GRAPHC_TEST_PTXAS") == "all"

needs_ptxas = pytest.mark.skipif(PTXAS is None, reason=REASON)


@pytest.fixture(autouse=True, scope="module")
def lowering() -> Iterator[None]:
    """The process that lowers ends with the module's tests."""
    yield
    ptxas.close()


# ---- what LLVM lowers --------------------------------------------------------------------------

INTEGERS = ("i8", "i16", "i32", "i64")
FLOATS = ("float", "double")
SHORT = {"float": "f32", "double": "f64"}


def calling(name: str, result: str, *operands: str, fixed: str = "") -> GpuKernel:
    """A kernel that calls an intrinsic with what it loads, and stores what comes back."""
    suffix = SHORT.get(result, result)
    if name.endswith(".sat"):
        suffix += "." + SHORT[operands[0]]
    values = [f"{t} %x{i}" for i, t in enumerate(operands)]
    loads = [
        f"  %p{i} = getelementptr {t}, ptr %a0, i64 {i}\n  %x{i} = load {t}, ptr %p{i}, align 1"
        for i, t in enumerate(operands)
    ]
    text = f"""
declare {result} @llvm.{name}.{suffix}({", ".join([*operands, *fixed.split()[:1]])})
define ptx_kernel void @k(ptr %a0, ptr %a1) {{
{chr(10).join(loads)}
  %y = call {result} @llvm.{name}.{suffix}({", ".join([*values, *[fixed] * bool(fixed)])})
  store {result} %y, ptr %a1, align 1
  ret void
}}
"""
    return GpuKernel("k", text, 2, 0, 32)


def calls_of(name: str) -> list[GpuKernel]:
    """An intrinsic with every type it is used with."""
    if name in ("abs", "ctlz", "cttz"):
        return [calling(name, t, t, fixed="i1 false") for t in INTEGERS]
    if name in ("smax", "smin", "umax", "umin"):
        return [calling(name, t, t, t) for t in INTEGERS]
    if name in ("fptosi.sat", "fptoui.sat"):
        return [calling(name, t, f) for t in INTEGERS for f in FLOATS]
    count = 3 if name == "fma" else 1 + (name in TWO)
    return [calling(name, t, *[t] * count) for t in FLOATS]


TWO = ("copysign", "maximum", "maxnum", "minimum", "minnum")


@pytest.mark.parametrize("name", sorted(LOWERED))
def test_what_is_let_through_is_lowered(name: str) -> None:
    for kernel in calls_of(name):
        for capability in CAPABILITIES:
            assert ".visible .entry k(" in lower(kernel, capability)


@pytest.mark.parametrize("name", ["sin", "pow", "tanh"])
def test_what_no_gpu_has_is_refused(name: str) -> None:
    count = 2 if name == "pow" else 1
    kernel = calling(name, "float", *["float"] * count)
    with pytest.raises(CompileError, match=rf"calls llvm\.{name}\.f32, which no GPU has"):
        to_ptx(kernel.text, (8, 0))


def test_a_kernel_that_ends_the_process_is_named() -> None:
    intrinsic = "llvm.nvvm.ex2.approx.ftz.bf16"  # which older GPUs lack
    text = f"""
declare bfloat @{intrinsic}(bfloat)
define ptx_kernel void @ender(ptr %a0) {{
  %x = load bfloat, ptr %a0, align 2
  %y = call bfloat @{intrinsic}(bfloat %x)
  store bfloat %y, ptr %a0, align 2
  ret void
}}
"""
    with pytest.raises(LoweringError, match=r"^ender for 7\.5: LLVM ended the process"):
        lower(GpuKernel("ender", text, 1, 0, 32), (7, 5))
    good = calling("fma", "float", "float", "float", "float")
    assert ".target sm_75" in lower(good, (7, 5))


# ---- operators ---------------------------------------------------------------------------------


def plans_of(record: Op) -> list[Plan]:
    """Plans of an operator's samples, all of them or the first, in every dtype."""
    graph = gx.Graph(seed=7)
    with planning() as plans, graph.as_default():
        if ALL:
            calls = all_calls(record)
        else:
            first = record.samples.calls[0]
            calls = []
            for dtype in record.samples.dtypes:
                label = f"{record.name}_{dtype}"
                values = operands(record, first, dtype, label, edges=False)
                calls.append(build(record, first, values, label))
        run_calls(calls, graph, DEVICE)
    return plans


RECORDS = sampled_records()
GROUPS = 8


@needs_ptxas
@pytest.mark.parametrize("group", range(GROUPS))
def test_operators_assemble_without_spills(group: int) -> None:
    records = RECORDS[group::GROUPS]
    plans = [plan for record in records for plan in plans_of(record)]
    kernels = kernels_of(plans)
    assert len(kernels) > len(records)
    for i, capability in enumerate(CAPABILITIES):
        check_kernels(kernels if ALL else kernels[i :: len(CAPABILITIES)], capability)


# ---- networks ----------------------------------------------------------------------------------


def network_plan(name: str) -> Plan:
    """One step of a network's training, for any number of images."""
    with gx.Graph(seed=0).as_default():
        network = networks.NETWORKS[name]()
        step = network.step()
        return training_plan([network.loss, step], network.feeds(2))


ROUNDED = [("resnet50", "tf32"), ("resnet50", "bf16")] if ALL else []
"""Takes half a minute."""


@pytest.mark.no_cover
@needs_ptxas
@pytest.mark.parametrize(
    ("name", "precision"),
    [("lenet", "f32"), ("lenet", "tf32"), ("lenet", "bf16"), ("resnet50", "f32"), *ROUNDED],
)
def test_training_assembles_without_spills(name: str, precision: str) -> None:
    kernels = kernels_of([network_plan(name)], precision)
    assert len(kernels) > 5
    capabilities = CAPABILITIES if precision == "f32" else CAPABILITIES[1:]  # which can round
    for i, capability in enumerate(capabilities):
        check_kernels(kernels if ALL else kernels[i :: len(capabilities)], capability)


# ---- golden ------------------------------------------------------------------------------------

GOLDEN = Path(__file__).parent / "golden"


def fused() -> gx.Tensor:
    """A thread takes four adjacent elements of each operand."""
    x, y = (gx.placeholder("f32", ("n",), name=name) for name in "xy")
    return gx.maximum(x * 2 + y, 0)


def row_sums() -> gx.Tensor:
    """A warp takes a row, and its lanes join their sums."""
    return gx.sum(gx.placeholder("f32", ("rows", 1000), name="x"), axis=1)


@pytest.mark.parametrize("make", [fused, row_sums])
def test_golden_ptx(make: Callable[[], gx.Tensor], update_golden: bool) -> None:
    path = GOLDEN / f"{make.__name__}.ptx"
    y = make()
    feeds = {t: np.ones((2, 1000)[-len(t.dims) :], "f4") for t in operands_of(y)}
    (kernel,) = kernels_of([training_plan(y, feeds)])
    found = f"// LLVM {ptxas.llvm_major()}\n{lower(kernel, (8, 0))}"
    if update_golden:
        path.write_text(found)
    wanted = path.read_text()
    if wanted.splitlines()[0] != found.splitlines()[0]:
        pytest.skip(f"{path.name} was made by another {wanted.splitlines()[0][3:]}")
    assert found == wanted


def operands_of(y: gx.Tensor) -> list[gx.Tensor]:
    """The placeholders of y's graph."""
    return [n.outputs[0] for n in y.graph.nodes if n.op.name == "placeholder"]


@needs_ptxas
def test_a_spill_is_seen() -> None:
    count = 300  # more values than a thread has registers, all in use at once
    loads = "\n".join(
        f"  %p{i} = getelementptr float, ptr %a0, i64 {i}\n"
        f"  %x{i} = load volatile float, ptr %p{i}, align 4"
        for i in range(count)
    )
    stores = "\n".join(f"  store volatile float %x{i}, ptr %p{i}, align 4" for i in range(count))
    text = f"define ptx_kernel void @k(ptr %a0) {{\n{loads}\n{stores}\n  ret void\n}}\n"
    with pytest.raises(AssertionError, match="spills="):
        check_kernels([GpuKernel("k", text, 1, 0, 32)], (8, 0))
