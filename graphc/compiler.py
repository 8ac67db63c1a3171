"""From a specialised program to native code: the only place that sees passes and back ends.

Imports: passes.pipeline, backends (the LLVM one when first used: importing graphc must stay cheap).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from graphc.backends.base import Executable
from graphc.budget import Budget
from graphc.dims import DimLike
from graphc.kernel import Contraction, Cut, Kernel, blocks
from graphc.passes.forms import GPU_FORMS
from graphc.passes.pipeline import Beside, Trace, build_plan, optimize
from graphc.plan import Plan
from graphc.program import Program


def blocks_of(kernel: Kernel) -> DimLike:
    """How many blocks the LLVM back end cuts a kernel into."""
    if isinstance(kernel, Contraction):
        from graphc.backends.codegen.contraction import contraction_blocks

        return contraction_blocks(kernel)
    return blocks(kernel)


def cut_of(kernel: Contraction) -> Cut:
    """How the LLVM back end cuts a contraction."""
    from graphc.backends.codegen.contraction import contraction_cut

    return contraction_cut(kernel)


def plan_cpu(
    program: Program,
    trace: Trace | None = None,
    budget: Budget | None = None,
    keep: bool = True,
    fast_math: bool = False,
    beside: Beside | None = None,
) -> tuple[Plan, Program]:
    """The plan of a program for the CPU, and the program as it was lowered.

    keep       whether values may stay between runs
    fast_math  whether the program may be computed as if its numbers were real
    beside     told the kernels before there is a plan, unless there is a budget
    Both depend on the budget: on its bytes and on its sizes.  Raises MemoryBudgetError.
    """
    optimized = optimize(program, trace=trace, fast_math=fast_math)
    parts = optimized, blocks_of, trace, budget, cut_of, keep, fast_math
    return build_plan(*parts, beside=beside)


def compile_cpu(
    program: Program, budget: Budget | None = None, keep: bool = True, fast_math: bool = False
) -> tuple[Executable, Program]:
    """Native code for a program, and the program as it was lowered; see `plan_cpu`."""
    from graphc.backends.llvm.executable import compile_plan
    from graphc.backends.llvm.jit import default_jit, kernel_names

    jit = default_jit()
    code: dict[int, tuple[str, int]] = {}

    def compile_beside(kernels: Sequence[Kernel], make_plan: Callable[[], None]) -> None:
        names = kernel_names(kernels)
        functions = jit.compile_kernels(kernels, names, meanwhile=make_plan)
        code.update(zip(map(id, kernels), zip(names, functions, strict=True), strict=True))

    plan, lowered = plan_cpu(program, None, budget, keep, fast_math, compile_beside)
    return compile_plan(plan, jit, code), lowered


def plan_gpu(
    program: Program,
    trace: Trace | None = None,
    budget: Budget | None = None,
    fast_math: bool = False,
) -> tuple[Plan, Program]:
    """The plan of a program for a GPU, and the program as it was lowered; see `plan_cpu`.

    Operands are neither packed nor kept: a GPU's contractions read them as they are.
    """
    from graphc.backends.gpu.kernels import gpu_blocks

    optimized = optimize(program, trace=trace, fast_math=fast_math)
    return build_plan(
        optimized, gpu_blocks, trace, budget, keep=False, fast_math=fast_math, forms=GPU_FORMS
    )


ROUNDED_PRODUCTS = (8, 0)
"""The first GPUs, by compute capability, that multiply matrices of tf32 or bf16."""


def compile_gpu(
    program: Program,
    device: str,
    precision: str = "f32",
    budget: Budget | None = None,
    fast_math: bool = False,
) -> tuple[Executable, Program]:
    """Code for a GPU, by its name, and the program as it was lowered; raises DeviceError.

    precision  what contractions may round their operands to, where the GPU can
    """
    from graphc.backends.gpu.devices import open_device
    from graphc.backends.gpu.executable import GpuExecutable
    from graphc.backends.gpu.kernels import emit_gpu_kernel
    from graphc.backends.llvm.jit import kernel_names

    memory = open_device(device)
    if memory.device.capability < ROUNDED_PRODUCTS:
        precision = "f32"
    plan, lowered = plan_gpu(program, budget=budget, fast_math=fast_math)
    named = zip(plan.kernels, kernel_names(plan.kernels), strict=True)
    kernels = [emit_gpu_kernel(kernel, name, precision) for kernel, name in named]
    return GpuExecutable(plan, kernels, memory), lowered
